"""Images that a list names and nobody has, and images with two files: all are told, and can be left out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import only_line
from trees import folder_tree, voc_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.coco import CocoDataset
from segrow.data.exclude import read_exclusion
from segrow.data.given import open_given
from segrow.data.index import check_annotated
from segrow.data.masks import Values
from segrow.data.taken import Taken, taken_notes
from segrow.errors import UserError
from segrow.predict_files import find_images

Capture = pytest.CaptureFixture[str]


def flat(root: Path) -> tuple[Path, Path]:
    """Eight pairs a0 to a7 in images and masks."""
    folder_tree(root, train=8, val=0)
    for kind in ("images", "masks"):
        for k, file in enumerate(sorted((root / kind / "train").iterdir())):
            file.rename(root / kind / f"a{k}{file.suffix}")
        (root / kind / "train").rmdir()
    return root / "images", root / "masks"


def of_vocs_kind(root: Path) -> tuple[Path, Path]:
    """The same in JPEGImages and SegmentationClass."""
    images, masks = flat(root)
    return images.rename(root / "JPEGImages"), masks.rename(root / "SegmentationClass")


def write(folder: Path, **lists: str) -> None:
    """`train="0 1"` lists a0 and a1 in train.txt, behind an empty line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in lists.items():
        (folder / f"{name}.txt").write_text("\n" + "".join(f"a{k}\n" for k in numbers.split()))


def checked(root: Path, capsys: Capture, listed: Path, code: int = 1) -> list[tuple[str, str]]:
    """What data check finds, each image and sentence."""
    assert cli.main(["data", "check", str(root), "--json", "--fix-list", str(listed)]) == code
    return [(found["image"], found["text"]) for found in json.loads(capsys.readouterr().out)["problems"]]


Layout = Callable[[Path], tuple[Path, Path]]


@pytest.mark.parametrize(
    ("layout", "place", "lacks"),
    [
        (flat, "", "is not in {0}"),
        (flat, "splits", "is not in {0}"),
        (of_vocs_kind, "ImageSets/Segmentation", "has no mask in {1}"),
    ],
)
def test_images_that_lists_name_and_nobody_has(
    tmp_path: Path, capsys: Capture, layout: Layout, place: str, lacks: str
) -> None:
    root, out = tmp_path / "d", tmp_path / "out"
    folders = layout(root)
    write(root / place, train="0 1 2 3 4", val="5 6 7")
    for k in (3, 6):
        for folder in folders:
            next(folder.glob(f"a{k}.*")).unlink()
    train, val = root / place / "train.txt", root / place / "val.txt"
    first, second = (
        f"{path}, line {line} lists a{k}, which {lacks.format(*folders)}; add it, or take the line out"
        for path, line, k in ((train, 5, 3), (val, 3, 6))
    )
    said = f"{first}; 1 image more cannot be used: segrow data check lists them, and --data.exclude leaves "
    with pytest.raises(UserError) as caught:
        open_given(root, "--data")
    assert str(caught.value).startswith(said)
    (folders[1] / "a7.png").write_bytes(b"")
    found = checked(root, capsys, out)
    assert found[:2] == [("train/a3", first), ("val/a6", second)]
    assert [image for image, _ in found[2:]] == ["val/a7"]
    data = open_dataset("folder", str(root), exclude=read_exclusion(str(out)))
    assert (data.ids("train"), data.ids("val")) == (("a0", "a1", "a2", "a4"), ("a5",))
    assert set(data.excluded) == {"train/a3", "val/a6", "val/a7"}


