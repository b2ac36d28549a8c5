"""ILT: incremental learning techniques (Michieli and Zanuttigh, ICCVW 2019). METHODS section 5."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor

from ..batch import Batch
from ..losses import cross_entropy, distillation, upsample, wide
from .base import StepContext
from .parts import Composed, base_loss


@final
@dataclass
class Ilt(Composed):
    """LwF, and the backbone's output is held where the teacher's is.

    Attributes:
        kd: Weight of the distillation of the logits; 0 = none.
        mse: Weight of the mean squared difference of the backbone's outputs; 0 = none.
    """

    kd: float = 100.0
    mse: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("kd", "mse")

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        if ctx.teacher is None:
            return base_loss(ctx, batch)
        size = batch.labels.shape[-2:]
        out = ctx.forward(batch)
        logits = upsample(out.logits, size)
        teacher = ctx.teach(batch)
        labels = self.targets(ctx, teacher, batch.labels).labels
        losses = {"ce": cross_entropy(logits, labels).mean()}
        if self.kd:
            losses["kd"] = self.kd * distillation(logits, upsample(teacher.logits, size)).mean()
        if self.mse:
            ours, theirs = (wide(o.stages[-1]) for o in (out, teacher))
            losses["mse"] = self.mse * F.mse_loss(ours, theirs)
        return losses

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits.softmax(1)
