"""The yardstick: how the SSUL reference loop spends its time (METHODS 2, Step t > 0, defects 3 and 6).

Re-stated, not copied. At step t > 0 student and teacher each run their *whole* network in every iteration;
both are upsampled in all channels to full resolution; the loss is binary cross-entropy over all channels
(unknown, background, base, every step), frozen ones too, through an int64 one-hot target that is permuted and
made float. The trunk and the old heads have `requires_grad` False, so torch keeps no graph for the trunk;
tensors are NCHW, dropout is active in the student and batch normalisation is in evaluation mode. Every
max(100, iterations / 100) iterations the new classes' validation images are predicted, and the best state is
saved whole.

Step 0 has no teacher and everything trains. The network is segrow's Segmenter, so model and weights are the
same on both sides; loop, loader, loss and evaluation are this package's own.

    step = ReferenceStep(model, teacher, total=216)
    spent = train_reference(step, loader, epochs=8, device=torch.device("cpu"))
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segrow.model.segmenter import Segmenter
from segrow.scenario import IGNORE, UNKNOWN

THRESHOLD = 0.7
BACKGROUND_RATE = 1e-4
POWER, FLOOR = 0.9, 1e-6
MOMENTUM, DECAY = 0.9, 1e-4
LEAST_INTERVAL = 100
Pairs = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rates:
    """Learning rates: of the increments, and of the base step's heads with decoder and backbone."""

    increment: float = 0.01
    base: float = 0.01
    backbone: float = 0.001


class ReferenceStep:
    """One step of the reference: student, teacher, optimizer.

    Args:
        model: Already grown by the step's classes; with an unknown head. Becomes NCHW.
        teacher: The model before the step; None at step 0.
        total: Iterations of the step, for the poly schedule.
        rates: Learning rates.
        amp: Mixed precision, fp16 as the reference code does on a GPU.
    """

    def __init__(
        self,
        model: Segmenter,
        teacher: Segmenter | None,
        total: int,
        rates: Rates = Rates(),
        amp: bool = False,
    ) -> None:
        self.model = model.to(memory_format=torch.contiguous_format)
        self.teacher = teacher
        if teacher is not None:
            self.teacher = teacher.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        self.total, self.done, self.amp = total, 0, amp
        groups = self._base_groups(rates) if teacher is None else self._increment_groups(rates)
        self.rates = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.SGD(
            groups, lr=rates.increment, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp)
        self.bound: list[Tensor] = []  # what names of a loop's body hold until the next iteration binds them

    def _base_groups(self, rates: Rates) -> list[dict[str, Any]]:
        self.model.requires_grad_(True)
        backbone = list(self.model.trunk.backbone.parameters())
        inside = {id(p) for p in backbone}
        rest = [p for p in self.model.parameters() if id(p) not in inside]
        return [{"params": backbone, "lr": rates.backbone}, {"params": rest, "lr": rates.base}]

    def _increment_groups(self, rates: Rates) -> list[dict[str, Any]]:
        """Weight transfer; then only the new, the unknown and the background head train, without their BN."""
        model = self.model
        model.initialise_from_unknown()
        model.requires_grad_(False)
        if model.unknown is None:
            raise ValueError("the reference needs an unknown head")
        parts = (model.heads[-1], model.unknown, model.heads[0])
        for module in (m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)):
            module.requires_grad_(True)
        rate = rates.increment
        pairs = zip(parts, (rate, rate, rate * BACKGROUND_RATE), strict=True)
        return [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in pairs]

    def train_mode(self) -> None:
        """Dropout active; at t > 0 every batch normalisation in evaluation mode."""
        self.model.train()
        if self.teacher is not None:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def update(self, images: Tensor, labels: Tensor) -> Tensor:
        """One iteration.

        Args:
            images: float32 B 3 H W, normalised.
            labels: int64 B H W: class index, -1 = ignored, -2 = unknown.

        Returns:
            The loss, detached.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = max(rate * (1 - self.done / self.total) ** POWER, FLOOR)
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.float16, enabled=self.amp):
            loss = self.loss(images, labels)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Arguments of `update` -> scalar."""
        targets = shifted(labels)
        outputs = full_size(all_channels(self.model, images), images)
        self.bound = [outputs]
        if self.teacher is not None:
            with torch.no_grad():
                before = full_size(all_channels(self.teacher, images), images)
                probabilities = torch.sigmoid(before)
            self.bound += [before, probabilities]
            targets = pseudo_labelled(targets, probabilities)
        return one_hot_bce(outputs, targets)


def all_channels(model: Segmenter, images: Tensor) -> Tensor:
    """The whole network: unknown, background, base, every step: B C+1 h w."""
    out = model.classify(model.trunk(images).features)
    if out.unknown is None:
        raise ValueError("the reference needs an unknown head")
    return torch.cat([out.unknown, out.logits], 1)


