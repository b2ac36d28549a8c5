"""A GPU where there is none: torch's fake tensors, without numbers, know their shape, type and device.

with fake_gpu():
    model.to("cuda")            # in place, as on a real one
    loss(model(images)).backward()

An operation on tensors of two devices raises, as on a GPU. What depends on numbers (`.item()`, a mask as an
index) raises too: on a GPU it would wait for the device.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from segrow.model.fused import _Uses

GPU, NOWHERE = torch.device("cuda", 0), torch.device("meta")
# autograd looks for devices at the first backward pass of a process: with fake ones it would start threads
# for them, and no fork of this process could go backward any more
torch.ones(1, requires_grad=True).sum().backward()


class _Fake(FakeTensorMode):
    """A tensor holds its mode; a copy of the tensor is one of the same mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Fake":
        return self


class _OneThread(TorchDispatchMode):
    """Lets autograd go backward through fake CUDA tensors without a driver.

    Its engine, and it alone, asks for devices by an operator, and would look for a thread and a stream of the
    device. It is told "meta", for which it takes the calling thread. Tensors that it makes on that device,
    such as zeros for a missing gradient, are the GPU's.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return NOWHERE if args[0].device == GPU else args[0].device
        words = {name: _placed(arg) for name, arg in (kwargs or {}).items()}
        return func(*(_placed(arg) for arg in args), **words)


def _placed(arg: object) -> object:
    return GPU if isinstance(arg, torch.device) and arg == NOWHERE else arg


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What `Module.to` does. Torch's own exchanges the inside of tensors, which fake ones refuse."""
    for child in module.children():
        _apply(child, change)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(change(value.detach()), value.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


_count, _from_numpy = _Uses.__torch_dispatch__, torch.from_numpy


def _count_uses(uses: _Uses, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Asking for a tensor's device, which only fake tensors answer by an operator, is no use of it."""
    if func is torch.ops.prim.device.default:
        return func(*args)
    return _count(uses, func, types, args, kwargs)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors made within are fake; those on `cuda` behave as on a GPU that computes in bf16."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # deepcopy does
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *words, **more: True)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(_Uses, "__torch_dispatch__", _count_uses)
        patch.setattr(torch, "from_numpy", lambda array: torch.empty_like(_from_numpy(array)))
        with _Fake(allow_non_fake_inputs=True), _OneThread():
            yield
