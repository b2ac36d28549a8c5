"""Saliency maps that do not say which pixels are salient: probabilities, and maps that are in alpha alone."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEVELS = 16
"""Other values than 0 from which on a map may hold probabilities; fewer are numbers of objects."""
APART = 0.01
"""Share of the pixels that the two readings may differ in, as they do at smoothed borders."""


def unclear(values: NDArray[np.generic]) -> str:
    """Why a map, H x W, may mean two things; "" where it means one."""
    small = values.dtype == np.uint8  # which is many times faster
    levels = np.flatnonzero(np.bincount(values.ravel(), minlength=256)) if small else np.unique(values)
    levels = levels[levels != 0]
    if len(levels) <= LEVELS:
        return ""
    low, high = float(levels[0]), float(levels[-1])
    shown, upper = (values != 0).mean(), (values > np.float32(high / 2)).mean()
    if shown - upper <= APART:
        return ""
    return (
        f"holds {len(levels)} levels from {low:g} to {high:g}, so salient may be what is not 0 ({shown:.0%} "
        f"of its pixels) or what is above the middle ({upper:.0%}); save it with 0 and 255 alone"
    )


def in_alpha(image: Image.Image) -> bool:
    """Whether an opened map has one colour everywhere, and an alpha that is not."""
    if image.mode not in ("LA", "RGBA"):
        return False
    *colours, alpha = image.split()
    flat = [low == high for low, high in (band.getextrema() for band in colours)]
    return all(flat) and alpha.getextrema()[0] != alpha.getextrema()[1]
