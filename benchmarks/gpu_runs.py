"""Whole runs on a device: animals 4-1 in every precision, evaluation, label maps, a run that goes on.

Everything is held against one run on the CPU in float32, from the same seed and so with the same batches.
Real photographs come from `--data.root`; else they are cut from those of scikit-learn.
"""

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

import segrow
from segrow import cli
from segrow.argmax import arg_max
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.cost import device_name
from segrow.losses import upsample
from segrow.methods.ssul import Ssul
from segrow.predict import Predictor

from .data import ANIMALS, animals, few
from .gpu_step import row_of, watched_updates
from .ours import Precision
from .pieces import Piece, Setting, at_least, at_most, holds
from .report import Options, Row, less
from .timing import timed
from .updates import wait

VARIANTS: dict[str, tuple[str, ...]] = {
    "32": ("--train.precision", "32"),
    "bf16": ("--train.precision", "bf16"),
    "16": ("--train.precision", "16"),
    "16, clip": ("--train.precision", "16", "--train.clip", "1"),
    "bf16, kept features": ("--train.precision", "bf16", "--train.feature_views", "1"),
}
NEAR = {"32": 0.01, "bf16": 0.05, "16": 0.02}
"""Relative difference of the first update's loss to the CPU's; 32 in training is TF32."""
SAME = 0.999
"""Part of the pixels that get the same class on both devices, in float32: the others are ties."""


def pieces(setting: Setting) -> list[Piece]:
    """In this order: the later ones use the runs of the earlier."""
    runs = Runs(setting)
    names = [name for name in VARIANTS if setting.on_gpu or not name.startswith("16")]
    return [
        Piece("animals 4-1 on the CPU", 40, runs.on_cpu),
        *(Piece(f"animals 4-1 in {name}", 25, partial(runs.train, name)) for name in names),
        Piece("evaluation", 15, runs.evaluation),
        Piece("label maps", 15, runs.label_maps),
        Piece("label maps by bands", 10, partial(bands, setting)),
        Piece("a run of the CPU goes on", 40, runs.goes_on),
    ]


class Runs:
    """The runs of one data set.

    Args:
        setting: Where, and how large.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.work = setting, setting.work
        self._root: Path | None = None

    @property
    def root(self) -> Path:
        """The data, written when they are asked for first."""
        if self._root is None:
            counts = few(4, 2) if self.setting.small else few(64, 32)
            options = Options(self.setting.root, self.work, self.work, seed=self.setting.seed)
            self._root = animals(options, "animals", counts, val=4 if self.setting.small else 32)
        return self._root

    def words(self, out: str, device: str, *more: str) -> list[str]:
        """`segrow train` of the base step and one increment."""
        small = self.setting.small
        given = {
            "--data.name": "voc",
            "--data.root": str(self.root),
            "--data.classes": ",".join(ANIMALS),
            "--task": "4-1",
            "--steps": "2",
            "--model.name": "deeplabv3_test_resnet" if small else "deeplabv3_mobilenet",
            "--model.weights": "none",
            "--model.width": "8" if small else "256",
            "--model.dropout": "0",  # draws of a CPU and of a GPU differ
            "--train.epochs": "2",
            "--train.batch_size": "2" if small else "16",
            "--train.crop": "33" if small else "193",
            "--train.workers": "0" if small else "4",
            "--train.log_every": "1",
            "--train.feature_views": "0",
            "--train.device": device,
            "--seed": str(self.setting.seed),
            "--report": "false",
            "--out": str(self.work / out),
        }
        return ["train", *(word for pair in given.items() for word in pair), *more]

    def on_cpu(self) -> list[Row]:
        """The run that the others are held against."""
        code = cli.main(self.words("cpu", "cpu", *VARIANTS["32"]))
        return [holds("runs.cpu", "animals 4-1 on the CPU: ends well", "32", code == 0)]

    def train(self, name: str) -> list[Row]:
        """One on the device: it ends well, begins as the CPU's does, and says what it was trained on."""
        out = self.work / name.replace(", ", "-").replace(" ", "-")
        with watched_updates(self.setting.on_gpu) as waited:
            code = cli.main(self.words(out.name, self.setting.device.type, *VARIANTS[name]))
        what, key = f"animals 4-1 in {name}", f"runs.{out.name}"
        precision: Precision = cast("Precision", name.partition(",")[0])
        rows = [holds(f"{key}.ends", f"{what}: ends well", precision, code == 0)]
        if code:
            return rows
        first, expected = (losses(path)[0, 0, 0] for path in (out, self.work / "cpu"))
        off = abs(first - expected) / expected
        costs = [step["cost"] for step in read(out)["steps"]]
        says = {(cost["device"], cost["precision"]) for cost in costs}
        true = {(device_name(self.setting.device), precision)}
        rows += [
            at_most(
                f"{key}.loss", f"{what}: first loss, difference to the CPU", precision, off, NEAR[precision]
            ),
            holds(f"{key}.finite", f"{what}: all losses finite", precision, all_finite(out)),
            holds(f"{key}.says", f"{what}: device and precision recorded", precision, says == true),
        ]
        if self.setting.on_gpu:
            rows.append(row_of(f"{key}.waits", what, precision, waited))
        if "features" in name:
            kept = bool(costs[1]["features"])
            rows.append(holds(f"{key}.kept", f"{what}: features kept", precision, kept))
        return rows

    def evaluation(self) -> list[Row]:
        """The CPU's model evaluated on both devices."""
        matrices = []
        for device in ("cpu", self.setting.device.type):
            path = self.work / f"eval-{device}.json"
            words = ["--data.root", str(self.root), "--device", device, "--out", str(path)]
            if cli.main(["eval", str(self.work / "cpu"), *words]):
                return [holds("runs.evaluation", "evaluation on both devices: ends well", "32", False)]
            matrices.append(np.array(read_json(path)["steps"][0]["matrix"]))
        ours, theirs = matrices
        same = 1 - np.abs(ours - theirs).sum() / 2 / theirs.sum()
        return [at_least("runs.evaluation", "evaluation: pixels counted alike", "32", float(same), SAME)]

    def label_maps(self) -> list[Row]:
        """`segrow.load` on both devices: an image, a list, whole and in tiles."""
        run, device = self.work / "cpu", self.setting.device
        images = sorted((self.root / "JPEGImages").iterdir())[:3]
        tile = 64 if self.setting.small else 256
        rows = []
        for how, size in (("whole", None), ("tiles", tile)):
            here, there = (segrow.load(run, device=d, precision="32", tile=size) for d in ("cpu", device))
            one = alike(there(images[0]).labels, here(images[0]).labels)
            rows.append(
                at_least(f"runs.{how}.one", f"an image, {how}: pixels as on the CPU", "32", one, SAME)
            )
            several = [seen.labels for seen in there(list(images))]
            each = min(alike(seen, there.labels(image)) for seen, image in zip(several, images, strict=True))
            rows.append(
                at_least(f"runs.{how}.list", f"a list, {how}: pixels as one by one", "32", each, SAME)
            )
        rows.append(self._stays_small(images[0]))
        return rows

    def _stays_small(self, image: Path) -> Row:
        """What a list keeps of an image is in the memory of the host."""
        predictor: Predictor = segrow.load(self.work / "cpu", device=self.setting.device, precision="32")
        (seen,) = predictor([image])
        where = seen._maps.logits.device.type
        return holds("runs.list.host", "a list: maps in the memory of the host", "32", where == "cpu")

    def goes_on(self) -> list[Row]:
        """Stopped on the CPU within its first step, it goes on where the device is."""
        out = self.work / "goes-on"
        save = Checkpoint.save

        def stop(checkpoint: Checkpoint, path: Path, before: Path | None = None) -> None:
            save(checkpoint, path, before)
            raise KeyboardInterrupt

        with mock.patch.object(Checkpoint, "save", stop):
            stopped = cli.main(self.words(out.name, "cpu", *VARIANTS["32"]))
        code = cli.main(self.words(out.name, self.setting.device.type, *VARIANTS["32"]))
        well = stopped != 0 and code == 0 and len(read(out)["steps"]) == 2
        rows = [holds("runs.goes-on.ends", "a run of the CPU goes on: ends well", "32", well)]
        if well:
            ours, theirs = (losses(path)[0, 1, 0] for path in (out, self.work / "cpu"))
            off = abs(ours - theirs) / theirs
            what = "a run of the CPU goes on: its first loss, difference to the CPU"
            rows.append(at_most("runs.goes-on.loss", what, "32", off, NEAR["32"]))
        return rows


