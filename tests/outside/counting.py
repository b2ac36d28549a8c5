"""A method that measures before it trains: `--method outside.counting` with the tests on the path."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from segrow.batch import Batch
from segrow.losses import cross_entropy, upsample
from segrow.methods.base import Method, StepContext


@final
@dataclass
class Counting(Method):
    """Cross-entropy weighted by what a pass over the step's images counted: the state changes the weights."""

    passes: int = 1

    calls: ClassVar[list[str]] = []
    scanned: ClassVar[list[list[Batch]]] = []

    def __post_init__(self) -> None:
        self.counts = torch.zeros(0)

    def begin_step(self, ctx: StepContext) -> None:
        super().begin_step(ctx)
        if ctx.step:
            ctx.model.freeze(ctx.model.trunk)
        self.calls.append(f"begin {ctx.step}")

    def gather(self, ctx: StepContext) -> None:
        """Pixels of each class, their sum over all processes; and how often the teacher agrees."""
        ready = ctx.shares_trunk == (ctx.step > 0) and (ctx.teacher is None) == (ctx.step == 0)
        self.calls.append(f"gather {ctx.step}" if ready and not ctx.model.training else "too early")
        counts = torch.zeros(ctx.known + 1, device=ctx.model.mean.device)
        self.scanned.append([])
        for batch in (batch for _ in range(self.passes) for batch in ctx.scan()):
            self.scanned[-1].append(batch)
            counts[:-1] += torch.bincount(batch.labels[batch.labels >= 0], minlength=ctx.known)
            if ctx.teacher is not None:
                counts[-1] += (ctx.teach(batch).logits.argmax(1) == 0).sum()
        self.counts = ctx.sum(counts)

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        logits = upsample(ctx.forward(batch).logits, batch.labels.shape[-2:])
        weight = self.counts[1:-1].sum() / self.counts[:-1].sum()
        return {"ce": weight * ctx.mean(cross_entropy(logits, batch.labels), batch.labels >= 0)}

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.calls.append("load")
        self.counts = state["counts"]
