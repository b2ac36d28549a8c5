"""SEGROW_PALETTE=index: the index of a palette is the class, whatever its colours are; and a note says so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only_line
from test_colours import RED as NOT_STATED
from test_colours import VALUES, painted, voc_like
from test_palettes import BLACK, BLUE, DIFFER, GREEN, RED, VOC, WHITE, Mask, read, tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.given import open_given
from segrow.data.masks import Values, read_mask
from segrow.errors import UserError

GREYS = [(9, 9, 9), (30, 30, 30), (5, 5, 5), (1, 1, 1)]
SAYS = "a palette, and the index is taken as the value, as SEGROW_PALETTE says"
ADVICE = "where the index is the class, set the environment variable SEGROW_PALETTE=index"
REFUSED: list[tuple[str, list[Mask]]] = [
    *[(name, masks) for name, masks, _ in DIFFER],
    ("white or black is background", [([WHITE, RED], (0, 1)), ([BLACK, RED], (0, 1))]),
    ("colours at random, as GIS tools give them", [([GREEN, BLUE], (0, 1)), ([RED, (7, 8, 9)], (0, 1))]),
    ("black is a class", [([WHITE, RED, GREEN, BLACK], (0, 1, 3)), ([WHITE, RED], (0, 1))]),
    ("greys in no order", [(GREYS[:3], (0, 1, 2)), (GREYS[:3], (0, 1, 2))]),
    ("greys that are classes in one", [(GREYS[:1] + GREYS[3:], (0, 1)), ([BLACK, (90, 90, 90)], (0, 1))]),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("masks", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_names_the_choice_and_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], masks: list[Mask]
) -> None:
    root = tree(tmp_path / "set", masks)
    with pytest.raises(UserError) as caught:
        read(root)
    assert str(caught.value).endswith(ADVICE)
    monkeypatch.setenv("SEGROW_PALETTE", "index")
    data = read(root)
    assert f"train: {len(masks) - 1} of {len(masks) - 1} mask" in str(data.notes)
    assert str(data.notes).count(SAYS) == 2
    files = [data.mask("train", i) for i in data.ids("train")] + [data.mask("val", data.ids("val")[0])]
    for mask, (_, shown) in zip(files, masks, strict=True):
        assert np.array_equal(mask, np.resize(shown, (24, 32)))
    assert str(read(root).notes).count(SAYS) == 2  # from the index that is kept
    assert cli.main(["data", "check", str(root)]) in (0, 1)
    out = " ".join(capsys.readouterr().out.split())
    assert SAYS in out
    assert ADVICE not in out
    monkeypatch.delenv("SEGROW_PALETTE")
    with pytest.raises(UserError):  # the index that is kept was made with the choice
        read(root)


def test_colours_that_are_stated_count_nowhere_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = np.where(VALUES == 255, 0, VALUES).astype(np.uint8)
    mask = Image.fromarray(shown)
    mask.putpalette([0, 0, 0, *NOT_STATED, 250, 50, 83])
    root = voc_like(tmp_path / "d", mask, n=2)
    (root / "labelmap.txt").write_text("background:0,0,0\nblue:250,50,83\nred:10,200,30\n")
    by_colour = open_given(root, "--data").mask("train", "000")
    assert np.array_equal(by_colour, np.choose(shown, [0, 2, 1]))
    monkeypatch.setenv("SEGROW_PALETTE", "index")
    data = open_given(root, "--data")
    data.presence("train", progress=False)
    assert np.array_equal(data.mask("train", "000"), shown)
    assert SAYS in str(data.notes)
    assert "numbers, not the colours that are stated" in str(data.notes)
    (root / "labelmap.txt").write_text("blue:250,50,83\nred:10,200,30\n")
    with pytest.raises(UserError, match=r"labelmap.txt does not say which"):
        open_given(root, "--data").presence("train", progress=False)


def test_masks_in_colours_and_vocs_own_at_other_indices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROW_PALETTE", "index")
    root = voc_like(tmp_path / "d", Image.fromarray(painted()), n=1)
    (root / "labelmap.txt").write_text("blue:250,50,83\nred:10,200,30\nignore:255,255,255\n")
    assert np.array_equal(open_given(root, "--data").mask("train", "000"), VALUES)
    moved = Image.fromarray(np.clip(VALUES, 0, 2))
    moved.putpalette([c for k in (0, 7, 3) for c in VOC[k]])
    moved.save(tmp_path / "m.png")
    values = open_given(voc_like(tmp_path / "voc", moved, n=1), "--data").values()
    assert read_mask(tmp_path / "m.png", values).max() == 2
    monkeypatch.delenv("SEGROW_PALETTE")
    assert read_mask(tmp_path / "m.png", values).max() == 7


def test_another_word_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "set", [(VOC, (0, 1)), (VOC, (0, 2))])
    monkeypatch.setenv("SEGROW_PALETTE", "colour")
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline"]
    assert cli.main(words) == 2
    line = only_line(capsys.readouterr().err)
    assert line.endswith("SEGROW_PALETTE is colour, expected index: the index of a palette is the class")
    monkeypatch.setenv("SEGROW_PALETTE", "")
    assert open_dataset("folder", str(root)).presence("train", progress=False).notes == ()
    assert read_mask(root / "masks/val/val0000.png", Values(12, 255)).max() == 2
