"""Data sets on disk: what each layout may look like."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import ade_tree, as_sets, folder_tree, save_mask, voc_tree

from segrow.data import open_dataset
from segrow.data.ade20k import Ade20kDataset
from segrow.data.base import SegDataset, Split
from segrow.data.folder import FolderDataset
from segrow.data.voc import VocDataset
from segrow.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def shown(data: SegDataset, split: Split) -> dict[str, set[int]]:
    """The presence index as sets."""
    presence = data.presence(split, progress=False)
    return as_sets(presence.ids, presence.present)


@pytest.mark.parametrize("above", ["", "..", "../.."])
def test_voc_is_found_from_above(tmp_path: Path, above: str) -> None:
    tree = voc_tree(tmp_path / "data/VOCdevkit/VOC2012")
    data = open_dataset("voc", str(tree.root / above))
    assert data.ids("train") == tree.ids("train")
    assert data.ids("val") == tree.ids("val")
    assert (data.class_names[0], data.class_names[15], len(data.class_names)) == ("background", "person", 21)
    assert shown(data, "train") == tree.shown["train"]
    assert shown(data, "val") == tree.shown["val"]
    first = data.ids("train")[0]
    assert data.image("train", first).shape == (24, 32, 3)
    assert data.mask("train", first).dtype == np.uint8
    assert set(np.unique(data.saliency("train", first))) <= {0, 1}
    data.require_saliency()


@pytest.mark.parametrize("layout", [{"train_list": "trainaug.txt"}, {"lists": "ImageSet/Segmentation"}])
def test_voc_lists_under_their_other_names(tmp_path: Path, layout: dict[str, str]) -> None:
    tree = voc_tree(tmp_path / "VOC2012", **layout)  # type: ignore[arg-type]
    (tree.root / "SegmentationClassAug" / "other.png").write_bytes(b"")  # in no list, so not an image of ours
    assert VocDataset(tree.root).ids("train") == tree.ids("train")


def test_voc_without_a_train_list_takes_every_mask_that_is_not_in_val(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train_list=None)
    assert VocDataset(tree.root).ids("train") == tree.ids("train")


def test_voc_lists_of_paths(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=3, val=1)
    file = tree.root / "ImageSets/Segmentation/train_aug.txt"
    one, two, three = tree.ids("train")
    file.write_text(
        f"/JPEGImages/{three}.jpg /SegmentationClassAug/{three}.png\r\n\n"
        f"  {one}  \nJPEGImages\\{two}.JPG\n{one}\n"
    )
    assert VocDataset(tree.root).ids("train") == (three, one, two)


@pytest.mark.parametrize("above", ["", ".."])
def test_ade(tmp_path: Path, above: str) -> None:
    tree = ade_tree(tmp_path / "ADEChallengeData2016", classes=(1, 13, 150))
    data = open_dataset("ade20k", str(tree.root / above))
    assert len(data.class_names) == len(set(data.class_names)) == 151
    assert [data.class_names[k] for k in (0, 1, 13, 74, 150)] == [
        "background",
        "wall",
        "person",
        "kitchen island",
        "flag",
    ]
    assert shown(data, "train") == tree.shown["train"]
    assert shown(data, "val") == tree.shown["val"]
    with pytest.raises(UserError, match=r"ha(s|ve) no saliency map"):
        data.require_saliency()
    for image_id in data.ids("train"):
        save_mask(np.ones((24, 32), np.uint8), tree.root / "saliency_map" / f"{image_id}.png")
    data.require_saliency()
    assert data.saliency("train", data.ids("train")[0]).all()


def test_ade_names_from_its_own_table(tmp_path: Path) -> None:
    tree = ade_tree(tmp_path / "ADEChallengeData2016")
    names = [f"thing{k}, stuff{k}" for k in range(1, 151)]
    names[4] = "thing1, fifth "
    rows = "".join(f"{k} \t0.1\t10\t2\t{name}\n" for k, name in enumerate(names, 1))
    (tree.root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    assert Ade20kDataset(tree.root).class_names[:7] == (
        "background",
        "thing1",
        "thing2",
        "thing3",
        "thing4",
        "fifth",
        "thing6",
    )
    (tree.root / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(UserError, match="does not number its classes from 1 to 150"):
        Ade20kDataset(tree.root)


def test_folder(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", saliency=True, suffix="jpg")
    (tree.root / "images/train/.DS_Store").write_bytes(b"x")
    (tree.root / "images/train/Thumbs.db").write_bytes(b"x")
    data = open_dataset("folder", str(tree.root))
    assert data.class_names == ("background", "apple", "pear", "plum")
    assert shown(data, "train") == tree.shown["train"]
    assert shown(data, "val") == tree.shown["val"]
    data.require_saliency()
    assert data.saliency("train", "train0000").shape == (24, 32)


def test_folder_without_background_pixels(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", background=False)
    assert shown(FolderDataset(tree.root), "train") == tree.shown["train"]
    assert all(0 not in classes for classes in tree.shown["train"].values())


def test_folder_without_validation_images(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit")
    shutil.rmtree(tree.root / "images/val")
    with pytest.raises(
        UserError, match=r"images/val is not a folder; images/val and masks/val are expected together"
    ):
        FolderDataset(tree.root)
    shutil.rmtree(tree.root / "masks/val")
    data = FolderDataset(tree.root)
    assert data.ids("val") == ()
    assert data.presence("val").present.shape == (0, 4)


def test_more_than_254_classes_have_16_bit_masks(tmp_path: Path) -> None:
    names = ["background", *(f"c{k}" for k in range(1, 400))]
    tree = folder_tree(tmp_path / "many", names, train=[{1, 255, 399}, {256}], val=[{300}])
    # an image that shows low ids only may still have an 8-bit mask; 255 is a class there
    save_mask(np.full((24, 32), 255, np.uint8), tree.root / "masks/val/val0000.png")
    data = FolderDataset(tree.root)
    assert data.ignore_id == 65535
    assert (
        shown(data, "train") == tree.shown["train"] == {"train0000": {0, 1, 255, 399}, "train0001": {0, 256}}
    )
    assert shown(data, "val") == {"val0000": {255}}
    mask = data.mask("train", "train0000")
    assert mask.dtype == np.uint16
    assert mask[-1, 0] == 65535


def test_254_classes_still_have_8_bit_masks(tmp_path: Path) -> None:
    names = ["background", *(f"c{k}" for k in range(1, 255))]
    data = FolderDataset(folder_tree(tmp_path / "many", names, train=[{254}], val=0).root)
    assert data.ignore_id == 255
    assert shown(data, "train") == {"train0000": {0, 254}}


def test_16_bit_masks_of_few_classes_are_fine(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit")
    mask = np.full((24, 32), 3, np.uint16)
    Image.fromarray(mask).save(tree.root / "masks/train/train0000.png")
    data = FolderDataset(tree.root)
    assert shown(data, "train")["train0000"] == {3}
    assert data.mask("train", "train0000").dtype == np.uint8


def test_data_sets_travel_to_worker_processes(tmp_path: Path) -> None:
    data = FolderDataset(folder_tree(tmp_path / "fruit").root)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.mask("val", "val0000"), data.mask("val", "val0000"))
