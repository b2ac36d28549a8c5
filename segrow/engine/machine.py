"""What all steps of a run share."""

from dataclasses import dataclass, field
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision

from ..config import TrainConfig
from ..precision import Choice, choose
from .left import TimeLeft
from .log import Display


@dataclass(frozen=True)
class Machine:
    """What all steps of a run share.

    Attributes:
        fabric: Devices, processes, precision.
        precision: The precision plugin of `fabric`; its loss scaler is part of a checkpoint.
        train: Options.
        seed: Of the run.
        root: The run's folder.
        display: Progress bar.
        left: How long the whole run still takes.
    """

    fabric: Fabric
    precision: Precision
    train: TrainConfig
    seed: int
    root: Path
    display: Display
    left: TimeLeft = field(default_factory=TimeLeft)

    @property
    def numbers(self) -> Choice:
        """The precision that was chosen, and why."""
        return choose(self.train.precision, self.fabric.device.type)
