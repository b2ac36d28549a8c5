"""Masks that somebody made to be looked at, and those of modes that hold no class numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrow.data.examine import Files, examine
from segrow.data.index import check_pair
from segrow.data.masks import Values, read_mask, stretched
from segrow.errors import UserError

STRETCHED = "those of classes stretched for display: write 0, 1, 2"


@pytest.mark.parametrize(
    ("shown", "n_raw"),
    [([0, 127], 2), ([0, 128, 255], 3), ([0, 85], 4), ([170], 4), ([0, 63, 126, 189], 5), ([0, 170, 255], 4)],
)
def test_values_spread_evenly_are_stretched(shown: list[int], n_raw: int) -> None:
    assert STRETCHED in stretched(shown, n_raw)


@pytest.mark.parametrize(
    ("shown", "n_raw"), [([0, 21], 21), ([0, 1, 200], 3), ([0, 33], 5), ([0, 60, 150], 3), ([], 2), ([0], 2)]
)
def test_other_values_are_not(shown: list[int], n_raw: int) -> None:
    assert stretched(shown, n_raw) == ""


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
