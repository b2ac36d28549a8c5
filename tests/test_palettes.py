"""Palettes of one data set: an index is one colour in all masks read by index, or a line stops it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pngs import PALETTE, png
from trees import folder_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.base import SegDataset
from segrow.data.masks import Values, read_mask
from segrow.errors import UserError
from segrow.palette import voc_palette

BLACK, RED, GREEN, BLUE, GREY, WHITE = (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (0, 0, 128),
    (60, 60, 60),
    (255, 255, 255),
)
VOC = [tuple(colour) for colour in voc_palette(21).tolist()]
RAMP = [(k, k, k) for k in range(256)]
FILLED = [BLACK, RED, GREEN, *[BLACK] * 253]
OUT = "so a class may be the index or the colour; state the colours of the classes in a labelmap.txt beside"

Rgb = tuple[int, int, int]
Mask = tuple[Sequence[Rgb], tuple[int, ...]]  # the palette, and the indices that are shown


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def write(path: Path, palette: Sequence[Rgb], shown: tuple[int, ...]) -> None:
    values = np.resize(np.array(shown, np.uint8), (24, 32))
    path.write_bytes(png(values, 8, PALETTE, [c for colour in palette for c in colour]))


def tree(root: Path, masks: Sequence[Mask]) -> Path:
    """Every mask is of training, but for the last one."""
    names = ("background", *(f"class{k}" for k in range(1, 12)))
    root = folder_tree(root, names, train=[{1}] * (len(masks) - 1), val=[{1}]).root
    files = (*sorted(root.glob("masks/train/*")), root / "masks/val/val0000.png")
    for file, mask in zip(files, masks, strict=True):
        write(file, *mask)
    return root


def read(root: Path) -> SegDataset:
    data = open_dataset("folder", str(root))
    _ = data.presence("train", progress=False), data.presence("val", progress=False)
    return data


DIFFER: list[tuple[str, list[Mask], str]] = [
    (
        "cut to what is shown",
        [([BLACK, RED], (0, 1)), ([BLACK, GREEN], (0, 1))],
        "index 1 is 128,0,0 in train/train0000 and 0,128,0 in val/val0000, ",
    ),
    (
        "exchanged, and never side by side",
        [([BLACK, RED, GREEN], (0, 1)), ([BLACK, GREEN, RED], (0, 2))],
        "128,0,0 is index 1 in train/train0000 and 2 in val/val0000, ",
    ),
    (
        "a mask without background",
        [([BLACK, RED, GREEN], (0, 1, 2)), ([BLACK, RED, GREEN], (0, 2)), ([RED], (0,))],
        "index 0 is 0,0,0 in train/train0000 and 128,0,0 in val/val0000, ",
    ),
    (
        "two tools",
        [([BLACK, RED, GREEN], (0, 1)), ([BLACK, BLUE, GREEN], (0, 1))],
        "index 1 is 128,0,0 in train/train0000 and 0,0,128 in val/val0000, ",
    ),
    (
        "filled up with black, as GIF is",
        [([BLACK, RED, BLACK, BLACK], (0, 1)), ([BLACK, GREEN, BLACK, BLACK], (0, 1))],
        "index 1 is 128,0,0",
    ),
    (
        "greys to look at",
        [([BLACK, GREY], (0, 1)), ([BLACK, (120, 120, 120)], (0, 1))],
        "index 1 is 60,60,60 in train/train0000 and 120,120,120 in val/val0000, ",
    ),
]
ALIKE: list[tuple[str, list[Mask]]] = [
    ("one palette, other classes", [(VOC, (0, 1)), (VOC, (0, 7)), (VOC, (3, 4)), (VOC, (0,))]),
    ("only what is not used differs", [([BLACK, RED, GREEN], (0, 1)), ([BLACK, RED, BLUE], (0, 1))]),
    ("a longer one", [([BLACK, RED, GREEN], (0, 1)), (VOC, (0, 1)), (FILLED, (0, 1, 2))]),
    ("saved as grey with a palette", [(VOC, (0, 7)), (RAMP, (0, 7)), (RAMP, (3,))]),
    ("a palette that shows nothing", [(VOC, (0, 1)), ([BLACK] * 4, (1,)), ([BLACK] * 4, (0, 2))]),
    ("filled up, and beyond", [(FILLED, (0, 1)), (FILLED, (3,)), (FILLED, (0, 255)), (VOC, (1, 2))]),
    ("colours that stand there twice", [([BLACK, RED, RED], (0, 1)), ([BLACK, RED, RED], (0, 2))]),
]


@pytest.mark.parametrize(("masks", "says"), [row[1:] for row in DIFFER], ids=[row[0] for row in DIFFER])
def test_palettes_that_differ_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], masks: list[Mask], says: str
) -> None:
    root = tree(tmp_path / "set", masks)
    with pytest.raises(UserError) as caught:
        read(root)
    line = str(caught.value)
    assert f"masks of {root} have palettes that differ: {says}" in line
    assert OUT in line
    with pytest.raises(UserError) as again:  # from the cache
        read(root)
    assert str(again.value) == line
    assert cli.main(["data", "check", str(root)]) == 1
    assert " ".join(line.split()) in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("masks", [row[1] for row in ALIKE], ids=[row[0] for row in ALIKE])
def test_palettes_that_do_not_contradict(tmp_path: Path, masks: list[Mask]) -> None:
    data = read(tree(tmp_path / "set", masks))
    for split, image, (_, shown) in zip(
        ["train"] * (len(masks) - 1) + ["val"], (*data.ids("train"), *data.ids("val")), masks, strict=True
    ):
        assert np.array_equal(data.mask(split, image), np.resize(shown, (24, 32)))  # type: ignore[arg-type]


def test_what_is_mended_is_forgotten(tmp_path: Path) -> None:
    """Rows of the index move when a mask is read again or is gone."""
    root = tree(tmp_path / "set", [(VOC, (0, 1)), ([BLACK, GREEN], (0, 1)), (VOC, (0, 2)), (VOC, (0, 3))])
    with pytest.raises(UserError, match="train/train0001"):
        read(root)
    write(root / "masks/train/train0001.png", VOC, (0, 1, 2))
    read(root)
    write(root / "masks/train/train0002.png", [BLACK, BLUE], (0, 1))
    for kind in ("images", "masks"):
        (root / kind / "train/train0000.png").unlink()
    with pytest.raises(
        UserError, match="index 1 is 0,0,128 in train/train0002 and 128,0,0 in train/train0001"
    ):
        read(root)


def test_colours_that_are_stated_settle_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", [([BLACK, RED], (0, 1)), ([BLACK, GREEN], (0, 1))])
    (root / "labelmap.txt").write_text("background:0,0,0\nclass1:128,0,0\nclass2:0,128,0\n")
    data = read(root)
    assert data.mask("train", "train0000").max() == 1
    assert data.mask("val", "val0000").max() == 2


@pytest.mark.parametrize(
    ("palette", "shown", "refused"),
    [
        ([RED, BLACK], (0, 1), True),
        ([WHITE, BLACK, RED], (0, 1, 2), True),
        ([RED, BLACK], (0,), False),
        ([RED, BLACK], (1,), False),
        ([RED, GREEN, BLUE], (0, 1), False),
        ([RED, *[BLACK] * 255], (0, 255), False),
    ],
)
def test_black_that_is_not_background(
    tmp_path: Path, palette: list[Rgb], shown: tuple[int, ...], refused: bool
) -> None:
    """As a tool that sorts colours leaves a mask of one class."""
    write(tmp_path / "a.png", palette, shown)
    if refused:
        with pytest.raises(
            UserError,
            match=r"palette whose index 0 is .* and index 1 is 0,0,0, so background may be .* labelmap.txt",
        ):
            read_mask(tmp_path / "a.png", Values(12, 255))
    else:
        assert set(np.unique(read_mask(tmp_path / "a.png", Values(12, 255)))) == set(shown)


def test_a_tool_that_counts_colours_anew(tmp_path: Path) -> None:
    """PIL's quantize and its GIFs, on masks in VOC's colours."""
    root = tree(tmp_path / "set", [(VOC, (0, 1)), (VOC, (0, 2))])
    for kind, save in (("GIF", {}), ("PNG", {"quantized": True})):
        for file in root.glob("masks/*/*"):
            values = np.zeros((24, 32), np.uint8)
            values[4:9] = 1 + ("val" in file.name)
            picture = Image.fromarray(values)
            picture.putpalette(voc_palette(21).ravel().tolist())
            (picture.convert("RGB").quantize(4) if save else picture).save(file, kind)
        with pytest.raises(UserError, match=r"have palettes that differ|so background may be"):
            read(root)
