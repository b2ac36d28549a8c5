"""The files of a folder of images or masks: which are read, which are left out, and which belong together."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..wording import are, count
from .files import IMAGE_SUFFIXES
from .masks import MASK_SUFFIXES
from .unfit import Unfit, unfit_images

What = Literal["image", "mask", "saliency map"]
_SYSTEM = frozenset({"thumbs.db", "desktop.ini"})  # what systems leave in every folder; nobody misses them


@dataclass(frozen=True)
class Listing:
    """What is in a folder and below it.

    Attributes:
        folder: The folder.
        what: What its files are.
        files: Path below the folder by id, sorted. An id is that path without suffix, in Unicode's composed
            form (NFC) and with "/" between folders: an image and its mask match, whatever wrote their names.
        left: What is not read, below the folder: files of other kinds, and hidden images.
        twins: All files of an id that has several; `files` holds the first.
    """

    folder: Path
    what: What
    files: dict[str, str]
    left: tuple[str, ...]
    twins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def path(self, image_id: str) -> Path:
        """The file of an id."""
        return self.folder / self.files[image_id]

    def or_expected(self, image_id: str) -> Path:
        """The file of an id, or where it is expected."""
        if image_id in self.files:
            return self.path(image_id)
        return self.folder / (f"{image_id}.jpg" if self.what == "image" else f"{image_id}.png")

    def without(self, split: str, exclude: frozenset[str]) -> "Listing":
        """The rest, when some are left out, each as SPLIT/ID."""
        if not exclude:
            return self
        files = {i: file for i, file in self.files.items() if f"{split}/{i}" not in exclude}
        return replace(self, files=files)

    def twin(self, image_id: str) -> str:
        """What is wrong with an id of `twins`, a sentence."""
        files, said = self.twins[image_id], ""
        if len({unicodedata.normalize("NFC", each) for each in files}) == 1:
            said = f", one name in two Unicode forms ({' and '.join(map(ascii, files))})"
        return f"{self.folder} holds {' and '.join(files)}{said}; one {self.what} must have one file"

    def unread(self, image_id: str, says: str) -> str:
        """`; a.heic SAYS` where a file that is not read has the name of an id; else nothing."""
        there = next((name for name in self.left if os.path.splitext(name)[0] == image_id), None)
        return "" if there is None else f"; {there} {says}"

    def longer(self, image_id: str) -> str:
        """`; a_mask.png is there, rename it to a.png`, where one name begins as an id does; else nothing."""
        there = [
            i
            for i in self.files
            if i.startswith(image_id) and not i[len(image_id) : len(image_id) + 1].isalnum()
        ]
        if len(there) != 1:
            return ""
        file = self.files[there[0]]
        return f"; {file} is there, rename it to {image_id}{os.path.splitext(file)[1]}"

    def alike(self, image_id: str) -> str:
        """`; A.png is there …` where a name differs in capitals or spaces around it alone; else nothing."""
        there = [i for i in self.files if i != image_id and _folded(i) == _folded(image_id)]
        if not there:
            return ""
        return (
            f"; {self.files[there[0]]} is there, whose name differs in capitals or spaces: rename one of them"
        )

    def elsewhere(self, image_id: str) -> str:
        """`; b/a.png is there, but …` where the name of an id stands in another folder; else nothing."""
        name = image_id.rpartition("/")[2]
        there = next((file for i, file in self.files.items() if i.rpartition("/")[2] == name), None)
        if there is None:
            return ""
        return f"; {there} is there, but images and masks must have the same sub-folders"

    def notes(self) -> tuple[str, ...]:
        """A sentence on what is left out; none where that is nothing."""
        if not self.left:
            return ()
        advice = "; convert them to JPEG or PNG" if self.what == "image" else "; save them as PNG"
        return (f"{self.folder}: {left_out(self.left, self.what)}{advice}",)


def _folded(image_id: str) -> str:
    return "/".join(part.strip() for part in image_id.casefold().split("/"))


def left_out(files: Sequence[str], what: str) -> str:
    """`2 files are left out, not read as images: 1 .heic, 1 hidden (first a.heic)`.

    Args:
        files: Their paths, not empty.
        what: What they are not read as: image, mask …
    """
    kinds = Counter(_kind(file) for file in files)
    counted = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: -item[1]))
    some = f"{count(len(files), 'file')} {are(len(files))}"
    return f"{some} left out, not read as {what}s: {counted} (first {files[0]})"


def _kind(file: str) -> str:
    if any(part.startswith(".") for part in file.split("/")):
        return "hidden"
    return os.path.splitext(file)[1].lower() or "without suffix"


def list_files(folder: Path, what: What) -> Listing:
    """The images, masks or saliency maps in a folder and below it, hidden ones left out; none without it.

    Raises:
        UserError: A name that is not UTF-8, or one with a backslash.
    """
    files: dict[str, list[str]] = {}
    read, left = divide(_plain(folder, walk(folder)), IMAGE_SUFFIXES if what == "image" else MASK_SUFFIXES)
    for name in read:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder / name} has a name that {_unencoded(name)}") from None
        image_id = unicodedata.normalize("NFC", os.path.splitext(name)[0])
        files.setdefault(image_id, []).append(name)
    twins = {image_id: tuple(names) for image_id, names in files.items() if len(names) > 1}
    return Listing(folder, what, {i: names[0] for i, names in sorted(files.items())}, tuple(left), twins)


def refuse_twins(split: str, ids: Iterable[str], listings: Sequence[Listing]) -> None:
    """Every image has one file, and so its mask and its saliency map.

    Args:
        split: train or val.
        ids: Of the images that are used.
        listings: Those of the three that there are.

    Raises:
        Unfit: Some have several, all of which are named.
    """
    says = {f"{split}/{i}": each.twin(i) for i in ids for each in listings if i in each.twins}
    if says:
        raise unfit_images(says, tuple(note for each in listings for note in each.notes()))


def _unencoded(name: str) -> str:
    """Why a name of a file cannot be written as UTF-8, and what to do."""
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return "is not UTF-8; rename it"
    return f"Python takes as {sys.getfilesystemencoding()} here; set the environment variable PYTHONUTF8=1"


def refuse_backslashes(folder: Path) -> None:
    """Stops at a name with a backslash in a folder, not below it.

    Raises:
        UserError: There is one.
    """
    for _ in _plain(folder, sorted(os.listdir(folder)) if folder.is_dir() else ()):
        pass


def _plain(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """The names, none of which has a backslash: in zip files of Windows it parts folders."""
    for name in names:
        if "\\" in name:
            raise UserError(
                f"{folder} holds {name}, whose name has a backslash, as zip files of Windows write folders; "
                "unpack the archive with what makes folders of them (unzip, Windows itself), or move files"
            )
        yield name


def divide(names: Iterable[str], suffixes: frozenset[str]) -> tuple[list[str], list[str]]:
    """Paths that are read by their suffix, and those that are left out: other ones, and hidden ones of them.

    What systems put into every folder is in neither.
    """
    read: list[str] = []
    left: list[str] = []
    for name in names:
        hidden = any(part.startswith(".") for part in name.split("/"))
        known = os.path.splitext(name)[1].lower() in suffixes
        base = name.rpartition("/")[2]
        if known and not hidden:
            read.append(name)
        elif known == hidden and not base.startswith("._") and base.lower() not in _SYSTEM:
            left.append(name)
    return read, left


def walk(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder; a link to a folder is followed, but not in a circle.

    A link that leads nowhere is among them; pipes and devices, which can be waited for forever, are not.

    Raises:
        UserError: A link leads to a folder that holds this one, such as /: all that is in there is not meant.
    """
    top = os.path.realpath(folder)
    around = frozenset(map(str, Path(top).parents))
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset({top}))]
    while waiting:
        below, above = waiting.pop()
        place = folder / below
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            path = os.path.join(place, name)
            if os.path.isfile(path) or not os.path.exists(path):
                yield below + name
            elif os.path.isdir(path) and (real := os.path.realpath(path)) not in above:
                if real in around:
                    raise UserError(
                        f"{path} is a link to {real}, which holds {folder} itself; remove it, or link to the "
                        "files that are meant"
                    )
                waiting.append((f"{below}{name}/", above | {real}))


