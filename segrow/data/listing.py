"""The files of a folder of images or masks: which are read, which are left out, and which belong together."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..wording import are, count
from .files import IMAGE_SUFFIXES
from .masks import MASK_SUFFIXES
from .unfit import unfit_images

# fmt: off
_PICTURES = IMAGE_SUFFIXES | {
    ".heic", ".heif", ".hif", ".jxl", ".jpx", ".jpf", ".psd", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".dcm",
    ".nii", ".npy", ".npz", ".mat", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pfm",
    ".pam", ".ico",
}
# fmt: on
HINTED = 20
"""So many files without a partner get a hint at most: it looks through all names."""
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
        pipes: What is no file there: pipes, sockets and devices.
        twins: All files of an id that has several; `files` holds the first.
    """

    folder: Path
    what: What
    files: dict[str, str]
    left: tuple[str, ...]
    pipes: tuple[str, ...] = ()
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
        """`; a.heic SAYS` where what is not read has the name of an id; else nothing."""
        if pipe := next((name for name in self.pipes if os.path.splitext(name)[0] == image_id), None):
            return f"; {pipe} is a pipe, socket or device"
        kinds = [file for file in self.left if self.what != "image" or _kind(file) in _PICTURES]
        there = next((name for name in kinds if os.path.splitext(name)[0] == image_id), None)
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
        """Sentences on what is left out; none where that is nothing."""
        said = [f"{left_out(self.left, self.what)}{advice(self.left, self.what)}"] if self.left else []
        said += [pipes_left_out(self.pipes)] if self.pipes else []
        return tuple(f"{self.folder}: {each}" for each in said)


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


def advice(files: Sequence[str], what: str) -> str:
    """`; convert them to JPEG or PNG`, where files that are left out hold pictures; else nothing."""
    pictures = sum(_kind(file) in _PICTURES for file in files)
    if not pictures:
        return ""
    them = "them" if pictures == len(files) else "the pictures among them"
    return f"; convert {them} to JPEG or PNG" if what == "image" else f"; save {them} as PNG"


def pipes_left_out(pipes: Sequence[str]) -> str:
    """`1 entry is left out: pipes, sockets and devices are not read (first a.png)`."""
    some = f"{count(len(pipes), 'file')} {are(len(pipes))}"
    return f"{some} left out: pipes, sockets and devices are not read (first {pipes[0]})"


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
    suffixes, pipes = IMAGE_SUFFIXES if what == "image" else MASK_SUFFIXES, list[str]()
    read, left = divide(_plain(folder, walk(folder, pipes)), suffixes)
    for name in read:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder / name} has a name that {_unencoded(name)}") from None
        image_id = unicodedata.normalize("NFC", os.path.splitext(name)[0])
        files.setdefault(image_id, []).append(name)
    twins = {image_id: tuple(names) for image_id, names in files.items() if len(names) > 1}
    firsts = {image_id: names[0] for image_id, names in sorted(files.items())}
    told = tuple(sorted(chain(*divide(pipes, suffixes))))
    return Listing(folder, what, firsts, tuple(left), told, twins)


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


def walk(folder: Path, pipes: list[str]) -> Iterator[str]:
    """Paths of all files below a folder; a link to a folder is followed, but not in a circle.

    A link that leads nowhere is among them.

    Args:
        folder: The folder.
        pipes: Takes what is no file: pipes, sockets and devices, which can be waited for forever.

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
            elif not os.path.isdir(path):
                pipes.append(below + name)
