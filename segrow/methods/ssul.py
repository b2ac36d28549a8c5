"""SSUL: semantic segmentation with unknown label (Cha et al., NeurIPS 2021, arXiv 2106.11562).

With `--memory.size` it is SSUL-M. METHODS section 2 in prose; the switches are those of the released code.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import UserError
from ..losses import cross_entropy, focal, one_vs_rest_upsampled, softmax_upsampled
from ..model.segmenter import Segmenter
from ..scenario import IGNORE, UNKNOWN
from .base import ParameterGroup, StepContext
from .parts import Composed, Freeze, Init, Pseudo


@final
@dataclass
class Ssul(Composed):
    """Frozen trunk and old heads, unknown class from saliency, pseudo-labels, weight transfer.

    Attributes:
        unknown: Which background pixels are trained as unknown: saliency (those that a saliency map
            shows), background (all of them, as on ADE20K), none (no unknown head, so init unknown is random).
        bn_freeze: Freeze every batch normalisation, statistics and affine, from step 1 on.
        loss_type: bce (one-vs-rest), ce or focal (softmax, gamma 2).
        background_lr: Rate of the background head in increments, relative to the new head's.
        gives_way: First class indices of steps whose classes give way to all earlier ones (`segrow add`):
            such a class scores only where background was chosen before, for its head was trained on a few
            images without the others. What is unknown gives way to it in turn, and in that step only the new
            head trains. So of the pixels where background was chosen some become the new class, and nothing
            else changes.
    """

    paper_memory: ClassVar[bool] = True

    init: Init = "unknown"
    freeze: Freeze = "old_heads"
    pseudo: Pseudo = "threshold"
    unknown: Literal["saliency", "background", "none"] = "saliency"
    bn_freeze: bool = True
    loss_type: Literal["bce", "ce", "focal"] = "bce"
    background_lr: float = 1e-4
    gives_way: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("background_lr")

    @property
    def aux(self) -> tuple[str, ...]:
        return {"saliency": ("saliency",), "background": ("everything",), "none": ()}[self.unknown]

    @property
    def unknown_head(self) -> bool:
        return self.unknown != "none"

    @property
    def trains_unknown(self) -> bool:
        return True

    @property
    def softmax(self) -> bool:
        return self.loss_type != "bce"

    @property
    def freezes_norms(self) -> bool:
        return self.bn_freeze

    def check(self, model: Segmenter, crop: int | None = None) -> None:
        if model.layout[0].stop != 1:
            raise UserError("method ssul needs a background head of its own; use --model.head conv")

    def begin_step(self, ctx: StepContext) -> None:
        super().begin_step(ctx)
        if ctx.step and self.bn_freeze:
            ctx.model.freeze(*(m for m in ctx.model.modules() if isinstance(m, nn.BatchNorm2d)))
        if ctx.known_before in self.gives_way:
            unknown = [] if ctx.model.unknown is None else [ctx.model.unknown]
            ctx.model.freeze(ctx.model.trunk, *ctx.model.heads[:-1], *unknown)

    def splits_background(self, ctx: StepContext) -> bool:
        """A class that gives way takes nothing from the score of background."""
        return super().splits_background(ctx) and ctx.known_before not in self.gives_way

    def parameter_groups(self, ctx: StepContext, lr: float, backbone_lr: float) -> list[ParameterGroup]:
        groups = super().parameter_groups(ctx, lr, backbone_lr)
        if ctx.step == 0 or self.freeze != "old_heads":
            return groups
        slow = [p for p in ctx.model.heads[0].parameters() if p.requires_grad]  # the background head
        if not slow:
            return groups
        ids = {id(p) for p in slow}
        fast = [p for group in groups for p in group["params"] if id(p) not in ids]
        return [{"params": fast, "lr": lr}, {"params": slow, "lr": lr * self.background_lr}]

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        """One term, the mean over pixels that are not ignored.

        With bce, frozen heads on a frozen trunk are left out: they add nothing that trains (METHODS 2,
        defect 6).
        """
        labels = batch.labels
        for hidden in (batch.aux[name] for name in self.aux):
            labels = labels.masked_fill((labels == 0) & hidden, UNKNOWN)
        if self.pseudo != "none" and ctx.teacher is not None:
            labels = self.fill(self.judged(ctx, batch), labels).labels
        target = labels.masked_fill(labels == UNKNOWN, ctx.known)  # the auxiliary channel stands last
        if self.softmax:
            out = ctx.forward(batch)
            channels = self.channels(out.logits, out.unknown)
        else:
            channels, place = ctx.forward_trained(batch)
            target = place[target.clamp(min=0)].masked_fill(labels == IGNORE, IGNORE)
        if self.loss_type == "bce":
            values = one_vs_rest_upsampled(channels, target)
        else:
            pixelwise = cross_entropy if self.loss_type == "ce" else focal
            values = softmax_upsampled(pixelwise, channels, target)
        return {self.loss_type: ctx.mean(values, labels != IGNORE)}

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """p(background) += p(unknown); unknown itself is never predicted (METHODS 2, Prediction)."""
        p, known = self._scale(logits, unknown), logits.shape[1]
        starts = (*self.gives_way, known)
        background = p[:, :1] + self._unexplained(p, known, starts[0])
        classes = p[:, 1 : starts[0]]
        for start, stop in pairwise(starts):
            free = (classes <= background).all(1, keepdim=True)
            background = p[:, :1] + self._unexplained(p, known, stop)
            # where background was chosen it may lose to the new classes alone, though it is less than it was
            earlier = torch.where(free, torch.minimum(classes, background), classes)
            classes = torch.cat([earlier, p[:, start:stop] * free], 1)
        return torch.cat([background, classes], 1)

    def _unexplained(self, p: Tensor, known: int, stop: int) -> Tensor:
        """p(unknown), B 1 H W: less where it is a class, of those below `stop`, that gives way.

        The unknown head was not told of these. A softmax has taken from it what they claim already.
        """
        unknown = p[:, known:].sum(1, keepdim=True)
        told = p[:, self.gives_way[0] : stop] if self.gives_way else p[:, :0]
        if self.softmax or not told.shape[1]:
            return unknown
        return unknown * (1 - told.amax(1, keepdim=True))

    def novelty(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """What the unknown head says, where there is one."""
        if unknown is None or not self.unknown_head:
            return super().novelty(logits, unknown)
        known = logits.shape[1]
        return self._unexplained(self._scale(logits, unknown), known, known)
