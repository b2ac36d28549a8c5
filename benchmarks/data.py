"""Data that the benchmark brings along, and parts of real data: always a tree in the layout of VOC 2012.

root = photographs(Path("tree"), {"horse": 160, "sheep": 16}, val=16)   # cut from scikit-learn's photographs
root = part_of(Path("VOC2012"), Path("part"), {"horse": 160, "sheep": 16}, val=16)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from segrow.data.voc import IMAGES, MASKS, NAMES, SALIENCY, VocDataset

from .report import Options

ANIMALS = ("person", "chair", "cat", "dog", "horse", "sheep", "cow", "sofa")
SIZE = (375, 500)  # height, width: of most VOC photographs
LISTS = "ImageSets/Segmentation"
Counts = Mapping[str, int]


def animals(options: Options, name: str, counts: Counts, val: int) -> Path:
    """A tree with at least so many training images of each class, and so many validation images.

    Args:
        options: Says where real data are, if there are any.
        name: Of the folder under `options.work`.
        counts: Training images by class.
        val: Number of validation images.
    """
    target = options.work / name / "VOC2012"
    if options.root is None:
        return photographs(target, counts, val, options.seed)
    return part_of(options.root, target, counts, val)


def few(images: int, other: int, of: str = "horse") -> dict[str, int]:
    """`images` images of one animal, `other` images of each of the rest."""
    return {animal: images if animal == of else other for animal in ANIMALS}


def part_of(root: Path, target: Path, counts: Counts, val: int) -> Path:
    """A tree of links to a part of a real one: the first images of each class, in the order of its list."""
    data = VocDataset(root)
    target.mkdir(parents=True)
    for folder in (IMAGES, MASKS, SALIENCY):
        (target / folder).symlink_to((data.root / folder).resolve())
    present = data.presence("train", progress=False)
    chosen: set[str] = set()
    for name, count in counts.items():
        shows = present.present[:, NAMES.index(name)]
        chosen |= set([i for i, there in zip(present.ids, shows, strict=True) if there][:count])
    shown = data.presence("val", progress=False)
    raw = [NAMES.index(name) for name in counts]
    evaluated = [i for i, row in zip(shown.ids, shown.present, strict=True) if row[raw].any()]
    # spread over the list, so that every class is among them
    picked = [evaluated[k] for k in np.linspace(0, len(evaluated) - 1, min(val, len(evaluated))).astype(int)]
    _write_lists(target, [i for i in present.ids if i in chosen], picked)
    return target


def photographs(target: Path, counts: Counts, val: int, seed: int = 1) -> Path:
    """Pieces of photographs as JPEGs of VOC's size, with ellipses of other pieces as objects.

    An image shows one class of `counts`; validation images show them in turn. Object outlines are ignored
    and objects are salient.
    """
    scenes = [np.asarray(photo) for photo in load_sample_images().images]
    names = [name for name, count in counts.items() for _ in range(count)]
    names += [list(counts)[k % len(counts)] for k in range(val)]
    for folder in (IMAGES, MASKS, SALIENCY):
        (target / folder).mkdir(parents=True)
    ids = [f"2007_{k:06d}" for k in range(len(names))]
    for k, (image_id, name) in enumerate(zip(ids, names, strict=True)):
        rng = np.random.default_rng((seed, k))
        pixels, mask = _scene(scenes, NAMES.index(name), rng)
        Image.fromarray(pixels).save(target / IMAGES / f"{image_id}.jpg", quality=90)
        picture = Image.fromarray(mask)
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.save(target / MASKS / f"{image_id}.png")
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(target / SALIENCY / f"{image_id}.png")
    _write_lists(target, ids[: len(ids) - val], ids[len(ids) - val :])
    return target


def _scene(
    scenes: Sequence[NDArray[np.uint8]], raw: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image H W 3 and mask H W."""
    pixels = _piece(scenes[int(rng.integers(len(scenes)))], rng)
    other = _piece(scenes[int(rng.integers(len(scenes)))], rng)[::-1]
    mask = np.zeros(SIZE, dtype=np.uint8)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for _ in range(2):
        y, x = rng.uniform(0.25, 0.75, 2) * SIZE
        height, width = rng.uniform(0.12, 0.3, 2) * SIZE
        distance = np.hypot((rows - y) / height, (columns - x) / width)
        mask[(distance <= 1.05) & (mask == 0)] = 255
        mask[distance <= 1] = raw
    inside = mask == raw
    # a colour of its own for every class, so that something can be learnt
    colour = np.random.default_rng(raw).integers(0, 256, 3)
    pixels[inside] = (0.5 * other[inside] + 0.5 * colour).astype(np.uint8)
    return pixels, mask


def _piece(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of a photograph, resized to SIZE."""
    share = rng.uniform(0.5, 0.85)
    height, width = (int(side * share) for side in photo.shape[:2])
    top, left = (
        int(rng.integers(0, side - part + 1))
        for side, part in zip(photo.shape, (height, width), strict=False)
    )
    part = Image.fromarray(photo[top : top + height, left : left + width])
    return np.array(part.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR))


def _write_lists(target: Path, train: Sequence[str], val: Sequence[str]) -> None:
    (target / LISTS).mkdir(parents=True)
    for name, ids in (("train_aug.txt", train), ("val.txt", val)):
        (target / LISTS / name).write_text("".join(f"{i}\n" for i in ids))
