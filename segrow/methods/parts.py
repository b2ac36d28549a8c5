"""What methods are made of and can exchange: initialisation, freezing, pseudo-labels, loss terms.

--method mib --method.pseudo entropy --method.freeze trunk --method.pod 0.01
"""

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..argmax import by_bands
from ..batch import Batch
from ..errors import UserError
from ..losses import (
    POD_SCALES,
    cross_entropy,
    distillation,
    in_pieces,
    normalised_entropy,
    pod_distance,
    softmax_upsampled,
    unbiased_cross_entropy,
    unbiased_distillation,
    upsample,
    wide,
)
from ..medians import class_medians, reference_medians
from ..model.segmenter import Segmenter, SegOutput
from ..scenario import IGNORE, UNKNOWN
from .base import Method, StepContext

Init = Literal["background", "unknown", "random"]
Freeze = Literal["none", "trunk", "old_heads"]
Pseudo = Literal["none", "threshold", "entropy"]
Median = Literal["exact", "reference"]
UNSURE, NO_CLASS = -1, -2  # of a verdict: to be ignored; says nothing
LEAST_SIDE = max(POD_SCALES)  # of maps that local POD can cut


class Targets(NamedTuple):
    """Labels to train on, after pseudo-labelling.

    Attributes:
        labels: B H W, class indices; negative = ignored.
        confident: B; the share of the pixels without annotation that got a pseudo-label, 1 with a rule that
            ignores none. An image without such pixels has 1, with the reference's medians 0.
    """

    labels: Tensor
    confident: Tensor


