"""segrow's own code as a variant of the benchmark: `Run`, exactly as `segrow train` calls it.

before = save_before(network, method, run, 1)     # the model that step 1 starts from
spent = train_step(config, Ssul(), 1, before, out)
spent.training, spent.iterations
"""

import copy
import json
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
from segrow.engine.step import Objective, chunks, step_rates
from segrow.memory import to_json
from segrow.methods.base import Method, StepContext
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

Precision = Literal["32", "bf16", "16"]
LABELS: dict[Precision, str] = {"32": "fp32", "bf16": "bf16", "16": "fp16"}
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
    """

    training: float
    iterations: int
    peak: int
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
    shutil.rmtree(out)
    cost = OurStep(record["train_s"], record["iterations"], record["peak_memory_bytes"])
    kept = record["features"]
    if step and config.train.feature_views and not kept:
        raise RuntimeError(
            f"step {step} kept no features, though {config.train.feature_views} views were asked for"
        )
    return replace(cost, cache=kept["seconds"], views=kept["views"]) if kept else cost


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
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean
    model.train()
    with torch.no_grad():
        model(torch.randint(0, 256, (4, 3, 97, 97), dtype=torch.uint8))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return model.eval()


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


class ExactStep:
    """Updates of an incremental step on batches that are there already, without a loader or a log.

    Args:
        model: Already grown.
        teacher: The model before the step.
        step: Index of the step.
        bf16: Mixed precision in bfloat16.
    """

    def __init__(self, model: Segmenter, teacher: Segmenter, step: int, bf16: bool = False) -> None:
        method, train = Ssul(), TrainConfig()
        ctx = StepContext(step, model, teacher, model.n_classes, teacher.n_classes)
        method.begin_step(ctx)
        ctx.share_frozen_trunk()
        ctx.fold_frozen_trunk()
        self.channels_last, self.bf16 = train.channels_last, bf16
        self.objective = Objective(method, ctx)
        self.objective.train()
        groups = method.parameter_groups(ctx, *step_rates(train, step))
        self.optimizer = torch.optim.SGD(
            groups, momentum=train.momentum, nesterov=True, weight_decay=train.weight_decay
        )

    def update(self, batch: Batch) -> None:
        """One iteration."""
        (tensors,) = chunks(to_device(batch, torch.device("cpu"), self.channels_last), 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            losses: dict[str, Tensor] = self.objective(tensors)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        self.optimizer.step()
        self.optimizer.zero_grad()


def with_views(train: TrainConfig, views: int, precision: Precision | Literal["auto"] = "32") -> TrainConfig:
    """The same options in the exact mode (0 views) or in the cached mode."""
    return replace(train, precision=precision, feature_views=views)
