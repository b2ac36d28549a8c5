"""Saliency maps that do not say which pixels are salient, and classes that no training image shows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import folder_tree

from segrow import cli
from segrow.data.files import read_saliency
from segrow.errors import UserError

OBJECT = np.zeros((24, 32), np.uint8)
OBJECT[4:12, 5:20] = 1
SOFT = np.where(OBJECT, 250, np.arange(24 * 32).reshape(24, 32) % 40 + 3).astype(np.uint8)
EDGES = OBJECT * np.uint8(255)
EDGES[4, 5:11] = np.arange(20, 80, 10)  # smoothed a little
ALPHA = np.dstack([OBJECT * 0 + 255] * 3 + [OBJECT * 255]).astype(np.uint8)
NUMBERS = OBJECT * (np.arange(32, dtype=np.uint8) % 9 + 1)  # of objects
BOTH = (
    "so salient may be what is not 0 (100% of its pixels) or what is above the middle (16%); save it with 0"
)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (SOFT, f"holds 41 levels from 3 to 250, {BOTH}"),
        (SOFT / np.float32(255), BOTH),
        (SOFT.astype(np.uint16) * 257, BOTH),
        (np.dstack([SOFT] * 3), BOTH),
        (ALPHA, "has one colour and differs in alpha alone; save the alpha as a grey PNG"),
        (ALPHA[..., 2:], "has one colour and differs in alpha alone"),
        (EDGES, ""),
        (NUMBERS, ""),
        (OBJECT * np.uint8(255), ""),
        (OBJECT > 0, ""),
        (np.dstack([EDGES, EDGES, EDGES, 255 - EDGES]), ""),
    ],
)
def test_what_is_salient(tmp_path: Path, values: np.ndarray, says: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    if not says:
        np.testing.assert_array_equal(read_saliency(path), OBJECT)
        return
    with pytest.raises(UserError) as caught:
        read_saliency(path)
    assert str(caught.value).startswith(f"saliency map {path} ")
    assert says in str(caught.value)


def test_the_check_names_a_soft_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "set", train=3, val=1, saliency=True).root
    Image.fromarray(SOFT).save(root / "saliency/train/train0001.png")
    assert cli.main(["data", "check", str(root), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["kind"], problem["image"]) == ("saliency", "train/train0001")
    assert BOTH in problem["text"]


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_a_class_that_no_training_image_shows_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    names = ("background", "apple", *(f"new{k}" for k in range(n)))
    val = [set(range(1, len(names)))]
    root = folder_tree(tmp_path / "set", names, train=[{1}] * 3, val=val).root
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline"]
    assert cli.main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "no training image" in line]
    some = {1: "new0", 2: "new0, new1", 7: "new0, new1, new2, new3, new4 and 2 more"}
    it = "it" if n == 1 else "them"
    assert told == (
        [
            f"note: no training image shows {some[n]}, so nothing is learnt of {it}; leave {it} out with "
            "--data.classes"
        ]
        if n
        else []
    )
