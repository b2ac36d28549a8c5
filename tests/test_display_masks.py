"""Masks that somebody made to be looked at, and those of modes that hold no class numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import folder_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.examine import Files, examine
from segrow.data.index import check_pair
from segrow.data.masks import Values, read_mask, stretched
from segrow.errors import UserError

STRETCHED = "those of classes stretched for display: write 0, 1, 2"


@pytest.mark.parametrize(
    ("shown", "n_raw"),
    [
        *(([0, 127], 2), ([0, 128, 255], 3), ([0, 85], 4), ([170], 4), ([0, 63, 126, 189], 5)),
        *(([0, 170, 255], 4), ([0, 65535], 2), ([0, 32768, 65535], 3), ([21845], 4), ([0, 13107, 52428], 6)),
        ([0, 32896, 65535], 3),  # 128 and 255 that became 16 bits
    ],
)
def test_values_spread_evenly_are_stretched(shown: list[int], n_raw: int) -> None:
    assert STRETCHED in stretched(shown, n_raw)


@pytest.mark.parametrize(
    ("shown", "n_raw"), [([0, 21], 21), ([0, 1, 200], 3), ([0, 33], 5), ([0, 60, 150], 3), ([], 2), ([0], 2)]
)
def test_other_values_are_not(shown: list[int], n_raw: int) -> None:
    assert stretched(shown, n_raw) == ""


@pytest.mark.parametrize(("factor", "of_8_bits"), [(257, True), (256, True), (300, False)])
def test_masks_of_8_bits_that_became_16(tmp_path: Path, factor: int, of_8_bits: bool) -> None:
    for shown in ([0, 3, 7], [0, 1, 255], [2]):
        values = np.array([shown], np.uint16) * np.uint16(factor)
        Image.fromarray(values).save(tmp_path / "mask.png")
        with pytest.raises(UserError, match="values above 255 are not a class of the data set") as caught:
            read_mask(tmp_path / "mask.png", Values(8, 255))
        expected = f"they are {factor} times those of 8 bits: save the mask with 8 bits, without scaling"
        assert (expected in str(caught.value)) == of_8_bits


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_classes_stretched_over_16_bits(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.array([[0, 13107, 65535]]).astype(kind)).save(tmp_path / "mask.tif")
    with pytest.raises(UserError, match=rf"far apart \(0, 13107, 65535\) are {STRETCHED}"):
        read_mask(tmp_path / "mask.tif", Values(6, 255))


def test_training_and_the_check_say_it(tmp_path: Path) -> None:
    mask = np.repeat(np.array([[0, 128, 255]], np.uint8), 3, axis=0)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "image.png")
    image, file, missing = (str(tmp_path / name) for name in ("image.png", "mask.png", "none.png"))
    with pytest.raises(UserError, match=rf"has value 128.*far apart \(0, 128, 255\) are {STRETCHED}"):
        check_pair((image, file), Values(3, 255))
    ((kind, text),) = examine(Files(image, file, missing), Values(3, 255)).problems
    assert kind == "value"
    assert STRETCHED in text


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_modes_without_one_value_a_pixel(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(
        UserError, match=f"is an image of mode {mode}; expected one value per pixel"
    ) as caught:
        read_mask(tmp_path / "a.tif", Values(3, 255))
    assert "labelmap" not in str(caught.value)


# --- palettes of greys: one reading for all masks of a split ----------------------------------------------


def indexed(path: Path, index: np.ndarray, greys: list[int]) -> None:
    picture = Image.fromarray(index.astype(np.uint8), "P")
    picture.putpalette([value for grey in greys for value in (grey, grey, grey)])
    picture.save(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 2, 255], [0, 255]),  # cut to what is used: 255 would be ignored here, class 1 there
        ([0, 1, 7], [0, 30, 60]),  # as greys spread to look at: few of them are class numbers by chance
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_greys_in_one_mask_and_indices_in_another_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: list[int], second: list[int], check: bool
) -> None:
    names = ("background", *(f"class{k}" for k in "abcdefg"))
    tree = folder_tree(tmp_path / "set", names, train=[{1}, {1}], val=0)
    for k, greys in enumerate((first, second)):
        index = np.zeros((24, 32), np.uint8)
        index[4:12] = 1
        index[14:20] = len(greys) - 1
        indexed(tree.root / f"masks/train/train{k:04d}.png", index, greys)
    if check:
        assert cli.main(["data", "check", str(tree.root)]) != 0
        said = capsys.readouterr().out
    else:
        data = open_dataset("folder", str(tree.root))
        with pytest.raises(UserError) as error:  # one is held out: the two are of different splits
            _ = data.presence("train", progress=False), data.presence("val", progress=False)
        said = str(error.value)
    words = " ".join(said.split())
    assert "palettes of greys that differ: in 1 all greys are class numbers (first " in words
    assert "save all masks as grey PNG" in words
