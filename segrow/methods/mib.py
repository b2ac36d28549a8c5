"""MiB: modelling the background (Cermelli et al., CVPR 2020, arXiv 2002.00718). METHODS section 3."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ..batch import Batch
from ..losses import cross_entropy, distillation, unbiased_cross_entropy, unbiased_distillation, upsample
from .base import StepContext
from .parts import Composed, Init, base_loss


@final
@dataclass
class Mib(Composed):
    """Background stands for all old classes in the labels, and for the new ones in the teacher.

    Attributes:
        kd: Weight of the distillation; 0 = none.
        unbiased: Whether losses know that background shifts; else they are LwF's.
    """

    init: Init = "background"
    kd: float = 10.0
    unbiased: bool = True

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
        losses = {}
        if self.unbiased:
            # only exemplars and pseudo-labels show old classes: they are not to be lost in background
            values = unbiased_cross_entropy(logits, labels, ctx.known_before, old_as_background=False)
            losses["unce"] = values.mean()
        else:
            losses["ce"] = cross_entropy(logits, labels).mean()
        if self.kd:
            distil = unbiased_distillation if self.unbiased else distillation
            losses["kd"] = self.kd * distil(logits, upsample(teacher.logits, size)).mean()
        return losses

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits.softmax(1)