def bands(setting: Setting) -> list[Row]:
    """Label maps of a batch, and of one image that is more than a band."""
    if setting.small:
        return [*_bands(setting, "4 images", 4, 65), *_bands(setting, "an image", 1, 65)]
    return [*_bands(setting, "32 images", 32, 513), *_bands(setting, "a large image", 1, 2049)]


def _bands(setting: Setting, name: str, images: int, side: int) -> list[Row]:
    """Label maps as segrow makes them, against those of each image as a whole; 21 classes and unknown."""
    generator = torch.Generator().manual_seed(setting.seed)
    cells = side // 16 + 1
    maps = torch.randn(images, 22, cells, cells, generator=generator).to(setting.device)
    logits, unknown, size, scores = maps[:, :21], maps[:, 21:], (side, side), Ssul().scores

    def ours() -> torch.Tensor:
        found = arg_max(logits, unknown, size, scores)
        wait(setting.device)
        return found

    def plain() -> torch.Tensor:
        pairs = zip(torch.split(logits, 1), torch.split(unknown, 1), strict=True)
        found = [scores(upsample(a, size), upsample(b, size)).argmax(1) for a, b in pairs]
        wait(setting.device)
        return torch.cat(found)

    same = float((ours() == plain()).float().mean())
    apart, together = (min(timed(way) for _ in range(3)) for way in (plain, ours))
    key = f"bands.{name.replace(' ', '-')}"
    return [
        at_least(key, f"label maps of {name}: pixels as image by image", "32", same, SAME),
        less(f"{key}.time", f"label maps of {name}, beside image by image", "32", apart, together, "s"),
    ]


def alike(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Part of the pixels with the same class."""
    return float((a == b).mean())


def losses(run: Path) -> dict[tuple[int, int, int], float]:
    """The sum of the terms by (step, epoch, update)."""
    with (run / "log.csv").open(newline="") as file:
        return {
            (int(row["step"]), int(row["epoch"]), int(row["iteration"])): float(row["total"])
            for row in csv.DictReader(file)
        }


def all_finite(run: Path) -> bool:
    """Whether every loss is; weights are looked at after every epoch."""
    return all(math.isfinite(value) for value in losses(run).values())


def read(run: Path) -> dict[str, Any]:
    """results.json."""
    return read_json(run / "results.json")


def read_json(path: Path) -> dict[str, Any]:
    """A document."""
    return cast("dict[str, Any]", json.loads(path.read_text()))
