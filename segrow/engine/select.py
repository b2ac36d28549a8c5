"""Which of the weights that a step passes through become its model (`train.select best`).

By default a step ends with its last weights and nothing of this file runs. The reference code of SSUL takes
the best weights on the validation images, which are its test images too (METHODS 2, defect 3). That is here
only to chase its published numbers:

- kept are the weights that the step starts with, until a candidate is better;
- a candidate is what stands after every max(100, updates // 100) updates: a step with fewer than 100 updates
  keeps the weights it started with, untrained;
- it is better when its score is higher than those of all earlier candidates; the first always is;
- the score is `new_classes_score` on the validation images that show one of the step's new classes.

These evaluations are part of the training: their seconds count in `train_s`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.base import Presence
from ..errors import UserError
from ..model.segmenter import Segmenter
from ..protocol import counts
from ..scenario import Scenario, Step

LEAST_INTERVAL = 100


def interval(updates: int) -> int:
    """Updates between two candidates, of a step that has so many updates in all."""
    return max(LEAST_INTERVAL, updates // 100)


def new_classes_score(matrix: NDArray[np.int64], step: Step) -> float:
    """Mean IoU of the classes that a step teaches, at step 0 background's too.

    Args:
        matrix: (N+1) x known pixel counts; row = truth, column = prediction.
        step: The step that was trained.

    Returns:
        In 0..1. As in that code's validation set, whose labels show the step's classes alone, pixels of
        future classes are background; a class without a pixel in the truth counts as 0.
    """
    c = counts(matrix, step.indices.stop, "background")
    scored = step.indices if step.index else (0, *step.indices)
    return sum(float(c.intersection[k] / c.union[k]) if c.truth[k] else 0.0 for k in scored) / len(scored)


def check_selection(scenario: Scenario, steps: Iterable[Step], val: Presence) -> None:
    """Every step must have validation images to choose by.

    Raises:
        UserError: Naming the first step that has none.
    """
    for step in steps:
        raw = [scenario.raw_ids[c] for c in step.indices]
        if not val.present[:, raw].any():
            raise UserError(
                f"--train.select best has nothing to choose by in step {step.index}: no validation image "
                f"shows {' or '.join(step.classes)}; use --train.select last"
            )


class Selection:
    """The best weights of one step so far. In a data-parallel run every process decides the same.

    Args:
        model: As the step starts with it: grown, initialised, untrained.
        judge: Scores the model as it is, the same number on every process.
        updates: Of the whole step.
        stored: What `state_dict` gave, when the step is continued.

    Attributes:
        update: After how many updates the best weights stood; 0 = those the step started with.
        score: Theirs, None for those the step started with, which are never scored.
    """

    def __init__(
        self, model: Segmenter, judge: Callable[[], float], updates: int, stored: Mapping[str, Any] | None
    ) -> None:
        self._model, self._judge = model, judge
        self._updates, self._interval = updates, interval(updates)
        self.update: int = stored["update"] if stored else 0
        self.score: float | None = stored["score"] if stored else None
        self._weights: dict[str, Tensor] = stored["weights"] if stored else _copy(model)

    def look(self, done: int) -> None:
        """Score the model when it is a candidate, and keep it if it is the best.

        Args:
            done: Updates of the step so far.
        """
        if done % self._interval:
            return
        score = self._scored()
        if self.score is None or score > self.score:
            self.update, self.score, self._weights = done, score, _copy(self._model)

    def _scored(self) -> float:
        """The judge's score; the training that goes on, dropout included, does not notice it."""
        device = next(self._model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            score = self._judge()
        self._model.train()  # an epoch's own way to begin: what is frozen stays so
        return score

    def finish(self) -> str:
        """Give the model its best weights; returns a line that says which."""
        self._model.load_state_dict(self._weights)
        if self.score is None:
            return (
                f"warning: it keeps the weights it started with, untrained: {self._updates} updates are "
                f"fewer than the {self._interval} before a first candidate of --train.select best"
            )
        return (
            f"keeps the weights after update {self.update} of {self._updates}: "
            f"mean IoU of what it teaches {100 * self.score:.1f} %"
        )

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors that a continued step needs."""
        return {"update": self.update, "score": self.score, "weights": self._weights}

    def record(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {"update": self.update, "score": self.score}


def _copy(model: Segmenter) -> dict[str, Tensor]:
    """Weights and buffers, in the host's memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
