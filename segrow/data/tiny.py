"""A tiny data set of random shapes, in the layout of VOC 2012 or ADE20K: for `segrow reproduce --quick`.

    compose(Path("quick/data/voc"), "voc")        # then --data.root quick/data/voc

Every step of every published task has at least 4 images in the overlap and in the disjoint setting. Nothing
can be learnt from it that is worth a number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..atomic import appear, new_folder
from .voc import NAMES

SIZE = (72, 84)  # height, width: a crop of 64 fits
IGNORE = 255
Contents = list[tuple[int, ...]]


def compose(root: Path, layout: str) -> Path:
    """Writes the data set, unless it is there; the same one every time.

    Args:
        root: Its folder; appears when all is written.
        layout: voc (20 classes, ignored outlines, saliency maps) or ade20k (150 classes, neither).

    Returns:
        `root`.

    Raises:
        ValueError: Another layout.
    """
    if layout not in ("voc", "ade20k"):
        raise ValueError(f'layout "{layout}", expected voc or ade20k')
    if root.is_dir():
        return root
    with new_folder(root) as unfinished:
        (_write_voc if layout == "voc" else _write_ade)(unfinished)
        appear(unfinished, root)
    return root


def _write_voc(root: Path) -> None:
    n = len(NAMES) - 1
    train: Contents = [shown for c in range(1, n + 1) for shown in ((c,), (c,), (c, max(c - 1, 1)), (c, 1))]
    val: Contents = [(c, c % n + 1) for c in range(1, n + 1, 2)]
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for year, images, listed in (("2007", train, "train_aug.txt"), ("2008", val, "val.txt")):
        ids = [f"{year}_{i:06d}" for i in range(1, len(images) + 1)]
        (root / "ImageSets" / "Segmentation" / listed).write_text("".join(f"{i}\n" for i in ids))
        for image_id, shown in zip(ids, images, strict=True):
            pixels, mask, salient = _scene(shown, int(image_id.replace("_", "")), outlines=True)
            _save(pixels, root / "JPEGImages" / f"{image_id}.jpg")
            _save(mask, root / "SegmentationClassAug" / f"{image_id}.png")
            _save(salient, root / "saliency_map" / f"{image_id}.png")


def _write_ade(root: Path) -> None:
    # every task learns 1 to 50 in its base step, and 51 to 100 there or in one step
    train: Contents = [tuple(range(c, c + 5)) for c in range(1, 101, 5)]
    train += [(c,) if c % 2 else (c, c - 1) for c in range(101, 151)]
    val: Contents = [tuple(range(c, c + 5)) for c in range(1, 151, 5)]
    for name, folder, images in (("train", "training", train), ("val", "validation", val)):
        for i, shown in enumerate(images, 1):
            pixels, mask, _ = _scene(shown, (name == "val") * 1000 + i, outlines=False)
            _save(pixels, root / "images" / folder / f"ADE_{name}_{i:08d}.jpg")
            _save(mask, root / "annotations" / folder / f"ADE_{name}_{i:08d}.png")


def _scene(
    shown: Sequence[int], seed: int, outlines: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A shape a class, side by side, and one of no class; image H W 3, mask H W, saliency H W (0 or 255)."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    mask = np.zeros(SIZE, dtype=np.uint8)
    kind = np.zeros(
        SIZE, dtype=np.int64
    )  # which colour a pixel has: a class, 0 nothing, 151 an unknown thing
    rows, columns = np.mgrid[:height, :width]
    names = [*dict.fromkeys(shown), 151]
    band = width / len(names)
    for place, name in enumerate(names):
        centre = ((place + 0.5) * band, rng.uniform(0.35, 0.65) * height)
        radius = (0.45 * band, rng.uniform(0.2, 0.35) * height)
        x, y = (columns - centre[0]) / radius[0], (rows - centre[1]) / radius[1]
        distance = np.maximum(abs(x), abs(y)) if rng.random() < 0.5 else np.hypot(x, y)
        kind[distance <= 1] = name
        if name < 151:
            mask[distance <= 1] = name
            if outlines:
                mask[(distance > 1) & (distance <= 1.1)] = IGNORE
    colours = np.random.default_rng(0).integers(30, 226, (152, 3))
    pixels = colours[kind] + rng.integers(-20, 21, (height, width, 3))
    return pixels.astype(np.uint8), mask, ((kind > 0) * 255).astype(np.uint8)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # which PNG does without
