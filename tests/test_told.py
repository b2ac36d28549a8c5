"""What of a folder is left out, or taken for something that no file of it says, is told in a line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segrow.data.given import open_given
from segrow.data.voc import VocDataset

LISTS = "ImageSets/Segmentation"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Six images of VOC's kind with masks of values 0 to 2, without any list."""
    root = tmp_path / "d"
    for name in ("JPEGImages", "SegmentationClass", LISTS):
        (root / name).mkdir(parents=True)
    for k in range(6):
        mask = np.zeros((12, 16), np.uint8)
        mask[2:6, 2:6] = 1 + k % 2
        Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(root / f"JPEGImages/{k}.jpg")
        Image.fromarray(mask).save(root / f"SegmentationClass/{k}.png")
    return root


def notes(root: Path) -> str:
    return "\n".join(open_given(root, "--data").notes)


def test_values_taken_for_vocs_classes_are_told(voc: Path) -> None:
    said = (
        f"{voc}: no classes.txt or class_names.txt names the classes, so mask values 1 to 20 are those of VOC"
    )
    assert said in notes(voc)
    (voc / LISTS / "train.txt").write_text("0\n1\n2\n3\n")
    (voc / LISTS / "val.txt").write_text("4\n5\n")
    assert said in notes(voc)
    assert said not in "\n".join(VocDataset(voc).notes)  # called VOC by its user
    (voc / "classes.txt").write_text("background\ncrack\nhole\n")
    assert "VOC" not in notes(voc)


def test_a_list_that_is_not_read_is_told_where_it_would_leave_images_out(voc: Path) -> None:
    (voc / "classes.txt").write_text("background\ncrack\nhole\n")
    (voc / LISTS / "default.txt").write_text("0\n1\n2\n3\n4\n5\n")
    assert notes(voc) == ""
    (voc / LISTS / "train.txt").write_text("0\n1\n")
    assert f"{LISTS}/train.txt lists 2 of 6 images and is not read; lists are read where train.txt" in notes(
        voc
    )


def test_files_and_masks_that_vocs_lists_leave_out_are_told(voc: Path) -> None:
    (voc / LISTS / "train.txt").write_text("0\n1\n2\n")
    (voc / LISTS / "val.txt").write_text("3\n")
    (voc / "JPEGImages/7.heic").write_bytes(b"x")
    said = "\n".join(VocDataset(voc).notes)
    assert "2 masks are in no list and left out (first 4)" in said
    assert "JPEGImages: 1 file is left out, not read as images: 1 .heic (first 7.heic)" in said


def test_a_colour_that_is_not_vocs_wants_a_labelmap(voc: Path) -> None:
    Image.new("RGB", (16, 12), (250, 50, 83)).save(voc / "SegmentationClass/0.png")
    with pytest.raises(
        ValueError, match=r"which VOC's palette lacks .*; state the classes .* in a labelmap\.txt"
    ):
        open_given(voc, "--data").mask("train", "0")
