"""What the benchmark ran on."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

import segrow
from segrow.precision import native_bf16


def describe() -> dict[str, Any]:
    """CPU model, cores, RAM, threads and GPU."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _field("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "ram_gib": round(pages / 2**30, 1),
        "threads": torch.get_num_threads(),
        "bf16": has_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Of segrow and what it computes with."""
    return {
        "segrow": segrow.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16; elsewhere it is emulated, in hours, so it is not measured."""
    return native_bf16("cpu")[0]


def _field(name: str) -> str:
    """The first value of a field in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
