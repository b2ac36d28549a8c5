"""The colours of label maps."""

import numpy as np
import numpy.typing as npt


def voc_palette(n: int) -> npt.NDArray[np.uint8]:
    """The colour map of PASCAL VOC's label files, n colours.

    The bits of a class index are dealt to red, green and blue in turn, the lowest three bits to the
    highest bit of each colour: so near indices have distant colours, and 0 (background) is black.

    Returns:
        uint8 n x 3, RGB.
    """
    index = np.arange(n, dtype=np.int64)
    colours = np.zeros((n, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
