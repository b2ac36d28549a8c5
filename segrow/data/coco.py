"""Annotations of COCO's kind (polygons and RLE) as masks; needs the extra [coco].

instances.json                            {"images": [...], "annotations": [...], "categories": [...]}
annotations/instances_train2017.json      or one file per split, as COCO, CVAT and Datumaro lay them out
train/_annotations.coco.json              or as Roboflow does; valid/ and test/ likewise
the images                                where `coco_images.py` finds them

Mask values are 1, 2, … in the order of the category ids; the categories' names are the classes. Where objects
overlap the smaller one is on top, of equal ones the later; what is covered wholly is told. Masks are drawn
once and kept in the user's cache.
"""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from ..atomic import appear, discard, new_folder
from ..class_lists import BACKGROUND, MOST_CLASSES, alike_notes, name_hint
from ..errors import UserError
from ..wording import are, count
from .base import SegDataset, Split
from .cache import cache_folder, say_damaged, say_unkept
from .coco_file import CocoFile, Entry, read_coco
from .coco_images import SPLITS, Located, find_images, split_of, unlisted
from .coco_masks import Part, draw_masks, is_whole, pycocotools, read_notes
from .folder import held_out
from .unfit import unfit_images

_DRAWN = "5"  # changes when masks are drawn otherwise
_ORDER: tuple[Split, ...] = ("train", "val")


