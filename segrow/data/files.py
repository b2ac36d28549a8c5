"""Reading one image or saliency file: what PIL opens becomes a plain array, the rest one error.

Masks are read by `masks.py`.
"""

import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..documents import open_file
from ..errors import UserError
from ..resources import machine_refuses, named
from .soft_maps import in_alpha, unclear
from .taken import Taken
from .tiff import bands, unread

# What PIL's decoders raise for broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    RuntimeError,  # of AVIF
    struct.error,
    Image.DecompressionBombError,
)
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA")
"""What is decoded, whatever a file is called. Not all that PIL knows: of an EPS it would run a program."""
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
})
# fmt: on
MAX_PIXELS = 1 << 28
"""Pixels of the largest image that is read: 16,384 x 16,384, or 0.8 GB as RGB."""
LIMIT = "SEGROW_MAX_PIXELS"
WHITE = "SEGROW_WHITE"
GREY_16 = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
WIDE_COLOURS = "has 16 bits per channel with colours or alpha; save it as plain grey"
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPENING = threading.Lock()
_HEIC = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file; run git lfs pull"),
    (b"<", "is a web page, XML or SVG, not an image; download or export the image itself"),
    (b"%PDF", "is a PDF; save its pages as PNG"),
    (b"8BPS", "is a Photoshop file; export it as PNG"),
)


class Refused(ValueError):
    """A file that PIL reads and segrow does not; says why and what to do, without the name of the file."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as RGB: the array of what `open_image` gives, uint8 H x W x 3.

    Raises:
        UserError: A file that is missing or cannot be decoded.
    """
    return np.array(open_image(path))


def open_image(path: Path) -> Image.Image:
    """An image as RGB, decoded, for those who resize it with PIL. See `decode_image`.

    Raises:
        UserError: A file that is missing or cannot be decoded.
    """
    return decode_image(path)[0]


def decode_image(path: Path) -> tuple[Image.Image, Taken]:
    """An image as RGB, upright, and how it was taken.

    The EXIF orientation is applied; grey, palette and CMYK become RGB, alpha is dropped; for more than eight
    bits see `_as_8_bits`.

    Raises:
        UserError: A file that is missing, cannot be decoded or holds numbers of unknown range.
    """
    with opened(path, "image") as image:
        first = Taken.FIRST if has_frames(image) else Taken.PLAIN
        rgb, taken = as_upright_rgb(image)  # an RGB image is handed on as it is, and the file closes here
        return rgb, taken | first


def as_upright_rgb(image: Image.Image) -> tuple[Image.Image, Taken]:
    """What `decode_image` makes of an opened file; also of a picture that never was one.

    Raises:
        Refused: Its numbers have no range that is known.
    """
    wide = ";16" in raw_mode(image) and image.mode not in GREY_16  # known before the pixels are read
    dropped = Taken.BANDS if bands(image) > len(image.getbands()) else Taken.PLAIN
    image.load()
    turn = UPRIGHT.get(orientation(image))  # afterwards, for PIL turns a TIFF while it reads it
    image, taken = _as_8_bits(image)
    taken |= dropped
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            taken |= Taken.SEE_THROUGH
    if image.mode != "RGB":
        image = image.convert("RGB")
    if wide and not taken & ~Taken.BANDS and np.asarray(image).max(initial=0) < 16:
        taken |= Taken.DARK
    return (image if turn is None else image.transpose(turn)), taken


