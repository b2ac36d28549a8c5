"""A data set of one's own.

classes.txt                  line i (from 0) names mask value i; line 0 is background
images/{train,val}/**        anything PIL opens, in sub-folders too
masks/{train,val}/**         palette or grey, the same names; 16 bit for more than 254 classes
saliency/{train,val}/**      optional

Without train and val, what is in images, masks and saliency are all training images.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..class_lists import name_hint, not_counted
from ..errors import UserError
from ..wording import are, count, verb
from .base import SegDataset, Split
from .class_file import class_lines, read_classes
from .colours import FILES as COLOUR_FILES
from .colours import ColourTable, colour_table, name_by_colour, parse_colours, stated_colours
from .files import IMAGE_SUFFIXES
from .listing import divide, list_files, refuse_backslashes
from .lists import read_division, unread_lists
from .pairs import Pairs, match_pairs
from .unread import unread_annotations, unread_files

SPLITS: tuple[Split, ...] = ("train", "val")
KINDS = ("images", "masks", "saliency")
LIKE_TRAIN, LIKE_VAL = frozenset({"train", "training"}), frozenset({"val", "valid", "validation"})
LIKE_FOLDERS = {
    "images": ("images", "image", "imgs", "img"),
    "masks": ("masks", "mask", "labels", "label", "annotations", "gt", "segmentations"),
}
LIKE_SPLITS = LIKE_TRAIN | LIKE_VAL | {"test", "testing"}
HELD_OUT = 5
"""Every fifth image is held out for validation where a folder has no validation images."""


class FolderDataset(SegDataset):
    """The folder layout. `images/val` may be absent: then there are no validation images.

    Args:
        root: The folder.
        hold_out: Where it has no validation images, take a fifth of the training images as such.
        ignore: Classes whose pixels count nowhere; None: those that are called so, such as "ignore".
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: A folder or `classes.txt` that is missing, names that are missing or doubled, an image
            without a mask or the reverse.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        hold_out: bool = False,
        exclude: frozenset[str] = frozenset(),
        ignore: Collection[str] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(
                f"--data.root {self.root} is not a folder; expected classes.txt, images and masks in it"
            )
        self.class_names, self.notes = read_classes(self.root / "classes.txt")
        self.notes += unread_files(self.root, ("classes.txt", "class_names.txt"))
        self.notes += unread_files(self.root, COLOUR_FILES) + unread_annotations(self.root)
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        self.ignored, said = ignored_values(self.class_names, ignore, self.root)
        self.notes += said
        flat = self._is_flat()
        self._pairs: dict[Split, Pairs] = {}
        for split in SPLITS[:1] if flat else SPLITS:
            images, masks, maps = (
                self.root / kind / ("" if flat else split) for kind in ("images", "masks", "saliency")
            )
            if split == "val" and not images.exists() and not masks.exists():
                continue
            for folder in (images, masks):
                if not folder.is_dir():
                    raise UserError(
                        f"{folder} is not a folder; images/{split} and masks/{split} are expected together"
                        f"{named_otherwise(self.root)}"
                    )
            self._pairs[split] = match_pairs(split, images, masks, maps, exclude)
            self.excluded += self._pairs[split].excluded
            self.notes += self._pairs[split].notes()
            self.notes += _spare_maps(self._pairs[split])
        if not self._pairs["train"].ids:
            raise UserError(f"{self.root / 'images' / 'train'} holds no image")
        self._ids = {split: pairs.ids for split, pairs in self._pairs.items()}
        self.colours = self._stated_colours()
        divided = self._by_lists(flat, exclude)
        if hold_out and not divided and not self._ids.get("val") and len(self._ids["train"]) > 1:
            self._hold_out()

    def _by_lists(self, flat: bool, exclude: frozenset[str]) -> bool:
        """Divides the images of a folder without splits as its lists say, where it has both.

        Raises:
            Unfit: A list names images that are not there.
        """
        train = self._pairs["train"]
        known = {*train.images.files, *(name.partition("/")[2] for name in train.excluded)}
        division = read_division(self.root, known) if flat else None
        if division is None:
            holds = "" if flat else f"images/{' and images/'.join(self._pairs)}"
            self.notes += tuple(unread_lists(self.root, self._ids, None, holds))
            return False
        lists = division.without(exclude, train.images.files)
        division.check(lists, train.images)
        self.excluded = tuple(dict.fromkeys((*self.excluded, *division.listed(exclude))))
        self.notes += (
            f"{division.folder}: train.txt and val.txt divide the images",
            *division.notes,
            *division.left_out(train.ids),
        )
        self._ids, self._pairs["val"] = lists, train
        self.notes += tuple(unread_lists(self.root, lists, division.folder))
        return True

    def _stated_colours(self) -> ColourTable | None:
        """Of RGB masks: as classes.txt or a file beside it says."""
        path = self.root / "classes.txt"
        if named := parse_colours(class_lines(path)):
            pairs = zip(self.class_names, (colour for _, colour in named), strict=True)
            return colour_table(path, name_by_colour(path, pairs), self.class_names, (), self.ignore_id, True)
        if (stated := stated_colours(self.root)) is None:
            return None
        self.notes += stated.notes
        ignored = [
            n for n in not_counted(dict.fromkeys(stated.names.values()), None) if n not in self.class_names
        ]
        return colour_table(stated.path, stated.names, self.class_names, ignored, self.ignore_id, True)

    def _is_flat(self) -> bool:
        """Whether there are no splits.

        Raises:
            UserError: A split that is called otherwise, or a name with a backslash.
        """
        for kind in KINDS:
            refuse_backslashes(self.root / kind)
        images = self.root / "images"
        entries = sorted(images.iterdir()) if images.is_dir() else []
        folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        splits = [name for name in folders if name in SPLITS]
        if not splits:
            if wrong := [name for name in folders if name.lower() in LIKE_SPLITS]:
                raise UserError(
                    f"{images} has a folder {wrong[0]}; expected images/train and images/val, or images "
                    "without splits: rename it, and that in masks"
                )
            return bool(list_files(images, "image").files)
        others = [name for name in folders if name not in SPLITS]
        for split, like in ("train", LIKE_TRAIN), ("val", LIKE_VAL):
            if split not in splits and (wrong := [name for name in others if name.lower() in like]):
                raise UserError(
                    f"{images} has a folder {wrong[0]}, expected {split}; rename it, and that in masks"
                )
        self.notes += tuple(note for kind in KINDS for note in _beside_splits(self.root / kind, splits))
        return False

    def _hold_out(self) -> None:
        """Take a fifth of the training images for validation: always the same ones, for names decide."""
        ids = self._ids["train"]
        held = held_out(ids)
        self._pairs["val"] = self._pairs["train"]
        self._ids = {
            "train": tuple(i for i in ids if i not in held),
            "val": tuple(i for i in ids if i in held),
        }
        self.notes += (
            f"{self.root} has no images/val, so {len(held)} of {len(ids)} images {are(len(held))} held out "
            "for validation, chosen by their names; move pairs to images/val and masks/val to choose them "
            "yourself (segrow eval --split all takes all images)",
        )

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted file names without suffix, with "/" behind those of sub-folders."""
        return self._ids.get(split, ())

    def image_path(self, split: Split, image_id: str) -> Path:
        """images/SPLIT/ID.*"""
        return self._pairs[split].images.path(image_id)

    def mask_path(self, split: Split, image_id: str) -> Path:
        """masks/SPLIT/ID.*"""
        return self._pairs[split].masks.path(image_id)

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency/SPLIT/ID.png"""
        return self._pairs[split].maps.or_expected(image_id)


