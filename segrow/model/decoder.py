"""DeepLab's decoders, up to the features that all heads share.

DeepLabV3: Chen et al. 2017, arXiv 1706.05587. DeepLabV3+: Chen et al. 2018, arXiv 1802.02611.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .backbones import Backbone

LOW_LEVEL = 48  # channels of the stride-4 projection of DeepLabV3+


class SeparableConv(nn.Sequential):
    """A k x k convolution of each channel alone, then 1x1 over channels, both without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, inputs, kernel, 1, padding, dilation, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU: B C_in h w -> B C_out h w.

    With `separable` a kernel larger than 1 is a SeparableConv.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, separable: bool = False
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            SeparableConv(inputs, outputs, kernel, dilation)
            if separable and kernel > 1
            else nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class ImagePooling(nn.Module):
    """The image-level branch of the ASPP: global mean, 1x1, BN, ReLU, back to the map's size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = ConvNormAct(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """B C_in h w -> B C_out h w, constant over each image.

        Raises:
            UserError: In training with one image: there is no variance over a single value.
        """
        norm = self.project[1]
        # Exactly this class: a norm synchronised over processes sees the other processes' images.
        if norm.training and type(norm) is nn.BatchNorm2d and x.shape[0] == 1:
            raise UserError(
                "training got a batch of 1 image, expected a batch size of at least 2 (batch normalisation "
                "of the image-level features); raise --train.batch_size or lower --train.accumulate"
            )
        pooled: Tensor = self.project(x.mean((2, 3), keepdim=True))
        # From 1x1 an interpolation is a copy. In the layout of the other branches: an expanded view has
        # none, and what they are concatenated to would be laid out as NCHW and copied again.
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
        wide = pooled.expand(-1, -1, *x.shape[2:])
        return wide if layout is None else wide.contiguous(memory_format=layout)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 and image pooling side by side, then a projection.

    The dropout that ends the ASPP elsewhere stands in the Segmenter, so that a frozen trunk is a constant
    function of the image.
    """

    def __init__(self, inputs: int, width: int, rates: tuple[int, ...], separable: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNormAct(inputs, width),
                *(ConvNormAct(inputs, width, 3, rate, separable) for rate in rates),
                ImagePooling(inputs, width),
            ]
        )
        self.project = ConvNormAct(width * len(self.branches), width)

    def forward(self, x: Tensor) -> Tensor:
        """B C_in h w -> B width h w."""
        out: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        return out


class DeepLabV3(nn.Module):
    """The ASPP on the deepest stage.

    Attributes:
        channels: Channels of the result (width).
    """

    def __init__(
        self, backbone: Backbone, width: int, rates: tuple[int, ...], separable: bool = False
    ) -> None:
        super().__init__()
        self.aspp = ASPP(backbone.channels[-1], width, rates, separable)
        self.channels = width
        self.apply(init_v3)

    def encode(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Stages, deepest last -> the maps that `join` makes the result of: here B width h w alone."""
        return (self.aspp(stages[-1]),)

    def join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What `encode` gave -> B width h w at the output stride."""
        return parts[0]


class DeepLabV3Plus(nn.Module):
    """The ASPP upsampled to stride 4, beside a projection of the stride-4 stage.

    Attributes:
        channels: Channels of the result (width + 48).
        refine: A 3x3 after the ASPP, as segmentation_models_pytorch has it, or nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int,
        rates: tuple[int, ...],
        separable: bool = False,
        refine: bool = False,
    ) -> None:
        """Build with random weights.

        Args:
            refine: The form of segmentation_models_pytorch, which also aligns corners where it upsamples.
        """
        super().__init__()
        self.low = backbone.stage_at(4)
        self.aspp = ASPP(backbone.channels[-1], width, rates, separable)
        self.refine: nn.Module = ConvNormAct(width, width, 3, separable=True) if refine else nn.Identity()
        self._aligned = refine
        self.project = ConvNormAct(backbone.channels[self.low], LOW_LEVEL)
        self.channels = width + LOW_LEVEL
        self.apply(init_v3plus)

    def encode(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Stages, deepest last -> B 48 H/4 W/4 and B width h w: about a fifth of the joined size."""
        return self.project(stages[self.low]), self.refine(self.aspp(stages[-1]))

    def join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What `encode` gave -> B (width + 48) H/4 W/4: the projection first, then the ASPP's."""
        low, deep = parts
        deep = F.interpolate(deep, size=low.shape[2:], mode="bilinear", align_corners=self._aligned)
        return torch.cat([low, deep], 1)


def init_v3(module: nn.Module) -> None:
    """Kaiming-normal convolutions; biases and normalisations keep torch's default."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def init_v3plus(module: nn.Module) -> None:
    """Normal convolutions with deviation 0.001; biases and normalisations keep torch's default.

    Separable ones are kaiming-normal, as in the reference code, which exchanges them in afterwards: two
    factors of 0.001 would leave nothing. (`Module.apply` comes to a module after its children.)
    """
    if isinstance(module, SeparableConv):
        module.apply(init_v3)
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.001)
