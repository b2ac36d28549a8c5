"""A trained network rewritten for inference: the same numbers up to rounding, fewer and larger operations.

    fused = fuse(model)                 # of its own: nothing is shared with the model
    out = fused(images)                 # SegOutput, as the model's in evaluation mode
    torch.export.export(fused, (images,))

Batch normalisations become part of the convolution before them, and the heads' convolutions stand beside each
other in a few wide ones.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, final

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .decoder import SeparableConv
from .norm import CrossRankBatchNorm2d
from .segmenter import Head, Segmenter, SegOutput, Trunk

WIDEST = 2048
"""Channels of one convolution over several heads. More gains nothing, and so the memory for what stands
between features and logits does not grow with the number of heads."""

FOLDED_BYTES = 64 << 20  # of a trunk that is copied to be folded for a few passes
EXAMPLE = 64  # side in pixels of the image that shows which normalisation follows which convolution


@final
class FusedSegmenter(nn.Module):
    """Built by `fuse`.

    Attributes:
        n_classes: Number of classes, background included.
        trunk: Backbone and decoder, normalisations folded.
        groups: Heads side by side, in channel order, unknown last.
    """

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.n_classes = model.n_classes
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", model.mean.detach().clone())
        self.register_buffer("std", model.std.detach().clone())
        self.trunk = copy.deepcopy(model.trunk).eval()
        fold_norms(self.trunk, torch.zeros(1, 3, EXAMPLE, EXAMPLE).to(self.mean))
        heads = [copy.deepcopy(head).eval() for head in model.heads if isinstance(head, Head)]
        if model.unknown is not None:
            heads.append(copy.deepcopy(model.unknown).eval())
        self._has_unknown = model.unknown is not None
        for head in heads:
            fold_norms(head.body, torch.zeros(1, model.trunk.channels, 3, 3).to(self.mean))
        self.groups = nn.ModuleList([_together(group) for group in _neighbours(heads)])
        self.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, before: bool = False) -> SegOutput:
        """uint8 B 3 H W, RGB -> what the model says in evaluation mode; arguments as `Segmenter.forward`."""
        normalised = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        features, stages, raw = self.trunk(normalised.contiguous(memory_format=torch.channels_last), before)
        logits = torch.cat([group(features) for group in self.groups], 1)
        unknown = logits[:, self.n_classes :] if self._has_unknown else None
        return SegOutput(logits[:, : self.n_classes], unknown, features, stages, raw)


def fuse(model: Segmenter) -> FusedSegmenter:
    """A copy of a model for inference, on the device where the model is; the model stays as it is."""
    return FusedSegmenter(model)


# --- heads ------------------------------------------------------------------------------------------------


def folded(trunk: Trunk, large: bool = False) -> Trunk:
    """A frozen trunk for repeated use: a copy with its normalisations folded.

    Args:
        trunk: Stays as it is.
        large: Fold one of more than FOLDED_BYTES too; else that is returned as it is, because it gains no
            more than a tenth, and would stand in memory twice.
    """
    size = sum(p.numel() * p.element_size() for p in trunk.parameters())
    if size > FOLDED_BYTES and not large:
        return trunk
    copied = copy.deepcopy(trunk).eval().requires_grad_(False)
    first = next(trunk.parameters())
    fold_norms(copied, torch.zeros(1, 3, EXAMPLE, EXAMPLE, dtype=first.dtype, device=first.device))
    return copied


class WideHead(nn.Module):
    """Heads side by side: features B D h w -> B n h w, their classes one behind the other.

    Attributes:
        body: conv form: one convolution to the widths of all heads, and ReLU; linear form: nothing.
        out: Their 1x1 convolutions as one; in conv form block-diagonal. The zeros are a small part of the
            multiplications, and groups of a grouped convolution would have to have equally many classes.
    """

    def __init__(self, body: nn.Module, out: nn.Conv2d) -> None:
        super().__init__()
        self.body = body
        self.out = out

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(features))
        return logits


def _neighbours(heads: Sequence[Head]) -> list[list[Head]]:
    """Heads that one convolution can stand for: of one form, not separable, together at most `WIDEST`."""
    groups: list[list[Head]] = []
    for head in heads:
        last = groups[-1] if groups else []
        linear = isinstance(head.body, nn.Identity)
        fits = bool(last) and linear == isinstance(last[0].body, nn.Identity)
        if fits and not linear:
            fits = _is_dense(head) and _is_dense(last[0])
            fits = fits and head.out.in_channels * (len(last) + 1) <= WIDEST
        if fits:
            last.append(head)
        else:
            groups.append([head])
    return groups


def _is_dense(head: Head) -> bool:
    return isinstance(head.body, nn.Sequential) and not isinstance(head.body[0], SeparableConv)


def _together(heads: Sequence[Head]) -> WideHead:
    """One head in the place of several whose normalisations are folded."""
    outs = [head.out for head in heads]
    first = heads[0].body
    if len(heads) == 1:
        return WideHead(first, outs[0])
    if not isinstance(first, nn.Sequential):
        return WideHead(first, _convolution(torch.cat([out.weight for out in outs]), outs))
    convs = [head.body[0] for head in heads if isinstance(head.body, nn.Sequential)]
    stacked = [conv for conv in convs if isinstance(conv, nn.Conv2d)]
    body = _convolution(torch.cat([conv.weight for conv in stacked]), stacked)
    blocks: Tensor = torch.block_diag(*[out.weight.flatten(1) for out in outs])  # type: ignore[no-untyped-call]
    return WideHead(nn.Sequential(body, nn.ReLU(inplace=True)), _convolution(blocks[:, :, None, None], outs))


def _convolution(weight: Tensor, parts: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """A convolution with these weights and the biases of its parts, which are padded and dilated alike."""
    biases = [part.bias for part in parts if part.bias is not None]
    if len(biases) != len(parts):
        raise TypeError("expected convolutions with bias")
    outputs, inputs, *kernel = weight.shape
    conv = nn.Conv2d(inputs, outputs, tuple(kernel), padding=parts[0].padding, device="meta")  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    conv.bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    return conv


# --- normalisations ---------------------------------------------------------------------------------------


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often every tensor is read. It keeps all of them, so that none takes another's id."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        out = func(*args, **kwargs)
        self._alive.append((args, kwargs, out))
        return out


@torch.no_grad()
def fold_norms(module: nn.Module, example: Tensor) -> int:
    """Fold every batch normalisation that can be into the convolution whose result it alone reads.

    Which ones these are is seen by running the module once: no knowledge of the architecture is needed, and
    a convolution whose result something else reads too is left alone.

    Args:
        module: In evaluation mode; changed in place.
        example: An input.

    Returns:
        How many were folded.
    """
    made: dict[int, nn.Conv2d] = {}  # id of a convolution's result -> it
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]] = []
    calls: Counter[nn.Module] = Counter()
    handles = []

    def see_conv(conv: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        calls[conv] += 1
        if isinstance(conv, nn.Conv2d):
            made[id(out)] = conv

    def see_norm(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if isinstance(norm, nn.BatchNorm2d) and id(args[0]) in made:
            pairs.append((made[id(args[0])], norm, args[0]))

    for part in module.modules():
        if type(part) in (nn.Conv2d, Conv2dSame):  # others may compute something of their own
            handles.append(part.register_forward_hook(see_conv))
        elif isinstance(part, nn.BatchNorm2d) and not (part._forward_hooks or part._forward_pre_hooks):
            handles.append(part.register_forward_pre_hook(see_norm))
    with _Uses() as uses:
        results = tree_leaves(module(example))
    for handle in handles:
        handle.remove()
    names = {part: name for name, part in module.named_modules()}
    folded = 0
    for conv, norm, between in pairs:
        alone = uses.count[id(between)] == 1 and not any(between is result for result in results)
        rest = _activation(norm) if alone and calls[conv] == calls[norm] == 1 else None
        if rest is not None:
            _fold(conv, norm)
            module.set_submodule(names[norm], rest)
            folded += 1
    return folded


def _activation(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a normalisation does besides an affine map, in evaluation mode; None when that is not known."""
    if norm.running_mean is None or norm.running_var is None:
        return None  # it takes the statistics of its input
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm) in (BatchNormAct2d, CrossRankBatchNorm2d):
        return norm.get_submodule("act")
    return None


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """norm(conv(x)) = conv'(x), for the running statistics; computed in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("expected a normalisation with running statistics")
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = (0.0 if conv.bias is None else conv.bias.double()) - mean
    shift = shift * scale + (0.0 if norm.bias is None else norm.bias.double())
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
