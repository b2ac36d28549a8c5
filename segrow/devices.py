"""Which device computes: what an option may say, and whether it is there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .errors import UserError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(asked: str, option: str) -> Literal["cpu", "cuda"]:
    """The device of an option; auto is a GPU if there is one.

    Args:
        asked: One of DEVICES.
        option: The option, for errors.

    Raises:
        UserError: Something else, or a GPU where torch sees none.
    """
    if asked not in DEVICES:
        hint = ""
        if number := re.fullmatch(r"(?:cuda|gpu)?:?(\d+)", str(asked), re.IGNORECASE):
            hint = f"; the environment variable CUDA_VISIBLE_DEVICES={number[1]} chooses that GPU for cuda"
        raise UserError(
            f"{option} is {asked}, expected auto (a GPU if there is one), cpu or cuda (a GPU of NVIDIA, "
            f"or of AMD with ROCm){hint}"
        )
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{option} cuda, but torch sees no GPU; use {option} cpu, or leave it out")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def kernel_search(wanted: bool) -> Iterator[None]:
    """Within, or in a function so decorated, cuDNN tries its kernels for every new size and keeps the best.

    That pays in training, where all batches have one size; among images of many sizes it takes longest.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
