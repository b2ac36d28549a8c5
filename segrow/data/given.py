"""Images that somebody gives: whatever annotated folder it is, and chosen files of any data set."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, final

from ..class_lists import name_hint
from ..errors import UserError
from ..wording import are, have
from .base import SegDataset, Split
from .colours import FILES as COLOUR_FILES
from .colours import classes_of, colour_table, stated_colours, voc_colours
from .listing import list_files, refuse_backslashes, refuse_twins
from .lists import LISTS, read_division, unread_lists
from .pairs import by_name
from .unfit import Unfit
from .unread import unread_annotations, unread_files

EXPECTED = (
    "expected classes.txt with images/ and masks/, JPEGImages/ with SegmentationClass/, or a COCO .json file"
)
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug", "SegmentationClassPNG")
NONE = ("none",)
"""What --ignore says where nothing is ignored."""
CLASS_FILES = ("classes.txt", "class_names.txt")


class Files(NamedTuple):
    """Of one image; the saliency map need not exist."""

    image: Path
    mask: Path
    saliency: Path


@final
class GivenDataset(SegDataset):
    """Chosen training images, wherever their files are.

    Args:
        root: What errors call the data set.
        class_names: Names by raw id, background first.
        ignore_id: 255 or 65535.
        files: By image id.
        source: What its masks are read as, but for the classes that were added to those of `source`.
    """

    name = "given"

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        ignore_id: int,
        files: Mapping[str, Files],
        source: SegDataset | None = None,
    ) -> None:
        self.root, self.class_names, self.ignore_id = root, class_names, ignore_id
        if source is not None:
            self.known_values = len(source.class_names)
            self.colours, self.ignored, self.drawn = source.colours, source.ignored, source.drawn
        self._files = dict(files)

    def ids(self, split: Split) -> tuple[str, ...]:
        """In the order they were given; there are no validation images."""
        return tuple(self._files) if split == "train" else ()

    def image_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].image

    def mask_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].mask

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].saliency


@final
class PaletteDataset(SegDataset):
    """A folder of VOC's kind, as annotation tools write it; all images that have a mask.

    JPEGImages/*                 anything PIL opens
    SegmentationClass/*.png      palette, grey, or RGB in stated colours; the same names
    labelmap.txt                 optional: names and colours (`colours.py`), as CVAT writes it
    classes.txt                  optional (class_names.txt too): line i names value i; else VOC's 20 classes
    ImageSets/Segmentation/      optional: train.txt and val.txt; without both, all are training images
    saliency_map/*.png           optional

    Args:
        root: The folder.
        exclude: Images that are left out, each as SPLIT/ID.
        hold_out: Where no list names validation images, take a fifth as such.
        ignore: Names in labelmap.txt that count nowhere; None: those that are called so, such as "ignore".

    Raises:
        Unfit: Masks without an image, images of a list without a mask, or several files of one.
        UserError: No mask, or class names or colours that cannot be read.
    """

    name = "palette"

    def __init__(
        self,
        root: Path,
        hold_out: bool = False,
        ignore: Collection[str] | None = None,
        exclude: frozenset[str] = frozenset(),
    ) -> None:
        self.root = root
        self._name_classes(ignore)
        folder = _mask_folder(root)
        others = [name for name in MASK_FOLDERS if name != folder.name and (root / name).is_dir()]
        if others := [name for name in others if list_files(root / name, "mask").files]:
            self.notes += (
                f"{root}: masks are read from {folder.name}, those of {', '.join(others)} are not",
            )
        self._images, self._masks = list_files(root / "JPEGImages", "image"), list_files(folder, "mask")
        self._maps = list_files(root / "saliency_map", "saliency map")
        self._masks, said = by_name(self._images, self._masks)
        self._maps, more = by_name(self._images, self._maps)
        self.notes += (*said, *more)
        there = [f"{split}/{i}" for split in ("train", "val") for i in self._masks.files]
        self.excluded = tuple(name for name in there if name in exclude)
        kept = self._masks.without("train", exclude).without("val", exclude)
        images = self._images.files
        refuse_twins("train", kept.files, (self._images, self._masks, self._maps))
        if alone := sorted(kept.files.keys() - images.keys()):
            says = {f"train/{i}": f"mask {self._masks.path(i)} has no image" for i in alone}
            expected = root / "JPEGImages" / f"{alone[0]}.jpg"
            hint = self._images.unread(alone[0], "is of a kind that is not read; convert it to JPEG or PNG")
            notes = (*self._images.notes(), *self._masks.notes())
            raise Unfit(f"{says[f'train/{alone[0]}']}, expected {expected}{hint}", says, notes)
        if not kept.files:
            raise UserError(f"{folder} holds no mask (.png); expected one for every image to learn from")
        self.notes += (*self._images.notes(), *self._masks.notes(), *self._maps.notes())
        if unmasked := sorted(images.keys() - self._masks.files.keys()):
            self.notes += (
                f"{root}: {len(unmasked)} of {len(images)} images {have(len(unmasked))} no mask in "
                f"{folder.name} and {are(len(unmasked))} left out (first {images[unmasked[0]]})",
            )
        self._ids = self._divide(tuple(kept.files), hold_out, exclude)

    def _name_classes(self, ignore: Collection[str] | None) -> None:
        """Names, and the colours of RGB masks: of a list, of labelmap.txt, or VOC's."""
        from .class_file import read_classes
        from .folder import ignored_values
        from .voc import NAMES

        named = next((self.root / name for name in CLASS_FILES if (self.root / name).is_file()), None)
        stated = stated_colours(self.root)
        self.notes += (*unread_files(self.root, CLASS_FILES), *unread_files(self.root, COLOUR_FILES))
        self.notes += unread_annotations(self.root)
        self.class_names = NAMES
        ignored: Collection[str] = ()
        if named:
            self.class_names, said_of_names = read_classes(named)
            self.notes += said_of_names
            self.ignored, said = ignored_values(self.class_names, ignore, self.root)
            self.notes += said
        elif stated:
            self.class_names, ignored = classes_of(stated.names.values(), ignore)
            self.notes += stated.notes
        if ignore and not named and (unknown := [name for name in ignore if name not in ignored]):
            raise UserError(
                f'{self.root} has no class "{unknown[0]}" to ignore; labelmap.txt names the classes there are'
                f".{name_hint(unknown[0], stated.names.values() if stated else NAMES)}"
            )
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        if stated:
            self.colours = colour_table(
                stated.path, stated.names, self.class_names, ignored, self.ignore_id, bool(named)
            )
        elif self.class_names == NAMES:
            self.colours = voc_colours(NAMES)
        if not named and not stated:
            self.notes += (_as_vocs(self.root),)
        if ignored:
            self.notes += (f"{stated and stated.path}: pixels of {', '.join(ignored)} count nowhere",)

    def _divide(
        self, ids: tuple[str, ...], hold_out: bool, exclude: frozenset[str]
    ) -> dict[Split, tuple[str, ...]]:
        """Ids of each split: as lists say, or all for training."""
        from .folder import held_out

        if division := read_division(self.root, self._masks.files.keys()):
            lists = division.without(
                exclude, self._images.files.keys() - self._images.twins.keys() - self._masks.twins.keys()
            )
            division.check(lists, self._masks)
            self.excluded = tuple(dict.fromkeys((*self.excluded, *division.listed(exclude))))
            self.notes += (*division.notes, *division.left_out(ids))
            self.notes += tuple(unread_lists(self.root, lists, division.folder))
            return lists
        self.notes += tuple(unread_lists(self.root, {"train": ids}, None))
        held = held_out(ids) if hold_out and len(ids) > 1 else frozenset()
        if held:
            self.notes += (
                f"{self.root} has no list of validation images (ImageSets/Segmentation/train.txt and "
                f"val.txt), so {len(held)} of {len(ids)} images {are(len(held))} held out, chosen "
                "by their names (segrow eval --split all takes all)",
            )
        return {"train": tuple(i for i in ids if i not in held), "val": tuple(i for i in ids if i in held)}

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted file names without suffix, or in the order of the lists."""
        return self._ids[split]

    def image_path(self, split: Split, image_id: str) -> Path:
        """JPEGImages/ID.*"""
        return self._images.path(image_id)

    def mask_path(self, split: Split, image_id: str) -> Path:
        """SegmentationClass/ID.*"""
        return self._masks.path(image_id)

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency_map/ID.png"""
        return self._maps.or_expected(image_id)


def _mask_folder(root: Path) -> Path:
    """The folder of masks: the first that holds any; labelme keeps arrays in the others."""
    there = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
    if not there:
        from .other_formats import recognise

        if said := recognise(root):
            raise UserError(f"{root} has no folder {MASK_FOLDERS[0]} with masks; it holds {said}")
        raise UserError(f"{root} has JPEGImages but no folder {MASK_FOLDERS[0]} with masks; add it")
    return next((folder for folder in there if list_files(folder, "mask").files), there[0])


def find_given(
    root: Path,
    hold_out: bool = False,
    ignore: Collection[str] | None = None,
    exclude: frozenset[str] = frozenset(),
) -> SegDataset | None:
    """Whatever annotated images are in `root`; None when nothing there is known.

    Args:
        root: A folder of one's own (`data/folder.py`), a folder of VOC's kind, with lists or without, or a
            COCO file or the folder it is in.
        hold_out: Where there are no validation images, take a fifth as such.
        ignore: Names of categories that count nowhere; NONE: none; None: those that are called so.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: Something that is broken, or of a format that segrow does not read.
    """
    if ignore is not None and tuple(ignore) == NONE:
        ignore = ()
    refuse_backslashes(root)
    if (root / "classes.txt").is_file() and (root / "images").is_dir():
        from .folder import FolderDataset

        return FolderDataset(root, hold_out, exclude, ignore)
    if (root / "JPEGImages").is_dir():
        from .voc import MASKS, OWN_MASKS, VocDataset

        listed = any((root / name / "val.txt").is_file() for name in LISTS)
        named = any((root / name).is_file() for name in (*CLASS_FILES, *COLOUR_FILES))
        if listed and not named and any((root / name).is_dir() for name in (MASKS, OWN_MASKS)):
            _no_ignore(root, ignore)
            voc = VocDataset(root, exclude)
            voc.notes += (_as_vocs(root),)
            return voc
        return PaletteDataset(root, hold_out, ignore, exclude)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return None  # a folder of one's own that lacks classes.txt, whatever .json is beside it
    from .coco import CocoDataset, find_files
    from .other_formats import recognise_beside_json

    if said := recognise_beside_json(root):
        raise UserError(f"{root} holds {said}")
    return CocoDataset(root, ignore, hold_out, exclude) if find_files(root)[0] else None


def _as_vocs(root: Path) -> str:
    return (
        f"{root}: no {' or '.join(CLASS_FILES)} names the classes, so mask values 1 to 20 are those of VOC "
        "2012 (1 is aeroplane)"
    )


def _no_ignore(root: Path, ignore: Collection[str] | None) -> None:
    if ignore:
        raise UserError(
            f"{root} holds VOC 2012, which has no class {', '.join(ignore)} to ignore; leave --ignore out"
        )


def open_given(
    root: Path,
    option: str,
    exclude: frozenset[str] = frozenset(),
    ignore: Collection[str] | None = None,
) -> SegDataset:
    """Whatever annotated images are in `root`, as `find_given`.

    Args:
        option: The option that named it, for errors.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: Nothing there that is known, or something that is broken.
    """
    root = root.expanduser()
    if not root.exists():
        raise UserError(f"{option} {root} is not there; {EXPECTED}")
    found = find_given(root, ignore=ignore, exclude=exclude)
    if found is None:
        raise UserError(nothing_in(root, option))
    return found


def nothing_in(root: Path, option: str) -> str:
    """Why nothing is found in a folder: another format, which is named, or nothing that is known."""
    from .class_file import named_elsewhere
    from .folder import named_otherwise
    from .other_formats import recognise

    if said := recognise(root):
        return f"{option} {root} holds {said}"
    hint = named_otherwise(root) if (root / "classes.txt").is_file() else ""
    if (root / "images").is_dir() and (root / "masks").is_dir() and not hint:
        hint = f"; images and masks are there, classes.txt is missing{named_elsewhere(root / 'classes.txt')}"
    return f"{option} {root} holds no annotated images; {EXPECTED}{hint}"