def test_every_image_of_a_list_is_gone(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "d"
    of_vocs_kind(root)
    write(root / "ImageSets/Segmentation", train="8 9", val="0 1")
    assert [image for image, _ in checked(root, capsys, tmp_path / "out")] == ["train/a8", "train/a9"]


@pytest.mark.parametrize("place", ["images", "masks", "saliency"])
def test_an_image_with_two_files_does_not_hide_the_rest(tmp_path: Path, capsys: Capture, place: str) -> None:
    root, out = tmp_path / "d", tmp_path / "out"
    folder_tree(root, train=4, val=2, saliency=True)
    folder, what = root / place / "train", {"images": "image", "masks": "mask"}.get(place, "saliency map")
    for k in (1, 2):
        shutil.copy(folder / f"train000{k}.png", folder / f"train000{k}.tif")
    (folder / "train0002.bmp").write_bytes(b"")
    (root / "masks/val/val0001.png").write_bytes(b"")
    first = f"{folder} holds train0001.png and train0001.tif; one {what} must have one file"
    assert cli.main(["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline"]) == 2
    assert first in only_line(capsys.readouterr().err)
    found = checked(root, capsys, out)
    assert found[0] == ("train/train0001", first)
    assert "holds train0002.bmp and train0002.png and train0002.tif; one" in found[1][1]
    assert [image for image, _ in found[1:]] == ["train/train0002", "val/val0001"]
    data = open_dataset("folder", str(root), exclude=read_exclusion(str(out)))
    assert (data.ids("train"), data.ids("val")) == (("train0000", "train0003"), ("val0000",))


@pytest.mark.parametrize("layout", [flat, of_vocs_kind])
def test_two_files_of_a_listed_image(tmp_path: Path, capsys: Capture, layout: Layout) -> None:
    root, out = tmp_path / "d", tmp_path / "out"
    images, masks = layout(root)
    write(root, train="0 1 2 3", val="4 5 6 7")
    shutil.copy(images / "a5.png", images / "a5.bmp")
    shutil.copy(masks / "a2.png", masks / "a2.tif")
    found = checked(root, capsys, out)
    assert [image for image, _ in found] == ["train/a2", "train/a5"]
    data = open_dataset("folder", str(root), exclude=read_exclusion(str(out)))
    assert (data.ids("train"), data.ids("val")) == (("a0", "a1", "a3"), ("a4", "a6", "a7"))


def test_two_files_of_an_image_of_voc(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "VOC2012", train=4, val=2).root
    folder = root / "JPEGImages"
    shutil.copy(folder / "2008_000001.jpg", folder / "2008_000001.png")
    shutil.copy(folder / "2008_000001.jpg", folder / "nobody.png")
    shutil.copy(folder / "2008_000001.jpg", folder / "nobody.jpg")
    with pytest.raises(UserError, match=r"holds 2008_000001.jpg and 2008_000001.png; one image must have"):
        open_dataset("voc", str(root))
    (tmp_path / "out").write_text("val/2008_000001\n")
    data = open_dataset("voc", str(root), exclude=read_exclusion(str(tmp_path / "out")))
    assert data.ids("val") == ("2008_000000",)


def test_saliency_maps_matched_by_name_alone_have_two_files(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=4, val=1, saliency=True).root
    for kind in ("images", "masks"):
        (root / kind / "train/city").mkdir()
        for file in (root / kind / "train").glob("*.png"):
            file.rename(file.parent / "city" / file.name)
    shutil.copy(root / "saliency/train/train0002.png", root / "saliency/train/train0002.tif")
    with pytest.raises(UserError, match=r"holds train0002.png and train0002.tif; one saliency map must have"):
        open_given(root, "--data")


@pytest.mark.parametrize(
    ("names", "listed", "n"),
    [(("Train", "Val"), "a0\na1", 2), (("train", "val"), "A0", 0), (("train", "val"), "0\n1", 0)],
)
def test_lists_that_do_not_fit_get_a_true_reason(
    tmp_path: Path, names: tuple[str, str], listed: str, n: int
) -> None:
    root = tmp_path / "d"
    flat(root)
    for name in names:
        (root / f"{name}.txt").write_text(listed)
    assert open_given(root, "--data").notes == (
        f"{root}: {names[0]}.txt ({n} of 8 images), {names[1]}.txt ({n} of 8 images) are not read; lists are "
        f"read where train.txt and val.txt (in small letters) are both in ImageSets/Segmentation, splits or "
        f"{root}, and name images that are there",
    )


def test_the_list_of_a_folder_that_is_left_out(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=3, val=3).root
    shutil.copytree(root / "images/val", root / "images/test")
    (root / "test.txt").write_text("val0000\n")
    said = (f"{root}/images: only train and val are read; test is left out",)
    assert open_given(root, "--data").notes == said
    (root / "test.txt").write_text("train0000\n")  # which is no image of images/test
    assert "test.txt (1 of 6 images) is not read" in open_given(root, "--data").notes[-1]


def test_only_pictures_are_to_be_converted(tmp_path: Path) -> None:
    root = folder_tree(tmp_path / "d", train=3, val=1).root
    for name in ("images/train/a.json", "images/train/a.xmp", "masks/val/val0000.png.aux.xml"):
        (root / name).write_text("{}")
    one, other = open_given(root, "--data").notes
    assert one.endswith("1 .json, 1 .xmp (first a.json)")
    assert other.endswith("1 .xml (first val0000.png.aux.xml)")
    (root / "masks/train/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png has no image, expected [^;]*$"):  # a.json is none to convert
        open_given(root, "--data")
    (root / "masks/train/a.png").unlink()
    (root / "images/train/b.heic").write_text("")
    assert open_given(root, "--data").notes[0].endswith("; convert the pictures among them to JPEG or PNG")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_pipe_is_told(tmp_path: Path, kind: str, link: bool) -> None:
    root = folder_tree(tmp_path / "d", train=3, val=1).root
    pipe = tmp_path / "pipe" if link else root / kind / "train/a.png"
    os.mkfifo(pipe)
    if link:
        (root / kind / "train/a.png").symlink_to(pipe)
    said = f"{root / kind}/train: 1 file is left out: pipes, sockets and devices are not read (first a.png)"
    assert open_given(root, "--data").notes == (said,)
    assert find_images([str(root / kind / "train")]).notes == (said,)
    (root / kind / "train/train0000.png").unlink()
    (root / kind / "train/a.png").rename(root / kind / "train/train0000.png")
    with pytest.raises(UserError, match=r"train0000\.png is a pipe, socket or device"):
        open_given(root, "--data")
    only = tmp_path / "only"
    only.mkdir()
    (root / kind / "train/train0000.png").rename(only / "x.png")
    with pytest.raises(UserError, match=r"holds no images .*: 1 file is left out: pipes"):
        find_images([str(only)])


def test_a_drawn_mask_is_not_to_be_written_otherwise() -> None:
    flags, names = [Taken.IGNORED | Taken.ONLY_IGNORED], ["a"]
    assert "write it as 1" in taken_notes(flags, names, "train")[0]
    assert taken_notes(flags, names, "train", drawn=True)[0].endswith("nothing is annotated there (first a)")
    assert CocoDataset.drawn
    for drawn, said in ((False, "write the class as 1"), (True, "all annotations of d .* --ignore none")):
        with pytest.raises(UserError, match=said):
            check_annotated(
                Path("d"),
                "train",
                Values(2, 255, drawn=drawn),
                np.ones((1, 2), np.bool_) & [True, False],
                np.array(flags, np.int64),
            )