@dataclass(frozen=True)
class Pairs:
    """The files of a split.

    Attributes:
        ids: Of its images, but for those that are left out.
        images: Its images, those too that are left out but have a mask.
        masks: Their masks, with the same ids.
        maps: Saliency maps, of any of the ids and of others.
        excluded: What was there and is left out, each as SPLIT/ID.
        said: How they were matched, where their paths differ.
    """

    ids: tuple[str, ...]
    images: Listing
    masks: Listing
    maps: Listing
    excluded: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def notes(self) -> tuple[str, ...]:
        """A sentence per folder of which something is left out."""
        return (*self.images.notes(), *self.masks.notes(), *self.maps.notes(), *self.said)


def by_name(images: Listing, masks: Listing) -> tuple[Listing, tuple[str, ...]]:
    """Masks under the ids of their images where only one of both has sub-folders, and a note that says so.

    They stay as they are where a name stands twice, or not on both sides: then it is not sure what belongs
    together. Of saliency maps, which not every image need have, one that has an image is enough.
    """
    flat = [side for side in (images, masks) if not any("/" in i for i in side.files)]
    if len(flat) != 1:
        return masks, ()
    ids = {i.rpartition("/")[2]: i for i in images.files}
    of_masks = {i.rpartition("/")[2]: i for i in masks.files}
    if len(ids) < len(images.files) or len(of_masks) < len(masks.files) or not ids.keys() & of_masks.keys():
        return masks, ()
    if masks.what != "saliency map" and ids.keys() != of_masks.keys():
        return masks, ()
    pairs = {image_id: of_masks[name] for name, image_id in ids.items() if name in of_masks}
    files = {image_id: masks.files[i] for image_id, i in pairs.items()}
    twins = {image_id: masks.twins[i] for image_id, i in pairs.items() if i in masks.twins}
    return replace(masks, files=files, twins=twins), (
        f"{flat[0].folder} has no sub-folders, so images and {masks.what}s are matched by their names alone "
        "(each stands there once)",
    )