@final
class CocoDataset(SegDataset):
    """The images of one COCO file, which are all training images, or of one per split.

    Args:
        root: The file, or the folder that holds it or them (`find_files`).
        ignore: Names of categories that count nowhere; None: those that are called so, such as "ignore".
        exclude: Images that are left out, each as SPLIT/ID or SPLIT/FILE_NAME.
        hold_out: Where there is one file alone, take a fifth of its images for validation.

    Raises:
        Unfit: Images that are missing, or have damaged annotations or those of unknown categories. Masks are
            drawn when they are first asked for; that raises it for an image of another size than the file
            says, and an outline that is too long.
        UserError: A file that is no such thing, no outline at all, or pycocotools not installed.
    """

    name = "coco"
    drawn = True

    def __init__(
        self,
        root: Path,
        ignore: Collection[str] | None = None,
        hold_out: bool = False,
        exclude: frozenset[str] = frozenset(),
    ) -> None:
        found, left = find_files(root)
        if not found:
            raise UserError(f"{root} holds no COCO file; expected a .json file, there or in annotations/")
        self.root = root.parent if root.is_file() else root
        files = {split: read_coco(path, ignore) for split, path in found.items()}
        self._check_ignored(root, files, ignore)
        classes = dict.fromkeys(name for file in files.values() for name in file.classes)
        if len(classes) > MOST_CLASSES:
            raise UserError(
                f"{root} has {len(classes)} categories, expected at most {MOST_CLASSES}; export fewer"
            )
        self.class_names = (BACKGROUND, *classes)
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        self._parts: dict[Split, Part] = {}
        self.notes = tuple(left)
        listed: list[Path] = []
        unfit: dict[str, str] = {}
        for split, file in files.items():
            images, notes = find_images(file.path, [entry.name for entry in file.entries])
            self._parts[split] = self._part(split, file, images, exclude, unfit)
            self.notes += (*file.notes, *notes)
            listed += [image.path for image in images if image.path]
        if unfit:
            raise unfit_images(unfit)
        self.notes += (*_spelled_apart(files.values()), *alike_notes(str(root), self.class_names[1:]))
        if alone := unlisted(listed):
            self.notes += (
                f"{count(len(alone), 'image')} {are(len(alone))} not listed in the COCO file and left out "
                f"(first {alone[0]})",
            )
        self._held = self._hold_out() if hold_out and "val" not in self._parts else frozenset()
        pycocotools()
        drawn = f"{ignore if ignore is None else sorted(ignore)}\n{sorted(self.excluded)}"
        self._key = f"{root.resolve()}\n{_DRAWN}\n{drawn}\n"

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted names of the image files without suffix."""
        if split in self._parts:
            return tuple(i for i in sorted(self._parts[split].images) if i not in self._held)
        return tuple(sorted(self._held))

    def image_path(self, split: Split, image_id: str) -> Path:
        """Where it was found."""
        return self._parts[self._place(split)].images[image_id]

    def mask_path(self, split: Split, image_id: str) -> Path:
        """In the cache; draws the masks of the split when they are not there."""
        part = self._parts[self._place(split)]
        if part.folder is None:
            part.folder = self._drawn(part)
            self.notes += read_notes(part.folder)
        return part.folder / f"{image_id}.png"

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency/ID.png in the folder."""
        return self.root / "saliency" / f"{image_id}.png"

    def _part(
        self,
        split: Split,
        file: CocoFile,
        images: Sequence[Located],
        exclude: frozenset[str],
        unfit: dict[str, str],
    ) -> Part:
        """A split without the images that are left out, by their ids or names; fills `unfit`."""
        kept: dict[str, tuple[Entry, Path]] = {}
        for entry, image in zip(file.entries, images, strict=True):
            asked = {f"{split}/{image.id}", f"{split}/{entry.name}"} & exclude
            self.excluded += tuple(sorted(asked.difference(self.excluded)))
            if asked:
                continue
            if image.path is None or image.wrong or entry.wrong:
                unfit.setdefault(f"{split}/{image.id}", entry.wrong or image.wrong)
            else:
                kept[image.id] = entry, image.path
        entries = tuple(entry for entry, _ in kept.values())
        return Part(split, replace(file, entries=entries), {i: path for i, (_, path) in kept.items()})

    def _place(self, split: Split) -> Split:
        """Where the images of a split stand: those that are held out are in the training file."""
        return split if split in self._parts else "train"

    def _hold_out(self) -> frozenset[str]:
        """A fifth of the training images."""
        images = self._parts["train"].images
        if len(images) < 2:
            return frozenset()
        held = held_out(tuple(images))
        self.notes += (
            f"{self.root} has no COCO file of validation images, so {len(held)} of {len(images)} images "
            f"{are(len(held))} held out, chosen by their names (segrow eval --split all takes all)",
        )
        return held

    def _check_ignored(
        self, root: Path, files: dict[Split, CocoFile], ignore: Collection[str] | None
    ) -> None:
        there = {name for file in files.values() for name in (*file.classes, *file.ignored)}
        if unknown := [name for name in ignore or () if name not in there]:
            listed = ", ".join(sorted(there))
            hint = name_hint(unknown[0], sorted(there))
            raise UserError(
                f'{root} has no category "{unknown[0]}" to ignore; its categories are {listed}.{hint}'
            )

    def _drawn(self, part: Part) -> Path:
        """The folder of a split's masks, which appears when it is complete."""
        with open(part.file.path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        names = "\n".join(self.class_names)
        key = hashlib.sha256(f"{self._key}{content}\n{names}".encode()).hexdigest()[:16]
        place = cache_folder() / "coco" / key
        if place.is_dir():
            if is_whole(place):
                return place
            say_damaged("the folder of drawn masks", place)
        try:
            if place.is_dir():
                discard(place)
            with new_folder(place) as temporary:
                draw_masks(temporary, part, self.class_names, self.ignore_id)
                try:
                    appear(temporary, place)
                except OSError:
                    if not place.is_dir():  # else another process was faster
                        raise
            return place
        except OSError as error:
            return self._drawn_elsewhere(part, place.parent, error)

    def _drawn_elsewhere(self, part: Part, cache: Path, error: OSError) -> Path:
        """Where the cache cannot be written: a folder that is gone when the process ends."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="segrow-coco-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            draw_masks(folder, part, self.class_names, self.ignore_id)
        except OSError as second:
            raise UserError(
                f"masks of {part.file.path} can be drawn neither in {cache} ({error.strerror}) nor in "
                f"{tempfile.gettempdir()} ({second.strerror}); set SEGROW_CACHE to a folder with room"
            ) from None
        say_unkept("the folder of drawn masks", cache, error)
        return folder


def _spelled_apart(files: Iterable[CocoFile]) -> Iterator[str]:
    """Notes on names that two files write with other characters, though they are one class."""
    first: dict[str, tuple[CocoFile, str]] = {}
    for file in files:
        for name, written in file.written.items():
            other, before = first.setdefault(name, (file, written))
            if before != written:
                yield (
                    f'"{ascii(before)[1:-1]}" of {other.path.name} and "{ascii(written)[1:-1]}" of '
                    f"{file.path.name} are one class: they differ in how characters are written, or around "
                    "the name"
                )


def find_files(root: Path) -> tuple[dict[Split, Path], list[str]]:
    """The COCO file of each split in a folder, and what is left out there; nothing when there is none.

    They are in the folder itself, in annotations/, or in a folder per split. A file alone, or `root` itself
    when it is one, is of training images.

    Raises:
        UserError: More than one of a split.
    """
    if root.is_file():
        return ({"train": root} if root.suffix.lower() == ".json" else {}), []
    folders = [name for spellings in SPLITS.values() for name in spellings]
    groups: tuple[Sequence[Path], ...] = ([root], [root / "annotations"], [root / name for name in folders])
    found: list[Path] = []
    for group in groups:
        there = (file for folder in group if folder.is_dir() for file in folder.iterdir())
        found = sorted(file for file in there if file.suffix.lower() == ".json")
        if found:
            break
    if len(found) <= 1:
        return ({"train": found[0]} if found else {}), []
    instances = [file for file in found if file.name.startswith("instances")] or found
    left = [file for file in found if file not in instances]
    by_split: dict[str, list[Path]] = {}
    for file in instances:
        by_split.setdefault(split_of(file) or "train", []).append(file)
    for split, files in by_split.items():
        if len(files) > 1:
            shown = ", ".join(file.name for file in files[:4]) + (", …" if len(files) > 4 else "")
            raise UserError(
                f"{files[0].parent} holds {len(files)} .json files of {split} images ({shown}); give one of "
                f"them itself, such as {files[0]}"
            )
    left += by_split.get("test", [])
    names = ", ".join(str(file.relative_to(root)) for file in left)
    notes = [f"{root}: {names} {are(len(left))} not read"] if left else []
    return {split: by_split[split][0] for split in _ORDER if split in by_split}, notes
