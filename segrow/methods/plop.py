"""PLOP: learning without forgetting for continual semantic segmentation (Douillard et al., CVPR 2021).

arXiv 2011.11390; METHODS section 4 in prose.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import UserError
from ..losses import POD_SCALES, cross_entropy, pod_distance, upsample
from ..model.segmenter import Segmenter, SegOutput
from .base import StepContext
from .parts import Composed, Init, Pseudo, base_loss

LEAST_SIDE = max(POD_SCALES)


@final
@dataclass
class Plop(Composed):
    """Pseudo-labels of low entropy, and local POD distillation at several depths.

    Attributes:
        adaptive: Multiply an image's cross-entropy with the share of its unannotated pixels that got a
            pseudo-label; only pseudo entropy.
        pod: Weight of local POD on the maps of the backbone and on the decoder's output; 0 = none.
        pod_logits: Its weight on the logits; 0 = none.
    """

    init: Init = "background"
    pseudo: Pseudo = "entropy"
    adaptive: bool = True
    pod: float = 0.01
    pod_logits: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("pod", "pod_logits")

    def check(self, model: Segmenter, crop: int | None = None) -> None:
        backbone = model.trunk.backbone
        stride = backbone.reductions[-1]
        side = LEAST_SIDE if crop is None else -(-crop // stride)
        if (self.pod or self.pod_logits) and side < LEAST_SIDE:
            raise UserError(
                f"plop distils maps of {LEAST_SIDE} x {LEAST_SIDE} pixels and more, but crops of {crop} "
                f"give {side} at stride {stride}; use --train.crop {LEAST_SIDE * stride} or more"
            )
        if self.pod and not backbone.shows_before:
            raise UserError(
                f"method plop distils maps before their last activation, which are not known of backbone "
                f"{backbone.name}; use a resnet or mobilenet, or --method.pod 0"
            )

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        if ctx.teacher is None:
            return base_loss(ctx, batch)
        size = batch.labels.shape[-2:]
        before = self.pod > 0
        out, teacher = ctx.forward(batch, before), ctx.teach(batch, before)
        labels, confident = self.targets(ctx, teacher, batch.labels)
        values = cross_entropy(upsample(out.logits, size), labels)
        if self.adaptive:
            values = values * confident.view(-1, 1, 1).to(values.dtype)
        return {"ce": values.mean(), **self._pod(ctx, out, teacher)}

    def _pod(self, ctx: StepContext, out: SegOutput, teacher: SegOutput) -> dict[str, Tensor]:
        """Local POD of the maps, and of the logits with the new classes summed into background."""
        # 4 maps of the backbone, the decoder's output, the logits; larger for many old and few new classes
        scale = math.sqrt(ctx.known / (ctx.known - ctx.known_before)) / 6
        losses = {}
        if self.pod:
            pairs = zip((*out.before, out.features), (*teacher.before, teacher.features), strict=True)
            losses["pod"] = scale * self.pod * torch.stack([pod_distance(a, b) for a, b in pairs]).sum()
        if self.pod_logits:
            new = out.logits[:, ctx.known_before :].sum(1, keepdim=True)
            folded = torch.cat([out.logits[:, :1] + new, out.logits[:, 1 : ctx.known_before]], 1)
            losses["pod_logits"] = scale * self.pod_logits * pod_distance(folded, teacher.logits)
        return losses

    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        return logits.softmax(1)
