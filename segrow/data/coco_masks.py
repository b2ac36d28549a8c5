"""Masks of a COCO file's images, drawn into a folder, and checksums by which they are used again."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from ..errors import UserError
from ..processes import cores
from ..resources import machine_refuses
from ..sealed import read_sealed_json, write_sealed_json
from ..shapes import Shape
from ..terminal import Terminal
from ..wording import count, verb
from .base import Split
from .coco_file import CocoFile, Entry
from .coco_shapes import draw_shapes
from .files import opened, orientation, upright_size
from .unfit import unfit_images

_NOTES = "notes.json"
_SHAPE: Shape = {"notes": [str], "sums": {str: int}}


@dataclass
class Part:
    """A split: its file, its images by id, and the folder of its masks once they are drawn."""

    split: Split
    file: CocoFile
    images: dict[str, Path]
    folder: Path | None = field(default=None)


def draw_masks(folder: Path, part: Part, class_names: Sequence[str], ignore_id: int) -> None:
    """Draw the mask of every image of a split, ID.png, and write notes and checksums beside them.

    Raises:
        Unfit: Images of another size than the file says, or outlines that cannot be drawn.
    """
    masks, console = pycocotools(), Terminal(stderr=True)
    pairs = list(zip(part.file.entries, part.images.items(), strict=True))
    values = {name: k for k, name in enumerate(class_names) if name not in part.file.ignored}
    called = {k: f'"{name}"' for name, k in values.items()}
    empty, unfit = 0, {}
    covered: list[tuple[int, int, str]] = []
    for entry, (image_id, path) in track(
        pairs, "drawing masks", console=console, disable=not console.is_terminal
    ):
        try:
            size = _size(path, entry, part)
            shapes = [
                (outline, values.get(name, ignore_id), where) for outline, name, where in entry.outlines
            ]
            dtype = np.uint8 if ignore_id < 256 else np.uint16
            drawn = draw_shapes(shapes, size, masks, dtype)
        except UserError as error:
            unfit[f"{part.split}/{image_id}"] = str(error)
            continue
        empty += drawn.empty
        covered += drawn.covered
        (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.mask).save(folder / f"{image_id}.png")
    if unfit:
        raise unfit_images(unfit)
    notes = _covered_notes(part, covered, {**called, ignore_id: "what is ignored"})
    if empty:
        said = f"annotations without a pixel of their image, left out: {empty}"
        notes.append(f"{part.file.path.name}: {said}")
    about = {"notes": notes, "sums": _sums(folder, part.images)}
    write_sealed_json(folder / _NOTES, about)


def _covered_notes(
    part: Part, covered: Sequence[tuple[int, int, str]], called: Mapping[int, str]
) -> list[str]:
    """A sentence on objects that no pixel shows, by their class and the one on top."""
    if not covered:
        return []
    pairs = Counter((called[value], called[top]) for value, top, _ in covered)
    some = ", ".join(f"{n} of {name} under {top}" for (name, top), n in pairs.most_common(5))
    more = ", …" if len(pairs) > 5 else ""
    n = len(covered)
    return [
        f"{part.file.path.name}: {count(n, 'object')} {verb(n, 'lie')} under others of another class and "
        f"{verb(n, 'leave')} no pixel: {some}{more} (first {covered[0][2]}); the "
        "smaller one is on top, of equal ones the later in the file"
    ]


def _size(path: Path, entry: Entry, part: Part) -> tuple[int, int]:
    """Height and width of an image, which are those that the file says."""
    size = upright_size(path)
    told = tuple(mine if side is None else side for side, mine in zip(entry.size, size, strict=True))
    if size != told:
        turned = _exchanged(path) if told == size[::-1] else ""
        raise UserError(
            f"image {path} is {size[1]}x{size[0]} pixels (width x height), in {part.file.path} "
            f"{told[1]!r}x{told[0]!r}; they must be equal{turned}"
        )
    return size


def _exchanged(path: Path) -> str:
    """Why a file may say an image's height for its width."""
    with opened(path, "image") as image:
        if orientation(image) >= 5:
            return "; it was annotated unturned, without its EXIF orientation"
    return "; the file has width and height exchanged: correct them there"


def read_notes(folder: Path) -> tuple[str, ...]:
    """What `draw_masks` left out or decided, a sentence each."""
    return tuple(read_sealed_json(folder / _NOTES, "notes", _SHAPE)["notes"])


def _sums(folder: Path, images: Iterable[str]) -> dict[str, int]:
    """CRC-32 of the mask of each image."""
    paths = {image_id: folder / f"{image_id}.png" for image_id in images}
    with ThreadPoolExecutor(cores()) as pool:
        return dict(
            zip(paths, pool.map(lambda path: zlib.crc32(path.read_bytes()), paths.values()), strict=True)
        )


def is_whole(folder: Path) -> bool:
    """Whether the masks in a folder are those that were drawn."""
    try:
        sums = read_sealed_json(folder / _NOTES, "notes", _SHAPE)["sums"]
        return bool(_sums(folder, sums) == sums)
    except (UserError, OSError) as error:
        if machine_refuses(error):
            raise
        return False


def pycocotools() -> Any:
    """The module pycocotools.mask.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pycocotools.mask
    except ImportError:
        raise UserError('COCO files need pycocotools; run: pip install "segrow[coco]"') from None
    return pycocotools.mask