def _as_8_bits(image: Image.Image) -> tuple[Image.Image, Taken]:
    """Grey of 16 bits, 32 bits and floating point as grey of 8 bits (PIL would clip); others as they are.

    Which value is white: the one that $SEGROW_WHITE says. Without it, of whole numbers 255, 4095 or 65535, of
    floating-point ones 1 or 255: the first that none is above.

    Raises:
        Refused: Negative numbers, or some above the last of these.
    """
    if image.mode not in GREY_16 | {"F"}:
        return image, Taken.PLAIN
    values = np.asarray(image)
    whole = image.mode != "F"
    taken = Taken.PLAIN
    if not np.isfinite(values).all():
        values, taken = np.where(np.isfinite(values), values, 0), Taken.NAN
    low, high = float(values.min()), float(values.max())
    said = white()
    readings = {said: Taken.STATED} if said else _WHOLE if whole else _FLOATING
    found = next((top for top in readings if high <= top), None)
    if low < 0 or found is None:
        expected = " or ".join(f"0 to {top}" for top in readings if said or top != 4095)
        by = f" ({WHITE})" if said else "" if low < 0 else f", or set {WHITE} to the number that is white"
        span = f"{low:.0f} to {high:.0f}" if whole else f"{low:g} to {high:g}"
        raise Refused(
            f"holds numbers from {span}; expected {expected}: scale them, or save it with 8 bits{by}"
        )
    if high:  # all black is black in every reading
        taken |= readings[found]
    if whole and found == 65535 != said and 0 < high <= 16383:
        taken |= Taken.DIM
    scaled = values.astype(np.int64) * 256 // (found + 1) if whole else np.rint(values * (255 / found))
    return Image.fromarray(scaled.astype(np.uint8)), taken


_WHOLE = {255: Taken.EIGHT, 4095: Taken.TWELVE, 65535: Taken.SIXTEEN}
_FLOATING = {1: Taken.UNIT, 255: Taken.FLOAT}


