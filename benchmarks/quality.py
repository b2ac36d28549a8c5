"""What quality costs: mIoU of the same increments by the reference, exact and cached, from one base step.

The reference draws its own views, so it has no pair; its validation is left out, and the last state counts,
as in ours. The short form trains one step of the embedded digits with one seed, which shows that the mode
learns, not how well. `--full` with real data trains all steps of animals-4-1-ssul on one base run: six seeds,
exact and with the default number of views, and one seed of the reference; `--compare` asks for three seeds of
the reference and of other numbers of views. Seeds are paired, so a difference has an interval of its own.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, RunPaths, TrainConfig
from segrow.demo import DemoSize, demo_config
from segrow.engine.run import train
from segrow.methods.ssul import Ssul
from segrow.model.store import load_model
from segrow.protocol import summarise

from .data import ANIMALS
from .ours import DEFAULT_VIEWS, make_run, with_views
from .reference import Rates, ReferenceStep, train_reference
from .reference_data import ReferenceImages, reference_loader
from .report import Options, Row

DEFINITION = "foreground"
SEEDS = (1, 2, 3, 4, 5, 6)
FEWER = 3  # seeds of what is only there to compare
VIEWS = (1, 2, 4)
# two-sided 95 % quantiles of Student's t, by degrees of freedom
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(options: Options) -> list[Row]:
    """Differences of the final mIoU, cached minus exact, in points."""
    long = is_long(options)
    config = real(options) if long else embedded()
    seeds = SEEDS if long else (options.seed,)
    views = VIEWS if options.compare else (DEFAULT_VIEWS,)
    base = options.base
    if base is None:
        options.say("quality: the shared base step")
        base = options.work / "quality-base"
        train(replace(config, steps=1, seed=options.seed), Ssul(), base)
    found: dict[int, list[float]] = {0: [], **{k: [] for k in views}}
    seconds: dict[int, list[float]] = {k: [] for k in found}
    theirs: list[float] = []
    for done, seed in enumerate(seeds):
        few = done < FEWER
        for k in (k for k in found if few or k in (0, DEFAULT_VIEWS)):
            options.say(f"quality: seed {seed}, {f'K = {k}' if k else 'exact'}")
            kept = with_views(config.train, k, config.train.precision)
            out = options.work / f"quality-{seed}-{k}"
            results = train(replace(config, seed=seed, train=kept), Ssul(), out, base)
            found[k].append(final(results))
            seconds[k].append(sum(step["cost"]["train_s"] for step in results["steps"][1:]))
        if few and (options.compare or not done):
            options.say(f"quality: seed {seed}, reference")
            out = options.work / f"reference-{seed}"
            theirs.append(reference(replace(config, seed=seed), base, out, results))
    what = "animals 4-1, all steps" if long else "digits, one step"
    rows = [reference_row(what, theirs, found[0], short=not long)]
    return rows + rows_of(what, found, seconds, short=not long)


def is_long(options: Options) -> bool:
    """Whether real data are trained on, with several seeds."""
    return options.full and options.root is not None


def final(results: Mapping[str, Any]) -> float:
    """mIoU after the last step in %."""
    return 100 * (summarise(results, DEFINITION)["steps"][-1]["all"] or 0.0)


def reference(config: RunConfig, base: Path, out: Path, results: Mapping[str, Any]) -> float:
    """The same increments by the reference loop, in float32; mIoU after the last step in %.

    Args:
        config: Of our runs; the reference takes its data, views, epochs, batches and rates.
        base: Run whose base step all share.
        out: An empty folder.
        results: Of a run of ours, which says what else a table needs to know.
    """
    run, given = make_run(config, Ssul(), out), config.train
    model, _ = load_model(RunPaths(base).model(0))
    mean, std = (tuple(value.flatten().tolist()) for value in (model.mean, model.std))
    torch.manual_seed(config.seed)
    steps = run.scenario.steps[1 : config.steps]
    for step in steps:
        teacher = copy.deepcopy(model)
        model.grow(len(step.classes), step.index)
        table = run.scenario.train_table(step.index)
        images = ReferenceImages(
            run.data,
            run.scenario.images(step.index),
            table,
            given.crop,
            config.seed,
            scale=given.scale,
            flip=given.flip,
            normalisation=(mean, std),
        )
        loader = reference_loader(images, given.batch_size, train=True)
        total = given.epochs * len(loader)
        trained = ReferenceStep(model, teacher, total, Rates(increment=given.lr))
        train_reference(trained, loader, given.epochs, torch.device("cpu"))
    ids = run.validation.present.ids
    matrices = run.validation.matrices(steps[-1].index, model, Ssul(), ids, "evaluation")
    found = {"matrix": matrices.all.tolist(), "matrix_known": matrices.known.tolist()}
    last = {**results["steps"][-1], **found}
    return final({**results, "steps": [*results["steps"][:-1], last]})


def reference_row(what: str, theirs: Sequence[float], exact: Sequence[float], short: bool) -> Row:
    """The mIoU that the reference reaches, and the exact mode's with the same seeds."""
    spread = "" if short else f": {_listed(theirs)} %"
    exact = exact[: len(theirs)]
    return Row(
        key="quality.miou.exact",
        measure=f"{DEFINITION} mIoU, {what}, against the reference loop",
        variant="exact",
        reference=float(np.mean(theirs)),
        ours=float(np.mean(exact)),
        unit="%",
        ratio=float(np.mean(exact) - np.mean(theirs)),
        target=None if short else -1.0,
        of="points",
        note=f"quality: the reference draws its own views, in float32{spread}",
    )


