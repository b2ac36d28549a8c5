"""segrow's own code as a variant of the benchmark: `Run`, exactly as `segrow train` calls it.

before = save_before(network, method, run, 1)     # the model that step 1 starts from
spent = train_step(config, Ssul(), 1, before, out)
spent.training, spent.iterations
"""

import copy
import csv
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segrow.batch import Batch
from segrow.config import ModelConfig, RunConfig, TrainConfig
from segrow.data.loader import to_device
from segrow.engine.log import Display
from segrow.engine.machine import Machine
from segrow.engine.records import model_meta
from segrow.engine.run import Run
from segrow.engine.setup import check_ranges, make_fabric, prepare
from segrow.engine.step import Objective, chunks, make_precision, step_rates
from segrow.memory import to_json
from segrow.methods.base import Method, StepContext
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

Precision = Literal["32", "bf16", "16"]
LABELS: dict[Precision, str] = {"32": "fp32", "bf16": "bf16", "16": "fp16"}
CPU = torch.device("cpu")
DEFAULT_VIEWS = TrainConfig().feature_views


@dataclass(frozen=True)
class OurStep:
    """What a step of ours cost.

    Attributes:
        training: Seconds, building a cache included.
        iterations: Updates.
        peak: Peak of the resident set in bytes.
        cache: Seconds of building the cache; 0 without one.
        views: Views an image in it; 0 = the exact mode.
        later: Seconds an iteration without the first epoch, in which loaders and kernels start; nan of one.
    """

    training: float
    iterations: int
    peak: int
    later: float = math.nan
    cache: float = 0.0
    views: int = 0


def make_run(config: RunConfig, method: Method, out: Path) -> Run:
    """A run in an empty folder, before its first step.

    Raises:
        UserError: For a mistake in the options.
    """
    check_ranges(config)
    prepared = prepare(config, method, progress=False)
    fabric, precision = make_fabric(config.train)
    machine = Machine(fabric, precision, config.train, config.seed, out, Display(quiet=True))
    out.mkdir(parents=True)
    return Run(config, method, prepared, machine)


def train_step(config: RunConfig, method: Method, step: int, before: Path | None, out: Path) -> OurStep:
    """Train one step.

    Args:
        config: What to do.
        method: How.
        step: Which.
        before: Model directory of the step before; None at step 0.
        out: A folder that does not exist; removed afterwards.

    Raises:
        RuntimeError: When the cached mode was asked for and the step was trained in the exact mode.
    """
    run = make_run(config, method, out)
    if before is not None:
        shutil.copytree(before, run.paths.model(step - 1))
    run.train_step(step)  # `step` would evaluate too, which is timed apart
    record = json.loads((run.paths.model(step) / "model.json").read_text())["training"]
    later = later_epochs(run.paths.log)
    shutil.rmtree(out)
    cost = OurStep(record["train_s"], record["iterations"], record["peak_memory_bytes"], later)
    kept = record["features"]
    if step and config.train.feature_views and not kept:
        raise RuntimeError(
            f"step {step} kept no features, though {config.train.feature_views} views were asked for"
        )
    return replace(cost, cache=kept["seconds"], views=kept["views"]) if kept else cost


def later_epochs(log: Path) -> float:
    """Seconds an iteration of all epochs but the first, checkpoints included, by a run's log.csv; nan of one.

    Every row stands for the updates since the one before it, and their mean speed.
    """
    seconds, updates, before = 0.0, 0, -1
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            epoch, update = int(row["epoch"]), int(row["iteration"])
            count = update - (before if update > before else -1)
            before = update
            if epoch:
                updates += count
                seconds += count / float(row["iterations_per_second"])
    return seconds / updates if updates else math.nan


def random_network(config: ModelConfig, n_base: int, increments: list[int], seed: int = 1) -> Segmenter:
    """A network with random weights whose norms fit its activations, grown by earlier increments.

    Untrained norms would leave the activations of a deep trunk far too large or too small to be typical.

    Args:
        increments: Number of classes of steps 1, 2, ...
    """
    torch.manual_seed(seed)
    model = build_segmenter(config, n_base, True, lambda line: None)
    for step, classes in enumerate(increments, 1):
        model.grow(classes, step)
    settle_norms(model)
    return model.eval()


@torch.no_grad()
def settle_norms(model: Segmenter) -> None:
    """Give the norms the statistics of random images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean
    model.train()
    model(torch.randint(0, 256, (4, 3, 97, 97), dtype=torch.uint8))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def save_before(model: Segmenter, config: RunConfig, method: Method, step: int, directory: Path) -> Path:
    """Store a network as the model of a step, to be trained further; returns its directory."""
    scenario = prepare(config, method, progress=False).scenario
    meta = model_meta(config, method, scenario, step, None, {})
    save_model(model, directory, meta, {"memory.json": to_json(())})
    return directory


def student_and_teacher(before: Path, n_new: int, step: int) -> tuple[Segmenter, Segmenter]:
    """The same two networks that `Run` starts a step with."""
    model, _ = load_model(before)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(n_new, step)
    return model, teacher


class Updates:
    """Updates of a step on batches that are there already, without a loader or a log.

    Args:
        model: Already grown; is moved to the device.
        teacher: The model before the step; None at step 0.
        step: Index of the step.
        precision: What is computed in.
        device: Where.
    """

    def __init__(
        self,
        model: Segmenter,
        teacher: Segmenter | None,
        step: int,
        precision: Precision = "32",
        device: torch.device = CPU,
    ) -> None:
        self.method, self.device, self.train = Ssul(), device, TrainConfig()
        layout = torch.channels_last if self.train.channels_last else torch.contiguous_format
        model.to(device).to(memory_format=layout)
        known_before = 1
        if teacher is not None:
            known_before = teacher.to(device).n_classes
        self.ctx = StepContext(step, model, teacher, model.n_classes, known_before)
        self.method.begin_step(self.ctx)
        self.ctx.share_frozen_trunk()
        self.ctx.fold_frozen_trunk()
        self.precision = make_precision(precision, device.type)
        self.objective = Objective(self.method, self.ctx)
        self.objective.train()
        groups = self.method.parameter_groups(self.ctx, *step_rates(self.train, step))
        self.optimizer = torch.optim.SGD(
            groups, momentum=self.train.momentum, nesterov=True, weight_decay=self.train.weight_decay
        )

    def update(self, batch: Batch) -> Tensor:
        """One iteration; the loss, which is on the device and may still be computed there."""
        (tensors,) = chunks(to_device(batch, self.device, self.train.channels_last), 1)
        with self.precision.forward_context():
            losses: dict[str, Tensor] = self.objective(tensors)
            total = torch.stack(list(losses.values())).sum()
        self.precision.backward(total, None)
        self.precision.optimizer_step(self.optimizer)
        self.optimizer.zero_grad()
        return total.detach()

    @torch.no_grad()
    def keep(self, batch: Batch) -> Batch:
        """The batch as it comes from kept features, on the device."""
        batch = to_device(batch, self.device, self.train.channels_last)
        with self.precision.forward_context():
            parts = tuple(part.bfloat16() for part in self.ctx.encode(batch.images))
            kept = replace(batch, images=batch.images[:, :, :0, :0], parts=parts)
            seen = self.ctx.teach(replace(kept))  # of its own: it holds the trunk's output then
        return replace(kept, verdict=self.method.verdict(self.ctx, seen, batch.labels.shape[-2:]))


def with_views(train: TrainConfig, views: int, precision: Precision | Literal["auto"] = "32") -> TrainConfig:
    """The same options in the exact mode (0 views) or in the cached mode."""
    return replace(train, precision=precision, feature_views=views)
