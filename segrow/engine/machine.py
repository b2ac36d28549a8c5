"""What all steps of a run share."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision

from ..config import TrainConfig
from ..model.segmenter import Segmenter
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

    def place(self, model: Segmenter) -> Segmenter:
        """Put a model on the device, in the memory format of the images, into which it is converted else."""
        layout = torch.channels_last if self.train.channels_last else torch.contiguous_format
        return model.to(self.fabric.device).to(memory_format=layout)

    @property
    def numbers(self) -> Choice:
        """The precision that was chosen, and why."""
        return choose(self.train.precision, self.fabric.device.type)
