"""What `python -m benchmarks.gpu` is made of: pieces, whose rows say what was expected."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .report import Row


@dataclass(frozen=True)
class Setting:
    """What every piece gets.

    Attributes:
        device: What is held against the CPU.
        small: Tiny networks and images: the script is tried, not the device.
        root: A folder of VOC 2012; None = embedded photographs.
        work: An empty folder for files.
        seed: Of everything random.
    """

    device: torch.device
    small: bool
    root: Path | None
    work: Path
    seed: int = 1

    @property
    def on_gpu(self) -> bool:
        """Whether there is something to hold against the CPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Piece:
    """Something that is shown.

    Attributes:
        name: Of it, short.
        seconds: That it may take on a GPU; it does not begin with less time left.
        work: Does it; any error is a finding.
    """

    name: str
    seconds: float
    work: Callable[[], list[Row]]


def at_most(key: str, measure: str, variant: str, value: float, bound: float) -> Row:
    """A difference that should be small; nan is not."""
    return Row(key, measure, variant, None, value, "", value, bound, "at most", "")


def at_least(key: str, measure: str, variant: str, value: float, bound: float) -> Row:
    """An agreement that should be large; nan is not."""
    return Row(key, measure, variant, None, value, "", value, bound, "at least", "")


def holds(key: str, measure: str, variant: str, yes: bool) -> Row:
    """Something that is so or not: 1 or 0."""
    return at_least(key, measure, variant, float(yes), 1.0)
