"""Bad input of every kind ends in one line that says what was expected."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import ade_tree, folder_tree, save_mask, voc_tree

from segrow.data import open_dataset
from segrow.data.ade20k import Ade20kDataset
from segrow.data.folder import FolderDataset
from segrow.data.voc import VocDataset
from segrow.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def line_of(call: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which is one line."""
    message = str(call.value)
    assert "\n" not in message
    return message


def test_unknown_data_set() -> None:
    with pytest.raises(
        UserError, match=r'unknown data set "vocc", expected voc, .* Did you mean "voc"\?'
    ) as caught:
        open_dataset("vocc", None)
    line_of(caught)


@pytest.mark.parametrize("name", ["voc", "ade20k", "folder"])
def test_a_root_is_needed_and_must_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"data set {name} needs its folder; add --data.root DIR"):
        open_dataset(name, None)
    with pytest.raises(UserError, match="nowhere is not a folder; expected ") as caught:
        open_dataset(name, str(tmp_path / "nowhere"))
    line_of(caught)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "voc",
            "has no folder JPEGImages; --data.root should be VOC2012 with JPEGImages in it",
        ),
        (
            "ade20k",
            "has no folder images; --data.root should be ADEChallengeData2016 with images, annotations in it",
        ),
        ("folder", "classes.txt is missing; it names the classes, one a line, background first"),
    ],
)
def test_the_wrong_root_says_what_was_expected(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        open_dataset(name, str(tmp_path))


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("SegmentationClassAug", "has no folder SegmentationClassAug"),
        ("ImageSets", "has no folder ImageSets/Segmentation, which holds val.txt"),
        ("ImageSets/Segmentation/val.txt", "val.txt is missing; it lists image ids"),
    ],
)
def test_voc_with_something_missing(tmp_path: Path, gone: str, expected: str) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=2, val=1)
    path = tree.root / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=expected):
        VocDataset(tree.root)


def test_voc_lists_that_are_useless(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=2, val=1)
    file = tree.root / "ImageSets/Segmentation/train_aug.txt"
    file.write_text("\n \n")
    with pytest.raises(UserError, match=r"train_aug.txt lists no image"):
        VocDataset(tree.root)
    file.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"train_aug.txt is not UTF-8 text"):
        VocDataset(tree.root)
    file.unlink()
    for image_id in tree.ids("train"):
        (tree.root / f"SegmentationClassAug/{image_id}.png").unlink()
    with pytest.raises(UserError, match="holds no training mask"):
        VocDataset(tree.root)


def test_voc_twice_below_the_root(tmp_path: Path) -> None:
    voc_tree(tmp_path / "a/VOC2012", train=2, val=1)
    voc_tree(tmp_path / "b/VOC2012", train=2, val=1)
    with pytest.raises(UserError, match=r"holds VOC2012 2 times; choose one, such as .*a/VOC2012"):
        VocDataset(tmp_path)


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (
            "JPEGImages/2007_000001.jpg",
            r"image .*2007_000001.jpg: No such file .*its mask would be .*2007_000001.png",
        ),
        (
            "SegmentationClassAug/2007_000001.png",
            r"mask .*2007_000001.png: No such file .*its image would be",
        ),
    ],
)
def test_a_listed_id_without_image_or_mask(tmp_path: Path, gone: str, expected: str) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=3, val=1)
    data = VocDataset(tree.root)
    (tree.root / gone).unlink()
    with pytest.raises(UserError, match=expected) as caught:
        data.presence("train", progress=False)
    line_of(caught)


def test_ade_with_something_missing(tmp_path: Path) -> None:
    tree = ade_tree(tmp_path / "ADEChallengeData2016", train=2, val=1)
    shutil.rmtree(tree.root / "annotations/validation")
    with pytest.raises(UserError, match="annotations/validation is not a folder"):
        Ade20kDataset(tree.root)
    (tree.root / "annotations/validation").mkdir()
    shutil.rmtree(tree.root / "images/validation")
    (tree.root / "images/validation").mkdir()
    with pytest.raises(UserError, match="images/validation holds no image"):
        Ade20kDataset(tree.root)


@pytest.mark.parametrize("layout", ["folder", "ade20k"])
def test_images_and_masks_that_stand_alone(tmp_path: Path, layout: str) -> None:
    tree = folder_tree(tmp_path / "d") if layout == "folder" else ade_tree(tmp_path / "d")
    masks, images = (
        (tree.root / "masks/train", tree.root / "images/train")
        if layout == "folder"
        else (tree.root / "annotations/training", tree.root / "images/training")
    )
    first, second = tree.ids("train")[:2]
    (masks / f"{first}.png").unlink()
    with pytest.raises(
        UserError, match=rf"image .*{first}\..* has no mask, expected .*{first}.png$"
    ) as caught:
        open_dataset(layout, str(tree.root))
    line_of(caught)
    (masks / f"{second}.png").unlink()
    with pytest.raises(UserError, match=r"\(2 such images\)"):
        open_dataset(layout, str(tree.root))
    for image_id in tree.ids("train")[:4]:
        next(images.glob(f"{image_id}.*")).unlink()
    with pytest.raises(UserError, match=r"mask .* has no image, expected .*\(or .png\) \(2 such masks\)"):
        open_dataset(layout, str(tree.root))


