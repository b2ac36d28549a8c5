"""What torch computes slowly on a CPU in training, computed otherwise; values and state dict stay the same.

Clipped activations, gradients of depthwise convolutions, and of convolutions that are dilated so far that
most of what their taps meet is padding; `benchmarks/profile_step.py` prints what an update costs without.
"""

import itertools
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .segmenter import Segmenter


def accelerate(model: Segmenter) -> None:
    """Exchange what is slow in training on a CPU; weights are shared with the modules that were there."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU6) and module.inplace:
            model.set_submodule(name, Clip(module.min_val, module.max_val))
        elif type(module) is nn.Conv2d and _plain(module):
            if _slow_depthwise(module):
                model.set_submodule(name, Depthwise(module))
            elif module.groups == 1 and _dilated(module):
                model.set_submodule(name, Dilated(module))


def _plain(conv: nn.Conv2d) -> bool:
    """3x3, zeros around the map, no bias."""
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.kernel_size == (3, 3) and conv.bias is None


def _dilated(conv: nn.Conv2d) -> bool:
    """Dilated alike in both directions, with a result as large as the input."""
    d = conv.dilation[0]
    return d > 1 and conv.dilation == conv.padding == (d, d) and conv.stride == (1, 1)


def _slow_depthwise(conv: nn.Conv2d) -> bool:
    """One channel at a time, with a stride of 2 or dilated: of these oneDNN has no fast gradient."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    strided = conv.stride == (2, 2) and conv.dilation == conv.padding == (1, 1)
    return depthwise and (strided or _dilated(conv))


@final
class Clip(nn.Module):
    """A clipped activation in place. torch's own first copies its input, which nothing needs."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the input is overwritten."""
        out: Tensor = ClipGradient.apply(x, self.low, self.high)
        return out


class ClipGradient(torch.autograd.Function):
    """Where the output is strictly between the bounds the input was, so the output says the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        """Overwrites x."""
        ctx.mark_dirty(x)
        ctx.bounds = low, high
        x.clamp_(low, high)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the input."""
        return torch.ops.aten.hardtanh_backward(above, ctx.saved_tensors[0], *ctx.bounds), None, None


class _SameWeight(nn.Conv2d):
    """A convolution in another's place: the same weight, the same names. Abstract."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            device="meta",
        )
        self.weight = conv.weight
        self.train(conv.training)

    def cast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as autocast would have them: it does not see what an autograd function calls."""
        if not torch.is_autocast_enabled(x.device.type):
            return x, self.weight
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), self.weight.to(dtype)


@final
class Dilated(_SameWeight):
    """A dilated 3x3 convolution whose gradient skips what lies outside the map (`DilatedGradient`)."""

    def forward(self, input: Tensor) -> Tensor:
        """B C H W -> B D H W."""
        d = int(self.dilation[0])
        height, width = input.shape[-2:]
        seen = (height + 2 * max(0, height - d)) * (width + 2 * max(0, width - d))
        # a product of matrices a tap is slower than oneDNN's all at once unless most of them are small
        if 9 * height * width < 2.5 * seen:
            return super().forward(input)
        out: Tensor = DilatedGradient.apply(*self.cast(input), d)
        return out


