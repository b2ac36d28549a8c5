"""Files of tensors that somebody else may have written: no code, no more memory than the file has bytes.

tensors = read_safetensors(Path("model.safetensors"), "weights")
content = load_torch(Path("last.ckpt"), "checkpoint")
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .documents import open_file
from .errors import UserError


def read_safetensors(
    path: Path, what: str, fix: str = "copy it again", device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        what: How an error calls the file.
        fix: What to do about a damaged one.
        device: Where they go.

    Raises:
        UserError: It is missing, no regular file, or no safetensors file.
    """
    open_file(path, what).close()
    try:
        return safetensors.torch.load_file(path, device=str(device))
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: numbers of a kind that torch lacks
        raise UserError(f"cannot read {what} {path} ({' '.join(str(error).split())}); {fix}") from None


def parse_safetensors(content: bytes, where: str, fix: str = "copy it again") -> dict[str, Tensor]:
    """The tensors in the content of a safetensors file, by name.

    Args:
        where: The file, for errors.
        fix: What to do about a damaged one.

    Raises:
        UserError: It is no safetensors file.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:
        raise UserError(f"cannot read {where} ({' '.join(str(error).split())}); {fix}") from None


def shapes_in(path: Path, what: str, fix: str = "copy it again") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file; its numbers are not read.

    Args:
        what: How an error calls the file.
        fix: What to do about a damaged one.

    Raises:
        UserError: It is missing, no regular file, or no safetensors file.
    """
    open_file(path, what).close()
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {what} {path} ({' '.join(str(error).split())}); {fix}") from None


def check_tensors(content: object, where: str) -> None:
    """Refuse tensors that repeat their numbers: a copy of one, as everything makes it, could fill the memory.

    Args:
        content: What a file of torch.save holds, at any depth.
        where: The file, for errors.

    Raises:
        UserError: There is such a tensor.
    """
    todo, seen = [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and _repeated(value) > _ALLOWED:
                raise UserError(
                    f"{where} has a tensor {tuple(value.shape)} that repeats fewer numbers and would need "
                    f"{_repeated(value) >> 20} MiB; save it after .clone()"
                )
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # it may hold itself
            inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
            todo.extend(inner)


_ALLOWED = 64 << 20  # bytes: small ones are in honest files


def _repeated(tensor: Tensor) -> int:
    """Bytes that a copy needs and the tensor does not have."""
    return tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes()
