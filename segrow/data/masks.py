"""Reading one mask: a file's numbers become class numbers, or one error says why they do not.

The table of what each format, mode and depth becomes is tests/test_mask_forms.py.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .colours import ColourTable
from .files import GREY_16, WIDE_COLOURS, Refused, grey_palette, has_frames, opened, orientation, raw_mode
from .grey_colours import by_colour
from .palettes import INDEX_MEANT, WAYS_OUT, Entries, colour_codes, entries, index_chosen, rgb, used_indices
from .pgm import leave_unscaled
from .taken import Taken
from .tiff import bands, is_signed, nodata, white_is_zero

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".pgm", ".pnm"})
"""Formats that keep numbers as they are."""
LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}
_TRANSPARENT = (
    "has transparent pixels, which may be meant as ignored or as the value under them; remove the alpha "
    "channel"
)
_STEP = {"L;2": 85, "L;4": 17}  # PIL stretches grey of 2 and 4 bits to 0..255

Mask = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Values:
    """The mask values that are legal.

    Attributes:
        n_raw: Number of classes: values 0 to n_raw - 1.
        ignore_id: The value that is no class; 255 makes masks uint8, 65535 uint16.
        colours: Which colours stand for which values, where a file states it.
        ignored: Classes whose pixels count nowhere.
        drawn: Whether masks are drawn from outlines, so that nobody can write one otherwise.
    """

    n_raw: int
    ignore_id: int
    colours: ColourTable | None = None
    ignored: tuple[int, ...] = ()
    drawn: bool = False


def read_mask(path: Path, values: Values) -> Mask:
    """A mask: raw ids, H x W, uint8 or uint16. See `decode_mask`.

    Raises:
        UserError: A file that is missing, cannot be decoded, or does not say class numbers.
    """
    return decode_mask(path, values).mask


class Decoded(NamedTuple):
    """A mask, H x W, how it was taken, and what it uses of a palette whose index is the value."""

    mask: Mask
    taken: Taken
    entries: Entries = ()


def decode_mask(path: Path, values: Values) -> Decoded:
    """A mask and how it was taken.

    Grey counts as it is stored, whatever its depth; of a palette the index counts, unless the palette is of
    greys that are classes. Grey that was saved as RGB or with an opaque alpha channel is grey.

    Args:
        path: The file.
        values: The legal ones; a palette of greys is judged by them. They are not checked otherwise, but for
            being at most `ignore_id`.

    Raises:
        UserError: A file that is missing, cannot be decoded, or does not say class numbers.
    """
    numbers: NDArray[Any]
    palette: Entries = ()
    with opened(path, "mask") as image:
        stored = raw_mode(image)  # gone once PIL has read the pixels, which EXIF of a PNG makes it do
        _check_form(image, stored)
        leave_unscaled(image)
        counted = Taken.PLAIN
        coloured = False
        if (table := values.colours) is not None:
            coloured, counted = by_colour(image, table, values.n_raw, values.ignore_id, _STEP.get(stored, 1))
        if table is not None and coloured:
            numbers, taken = _of_colours(image, table)
        elif image.mode == "P":
            numbers, taken, palette = _of_palette(image, values)
        elif image.mode in ("LA", "RGB", "RGBA"):
            numbers, taken = _of_channels(image)
        elif image.mode == "F":
            numbers, taken = _whole(np.asarray(image)), Taken.FLOAT_MASK
        elif image.mode in {"1", "L"} | GREY_16:
            numbers, taken = np.array(image), Taken.PLAIN
            if stored in _STEP:
                numbers //= np.uint8(_STEP[stored])
            elif image.mode == "L" and is_signed(image):
                numbers = numbers.view(np.int8).astype(np.int16)
        else:
            raise Refused(_other_mode(image))
        taken |= counted
        if "transparency" in image.info and image.mode in ("1", "L", "P"):
            taken |= Taken.CLEAR_VALUE
        if (none := nodata(image)) is not None and none < values.n_raw and (numbers == none).any():
            taken |= Taken.NODATA
        _check_range(numbers, values)
    if values.ignored:
        numbers = np.where(np.isin(numbers, values.ignored), values.ignore_id, numbers)
    if values.ignore_id < 256:
        return Decoded(numbers.astype(np.uint8, copy=False), taken, palette)
    return Decoded(numbers.astype(np.uint16, copy=False), taken, palette)


def _check_form(image: Image.Image, stored: str) -> None:
    """Refuses what may have changed the numbers on their way, or has more than one reading."""
    packed = str(image.info.get("compression", "")) if image.format == "TIFF" else ""
    if image.format in LOSSY or packed in ("jpeg", "webp"):
        name = LOSSY.get(image.format or "", f"TIFF compressed as {packed}")
        raise Refused(f"is a {name}, which changes values; save masks as PNG from their source")
    if has_frames(image):
        raise Refused("holds several pictures (frames or pages); save one picture of class numbers as PNG")
    if orientation(image) != 1:
        raise Refused(
            "has an EXIF orientation, so its pixels may be meant turned or as they are; save it upright, "
            "without EXIF"
        )
    if image.mode not in GREY_16 and ";16" in stored:
        raise Refused(WIDE_COLOURS)
    if white_is_zero(image):
        raise Refused("stores white as 0 (TIFF WhiteIsZero); save it as PNG")
    if image.format == "PPM" and image.mode == "1":
        raise Refused("is a PBM, which writes black as 1, so a class may be black or white; save it as PNG")
    if bands(image) > len(image.getbands()):
        raise Refused(f"has {bands(image)} bands, of which one may hold the classes; save that one alone")


def _of_palette(image: Image.Image, values: Values) -> tuple[NDArray[np.uint8], Taken, Entries]:
    """The index of a palette image, or its grey where the palette is of greys that are classes.

    Tools that save grey as an indexed PNG put the greys into a palette in an order of their own. Others
    give the classes greys to look at, spread from 0 to 255.
    """
    index, used = np.array(image), used_indices(image)
    if index_chosen():
        return index, Taken.CHOSEN, ()
    if values.colours is not None and (moved := _moved(image, index, values.colours)) is not None:
        return moved, Taken.MOVED, ()
    codes = colour_codes(image)
    shown = entries(codes, used)
    greys = grey_palette(image)
    if greys is None:
        _check_background(codes, used, values.ignore_id)
        return index, Taken.PLAIN, shown
    if used[-1] >= len(greys) or (greys[used] == used).all():
        return index, Taken.PLAIN, shown
    tones = greys[used].astype(np.int64)
    if len(np.unique(tones)) == len(tones) and (_are_classes(tones, values) or _are_classes(greys, values)):
        return greys[index], Taken.GREYS, ()
    if (np.diff(tones) >= 0).all():
        return index, Taken.INDEX, shown
    pairs = ", ".join(f"{i} is {g}" for i, g in list(zip(used.tolist(), tones.tolist(), strict=True))[:4])
    raise Refused(
        f"has a palette of greys (index {pairs}), so a class may be the index or the grey; save it as a grey "
        f"PNG whose values are class numbers; {INDEX_MEANT}"
    )


def _check_background(codes: NDArray[np.int32], used: NDArray[np.int64], ignore_id: int) -> None:
    """Refuses a palette where black is a class and a colour is background."""
    black = np.flatnonzero(codes == 0)[:1]
    if len(black) and black[0] not in (0, ignore_id) and used[0] == 0 and black[0] in used:
        raise Refused(
            f"has a palette whose index 0 is {rgb(int(codes[0]))} and index {black[0]} is 0,0,0, so "
            f"background may be the index 0 or black; {WAYS_OUT}"
        )


def _moved(image: Image.Image, index: NDArray[np.uint8], table: ColourTable) -> NDArray[np.uint8] | None:
    """Values by the colours of a palette, where these are a table's but stand at other indices.

    Tools that save a palette anew keep the colours and give them indices of their own.
    """
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.unique(index)
    if used[-1] >= len(palette) or len(np.unique(palette, axis=0)) < 2:
        return None
    ids = dict(zip(table.colours, table.values, strict=True))
    meant = [ids.get((int(r), int(g), int(b)), -1) for r, g, b in palette[used]]
    if -1 in meant or len(set(meant)) < len(meant) or meant == used.tolist():
        return None
    lookup = np.zeros(256, np.uint8)
    lookup[used] = meant
    return lookup[index]


def _are_classes(greys: NDArray[np.generic], values: Values) -> bool:
    """All are legal, and one at least is a class."""
    numbers = np.asarray(greys, np.int64)
    a_class = numbers < values.n_raw
    return bool((a_class | (numbers == values.ignore_id)).all() and (a_class & (numbers > 0)).any())


def _of_colours(image: Image.Image, table: ColourTable) -> tuple[NDArray[np.uint16], Taken]:
    if image.mode in ("LA", "RGBA") and np.asarray(image)[..., -1].min(initial=255) < 255:
        raise Refused(_TRANSPARENT)
    return table.to_ids(np.asarray(image.convert("RGB"))), Taken.PLAIN


def _of_channels(image: Image.Image) -> tuple[NDArray[np.uint8], Taken]:
    """Grey that was saved with colours or alpha."""
    pixels = np.asarray(image)
    taken = Taken.PLAIN
    if image.mode in ("LA", "RGBA"):
        if pixels[..., -1].min(initial=255) < 255:
            raise Refused(_TRANSPARENT)
        pixels, taken = pixels[..., :-1], Taken.ALPHA
    if image.mode == "LA":
        return pixels[..., 0].copy(), taken
    if (pixels != pixels[..., :1]).any():
        raise Refused(_other_mode(image))
    return pixels[..., 0].copy(), taken | Taken.COLOURS


def _whole(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Floating-point class numbers."""
    if not np.isfinite(numbers).all() or (numbers != np.rint(numbers)).any() or np.abs(numbers).max() > 2**24:
        raise Refused("holds floating-point numbers that are not whole; save class numbers as a grey PNG")
    return numbers.astype(np.int64)


