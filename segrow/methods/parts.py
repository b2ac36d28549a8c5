"""What methods are made of and can exchange: initialisation, freezing, pseudo-labels.

They are options of every `Composed` method: `--method mib --method.pseudo entropy --method.freeze trunk`.
"""

import abc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import UserError
from ..losses import cross_entropy, normalised_entropy, upsample
from ..medians import class_medians, reference_medians
from ..model.segmenter import SegOutput
from ..scenario import IGNORE, UNKNOWN
from .base import Method, StepContext

Init = Literal["background", "unknown", "random"]
Freeze = Literal["none", "trunk", "old_heads"]
Pseudo = Literal["none", "threshold", "entropy"]
Median = Literal["exact", "reference"]


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

    # ---- before the step

    def begin_step(self, ctx: StepContext) -> None:
        self.check(ctx.model)
        super().begin_step(ctx)
        if ctx.step == 0:
            return
        if self.init == "background":
            ctx.model.initialise_from_background(split=self.softmax)
        elif self.init == "unknown" and self.unknown_head:
            ctx.model.initialise_from_unknown()
        if self.freeze != "none":
            old = []
            if self.freeze == "old_heads":
                heads = zip(ctx.model.heads, ctx.model.layout, strict=True)
                old = [head for head, g in heads if g.step < ctx.step and (g.start, g.stop) != (0, 1)]
            ctx.model.freeze(ctx.model.trunk, *old, norms=self.freezes_norms)

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
        self._thresholds = state.get("thresholds")

    # ---- labels

    @property
    def pseudo_labelling(self) -> bool:
        return self.pseudo == "threshold"

    def pseudo_labels(self, teacher: SegOutput, labels: Tensor) -> Tensor:
        """Old classes where the label is background or unknown and the teacher's score is certain.

        The arg max runs over all its channels, unknown included (METHODS 2, step t > 0).
        """
        score, best = self._probabilities(teacher, labels).max(1)
        certain = (score >= self.threshold) & (best > 0) & (best < teacher.logits.shape[1])
        return torch.where(_unannotated(labels) & certain, best, labels)

    def targets(self, ctx: StepContext, teacher: SegOutput, labels: Tensor) -> Targets:
        """The labels of a batch at step t > 0, pseudo-labels filled in.

        Where an image is annotated with an old class, as an exemplar can be, that annotation stays.

        Raises:
            RuntimeError: For pseudo entropy before `gather`.
        """
        if self.pseudo == "none":
            return Targets(labels, torch.ones(len(labels), device=labels.device))
        if self.pseudo == "threshold":
            return Targets(self.pseudo_labels(teacher, labels), torch.ones(len(labels), device=labels.device))
        if self._thresholds is None:
            raise RuntimeError("the entropy thresholds have not been gathered")
        p = self._probabilities(teacher, labels)
        best = p.argmax(1)
        is_class, unannotated = best < ctx.known_before, _unannotated(labels)
        limits = self._thresholds.to(p)[best.clamp(max=ctx.known_before - 1)]
        certain = (self._entropy(p, ctx.known) < limits) & is_class
        filled = torch.where(certain, best, IGNORE)
        count, sure = unannotated.sum((1, 2)), (unannotated & certain).sum((1, 2))
        share = sure.to(p.dtype) / count.clamp(min=1)
        if self.median == "exact":
            share = torch.where(count > 0, share, 1.0)
        return Targets(torch.where(unannotated & is_class, filled, labels), share)

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
        x = upsample(self.channels(out.logits, out.unknown), labels.shape[-2:])
        return x.softmax(1) if self.softmax else x.sigmoid()

    def channels(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Classes, then the auxiliary channel: the class index stays the channel."""
        return torch.cat([logits, unknown], 1) if unknown is not None and self.unknown_head else logits


def base_loss(ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
    """The base step of MiB and all that share its code base: plain cross-entropy.

    Ignored pixels stay in the denominator (METHODS 3, Unbiased cross-entropy).
    """
    logits = upsample(ctx.forward(batch).logits, batch.labels.shape[-2:])
    return {"ce": cross_entropy(logits, batch.labels).mean()}


def _unannotated(labels: Tensor) -> Tensor:
    return (labels == 0) | (labels == UNKNOWN)
