"""Lists that divide images, and names of files as Windows' zip files leave them."""

import re
from pathlib import Path

import pytest
from runs import only_line
from trees import folder_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.check import check_tree
from segrow.data.folder import FolderDataset
from segrow.data.given import open_given
from segrow.data.lists import read_list
from segrow.errors import UserError

SPACED = ("photo", "photo 1", "photo 2")
DEEP = ("city0/1", "city1/1", "city1/b.c")


@pytest.mark.parametrize(
    ("ids", "lines", "expected"),
    [
        (("1", "2"), ["1", "2"], ("1", "2")),
        (("1", "2"), ["JPEGImages/1.JPG\r", "./images/2.png"], ("1", "2")),
        (("1", "2"), [r"C:\my data\JPEGImages\1.jpg", "JPEGImages/2.jpg"], ("1", "2")),
        (("1", "2"), ["/JPEGImages/1.jpg /SegmentationClass/1.png", "2.jpg 2.png"], ("1", "2")),
        (("1", "2"), ["i/1.jpg,m/1_mask.png", "i/2.jpg,m/2_mask.png"], ("1", "2")),
        (("1", "2"), ["1 -1", "2  1"], ("1", "2")),
        (("1", "2"), ["1 1", "2 2"], ("1", "2")),
        (SPACED, ["photo", "photo 1", "photo 2"], SPACED),
        (SPACED, ["photo.jpg", "d/photo 1.jpg", '"photo 2"'], SPACED),
        (SPACED, ["photo.jpg photo.png", "photo 1.jpg photo 1.png"], SPACED[:2]),
        (SPACED, ['"photo 1" 1', '"photo 2" 0'], SPACED[1:]),
        (SPACED, ["photo 1 1", "photo 2 -1"], SPACED[1:]),
        ((" a", "a b.jpg c"), [" a", "a b.jpg c"], (" a", "a b.jpg c")),
        (DEEP, ["city0/1", "JPEGImages/city1/1.jpg", "city1/b.c"], DEEP),
        (("caf\u00e9",), ["cafe\u0301"], ("caf\u00e9",)),
        # what is not there stays what it is called, so that the error names it
        (SPACED, ["photo", "photo 3"], ("photo", "photo 3")),
        (("photo",), ["photo 7"], ("photo 7",)),
        (("1",), ["1 1", "3 -1"], ("1", "3")),
        (DEEP, ["city2/1"], ("city2/1",)),
        (("1",), ["# train", "1"], ("# train", "1")),
    ],
)
def test_a_line_is_first_the_name_of_an_image(
    tmp_path: Path, ids: tuple[str, ...], lines: list[str], expected: tuple[str, ...]
) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("\n".join(lines).encode())
    listed, said = read_list(path, ids)
    assert (tuple(listed), said) == (expected, ())


