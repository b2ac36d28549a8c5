"""The yardstick beside what the reference code itself needs: it must not be a straw man.

Expected, measured with the reference code:
- step 1 of animals 4-1, deeplabv3_mobilenet, batch 16, crop 193, fp32, 2 loader workers, on two cores of an
  idle server CPU: 0.86 s an iteration;
- deeplabv3_resnet101 with random weights, batch 2, 257 px, step 5, without loading: 3.8 times a restructured
  iteration that runs the trunk once, without a graph. Which precision that one had is not on record, so both
  are printed.

Frozen parameters of the student have `requires_grad` False, as in the reference code, so there is no graph
through its trunk.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.methods.ssul import Ssul
from segrow.scenario import UNKNOWN

from .data import animals, few
from .increment import Case, Measurement, configuration
from .machine import has_bf16
from .ours import LABELS, Precision, Updates, random_network, save_before
from .reference import ReferenceStep, train_reference
from .report import Options, Row
from .timing import alternate, median, timed

SECONDS, RATIO, WITHIN = 0.86, 3.8, 0.15


def run(options: Options) -> list[Row]:
    """Both figures, each with what is expected."""
    return [_mobilenet(options), *_resnet(options)]


def _row(key: str, measure: str, expected: float, measured: float, unit: str) -> Row:
    return Row(
        key=f"calibrate.{key}",
        measure=measure,
        variant="re-stated loop",
        reference=expected,
        ours=measured,
        unit=unit,
        ratio=abs(measured / expected - 1),
        target=WITHIN,
        direction="at most",
        of="off",
        note="calibrate: the column reference holds what the reference code needed on an idle machine",
    )


def _mobilenet(options: Options) -> Row:
    """Seconds an iteration, waiting for the loader included."""
    case = Case("mobilenet", 16, 193, 320, 1, {})
    root = animals(options, "calibrate", few(case.images, case.batch), val=8)
    config = configuration(root, case)
    network = random_network(config.model, 4, [], options.seed)
    before = save_before(network, config, Ssul(), 0, options.work / "before-calibrate")
    measure = Measurement(options, case, config, before, workers=2)
    epochs = []
    rounds = options.rounds or 3
    for k in range(rounds):
        options.say(f"calibrate: mobilenet, epoch {k + 1} of {rounds}")
        spent = train_reference(measure.step, measure.loader, 1, torch.device(case.device))
        epochs.append(spent.training / len(spent.iterations))
    return _row(
        "mobilenet", "iteration, mobilenet, batch 16, 193 px, 2 workers", SECONDS, median(epochs), "s"
    )


def _resnet(options: Options) -> list[Row]:
    """Times the exact path, on one batch in memory; steps 1 to 4 have grown the model to 20 classes."""
    step, batch, crop = 5, 2, 257
    model = random_network(ModelConfig(name="deeplabv3_resnet101", weights="none"), 15, [1] * 4, options.seed)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(1, step)
    reference = ReferenceStep(copy.deepcopy(model), copy.deepcopy(teacher), total=1000)
    reference.train_mode()
    precisions: tuple[Precision, ...] = ("32", "bf16") if has_bf16() else ("32",)
    exact = {
        LABELS[precision]: Updates(copy.deepcopy(model), copy.deepcopy(teacher), step, precision)
        for precision in precisions
    }
    images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8)
    labels = torch.randint(0, 2, (batch, crop, crop)) * (model.n_classes - 1)
    salient = torch.rand(labels.shape) < 0.5
    normalised = model.normalise(images).contiguous()
    unknown = labels.masked_fill((labels == 0) & salient, UNKNOWN)

    def theirs() -> float:
        return timed(lambda: reference.update(normalised, unknown))

    def ours(precision: str) -> float:
        memory = torch.zeros(batch, dtype=torch.bool)
        return timed(lambda: exact[precision].update(Batch(images, labels, memory, {"saliency": salient})))

    variants: dict[str, Callable[[], float]] = {"reference": theirs}
    variants |= {name: partial(ours, name) for name in exact}
    found = alternate(variants, 1 + (options.rounds or 5), options.say, "calibrate: resnet101")
    # the first of each prepares its convolutions
    seconds = {name: median(each[1:]) for name, each in found.items()}
    note = "calibrate: resnet101, seconds an iteration: " + ", ".join(
        f"{name} {value:.2f}" for name, value in seconds.items()
    )
    measure = "times the exact path in {}, resnet101, batch 2, 257 px, step 5"
    rows = [
        _row(f"resnet101-{name}", measure.format(name), RATIO, seconds["reference"] / seconds[name], "x")
        for name in exact
    ]
    return [replace(row, note=note) for row in rows]
