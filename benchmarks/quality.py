"""What the cached mode costs in quality: mIoU of the same increments, exact and cached, from one base step.

The short form trains one step of the embedded digits with one seed, which shows that the mode learns, not
how well. `--full` with real data trains all steps of animals-4-1-ssul, three seeds of the increments on one
base run, and several numbers of views; seeds are paired, so a difference has an interval of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.demo import DemoSize, demo_config
from segrow.engine.run import train
from segrow.methods.ssul import Ssul
from segrow.protocol import summarise

from .data import ANIMALS
from .ours import DEFAULT_VIEWS, with_views
from .report import Options, Row

DEFINITION = "foreground"
SEEDS = (1, 2, 3)
VIEWS = (1, 2, 4)
# two-sided 95 % quantiles of Student's t, by degrees of freedom
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(options: Options) -> list[Row]:
    """Differences of the final mIoU, cached minus exact, in points."""
    long = options.full and options.root is not None
    config = real(options) if long else embedded()
    seeds, views = (SEEDS, VIEWS) if long else ((options.seed,), (DEFAULT_VIEWS,))
    base = options.base
    if base is None:
        options.say("quality: the shared base step")
        base = options.work / "quality-base"
        train(replace(config, steps=1, seed=options.seed), Ssul(), base)
    found: dict[int, list[float]] = {0: [], **{k: [] for k in views}}
    seconds: dict[int, list[float]] = {k: [] for k in found}
    for seed in seeds:
        for k in found:
            options.say(f"quality: seed {seed}, {f'K = {k}' if k else 'exact'}")
            kept = with_views(config.train, k, config.train.precision)
            out = options.work / f"quality-{seed}-{k}"
            results = train(replace(config, seed=seed, train=kept), Ssul(), out, base)
            found[k].append(100 * (summarise(results, DEFINITION)["steps"][-1]["all"] or 0.0))
            seconds[k].append(sum(step["cost"]["train_s"] for step in results["steps"][1:]))
    what = "animals 4-1, all steps" if long else "digits, one step"
    return rows_of(what, found, seconds, short=not long)


def rows_of(
    what: str, found: Mapping[int, Sequence[float]], seconds: Mapping[int, Sequence[float]], short: bool
) -> list[Row]:
    """A row for each number of views.

    Args:
        what: The task.
        found: mIoU in % of every seed, by views; 0 = exact.
        seconds: Training seconds of every seed, by views.
        short: One seed: there is no interval and no target.
    """
    rows = []
    for k in (k for k in found if k):
        differences = np.subtract(found[k], found[0])
        mean, half = paired(differences.tolist())
        gain = float(np.median(seconds[0]) / np.median(seconds[k]))
        interval = "one seed, no interval" if short else f"95 % interval ± {half:.2f} points"
        rows.append(
            Row(
                key=f"quality.miou.K{k}",
                measure=f"foreground mIoU, {what}, against the exact mode",
                variant=f"cached, K = {k}",
                reference=float(np.mean(found[0])),
                ours=float(np.mean(found[k])),
                unit="%",
                ratio=mean,
                target=None if short else -1.0,
                of="points",
                note=f"quality, K = {k}: {interval}, training {gain:.2f} times as fast as the exact mode",
            )
        )
    return rows


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
    config = demo_config(DemoSize(scenes=600, epochs=12), 1, "4-1")
    return replace(config, steps=2, train=replace(config.train, step0_epochs=10, device="cpu"))


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
            precision="bf16",
        ),
    )
