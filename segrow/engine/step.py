"""The training step in plain sight: one step of a run, from the first update to the last."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from itertools import islice

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..batch import Batch
from ..config import RunPaths, TrainConfig
from ..data.loader import (
    EpochPlan,
    Loaded,
    ShardedBatches,
    StepImages,
    collate,
    iterate,
    to_device,
)
from ..devices import kernel_search
from ..errors import LeakError, NonFiniteLossError, UserError
from ..losses import rate_factor
from ..methods.base import Method, StepContext
from ..model.kernels import accelerate
from ..precision import continued
from ..processes import loader_processes
from ..stored import state_of
from .checkpoint import Checkpoint, Saver
from .cost import Stopwatch
from .features import StepFeatures
from .heap import give_memory_back, keep_freed_memory
from .left import Work
from .log import RunLog, TrainingBar
from .machine import Machine
from .resume import model_tensors, optimizer_state
from .select import Selection

LINES = 50
"""About so many lines a step, where there is no terminal for a bar."""


class Objective(nn.Module):
    """One module whose forward is the method's loss: what Fabric wraps and what alone is called."""

    def __init__(self, method: Method, ctx: StepContext) -> None:
        super().__init__()
        self.student = ctx.model
        self._method = method
        self._ctx = ctx

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a Batch by name ("aux.NAME", "parts.0") -> named scalar losses."""
        aux = {k.removeprefix("aux."): v for k, v in tensors.items() if k.startswith("aux.")}
        parts = tuple(v for k, v in tensors.items() if k.startswith("parts."))
        batch = Batch(
            tensors["images"],
            tensors["labels"],
            tensors["from_memory"],
            aux,
            parts=parts,
            verdict=tensors.get("verdict"),
        )
        return self._method.loss(self._ctx, batch)


def chunks(batch: Batch, parts: int) -> list[dict[str, Tensor]]:
    """A batch in equal parts (gradient accumulation), as the tensors that `Objective` takes."""
    tensors = {"images": batch.images, "labels": batch.labels, "from_memory": batch.from_memory}
    tensors |= {f"aux.{name}": value for name, value in batch.aux.items()}
    tensors |= {f"parts.{k}": value for k, value in enumerate(batch.parts)}
    if batch.verdict is not None:
        tensors["verdict"] = batch.verdict
    split = {name: value.chunk(parts) for name, value in tensors.items()}
    return [{name: pieces[i] for name, pieces in split.items()} for i in range(len(split["images"]))]


class StepTrainer:
    """Trains one step, from the start or from a checkpoint, to its last epoch.

    Args:
        machine: What all steps share.
        method: Its `begin_step` has been called on `ctx`, and `gather` or, after a resume, `load_state_dict`.
        ctx: The step.
        images: Training views.
        epochs: Epochs of this step.
        resume: Where to continue.
        selection: Chooses among the weights that the step passes through; None: the last ones.
        features: Kept features to train on; None: the images themselves.
    """

    def __init__(
        self,
        machine: Machine,
        method: Method,
        ctx: StepContext,
        images: StepImages,
        epochs: int,
        resume: Checkpoint | None,
        selection: Selection | None = None,
        features: StepFeatures | None = None,
    ) -> None:
        self.machine, self.method, self.ctx, self.epochs = machine, method, ctx, epochs
        self.images = images
        self.selection, self.features = selection, features
        self._began, self._shown = 0.0, 0  # when `fit` began its updates, and images shown since
        fabric, train = machine.fabric, machine.train
        if fabric.device.type == "cpu" and not ctx.shares_trunk:
            accelerate(ctx.model)
            keep_freed_memory()
        groups = method.parameter_groups(ctx, *step_rates(train, ctx.step))
        self.rates = [float(group["lr"]) for group in groups]
        optimizer = torch.optim.SGD(
            groups,
            momentum=train.momentum,
            nesterov=train.momentum > 0,
            weight_decay=train.weight_decay,
            fused=True if fabric.device.type == "cpu" else None,  # there torch has no other fast one
        )
        self.precision = continued(resume.precision if resume else "", machine.numbers.used)
        self.first = resume.epoch if resume else 0
        state_of(method)  # what cannot be stored is met before the training, not after it
        self.watch = Stopwatch(resume.seconds if resume else 0.0)
        begin_scaling(machine.precision)
        if resume:
            _restore(resume, ctx.model, optimizer, machine)
        self.objective, self.optimizer = fabric.setup(Objective(method, ctx), optimizer)
        self.plan = epoch_plan(machine, ctx.step, images)
        self.batches = ShardedBatches(
            self.plan, range(self.first, epochs), fabric.global_rank, fabric.world_size
        )
        self.loader: DataLoader[Loaded | UserError | LeakError] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            **loader_processes(train.workers, fabric.device.type),
            collate_fn=collate,
            generator=torch.Generator(),  # else it would move the global random state, and so dropout
        )

    @kernel_search(True)
    def fit(self) -> float:
        """Train; returns the seconds spent, those before a resume and those of a selection included.

        Raises:
            NonFiniteLossError: When the loss is not finite.
            UserError: When an image cannot be read.
            LeakError: When labels show what the step may not see.
        """
        if self.features:
            with self.watch:
                self.features.build()
        machine, step, per_epoch = self.machine, self.ctx.step, self.plan.iterations
        first = machine.fabric.is_global_zero
        log = RunLog(machine.root, step, self.first, per_epoch) if first else None
        paths = RunPaths(machine.root)
        saver = Saver(paths.checkpoint, paths.checkpoint_before)
        self._began, self._shown = time.perf_counter(), 0
        bar = machine.display.training(f"step {step}", self.epochs * per_epoch, self.first * per_epoch)
        with ExitStack() as ends:  # all of them, also when one fails
            ends.callback(give_memory_back)
            if log:
                ends.callback(log.close)
            ends.callback(saver.finish)
            ends.callback(bar.close)
            loaded = ends.enter_context(closing(self._loaded()))
            for epoch in range(self.first, self.epochs):
                with self.watch:
                    terms = self._epoch(epoch, islice(loaded, per_epoch), bar, log)
                self._check_weights(epoch + 1)
                if first:
                    saver.keep(self._checkpoint(epoch + 1))
                if not machine.display.live and self._tells(epoch + 1):
                    losses = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
                    spent = f"{self.watch.seconds:.0f} s, {self._left(epoch + 1, 0)}"
                    machine.display.say(f"step {step}  epoch {epoch + 1}/{self.epochs}  {losses}  {spent}")
        if self.selection:
            machine.display.say(f"step {step}  {self.selection.finish()}")
        return self.watch.seconds

    def _tells(self, done: int) -> bool:
        """Whether a line is due after so many epochs: some fifty lines a step are enough."""
        return done % max(1, self.epochs // LINES) == 0 or done == self.epochs

    def _epoch(
        self, epoch: int, batches: Iterator[Loaded], bar: TrainingBar, log: RunLog | None
    ) -> dict[str, float]:
        """All updates of one epoch; returns the last means of the loss terms."""
        machine, per_epoch = self.machine, self.plan.iterations
        # dropout: the same again after a resume, different on every device
        torch.manual_seed(mix_seed(machine.seed, self.ctx.step, epoch, machine.fabric.global_rank))
        self.objective.train()
        recent: list[dict[str, Tensor]] = []
        images: list[list[str]] = []
        shown: dict[str, float] = {}
        for i, (loaded, ids) in enumerate(batches):
            batch = to_device(loaded, machine.fabric.device, machine.train.channels_last)
            self._set_rates(epoch * per_epoch + i)
            recent.append(self._update(batch))
            images.append(ids)
            bar.advance()
            self._shown += machine.train.batch_size
            # the only synchronisation with the device
            if len(recent) == machine.train.log_every or i + 1 == per_epoch:
                shown = _means(machine.fabric, recent, images)
                speed = bar.show(shown, self._left(epoch, i + 1))
                if log:
                    log.write(epoch, i, self.optimizer.param_groups[0]["lr"], speed, shown)
                recent, images = [], []
            if self.selection:
                self.selection.look(epoch * per_epoch + i + 1)
        return shown

    def _left(self, epoch: int, updates: int) -> str:
        """How long the run still takes, after so many epochs and updates of the step."""
        per_epoch = self.plan.iterations
        images = ((self.epochs - epoch) * per_epoch - updates) * self.machine.train.batch_size
        now = Work("heads" if self.ctx.shares_trunk else "trunk", images)
        return self.machine.left.words(now, (time.perf_counter() - self._began) / self._shown)

    def _loaded(self) -> Generator[Loaded, None, None]:
        """The batches of all epochs to come."""
        return self.features.batches(self.batches) if self.features else iterate(self.loader)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward and one optimizer step; returns the detached loss terms."""
        fabric, train = self.machine.fabric, self.machine.train
        parts = chunks(batch, train.accumulate)
        terms: dict[str, Tensor] = {}
        for k, tensors in enumerate(parts):
            with fabric.no_backward_sync(self.objective, enabled=k + 1 < len(parts)):
                losses: dict[str, Tensor] = self.objective(tensors)
                fabric.backward(torch.stack(list(losses.values())).sum() / len(parts))
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + value.detach() / len(parts)
        if train.clip:
            # with a loss scaler the first updates often overflow: it then skips them; other gradients that
            # are not finite end up in the weights, which `_check_weights` reports
            fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=train.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _set_rates(self, update: int) -> None:
        train = self.machine.train
        factor = rate_factor(train.policy, update, self.epochs * self.plan.iterations, train.step_size)
        floor = train.lr_floor if train.policy == "poly" else 0.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = max(rate * factor, floor if rate else 0.0)

    def _check_weights(self, epochs_done: int) -> None:
        """The losses never saw the last update; what cannot be continued from is no checkpoint.

        Raises:
            NonFiniteLossError: When a weight or a running statistic is not finite.
        """
        for name, value in self.ctx.model.state_dict().items():
            if not bool(value.isfinite().all()):
                when = f"the last update of epoch {epochs_done} of step {self.ctx.step}"
                raise NonFiniteLossError(f"{name} is not finite after {when}")

    def _checkpoint(self, epochs_done: int) -> Checkpoint:
        return Checkpoint(
            step=self.ctx.step,
            epoch=epochs_done,
            model=model_tensors(self.ctx),
            optimizer=optimizer_state(self.optimizer, self.machine.train.momentum),
            scaler=self.machine.precision.state_dict(),
            method=state_of(self.method),
            seconds=self.watch.seconds,
            selected=self.selection.state_dict() if self.selection else {},
            precision=self.precision,
        )


