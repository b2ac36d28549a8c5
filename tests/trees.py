"""Builders of small data sets on disk: VOC-like, ADE-like and folder trees (numpy and PIL only).

    tree = voc_tree(tmp_path / "VOC2012")
    tree.shown["train"]["2007_000003"]      # the raw ids its mask shows, without the ignore id

Every class appears in the training images when there are at least as many images as classes. Every class
has its own colour, so that a small network can learn it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Tree:
    """What was written: `shown[split][id]` is the set of raw ids in the mask, ignore id left out."""

    root: Path
    shown: dict[str, dict[str, set[int]]] = field(default_factory=dict)

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple(self.shown[split])


def as_sets(ids: Sequence[str], present: NDArray[np.bool_]) -> dict[str, set[int]]:
    """A presence matrix (images x raw ids) in the form of `Tree.shown[split]`."""
    return {i: set(np.flatnonzero(row).tolist()) for i, row in zip(ids, present, strict=True)}


def random_contents(n: int, classes: Sequence[int], rng: np.random.Generator) -> list[set[int]]:
    """Foreground classes of n images: one class in turn and up to two random ones."""
    return [
        {classes[i % len(classes)], *(int(c) for c in rng.choice(classes, int(rng.integers(3))))}
        for i in range(n)
    ]


def random_mask(
    contents: Collection[int],
    size: tuple[int, int],
    rng: np.random.Generator,
    ignore_id: int | None = 255,
    background: bool = True,
) -> Mask:
    """Vertical stripes, one a class (and background), with an ignored border row; every class shows."""
    values = [*([0] if background else []), *sorted(contents)]
    order = np.array(values)[rng.permutation(len(values))]
    stripes = order[np.arange(size[1]) * len(order) // size[1]]
    rows = np.tile(stripes, (size[0], 1))
    mask: Mask = rows.astype(np.uint16) if (ignore_id or 0) > 255 else rows.astype(np.uint8)
    if ignore_id is not None:
        mask[-1] = ignore_id
    return mask


def paint(mask: Mask, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image of the mask: a colour a class, with noise. uint8 H x W x 3."""
    colours = np.random.default_rng(0).integers(30, 226, (65536, 3))
    return (colours[mask] + rng.integers(-20, 21, (*mask.shape, 3))).astype(np.uint8)


def save_mask(mask: Mask, path: Path) -> None:
    """Palette PNG for 8 bit, 16-bit grey PNG otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if mask.dtype == np.uint8:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


def _write_split(
    contents: Mapping[str, Collection[int]],
    image: str,
    mask: str,
    saliency: str | None,
    size: tuple[int, int],
    rng: np.random.Generator,
    ignore_id: int | None,
    background: bool = True,
) -> dict[str, set[int]]:
    """Writes one split; the three patterns hold {} for the id."""
    shown = {}
    for image_id, classes in contents.items():
        # `classes` may hold 0 to say "background only"
        values = random_mask(set(classes) - {0}, size, rng, ignore_id, background)
        save_mask(values, Path(mask.format(image_id)))
        target = Path(image.format(image_id))
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(values, rng)).save(target, quality=95)
        if saliency:
            path = Path(saliency.format(image_id))
            path.parent.mkdir(parents=True, exist_ok=True)
            salient = (values > 0) & (values != (ignore_id or 255)) & (rng.random(values.shape) > 0.1)
            Image.fromarray(salient.astype(np.uint8) * 255).convert("1").save(path)
        shown[image_id] = {int(v) for v in np.unique(values)} - {ignore_id}
    return shown


def voc_tree(
    root: Path,
    train: int | Sequence[Collection[int]] = 24,
    val: int | Sequence[Collection[int]] = 6,
    *,
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    classes: Sequence[int] = tuple(range(1, 21)),
    saliency: bool = True,
    train_list: str | None = "train_aug.txt",
    lists: str = "ImageSets/Segmentation",
) -> Tree:
    """VOC 2012 layout; `train` and `val` are numbers of images or the foreground classes of each."""
    rng = np.random.default_rng(seed)
    tree = Tree(root)
    for split, images, year in (("train", train, 2007), ("val", val, 2008)):
        contents = random_contents(images, classes, rng) if isinstance(images, int) else images
        named = {f"{year}_{i:06d}": c for i, c in enumerate(contents)}
        tree.shown[split] = _write_split(
            named,
            f"{root}/JPEGImages/{{}}.jpg",
            f"{root}/SegmentationClassAug/{{}}.png",
            f"{root}/saliency_map/{{}}.png" if saliency else None,
            size,
            rng,
            255,
        )
        file = root / lists / ("val.txt" if split == "val" else train_list or "")
        if split == "val" or train_list:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{i}\n" for i in named))
    return tree


def ade_tree(
    root: Path,
    train: int | Sequence[Collection[int]] = 12,
    val: int | Sequence[Collection[int]] = 4,
    *,
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    classes: Sequence[int] = tuple(range(1, 151)),
) -> Tree:
    """ADE20K layout (ADEChallengeData2016): no ignored pixels, 0 = background."""
    rng = np.random.default_rng(seed)
    tree = Tree(root)
    for split, images, folder in (("train", train, "training"), ("val", val, "validation")):
        contents = random_contents(images, classes, rng) if isinstance(images, int) else images
        tree.shown[split] = _write_split(
            {f"ADE_{split}_{i:08d}": c for i, c in enumerate(contents)},
            f"{root}/images/{folder}/{{}}.jpg",
            f"{root}/annotations/{folder}/{{}}.png",
            None,
            size,
            rng,
            None,
        )
    return tree


def folder_tree(
    root: Path,
    names: Sequence[str] = ("background", "apple", "pear", "plum"),
    train: int | Sequence[Collection[int]] = 12,
    val: int | Sequence[Collection[int]] = 4,
    *,
    seed: int = 0,
    size: tuple[int, int] = (24, 32),
    saliency: bool = False,
    background: bool = True,
    suffix: str = "png",
) -> Tree:
    """Folder layout with the class names `names` (by mask value); 16-bit masks for more than 255 names."""
    rng = np.random.default_rng(seed)
    tree = Tree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for split, images in (("train", train), ("val", val)):
        classes = tuple(range(1, len(names)))
        contents = random_contents(images, classes, rng) if isinstance(images, int) else images
        tree.shown[split] = _write_split(
            {f"{split}{i:04d}": c for i, c in enumerate(contents)},
            f"{root}/images/{split}/{{}}.{suffix}",
            f"{root}/masks/{split}/{{}}.png",
            f"{root}/saliency/{split}/{{}}.png" if saliency else None,
            size,
            rng,
            255 if len(names) <= 255 else 65535,
            background,
        )
    return tree
