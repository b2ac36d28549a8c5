"""Lists that divide images: train.txt and val.txt, one image a line, in a folder of PLACES.

2007_000032                                 an id
city/photo 1.jpg                            a path, below any folder; spaces belong to the name
JPEGImages/1.jpg SegmentationClass/1.png    an image and its mask, with a space, comma or tab between
2007_000032 -1                              an id and a label (-1, 0 or 1), in every line

A line is the name of an image that is there before it is anything else.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..documents import read_text
from ..errors import UserError
from ..wording import are, count
from .base import Split
from .files import IMAGE_SUFFIXES
from .listing import HINTED, Listing, list_files
from .unfit import unfit_images

LISTS = ("ImageSets/Segmentation", "ImageSet/Segmentation")  # the second is a misspelling that goes around
PLACES = (*LISTS, "ImageSets", "splits", "lists", "")
"""Where lists are looked for; in those of LISTS they must fit."""
_ELSEWHERE = ("ImageSets/Main",)  # which says for each class whether an image shows it
_NAMES = frozenset({"train", "training", "trn", "val", "valid", "validation", "dev", "test", "testing"})
_NAMES |= {"trainval", "train_aug", "trainaug", "default", "all"}
_KINDS = frozenset({".txt", ".csv", ".lst"})

_SUFFIXES = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
_COLUMNS = (
    re.compile(r"""(?P<mark>["'])(?P<first>.+?)(?P=mark)[\s,;]+\S.*"""),
    re.compile(rf"(?P<first>.+?\.(?:{_SUFFIXES}))[\s,;]+\S.*", re.IGNORECASE),
    re.compile(r"(?P<first>\S.*?)[\s,;]+(?:-1|0|1)"),
)
_SAME_TWICE = re.compile(r"(\S+)[\s,;]+(\S+)")


class Division(NamedTuple):
    """What the lists of a folder say.

    Attributes:
        folder: Where they are.
        train: Ids in the order of train.txt, and the line of each.
        val: Those of val.txt.
        notes: What was left out, a sentence each.
    """

    folder: Path
    train: dict[str, int]
    val: dict[str, int]
    notes: tuple[str, ...]

    def without(self, excluded: Collection[str], images: Collection[str]) -> dict[Split, tuple[str, ...]]:
        """Ids of each split without some.

        Args:
            excluded: What is left out, each as SPLIT/ID.
            images: Ids that have an image; others go from both lists where one of them leaves them out.
        """
        out = {name.partition("/")[2] for name in excluded} - {*images}
        return {
            split: tuple(i for i in ids if f"{split}/{i}" not in excluded and i not in out)
            for split, ids in self._by_split().items()
        }

    def _by_split(self) -> dict[Split, dict[str, int]]:
        return {"train": self.train, "val": self.val}

    def listed(self, asked: Collection[str]) -> tuple[str, ...]:
        """Which of some images, each as SPLIT/ID, the lists name."""
        names = (f"{split}/{i}" for split, ids in self._by_split().items() for i in ids)
        return tuple(name for name in names if name in asked)

    def check(self, lists: Mapping[Split, Sequence[str]], there: Listing) -> None:
        """Every image of the lists is there.

        Args:
            lists: Ids of each split, without those that are left out.
            there: The images, or the masks where these count.

        Raises:
            Unfit: Some are not; the line of each is named.
        """
        lacks = "is not in" if there.what == "image" else "has no mask in"
        says: dict[str, str] = {}
        for split, ids in lists.items():
            for i in (i for i in ids if i not in there.files):
                where = f"{self.folder / split}.txt, line {self._by_split()[split][i]}"
                hint = there.alike(i) if len(says) < HINTED else ""
                says[f"{split}/{i}"] = (
                    f"{where} lists {i}, which {lacks} {there.folder}"
                    f"{hint or '; add it, or take the line out'}"
                )
        if says:
            raise unfit_images(says)

    def left_out(self, ids: Collection[str]) -> tuple[str, ...]:
        """A note on images that neither list names, and on other lists that do; none where there are none.

        Args:
            ids: Of the images that are there.
        """
        left = [i for i in ids if i not in self.train and i not in self.val]
        if not left:
            return ()
        some = f"{count(len(left), 'image')} {are(len(left))}"
        others = [
            f"{len(n)} in {path.name}" for path in _lists(self.folder, ("",)) if (n := _named(path, left))
        ]
        there = f"; {', '.join(others)}" if others else ""
        return (
            f"{self.folder}: {some} in neither train.txt nor val.txt and left out (first {left[0]}{there})",
        )


def read_division(root: Path, ids: Collection[str]) -> Division | None:
    """What train.txt and val.txt of one folder of PLACES say; None where no folder holds both.

    Args:
        root: The data folder.
        ids: All images that are there, those too that are left out.

    Raises:
        UserError: A list that cannot be read, or lists of two folders that divide the images differently.
    """
    found: list[Division] = []
    for place in PLACES:
        train, val = root / place / "train.txt", root / place / "val.txt"
        if not (train.is_file() and val.is_file()):
            continue
        (of_train, said), (of_val, more) = read_list(train, ids), read_list(val, ids)
        if place in LISTS or not {*of_train, *of_val}.isdisjoint(ids):
            found.append(Division(root / place, of_train, of_val, (*said, *more)))
    if not found:
        return None
    first = found[0]
    if other := next((each for each in found if _sets(each) != _sets(first)), None):
        raise UserError(
            f"train.txt and val.txt of {first.folder} and of {other.folder} divide the images differently; "
            "remove the ones that are not meant"
        )
    return first


