"""Images with more than 8 bits: which value is white is the same for all of a data set, or is asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import folder_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.base import SegDataset
from segrow.data.files import decode_image
from segrow.data.taken import Taken
from segrow.errors import UserError

NAMES = ("background", "cat")
SHAPE = (24, 32)


def ramp(top: float, kind: type) -> np.ndarray:
    """An image from 0 to `top`."""
    return np.linspace(0, top, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(kind)


def opened(root: Path, tops: list[float], kind: type) -> SegDataset:
    """A data set of as many images, the last one for validation."""
    if not root.exists():
        folder_tree(root, NAMES, train=[{1}] * (len(tops) - 1), val=[{1}], suffix="tif")
    files = [*sorted((root / "images/train").iterdir()), *(root / "images/val").iterdir()]
    for file, top in zip(files, tops, strict=True):
        Image.fromarray(ramp(top, kind)).save(file)
    return open_dataset("folder", str(root))


def index(data: SegDataset) -> str:
    """What is refused when both splits are indexed; "" where nothing is."""
    try:
        for split in ("train", "val"):
            data.presence(split, progress=False)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("tops", "kind", "said"),
    [
        (
            [60000, 3000, 61000],
            np.uint16,
            "1 as 12 bits (nothing above 4095, first train/train0001), 2 as 16",
        ),
        ([3000, 4000, 200], np.uint16, "1 as 8 bits (nothing above 255, first val/val0000), 2 as 12 bits"),
        ([60000, 200, 60000], np.int32, "1 as 8 bits (nothing above 255, first train/train0001), 2 as 16"),
        ([1, 250, 250], np.float32, "1 as 0 to 1 (nothing above 1, first train/train0000), 2 as 0 to 255"),
    ],
)
def test_a_mixture_is_refused_with_its_readings(
    tmp_path: Path, tops: list[float], kind: type, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(tmp_path / "set", tops, kind)
    line = index(data)
    assert line.startswith(
        f"{data.root}: images with more than 8 bits per value are read in different ways: "
    )
    assert line.endswith("SEGROW_WHITE to the value that is white in all of them, or save them with 8 bits")
    assert cli.main(["data", "check", str(data.root)]) == 1
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("tops", "kind"),
    [([3000, 4000, 0], np.uint16), ([200, 100, 200], np.uint16), ([1, 0.5, 0], np.float32)],
)
def test_images_of_one_reading_are_read(tmp_path: Path, tops: list[float], kind: type) -> None:
    assert index(opened(tmp_path / "set", tops, kind)) == ""


@pytest.mark.parametrize(
    ("white", "top", "kind", "expected"),
    [
        (65535, 3000, np.uint16, 3000 >> 8),
        (4095, 200, np.uint16, 200 >> 4),
        (1023, 1023, np.uint16, 255),
        (255, 1.0, np.float32, 1),
        (1, 1.0, np.float32, 255),
        (4095, 4095.0, np.float32, 255),
    ],
)
def test_the_white_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, white: int, top: float, kind: type, expected: int
) -> None:
    Image.fromarray(ramp(top, kind)).save(tmp_path / "a.tif")
    monkeypatch.setenv("SEGROW_WHITE", str(white))
    image, taken = decode_image(tmp_path / "a.tif")
    assert np.asarray(image).max() == expected
    assert taken == Taken.STATED


def test_with_it_a_mixture_is_read_alike_and_the_index_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tops = tmp_path / "set", [60000.0, 3000.0, 61000.0]
    assert "different ways" in index(opened(root, tops, np.uint16))
    monkeypatch.setenv("SEGROW_WHITE", "65535")
    data = open_dataset("folder", str(root))
    assert index(data) == ""
    assert "train: 2 of 2 images have more than 8 bits per value, with white where SEGROW_WHITE says" in str(
        data.notes
    )
    monkeypatch.setenv("SEGROW_WHITE", "4095")
    line = index(open_dataset("folder", str(root)))
    assert "train0000.tif holds numbers from 0 to 60000; expected 0 to 4095" in line
    assert line.endswith("or save it with 8 bits (SEGROW_WHITE)")
    monkeypatch.delenv("SEGROW_WHITE")
    assert "different ways" in index(open_dataset("folder", str(root)))


@pytest.mark.parametrize("said", ["white", "-1", "0", "1.5", "4095 "])
def test_no_such_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    Image.fromarray(ramp(9, np.uint16)).save(tmp_path / "a.tif")
    monkeypatch.setenv("SEGROW_WHITE", said)
    with pytest.raises(
        UserError, match=rf"SEGROW_WHITE is {said}, expected the value that is white, such as"
    ):
        decode_image(tmp_path / "a.tif")


# --- the same of masks: 255 is not background ---------------------------------------------------------------


def masks(root: Path, values: list[list[int]], names: tuple[str, ...] = ("background", "cat", "dog")) -> Path:
    """A data set whose masks show these values."""
    folder_tree(root, names, train=[{1}] * len(values), val=0)
    for k, shown in enumerate(values):
        stripes = np.resize(np.repeat(np.array(shown, np.uint8), 4), SHAPE[1])
        Image.fromarray(np.tile(stripes, (SHAPE[0], 1))).save(root / f"masks/train/train{k:04d}.png")
    return root


@pytest.mark.parametrize(
    ("values", "n"),
    [
        ([[1, 255], [2, 255], [1, 2, 255]], 3),
        ([[1, 255], [2, 255], [0, 1, 255]], 2),
        ([[1, 255], [0, 1], [0, 2], [0, 2]], 1),
        ([[1, 255], [0, 1, 255], [0, 2, 255]], 0),  # an object that fills its image
        ([[0, 1], [1, 2], [2]], 0),
        ([[0, 1, 255], [0, 2, 255]], 0),
    ],
)
def test_background_that_is_written_as_ignored_is_told(
    tmp_path: Path, values: list[list[int]], n: int
) -> None:
    root = masks(tmp_path / "set", values)
    data = open_dataset("folder", str(root), hold_out=False)
    for _ in range(2):  # the second time from the cache
        data.presence("train", progress=False)
    told = [note for note in data.notes if "classes and 255 but no 0" in note]
    does = "shows" if n == 1 else "show"
    assert told == [
        f"train: {n} of {len(values)} masks {does} classes and 255 but no 0 (first train0000); 255 means "
        '"ignore", so none of it is learnt as background: where it is background, write 0'
    ] * (n > 0)


def test_the_check_tells_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = masks(tmp_path / "set", [[1, 255], [2, 255]])
    cli.main(["data", "check", str(root)])
    assert "2 of 2 masks show classes and 255 but no 0" in " ".join(capsys.readouterr().out.split())
    root = masks(tmp_path / "other", [[1, 2], [1, 2]], ("background", "cat", "void"))
    cli.main(["data", "check", str(root)])
    assert "show classes and 255 or an ignored class but no 0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("top", "told"), [(16383, True), (8000, True), (16384, False), (4095, False)])
def test_grey_of_13_to_15_bits_is_told(
    tmp_path: Path, top: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(ramp(top, np.uint16)).save(path)
    assert bool(decode_image(path)[1] & Taken.DIM) == told
    monkeypatch.setenv("SEGROW_WHITE", str(top))
    image, taken = decode_image(path)
    assert not taken & Taken.DIM
    assert np.asarray(image).max() == 255


def test_masks_without_a_0_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "fruit", ("background", "a", "b"), train=3, val=1).root
    for mask in (root / "masks").rglob("*.png"):
        Image.fromarray(np.full((24, 32), 1, np.uint8)).save(mask)
    assert cli.main(["data", "check", str(root)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train: none of 3 masks shows 0, so nothing is learnt as background" in said
