"""Fine-tuning: train on each step's labels and hope. The lower bound of every comparison."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from ..batch import Batch
from ..losses import cross_entropy, one_vs_rest_upsampled, softmax_upsampled
from .base import Method, StepContext


@final
@dataclass
class Finetune(Method):
    """Plain cross-entropy on the step's labels; every other class is background there.

    Attributes:
        loss_type: ce (softmax over all known classes) or bce (one-vs-rest, as SSUL's).
    """

    loss_type: Literal["ce", "bce"] = "ce"

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        logits, labels = ctx.forward(batch).logits, batch.labels
        if self.loss_type == "ce":
            values = softmax_upsampled(cross_entropy, logits, labels)
        else:
            values = one_vs_rest_upsampled(logits, labels)
        return {self.loss_type: ctx.mean(values, labels >= 0)}

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits.softmax(1) if self.loss_type == "ce" else logits.sigmoid()
