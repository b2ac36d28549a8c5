"""Losses and schedules as pure functions. Losses return one value a pixel; the caller takes the mean.

Labels are class indices B H W (int64); channels C onwards are auxiliary (unknown). Negative = ignored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def wide(x: Tensor) -> Tensor:
    """float32 at least: squares and sums of half-precision maps overflow or lose digits."""
    return x if x.dtype == torch.float64 else x.float()


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=False, in float32 at least: B C h w -> B C H W (METHODS 2, Model)."""
    return F.interpolate(wide(maps), size=tuple(size), mode="bilinear", align_corners=False)


def one_vs_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every channel as its own problem, summed over channels (SSUL, eq. 3).

    sum_c BCE(x_c, [c = y]) = sum_c softplus(x_c) - x_y, so no one-hot tensor is needed.

    Args:
        logits: B C H W.
        target: B H W in [0, C]; C = none of these channels; negative = ignored.

    Returns:
        B H W; 0 where ignored.
    """
    n = logits.shape[1]
    hit = logits.gather(1, target.clamp(0, n - 1).unsqueeze(1)).squeeze(1).masked_fill(target == n, 0.0)
    return (F.softplus(logits).sum(1) - hit).masked_fill(target < 0, 0.0)


def one_vs_rest_upsampled(logits: Tensor, target: Tensor) -> Tensor:
    """`one_vs_rest` of logits that are upsampled to the target's size, without ever holding them all at once.

    Same value and gradient as `one_vs_rest(upsample(logits, target.shape[-2:]), target)`.

    Args:
        logits: B C h w.
        target: B H W in [0, C]; C = none of these channels; negative = ignored.

    Returns:
        B H W, float32 at least; 0 where ignored.
    """
    values: Tensor = _OneVsRestUpsampled.apply(logits, target)
    return values


class _OneVsRestUpsampled(torch.autograd.Function):
    """A few images at a time, forwards and backwards; only low-resolution logits are kept in between.

    sum_c softplus(x_c) = sum_c max(x_c, 0) + log prod_c (1 + exp(-|x_c|)): one logarithm a pixel. The
    gradient is sigmoid(x) - onehot(y), times what comes from above.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        parts = []
        for low, y in _few_images(logits, target):
            x = upsample(low, y.shape[-2:])
            hit = x.gather(1, _channel(y, x)).squeeze(1)
            loss = hit.masked_fill_(y == x.shape[1], 0.0).neg_()
            # factors are at most 2, so products of 64 do not overflow
            for factors in torch.split(x.abs().neg_().exp_().add_(1), 64, 1):
                loss += factors.prod(1).log_()
            parts.append(loss.add_(x.clamp_(min=0).sum(1)))
        return torch.cat(parts).masked_fill_(target < 0, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        above = above.masked_fill(target < 0, 0.0)
        size, grads = target.shape[-2:], []
        for low, y, part in _few_images(logits, target, above):
            grad = upsample(low, size).sigmoid_().mul_(part.unsqueeze(1))
            one = part.masked_fill(y == low.shape[1], 0.0).neg_()
            grad.scatter_add_(1, _channel(y, grad), one.unsqueeze(1))
            grads.append(
                torch.ops.aten.upsample_bilinear2d_backward(grad, size, low.shape, False, None, None)
            )
        return torch.cat(grads).to(logits.dtype), None


def _channel(target: Tensor, x: Tensor) -> Tensor:
    """B H W -> indices B 1 H W of channels of x, any where target names none."""
    return target.clamp(0, x.shape[1] - 1).unsqueeze(1)


def _few_images(logits: Tensor, target: Tensor, *more: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """At full resolution: on a CPU what stays in its cache, on a GPU what keeps it busy; at least one."""
    pixels = logits.shape[1] * target.shape[-2] * target.shape[-1]
    n = max(1, (1 << (18 if logits.device.type == "cpu" else 26)) // pixels)
    return zip(*(torch.split(part, n) for part in (logits, target, *more)), strict=True)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy, B C H W and B H W -> B H W; 0 where target is negative."""
    target = target.masked_fill(target < 0, -1)
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="none")


PIECE = 1 << 26
"""Numbers of upsampled logits, 256 MiB of them, of which a softmax loss keeps what its gradient needs."""


def in_pieces(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
    """`loss(logits, labels, *more)`, a few images at a time where all of them would need much memory.

    A softmax loss keeps several tensors of all classes and pixels for its gradient: 26 GiB of 150 classes and
    24 images of 512 pixels. In pieces they are dropped, and computed again in the backward pass.

    Args:
        loss: Low-resolution logits b C h w, labels b H W and more, for any number of images -> b ... H W.
        logits: B C h w.
        labels: B H W.
        more: Tensors of B rows.
    """
    images = max(1, PIECE // (logits.shape[1] * labels[0].numel()))
    if images >= len(logits):
        return loss(logits, labels, *more)
    pieces = zip(*(torch.split(part, images) for part in (logits, labels, *more)), strict=True)
    again = [checkpoint(loss, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.cat(again)


def softmax_upsampled(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """`loss` (cross_entropy or focal) of logits that are upsampled to the target's size, `in_pieces`.

    Args:
        logits: B C h w.
        target: B H W.

    Returns:
        B H W.
    """
    return in_pieces(lambda low, y: loss(upsample(low, y.shape[-2:]), y), logits, target)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Softmax focal loss (1 - p_y)^gamma * CE (Lin et al. 2017, eq. 4); shapes as `cross_entropy`."""
    entropy = cross_entropy(logits, target)
    return (1 - torch.exp(-entropy)) ** gamma * entropy


def unbiased_cross_entropy(
    logits: Tensor, target: Tensor, known_before: int, old_as_background: bool = True
) -> Tensor:
    """Cross-entropy in which background stands for all old classes (MiB, eq. 5 and 6; METHODS 3).

    Args:
        logits: B C H W.
        target: B H W in [0, C); negative = ignored.
        known_before: K, the number of classes known before the step, background included.
        old_as_background: Labels of old classes, 1 to K - 1, count as background. Else they are trained as
            they are, as replayed exemplars and pseudo-labels need it.

    Returns:
        B H W; 0 where ignored.
    """
    background = logits[:, :known_before].logsumexp(1)
    hit = logits.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    merged = target < known_before if old_as_background else target == 0
    return (logits.logsumexp(1) - torch.where(merged, background, hit)).masked_fill(target < 0, 0.0)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's distribution, over its K classes alone (LwF; METHODS 5).

    Args:
        student: Logits B C H W, C >= K; the new classes' channels are left out of the softmax.
        teacher: Logits B K H W.

    Returns:
        B H W: the mean over K of -q log p.
    """
    log_p = student[:, : teacher.shape[1]].log_softmax(1)
    return -(teacher.softmax(1) * log_p).mean(1)


def unbiased_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Distillation in which the teacher's background stands for background and new classes (MiB, eq. 7 to 9).

    Shapes as `distillation`.
    """
    known_before = teacher.shape[1]
    total = student.logsumexp(1, keepdim=True)
    background = torch.cat([student[:, :1], student[:, known_before:]], 1).logsumexp(1, keepdim=True)
    log_p = torch.cat([background, student[:, 1:known_before]], 1) - total
    return -(teacher.softmax(1) * log_p).mean(1)


POD_SCALES = (1, 2, 4)


def local_pod(maps: Tensor) -> Tensor:
    """Means over the width and over the height of windows at three scales (PLOP, eq. 3 to 5; METHODS 4).

    At scale s there are s x s windows of W // s pixels; the rest at the right and below is dropped.

    Args:
        maps: B C H W, already squared; H >= W >= 4.

    Returns:
        B L, float32 at least.

    Raises:
        ValueError: For a map that is too small.
    """
    height, width = maps.shape[-2:]
    if width < max(POD_SCALES) or height < width:
        raise ValueError(
            f"local POD needs maps of at least 4 x 4 and as high as wide, got {height} x {width}"
        )
    parts = []
    for s in POD_SCALES:
        side = width // s
        square = maps[..., : s * side, : s * side]
        windows = square.reshape(*maps.shape[:2], s, side, s, side)
        parts += [windows.mean(-1).flatten(1), windows.mean(-3).flatten(1)]
    return torch.cat(parts, 1)


def pod_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of two maps B C H W in local POD, mean over the batch: a scalar (PLOP, eq. 6)."""
    pair = [local_pod(wide(maps).square()) for maps in (student, teacher)]
    distance: Tensor = torch.linalg.vector_norm(pair[0] - pair[1], dim=1).mean()
    return distance


def normalised_entropy(p: Tensor) -> Tensor:
    """Entropy of distributions B K H W over their K classes, divided by log K: B H W in [0, 1]."""
    entropy: Tensor = torch.special.entr(p).sum(1) / math.log(p.shape[1])
    return entropy


def rate_factor(policy: str, iteration: int, total: int, step_size: int) -> float:
    """Factor of the learning rate at an update.

    Args:
        policy: poly, warm_poly or step (a tenth every `step_size` updates).
        iteration: Index of the update within its step, from 0.
        total: Number of updates of the step.
        step_size: Updates between two cuts.
    """
    if policy == "step":
        return float(0.1 ** (iteration // step_size))
    return poly(iteration, total, warm_up=policy == "warm_poly")


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
