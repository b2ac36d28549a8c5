"""Drawing one scene of the embedded demo data: digits on cards, on a photograph, with mask and saliency.

The whole card is the object: a stroke would be thinner than one cell of a stride-8 map. Colour, size, place
and rotation of a card say nothing about its class; only the digit does.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

CARD_SIDE = (0.32, 0.48)  # height of a card as a share of the scene's
CARD_ASPECT = (0.82, 1.0)  # width over height
MAX_ANGLE = 20.0  # degrees either way: far beyond it a 6 nears a 9
CARDS = (2, 4)  # cards a scene, as far as they find a place
MAX_OVERLAP = 0.08  # of a card's area that may lie on earlier cards

# How saliency errs, as off-the-shelf detectors do.
MISSED_CARD = 0.10  # probability that a card is not found at all
FALSE_BLOB = 0.25  # probability that a scene has one salient ellipse on whatever lies there
BORDER = 2  # pixels by which a found card is at most grown or shrunk
SHIFT = 2  # pixels by which a found card is at most displaced, along each axis

Bytes = NDArray[np.uint8]
Bits = NDArray[np.bool_]
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Material:
    """What the scenes of one split are made of.

    Attributes:
        digits: Per class, its handwritten samples: uint8 n x 8 x 8, 0 = paper, 255 = ink.
        photos: Photograph regions, RGB.
    """

    digits: tuple[Bytes, ...]
    photos: tuple[Image.Image, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """One composed scene; every map has the size of the image.

    Attributes:
        image: RGB, square.
        mask: uint8 H x W; 0 background, 1 + digit on its card.
        saliency: uint8 H x W; 255 salient, else 0; wrong now and then (see the constants above).
    """

    image: Image.Image
    mask: Bytes
    saliency: Bytes


def draw_scene(material: Material, size: int, rng: np.random.Generator) -> Scene:
    """A scene of one to four cards, no two with the same digit.

    Args:
        material: Handwriting and photographs to draw from.
        size: Height and width in pixels.
        rng: Decides everything.
    """
    image = _backdrop(material.photos, size, rng)
    mask = np.zeros((size, size), dtype=np.uint8)
    owner = np.zeros_like(mask)  # which card lies on top, from 1
    fewest, most = CARDS
    cards = 0
    for digit in rng.permutation(len(material.digits))[: int(rng.integers(fewest, most + 1))]:
        samples = material.digits[int(digit)]
        sample = samples[int(rng.integers(len(samples)))]
        card = _card(sample, round(size * rng.uniform(*CARD_SIDE)), rng)
        place = _place(card, owner > 0, rng)
        if place is None:
            continue
        cards += 1
        covered = _lay(image, card, place)
        mask[covered] = 1 + digit
        owner[covered] = cards
    return Scene(image, mask, _saliency(owner, cards, rng))


def _backdrop(photos: tuple[Image.Image, ...], size: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, up to the whole region's height, mirrored half of the time."""
    photo = photos[int(rng.integers(len(photos)))]
    limit = min(photo.size)
    side = int(rng.integers(min(size, limit), limit + 1))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop.resize((size, size), Image.Resampling.BILINEAR)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Paper and ink of any hue: dark on light, or light on dark for one card in three."""
    light = _hsv(rng.random(), rng.uniform(0.05, 0.55), rng.uniform(0.88, 1.0))
    dark = _hsv(rng.random(), rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.4))
    return (dark, light) if rng.random() < 1 / 3 else (light, dark)


def _card(sample: Bytes, side: int, rng: np.random.Generator) -> Image.Image:
    """A rotated card with a digit: RGBA, alpha its shape. Drawn at twice the size, then halved.

    Args:
        sample: uint8 8 x 8, 255 = ink.
        side: Height of the card in pixels, before it turns.
        rng: Decides width, colours and angle.
    """
    width, height = 2 * round(side * rng.uniform(*CARD_ASPECT)), 2 * side
    paper, ink = _colours(rng)
    card = Image.new("RGB", (width, height), paper)
    glyph = round(0.84 * width)
    # 8x8 grey values enlarged smoothly, then with more contrast: round strokes with a clear edge
    stroke = Image.fromarray(sample).resize((glyph, glyph), Image.Resampling.BICUBIC)
    stroke = stroke.point([min(255, max(0, round((value - 72) * 2.4))) for value in range(256)])
    card.paste(ink, ((width - glyph) // 2, (height - glyph) // 2), stroke)
    shape = Image.new("L", card.size, 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width - 1, height - 1), round(0.12 * width), fill=255)
    # the shape turns apart from the colours, so that no black from outside creeps into the border
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    turned = card.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    turned.putalpha(shape.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    return turned.resize((turned.width // 2, turned.height // 2), Image.Resampling.BOX)


def _place(card: Image.Image, taken: Bits, rng: np.random.Generator) -> tuple[int, int] | None:
    """Left and top of a free place for the card, wholly inside the scene; None if twenty tries fail."""
    height, width = taken.shape
    shape = np.asarray(card.getchannel("A")) > 127
    for _ in range(20):
        left = int(rng.integers(width - card.width + 1))
        top = int(rng.integers(height - card.height + 1))
        under = taken[top : top + card.height, left : left + card.width]
        if (under & shape).sum() <= MAX_OVERLAP * shape.sum():
            return left, top
    return None


def _lay(scene: Image.Image, card: Image.Image, place: tuple[int, int]) -> Bits:
    """Paints the card and its soft shadow into the scene; returns the pixels the card covers, H x W."""
    alpha = card.getchannel("A")
    shape = Image.new("L", scene.size, 0)
    shape.paste(alpha, place)
    shadow = Image.new("L", scene.size, 0)
    shadow.paste(alpha.point([value // 2 for value in range(256)]), (place[0] + 1, place[1] + 2))
    scene.paste((0, 0, 0), (0, 0), shadow.filter(ImageFilter.GaussianBlur(2)))
    scene.paste(card.convert("RGB"), place, alpha)
    return np.asarray(shape) > 127


def _saliency(owner: Bytes, cards: int, rng: np.random.Generator) -> Bytes:
    """Imperfect saliency, uint8 H x W, 0 or 255, from `owner` (H x W: 0, or the card on top, from 1)."""
    found = np.zeros_like(owner)
    for card in range(1, cards + 1):
        if rng.random() < MISSED_CARD:
            continue
        shape = Image.fromarray((owner == card).astype(np.uint8) * 255)
        grow = int(rng.integers(-BORDER, BORDER + 1))
        if grow > 0:
            shape = shape.filter(ImageFilter.MaxFilter(2 * grow + 1))
        elif grow < 0:
            shape = shape.filter(ImageFilter.MinFilter(1 - 2 * grow))
        right, down = (int(step) for step in rng.integers(-SHIFT, SHIFT + 1, size=2))
        moved = Image.new("L", shape.size, 0)
        moved.paste(shape, (right, down))
        found = np.maximum(found, np.asarray(moved))
    if rng.random() < FALSE_BLOB:
        size = owner.shape[0]
        x, y = rng.uniform(0, size, 2)
        half_width, half_height = rng.uniform(0.08 * size, 0.2 * size, 2)
        blob = Image.new("L", (size, size), 0)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        ImageDraw.Draw(blob).ellipse(box, fill=255)
        found = np.maximum(found, np.asarray(blob))
    return found
