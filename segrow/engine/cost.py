"""What a step costs: seconds, peak memory, parameters, bytes kept."""

import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

_KIB = 1024


class Stopwatch:
    """Adds up the wall time of its `with` blocks.

    Attributes:
        seconds: Total so far.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._start = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._start


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak (on Linux also for the host)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return  # not Linux, or not allowed: the peak is then that of the whole process


def peak_memory(device: torch.device) -> int:
    """Peak in bytes since the last reset: of the GPU's allocator, or of this process' resident set.

    Where there is no /proc the host's peak is that of the whole process (macOS), or 0, not known (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _peak_of_the_process()
    line = next(row for row in status.splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) * _KIB


def _peak_of_the_process() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB  # macOS counts bytes


def device_name(device: torch.device) -> str:
    """What a step was trained on: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable and total number of parameters."""
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total


def stored_bytes(directory: Path, images: list[Path]) -> int:
    """What must be kept for the next step: the model directory and the exemplars' files."""
    files = [f for f in directory.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in [*files, *images])
