"""Geometry of a view: where in the image a crop lies, and images, labels and saliency cut accordingly.

Only the part of the image that the crop shows is resized. Masks stay raw ids throughout.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class View:
    """A crop of a resized image, or of a resized part of it.

    Attributes:
        size: Height and width the whole image, or the part, is resized to.
        top: First row of the crop in the resized image; negative = padding above.
        left: First column; negative = padding on the left.
        crop: Height and width of the crop.
        flip: Mirror left and right afterwards.
        part: Top, left, height and width of the part, in pixels of the image; None = the whole image.
    """

    size: tuple[int, int]
    top: int
    left: int
    crop: tuple[int, int]
    flip: bool = False
    part: tuple[int, int, int, int] | None = None

    def source(self, image: np.ndarray) -> np.ndarray:
        """The part of H W ... that the view shows; no copy."""
        if self.part is None:
            return image
        top, left, height, width = self.part
        return image[top : top + height, left : left + width]


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


def padded_view(
    shape: tuple[int, int], crop: int, scale: tuple[float, float], flip: float, rng: np.random.Generator
) -> View:
    """As `random_view`, but padded as the SSUL reference code does (METHODS 2, Augmentation).

    Where the scaled image is narrower than the crop all four sides are padded by half of what its width
    lacks, rounded up; where its height is then still too small, all four again by half of what that lacks.
    The crop may lie anywhere in the result, so more padding is seen than is missing.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in shape)
    pad = max(0, (1 + crop - width) // 2)
    pad += max(0, (1 + crop - (height + 2 * pad)) // 2)
    top, left = (int(rng.integers(0, side + 2 * pad - crop + 1)) - pad for side in (height, width))
    return View((height, width), top, left, (crop, crop), bool(rng.random() < flip))


def area_view(
    shape: tuple[int, int], crop: int, area: tuple[float, float], flip: float, rng: np.random.Generator
) -> View:
    """A random part of the image, resized to the crop (METHODS 3, Recipe; torchvision's RandomResizedCrop).

    Its area is a uniform fraction of the image's, width over height log-uniform in 3/4 to 4/3. Ten tries to
    fit one, else the largest centre part of a permitted ratio.

    Args:
        shape: Height and width of the image.
        crop: Side of the crop in pixels.
        area: Range of the fraction; above 1 it can only fail to fit.
        flip: Probability of a flip.
    """
    part = _random_part(shape, area, rng)
    return View((crop, crop), 0, 0, (crop, crop), bool(rng.random() < flip), part)


_NARROWEST, _WIDEST = 3 / 4, 4 / 3


def _random_part(
    shape: tuple[int, int], area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    for _ in range(10):
        pixels = shape[0] * shape[1] * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(_NARROWEST), math.log(_WIDEST)))
        height, width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < height <= shape[0] and 0 < width <= shape[1]:
            top, left = (int(rng.integers(0, s - p + 1)) for s, p in zip(shape, (height, width), strict=True))
            return top, left, height, width
    height, width = shape
    if width / height < _NARROWEST:
        height = round(width / _NARROWEST)
    elif width / height > _WIDEST:
        width = round(height * _WIDEST)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


@dataclass(frozen=True)
class Augmentation:
    """How training views are drawn and filled.

    Attributes:
        crop: Side of the square crop in pixels.
        mode: scale or area (`--train.crop_mode`).
        scale: Range of the linear scale, or of the area.
        flip: Probability of a flip.
        padding: ignore or background (`--train.padding`).
        mean_colour: What padding looks like where it is ignored; else it is black.
    """

    crop: int
    mode: Literal["scale", "area"]
    scale: tuple[float, float]
    flip: float
    padding: Literal["ignore", "background"]
    mean_colour: tuple[int, int, int]

    def view(self, shape: tuple[int, int], rng: np.random.Generator) -> View:
        """A random view of an image of height and width `shape`."""
        if self.mode == "area":
            return area_view(shape, self.crop, self.scale, self.flip, rng)
        draw = random_view if self.padding == "ignore" else padded_view
        return draw(shape, self.crop, self.scale, self.flip, rng)

    @property
    def colour(self) -> tuple[int, int, int]:
        """Of padding."""
        return self.mean_colour if self.padding == "ignore" else (0, 0, 0)


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
    """Put the visible part, flipped already where the view is, into the padded crop."""
    if part.shape[:2] == view.crop:
        return np.array(part, order="C")  # a copy: PIL's arrays are read-only
    top, left, bottom, right = _visible(view)
    first = view.left + view.crop[1] - right if view.flip else left - view.left
    out = np.empty((*view.crop, *part.shape[2:]), part.dtype)
    out[:] = np.full(out.shape[1:], fill, out.dtype)  # a row at a time: a colour at a time is slow
    out[top - view.top : bottom - view.top, first : first + right - left] = part
    return out


def cut_image(image: np.ndarray | Image.Image, view: View, fill: tuple[int, int, int]) -> np.ndarray:
    """Bilinear (antialiased) view of a uint8 H W 3 image; padding has the colour `fill`.

    Args:
        image: Best an RGB image of PIL as `files.open_image` gives it: PIL resizes, and would copy an array.
    """
    source = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if view.part is not None:
        y, x, rows, columns = view.part
        source = source.crop((x, y, x + columns, y + rows))
    top, left, bottom, right = _visible(view)
    if (source.height, source.width) == view.size:
        shown = source.crop((left, top, right, bottom))
    else:
        down, across = source.height / view.size[0], source.width / view.size[1]
        box = (left * across, top * down, right * across, bottom * down)
        shown = source.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
    if view.flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _place(np.asarray(shown), view, fill)


def cut_map(mask: np.ndarray, view: View, fill: int) -> np.ndarray:
    """Nearest-neighbour view of an H W map of ids; padding has the value `fill`."""
    mask = view.source(mask)
    top, left, bottom, right = _visible(view)
    # pixel centres, as PIL and torchvision's nearest-exact place them; whole numbers round no tie
    rows = (2 * np.arange(top, bottom) + 1) * mask.shape[0] // (2 * view.size[0])
    columns = (2 * np.arange(left, right) + 1) * mask.shape[1] // (2 * view.size[1])
    # columns first, on the rows that are seen at all: rows are copied whole, and may be copied more than once
    mask = mask[rows[0] : rows[-1] + 1]
    columns = columns[::-1] if view.flip else columns
    if len(mask) > len(rows):
        shown = mask.take(rows - rows[0], 0).take(columns, 1)
    else:
        shown = mask.take(columns, 1).take(rows - rows[0], 0)
    return _place(shown, view, fill)
