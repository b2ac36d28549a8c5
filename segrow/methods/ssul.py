"""SSUL: semantic segmentation with unknown label (Cha et al., NeurIPS 2021, arXiv 2106.11562).

With `--memory.size` it is SSUL-M. METHODS section 2 in prose; the switches are those of the released code.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import UserError
from ..losses import cross_entropy, focal, one_vs_rest, upsample
from ..model.segmenter import Segmenter, SegOutput
from ..scenario import IGNORE, UNKNOWN
from .base import Method, ParameterGroup, StepContext


@final
@dataclass
class Ssul(Method):
    """Frozen trunk and old heads, unknown class from saliency, pseudo-labels, weight transfer.

    Attributes:
        unknown: Which background pixels are trained as unknown: saliency (those that a saliency map
            shows), background (all of them, as on ADE20K), none (no unknown head).
        pseudo: Label background with the teacher's certain old classes.
        threshold: Least score of a pseudo-label.
        freeze: Freeze trunk and old heads from step 1 on.
        bn_freeze: Freeze every batch normalisation, statistics and affine, from step 1 on.
        w_transfer: Start a new head from the unknown head.
        loss_type: bce (one-vs-rest), ce or focal (softmax, gamma 2).
        background_lr: Rate of the background head in increments, relative to the new head's.
    """

    unknown: Literal["saliency", "background", "none"] = "saliency"
    pseudo: bool = True
    threshold: float = 0.7
    freeze: bool = True
    bn_freeze: bool = True
    w_transfer: bool = True
    loss_type: Literal["bce", "ce", "focal"] = "bce"
    background_lr: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--method.threshold is {self.threshold}, expected a score from 0 to 1")
        if self.background_lr < 0:
            raise UserError(f"--method.background_lr is {self.background_lr}, expected 0 or more")

    @property
    def aux(self) -> tuple[str, ...]:
        return {"saliency": ("saliency",), "background": ("everything",), "none": ()}[self.unknown]

    @property
    def unknown_head(self) -> bool:
        return self.unknown != "none"

    @property
    def pseudo_labelling(self) -> bool:
        return self.pseudo

    def check(self, model: Segmenter) -> None:
        if model.layout[0].stop != 1:
            raise UserError("method ssul needs a background head of its own; use --model.head conv")

    def begin_step(self, ctx: StepContext) -> None:
        self.check(ctx.model)
        super().begin_step(ctx)
        model = ctx.model
        if ctx.step == 0:
            return
        if self.w_transfer and self.unknown_head:
            model.initialise_from_unknown()
        if self.freeze:
            heads = zip(model.heads, model.layout, strict=True)
            old = [head for head, group in heads if group.step < ctx.step and group.start > 0]
            model.freeze(model.trunk, *old, norms=self.bn_freeze)
        if self.bn_freeze:
            model.freeze(*(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)))

    def parameter_groups(self, ctx: StepContext, lr: float, backbone_lr: float) -> list[ParameterGroup]:
        groups = super().parameter_groups(ctx, lr, backbone_lr)
        if ctx.step == 0 or not self.freeze:
            return groups
        slow = [p for p in ctx.model.heads[0].parameters() if p.requires_grad]  # the background head
        ids = {id(p) for p in slow}
        fast = [p for group in groups for p in group["params"] if id(p) not in ids]
        return [{"params": fast, "lr": lr}, {"params": slow, "lr": lr * self.background_lr}]

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        out = ctx.forward(batch)
        labels = batch.labels
        for hidden in (batch.aux[name] for name in self.aux):
            labels = labels.masked_fill((labels == 0) & hidden, UNKNOWN)
        if self.pseudo and ctx.teacher is not None:
            labels = self.pseudo_labels(ctx.teach(batch), labels)
        logits = upsample(self._channels(out.logits, out.unknown), labels.shape[-2:])
        target = labels.masked_fill(labels == UNKNOWN, ctx.known)  # the auxiliary channel stands last
        pixelwise = {"bce": one_vs_rest, "ce": cross_entropy, "focal": focal}[self.loss_type]
        return {self.loss_type: ctx.mean(pixelwise(logits, target), labels != IGNORE)}

    def pseudo_labels(self, teacher: SegOutput, labels: Tensor) -> Tensor:
        """Old classes where the label is background or unknown and the teacher's score is certain.

        The teacher's arg max runs over all its channels, unknown included (METHODS 2, step t > 0).
        """
        known = teacher.logits.shape[1]
        score, best = self._probabilities(
            upsample(self._channels(teacher.logits, teacher.unknown), labels.shape[-2:])
        ).max(1)
        certain = (score >= self.threshold) & (best > 0) & (best < known)
        return torch.where(((labels == 0) | (labels == UNKNOWN)) & certain, best, labels)

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """p(background) += p(unknown); unknown itself is never predicted (METHODS 2, Prediction)."""
        p = self._probabilities(self._channels(logits, unknown))
        known = logits.shape[1]
        return torch.cat([p[:, :1] + p[:, known:].sum(1, keepdim=True), p[:, 1:known]], 1)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.loss_type == "bce" else logits.softmax(1)

    def _channels(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Classes, then the auxiliary channel: the class index stays the channel."""
        return torch.cat([logits, unknown], 1) if unknown is not None and self.unknown_head else logits
