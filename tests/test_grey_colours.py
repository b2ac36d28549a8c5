"""Grey masks beside colours that are stated: the colour or the number counts, or a line names both."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_colours import voc_like

from segrow import cli
from segrow.data.given import open_given
from segrow.errors import UserError

CRACK = "background:0,0,0::\nother:10,20,30::\ncrack:255,255,255::\n"
FIRST = "background:0,0,0::\ncrack:255,255,255::\n"
SHUFFLED = "b:0,0,9::\na:0,9,0::\nbackground:0,0,0::\n"
NAMES = "background\nother\ncrack\n"
BITS = np.zeros((12, 16), np.uint8)
BITS[3:8, 2:9] = 1
WHITE = Image.fromarray(BITS * np.uint8(255))
ONES = Image.fromarray(BITS)

BOTH = 'which as a number is "other" and as the colour 255,255,255 of labelmap.txt "crack"; save it as RGB'
SHOWN, NUMBERS = (
    "grey, and the greys are taken for the colours",
    "numbers, not the colours that are stated, and",
)
UNCLEAR = "holds numbers, and labelmap.txt does not say which: its lines do not begin with background"

# labelmap.txt, class_names.txt, the mask, what a 1 of BITS becomes or why it is refused, what is told
ROWS: list[tuple[str, str, str, Image.Image, int | str, str]] = [
    ("rgb", CRACK, "", WHITE.convert("RGB"), 2, ""),
    ("rgba", CRACK, "", WHITE.convert("RGBA"), 2, ""),
    ("palette", CRACK, "", WHITE.convert("RGB").quantize(2), 2, ""),
    ("grey", CRACK, "", WHITE, 2, SHOWN),
    (
        "grey with alpha",
        CRACK,
        "",
        WHITE.convert("LA"),
        2,
        SHOWN,
    ),
    ("grey, names too", CRACK, NAMES, WHITE, 2, SHOWN),
    ("1 bit", CRACK, "", WHITE.convert("1"), f"holds 1, {BOTH}", ""),
    ("1 bit, the same", FIRST, "", WHITE.convert("1"), 1, ""),
    ("grey that is one of both", "background:0,0,0\na:2,2,2\nb:1,1,1\n", "", ONES, "holds 1, which as a", ""),
    ("grey that is the same", "background:0,0,0\na:1,1,1\nb:2,2,2\n", "", ONES, 1, ""),
    ("numbers", CRACK, "", ONES, 1, NUMBERS),
    ("numbers in 16 bits", CRACK, "", Image.fromarray(BITS.astype(np.uint16)), 1, NUMBERS),
    ("numbers as rgb", CRACK, "", ONES.convert("RGB"), 1, NUMBERS),
    ("numbers, names too", SHUFFLED, "background\na\nb\n", ONES, 1, NUMBERS),
    ("numbers of another order", SHUFFLED, "", ONES, UNCLEAR, ""),
    ("numbers in 16 bits of it", SHUFFLED, "", Image.fromarray(BITS.astype(np.uint16)), UNCLEAR, ""),
    ("numbers without background", "a:9,0,0::\nb:0,9,0::\n", "", ONES, UNCLEAR, ""),
    ("one in between is ignored", "background:0,0,0\nignore:1,9,9\na:0,9,0\n", "", ONES, UNCLEAR, ""),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("labelmap", "names", "mask", "expected", "told"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_the_colour_or_the_number(
    tmp_path: Path, labelmap: str, names: str, mask: Image.Image, expected: int | str, told: str
) -> None:
    root = voc_like(tmp_path / "d", mask, n=1)
    (root / "labelmap.txt").write_text(labelmap)
    if names:
        (root / "class_names.txt").write_text(names)
    data = open_given(root, "--data")
    if isinstance(expected, str):
        with pytest.raises(UserError) as caught:
            data.presence("train", progress=False)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    data.presence("train", progress=False)
    assert np.array_equal(data.mask("train", "000"), BITS * expected)
    notes = [note for note in data.notes if "stated" in note]
    assert [told in note for note in notes] == [True] * bool(told)


def test_numbers_and_greys_in_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_like(tmp_path / "d", WHITE, n=3)
    (root / "labelmap.txt").write_text(CRACK)
    ONES.save(root / "SegmentationClass/001.png")
    says = "two kinds: 1 hold class numbers (first train/001), and 2 greys that are stated as colours (first"
    with pytest.raises(UserError) as caught:
        open_given(root, "--data").presence("train", progress=False)
    assert says in str(caught.value)
    assert cli.main(["data", "check", str(root)]) == 1
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("labelmap", "told"),
    [
        ("a:9,0,0::\nb:0,9,0::\n", "names no background, so its colour is 0,0,0"),
        ("a:9,0,0::\nb:0,0,0::\n", 'names no background and gives 0,0,0 to "b", so no pixel is background'),
        (CRACK, ""),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_background_that_is_not_stated_is_told(tmp_path: Path, labelmap: str, told: str, own: bool) -> None:
    root = voc_like(tmp_path / "d", WHITE, n=1)
    if own:
        (root / "JPEGImages").rename(root / "images")
        (root / "SegmentationClass").rename(root / "masks")
        (root / "classes.txt").write_text(NAMES if labelmap == CRACK else "background\na\nb\n")
    (root / "labelmap.txt").write_text(labelmap)
    notes = [note for note in open_given(root, "--data").notes if "names no background" in note]
    assert [note.endswith(told) for note in notes] == [True] * bool(told)
