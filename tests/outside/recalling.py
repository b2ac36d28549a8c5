"""A method whose scores need its state: without it another class wins nearly everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segrow.batch import Batch
from segrow.losses import cross_entropy, upsample
from segrow.methods.base import Method, StepContext


@final
@dataclass
class Recalling(Method):
    """Cross-entropy; at the end of a step it learns by how much each class is to be corrected."""

    def __post_init__(self) -> None:
        self.bias = torch.zeros(1, 0, 1, 1)

    def begin_step(self, ctx: StepContext) -> None:
        super().begin_step(ctx)
        if ctx.step:
            ctx.model.freeze(ctx.model.trunk, *ctx.model.heads[:-1])

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        logits = upsample(ctx.forward(batch).logits, batch.labels.shape[-2:])
        return {"ce": ctx.mean(cross_entropy(logits, batch.labels), batch.labels >= 0)}

    def end_step(self, ctx: StepContext) -> None:
        """The mean logit of each class over the step's images, so that no class has a head start."""
        ctx.model.eval()
        with torch.no_grad():
            means = [ctx.model(batch.images).logits.mean((0, 2, 3)) for batch in ctx.scan()]
        self.bias = torch.stack(means).mean(0).view(1, -1, 1, 1)

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return (logits - self.bias if self.bias.numel() else logits).softmax(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"bias": self.bias}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.bias = state["bias"]