def full_size(logits: Tensor, images: Tensor) -> Tensor:
    """All channels upsampled to the images' resolution."""
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def shifted(labels: Tensor) -> Tensor:
    """Class indices as channels: unknown 0, background 1, class c at c + 1; IGNORE stays."""
    return torch.where(labels == UNKNOWN, 0, torch.where(labels == IGNORE, IGNORE, labels + 1))


def pseudo_labelled(targets: Tensor, probabilities: Tensor) -> Tensor:
    """Old classes of which the teacher is certain, where there is background or unknown.

    Args:
        targets: B H W channels.
        probabilities: The teacher's, B K+1 H W at full resolution.
    """
    scores, channels = probabilities.max(dim=1)
    fill = (targets >= 0) & (targets <= 1) & (channels > 1) & (scores >= THRESHOLD)
    return torch.where(fill, channels, targets)


def one_hot_bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of all channels, summed over channels, mean over the pixels that count.

    Args:
        outputs: Logits B C H W.
        targets: int64 B H W channels; IGNORE does not count.
    """
    channels = outputs.shape[1]
    counted = targets != IGNORE
    one_hot = F.one_hot(torch.where(counted, targets, channels), channels + 1)
    truth = one_hot.permute(0, 3, 1, 2).float()[:, :channels]
    pixelwise = F.binary_cross_entropy_with_logits(outputs, truth, reduction="none").sum(dim=1)
    return torch.masked_select(pixelwise, counted).mean()


@dataclass
class Spent:
    """Where the time of a step went.

    Attributes:
        iterations: Seconds of each iteration, waiting for its batch included.
        evaluation: Seconds of all validations, saving the best state included.
        best: Best score so far, mean IoU of the new classes in 0..1; negative = none yet.
    """

    iterations: list[float] = field(default_factory=list)
    evaluation: float = 0.0
    best: float = -1.0

    @property
    def training(self) -> float:
        """Seconds without validation."""
        return sum(self.iterations)

    def iteration(self, epochs: int) -> float:
        """Mean seconds of an iteration; of several epochs the first, in which loaders start, is out.

        Args:
            epochs: That were trained.
        """
        counted = self.iterations[len(self.iterations) // epochs if epochs > 1 else 0 :]
        return sum(counted) / len(counted)


def train_reference(
    step: ReferenceStep,
    loader: Pairs,
    epochs: int,
    device: torch.device,
    validation: Pairs | None = None,
    new: range = range(0),
    checkpoint: Path | None = None,
) -> Spent:
    """The reference's loop over a step.

    Args:
        step: What is trained.
        loader: Training batches; iterated once an epoch.
        epochs: Of the step.
        device: Where the models are.
        validation: Batches of the validation images that show a new class; None = no validation.
        new: Class indices of the new classes, background too at step 0.
        checkpoint: File of the best state.
    """
    spent = Spent()
    interval = max(LEAST_INTERVAL, step.total // 100)
    for _ in range(epochs):
        step.train_mode()
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            step.update(images, labels).item()  # its running mean of the loss
            spent.iterations.append(time.perf_counter() - start)
            if validation is not None and step.done % interval == 0:
                start = time.perf_counter()
                score = new_classes_iou(confusion(step.model, validation, device), new)
                if score > spent.best:
                    spent.best = score
                    if checkpoint is not None:
                        torch.save(whole_state(step, score), checkpoint)
                step.train_mode()
                spent.evaluation += time.perf_counter() - start
    return spent


def whole_state(step: ReferenceStep, score: float) -> dict[str, Any]:
    """What the best checkpoint holds."""
    return {
        "model_state": step.model.state_dict(),
        "optimizer_state": step.optimizer.state_dict(),
        "done": step.done,
        "best_score": score,
    }


@torch.no_grad()
def confusion(model: Segmenter, batches: Pairs, device: torch.device) -> NDArray[np.int64]:
    """Known x known pixel counts (row = truth), counted by numpy on full-resolution predictions.

    p(background) += p(unknown), unknown dropped, arg max (METHODS 2, Prediction). Truth of classes that are
    not known yet counts as background.
    """
    model.eval()
    known = model.n_classes
    matrix = np.zeros((known, known), dtype=np.int64)
    for images, labels in batches:
        images = images.to(device)
        scores = torch.sigmoid(full_size(all_channels(model, images), images))
        scores[:, 1] += scores[:, 0]
        predicted = scores[:, 1:].max(dim=1)[1].cpu().numpy()
        truth = labels.numpy()
        counted = truth >= 0
        rows = np.where(truth < known, truth, 0)[counted]
        matrix += np.bincount(rows * known + predicted[counted], minlength=known**2).reshape(known, known)
    return matrix


def new_classes_iou(matrix: NDArray[np.int64], new: range) -> float:
    """Mean IoU of the new classes in 0..1; a class without a pixel counts as 0."""
    both = matrix.diagonal()[new.start : new.stop]
    union = (matrix.sum(0) + matrix.sum(1))[new.start : new.stop] - both
    return float(np.mean(both / np.maximum(union, 1))) if len(new) else 0.0
