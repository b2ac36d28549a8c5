"""Reading one image, mask or saliency file: what PIL opens becomes a plain array, the rest one error."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

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
    struct.error,
    Image.DecompressionBombError,
)
GREY_16 = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
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


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as RGB: the array of what `open_image` gives, uint8 H x W x 3.

    Raises:
        UserError: A file that is missing or cannot be decoded.
    """
    return np.array(open_image(path))


def open_image(path: Path) -> Image.Image:
    """An image as RGB, decoded, for those who resize it with PIL.

    The EXIF orientation is applied; grey, palette and CMYK become RGB, alpha is dropped, of 16-bit values
    the upper eight bits are kept; of 32-bit ones that stay below 256 all.

    Raises:
        UserError: A file that is missing or cannot be decoded.
    """
    with _opened(path, "image") as image:
        return as_upright_rgb(image)  # an RGB image is handed on as it is, and the file closes here


def as_upright_rgb(image: Image.Image) -> Image.Image:
    """What `open_image` makes of an opened file; also of a picture that never was one."""
    turn = UPRIGHT.get(_orientation(image))
    if image.mode in GREY_16:
        # PIL's own conversion would clip at 255 instead of scaling
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max(initial=0) > 255:  # 32 bits may hold values of 8
            values >>= 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    image.load()
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def read_mask(path: Path, ignore_id: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask: raw ids.

    Args:
        path: Palette or grey image, 8 or 16 bit; the palette index counts, not its colour.
        ignore_id: 255 for 8-bit data sets, 65535 for 16-bit ones; decides the type of the result.

    Returns:
        H x W, uint8 or uint16.

    Raises:
        UserError: A file that is missing, cannot be decoded or holds colours instead of class numbers.
    """
    plain = _plain_png(path)
    if plain is not None:
        return plain if ignore_id < 256 else plain.astype(np.uint16)
    with _opened(path, "mask") as image:
        if image.mode not in {"1", "L", "P"} | GREY_16:
            raise UserError(
                f"mask {path} is an image of mode {image.mode}; "
                f"expected a palette or grey PNG whose pixel values are class numbers"
            )
        mask = np.array(image)
    if image.mode in GREY_16:
        highest = int(mask.max(initial=0))
        if int(mask.min(initial=0)) < 0 or highest > ignore_id:
            raise UserError(
                f"mask {path} has value {highest}; values above {ignore_id} are no class of the data set"
            )
    if ignore_id < 256:
        return mask.astype(np.uint8, copy=False)
    return mask.astype(np.uint16, copy=False)


def read_saliency(path: Path) -> NDArray[np.uint8]:
    """A saliency map.

    Returns:
        uint8 H x W; 1 where any channel is not 0.

    Raises:
        UserError: A file that is missing or cannot be decoded.
    """
    plain = _plain_png(path)
    if plain is not None:
        return _nonzero(plain)
    with _opened(path, "saliency map") as image:
        opaque = {"LA": "L", "RGBA": "RGB", "PA": "P"}.get(image.mode)  # alpha says nothing of saliency
        values = np.asarray(image.convert(opaque) if opaque else image)
    if values.ndim == 3:
        values = values.max(axis=2)
    # of bits the bytes: comparing them is many times faster
    return _nonzero(values.view(np.uint8) if values.dtype == np.bool_ else values)


def _nonzero(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    shown: NDArray[np.bool_] = np.not_equal(values, 0)
    return shown.view(np.uint8)


_LARGE = 1 << 26  # pixels; beyond that PIL's own checks speak
_PNG = b"\x89PNG\r\n\x1a\n"


def _plain_png(path: Path) -> NDArray[np.uint8] | None:
    """Pixel values of a PNG of the simplest kind, which nearly all masks are: H x W.

    Palette or grey, one or eight bits, not interlaced, no row predicted from another. That is one call of
    zlib, where PIL's decoder goes through Python several times.

    Returns:
        None for anything else, and for a file that is missing or broken: PIL reads it, or says what is wrong.
    """
    try:
        data = path.read_bytes()
        if data[:8] != _PNG or data[12:16] != b"IHDR":
            return None
        width, height, depth, kind, _, _, interlaced, check = struct.unpack(">IIBBBBBI", data[16:33])
        if check != zlib.crc32(data[12:29]) or interlaced or width * height > _LARGE:
            return None
        if (depth, kind) not in ((8, 0), (8, 3), (1, 0)):
            return None
        parts, at, name = [], 8, b""
        while name != b"IEND":
            length, name = struct.unpack(">I4s", data[at : at + 8])
            if name == b"IDAT":
                parts.append(data[at + 8 : at + 8 + length])
            elif name == b"acTL":  # an animation
                return None
            at += 12 + length
        row = 1 + (width * depth + 7) // 8
        rows = zlib.decompress(b"".join(parts), bufsize=height * row)
    except (OSError, struct.error, zlib.error):
        return None
    if not height or len(rows) != height * row:
        return None
    lines = np.frombuffer(rows, np.uint8).reshape(height, row)
    if lines[:, 0].any():  # how each row was predicted; 0 = it was not
        return None
    return lines[:, 1:].copy() if depth == 8 else np.unpackbits(lines[:, 1:], axis=1, count=width)


def upright_size(path: Path, what: str = "image", decode: bool = False) -> tuple[int, int]:
    """Height and width after the EXIF orientation.

    Args:
        decode: Also decode the file, to find one that is cut off (a JPEG at an eighth of its size, which
            reads all of it); otherwise the header alone is read.

    Raises:
        UserError: A file that is missing, has no header that PIL knows, or cannot be decoded.
    """
    with _opened(path, what) as image:
        height, width = image.height, image.width
        turned = _orientation(image) >= 5
        if decode:
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
        return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; a broken EXIF block is none."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in UPRIGHT else 1


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        # a large image is no mistake; PIL's own error at twice that size stays
        large = Image.DecompressionBombWarning
        # a name, for of a path an older PIL follows the links itself
        name = os.fspath(path)
        with warnings.catch_warnings(action="ignore", category=large), Image.open(name) as image:
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{what} {path} is missing") from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} {path} cannot be decoded ({reason}); replace or remove the file") from None
