"""A data set of one's own.

classes.txt                  line i (from 0) names mask value i; line 0 is background
images/{train,val}/**        anything PIL opens, in sub-folders too
masks/{train,val}/**         palette or grey, the same names; 16 bit for more than 254 classes
saliency/{train,val}/**      optional

Without train and val, what is in images, masks and saliency are all training images.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ..class_lists import is_background, not_counted, plain_name
from ..documents import read_text
from ..errors import UserError
from ..wording import are, count
from .base import SegDataset, Split
from .colours import ColourTable, colour_table, parse_colours, stated_colours
from .files import IMAGE_SUFFIXES
from .listing import Pairs, divide, list_files, match_pairs

SPLITS: tuple[Split, ...] = ("train", "val")
LIKE_TRAIN, LIKE_VAL = frozenset({"train", "training"}), frozenset({"val", "valid", "validation"})
LIKE_FOLDERS = {
    "images": ("images", "image", "imgs", "img"),
    "masks": ("masks", "mask", "labels", "label", "annotations", "gt", "segmentations"),
}
LIKE_SPLITS = LIKE_TRAIN | LIKE_VAL | {"test", "testing"}
HELD_OUT = 5
"""Every fifth image is held out for validation where a folder has no validation images."""
NO_CLASS = frozenset({"background", "bg", "void", "unlabeled", "unlabelled", "unlabel", "unknown", "ignore"})
NO_CLASS |= {"other", "others", "none", "nothing", "null", "empty", "clutter", "misc", "rest", "outofroi", ""}


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
        if not self._pairs["train"].images.files:
            raise UserError(f"{self.root / 'images' / 'train'} holds no image")
        self._ids = {split: tuple(pairs.images.files) for split, pairs in self._pairs.items()}
        self.colours = self._stated_colours()
        if hold_out and not self._ids.get("val") and len(self._ids["train"]) > 1:
            self._hold_out()

    def _stated_colours(self) -> ColourTable | None:
        """Of RGB masks: as classes.txt or a file beside it says."""
        path = self.root / "classes.txt"
        if named := parse_colours(read_text(path, "class list").splitlines()):
            colours = dict(zip(self.class_names, (colour for _, colour in named), strict=True))
            return colour_table(path, colours, self.class_names, (), self.ignore_id)
        if (stated := stated_colours(self.root)) is None:
            return None
        ignored = [n for n in not_counted(stated[1], None) if n not in self.class_names]
        return colour_table(*stated, self.class_names, ignored, self.ignore_id)

    def _is_flat(self) -> bool:
        """Whether there are no splits.

        Raises:
            UserError: A split that is called otherwise.
        """
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
        if others:
            self.notes += (f"{images}: only train and val are read; {', '.join(others)} is left out",)
        if direct := divide((entry.name for entry in entries if entry.is_file()), IMAGE_SUFFIXES)[0]:
            self.notes += (
                f"{images}: {count(len(direct), 'image file')} beside {' and '.join(splits)} left out "
                f"(first {direct[0]}); move what is there into one of these, with its mask",
            )
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


class Classes(NamedTuple):
    """What a `classes.txt` says: names by mask value, and a note where line 0 is a class."""

    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_classes(path: Path) -> Classes:
    """Class names of a `classes.txt`; whatever line 0 calls it, class 0 is "background".

    Raises:
        UserError: No such file, fewer than two or more than 65535 names, an empty line, a name twice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it names the classes, one a line, background first")
    lines = read_text(path, "class list").rstrip().splitlines()
    if named := parse_colours(lines):
        lines = [name for name, _ in named]
    lines, dressed = _without_signs(path, lines)
    lines, numbered = _without_numbers(path, lines)
    notes = (*dressed, *numbered)
    names = ("background", *map(plain_name, lines[1:]))
    if len(names) < 2 or len(names) > 65535:
        raise UserError(
            f"{path} has {count(len(lines), 'line')}; expected background and 1 to 65534 classes, one a line"
        )
    said = _line_0(path, plain_name(lines[0]), names)
    where: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path} has nothing in line {number}; line i (from 0) names mask value i")
        if name in where:
            raise UserError(
                f'{path} has "{name}" in lines {where[name]} and {number}; every class needs its own name'
            )
        where[name] = number
    return Classes(names, (*notes, *said))


_SIGNED = re.compile(
    r"""\s*(?:-\s+(?P<item>\S.*)|(?P<mark>["'])(?P<quoted>.+)(?P=mark)\s*,?|(?P<last>\S.*),)\s*"""
)


def _without_signs(path: Path, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names without what a list in another language has around them, where every line has it; and a note."""
    found = [_SIGNED.fullmatch(line) for line in lines]
    signed = [match for match in found if match]
    if not signed or len(signed) < len(lines):
        return list(lines), ()
    names = [match["item"] or match["quoted"] or match["last"] for match in signed]
    return names, (f"{path}: the quotes, dashes or commas around the names are left out",)


_NUMBERED = re.compile(r"\s*(\d+)(?:\s*[:;,=.)]\s*|\s+)(\S.*)")


def _without_numbers(path: Path, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names without numbers in front, where every line has its own, and a note that says so.

    Raises:
        UserError: Every line has a number, but not its own: line i (from 0) names value i.
    """
    found = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = [match for match in found if match]
    if (
        len(lines) > 2
        and found[0] is None
        and [m and int(m[1]) for m in found[1:]] == [*range(len(lines) - 1)]
    ):
        raise UserError(
            f'{path} has the heading "{lines[0].strip()}" before its numbered names; remove that line'
        )
    if not numbered or len(numbered) < len(lines):
        return list(lines), ()
    for number, match in enumerate(numbered):
        if int(match[1]) != number:
            raise UserError(
                f'{path} has number {match[1]} ("{match[2].strip()}") in line {number}; line i (from 0) '
                "names mask value i, with background in line 0: sort the lines, or remove the numbers"
            )
    return [match[2] for match in numbered], (f"{path}: the numbers in front of the names are left out",)


def _line_0(path: Path, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """A note where value 0 is called what sounds like a class.

    Raises:
        UserError: A list of labelme's, whose first line is no value of the masks; or background stands below.
    """
    plain = _letters(name)
    if plain == "ignore" and _letters(names[1]) == "background":
        raise UserError(
            f'{path} names "{name}" before "{names[1]}", as labelme does; line i (from 0) names mask value '
            "i, so remove its first line"
        )
    below = next((value for value, other in enumerate(names) if value and is_background(other)), None)
    if below and not is_background(name):
        raise UserError(
            f'{path} calls value 0 "{name}" and value {below} "{names[below]}", but value 0 is background; '
            "remove the first line where it is a heading, else number the masks so that background is 0"
        )
    if plain in NO_CLASS:
        return ()
    return (f'{path} calls value 0 "{name}"; it is trained and counted as background',)


def _letters(name: str) -> str:
    """Letters and digits, small: `_background_` and `Background` are one name."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