def _restore(
    resume: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, machine: Machine
) -> None:
    """Put what a checkpoint holds, which was found to fit, into a step's model and optimizer."""
    groups = optimizer.state_dict()["param_groups"]  # rates and decay are those of the configuration
    # without a frozen trunk's tensors, which are those of the step before
    model.load_state_dict({**model.state_dict(), **resume.model})
    optimizer.load_state_dict({"state": resume.optimizer["state"], "param_groups": groups})
    for parameter, state in optimizer.state.items():
        # kernels go through both as they lie in memory; an older file's have another format
        state |= {name: torch.empty_like(parameter).copy_(value) for name, value in state.items()}
    if resume.scaler:
        machine.precision.load_state_dict(resume.scaler)


def _means(fabric: Fabric, recent: list[dict[str, Tensor]], images: list[list[str]]) -> dict[str, float]:
    """Means of the terms over the last updates and over all processes, which so stop together.

    Raises:
        NonFiniteLossError: Naming the first batch whose loss is not finite.
    """
    names = list(recent[0])
    stacked = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in recent])
    reduced = fabric.all_reduce(stacked, reduce_op="mean")
    values: list[list[float]] = torch.as_tensor(reduced).tolist()
    for row, ids in zip(values, images, strict=True):
        if not all(math.isfinite(v) for v in row):
            terms = ", ".join(f"{name} = {v}" for name, v in zip(names, row, strict=True))
            raise NonFiniteLossError(f"the loss is not finite: {terms}; images: {', '.join(ids)}")
    return {name: sum(row[k] for row in values) / len(values) for k, name in enumerate(names)}


