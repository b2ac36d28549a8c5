"""Where the images of a COCO file are: as every tool lays them out, whatever machine wrote their names."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from urllib.parse import unquote

from ..errors import UserError
from ..wording import are, count
from .files import IMAGE_SUFFIXES
from .listing import refuse_backslashes

SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_TAILS = 8  # so many last parts of a path are looked for
_MOST = 500_000  # names that are looked through
_HASH = re.compile(r"[0-9a-f]{8}[-_]")  # Label Studio puts it before the name of an upload


@dataclass
class Finder:
    """Finds images by the names that a COCO file gives them.

    Attributes:
        path: The file.
        moved: How many images are elsewhere than the file says, and the first of their names.
    """

    path: Path
    moved: list[str] = field(default_factory=list)
    _listings: dict[Path, dict[str, Path]] = field(default_factory=dict)
    _below: dict[str, list[Path]] | None = None
    _stems: dict[str, Path] | None = None

    def folders(self) -> list[Path]:
        """Where images are looked for: beside the file, in images/ there, and so for the folder above.

        In each also in the folder that the file is called after: train2017/ for instances_train2017.json.
        """
        here, stem = self.path.parent, self.path.stem
        places = [here, here / "images", here.parent / "images", here.parent]
        names = [stem, stem.partition("_")[2]]
        if split_of(self.path) in ("train", None):
            names.append("train")
        named = [place / name for place in places for name in names if name]
        return list(dict.fromkeys([*places[:2], *named, *places[2:]]))

    def find(self, name: str) -> Path | None:
        """The file of an image; None when it is nowhere."""
        for said, parts in _readings(name):
            for begin in dict.fromkeys((0, *range(max(0, len(parts) - _TAILS), len(parts)))):
                tail = "/".join(parts[begin:])
                for folder in self.folders():
                    if found := self._there(folder, tail):
                        if begin or said:
                            self.moved.append(name)
                        return found
        for _, parts in _readings(name):
            places = self._everywhere().get(_folded(parts[-1]), [])
            if len(places) == 1:
                self.moved.append(name)
                return places[0]
        return None

    def _everywhere(self) -> dict[str, list[Path]]:
        """All files below the folder by their folded names, where a tool has put images by folders."""
        if self._below is None:
            here = self.path.parent
            self._below = {}
            for place, _, names in os.walk(here.parent if here.name == "annotations" else here):
                for name in names[:_MOST]:
                    self._below.setdefault(_folded(name), []).append(Path(place) / name)
                if len(self._below) > _MOST:
                    break
        return self._below

    def otherwise(self, name: str) -> str:
        """`; a.jpg is there …` where an image has the name but for its suffix; else nothing."""
        if self._stems is None:
            files = [file for some in self._everywhere().values() for file in some]
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            self._stems = {_folded(file.stem): file for file in images}
        base = (_parts(name) or [""])[-1]
        keys = (_folded(base), _folded(os.path.splitext(base)[0]))
        there = next((self._stems[key] for key in keys if key in self._stems), None)
        return "" if there is None else f"; {there} is there: correct its suffix in file_name"

    def _there(self, folder: Path, tail: str) -> Path | None:
        """A file below a folder; case and Unicode form may differ where just one file fits."""
        place = folder / tail
        try:
            if place.is_file():
                return place
        except OSError:  # a name that is too long
            return None
        listing = self._listings.get(place.parent)
        if listing is None:
            listing = self._listings[place.parent] = _listing(place.parent)
        return listing.get(_folded(place.name))


def _listing(folder: Path) -> dict[str, Path]:
    """Files of a folder by their folded names; without those that two have."""
    found: dict[str, Path] = {}
    twice: set[str] = set()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return {}
    for entry in entries:
        name = _folded(entry.name)
        if name in found:
            twice.add(name)
        found[name] = Path(entry.path)
    return {name: path for name, path in found.items() if name not in twice and path.is_file()}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _readings(name: str) -> Iterator[tuple[bool, list[str]]]:
    """Parts of a path as a name may be meant, and whether that is not what it says by itself.

    Backslashes part folders on Windows; Label Studio writes paths as parts of an address, and a hash before
    the name of an upload.
    """
    path = name.rpartition("?d=")[2]
    if "://" in path:
        path = re.split("[?#]", path, maxsplit=1)[0]  # what an address says beside the path, such as a key
    for said, text in ((False, name), (True, unquote(path))):
        if said and text == name:
            continue
        parts = _parts(text)
        if not parts:
            continue
        yield said, parts
        if plain := _HASH.sub("", parts[-1], count=1) if _HASH.match(parts[-1]) else "":
            yield True, [*parts[:-1], plain]


def _parts(name: str) -> list[str]:
    """Folders and name; none leads out of the folder that it stands in."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def split_of(path: Path) -> str | None:
    """Which split a COCO file is of by its name or its folder's: train, val, test; None when neither says.

    instances_train2017.json, train.json, valid/_annotations.coco.json
    """
    for text in (path.stem, path.parent.name):
        words = re.split(r"[^a-z]+", text.lower())
        for split, spellings in SPLITS.items():
            if any(word in spellings for word in words):
                return split
    return None