def test_one_image_in_two_files(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit")
    Image.new("RGB", (32, 24)).save(tree.root / "images/train/train0000.jpg")
    with pytest.raises(
        UserError, match=r"holds train0000.jpg and train0000.png; one image must have one file"
    ):
        FolderDataset(tree.root)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("background\n", "has 1 line; expected background and 1 to 65534 classes"),
        ("", "has 0 lines"),
        ("background\napple\n\npear\n", "has nothing in line 3"),
        ("background\napple\npear\napple\n", 'has "apple" in lines 2 and 4'),
        ("void\napple\nbackground\n", 'calls value 0 "void" and value 2 "background"'),
        (b"\xff\xfe\x00a", "is UTF-16 text"),
        (b"a\xff", "is not UTF-8 text"),
    ],
)
def test_useless_classes_txt(tmp_path: Path, content: str | bytes, expected: str) -> None:
    tree = folder_tree(tmp_path / "fruit")
    (tree.root / "classes.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=expected) as caught:
        FolderDataset(tree.root)
    line_of(caught)


def test_classes_txt_of_windows(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit")
    (tree.root / "classes.txt").write_bytes("\ufeffvoid\r\n apple \r\npear\r\nPflaume ü\r\n\r\n".encode())
    assert FolderDataset(tree.root).class_names == ("background", "apple", "pear", "Pflaume ü")


def test_folder_without_images(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", train=0, val=0)
    with pytest.raises(UserError, match="images/train is not a folder"):
        FolderDataset(tree.root)
    for folder in ("images/train", "masks/train"):
        (tree.root / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="images/train holds no image"):
        FolderDataset(tree.root)


def bad_mask(tmp_path: Path, image: Image.Image) -> str:
    """The message for a folder whose first mask is `image`."""
    tree = folder_tree(tmp_path / "fruit")
    image.save(tree.root / "masks/train/train0000.png")
    with pytest.raises(UserError) as caught:
        FolderDataset(tree.root).presence("train", progress=False)
    return line_of(caught)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (
            np.full((24, 32), 4, np.uint8),
            "train0000.png has value 4, but the data set has the classes 0 (background) to 3",
        ),
        (np.full((24, 32), 254, np.uint8), "has value 254, but"),
        (
            np.resize(np.uint8([0, 128, 255, 64]), (24, 32)),
            "has value 64 (and 128), but the data set has the",
        ),
        (np.full((24, 32), 300, np.uint16), "has value 300; values above 255 are not a class"),
        (
            np.full((24, 32, 3), (0, 0, 9), np.uint8),
            "of mode RGB; expected a palette or grey PNG whose pixel values are",
        ),
        (np.full((24, 32, 4), (0, 0, 9, 255), np.uint8), "of mode RGBA; expected a palette or grey PNG"),
        (np.zeros((24, 32, 4), np.uint8), "has transparent pixels, which may be meant as ignored or as"),
        (np.zeros((32, 24), np.uint8), "train0000.png is 32x24 pixels (width x height, upright), its mask"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, mask: np.ndarray, expected: str) -> None:
    message = bad_mask(tmp_path, Image.fromarray(mask))
    assert expected in message


def test_a_mask_drawn_on_the_unturned_photograph_does_not_fit(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", suffix="jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tree.root / "images/train/train0000.jpg", exif=exif)
    with pytest.raises(UserError, match=r"is 24x32 pixels \(width x height, upright\), its mask .* 32x24"):
        FolderDataset(tree.root).presence("train", progress=False)


@pytest.mark.parametrize(("folder", "what"), [("masks", "mask"), ("images", "image")])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_files_that_cannot_be_decoded(tmp_path: Path, folder: str, what: str, content: bytes | None) -> None:
    tree = folder_tree(tmp_path / "fruit")
    file = tree.root / folder / "train/train0000.png"
    # None: cut off in the middle; the header of an image is all the index reads, so its pixels fail later
    file.write_bytes(content if content is not None else file.read_bytes()[:-60])
    data = FolderDataset(tree.root)
    late = what == "image" and content is None
    says = (
        r"cannot be decoded \(.*\); replace or" if content != b"" else "is empty; copy it again, or remove it"
    )
    with pytest.raises(UserError, match=rf"{what} .*0000.png {says}") as caught:
        data.image("train", "train0000") if late else data.presence("train", progress=False)
    line_of(caught)


def test_missing_saliency_says_what_the_choices_are(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=4, val=1)
    data = VocDataset(tree.root)
    (tree.root / f"saliency_map/{tree.ids('train')[2]}.png").unlink()
    with pytest.raises(
        UserError,
        match=r"1 of 4 training images has no saliency map, first .*saliency_map/2007_000002.png; .*"
        r"--method.unknown background .* or --method.unknown none",
    ) as caught:
        data.require_saliency()
    line_of(caught)
    with pytest.raises(UserError, match=r"saliency map .*2007_000002.png is missing"):
        data.saliency("train", tree.ids("train")[2])
    shutil.rmtree(tree.root / "saliency_map")
    with pytest.raises(UserError, match="4 of 4 training images"):
        data.require_saliency()


def test_saliency_of_another_size(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", saliency=True)
    save_mask(np.zeros((32, 24), np.uint8), tree.root / "saliency/train/train0000.png")
    with pytest.raises(UserError, match=r"saliency map .* is 24x32 pixels .* the image and its mask 32x24"):
        FolderDataset(tree.root).saliency("train", "train0000")
