"""The base step: everything trains, no teacher. Images a second, loading included."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.methods.ssul import Ssul

from .data import ANIMALS, animals, few
from .ours import LABELS, Precision, make_run, train_step
from .reference import ReferenceStep, train_reference
from .reference_data import ReferenceImages, reference_loader
from .report import Options, Row, more
from .timing import alternate, median


@dataclass(frozen=True)
class Case:
    """A network, its batches, and what ours should gain in each precision."""

    name: str
    batch: int
    crop: int
    images: int
    targets: Mapping[Precision, float]


ON_CPU = Case("mobilenet", 16, 193, 128, {"32": 1.5, "bf16": 3.0})
ON_GPU = Case("resnet101", 32, 513, 256, {"16": 2.5, "bf16": 2.5})


def run(options: Options) -> list[Row]:
    """As in animals-4-1-ssul, or, on a GPU, as published and in mixed precision; the batches of one epoch."""
    return measure(options, ON_GPU if options.on_gpu else ON_CPU)


def measure(options: Options, case: Case) -> list[Row]:
    """Reference and ours, in turn."""
    device = torch.device(options.device)
    root = animals(options, "base", few(case.images, case.batch, of="person"), val=8)
    config = RunConfig(
        task="1-1",
        data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
        model=ModelConfig(name=f"deeplabv3_{case.name}", weights="none"),
        train=TrainConfig(epochs=1, batch_size=case.batch, crop=case.crop, device=options.device),
    )
    plan = make_run(config, Ssul(), options.work / "plan-base")
    images = ReferenceImages(
        plan.data, plan.scenario.images(0), plan.scenario.train_table(0), case.crop, options.seed
    )
    loader = reference_loader(images, case.batch, train=True)
    model = plan._base_model().to(device)
    step = ReferenceStep(model, None, total=10_000, amp=options.on_gpu)

    def reference() -> float:
        spent = train_reference(step, loader, 1, device)
        return len(spent.iterations) * case.batch / spent.training

    def ours(precision: Precision) -> float:
        train = replace(config.train, precision=precision)
        spent = train_step(replace(config, train=train), Ssul(), 0, None, options.work / "ours-base")
        return spent.iterations * case.batch / spent.training

    variants: dict[str, Callable[[], float]] = {"reference": reference}
    variants |= {precision: partial(ours, precision) for precision in case.targets}
    rounds = options.rounds or (5 if options.full else 3)
    found = alternate(variants, rounds, options.say, "base")
    speeds = {name: median(each) for name, each in found.items()}
    rows = []
    for precision, target in case.targets.items():
        name = LABELS[precision]
        what = f"base step, {case.name}, batch {case.batch}, {case.crop} px"
        gain = (speeds["reference"], speeds[precision])
        rows.append(more(f"base.{case.name}.{name}", what, name, *gain, "images/s", target))
    return rows
