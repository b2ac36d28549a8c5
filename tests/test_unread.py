"""Files that not read are told: masks, lists, maps; and what `data check` says of such trees."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only_line
from trees import folder_tree

from segrow import cli
from segrow.data import listing
from segrow.data.folder import FolderDataset
from segrow.data.given import open_given
from segrow.data.listing import list_files
from segrow.errors import UserError
from segrow.predict_files import find_images

EXIF = {3: "unsure", 6: "unturned"}


def palette_tree(root: Path) -> Path:
    for k in range(2):
        for name, folder in (("jpg", "JPEGImages"), ("png", "SegmentationClass")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            values = np.full((6, 8), k, np.uint8)
            Image.fromarray(values).save(root / folder / f"{k}.{name}")
    (root / "classes.txt").write_text("background\na\nb\n")
    return root


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "class_names.txt",
            "background\nb\na\n",
            "classes.txt is read, class_names.txt is not; they say different things",
        ),
        ("class_names.txt", "background\r\na\r\nb", None),
        ("labelmap.txt", "a:9,0,0\nb:0,9,0\n", None),
    ],
)
@pytest.mark.parametrize("folder", [True, False])
def test_lists_of_classes_that_are_not_read(
    tmp_path: Path, name: str, text: str, said: str | None, folder: bool
) -> None:
    root = folder_tree(tmp_path / "f", ("background", "a", "b")).root if folder else palette_tree(tmp_path)
    (root / name).write_text(text)
    notes = open_given(root, "--data").notes
    assert [f"{root}: {said}"] * bool(said) == [note for note in notes if "is read" in note]


def test_lists_of_colours_that_are_not_read(tmp_path: Path) -> None:
    root = palette_tree(tmp_path)
    (root / "labelmap.txt").write_text("a:9,0,0\nb:0,9,0\n")
    (root / "colors.txt").write_text("a:8,0,0\nb:0,8,0\n")
    (root / "palette.txt").write_text("a:7,0,0\nb:0,9,0\n")
    (root / "class_dict.csv").write_text("a:9,0,0\r\nb:0,9,0")
    said = f"{root}: labelmap.txt is read, colors.txt, palette.txt are not; they say different things"
    assert said in open_given(root, "--data").notes


def test_another_folder_of_masks(tmp_path: Path) -> None:
    root = palette_tree(tmp_path)
    (root / "SegmentationClassAug").mkdir()
    assert open_given(root, "--data").notes == ()
    Image.new("L", (8, 6)).save(root / "SegmentationClassAug/0.png")
    assert open_given(root, "--data").notes == (
        f"{root}: masks are read from SegmentationClass, those of SegmentationClassAug are not",
    )


def test_saliency_maps_of_no_image(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=2, val=1, saliency=True).root
    assert FolderDataset(root).notes == ()
    Image.new("1", (32, 24)).save(root / "saliency/val/zz.png")
    said = f"{root}/saliency/val: 1 saliency map belongs to no image (first zz.png)"
    assert FolderDataset(root).notes == (said,)
    data = FolderDataset(root, exclude=frozenset({"train/train0000"}))
    assert data.notes == (said,)


def test_two_unicode_forms_of_one_name(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=2, val=1).root
    for form in ("NFC", "NFD"):
        Image.new("RGB", (8, 6)).save(root / f"images/train/{unicodedata.normalize(form, 'é')}.jpg")
    if len(os.listdir(root / "images/train")) < 4:
        pytest.skip("this file system knows one form of a name")
    with pytest.raises(UserError) as caught:
        FolderDataset(root)
    assert r"one name in two Unicode forms ('e\u0301.jpg' and '\xe9.jpg'); one image must" in str(
        caught.value
    )


@pytest.mark.parametrize("turn", EXIF)
def test_an_exif_orientation_is_told_by_data_check_as_by_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    root = folder_tree(tmp_path / "d", train=3, val=1, suffix="jpg").root
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.open(root / "images/train/train0000.jpg").save(root / "images/train/train0000.jpg", exif=exif)
    code = cli.main(["data", "check", str(root), "--json"])
    report = json.loads(capsys.readouterr().out)
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline"]
    if EXIF[turn] == "unsure":
        said = "train: 1 of 3 images has an EXIF orientation, and the size does not tell"
        assert code == 0
        assert [note for note in report["notes"] if note.startswith(said)]
        assert cli.main(words) == 0
        assert said in capsys.readouterr().err
    else:
        said = "the mask was drawn without the image's EXIF orientation: turn it, or save the image upright"
        assert report["problems"][0]["text"].endswith(said)
        assert cli.main(words) == 2
        assert only_line(capsys.readouterr().err).endswith(said)


def test_data_check_of_files_without_partners_keeps_hints_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_tree(tmp_path / "d", train=2, val=0).root
    for file in (root / "images/train").iterdir():
        file.rename(file.with_suffix(".heic"))
    assert cli.main(["data", "check", str(root)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "2 files are left out, not read as images: 2 .heic (first train0000.heic)" in out
    assert "train0000.png has no image; train0000.heic is of a kind that is not read" in out
    for file in (root / "images/train").iterdir():
        file.rename(file.with_name(f"T{file.stem[1:]}.jpg"))
    assert cli.main(["data", "check", str(root)]) == 1
    assert "train0001.png is there, whose name differs in capitals" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("folder", [True, False])
def test_annotations_beside_masks(tmp_path: Path, folder: bool) -> None:
    root = folder_tree(tmp_path / "f", ("background", "a", "b")).root if folder else palette_tree(tmp_path)
    (root / "about.json").write_text('{"licence": 1}')
    assert open_given(root, "--data").notes == ()
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text('{"images": [], "annotations": []}')
    assert open_given(root, "--data").notes == (
        f"{root}: masks are read, the annotations in annotations/instances_train.json are not",
    )


def test_names_that_python_does_not_take_as_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under LC_ALL=C without UTF-8 mode, names are ASCII with their other bytes escaped."""
    name = "K\u00f6ln.jpg".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(listing, "walk", lambda folder, pipes: iter([name]))
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"has a name that Python takes as ascii here; set .* PYTHONUTF8=1"):
        list_files(tmp_path, "image")
    monkeypatch.setattr(listing, "walk", lambda folder, pipes: iter([os.fsdecode(b"K\xf6ln.jpg")]))
    with pytest.raises(UserError, match="has a name that is not UTF-8; rename it"):
        list_files(tmp_path, "image")


def test_brackets_in_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "ph[1]").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "ph[1]/a.jpg")
    with pytest.raises(UserError) as caught:
        find_images([f"{tmp_path}/ph[1]/*.jpg"])
    assert f"begins a choice of letters in a pattern: for the sign itself write {tmp_path}/ph[[]1]/" in str(
        caught.value
    )
    assert len(find_images([f"{tmp_path}/ph[[]1]/*.jpg"]).jobs) == 1