def _beside_splits(folder: Path, splits: Sequence[str]) -> Iterator[str]:
    """Notes on folders and files of images or masks that are in none of the splits."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [e.name for e in entries if e.is_dir() and e.name not in SPLITS and not e.name.startswith(".")]
    if others:
        yield f"{folder}: only train and val are read; {', '.join(others)} {are(len(others))} left out"
    if direct := divide((entry.name for entry in entries if entry.is_file()), IMAGE_SUFFIXES)[0]:
        yield (
            f"{folder}: {count(len(direct), 'image file')} beside {' and '.join(splits)} {are(len(direct))} "
            f"left out (first {direct[0]}); move what is there into one of these, with what belongs to it"
        )


def _spare_maps(pairs: Pairs) -> tuple[str, ...]:
    """A note on saliency maps of no image."""
    there = pairs.images.files.keys() | {name.partition("/")[2] for name in pairs.excluded}
    spare = [file for image_id, file in pairs.maps.files.items() if image_id not in there]
    if not spare:
        return ()
    some = f"{count(len(spare), 'saliency map')} {verb(len(spare), 'belong')}"
    return (f"{pairs.maps.folder}: {some} to no image (first {spare[0]})",)


def named_otherwise(root: Path) -> str:
    """`; rename labels to masks`, where a folder holds masks or images under another name."""
    there = {entry.name.lower(): entry.name for entry in root.iterdir() if entry.is_dir()}
    for wanted, names in LIKE_FOLDERS.items():
        found = next((there[name] for name in names if name in there), wanted)
        if not (root / wanted).is_dir() and found != wanted:
            return f"; rename {found} to {wanted}"
    return ""


def ignored_values(
    class_names: Sequence[str], ignore: Collection[str] | None, root: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Mask values of classes that count nowhere, and a note on them.

    Args:
        class_names: By mask value.
        ignore: Names that count nowhere; None: those that are called so, such as "ignore" and "void".
        root: The folder, for errors.

    Raises:
        UserError: A name that is no class.
    """
    classes = class_names[1:]
    if unknown := [name for name in ignore or () if name not in classes]:
        raise UserError(
            f'{root} has no class "{unknown[0]}" to ignore; its classes are {", ".join(classes[:20])}'
            f".{name_hint(unknown[0], classes)}"
        )
    names = not_counted(classes, ignore)
    if not names:
        return (), ()
    how = "as --ignore says"
    if ignore is None:
        how = "--ignore none (segrow train: --data.ignore none) makes a class of it"
    values = tuple(class_names.index(name) for name in names)
    return values, (f"{root}: pixels of {', '.join(names)} count nowhere; {how}",)


def held_out(ids: Sequence[str]) -> frozenset[str]:
    """A fifth of the ids, one at least: always the same ones, whatever their order."""
    order = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())
    return frozenset(order[: max(1, len(ids) // HELD_OUT)])