class DilatedGradient(torch.autograd.Function):
    """A 3x3 convolution dilated by d, padded by d, whose gradient goes tap by tap.

    A tap reaches d pixels away: on a map of 13 x 13 the outer taps at d = 18 meet nothing but padding, at
    d = 12 one row or column. oneDNN leaves that out forwards, but not backwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, d: int) -> Tensor:
        """B C H W and D C 3 3 -> B D H W."""
        ctx.save_for_backward(x, weight)
        ctx.d = d
        return F.conv2d(x, weight, None, 1, d, d)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of input and weight; that of the input is summed over taps in float32 at least."""
        x, weight = ctx.saved_tensors
        to_input, to_weight = ctx.needs_input_grad[:2]
        grad, pixels = above.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
        wide = torch.promote_types(x.dtype, torch.float32)
        dx = torch.zeros_like(pixels, dtype=wide) if to_input else None
        dw = torch.zeros_like(weight) if to_weight else None
        for i, j in itertools.product(range(3), repeat=2):
            (y, rows), (z, columns) = (
                _overlap(size, (k - 1) * ctx.d) for size, k in zip(x.shape[-2:], (i, j), strict=True)
            )
            part = grad[:, y, z].reshape(-1, weight.shape[0])
            if not len(part):
                continue
            if dw is not None:
                dw[:, :, i, j] = part.t() @ pixels[:, rows, columns].reshape(-1, weight.shape[1])
            if dx is not None:
                there = dx[:, rows, columns]
                there += (part @ weight[:, :, i, j]).view(there.shape)
        return None if dx is None else dx.to(x.dtype).permute(0, 3, 1, 2), dw, None


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Of a row of pixels and the same row shifted: where both are, in the one and in the other."""
    first = max(0, -shift)
    last = max(first, min(size, size - shift))
    return slice(first, last), slice(first + shift, last + shift)


@final
class Depthwise(_SameWeight):
    """A depthwise convolution whose gradient is computed by `DepthwiseGradient`."""

    def forward(self, input: Tensor) -> Tensor:
        """B C H W -> B C h w."""
        x, weight = self.cast(input)
        out: Tensor = DepthwiseGradient.apply(x, weight, self.stride, self.padding, self.dilation)
        return out


class DepthwiseGradient(torch.autograd.Function):
    """A depthwise 3x3 convolution, dilated or with a stride, with gradients that oneDNN computes fast.

    Dilated by d it is the plain convolution of each of the d x d subgrids of pixels, whose gradients are
    fast. With a stride the gradient of the input is slow in bfloat16 only; without one it is fast, and the
    same when zeros stand for the outputs that a stride of 1 would have given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        """B C H W and C 1 3 3 -> B C h w."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input and weight."""
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        grad = above.contiguous(memory_format=torch.channels_last)
        to_input, to_weight = ctx.needs_input_grad[:2]
        if stride == (1, 1):
            d = dilation[0]
            parts = subgrids(grad, d), subgrids(x, d)
            dx, dw = _gradients(*parts, weight, stride, (1, 1), to_input, to_weight)
            return dx if dx is None else merged(dx, d, x.shape[2:]), dw, None, None, None
        if not to_input or x.dtype == torch.float32:
            return *_gradients(grad, x, weight, stride, padding, to_input, to_weight), None, None, None
        whole = torch.zeros_like(x)
        whole[:, :, ::2, ::2] = grad
        dx, _ = _gradients(whole, x, weight, (1, 1), padding, True, False)
        _, dw = _gradients(grad, x, weight, stride, padding, False, to_weight)
        return dx, dw, None, None, None


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    to_input: bool,
    to_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    mask = [to_input, to_weight, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], mask
    )
    return dx, dw


def subgrids(x: Tensor, d: int) -> Tensor:
    """Every d-th pixel: B C H W -> (d d B) C h w, zeros where the last rows and columns are missing."""
    b, c, height, width = x.shape
    h, w = -(-height // d), -(-width // d)
    out, pixels = x.new_empty(d, d, b, h, w, c), x.permute(0, 2, 3, 1)
    for i, j in itertools.product(range(d), repeat=2):
        part, whole = pixels[:, i::d, j::d], out[i, j]
        rows, columns = part.shape[1:3]
        whole[:, :rows, :columns] = part
        whole[:, rows:].zero_()
        whole[:, :rows, columns:].zero_()
    return out.view(d * d * b, h, w, c).permute(0, 3, 1, 2)


def merged(parts: Tensor, d: int, size: torch.Size) -> Tensor:
    """The reverse of `subgrids`: (d d B) C h w -> B C H W."""
    _, c, h, w = parts.shape
    grid = parts.permute(0, 2, 3, 1).reshape(d, d, -1, h, w, c)
    out = parts.new_empty(grid.shape[2], size[0], size[1], c)
    for i, j in itertools.product(range(d), repeat=2):
        there = out[:, i::d, j::d]
        there.copy_(grid[i, j, :, : there.shape[1], : there.shape[2]])
    return out.permute(0, 3, 1, 2)
