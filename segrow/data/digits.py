"""Embedded demo data: real handwritten digits on cards, on real photographs, with masks and imperfect saliency.

    compose(Path("scenes"), scenes=300, val_scenes=100, seed=1)     # writes a folder data set

Everything comes out of scikit-learn's package (`load_digits`: 1,797 handwritten digits of 8x8 pixels;
`load_sample_images`: two photographs), so nothing is downloaded. A scene is a crop of a photograph with a
few cards lying on it, each of its own size, colour and rotation and each carrying one digit. The whole card
is the object: a stroke would be thinner than one cell of a stride-8 map. Colour, size and place say nothing
about the class; only the digit does.

Training and validation share no handwriting (a stratified split of the samples) and no photograph pixel
(left and right part of each). Scene i of a split depends on (seed, split, i) alone, so the first 300 of
1,200 scenes are the 300 scenes of a smaller composition.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1  # of the composer: raise it whenever the same parameters would give other pixels
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = 6  # few enough that a small network learns them within a minute on two CPU cores
SIZE = 96  # pixels: a 12x12 map at output stride 8
VAL_SCENES = 200
SEED = 1
MARK = "scenes.json"  # says what was composed here; a folder without it is somebody else's

# Share of the samples (of each digit) and of the width of each photograph that training may use.
TRAIN_SAMPLES, TRAIN_WIDTH = 0.8, 0.6
CARD_SIDE = (0.32, 0.48)  # of the scene
MAX_ANGLE = 20.0  # degrees either way: beyond it a 6 nears a 9
MAX_CARDS = 4
MAX_OVERLAP = 0.08  # of a card's area that may lie on earlier cards

# How saliency errs, as off-the-shelf detectors do.
MISSED_CARD = 0.10  # probability that a card is not found at all
FALSE_BLOB = 0.25  # probability that a scene has one salient blob on whatever lies there
BORDER = 2  # pixels by which a found card is at most grown or shrunk
SHIFT = 2  # pixels by which a found card is at most displaced, each way

Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Composition:
    """Every parameter of a composition; two equal ones give equal pixels.

    Attributes:
        scenes: Number of training scenes, at least 1.
        val_scenes: Number of validation scenes, at least 1.
        seed: Of everything random.
        size: Height and width of a scene in pixels, at least 32.
        digits: Number of classes: the digits 0 to digits - 1, from 1 to 10.
        version: Of the composer.
    """

    scenes: int
    val_scenes: int
    seed: int
    size: int = SIZE
    digits: int = DIGITS
    version: int = VERSION

    @property
    def folder(self) -> str:
        """A folder name that holds every parameter."""
        return (
            f"digits-v{self.version}-{self.digits}d-{self.size}px-"
            f"{self.scenes}+{self.val_scenes}-seed{self.seed}"
        )


@dataclass(frozen=True)
class Material:
    """What the scenes of one split are made of.

    Attributes:
        digits: Per class, its handwritten samples: uint8 n x 8 x 8, 0 = paper, 255 = ink.
        photos: Photograph regions, RGB.
    """

    digits: tuple[Bytes, ...]
    photos: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Scene:
    """One composed scene; every map has the size of the image.

    Attributes:
        image: RGB.
        mask: uint8 H x W; 0 background, 1 + digit on its card.
        saliency: uint8 H x W; 255 salient, else 0; wrong now and then (see the constants above).
    """

    image: Image.Image
    mask: Bytes
    saliency: Bytes


def _material(what: Composition, split: Literal["train", "val"]) -> Material:
    """The handwriting and the photograph regions of a split; the two splits share neither."""
    # Imported here: scikit-learn takes a second to import, which only a composition should pay.
    from sklearn.datasets import load_digits, load_sample_images

    bunch = load_digits()
    strokes = np.minimum(bunch.images * 16, 255).astype(np.uint8)
    rng = np.random.default_rng([what.seed, 2])
    digits = []
    for digit in range(what.digits):
        samples = rng.permutation(np.flatnonzero(bunch.target == digit))
        cut = round(TRAIN_SAMPLES * len(samples))
        digits.append(strokes[samples[:cut] if split == "train" else samples[cut:]])
    photos = []
    for array in load_sample_images().images:
        cut = round(TRAIN_WIDTH * array.shape[1])
        photos.append(
            Image.fromarray(np.ascontiguousarray(array[:, :cut] if split == "train" else array[:, cut:]))
        )
    return Material(tuple(digits), tuple(photos))


def _backdrop(photos: tuple[Image.Image, ...], size: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, from small to nearly its whole height, mirrored half of the time."""
    photo = photos[int(rng.integers(len(photos)))]
    limit = min(photo.size)
    side = int(rng.integers(min(size, limit), limit + 1))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = (
        Image.new("HSV", (1, 1), (int(hue * 255), int(saturation * 255), int(value * 255)))
        .convert("RGB")
        .getpixel((0, 0))
    )
    return r, g, b


