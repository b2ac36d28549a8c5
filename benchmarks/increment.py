"""What an incremental step costs: seconds an iteration and a step, training and evaluation apart.

All variants train the same step of the task animals 4-1 from the same weights with the same batches; the
trainings are measured in turn. The exact mode and the reference cost the same in every epoch, the cached mode
first builds its cache. Seconds an iteration and seconds a view tell a step of any epochs E and views K:

    reference, exact:  E N/B i          cached:  K N v + E N/B c

with N images, B of a batch, i and c seconds an iteration, v seconds a view. After it both predict all V
validation images, e seconds each; the reference also predicts those that show a new class, and saves its best
state, every max(100, iterations / 100) iterations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.engine.validate import Validation
from segrow.methods.ssul import Ssul
from segrow.processes import worker_count

from . import updates
from .data import ANIMALS, animals, few
from .machine import has_bf16
from .ours import (
    DEFAULT_VIEWS,
    LABELS,
    OurStep,
    Precision,
    make_run,
    random_network,
    save_before,
    student_and_teacher,
    train_step,
    with_views,
)
from .reference import LEAST_INTERVAL, ReferenceStep, confusion, train_reference, whole_state
from .reference_data import WORKERS, ReferenceImages, ReferenceValidation, reference_loader
from .report import Options, Row, less
from .timing import alternate, epochs_for, median, timed

EPOCHS = 8  # of the recipe animals-4-1-ssul
PUBLISHED_EPOCHS = 50  # of SSUL on VOC
# of step 1 of animals 4-1 in the data that the recipe was measured on: training images, validation images,
# and those of them that show its class
STEP_IMAGES, VALIDATED, SHOWING = 444, 462, 79
CACHED_EPOCHS = 6  # trained from a cache of one view, whose seconds segrow itself tells apart


@dataclass(frozen=True)
class Case:
    """A network and its batches.

    Attributes:
        name: Of the backbone, short.
        batch: Images of a batch.
        crop: Side of the crops in pixels.
        images: Training images of the measured step (at least).
        rounds: How often every variant is measured.
        targets: Least gains of a whole step, by variant.
        epochs: Of the step that the targets are about.
        evaluated: Validation images whose evaluation is measured; 0 = it is not.
        device: Where it is trained; on a GPU both sides in mixed precision.
        counted: Updates that count, at least, after an epoch in which loaders and kernels start; 0 = those of
            one epoch (with a cache, some), start included.
        workers: Loader processes of both sides; None = of each as many as it usually has.
        synthetic: Updates on a batch that is on the device already, which have rows too; 0 = none.
    """

    name: str
    batch: int
    crop: int
    images: int
    rounds: int
    targets: dict[str, float]
    epochs: int = EPOCHS
    evaluated: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    counted: int = 0
    workers: int | None = None
    synthetic: int = 0

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Ours: the reference's own, then the best that the device computes in."""
        if self.device == "cuda":
            return ("16", "bf16")
        return ("32", "bf16") if has_bf16() else ("32",)


TEN = {f"cached {precision}": 10.0 for precision in ("fp32", "fp16", "bf16")}
# the published network, so the published number of epochs; a GPU takes batches faster than loaders start
ON_GPU = Case(
    "resnet101",
    32,
    513,
    832,
    3,
    TEN,
    PUBLISHED_EPOCHS,
    device="cuda",
    counted=50,
    workers=worker_count(None, "cuda"),
    synthetic=50,
)


