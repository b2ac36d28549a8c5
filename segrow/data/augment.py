"""Geometry of a view: where in the image a crop lies, and images, labels and saliency cut accordingly.

Only the part of the image that the crop shows is resized. Masks stay raw ids throughout.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class View:
    """A crop of a resized image.

    Attributes:
        size: Height and width the whole image is resized to.
        top: First row of the crop in the resized image; negative = padding above.
        left: First column; negative = padding on the left.
        crop: Height and width of the crop.
        flip: Mirror left and right afterwards.
    """

    size: tuple[int, int]
    top: int
    left: int
    crop: tuple[int, int]
    flip: bool = False


def random_view(
    shape: tuple[int, int], crop: int, scale: tuple[float, float], flip: float, rng: np.random.Generator
) -> View:
    """Random linear scale, random crop, random flip (METHODS 2, Augmentation).

    Where the scaled image is smaller than the crop, only what is missing is padded, at a random offset.

    Args:
        shape: Height and width of the image.
        crop: Side of the crop in pixels.
        scale: Range of the linear scale.
        flip: Probability of a flip.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in shape)
    top, left = (int(rng.integers(min(0, side - crop), max(0, side - crop) + 1)) for side in (height, width))
    return View((height, width), top, left, (crop, crop), bool(rng.random() < flip))


def centre_view(shape: tuple[int, int], crop: int) -> View:
    """Short side resized to `crop`, centre crop (`--crop_val` of the seed)."""
    short = min(shape)
    height, width = (crop if side == short else int(crop * side / short) for side in shape)
    return View((height, width), round((height - crop) / 2), round((width - crop) / 2), (crop, crop))


def whole_view(shape: tuple[int, int]) -> View:
    """The image as it is."""
    return View(shape, 0, 0, shape)


def _visible(view: View) -> tuple[int, int, int, int]:
    """The crop's part inside the resized image: top, left, bottom, right."""
    return (
        max(view.top, 0),
        max(view.left, 0),
        min(view.top + view.crop[0], view.size[0]),
        min(view.left + view.crop[1], view.size[1]),
    )


def _place(part: np.ndarray, view: View, fill: int | tuple[int, ...]) -> np.ndarray:
    """Put the visible part into the padded crop, and flip."""
    top, left, bottom, right = _visible(view)
    if part.shape[:2] == view.crop:
        out = part
    else:
        out = np.empty((*view.crop, *part.shape[2:]), part.dtype)
        out[:] = fill
        out[top - view.top : bottom - view.top, left - view.left : right - view.left] = part
    return np.array(out[:, ::-1] if view.flip else out, order="C")  # a copy: PIL's arrays are read-only


def cut_image(image: np.ndarray, view: View, fill: tuple[int, int, int]) -> np.ndarray:
    """Bilinear (antialiased) view of a uint8 H W 3 image; padding has the colour `fill`."""
    top, left, bottom, right = _visible(view)
    if image.shape[:2] == view.size:
        return _place(image[top:bottom, left:right], view, fill)
    down, across = image.shape[0] / view.size[0], image.shape[1] / view.size[1]
    box = (left * across, top * down, right * across, bottom * down)
    resized = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
    return _place(np.asarray(resized), view, fill)


def cut_map(mask: np.ndarray, view: View, fill: int) -> np.ndarray:
    """Nearest-neighbour view of an H W map of ids; padding has the value `fill`."""
    top, left, bottom, right = _visible(view)
    if mask.shape == view.size:
        return _place(mask[top:bottom, left:right], view, fill)
    # pixel centres, as PIL and torchvision's nearest-exact place them; whole numbers round no tie
    rows = (2 * np.arange(top, bottom) + 1) * mask.shape[0] // (2 * view.size[0])
    columns = (2 * np.arange(left, right) + 1) * mask.shape[1] // (2 * view.size[1])
    return _place(mask[rows[:, None], columns], view, fill)
