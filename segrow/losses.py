"""Losses and schedules as pure functions. Losses return one value a pixel; the caller takes the mean.

Labels are class indices B H W (int64); channels C onwards are auxiliary (unknown). Negative = ignored.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=False, in float32 at least: B C h w -> B C H W (METHODS 2, Model)."""
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def one_vs_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every channel as its own problem, summed over channels (SSUL, eq. 3).

    sum_c BCE(x_c, [c = y]) = sum_c softplus(x_c) - x_y, so no one-hot tensor is needed.

    Args:
        logits: B C H W.
        target: B H W in [0, C); negative = ignored.

    Returns:
        B H W; 0 where ignored.
    """
    hit = logits.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (F.softplus(logits).sum(1) - hit).masked_fill(target < 0, 0.0)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy, B C H W and B H W -> B H W; 0 where target is negative."""
    target = target.masked_fill(target < 0, -1)
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="none")


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Softmax focal loss (1 - p_y)^gamma * CE (Lin et al. 2017, eq. 4); shapes as `cross_entropy`."""
    entropy = cross_entropy(logits, target)
    return (1 - torch.exp(-entropy)) ** gamma * entropy


def poly(iteration: int, total: int, warm_up: bool = False) -> float:
    """Factor of the learning rate: (1 - i/total)^0.9.

    Args:
        iteration: Index of the update within its step, from 0.
        total: Number of updates of the step.
        warm_up: Multiply with a linear rise from 0.001 to 1 over the first tenth (warm_poly).
    """
    factor: float = (1 - iteration / total) ** 0.9
    warm = total // 10
    if warm_up and iteration < warm:
        factor *= 0.001 + (1 - 0.001) * iteration / warm
    return factor
