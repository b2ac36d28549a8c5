"""What the tags of a TIFF say and PIL does not: signs, bands that it drops, kinds that it does not read."""

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

BITS, PHOTOMETRIC, SAMPLES, FORMAT, NODATA = 258, 262, 277, 339, 42113  # numbers of tags
_KINDS = {1: "whole", 2: "signed whole", 3: "floating-point"}
_SIGNED = 2


def white_is_zero(image: Image.Image) -> bool:
    """Whether an opened file is a TIFF that stores white as 0, which PIL turns round, if it is grey."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC, 0) == 0


def is_signed(image: Image.Image) -> bool:
    """Whether an opened file holds whole numbers below 0 too; PIL reads those of 8 bits as if it did not."""
    return isinstance(image, TiffImageFile) and _SIGNED in image.tag_v2.get(FORMAT, ())


def bands(image: Image.Image) -> int:
    """How many numbers a file has per pixel: of a TIFF there may be more than PIL gives."""
    known = len(image.getbands())
    return max(known, int(image.tag_v2.get(SAMPLES, 1))) if isinstance(image, TiffImageFile) else known


def nodata(image: Image.Image) -> float | None:
    """The value that stands for no data, as GDAL and QGIS write it; None where none is said."""
    if not isinstance(image, TiffImageFile) or NODATA not in image.tag_v2:
        return None
    try:
        return float(str(image.tag_v2[NODATA]).strip("\0 "))
    except ValueError:
        return None


def unread(path: Path) -> str:
    """What a file is that PIL does not open, and what to do; "" where it is not a TIFF or is broken."""
    try:
        with open(path, "rb") as file:
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return ""
            tags: Any = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        bits, kinds = tags.get(BITS, (1,)), tags.get(FORMAT, (1,))
        kind = f"{bits[0]}-bit {_KINDS.get(kinds[0], 'other')} numbers"
        n = int(tags.get(SAMPLES, 1))
    except Exception:  # PIL raises any of a dozen kinds for a broken directory
        return ""
    order = ", big-endian" if header[:1] == b"M" else ""
    each = f"{n} {kind} per pixel" if n > 1 else kind
    return (
        f"is a TIFF of {each}{order}, a form that is not read; save it as grey or RGB with 8 or 16 bits per "
        "value (uint8, uint16), such as PNG"
    )
