"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016), as MiB's authors ran it. METHODS section 5."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..batch import Batch
from ..losses import cross_entropy, distillation, upsample
from .base import StepContext
from .parts import Composed, base_loss


@final
@dataclass
class Lwf(Composed):
    """Cross-entropy, and distillation over the old classes.

    Attributes:
        kd: Weight of the distillation; 0 = none.
    """

    kd: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("kd")

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        if ctx.teacher is None:
            return base_loss(ctx, batch)
        size = batch.labels.shape[-2:]
        logits = upsample(ctx.forward(batch).logits, size)
        teacher = ctx.teach(batch)
        labels = self.targets(ctx, teacher, batch.labels).labels
        losses = {"ce": cross_entropy(logits, labels).mean()}
        if self.kd:
            losses["kd"] = self.kd * distillation(logits, upsample(teacher.logits, size)).mean()
        return losses

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits.softmax(1)