def _check_range(numbers: NDArray[np.generic], values: Values) -> None:
    if numbers.dtype.itemsize == 1 or not numbers.size:
        return
    there = np.asarray(numbers, np.int64)
    low, high = int(there.min()), int(there.max())
    if low < 0:
        raise Refused(f"has value {low}; values below 0 are not a class of the data set")
    if high > values.ignore_id:
        hint = stretched(np.unique(there).tolist(), values.n_raw)
        raise Refused(
            f"has value {high}; values above {values.ignore_id} are not a class of the data set{hint}"
        )


def stretched(shown: Sequence[int], n_raw: int) -> str:
    """A hint where the values of a mask are those of classes, stretched over 8 or 16 bits.

    Args:
        shown: The values, rising.
        n_raw: Number of classes.

    Returns:
        `; values that far apart (0, 127 …`, or nothing where they look otherwise.
    """
    above = [value for value in shown if value]
    for factor in (257, 256):  # of 8 bits that became 16
        small = [value // factor for value in above if value % factor == 0]
        classes = [value for value in small if value < n_raw]
        if classes and len(small) == len(above) and set(small) <= {*classes, 255}:
            return f"; they are {factor} times those of 8 bits: save the mask with 8 bits, without scaling"
    if not above or above[-1] < 85 or not any(_are_even(above, n_raw, unit) for unit in (1, 257)):
        return ""
    values = ", ".join(map(str, [0, *above][:4]))
    return (
        f"; values that far apart ({values}) are those of classes stretched for display: write 0, 1, 2 … "
        "instead, the numbers of the classes"
    )


def _are_even(above: Sequence[int], n_raw: int, unit: int) -> bool:
    """Whether values are multiples of one, rounded to multiples of `unit` before, and few enough."""
    step = min(b - a for a, b in itertools.pairwise([0, *above]))
    ranks = [round(value / step) for value in above]
    near = all(abs(value - rank * step) <= rank * unit for value, rank in zip(above, ranks, strict=True))
    return near and step >= 20 * unit and ranks[-1] < n_raw


def _other_mode(image: Image.Image) -> str:
    if image.mode not in ("RGB", "RGBA"):
        return (
            f"is an image of mode {image.mode}; expected one value per pixel (grey or indexed), the number "
            "of its class: convert it, or export the masks again as grey PNG"
        )
    return (
        f"is an image of mode {image.mode}; expected a palette or grey PNG whose pixel values are class "
        "numbers, or a labelmap.txt beside the masks' folder that says which colour is which class"
    )
