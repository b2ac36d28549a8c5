"""Time and memory of a step as the number of classes grows from 10 to 1,000: nothing faster than linearly.

Synthetic images that show every class, so that every step of a task has the same images. Each point is a step
of five classes, trained in a process of its own after all steps before it, with one head each.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from segrow.methods.ssul import Ssul

from .child import Result, Work, configuration, spawn
from .ours import random_network, save_before
from .report import Options, Row

CLASSES = (10, 150, 1000)
NEW = 5
IMAGES, SIDE = 4, 160
BATCH, CROP = 2, 129
MIB = 2**20


def run(options: Options) -> list[Row]:
    """Exact and cached, with `--full` also the reference; exponents of the steepest part."""
    variants = {"exact": "exact fp32", "cached": "cached fp32"}
    if options.full:
        variants["reference"] = "reference"
    found: dict[str, list[Result]] = {name: [] for name in variants.values()}
    for classes in CLASSES:
        point = _point(options.work / f"growth-{classes}", classes, options.seed)
        for variant, name in variants.items():
            options.say(f"growth: {classes} classes, {name}")
            work = replace(point, variant=variant)  # type: ignore[arg-type]
            found[name].append(spawn(work))
    plot(options.out / "bench-growth.png", found)
    rows = []
    for name, results in found.items():
        if name == "reference":
            continue
        rows += _rows("seconds of an iteration", "time", name, [r.seconds for r in results], "s")
        rows += _rows("peak memory", "memory", name, [r.peak / MIB for r in results], "MiB")
    return rows


def _rows(what: str, short: str, variant: str, values: Sequence[float], unit: str) -> list[Row]:
    ends = f"{CLASSES[0]} and {CLASSES[-1]:,} classes"
    return [
        Row(
            key=f"growth.{short}.{variant.replace(' ', '-')}",
            measure=f"{what}, {ends}",
            variant=variant,
            reference=values[0],
            ours=values[-1],
            unit=unit,
            ratio=steepest(CLASSES, values),
            target=1.0,
            direction="at most",
            of="exponent",
            note="growth: the column reference holds the smallest number of classes; the exponent is the "
            f"steepest between neighbours of {', '.join(f'{c:,}' for c in CLASSES)} classes "
            "(the plot's legend has those fitted to all)",
        )
    ]


def steepest(x: Sequence[float], y: Sequence[float]) -> float:
    """The largest slope between neighbours in log-log."""
    pairs = itertools.pairwise(zip(x, y, strict=True))
    return max(math.log(d / b) / math.log(c / a) for (a, b), (c, d) in pairs)


def fitted(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the least-squares line in log-log."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(path: Path, found: Mapping[str, Sequence[Result]]) -> None:
    """Time and memory against classes, in log-log, with a line of slope 1 to compare."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    seconds = {name: [r.seconds for r in results] for name, results in found.items()}
    memory = {name: [r.peak / MIB for r in results] for name, results in found.items()}
    panels = (("seconds of an iteration", seconds), ("peak memory, MiB", memory))
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for name, values in lines.items():
            axis.loglog(CLASSES, values, marker="o", label=f"{name}, exponent {fitted(CLASSES, values):.2f}")
        first = next(iter(lines.values()))[0]
        axis.loglog(CLASSES, [first * c / CLASSES[0] for c in CLASSES], ":", color="grey", label="linear")
        axis.set_xlabel("classes")
        axis.set_title(title)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _point(folder: Path, classes: int, seed: int) -> Work:
    """Images and model of the last step of a task with so many classes."""
    root = _tree(folder / "data", classes, seed)
    step = classes // NEW - 1
    work = Work(
        variant="exact",
        data="folder",
        root=str(root),
        task=f"{NEW}-{NEW}",
        step=step,
        new=NEW,
        before=str(folder / "before"),
        out=str(folder / "out"),
        threads=torch.get_num_threads(),
        backbone="mobilenet",
        batch=BATCH,
        crop=CROP,
        epochs=4,
        iterations=4,
    )
    config = configuration(work)
    network = random_network(config.model, NEW, [NEW] * (step - 1), seed)
    save_before(network, config, Ssul(unknown="background"), step - 1, Path(work.before))
    return work


def _tree(root: Path, classes: int, seed: int) -> Path:
    """A folder data set of a few images that each show all classes."""
    names = ["background", *(f"class {k}" for k in range(1, classes + 1))]
    pixels = np.arange(SIDE * SIDE) * (classes + 1) // (SIDE * SIDE)
    kind = np.uint8 if classes < 255 else np.uint16
    for split, count in (("train", IMAGES), ("val", 1)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for k in range(count):
            rng = np.random.default_rng((seed, k))
            image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{k}.png")
            mask = np.roll(pixels, int(rng.integers(SIDE * SIDE))).reshape(SIDE, SIDE).astype(kind)
            Image.fromarray(mask).save(root / "masks" / split / f"{k}.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root
