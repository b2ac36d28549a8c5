"""The base step: everything trains, no teacher. Images a second, loading included.

Every measurement is a process of its own, as `segrow train` is: where earlier networks have left holes in the
memory, ours and the reference loop are slower, and not alike.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.methods.ssul import Ssul
from segrow.processes import worker_count

from . import updates
from .data import ANIMALS, animals, few
from .machine import has_bf16
from .ours import LABELS, Precision, make_run, train_step
from .process import spawned
from .reference import ReferenceStep, train_reference
from .reference_data import WORKERS, ReferenceImages, reference_loader
from .report import Options, Row, more
from .timing import alternate, epochs_for, median


@dataclass(frozen=True)
class Case:
    """A network, its batches, and what ours should gain in each precision.

    Attributes:
        name: Of the backbone, short.
        batch: Images of a batch.
        crop: Side of the crops in pixels.
        images: Training images.
        targets: Least gains.
        counted: Updates that count, at least, after an epoch in which loaders and kernels start; 0 = those of
            one epoch, start included.
        workers: Loader processes of both sides; None = of each as many as it usually has.
        synthetic: Updates on a batch that is on the device already, which have a row too; 0 = none.
    """

    name: str
    batch: int
    crop: int
    images: int
    targets: Mapping[Precision, float]
    counted: int = 0
    workers: int | None = None
    synthetic: int = 0


ON_CPU = Case("mobilenet", 16, 193, 128, {"32": 1.5, "bf16": 3.0})
# a GPU takes batches faster than loaders start
ON_GPU = Case("resnet101", 32, 513, 832, {"16": 2.5, "bf16": 2.5}, 50, worker_count(None, "cuda"), 50)


def run(options: Options) -> list[Row]:
    """As in animals-4-1-ssul, or, on a GPU, as published and in mixed precision; the batches of one epoch."""
    case = ON_GPU if options.on_gpu else ON_CPU
    targets = {p: t for p, t in case.targets.items() if options.on_gpu or p == "32" or has_bf16()}
    root = animals(options, "base", few(case.images, case.batch, of="person"), val=8).resolve()
    words = (root, options.device, options.seed, torch.get_num_threads())
    variants: dict[str, Callable[[], float]] = {
        name: partial(spawned, f"base step of {root}", "benchmarks.base", name, *words)
        for name in ("reference", *targets)
    }
    rounds = options.rounds or (5 if options.full else 3)
    found = alternate(variants, rounds, options.say, "base")
    speeds = {name: median(each) for name, each in found.items()}
    rows = []
    for precision, target in targets.items():
        name = LABELS[precision]
        what = f"base step, {case.name}, batch {case.batch}, {case.crop} px"
        gain = (speeds["reference"], speeds[precision])
        rows.append(more(f"base.{case.name}.{name}", what, name, *gain, "images/s", target))
    if case.synthetic:
        options.say("base: no loading")
        alone = updates.Case(case.name, case.batch, case.crop, case.synthetic)
        rows += updates.run(alone, torch.device(options.device), options.seed, ("base",))
    return rows


def measure(variant: str, root: Path, device: Literal["cpu", "cuda"], seed: int) -> float:
    """Images a second.

    Args:
        variant: reference, or a precision of ours.
        root: The data.
        device: Decides the case, too.
        seed: Of the reference's views.
    """
    case = ON_GPU if device == "cuda" else ON_CPU
    ours: dict[str, Precision] = {name: name for name in get_args(Precision)}
    train = TrainConfig(
        epochs=1,
        batch_size=case.batch,
        crop=case.crop,
        device=device,
        precision=ours.get(variant, "32"),
    )
    config = RunConfig(
        task="1-1",
        data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
        model=ModelConfig(name=f"deeplabv3_{case.name}", weights="none"),
        train=train if case.workers is None else replace(train, workers=case.workers),
    )
    with tempfile.TemporaryDirectory() as work:
        plan = make_run(config, Ssul(), Path(work) / "plan")
        epochs = epochs_for(case.counted, len(plan.scenario.images(0)), case.batch)
        if variant in ours:
            config = replace(config, train=replace(config.train, epochs=epochs))
            spent = train_step(config, Ssul(), 0, None, Path(work) / "ours")
            return case.batch / (spent.later if case.counted else spent.training / spent.iterations)
        images = ReferenceImages(
            plan.data, plan.scenario.images(0), plan.scenario.train_table(0), case.crop, seed
        )
        step = ReferenceStep(plan._base_model().to(device), None, total=10_000, amp=device == "cuda")
        workers = WORKERS if case.workers is None else case.workers
        loader = reference_loader(images, case.batch, train=True, workers=workers)
        theirs = train_reference(step, loader, epochs, torch.device(device))
        return case.batch / theirs.iteration(epochs)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))  # type: ignore[arg-type]
