"""What the files of one image hold, and all that is wrong with them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..wording import count
from .files import UNTURNED, decode_image, opened, raw_mode, read_saliency, turned_as
from .masks import Values, decode_mask, stretched
from .palettes import Entries
from .taken import Taken

Kind = Literal["pair", "image", "mask", "size", "value", "copy", "saliency"]
Salient = Literal["there", "missing", "empty", "broken"]
Counts = NDArray[np.int64]


class Files(NamedTuple):
    """Paths of one image."""

    image: str
    mask: str
    saliency: str


class Found(NamedTuple):
    """What the files of one image hold.

    Attributes:
        problems: Kind and sentence of each.
        form: How the mask stores its numbers, such as "PNG P"; "" when it cannot be read.
        shown: Raw ids of classes, in order.
        pixels: Of each of them.
        outside: Pixels of each value that is no class.
        ignored: Pixels of the ignored value.
        content: Hash of the decoded image; b"" when it cannot be read.
        taken: How the files were taken.
        entries: What the mask uses of its palette, where the index is the value.
        saliency: Of the saliency map.
    """

    problems: tuple[tuple[Kind, str], ...]
    form: str
    shown: Counts
    pixels: Counts
    outside: dict[int, int]
    ignored: int
    content: bytes
    taken: Taken
    entries: Entries
    saliency: Salient

    @property
    def unusable(self) -> bool:
        """Whether training could not take the image and its mask."""
        return any(kind != "saliency" for kind, _ in self.problems)


def examine(files: Files, values: Values) -> Found:
    """Reads the files of one image; never raises for what is in them.

    Args:
        files: Their paths.
        values: The legal ones of masks.
    """
    problems: list[tuple[Kind, str]] = []
    size, content, taken = None, b"", Taken.PLAIN
    try:
        picture, taken = decode_image(Path(files.image))
        size = (picture.height, picture.width)
        content = hashlib.blake2b(f"{size}".encode() + picture.tobytes(), digest_size=16).digest()
    except (UserError, MemoryError) as error:
        problems.append(("image", _reason(error, "image", files.image)))
    shape, form = None, ""
    entries: Entries = ()
    counts = np.zeros(values.ignore_id + 1, np.int64)
    try:
        mask, of_mask, entries = decode_mask(Path(files.mask), values)
        shape, form, taken = mask.shape, _form(Path(files.mask)), taken | of_mask
        counts = np.bincount(mask.ravel(), minlength=values.ignore_id + 1)
    except (UserError, MemoryError) as error:
        problems.append(("mask", _reason(error, "mask", files.mask)))
    turned = turned_as(Path(files.image), shape) if size else ""
    if turned == "unsure":
        taken |= Taken.TURNED
    if size and shape and size != shape:
        problems.append(
            (
                "size",
                f"image {files.image} is {size[1]}x{size[0]} pixels (width x height, upright), its mask "
                f"{shape[1]}x{shape[0]}{UNTURNED if turned == 'unturned' else ''}",
            )
        )
    outside = {
        int(v): int(counts[v]) for v in np.flatnonzero(counts[values.n_raw : values.ignore_id]) + values.n_raw
    }
    if outside:
        listed = ", ".join(f"{v} ({count(n, 'pixel')})" for v, n in list(outside.items())[:5])
        hint = stretched(np.flatnonzero(counts).tolist(), values.n_raw)
        problems.append(("value", f"mask {files.mask} has values that are not a class: {listed}{hint}"))
    saliency, wrong = _saliency(Path(files.saliency), size or shape)
    shown = np.flatnonzero(counts[: values.n_raw])
    if counts[values.ignore_id]:
        taken |= Taken.IGNORED if (shown > 0).any() else Taken.IGNORED | Taken.ONLY_IGNORED
    return Found(
        (*problems, *wrong),
        form,
        shown,
        counts[shown],
        outside,
        int(counts[values.ignore_id]),
        content,
        taken,
        entries,
        saliency,
    )


def _reason(error: UserError | MemoryError, what: str, path: str) -> str:
    return str(error) if isinstance(error, UserError) else f"{what} {path} does not fit into memory"


def _form(path: Path) -> str:
    """Format, mode and, where the file holds its numbers otherwise, how: "PNG P", "TIFF I;16 (I;16B)"."""
    with opened(path, "mask") as image:
        raw = raw_mode(image)
        more = f" ({raw})" if raw not in ("", image.mode) else ""
        return f"{image.format} {image.mode}{more}"


def _saliency(path: Path, size: tuple[int, ...] | None) -> tuple[Salient, list[tuple[Kind, str]]]:
    if not path.exists():
        return "missing", []
    try:
        salient = read_saliency(path)
    except (UserError, MemoryError) as error:
        return "broken", [("saliency", _reason(error, "saliency map", str(path)))]
    if size is not None and salient.shape != size:
        text = (
            f"saliency map {path} is {salient.shape[1]}x{salient.shape[0]} pixels (width x height), its "
            f"image {size[1]}x{size[0]}"
        )
        return "broken", [("saliency", text)]
    return ("there" if salient.any() else "empty"), []


def examine_chunk(files: Sequence[Files], values: Values) -> list[Found]:
    """`examine` for several."""
    return [examine(each, values) for each in files]
