"""One plain pass over a step's own images, for what a method measures before it trains."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from ..batch import Batch
from ..data.loader import Loaded, StepImages, collate, iterate, to_device
from ..errors import LeakError, UserError
from ..processes import loader_processes
from .machine import Machine


def scan(images: StepImages, machine: Machine) -> Iterator[Batch]:
    """What `StepContext.scan` promises.

    Args:
        images: Training views of the step; only its own images, table and crop are used.
    """
    fabric, train = machine.fabric, machine.train
    loader: DataLoader[Loaded | UserError | LeakError] = DataLoader(
        images.plain(fabric.global_rank, fabric.world_size),  # type: ignore[arg-type]
        batch_size=train.batch_size // fabric.world_size,
        **loader_processes(train.workers, fabric.device.type),
        collate_fn=collate,
        generator=torch.Generator(),  # else the pass would move the global random state
    )
    for loaded, _ in machine.display.track(iterate(loader), "statistics", len(loader)):
        yield to_device(loaded, fabric.device, train.channels_last)
