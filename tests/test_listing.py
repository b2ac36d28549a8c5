"""Files in folders: which are read, what belongs together, and a line for all that is left out."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import Tree, ade_tree, folder_tree, voc_tree

from segrow.data import open_dataset
from segrow.data.ade20k import Ade20kDataset
from segrow.data.class_file import read_classes
from segrow.data.folder import FolderDataset
from segrow.data.given import PaletteDataset, open_given
from segrow.data.listing import list_files
from segrow.data.voc import VocDataset
from segrow.errors import UserError

KINDS = ("images", "masks", "saliency")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return folder_tree(tmp_path / "fruit", saliency=True)


def move(tree: Tree, image_id: str, to: str) -> None:
    """Give an image, its mask and its map another name below the split."""
    for kind in KINDS:
        new = tree.root / kind / "train" / f"{to}.png"
        new.parent.mkdir(exist_ok=True)
        (tree.root / kind / "train" / f"{image_id}.png").rename(new)


def test_images_in_sub_folders_are_read(tree: Tree) -> None:
    move(tree, "train0000", "aachen/one")
    move(tree, "train0001", "ulm/one")  # the same name elsewhere is another image
    data = FolderDataset(tree.root)
    assert data.notes == ()
    assert data.ids("train")[:2] == ("aachen/one", "train0002")
    assert data.ids("train")[-1] == "ulm/one"
    present = data.presence("train", progress=False)
    row = present.present[present.ids.index("ulm/one")]
    assert set(np.flatnonzero(row)) == tree.shown["train"]["train0001"]
    data.require_saliency()
    assert data.image("train", "ulm/one").shape == (24, 32, 3)
    assert data.saliency("train", "aachen/one").shape == (24, 32)


def test_a_mask_in_another_sub_folder_is_none(tree: Tree) -> None:
    move(tree, "train0000", "aachen/one")
    (tree.root / "masks/train/aachen/one.png").rename(tree.root / "masks/train/one.png")
    (tree.root / "images/train/ulm").mkdir()
    (tree.root / "images/train/train0001.png").rename(
        tree.root / "images/train/ulm/one.png"
    )  # which is it of?
    with pytest.raises(
        UserError,
        match=r"image .*aachen/one.png has no mask, .*; one.png is there, but images and masks must",
    ):
        FolderDataset(tree.root)


@pytest.mark.parametrize(("nested", "flat"), [("images", "masks"), ("masks", "images")])
def test_sub_folders_of_one_side_alone(tree: Tree, nested: str, flat: str) -> None:
    before = FolderDataset(tree.root).presence("train", progress=False).present
    (tree.root / nested / "train/aachen").mkdir()
    for image_id in ("train0000", "train0001"):
        place = tree.root / nested / "train"
        (place / f"{image_id}.png").rename(place / "aachen" / f"{image_id}.png")
    data = FolderDataset(tree.root)
    assert data.notes[0] == (
        f"{tree.root}/{flat}/train has no sub-folders, so images and masks are matched by their names alone "
        "(each stands there once)"
    )
    maps = [note.partition(", so ")[2][:24] for note in data.notes[1:]]
    assert maps == (["images and saliency maps"] if nested == "images" else [])
    assert all(data.saliency_path("train", i).is_file() for i in data.ids("train"))
    assert np.array_equal(data.presence("train", progress=False).present, before)


@pytest.mark.parametrize("name", ["TRAIN0000", "train0000 ", "Train0000"])
def test_a_name_of_other_capitals_or_spaces_is_named(tree: Tree, name: str) -> None:
    folder = tree.root / "masks" / "train"
    (folder / "train0000.png").rename(folder / f"{name}.png")
    with pytest.raises(
        UserError, match=f"; {name}.png is there, whose name differs in capitals or spaces: rename"
    ):
        FolderDataset(tree.root)


def test_what_is_left_out_is_counted_by_suffix(tree: Tree) -> None:
    images = tree.root / "images/train"
    for name in ("b.HEIC", "a.heic", "notes.txt", "raw", ".hidden.jpg", "sub/c.heic"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._train0000.png"):
        (images / litter).touch()
    (tree.root / "masks/val/old.npy").touch()
    (tree.root / "saliency/train/x.jpg").touch()
    assert FolderDataset(tree.root).notes == (
        f"{images}: 6 files are left out, not read as images: 3 .heic, 1 hidden, 1 .txt, 1 without suffix "
        "(first .hidden.jpg); convert the pictures among them to JPEG or PNG",
        f"{tree.root}/saliency/train: 1 file is left out, not read as saliency maps: 1 .jpg (first x.jpg); "
        "save them as PNG",
        f"{tree.root}/masks/val: 1 file is left out, not read as masks: 1 .npy (first old.npy); "
        "save them as PNG",
    )


def test_suffixes_of_every_kind_and_case_are_read(tree: Tree) -> None:
    images = tree.root / "images/train"
    for k, name in enumerate(("a.JPG", "b.jfif", "c.gif", "d.Webp", "e.TIF", "f.bmp", "g.jpe", "h.ppm")):
        old = images / f"train{k:04d}.png"
        kind = {"jpg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF"}.get(name[2:].lower(), name[2:])
        Image.open(old).convert("RGB").save(images / name, kind.upper())
        old.unlink()
        mask = "png" if k else "PNG"
        (tree.root / f"masks/train/train{k:04d}.png").rename(tree.root / f"masks/train/{name[0]}.{mask}")
        (tree.root / f"saliency/train/train{k:04d}.png").rename(tree.root / f"saliency/train/{name[0]}.PNG")
    data = FolderDataset(tree.root)
    assert data.notes == ()
    assert len(data.ids("train")) == 12
    data.require_saliency()
    data.presence("train", progress=False)


@pytest.mark.parametrize("layout", ["voc", "palette", "ade20k"])
def test_suffixes_in_capitals_in_every_layout(tmp_path: Path, layout: str) -> None:
    tree = (ade_tree if layout == "ade20k" else voc_tree)(tmp_path / "d")
    if layout == "palette":
        (tree.root / "classes.txt").write_text("background\n" + "".join(f"c{k}\n" for k in range(1, 21)))
    before = open_given(tree.root, "--data") if layout == "palette" else open_dataset(layout, str(tree.root))
    ids, shown = before.ids("train"), before.presence("train", progress=False).present
    for file in [*tree.root.rglob("*.jpg"), *tree.root.rglob("*.png")]:
        file.rename(file.with_suffix(file.suffix.upper()))
    kinds = {"voc": VocDataset, "palette": PaletteDataset, "ade20k": Ade20kDataset}
    data = kinds[layout](tree.root)
    assert data.ids("train") == ids
    assert (data.presence("train", progress=False).present == shown).all()
    assert data.saliency_path("train", ids[0]).is_file() == (layout != "ade20k")


def test_an_image_and_its_mask_match_in_any_unicode_form(tree: Tree) -> None:
    composed, parts = (unicodedata.normalize(form, "Äpfel é") for form in ("NFC", "NFD"))
    assert composed != parts
    move(tree, "train0000", parts)
    (tree.root / f"masks/train/{parts}.png").rename(tree.root / f"masks/train/{composed}.png")
    data = FolderDataset(tree.root)
    assert composed in data.ids("train")
    assert data.image_path("train", composed).name == f"{parts}.png"
    data.require_saliency()
    (tree.root / f"images/train/{composed}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="one image must have one file"):
        FolderDataset(tree.root)


@pytest.mark.parametrize(
    "name", ["-rf", "a b", "dots..", "space ", "100%", "[x]", "a\nb", "\x1b[31m", "x" * 240]
)
def test_strange_names_are_names(tree: Tree, name: str) -> None:
    move(tree, "train0000", name)
    data = FolderDataset(tree.root)
    assert name in data.ids("train")
    assert data.notes == ()
    data.presence("train", progress=False)


def test_a_name_that_is_not_utf_8_is_one_line(tree: Tree) -> None:
    place = os.fsencode(tree.root / "images/train")
    os.rename(place + b"/train0000.png", place + b"/caf\xe9.png")
    with pytest.raises(UserError, match="has a name that is not UTF-8; rename it"):
        FolderDataset(tree.root)


def test_a_folder_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    data = FolderDataset(folder_tree(root).root)
    assert data.presence("train", progress=False).present.any()


def test_links_are_followed_but_not_in_a_circle(tree: Tree, tmp_path: Path) -> None:
    move(tree, "train0000", "aachen/one")
    for kind in KINDS:
        folder = tree.root / kind / "train"
        (folder / "aachen").rename(tmp_path / kind)
        (folder / "aachen").symlink_to(tmp_path / kind)
        (tmp_path / kind / "again").symlink_to(folder)
    ids = FolderDataset(tree.root).ids("train")
    assert "aachen/one" in ids
    assert len(ids) == 12
    os.mkfifo(tree.root / "images/train/pipe.png")  # would be waited for forever
    assert "pipe" not in list_files(tree.root / "images/train", "image").files
    assert list_files(tmp_path / "nowhere", "image").files == {}


@pytest.mark.parametrize("target", ["/", "..", "../.."])
def test_a_link_to_a_folder_around_is_named(tree: Tree, target: str) -> None:
    """Not followed: what is below / takes minutes to list, and nobody means it."""
    link = tree.root / "images/train/all"
    link.symlink_to(target)
    with pytest.raises(UserError, match=r"images/train/all is a link to /.*, which holds .*; remove it, or"):
        FolderDataset(tree.root)


def test_a_jpeg_mask_is_named(tree: Tree) -> None:
    file = tree.root / "masks/train/train0000.png"
    file.rename(file.with_suffix(".jpg"))
    with pytest.raises(
        UserError,
        match=r"expected .*train0000.png; train0000.jpg is of a kind that is not read as a mask",
    ):
        FolderDataset(tree.root)


def test_an_image_that_is_not_read_is_named_where_its_mask_stands_alone(tree: Tree) -> None:
    (tree.root / "images/train/train0000.png").rename(tree.root / "images/train/train0000.HEIC")
    with pytest.raises(
        UserError, match=r"mask .*train0000.png has no image, .*; train0000.HEIC is of a kind that"
    ):
        FolderDataset(tree.root)


@pytest.mark.parametrize("name", ["Train", "training", "VAL", "Test"])
def test_splits_of_another_name_are_no_sub_folders(tree: Tree, name: str) -> None:
    for kind in KINDS:
        (tree.root / kind / "train").rename(tree.root / kind / "half")
        (tree.root / kind / "val").rename(tree.root / kind / name)
    with pytest.raises(UserError, match=rf"images has a folder {name}; expected images/train and images/val"):
        FolderDataset(tree.root)


@pytest.mark.parametrize(("split", "name"), [("val", "valid"), ("val", "Validation"), ("train", "training")])
def test_a_split_of_another_name_beside_one_of_ours(tree: Tree, split: str, name: str) -> None:
    (tree.root / "images" / split).rename(tree.root / "images" / name)
    with pytest.raises(
        UserError, match=rf"images has a folder {name}, expected {split}; rename it, and that in"
    ):
        FolderDataset(tree.root)


def test_palette_images_without_masks_are_counted(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "d", train=5, val=0)
    (tree.root / "classes.txt").write_text("background\n" + "".join(f"c{k}\n" for k in range(1, 21)))
    (tree.root / f"SegmentationClassAug/{tree.ids('train')[2]}.png").unlink()
    note = open_given(tree.root, "--data").notes[0]
    assert note.endswith(
        "1 of 5 images has no mask in SegmentationClassAug and is left out (first 2007_000002.jpg)"
    )


# ---- line 0 of classes.txt


@pytest.mark.parametrize(
    "name", ["background", "_background_", "Void", "unlabeled", "Ignore", "Other", "__bg__", "0", ""]
)
def test_line_0_is_background(tmp_path: Path, name: str) -> None:
    (tmp_path / "classes.txt").write_text(f"{name}\nroad\n")
    said = read_classes(tmp_path / "classes.txt")
    assert said.names == ("background", "road")
    told = f'calls value 0 "{name}"; it is trained and counted as background'
    assert [told in note for note in said.notes] == [True] * (name in ("Void", "unlabeled", "Ignore", "0"))


def test_line_0_that_is_a_class_is_told(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "d", ("road", "building", "sky"))
    says = f'{tree.root}/classes.txt calls value 0 "road"; it is trained and counted as background'
    assert FolderDataset(tree.root).notes == (says,)
    assert open_given(tree.root, "--data").notes == (says,)


def test_labelmes_list_is_shifted_and_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\nroad\n")
    with pytest.raises(
        UserError, match=r'names "__ignore__" before "_background_", as labelme does; .* remove'
    ):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize("form", ["{} {}", "{}: {}", "{},{}", "{}\t{}", "{}) {}"])
def test_numbers_in_front_of_all_names_are_left_out_and_said(tmp_path: Path, form: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(form.format(k, name) for k, name in enumerate(("background", "cat", "2 dogs"))))
    names, notes = read_classes(path)
    assert names == ("background", "cat", "2 dogs")
    assert notes == (
        f"{path}: the numbers in front of the names are left out; put "
        "every name in quotes where the number belongs to it",
    )


def test_numbers_that_are_not_those_of_the_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1 cat\n2 dog\n")
    with pytest.raises(UserError, match=r'has number 1 \("cat"\) in line 0; line i \(from 0\) names mask'):
        read_classes(tmp_path / "classes.txt")


def test_a_mask_whose_name_is_longer_is_named(tree: Tree) -> None:
    for mask in (tree.root / "masks/train").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    with pytest.raises(
        UserError, match=r"has no mask, expected \S+; (\S+)_mask.png is there, rename it to \1.png"
    ):
        FolderDataset(tree.root)


@pytest.mark.parametrize(("wanted", "name"), [("masks", "labels"), ("masks", "Masks"), ("images", "Images")])
def test_folders_of_another_name_are_named(tree: Tree, wanted: str, name: str) -> None:
    (tree.root / wanted).rename(tree.root / name)
    for opened in (lambda: FolderDataset(tree.root), lambda: open_given(tree.root, "--data")):
        with pytest.raises(UserError, match=f"; rename {name} to {wanted}"):
            opened()
