"""What users give to `segrow predict`: a line for all that is left out, and for numbers of unknown range."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import build_tree, start

from segrow.cli import main
from segrow.errors import UserError
from segrow.predict_files import find_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "VOC2012"
    build_tree(root)
    out = tmp_path_factory.mktemp("runs") / "first"
    assert start(root, out, "--train.epochs", "1", "--task", "offline") == 0
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8))


def predict(run: Path, *names: Path) -> int:
    return main(
        ["predict", str(run), *map(str, names), "--out", str(names[0].parent / "out"), "--no-overlay"]
    )


def test_what_is_read_and_what_is_left_out(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("a.JPG", "JPEG"), ("b.jfif", "JPEG"), ("c.gif", "GIF"), ("d.webp", "WEBP")):
        picture().save(photos / name, kind)
    for name in ("IMG_1.HEIC", "IMG_2.heic", "notes.txt", ".DS_Store"):
        (photos / name).touch()
    assert predict(run, photos) == 0
    assert len(list((photos.parent / "out").iterdir())) == 4
    err = capsys.readouterr().err
    says = "3 files are left out, not read as images: 2 .heic, 1 .txt (first IMG_1.HEIC); convert the "
    assert f"note: {photos}: {says}" in err


def test_nothing_but_what_is_not_read(photos: Path) -> None:
    (photos / "a.heic").touch()
    with pytest.raises(
        UserError, match=r"holds no images \(.*\): 1 file is left out, not read as images: 1 .heic"
    ):
        find_images([str(photos)])
    with pytest.raises(UserError, match=r"in/\*.heic holds no images"):
        find_images([str(photos / "*.heic")])
    (photos / "b.jpg").touch()
    found = find_images([str(photos / "*")])
    assert [job.image.name for job in found.jobs] == ["b.jpg"]
    assert found.notes == (
        f"{photos}/*: 1 file is left out, not read as images: 1 .heic (first a.heic); "
        "convert them to JPEG or PNG",
    )
    assert (
        find_images([str(photos / "a.heic")]).notes == ()
    )  # by name it is tried, and its error says why not


def test_a_float_image_is_labelled_as_its_8_bit_one(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = np.asarray(picture())
    picture().save(photos / "eight.png")
    Image.fromarray((grey / 255).astype(np.float32)).save(photos / "unit.tif")
    Image.fromarray(grey.astype(np.float32)).save(photos / "float.tif")
    Image.fromarray(grey.astype(np.uint16) * 16).save(photos / "twelve.png")
    Image.fromarray((grey / 128 - 1).astype(np.float32)).save(photos / "signed.tif")
    assert predict(run, photos) == 1
    out, err = capsys.readouterr()
    maps = {f.stem: np.array(Image.open(f)) for f in (photos.parent / "out").iterdir()}
    assert set(maps) == {"eight", "unit", "float", "twelve"}
    assert all((labels == maps["eight"]).all() for labels in maps.values())
    assert (
        "note: read: 1 of 4 images holds floating-point numbers from 0 to 1, which are scaled to 0..255"
        in err
    )
    assert "nothing above 4095: taken as 12-bit" in err
    assert "signed.tif holds numbers from -1 to 0.992188; expected 0 to 1 or 0 to 255" in out


def test_images_that_are_scaled_differently_are_told(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.asarray(picture()).astype(np.uint16)
    for name, factor in (("a", 16), ("b", 256)):
        Image.fromarray(values * np.uint16(factor)).save(photos / f"{name}.tif")
    assert predict(run, photos) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "in different ways" in line)
    assert line.startswith("note: images with more than 8 bits per value are read in different ways: 1 as 12")
    assert "SEGROW_WHITE" in line


def test_a_turned_image_is_turned_once(run: Path, photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("jpg", "png", "tif"):
        picture().convert("RGB").save(photos / f"{kind}.{kind}", exif=exif)
    assert predict(run, photos) == 0
    for file in (photos.parent / "out").iterdir():
        assert Image.open(file).size == (40, 48)


def test_a_name_too_long_for_its_result_is_skipped(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture().save(photos / f"{'x' * 251}.png")
    picture().save(photos / "a.png")
    out = photos.parent / "out"
    assert main(["predict", str(run), str(photos), "--out", str(out)]) == 1
    assert (out / "a_overlay.jpg").exists()
    said = capsys.readouterr().out
    assert "1 of 2 images was skipped" in said
    assert "its result cannot be written" in said


@pytest.mark.slow
def test_a_terminal_that_cannot_write_a_name(run: Path, photos: Path) -> None:
    """Also one that is not UTF-8: its map is written all the same."""
    names = ("Äpfel.png".encode(), b"caf\xe9.png")
    for name in names:
        picture().save(photos / "a.png")
        os.rename(photos / "a.png", os.fsencode(photos) + b"/" + name)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"}
    command = [
        sys.executable,
        "-m",
        "segrow",
        "predict",
        str(run),
        str(photos),
        "--out",
        str(photos.parent / "out"),
    ]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert sorted(os.listdir(os.fsencode(photos.parent / "out"))) == sorted(
        ending for name in names for ending in (name, name[:-4] + b"_overlay.jpg")
    )