@dataclass(frozen=True)
class Located:
    """An image that a COCO file lists.

    Attributes:
        id: The file's name without suffix; where two have the same, the name with its folders.
        path: Its file; None when it is missing.
        wrong: Why it cannot be used; "" where it can.
    """

    id: str
    path: Path | None
    wrong: str


def find_images(path: Path, names: Sequence[str]) -> tuple[list[Located], list[str]]:
    """Where each image is, in the order of the names, and notes. Names for one image have one id.

    Raises:
        UserError: No way is known to tell the images apart, or a file whose name has
            a backslash may be one that is missing.
    """
    finder = Finder(path)
    files = {name: finder.find(name) for name in names}
    if None in files.values():
        for folder in finder.folders():
            refuse_backslashes(folder)
    called: dict[str, list[str]] = {}  # the names of an image, by its file or where it should be
    places = [str(files[name] or "/".join(_parts(name))) for name in names]
    for name, place in zip(names, places, strict=True):
        called.setdefault(place, []).append(name)
    ids = dict(zip(called, _ids(path, [(same[0], files[same[0]]) for same in called.values()]), strict=True))
    wrong = {place: _wrong(finder, files[same[0]], same) for place, same in called.items()}
    notes = []
    if moved := finder.moved:
        notes.append(
            f"{path.name}: {len(moved)} of {count(len(names), 'image')} {are(len(moved))} not where it says "
            f"(first {moved[0]}: it is {files[moved[0]]})"
        )
    found = (Located(ids[p], files[name], wrong[p]) for name, p in zip(names, places, strict=True))
    return list(found), notes


def _ids(path: Path, images: Sequence[tuple[str, Path | None]]) -> Sequence[str]:
    """An id for each of different images, as short as may be."""
    parts = [_parts(name) or ["no name"] for name, _ in images]
    stems = [(file or PurePath(p[-1])).stem for (_, file), p in zip(images, parts, strict=True)]
    shorter = ["/".join(p).rpartition(".")[0] or p[-1] for p in parts]
    choices = (stems, shorter, ["/".join(p) for p in parts])
    ids = next((ids for ids in choices if len(set(ids)) == len(ids)), None)
    if ids is None:
        raise UserError(f"{path} lists images of the same name; every image needs its own")
    return ids


def _wrong(finder: Finder, file: Path | None, names: Sequence[str]) -> str:
    """Why an image of these names cannot be used; nothing where it can."""
    path, name = finder.path, names[0]
    if file is None:
        expected = f"expected it as {path.parent / name} or in {path.parent / 'images'}"
        return f"{path} lists image {name}, which is missing; {expected}{finder.otherwise(name)}"
    if len(names) == 1:
        return ""
    if names[1] == name:
        return f"{path} lists image {name} {len(names)} times; every image must stand there once"
    return f"{path} lists {name} and {names[1]}, which are both {file}; they must differ"


def unlisted(files: Iterable[Path]) -> list[Path]:
    """Images in the folders of the listed ones that are not among them."""
    files = list(files)
    listed = {os.path.realpath(file) for file in files}
    found = []
    for folder in dict.fromkeys(file.parent for file in files):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            if image and not entry.name.startswith(".") and os.path.realpath(entry.path) not in listed:
                found.append(Path(entry.path))
    return found