def examine_image(path: Path) -> tuple[tuple[int, int], Taken]:
    """Height and width of an image after the EXIF orientation, and how it is taken; reads all of the file.

    A JPEG is decoded at an eighth of its size, which finds one that is cut off too.

    Raises:
        UserError: As `decode_image`.
    """
    with opened(path, "image") as image:
        first = Taken.FIRST if has_frames(image) else Taken.PLAIN
        whole = image.width, image.height
        image.draft("RGB", (max(1, whole[0] // 8), max(1, whole[1] // 8)))
        small = image.size
        taken = as_upright_rgb(image)[1] | first
        turned = orientation(image)
        width, height = whole if image.size == small else image.size  # PIL turns a TIFF while it reads it
        if turned > 1 and (turned < 5 or width == height):
            taken |= Taken.TURNED
        return ((width, height) if turned >= 5 else (height, width)), taken


def read_saliency(path: Path) -> NDArray[np.uint8]:
    """A saliency map.

    Returns:
        uint8 H x W; 1 where any channel is not 0. Of a palette of greys the grey counts, else the index.

    Raises:
        UserError: A file that is missing, cannot be decoded or does not say which pixels are salient.
    """
    with opened(path, "saliency map") as image:
        if in_alpha(image):
            raise Refused("has one colour and differs in alpha alone; save the alpha as a grey PNG")
        opaque = {"LA": "L", "RGBA": "RGB", "PA": "P"}.get(image.mode)  # alpha says nothing of saliency
        values = np.asarray(image.convert(opaque) if opaque else image)
        if image.mode == "P" and (greys := grey_palette(image)) is not None and values.max() < len(greys):
            values = greys[values]
        if values.ndim == 3:
            values = values.max(axis=2)
        if values.dtype != np.bool_ and (said := unclear(values)):
            raise Refused(said)
    # of bits the bytes: comparing them is many times faster
    shown: NDArray[np.bool_] = np.not_equal(values.view(np.uint8) if values.dtype == np.bool_ else values, 0)
    return shown.view(np.uint8)


def grey_palette(image: Image.Image) -> NDArray[np.uint8] | None:
    """The grey of each index of a palette image, uint8 [n]; None when the palette has a colour."""
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    if not len(colours) or (colours != colours[:, :1]).any():
        return None
    return colours[:, 0]


def upright_size(path: Path, what: str = "image") -> tuple[int, int]:
    """Height and width after the EXIF orientation; of most formats the header alone is read.

    Raises:
        UserError: A file that is missing or has no header that PIL knows.
    """
    with opened(path, what) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        image.load()  # which turns it, and some versions of PIL know its size only then
    turned = orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def turned_as(path: Path, mask: tuple[int, ...] | None) -> str:
    """What an EXIF orientation does to an image and its mask: "" nothing, "unsure", or "unturned".

    Args:
        path: The image.
        mask: Height and width of the mask; None where it cannot be read.

    Returns:
        "unturned" where the mask has the size of the image without its orientation alone; "unsure" where the
        size does not tell.

    Raises:
        UserError: As `upright_size`.
    """
    with opened(path, "image") as image:
        if image.format == "TIFF" or (turn := orientation(image)) == 1:
            return ""
        sides = image.height, image.width
    if turn < 5 or sides[0] == sides[1]:
        return "unsure"
    return "unturned" if mask == sides else ""


UNTURNED = "; the mask was drawn without the image's EXIF orientation: turn it, or save the image upright"


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; a broken EXIF block is none."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in UPRIGHT else 1


def has_frames(image: Image.Image) -> bool:
    """Whether an opened file holds several pictures, of which the first is not known to be the one meant.

    Of a JPEG (MPO) it is: cameras put previews and depth maps behind it.
    """
    return image.format != "MPO" and int(getattr(image, "n_frames", 1)) > 1


def raw_mode(image: Image.Image) -> str:
    """How the file holds its values, before PIL makes 8 bits of them: "L;4", "RGB;16B" …; "" if not known."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def max_pixels() -> int:
    """Pixels of the largest image that is read: $SEGROW_MAX_PIXELS, or MAX_PIXELS.

    Raises:
        UserError: The variable is no number of pixels.
    """
    return _from_environment(LIMIT, f"a whole number of pixels such as {2 * MAX_PIXELS}") or MAX_PIXELS


def white() -> int:
    """The value that is white in grey images of more than 8 bits: $SEGROW_WHITE, or 0 where none is said.

    Raises:
        UserError: The variable is no such number.
    """
    return _from_environment(WHITE, "the value that is white, such as 255, 1023, 4095, 65535, or 1 of 0..1")


def _from_environment(name: str, expected: str) -> int:
    chosen = os.environ.get(name)
    if not chosen:
        return 0
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", chosen):
        raise UserError(f"{name} is {chosen[:40]}, expected {expected}")
    return int(chosen)


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """A file opened by PIL; what goes wrong with it, here or in the block, becomes one line.

    Args:
        path: The file.
        what: What to call it.

    Raises:
        UserError: The file is missing, broken, too large, or was refused.
        OSError: The machine lacks something, such as open files: the file may be good.
    """
    try:
        open_file(Path(path), what).close()  # a pipe would be waited for
        with _open(os.fspath(path)) as image:  # a name, for of a path an older PIL follows the links itself
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{what} {path} is missing") from None
    except Refused as error:
        raise UserError(f"{what} {path} {error}") from None
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{what} {path} is too large ({_reason(error)}) If the file can be trusted, set the environment "
            f"variable {LIMIT} to more than its number of pixels"
        ) from None
    except UnidentifiedImageError as error:
        said = (
            _another_kind(path)
            or unread(path)
            or f"cannot be decoded ({_reason(error)}); replace or remove the file"
        )
        raise UserError(f"{what} {path} {said}") from None
    except BROKEN as error:
        if isinstance(error, OSError) and machine_refuses(error):
            with named(Path(path)):
                raise
        raise UserError(
            f"{what} {path} cannot be decoded ({_reason(error)}); replace or remove the file"
        ) from None


def _another_kind(path: Path) -> str:
    """What a file is that is no image whatever it is called, and what to do; "" where that is not known."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return ""
    if not start:
        return "is empty; copy it again, or remove it"
    if start[4:8] == b"ftyp":
        if start[8:12] in _HEIC:
            return "is HEIC, as phones save it; convert it to JPEG or PNG"
        return "" if start[8:11] == b"avi" else "is a video; save its frames as images"
    if start[128:132] == b"DICM":
        return "is DICOM; convert it to PNG"
    return next((said for begin, said in _BEGINNINGS if start.lstrip().startswith(begin)), "")


def _open(name: str) -> Image.Image:
    limit = max_pixels()
    with _OPENING:  # the limit is PIL's global variable, which others may have set for themselves
        before = Image.MAX_IMAGE_PIXELS
        if before is not None:
            Image.MAX_IMAGE_PIXELS = limit // 2  # PIL warns there, and stops at twice that number
        try:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                return Image.open(name, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = before


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this PIL was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