@dataclass
class Composed(Method, abc.ABC):
    """A method with exchangeable parts.

    Attributes:
        init: What a new head starts from: background (MiB), unknown (SSUL, needs its unknown head) or random.
        freeze: What stays as it is from step 1 on: none, trunk (with its batch normalisations), or old_heads
            (trunk and heads of earlier steps; a background head of its own goes on training).
        pseudo: Labels from the teacher where nothing is annotated: none, threshold (its best class, if that
            is an old one with at least the score `threshold`), entropy (its best class where it is certain,
            else ignored: PLOP).
        threshold: Least score of a pseudo-label; only pseudo threshold.
        floor: Least entropy threshold of a class, in [0, 1]; only pseudo entropy.
        median: How entropy thresholds are found: exact, or as PLOP's reference code does (METHODS 4).
    """

    init: Init = "random"
    freeze: Freeze = "none"
    pseudo: Pseudo = "none"
    threshold: float = 0.7
    floor: float = 0.001
    median: Median = "exact"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--method.threshold is {self.threshold}, expected a score from 0 to 1")
        if not 0 <= self.floor <= 1:
            raise UserError(f"--method.floor is {self.floor}, expected an entropy from 0 to 1")
        if self.init == "unknown" and not self.trains_unknown:
            raise UserError(
                f"--method.init unknown needs an unknown head, which method {self.name} does not train; "
                "use background or random"
            )
        self._thresholds: Tensor | None = None  # of old classes, on the scale of `_entropy`

    def check_weights(self, *names: str) -> None:
        """Refuse a negative weight (of a loss term, of a rate).

        Raises:
            UserError: Naming the first.
        """
        for name in names:
            if (value := getattr(self, name)) < 0:
                raise UserError(f"--method.{name} is {value}, expected 0 or more")

    @property
    def trains_unknown(self) -> bool:
        """Whether the method has a loss for an unknown head."""
        return False

    @property
    def softmax(self) -> bool:
        """Whether the channels are one distribution; else each is a problem of its own."""
        return True

    @property
    def freezes_norms(self) -> bool:
        """Whether the batch normalisations of what is frozen are frozen too."""
        return True

    @property
    def freezes_trunk(self) -> bool:
        return self.freeze != "none" and self.freezes_norms

    @property
    def needs_features_only(self) -> bool:
        return True

    # ---- before the step

    def begin_step(self, ctx: StepContext) -> None:
        self.check(ctx.model)
        super().begin_step(ctx)
        if ctx.step == 0:
            return
        if self.init == "background":
            ctx.model.initialise_from_background(split=self.splits_background(ctx))
        elif self.init == "unknown" and self.unknown_head:
            ctx.model.initialise_from_unknown()
        if self.freeze != "none":
            old = []
            if self.freeze == "old_heads":
                heads = zip(ctx.model.heads, ctx.model.layout, strict=True)
                old = [head for head, g in heads if g.step < ctx.step and (g.start, g.stop) != (0, 1)]
            ctx.model.freeze(ctx.model.trunk, *old, norms=self.freezes_norms)

    def splits_background(self, ctx: StepContext) -> bool:
        """Whether the new classes take their first probability from background's (MiB's initialisation)."""
        return self.softmax

    def gather(self, ctx: StepContext) -> None:
        """Entropy threshold of an old class: the median over unannotated pixels that the teacher gives it."""
        self._thresholds = None
        if self.pseudo != "entropy" or ctx.step == 0:
            return
        medians = class_medians if self.median == "exact" else reference_medians
        found = medians(lambda: self._entropies(ctx), ctx.known_before, ctx.sum)
        if self.median == "exact":
            found = found.nan_to_num(nan=0.0)  # a class that the teacher sees nowhere
        self._thresholds = torch.where(found < self.floor, self.floor, found)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._thresholds is None else {"thresholds": self._thresholds}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if other := set(state) - {"thresholds"}:
            raise UserError(f"method {self.name} has no state {', '.join(sorted(other))}")
        thresholds = state.get("thresholds")
        if thresholds is not None and (thresholds.ndim != 1 or not thresholds.is_floating_point()):
            raise UserError(
                f"method {self.name} has one threshold per class, got {tuple(thresholds.shape)} of "
                f"{thresholds.dtype}; copy the model again"
            )
        self._thresholds = thresholds

    def check_state(self, ctx: StepContext) -> None:
        count = ctx.known_before if self.pseudo == "entropy" and ctx.step else 0
        found = torch.empty(0) if self._thresholds is None else self._thresholds
        if len(found) != count:
            raise UserError(f"method {self.name} has {len(found)} entropy thresholds, expected {count}")
        if self.median == "exact" and not bool(
            found.isfinite().all()
        ):  # the reference code's can be anything
            raise UserError(f"method {self.name} has an entropy threshold that is not finite")

    # ---- labels

    @property
    def pseudo_labelling(self) -> bool:
        return self.pseudo == "threshold"

    def pseudo_labels(self, teacher: SegOutput, labels: Tensor) -> Tensor:
        """Old classes where the label is background or unknown and the teacher's score is certain.

        The arg max runs over all its channels, unknown included (METHODS 2, step t > 0).
        """
        return self.fill(self._certain(teacher, labels.shape[-2:]), labels).labels

    def targets(self, ctx: StepContext, teacher: SegOutput, labels: Tensor) -> Targets:
        """The labels of a batch at step t > 0, pseudo-labels filled in: `verdict`, then `fill`."""
        return self.fill(self.verdict(ctx, teacher, labels.shape[-2:]), labels)

    def judged(self, ctx: StepContext, batch: Batch, teacher: SegOutput | None = None) -> Tensor | None:
        """The teacher's verdict on a batch: the kept one, or a new one.

        Args:
            teacher: Its output, where it has been computed.
        """
        if batch.verdict is not None or self.pseudo == "none":
            return batch.verdict
        return self.verdict(ctx, teacher or ctx.teach(batch), batch.labels.shape[-2:])

    def verdict(self, ctx: StepContext, teacher: SegOutput, size: Sequence[int]) -> Tensor | None:
        """The class that fills a pixel without annotation; UNSURE = ignore it, NO_CLASS = leave it.

        Returns:
            int16 B H W; None with pseudo none.

        Raises:
            RuntimeError: For pseudo entropy before `gather`.
        """
        if self.pseudo == "none":
            return None
        if self.pseudo == "threshold":
            return self._certain(teacher, size)
        if self._thresholds is None:
            raise RuntimeError("the entropy thresholds have not been gathered")
        limits = self._thresholds

        def decide(logits: Tensor, unknown: Tensor | None) -> Tensor:
            p = self._scale(logits, unknown)
            best = p.argmax(1)
            certain = self._entropy(p, ctx.known) < limits.to(p)[best.clamp(max=ctx.known_before - 1)]
            return torch.where(certain, best, UNSURE).masked_fill(best >= ctx.known_before, NO_CLASS)

        return by_bands(teacher.logits, self._auxiliary(teacher), size, decide, torch.int16)

    def _certain(self, teacher: SegOutput, size: Sequence[int]) -> Tensor:
        """Verdict of pseudo threshold: the best channel, where that is an old class with score enough."""
        known = teacher.logits.shape[1]

        def decide(logits: Tensor, unknown: Tensor | None) -> Tensor:
            score, best = self._scale(logits, unknown).max(1)
            return best.masked_fill((score < self.threshold) | (best == 0) | (best == known), NO_CLASS)

        return by_bands(teacher.logits, self._auxiliary(teacher), size, decide, torch.int16)

    def fill(self, verdict: Tensor | None, labels: Tensor) -> Targets:
        """Pseudo-labels into labels. Where an image is annotated, with old classes too as an exemplar can be,
        that annotation stays.

        Args:
            verdict: B H W; None = there are none.
            labels: B H W, UNKNOWN and IGNORE included.
        """
        if verdict is None:
            return Targets(labels, torch.ones(len(labels), device=labels.device))
        judged = _unannotated(labels) & (verdict != NO_CLASS)
        filled = torch.where(judged, verdict.to(labels.dtype), labels).masked_fill(
            judged & (verdict == UNSURE), IGNORE
        )
        if self.pseudo == "threshold":
            return Targets(filled, torch.ones(len(labels), device=labels.device))
        count, sure = _unannotated(labels).sum((1, 2)), (judged & (verdict != UNSURE)).sum((1, 2))
        share = sure.double() / count.clamp(min=1)
        if self.median == "exact":
            share = torch.where(count > 0, share, 1.0)
        return Targets(filled, share)

    def _entropies(self, ctx: StepContext) -> Iterator[tuple[Tensor, Tensor]]:
        """Entropy and class, by the teacher, of the unannotated pixels of the step's images."""
        for batch in ctx.scan():
            teacher = ctx.teach(batch)
            p = self._probabilities(teacher, batch.labels)
            best = p.argmax(1)
            chosen = (batch.labels == 0) & (best < ctx.known_before)
            yield self._entropy(p, ctx.known)[chosen], best[chosen]

    def _entropy(self, p: Tensor, known: int) -> Tensor:
        """Normalised entropy of scores B K H W, in [0, 1].

        PLOP's reference code takes the mean over the K classes where the entropy is a sum, and divides once
        more, by log C (METHODS 4, Reference code).
        """
        h = normalised_entropy(p if self.softmax else p / p.sum(1, keepdim=True))
        return h if self.median == "exact" else h / p.shape[1] / math.log(known)

    def _probabilities(self, out: SegOutput, labels: Tensor) -> Tensor:
        """Scores of all channels at the labels' size, unknown last: B K(+1) H W."""
        size = labels.shape[-2:]
        unknown = self._auxiliary(out)
        return self._scale(upsample(out.logits, size), None if unknown is None else upsample(unknown, size))

    def _scale(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Logits -> scores of all channels, unknown last."""
        x = self.channels(logits, unknown)
        return x.softmax(1) if self.softmax else x.sigmoid()

    def _auxiliary(self, out: SegOutput) -> Tensor | None:
        return out.unknown if self.unknown_head else None

    def channels(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Classes, then the auxiliary channel: the class index stays the channel."""
        return torch.cat([logits, unknown], 1) if unknown is not None and self.unknown_head else logits


@dataclass
class Distilling(Composed, abc.ABC):
    """A softmax method that trains on and is held by its teacher; which terms hold it is a matter of weights.

    Attributes:
        unbiased: Whether cross-entropy and distillation know that background shifts (MiB).
        adaptive: Multiply an image's cross-entropy with the share of its unannotated pixels that got a
            pseudo-label (PLOP); only pseudo entropy.
        kd: Weight of the distillation of the logits (LwF, ILT, MiB); 0 = none.
        mse: Weight of the mean squared difference of the backbone's outputs (ILT); 0 = none.
        pod: Weight of local POD on the maps of the backbone and on the decoder's output (PLOP); 0 = none.
        pod_logits: Weight of local POD on the logits (PLOP); 0 = none.
    """

    unbiased: bool = False
    adaptive: bool = False
    kd: float = 0.0
    mse: float = 0.0
    pod: float = 0.0
    pod_logits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("kd", "mse", "pod", "pod_logits")

    def check(self, model: Segmenter, crop: int | None = None) -> None:
        backbone = model.trunk.backbone
        stride = backbone.reductions[-1]
        side = LEAST_SIDE if crop is None else -(-crop // stride)
        if (self.pod or self.pod_logits) and side < LEAST_SIDE:
            raise UserError(
                f"local POD needs maps of {LEAST_SIDE} x {LEAST_SIDE} pixels and more, but crops of {crop} "
                f"give {side} at stride {stride}; use --train.crop {LEAST_SIDE * stride} or more"
            )
        if self.pod and not backbone.shows_before:
            raise UserError(
                f"local POD distils maps before their last activation, which are not known of backbone "
                f"{backbone.name}; use a resnet or mobilenet, or --method.pod 0"
            )

    @property
    def needs_features_only(self) -> bool:
        return not (self.mse or self.pod)

    @property
    def held(self) -> bool:
        """Whether a term compares with the teacher's own output."""
        return bool(self.kd or self.mse or self.pod or self.pod_logits)

    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, ignored pixels in its denominator too (METHODS 3), and what holds old classes."""
        size = batch.labels.shape[-2:]
        if ctx.teacher is None:
            logits = ctx.forward(batch).logits
            return {"ce": softmax_upsampled(cross_entropy, logits, batch.labels).mean()}
        before = self.pod > 0
        out = ctx.forward(batch, before)
        teacher = ctx.teach(batch, before) if self.held else None
        labels, confident = self.fill(self.judged(ctx, batch, teacher), batch.labels)
        distil = unbiased_distillation if self.unbiased else distillation

        def terms(low: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
            logits = upsample(low, size)
            if self.unbiased:
                # only exemplars and pseudo-labels show old classes: they are not to be lost in background
                values = unbiased_cross_entropy(logits, labels, ctx.known_before, old_as_background=False)
            else:
                values = cross_entropy(logits, labels)
            return torch.stack([values, *(distil(logits, upsample(other, size)) for other in others)], 1)

        others = (teacher.logits,) if teacher is not None and self.kd else ()
        values, *distilled = in_pieces(terms, out.logits, labels, *others).unbind(1)
        if self.adaptive:
            values = values * confident.view(-1, 1, 1).to(values.dtype)
        losses = {"unce" if self.unbiased else "ce": values.mean()}
        if teacher is None:
            return losses
        if distilled:
            losses["kd"] = self.kd * distilled[0].mean()
        if self.mse:
            ours, theirs = (wide(o.stages[-1]) for o in (out, teacher))
            losses["mse"] = self.mse * F.mse_loss(ours, theirs)
        return losses | self._pod_terms(ctx, out, teacher)

    def _pod_terms(self, ctx: StepContext, out: SegOutput, teacher: SegOutput) -> dict[str, Tensor]:
        """Local POD of the maps, and of the logits with new classes summed into background (METHODS 4)."""
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


def _unannotated(labels: Tensor) -> Tensor:
    return (labels == 0) | (labels == UNKNOWN)
