"""What of a folder is left out, or taken for something that no file of it says, is told in a line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import start

from segrow import cli
from segrow.data.class_file import read_classes
from segrow.data.given import open_given
from segrow.data.voc import VocDataset
from segrow.errors import UserError
from segrow.grow import AddOptions, plan_addition

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
    assert f"{voc}: {LISTS}/train.txt (2 of 6 images) is not read; lists are read where train" in notes(voc)


def test_files_and_masks_that_vocs_lists_leave_out_are_told(voc: Path) -> None:
    (voc / LISTS / "train.txt").write_text("0\n1\n2\n")
    (voc / LISTS / "val.txt").write_text("3\n")
    (voc / "JPEGImages/7.heic").write_bytes(b"x")
    said = "\n".join(VocDataset(voc).notes)
    assert "2 masks are in neither train.txt nor val.txt and left out (first 4)" in said
    assert "JPEGImages: 1 file is left out, not read as images: 1 .heic (first 7.heic)" in said


def test_a_colour_that_is_not_vocs_wants_a_labelmap(voc: Path) -> None:
    Image.new("RGB", (16, 12), (250, 50, 83)).save(voc / "SegmentationClass/0.png")
    with pytest.raises(
        ValueError, match=r"which VOC's palette lacks .*; state the classes .* in a labelmap\.txt"
    ):
        open_given(voc, "--data").mask("train", "0")


# ---- lists of classes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "road\nsky\nbackground\n",
            'calls value 0 "road" and value 2 "background", but value 0 is background',
        ),
        (
            "# classes\n_background_\nsky\n",
            'line 1 ("# classes") is a comment; take it out',
        ),
        ("id,name\n0,background\n1,road\n2,sky\n", 'has the heading "id,name" before its numbered names'),
        ("road\n", "has 1 line; expected background and 1 to 65534 classes"),
    ],
)
def test_lists_whose_lines_are_no_values(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        read_classes(tmp_path / "classes.txt")
    assert says in str(caught.value)


def test_background_in_two_lines_is_a_name_twice(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\nsky\nbackground\n")
    with pytest.raises(UserError, match='has "background" in lines 1 and 3'):
        read_classes(tmp_path / "classes.txt")


# ---- what is not learnt, or not known


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Eight images: road on six, with sky on two of these, and a wall on one of them."""
    root = tmp_path / "streets"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("background\nroad\nsky\nwall\n")
    for k in range(8):
        mask = np.zeros((48, 48), np.uint8)
        mask[8:24, 8:24] = k < 6
        mask[30:36, 30:40] = 2 * (k < 2)
        mask[40:44, 30:40] = 3 * (k == 0)
        Image.fromarray(np.full((48, 48, 3), 20 * k, np.uint8)).save(root / f"images/{k}.png")
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    return root


@pytest.fixture
def run(tmp_path: Path, streets: Path) -> Path:
    words = ("--data.name", "folder", "--data.classes", "road", "--task", "offline", "--method", "finetune")
    assert start(streets, tmp_path / "run", *words, "--train.epochs", "1", "--train.crop_val", "false") == 0
    return tmp_path / "run"


def test_add_says_what_of_the_data_it_does_not_learn(run: Path, streets: Path) -> None:
    said = "\n".join(plan_addition(run, streets, ["sky"], AddOptions(saliency="none")).notes)
    assert f"{streets}: 6 of 8 images show no new class and are left out" in said
    assert f"{streets}: pixels of wall count as background; --classes names what is learnt" in said
    said = "\n".join(plan_addition(run, streets, ["sky", "wall"], AddOptions(saliency="none")).notes)
    assert "count as background" not in said


def test_eval_says_which_classes_the_model_does_not_know(
    run: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["eval", str(run), "--data.root", str(streets), "--split", "all", "--workers", "0"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert f"{streets}: the model does not know sky, wall; their pixels count as background" in shown.err
    assert "evaluation" not in shown.out