def rows_of(
    what: str, found: Mapping[int, Sequence[float]], seconds: Mapping[int, Sequence[float]], short: bool
) -> list[Row]:
    """A row for each number of views.

    Args:
        what: The task.
        found: mIoU in % of every seed, by views; 0 = exact. The first of those of the exact mode, or all.
        seconds: Training seconds of every seed, by views.
        short: One seed: there is no interval and no target.
    """
    rows = []
    for k in (k for k in found if k):
        exact = np.array(found[0][: len(found[k])])
        differences = np.subtract(found[k], exact)
        mean, half = paired(differences.tolist())
        gain = float(np.median(seconds[0][: len(exact)]) / np.median(seconds[k]))
        interval = "one seed, no interval"
        if not short:
            values = f"{_listed(found[k])} %, exact {_listed(exact.tolist())} %"
            interval = f"{values}; 95 % interval ± {half:.2f} points"
        rows.append(
            Row(
                key=f"quality.miou.K{k}",
                measure=f"foreground mIoU, {what}, against the exact mode",
                variant=f"cached, K = {k}",
                reference=float(np.mean(exact)),
                ours=float(np.mean(found[k])),
                unit="%",
                ratio=mean,
                target=None if short else -1.0,
                of="points",
                note=f"quality, K = {k}: {interval}, training {gain:.2f} times as fast as the exact mode",
            )
        )
    return rows


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and half the width of its 95 % interval (infinite for a single pair)."""
    n = len(differences)
    mean = sum(differences) / n
    if n == 1:
        return mean, math.inf
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    return mean, STUDENT[n - 1] * deviation / math.sqrt(n)


def embedded() -> RunConfig:
    """The demo's network on fewer digits, its first increment only."""
    config = demo_config(DemoSize(scenes=600, base_epochs=10, epochs=12), 1, "4-1")
    return replace(config, steps=2, train=replace(config.train, batch_size=16, device="cpu"))


def real(options: Options) -> RunConfig:
    """animals-4-1-ssul."""
    return RunConfig(
        task="4-1",
        data=DataConfig(name="voc", root=str(options.root), classes=ANIMALS),
        model=ModelConfig(name="deeplabv3_mobilenet", weights=options.weights),
        train=TrainConfig(
            epochs=8,
            batch_size=16,
            crop=193,
            device="cpu",
        ),
    )
