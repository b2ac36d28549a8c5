"""How many images fit: what to ask for when memory has run out."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch

from ..config import TrainConfig
from ..resources import refused_bytes
from ..wording import count

OPTIONS = {
    "batch_size": "--train.batch_size",
    "crop": "--train.crop",
    "accumulate": "--train.accumulate",
    "precision": "--train.precision",
}
"""What they are called on the command line."""


@final
class Gauge:
    """Memory before a piece of work, to tell afterwards how much of the work would have fitted.

    Args:
        device: Whose memory: the GPU's, or the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before, _ = self._state()

    def largest(self, images: int, error: BaseException) -> int | None:
        """How many images at a time would have fitted, at most; None where the numbers do not tell.

        What was allocated since the beginning, and what was refused, is taken to grow with the images. The
        work had not come to its end, so the true number may be smaller.

        Args:
            images: So many were too many.
            error: Says how much was refused.
        """
        used, most = self._state()
        needed, room = used + refused_bytes(error) - self._before, most - self._before
        if not 0 < room < needed:
            return None
        return min(images * room // needed, images - 1)

    def _state(self) -> tuple[int, int]:
        """Bytes that are used now, and that could be used in all; zeros where the system does not say."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            used = torch.cuda.memory_allocated(self._device)
            return used, free + torch.cuda.memory_reserved(self._device)
        if sys.platform != "linux":
            return 0, 0
        import resource

        pages = [int(word) for word in Path("/proc/self/statm").read_text().split()[:2]]
        virtual, resident = (count * resource.getpagesize() for count in pages)
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            return virtual, limit
        rows = Path("/proc/meminfo").read_text().splitlines()
        available = next((int(row.split()[1]) for row in rows if row.startswith("MemAvailable:")), 0)
        return resident, resident + 1024 * available


def training_advice(
    train: TrainConfig, gauge: Gauge, error: BaseException, options: Mapping[str, str] = OPTIONS
) -> str:
    """What did not fit, and what to ask for instead: the second half of a line.

    Args:
        train: As it was asked for.
        gauge: Made before the training began.
        error: What was raised.
        options: Of `OPTIONS` those that the command has, as it calls them.
    """
    parts = train.devices * train.accumulate
    now = train.batch_size // parts
    found = gauge.largest(now, error)
    most = now // 2 if found is None else found
    asked = ", ".join(f"{name} {getattr(train, key)}" for key, name in options.items())
    fit = "" if found is None else f", of which at most {found} fit" if found else ", of which not one fits"
    try_: list[str] = []
    if "accumulate" in options and (finer := _finer(train, most)):
        images = train.batch_size // (train.devices * finer)
        try_.append(f"{options['accumulate']} {finer} (the same batch, {count(images, 'image')} at a time)")
    if most >= 2:
        try_.append(f"{options['batch_size']} {most * parts} or less")
    try_.append(f"a smaller {options['crop']}")
    if "precision" in options and train.precision == "32":
        try_.append(f"{options['precision']} bf16")
    pixels = f"{train.crop} x {train.crop} pixels"
    return f"{count(now, 'image')} of {pixels} at a time ({asked}){fit}; try {_either(try_)}"


def evaluation_advice(train: TrainConfig, gauge: Gauge, error: BaseException) -> str:
    """The same where images are evaluated."""
    if not train.crop_val:
        return "evaluation takes whole images, one at a time; a run with --train.crop_val true needs less"
    found = gauge.largest(train.val_batch_size, error)
    fewer = max(train.val_batch_size // 2 if found is None else found, 1)
    return (
        f"{count(train.val_batch_size, 'image')} of {train.crop} x {train.crop} pixels at a time; "
        f"try --train.val_batch_size {fewer} or less, which changes no number"
    )


def _finer(train: TrainConfig, most: int) -> int | None:
    """The coarsest division of the batch whose parts hold at most so many images, and at least 2."""
    share = train.batch_size // train.devices
    fitting = (k for k in range(train.accumulate + 1, share) if share % k == 0 and 2 <= share // k <= most)
    return next(fitting, None)


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
