"""Batch normalisation over all processes, on the CPU too, where torch's SyncBatchNorm refuses to run."""

from collections.abc import Set
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from ..errors import UserError


class CrossRankBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the batches of all processes together.

    Parameters and buffers have the names of `nn.BatchNorm2d`. In evaluation mode, or without a process group,
    it computes the same as that class.

    Attributes:
        drop: What timm's norms run after the normalisation.
        act: The activation that timm's norms carry.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Take over the very parameters, buffers, mode and activation of `norm`."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            self.drop, self.act = norm.get_submodule("drop"), norm.get_submodule("act")
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        """B C h w -> B C h w; every process must call it equally often.

        Raises:
            UserError: In training when all processes together have a single value a channel.
        """
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        y = self._normalise(x) if self.training and several else super().forward(x)
        out: Tensor = self.act(self.drop(y))
        return out

    def _normalise(self, x: Tensor) -> Tensor:
        """Two reductions, mean before variance: the difference of two large sums would lose digits."""
        wide = x if x.dtype == torch.float64 else x.float()
        count = wide.new_tensor([x.numel() / x.shape[1]])
        total = _sum_over_processes(torch.cat([wide.sum((0, 2, 3)), count]))
        count = total[-1].detach()
        if count < 2:
            raise UserError(
                "training got a batch of 1 image over all devices, expected a batch size of at least 2 "
                "(batch normalisation of the image-level features); raise --train.batch_size"
            )
        mean = total[:-1] / count
        centred = wide - mean.view(1, -1, 1, 1)
        var = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), var.detach() * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running statistics, as nn.BatchNorm2d does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        self.running_var.mul_(1 - rate).add_(unbiased, alpha=rate)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def synchronise_norms(module: nn.Module, device_type: str, frozen: Set[str] = frozenset()) -> None:
    """Make every batch normalisation inside a module see the batches of all processes.

    Parameters stay the same objects, names in the state dict stay, and so do evaluation modes. What has been
    exchanged already is left alone.

    Args:
        device_type: cuda (torch's SyncBatchNorm) or cpu.
        frozen: Names of those that stay in evaluation mode: they need no other process, and can be folded.

    Raises:
        TypeError: For a subclass of nn.BatchNorm2d whose computation is not known.
    """
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name in norms.keys() - frozen:
        module.set_submodule(name, _exchange(norms[name], device_type))


def _exchange(norm: nn.BatchNorm2d, device_type: str) -> nn.Module:
    if isinstance(norm, CrossRankBatchNorm2d):
        return norm
    if device_type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return converted
    if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        raise TypeError(f"cannot synchronise {type(norm).__name__} over processes")
    return CrossRankBatchNorm2d(norm)