HINTED = 20
"""So many files without a partner get a hint at most: it looks through all names."""


def _mask_hint(masks: Listing, image_id: str) -> str:
    unread = "is of a kind that is not read as a mask or does not keep class numbers"
    hints = masks.unread(image_id, unread), masks.alike(image_id), masks.longer(image_id)
    return next(filter(None, hints), "") or masks.elsewhere(image_id)


def match_pairs(
    split: str, images: Path, masks: Path, maps: Path, exclude: frozenset[str] = frozenset()
) -> Pairs:
    """The images and the masks of a split, with the same ids.

    Args:
        split: train or val.
        images: Folder of images.
        masks: Folder of masks of the same names, in the same sub-folders.
        maps: Folder of saliency maps; it need not exist.
        exclude: Images that are left out with their masks, each as SPLIT/ID.

    Raises:
        Unfit: An image without a mask or the reverse, or several files of one.
        UserError: As `list_files`.
    """
    found, of_masks = list_files(images, "image"), list_files(masks, "mask")
    of_masks, said = by_name(found, of_masks)
    excluded = tuple(
        f"{split}/{i}" for i in found.files | of_masks.files if exclude and f"{split}/{i}" in exclude
    )
    whole = (found.files.keys() & of_masks.files.keys()) - found.twins.keys() - of_masks.twins.keys()
    gone = frozenset(name for name in excluded if name.partition("/")[2] not in whole)
    found, of_masks = found.without(split, gone), of_masks.without(split, gone)
    of_maps, more = by_name(found, list_files(maps, "saliency map"))
    used = [i for i in found.files | of_masks.files if f"{split}/{i}" not in exclude]
    refuse_twins(split, used, (found, of_masks, of_maps))
    if alone := sorted(found.files.keys() - of_masks.files.keys()):
        count = f" ({len(alone)} such images)" if len(alone) > 1 else ""
        hints = {i: _mask_hint(of_masks, i) for i in alone[:HINTED]}
        says = {f"{split}/{i}": f"image {found.path(i)} has no mask{hints.get(i, '')}" for i in alone}
        first = f"image {found.path(alone[0])} has no mask, expected {masks / f'{alone[0]}.png'}"
        raise Unfit(f"{first}{hints[alone[0]]}{count}", says, (*found.notes(), *of_masks.notes()))
    if alone := sorted(of_masks.files.keys() - found.files.keys()):
        count = f" ({len(alone)} such masks)" if len(alone) > 1 else ""
        unread = "is of a kind that is not read; convert it to JPEG or PNG"
        hints = {i: found.unread(i, unread) for i in alone[:HINTED]}
        says = {f"{split}/{i}": f"mask {of_masks.path(i)} has no image{hints.get(i, '')}" for i in alone}
        first = (
            f"mask {of_masks.path(alone[0])} has no image, expected {images / f'{alone[0]}.jpg'} (or .png)"
        )
        raise Unfit(f"{first}{hints[alone[0]]}{count}", says, (*found.notes(), *of_masks.notes()))
    ids = tuple(i for i in found.files if not exclude or f"{split}/{i}" not in exclude)
    return Pairs(ids, found, of_masks, of_maps, excluded, said + more)
