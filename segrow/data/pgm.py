"""The numbers of a PGM or PPM as the file holds them, whatever its largest value is said to be."""

from typing import Any

from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile

from .files import WIDE_COLOURS, Refused


def leave_unscaled(image: Image.Image) -> None:
    """Lets PIL read an opened file as it is; it would spread numbers of 0..maxval over 0..255 or 0..65535.

    Raises:
        Refused: Colours of more than 8 bits.
    """
    if not isinstance(image, PpmImageFile):
        return
    tiles: Any = image.tile
    decoder, box, offset, arguments = tiles[0]
    if decoder not in ("ppm", "ppm_plain") or image.mode == "1":
        return
    mode, maxval = arguments
    if maxval > 255 and image.mode != "I":
        raise Refused(WIDE_COLOURS)
    if decoder == "ppm_plain":
        tiles[0] = (decoder, box, offset, (mode, 255 if maxval < 256 else 65535))
    else:
        tiles[0] = ("raw", box, offset, ("I;16B" if image.mode == "I" else mode, 0, 1))