@dataclass(frozen=True)
class Cost:
    """Seconds an iteration, and seconds a view of an image in the cache (0 = no cache)."""

    iteration: float
    view: float = 0.0

    def step(self, images: int, batch: int, epochs: int, views: int) -> float:
        """Seconds of the training of a step."""
        return views * images * self.view + epochs * (images // batch) * self.iteration


def run(options: Options) -> list[Row]:
    """Both networks, then evaluation; on a GPU the published network and batch."""
    rounds = options.rounds or (5 if options.full else 3)
    if options.on_gpu:
        return _case(options, replace(ON_GPU, rounds=rounds))
    five = {f"cached {precision}": 5.0 for precision in ("fp32", "bf16")}
    mobilenet = Case("mobilenet", 16, 193, 96, rounds, five, evaluated=64)
    few_rounds = options.rounds or (5 if options.full else 2)
    resnet = Case("resnet101", 4, 257, 28, few_rounds, {"exact fp32": 2.0, **TEN}, PUBLISHED_EPOCHS)
    return [*_case(options, mobilenet), *_case(options, resnet)]


def configuration(root: Path, case: Case, epochs: int = 1) -> RunConfig:
    """Settings of animals-4-1-ssul, with random weights."""
    train = TrainConfig(epochs=epochs, batch_size=case.batch, crop=case.crop, device=case.device)
    return RunConfig(
        task="4-1",
        data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
        model=ModelConfig(name=f"deeplabv3_{case.name}", weights="none"),
        train=train if case.workers is None else replace(train, workers=case.workers),
    )


def _case(options: Options, case: Case) -> list[Row]:
    root = animals(options, f"increment-{case.name}", few(case.images, case.batch), max(case.evaluated, 8))
    config = configuration(root, case)
    before = save_before(
        random_network(config.model, 4, [], options.seed),
        config,
        Ssul(),
        0,
        options.work / f"before-{case.name}",
    )
    measure = Measurement(options, case, config, before)
    variants: dict[str, Callable[[], Cost]] = {"reference": measure.reference}
    for mode, views in (("exact", 0), ("cached", 1)):  # the cost of a view is that of any view
        for precision in case.precisions:
            variants[f"{mode} {LABELS[precision]}"] = partial(measure.ours, views, precision)
    found = alternate(variants, case.rounds, options.say, f"increment, {case.name}")
    costs = {
        name: Cost(median([c.iteration for c in each]), median([c.view for c in each]))
        for name, each in found.items()
    }
    rows = rows_of(case, costs, DEFAULT_VIEWS)
    if case.synthetic:
        options.say(f"increment, {case.name}: no loading")
        alone = updates.Case(case.name, case.batch, case.crop, case.synthetic)
        rows += updates.run(alone, torch.device(case.device), options.seed, ("exact", "kept"))
    return rows + _evaluation(options, case, measure, costs) if case.evaluated else rows


def rows_of(case: Case, costs: dict[str, Cost], views: int) -> list[Row]:
    """An iteration, the recipe's step and the published step, as the cost model tells them."""
    yardstick = costs["reference"]
    rows = []
    about = f"{case.name}, batch {case.batch}, {case.crop} px"
    for name, cost in costs.items():
        if name == "reference":
            continue
        key = f"increment.{case.name}-iteration.{name.replace(' ', '-')}"
        rows.append(less(key, f"training iteration, {about}", name, yardstick.iteration, cost.iteration, "s"))
    for epochs in (EPOCHS, PUBLISHED_EPOCHS):
        theirs = yardstick.step(STEP_IMAGES, case.batch, epochs, 0)
        for name, cost in costs.items():
            if name == "reference":
                continue
            kept = views if name.startswith("cached") else 0
            rows.append(
                less(
                    f"increment.{case.name}-step-{epochs}.{name.replace(' ', '-')}",
                    f"training of a step, {epochs} epochs, {about}",
                    f"{name}, K = {kept}" if kept else name,
                    theirs,
                    cost.step(STEP_IMAGES, case.batch, epochs, kept),
                    "s",
                    case.targets.get(name) if epochs == case.epochs else None,
                    note=f"steps are told for {STEP_IMAGES} images by the cost model K N v + E N/B c, "
                    "c seconds an iteration, v a view of an image; K = views an image",
                )
            )
    return rows


class Measurement:
    """Trainings of step 1 from one model directory.

    Args:
        options: Of the benchmark.
        case: Network and batches.
        config: Of our runs.
        before: The model that the step starts from.
        workers: Loader processes of the reference.
    """

    def __init__(
        self, options: Options, case: Case, config: RunConfig, before: Path, workers: int = WORKERS
    ) -> None:
        self.options, self.case, self.config, self.before = options, case, config, before
        run = make_run(config, Ssul(), options.work / f"plan-{case.name}")
        self.run, self.data, self.scenario = run, run.data, run.scenario
        self.epochs = epochs_for(case.counted, len(self.scenario.images(1)), case.batch)
        images = ReferenceImages(
            run.data, self.scenario.images(1), self.scenario.train_table(1), case.crop, options.seed
        )
        self.loader = reference_loader(
            images, case.batch, train=True, workers=workers if case.workers is None else case.workers
        )
        student, teacher = student_and_teacher(before, len(self.scenario.steps[1].classes), 1)
        device = torch.device(case.device)
        self.step = ReferenceStep(
            student.to(device), teacher.to(device), total=10_000, amp=case.device == "cuda"
        )

    def reference(self) -> Cost:
        """Some epochs of the reference."""
        spent = train_reference(self.step, self.loader, self.epochs, torch.device(self.case.device))
        return Cost(spent.iteration(self.epochs))

    def ours(self, views: int, precision: Precision) -> Cost:
        """As many epochs of ours, or, with a cache, some."""
        spent = self._train(max(CACHED_EPOCHS * bool(views), self.epochs), views, precision)
        shown = spent.views * len(self.scenario.images(1))
        whole = (spent.training - spent.cache) / spent.iterations
        seconds = spent.later if self.case.counted else whole
        return Cost(seconds, spent.cache / shown if shown else 0.0)

    def _train(self, epochs: int, views: int, precision: Precision) -> OurStep:
        train = with_views(replace(self.config.train, epochs=epochs), views, precision)
        out = self.options.work / f"ours-{self.case.name}"
        return train_step(replace(self.config, train=train), Ssul(), 1, self.before, out)


def _evaluation(options: Options, case: Case, measure: Measurement, costs: dict[str, Cost]) -> list[Row]:
    """Validation images predicted, and with that a whole step."""
    run, model = measure.run, measure.step.model
    ids = run.validation.present.ids
    images = ReferenceValidation(run.data, ids, measure.scenario.eval_table(), case.crop)
    batches = reference_loader(images, 16, train=False)
    ours, _ = student_and_teacher(measure.before, len(measure.scenario.steps[1].classes), 1)
    first = replace(run.validation, features=None)
    checkpoint = options.work / "best.pth"

    def reference() -> float:
        return timed(lambda: confusion(model, batches, torch.device(case.device)))

    def segrow(validation: Validation) -> float:
        return timed(lambda: validation.matrices(1, ours, Ssul(), ids, "evaluation"))

    segrow(run.validation)  # which keeps the features
    variants: dict[str, Callable[[], float]] = {"reference": reference, "fp32": partial(segrow, first)}
    variants["fp32, kept features"] = partial(segrow, run.validation)
    found = alternate(variants, case.rounds, options.say, f"increment, evaluation, {case.name}")
    seconds = {name: median(each) / len(ids) for name, each in found.items()}
    saving = timed(lambda: torch.save(whole_state(measure.step, 0.0), checkpoint))
    theirs = seconds.pop("reference")
    measured = f"evaluation of an image, {case.name}, {case.crop} px"
    rows = [
        less(f"increment.{case.name}-evaluation.{name.replace(', ', '-').replace(' ', '-')}", *row, "s")
        for name, value in seconds.items()
        for row in [(measured, name, theirs, value)]
    ]
    return rows + whole_steps(case, costs, theirs, saving, seconds["fp32, kept features"])


def whole_steps(case: Case, costs: dict[str, Cost], theirs: float, saving: float, ours: float) -> list[Row]:
    """Training and evaluation of the recipe's step together.

    Args:
        case: Network and batches.
        costs: Of the trainings.
        theirs: Seconds the reference needs to evaluate an image.
        saving: Seconds it needs to save its best state.
        ours: Seconds we need for an image whose features are kept.
    """
    iterations = EPOCHS * (STEP_IMAGES // case.batch)
    looks = iterations // max(LEAST_INTERVAL, iterations // 100)
    yardstick = costs["reference"].step(STEP_IMAGES, case.batch, EPOCHS, 0)
    yardstick += looks * (SHOWING * theirs + saving) + VALIDATED * theirs
    rows = []
    for name, cost in costs.items():
        if name == "reference":
            continue
        kept = DEFAULT_VIEWS if name.startswith("cached") else 0
        spent = cost.step(STEP_IMAGES, case.batch, EPOCHS, kept) + VALIDATED * ours
        key = f"increment.{case.name}-whole-step.{name.replace(' ', '-')}"
        what = f"a step with evaluation, {EPOCHS} epochs, {case.name}, batch {case.batch}, {case.crop} px"
        note = (
            f"a step with evaluation: {VALIDATED} images after it; in the reference also {looks} times the "
            f"{SHOWING} that show its class, and its best state saved"
        )
        rows.append(
            less(key, what, f"{name}, K = {kept}" if kept else name, yardstick, spent, "s", note=note)
        )
    return rows