def _sets(division: Division) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(division.train), frozenset(division.val)


def unread_lists(
    root: Path, splits: Mapping[Split, Sequence[str]], read: Path | None, holds: str = ""
) -> Iterator[str]:
    """A note on lists that are not read and would divide the images otherwise; none where there are none.

    Args:
        root: The data folder.
        splits: The ids of each split, as the images are divided.
        read: The folder whose train.txt and val.txt are read.
        holds: What divides the images, where no lists do.
    """
    known = frozenset(i for ids in splits.values() for i in ids)
    as_divided = {known, *map(frozenset, splits.values())}
    unread: list[str] = []
    for path in _lists(root):
        if read is not None and path.parent == read:
            continue  # images that are in neither of its lists are told
        if path.stem not in splits and _named(path, list_files(root / "images" / path.stem, "image").files):
            continue  # of a folder that is left out itself, which is told
        listed = _named(path, known)
        if listed not in as_divided:
            unread.append(f"{path.relative_to(root)} ({len(listed)} of {count(len(known), 'image')})")
    if unread:
        why = f"{holds or f'train.txt and val.txt of {read}'} divide the images"
        if not holds and read is None:
            why = (
                "lists are read where train.txt and val.txt (in small letters) are both in "
                f"{LISTS[0]}, splits or {root}, and name images that are there"
            )
        yield f"{root}: {', '.join(unread)} {are(len(unread))} not read; {why}"


def _named(path: Path, ids: Collection[str]) -> frozenset[str]:
    """Which images a list names that is not read, so that it need not be right."""
    try:
        return frozenset(ids).intersection(read_list(path, ids)[0])
    except UserError:
        return frozenset()


def _lists(root: Path, places: Sequence[str] = (*PLACES, *_ELSEWHERE)) -> Iterator[Path]:
    """Files that are lists of images by their names, or by those of their folders."""
    for place in places:
        for path in sorted((root / place).glob("*")):
            named = place.startswith("ImageSet") or path.stem.lower() in _NAMES
            if named and path.suffix.lower() in _KINDS and path.is_file():
                yield path


def read_list(path: Path, ids: Collection[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Ids that a list names, with the first line of each (from 1), and a note on lines that repeat one.

    Args:
        path: The list.
        ids: Of the images that are there. A line that names none of them becomes an id of its own.

    Raises:
        UserError: No such file, no line in it, or two lines for one image.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it lists image ids, one a line")
    text = unicodedata.normalize("NFC", read_text(path, "image list")).replace("\\", "/")
    numbered = {n: line for n, line in enumerate(re.split(r"\r\n?|\n", text), start=1) if line.strip()}
    lines = [*numbered.values()]
    if not lines:
        raise UserError(f"{path} lists no image; expected image ids, one a line")
    found = [_whole(line, ids) for line in lines]
    columns = [_column(line.strip()) for line in lines]
    if not any(found) and all(columns):
        found = [_find(column or "", ids) for column in columns]
        named = [column or "" for column in columns]
    else:
        named = [_bare(line) for line in lines]
    by_id: dict[str, tuple[int, str]] = {}
    again: list[str] = []
    deep = any("/" in image_id for image_id in ids)
    for number, name, image_id in zip(numbered, named, found, strict=True):
        image_id = image_id or (_stem(name) if deep else _stem(name).rpartition("/")[2])
        first, before = by_id.setdefault(image_id, (number, numbered[number]))
        if first == number:
            continue
        line = numbered[number]
        if not _one(before, line):
            raise UserError(
                f"{path} has the lines {before.strip()!r} and {line.strip()!r}, which both name the image "
                f"{image_id}; write the names as they are there, with their folders, one a line"
            )
        again.append(image_id)
    where = {image_id: number for image_id, (number, _) in by_id.items()}
    if not again:
        return where, ()
    return where, (
        f"{path}: {count(len(again), 'line')} {'repeats' if len(again) == 1 else 'repeat'} an image of the "
        f"list and {are(len(again))} left out (first {again[0]})",
    )


def _whole(line: str, ids: Collection[str]) -> str | None:
    """The image that all of a line names; a line of an image and its mask names none."""
    for text in (line, _bare(line)):
        if (stem := _stem(text)) in ids or text in ids:
            return text if text in ids else stem
    return None if _COLUMNS[1].fullmatch(line.strip()) else _find(_bare(line), ids)


def _find(name: str, ids: Collection[str]) -> str | None:
    """The id of a path, which may begin above the folder of images; with as many of its folders as can be."""
    parts = name.split("/")
    for begin in range(len(parts)):
        tail = "/".join(parts[begin:])
        if found := next((each for each in (tail, _stem(tail)) if each in ids), None):
            return found
    return None


def _column(line: str) -> str | None:
    """The first of several columns; None where there is one alone."""
    for pattern in _COLUMNS:
        if match := pattern.fullmatch(line):
            return _bare(match["first"])
    twice = _SAME_TWICE.fullmatch(line)
    names = [_stem(_bare(name)).rpartition("/")[2] for name in twice.groups()] if twice else []
    return _bare(twice[1]) if twice and names[0] == names[1] else None


def _one(line: str, other: str) -> bool:
    """Whether two lines are one name, with its suffix and folders or without."""
    shorter, longer = sorted((_stem(_bare(line)), _stem(_bare(other))), key=len)
    return shorter == longer or longer.endswith(f"/{shorter}")


def _bare(text: str) -> str:
    """Without spaces and quotes around it."""
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _stem(name: str) -> str:
    """Without the suffix of an image; an id may hold dots."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name
