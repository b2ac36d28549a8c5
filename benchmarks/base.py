"""The base step: everything trains, no teacher. Images a second, loading included."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.methods.ssul import Ssul

from .data import ANIMALS, animals, few
from .ours import Precision, make_run, train_step
from .reference import ReferenceStep, train_reference
from .reference_data import ReferenceImages, reference_loader
from .report import Options, Row, more
from .timing import alternate, median

BATCH, CROP, IMAGES = 16, 193, 128


def run(options: Options) -> list[Row]:
    """deeplabv3_mobilenet, batch 16, crop 193, as in animals-4-1-ssul; the batches of one epoch."""
    root = animals(options, "base", few(IMAGES, BATCH, of="person"), val=8)
    config = RunConfig(
        task="1-1",
        data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
        model=ModelConfig(name="deeplabv3_mobilenet", weights="none"),
        train=TrainConfig(epochs=1, batch_size=BATCH, crop=CROP, device="cpu"),
    )
    plan = make_run(config, Ssul(), options.work / "plan-base")
    images = ReferenceImages(
        plan.data, plan.scenario.images(0), plan.scenario.train_table(0), CROP, options.seed
    )
    loader = reference_loader(images, BATCH, train=True)
    step = ReferenceStep(plan._base_model(), None, total=10_000)

    def reference() -> float:
        spent = train_reference(step, loader, 1, torch.device("cpu"))
        return len(spent.iterations) * BATCH / spent.training

    def ours(precision: Precision) -> float:
        train = replace(config.train, precision=precision)
        spent = train_step(replace(config, train=train), Ssul(), 0, None, options.work / "ours-base")
        return spent.iterations * BATCH / spent.training

    variants: dict[str, Callable[[], float]] = {"reference": reference}
    variants |= {"fp32": partial(ours, "32"), "bf16": partial(ours, "bf16")}
    rounds = options.rounds or (5 if options.full else 3)
    found = alternate(variants, rounds, options.say, "base")
    speeds = {name: median(each) for name, each in found.items()}
    return [
        more(
            f"base.mobilenet.{name}",
            f"base step, mobilenet, batch {BATCH}, {CROP} px",
            name,
            speeds["reference"],
            speeds[name],
            "images/s",
            target,
        )
        for name, target in (("fp32", 1.5), ("bf16", 3.0))
    ]
