"""Objects of a COCO file that lie wholly under others: who is on top, and that it is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segrow import cli
from segrow.data.coco import CocoDataset

masks = pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

NAMES = ("cat", "dog", "void")
CAT, DOG, VOID = 1, 2, 3


def square(first: int, last: int) -> list[list[int]]:
    return [[first, first, last, first, last, last, first, last]]


def run_lengths(first: int, last: int) -> dict[str, Any]:
    shape = np.zeros((20, 30), np.uint8, order="F")
    shape[first:last, first:last] = 1
    runs = masks.encode(shape)
    return {"size": runs["size"], "counts": runs["counts"].decode()}


WHOLE = square(4, 14)
LEFT, RIGHT = [[4, 4, 9, 4, 9, 14, 4, 14]], [[9, 4, 14, 4, 14, 14, 9, 14]]
Objects = list[tuple[int, Any]]


def put(root: Path, objects: Objects) -> Path:
    """One image with these objects, the first of which is annotation 1."""
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "a.png")
    annotations = [
        {"id": k, "image_id": 0, "category_id": category, "segmentation": outline}
        for k, (category, outline) in enumerate(objects, start=1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)]
    content = {"images": [{"id": 0, "file_name": "a.png"}], "categories": categories}
    (root / "a.json").write_text(json.dumps({**content, "annotations": annotations}))
    return root


@pytest.mark.parametrize(
    ("objects", "n", "said"),
    [
        ([(CAT, WHOLE), (DOG, WHOLE)], 1, '1 of "cat" under "dog"'),
        ([(DOG, WHOLE), (CAT, WHOLE)], 1, '1 of "dog" under "cat"'),
        ([(CAT, run_lengths(4, 14)), (DOG, run_lengths(4, 14))], 1, '1 of "cat" under "dog"'),
        ([(CAT, WHOLE), (DOG, LEFT), (DOG, RIGHT)], 1, '1 of "cat" under "dog"'),
        ([(CAT, WHOLE), (CAT, WHOLE), (DOG, WHOLE)], 2, '2 of "cat" under "dog"'),
        ([(CAT, WHOLE), (VOID, WHOLE)], 1, '1 of "cat" under what is ignored'),
        ([(VOID, WHOLE), (CAT, WHOLE)], 1, '1 of what is ignored under "cat"'),
        ([(CAT, WHOLE), (DOG, square(5, 13))], 0, ""),  # a rim of it is seen
        ([(CAT, WHOLE), (CAT, WHOLE)], 0, ""),  # of one class nothing is lost
        ([(CAT, WHOLE), (DOG, square(90, 99))], 0, ""),
    ],
)
def test_what_is_covered_wholly_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects: Objects, n: int, said: str
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    put(tmp_path, [*objects, (DOG, square(15, 19))])  # so that a class is seen whatever covers the others
    for _ in range(2):  # the second time the masks come from the cache
        data = CocoDataset(tmp_path)
        data.presence("train", progress=False)
        told = [note for note in data.notes if "under others" in note]
        assert len(told) == (n > 0)
        if n:
            lie = f"a.json: {n} object{'s lie' if n > 1 else ' lies'} under others of another class"
            assert told[0].startswith(lie)
            assert f"no pixel: {said} (first {tmp_path}/a.json: annotation 1); the smaller one" in told[0]


def test_the_commands_tell_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    put(tmp_path, [(CAT, WHOLE), (DOG, WHOLE), (CAT, square(16, 19))])
    assert cli.main(["data", "check", str(tmp_path), "--json"]) == 0
    assert any("under others" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert cli.main(["scenario", "--data.name", "folder", "--data.root", str(tmp_path), "--task", "1-1"]) == 0
    assert "1 object lies under others of another class" in capsys.readouterr().err