@pytest.mark.parametrize(
    ("ids", "lines"), [(("1",), ["city0/1", "city1/1"]), (("photo",), ["photo 0", "photo 1"])]
)
def test_two_lines_that_would_be_one_image_are_refused(
    tmp_path: Path, ids: tuple[str, ...], lines: list[str]
) -> None:
    (tmp_path / "l.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"has the lines '.*' and '.*', which both name the image"):
        read_list(tmp_path / "l.txt", ids)


def flat(root: Path) -> Path:
    """Eight pairs a0 to a7 without splits."""
    folder_tree(root, train=8, val=0)
    for kind in ("images", "masks"):
        for k, file in enumerate(sorted((root / kind / "train").iterdir())):
            file.rename(root / kind / f"a{k}{file.suffix}")
        (root / kind / "train").rmdir()
    return root


def write(folder: Path, **lists: str) -> None:
    """`train="0 1 2"` lists a0, a1 and a2 in train.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"a{k}\n" for k in numbers.split()))


@pytest.mark.parametrize("place", ["", "splits", "lists", "ImageSets", "ImageSets/Segmentation"])
def test_lists_beside_a_folder_without_splits_divide_it(tmp_path: Path, place: str) -> None:
    root = flat(tmp_path / "d")
    write(root / place, train="3 0 1", val="4 5", test="6 7")
    for data in (open_dataset("folder", str(root)), open_given(root, "--data")):
        assert (data.ids("train"), data.ids("val")) == (("a3", "a0", "a1"), ("a4", "a5"))
        assert data.image("val", "a4").shape[:2] == data.mask("val", "a4").shape
        assert f"{root / place}: train.txt and val.txt divide the images" in data.notes
        said = "3 images are in neither train.txt nor val.txt and left out (first a2; 2 in test.txt)"
        assert f"{root / place}: {said}" in data.notes
    data = FolderDataset(root, exclude=frozenset({"train/a0", "val/a5", "train/a4"}))
    assert (data.ids("train"), data.ids("val")) == (("a3", "a1"), ("a4",))
    assert set(data.excluded) == {"train/a0", "val/a5", "train/a4"}
    write(root / place, val="4 9")
    with pytest.raises(UserError, match=r"lists a9, which is not in .*images"):
        FolderDataset(root)


def test_data_check_of_divided_images_reads_the_rest(tmp_path: Path) -> None:
    root = flat(tmp_path / "d")
    write(root, train="0 1 2", val="3 4 5 6 7")
    (root / "masks/a3.png").unlink()
    report = check_tree(lambda out: open_given(root, "DIR", out), progress=False)
    assert [problem.image for problem in report.problems] == ["train/a3"]
    assert report.splits["val"].images == 4


@pytest.mark.parametrize(
    ("lists", "unread"),
    [
        ({"train": "0 1", "test": "2 3"}, "test.txt (2 of 8 images), train.txt (2 of 8 images) are not read"),
        ({"val": "0"}, "val.txt (1 of 8 images) is not read; lists are read where train.txt and val.txt"),
        ({"default": "0 1 2 3 4 5 6 7"}, None),
        ({"train": "0 1 2 3 4 5 6 7"}, None),
        ({"other": "0"}, None),
    ],
)
def test_lists_that_are_not_read_are_told(tmp_path: Path, lists: dict[str, str], unread: str | None) -> None:
    root = flat(tmp_path / "d")
    write(root, **lists)
    notes = FolderDataset(root, hold_out=True).notes
    assert any("held out" in note for note in notes)
    assert [n for n in notes if "not read" in n] == [n for n in notes if unread and unread in n]
    assert bool(unread) == any("not read" in note for note in notes)


def test_folders_of_splits_stand_before_lists(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=4, val=2).root
    same = "".join(f"./images/train/train{k:04d}.jpg\n" for k in range(4))
    (root / "train.txt").write_text(same)
    assert FolderDataset(root).notes == ()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/a_train.txt").write_text("train0001 1\nval0000 -1\n")
    (root / "val.txt").write_text("train0001\nval0000\n")
    assert FolderDataset(root).notes == (
        f"{root}: val.txt (2 of 6 images), ImageSets/Main/a_train.txt (2 of 6 images) are not read; "
        "images/train and images/val divide the images",
    )


def test_two_divisions_are_refused(tmp_path: Path) -> None:
    root = flat(tmp_path / "d")
    write(root, train="0 1 2", val="3 4 5")
    write(root / "splits", train="2 1 0", val="5 4 3")
    assert FolderDataset(root).ids("train") == ("a2", "a1", "a0")
    write(root / "splits", train="0 1", val="3 4 5")
    with pytest.raises(UserError, match=r"splits and of .*d divide the images differently; remove the ones"):
        FolderDataset(root)


@pytest.mark.parametrize("kind", ["images", "masks", "saliency"])
def test_what_is_beside_the_splits_is_told(tmp_path: Path, kind: str) -> None:
    root = folder_tree(tmp_path / "d", train=2, val=2, saliency=True).root
    (root / kind / "extra").mkdir()
    (root / kind / "loose.png").write_bytes(b"x")
    assert FolderDataset(root).notes == (
        f"{root / kind}: only train and val are read; extra is left out",
        f"{root / kind}: 1 image file beside train and val is left out (first loose.png); move what is "
        "there into one of these, with what belongs to it",
    )


# ---- backslashes in names


@pytest.mark.parametrize("cut", ["", "images", "images/train", "masks/train"])
def test_a_backslash_in_a_name_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    root = folder_tree(tmp_path / "d", train=2, val=2).root
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.is_relative_to(root / cut):
            below = file.relative_to(root / cut) if cut.count("/") == 0 else Path("x", file.name)
            file.rename(root / cut / "\\".join(below.parts))
    said = f"{root / cut} holds .*, whose name has a backslash, as zip files of Windows write folders; unpack"
    with pytest.raises(UserError, match=said):
        open_dataset("folder", str(root))
    assert cli.main(["data", "check", str(root)]) == 2
    assert re.search(said, only_line(capsys.readouterr().err))


def test_a_backslash_in_the_name_of_a_coco_image(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a\\1.jpg").write_bytes(b"x")
    (tmp_path / "x.json").write_text(
        '{"images": [{"id": 1, "file_name": "a/1.jpg", "height": 4, "width": 4}], '
        '"categories": [{"id": 1, "name": "a"}], '
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}]}'
    )
    with pytest.raises(UserError, match="whose name has a backslash"):
        open_given(tmp_path, "--data")
