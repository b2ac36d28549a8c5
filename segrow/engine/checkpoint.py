"""The file that a step is continued from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import new_file
from ..errors import UserError
from ..shapes import Shape, expect
from ..tensor_files import check_archive, check_tensors

_TENSORS = {str: Tensor}
_COUNT = range(1 << 31)
_CHOICE: Shape = {"update": _COUNT, "score": (float, None), "weights": _TENSORS}
_SHAPE: Shape = {
    "step": range(1 << 16),
    "epoch": _COUNT,
    "model": _TENSORS,
    "optimizer": {"state": dict},
    "scaler": dict,
    "method": _TENSORS,
    "seconds": float,
    "selected?": dict,
    "precision?": str,
}
_AGAIN = "delete it to start the step again"


@dataclass(frozen=True)
class Checkpoint:
    """Where a step stands after an epoch.

    No random state is stored: every epoch seeds itself from (seed, step, epoch).

    Attributes:
        step: The step in progress.
        epoch: Epochs done.
        model: State dict of the network, without a frozen trunk.
        optimizer: State dict of the optimizer.
        scaler: State of the loss scaler; only fp16 has one.
        method: State of the method.
        seconds: Training time so far.
        selected: State of the choice among the step's weights; empty where it ends with its last ones.
        precision: What the step was trained in so far (`precision.continued`); empty in older files.
    """

    step: int
    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    method: dict[str, Any]
    seconds: float
    selected: dict[str, Any] = field(default_factory=dict)
    precision: str = ""

    def save(self, path: Path) -> None:
        """Write atomically."""
        with new_file(path) as file:
            torch.save(vars(self), file)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """Read without unpickling code; None when there is no checkpoint.

        Raises:
            UserError: When the file is not a checkpoint.
        """
        if not path.exists():
            return None
        check_archive(path, "checkpoint")
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not a checkpoint of segrow ({reason}); {_AGAIN}") from None
        check_tensors(stored, f"checkpoint {path}")
        expect(stored, _SHAPE, f"checkpoint {path}", _AGAIN)
        if stored.get("selected"):
            expect(stored["selected"], _CHOICE, f"checkpoint {path}", _AGAIN)
        return cls(**{name: value for name, value in stored.items() if name in cls.__dataclass_fields__})