def _colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Paper and ink of any hue: dark on light, or light on dark for one card in three."""
    hue, ink_hue = rng.random(2)
    light = _hsv(hue, rng.uniform(0.05, 0.55), rng.uniform(0.88, 1.0))
    dark = _hsv(ink_hue, rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.4))
    return (dark, light) if rng.random() < 1 / 3 else (light, dark)


def _card(sample: Bytes, side: int, rng: np.random.Generator) -> Image.Image:
    """A rotated card with a digit on it: RGBA, its alpha the card's shape. Drawn at twice the size, then halved."""
    width = 2 * round(side * rng.uniform(0.82, 1.0))
    height = 2 * side
    paper, ink = _colours(rng)
    card = Image.new("RGB", (width, height), paper)
    glyph = round(0.84 * min(width, height))
    # Bicubic enlargement of 8x8 grey values, with the contrast raised: smooth strokes with a clear edge.
    stroke = Image.fromarray(sample).resize((glyph, glyph), Image.Resampling.BICUBIC)
    stroke = stroke.point([min(255, max(0, round((v - 72) * 2.4))) for v in range(256)])
    card.paste(ink, ((width - glyph) // 2, (height - glyph) // 2), stroke)
    shape = Image.new("L", card.size, 0)
    ImageDraw.Draw(shape).rounded_rectangle(
        (0, 0, width - 1, height - 1), radius=round(0.12 * width), fill=255
    )
    # The shape turns apart from the colours, so that no black from outside creeps into the border.
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    turned = card.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    turned.putalpha(shape.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    return turned.resize((turned.width // 2, turned.height // 2), Image.Resampling.BOX)


def _place(card: Image.Image, taken: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int] | None:
    """Left and top of a free place for the card, wholly inside the scene; None if twenty tries find none."""
    height, width = taken.shape
    shape = np.asarray(card.getchannel("A")) > 127
    for _ in range(20):
        left = int(rng.integers(max(1, width - card.width + 1)))
        top = int(rng.integers(max(1, height - card.height + 1)))
        under = taken[top : top + card.height, left : left + card.width]
        visible = shape[: under.shape[0], : under.shape[1]]
        if (under & visible).sum() <= MAX_OVERLAP * shape.sum():
            return left, top
    return None


def _lay(scene: Image.Image, card: Image.Image, place: tuple[int, int]) -> NDArray[np.bool_]:
    """Paints the card and its soft shadow into the scene; returns the pixels the card covers, H x W."""
    shape = Image.new("L", scene.size, 0)
    shape.paste(card.getchannel("A"), place)
    shadow = Image.new("L", scene.size, 0)
    shadow.paste(card.getchannel("A").point([v // 2 for v in range(256)]), (place[0] + 1, place[1] + 2))
    scene.paste((0, 0, 0), (0, 0), shadow.filter(ImageFilter.GaussianBlur(2)))
    scene.paste(card.convert("RGB"), place, card.getchannel("A"))
    return np.asarray(shape) > 127


def _saliency(mask: Bytes, cards: int, owner: Bytes, rng: np.random.Generator) -> Bytes:
    """Imperfect saliency of a scene, uint8 H x W, 0 or 255: cards missed, borders off, a false blob."""
    size = mask.shape[0]
    found = np.zeros_like(mask)
    for card in range(1, cards + 1):
        missed = rng.random() < MISSED_CARD
        grow = int(rng.integers(-BORDER, BORDER + 1))
        shift = rng.integers(-SHIFT, SHIFT + 1, size=2)
        if missed:
            continue
        shape = Image.fromarray((owner == card).astype(np.uint8) * 255)
        if grow:
            kind = ImageFilter.MaxFilter if grow > 0 else ImageFilter.MinFilter
            shape = shape.filter(kind(2 * abs(grow) + 1))
        moved = Image.new("L", shape.size, 0)
        moved.paste(shape, (int(shift[0]), int(shift[1])))
        found = np.maximum(found, np.asarray(moved))
    if rng.random() < FALSE_BLOB:
        blob = Image.new("L", (size, size), 0)
        x, y = rng.uniform(0, size, 2)
        w, h = rng.uniform(0.08 * size, 0.2 * size, 2)
        ImageDraw.Draw(blob).ellipse((x - w, y - h, x + w, y + h), fill=255)
        found = np.maximum(found, np.asarray(blob))
    return found


def _scene(material: Material, size: int, rng: np.random.Generator) -> Scene:
    """One scene of one to four cards, each with another digit."""
    image = _backdrop(material.photos, size, rng)
    mask = np.zeros((size, size), dtype=np.uint8)
    owner = np.zeros_like(mask)  # which card lies on top, from 1
    classes = len(material.digits)
    wanted = rng.permutation(classes)[: int(rng.integers(2, MAX_CARDS + 1))]
    cards = 0
    for digit in wanted:
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
    return Scene(image, mask, _saliency(mask, cards, owner, rng))