def epoch_plan(machine: Machine, step: int, images: StepImages) -> EpochPlan:
    """The global batches of a step."""
    return EpochPlan(len(images), len(images.exemplars), machine.train.batch_size, machine.seed, step)


def mix_seed(*parts: int) -> int:
    """One seed from several numbers, without collisions between neighbours."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_precision(name: str, device_type: str) -> Precision:
    """Fabric's precision plugin of 32, bf16 or 16.

    Raises:
        UserError: For fp16 on a CPU, which torch cannot train.
    """
    if name == "32":
        return Precision()
    if name == "16":
        if device_type != "cuda":
            raise UserError("precision 16 needs a GPU; on a CPU use --train.precision auto, bf16 or 32")
        return MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cuda"))
    return MixedPrecision("bf16-mixed", device_type)


def begin_scaling(precision: Precision) -> None:
    """A fresh loss scaler, where there is one: a step begins the same in a run that was stopped before it."""
    if isinstance(precision, MixedPrecision) and precision.scaler is not None:
        precision.scaler = type(precision.scaler)(precision.device)


def step_rates(train: TrainConfig, step: int) -> tuple[float, float]:
    """Learning rates of (decoder and heads, backbone) in a step."""
    if step == 0:
        return train.step0_lr, train.step0_backbone_lr
    return train.lr, train.lr / 10 if train.backbone_lr is None else train.backbone_lr
