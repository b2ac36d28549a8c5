"""Backbones: any timm CNN that accepts an output stride, as a list of feature maps."""

import difflib
from typing import Any

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..errors import UserError, near

MOBILENET = "mobilenetv2_100"

SHORT = {"mobilenet": MOBILENET}
"""Names of the reference command line that differ from timm's."""

# The reference networks start from torchvision's first ImageNet weights; timm's own defaults are later ones.
DEFAULT_TAGS = {"resnet50": "tv_in1k", "resnet101": "tv_in1k"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXAMPLES = ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet", "deeplabv3plus_resnet101")


class LastActivation(nn.Module):
    """The activation that ends a stage; it can keep its input, which timm's in-place one overwrites.

    Attributes:
        keep: Whether the next forward pass keeps its input.
        before: That input, B C h w.
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.keep = False
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.keep:
            self.before, x = x, x.clone()
        out: Tensor = self.act(x)
        return out

    def take(self) -> Tensor:
        """The input that was kept, once."""
        if self.before is None:
            raise RuntimeError("no input was kept")
        before, self.before = self.before, None
        return before


class Backbone(nn.Module):
    """A timm CNN without its classifier.

    Attributes:
        name: timm's name, without a weight tag.
        net: timm's feature extractor.
        channels: Channels of each stage, deepest last.
        reductions: Input size over map size of each stage.
    """

    def __init__(self, name: str, output_stride: int) -> None:
        """Build with random weights.

        Args:
            name: timm's name.
            output_stride: Input size over the size of the deepest map; 8, 16 or 32.

        Raises:
            UserError: When timm has no such model, or it takes no output stride.
        """
        super().__init__()
        self.name = name
        self.net = _create(name, output_stride)
        info = self.net.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.reductions: tuple[int, ...] = tuple(info.reduction())
        self._ends = _take_out_last_activations(self.net)
        if self.reductions[-1] != output_stride:
            raise UserError(
                f"backbone {name} gives maps at stride {self.reductions[-1]}, expected {output_stride}; "
                "use another --model.output_stride or backbone"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images B 3 H W -> one map B C_i h_i w_i a stage, after its activation, deepest last."""
        return tuple(self.net(images))

    @property
    def shows_before(self) -> bool:
        """Whether `forward_before` can be had: of residual networks and inverted residual ones."""
        return self._ends is not None

    def forward_before(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The maps of `forward`, and those of the last four stages before their last activation (PLOP).

        An inverted residual block ends without an activation: there both are the same tensor.

        Raises:
            RuntimeError: When `shows_before` is False.
        """
        if self._ends is None:
            raise RuntimeError(f"where the stages of {self.name} end is not known")
        for end in self._ends:
            end.keep = True
        maps = self.forward(images)
        for end in self._ends:
            end.keep = False
        return maps, tuple(end.take() for end in self._ends) if self._ends else maps[-4:]

    def stage_at(self, reduction: int) -> int:
        """Index of the deepest stage of a given reduction.

        Raises:
            UserError: When no stage has it.
        """
        found = [i for i, r in enumerate(self.reductions) if r == reduction]
        if not found:
            raise UserError(
                f"backbone {self.name} has no map at stride {reduction} (only {self.reductions}), which "
                "deeplabv3plus needs; use deeplabv3"
            )
        return found[-1]


def pad_as_reference(backbone: Backbone) -> None:
    """Pad MobileNetV2 where the SSUL reference code does: before the expansion of each block, and not at the
    first convolution.

    Zeros that go through the expansion and its normalisation are zeros no more, in every block: weights that
    were trained under one padding predict otherwise under the other.

    Raises:
        UserError: For another backbone.
    """
    if backbone.name != MOBILENET:
        raise UserError(f"--model.reference_padding is for deeplabv3_mobilenet only, not for {backbone.name}")
    backbone.net.conv_stem.padding = (0, 0)
    for stage in list(backbone.net.blocks)[1:]:  # the first has no expansion
        for block in stage:
            block.conv_pw.padding, block.conv_dw.padding = block.conv_dw.padding, (0, 0)


def dilate_first_blocks(backbone: Backbone) -> None:
    """Dilate the first block of each dilated stage as the stage's other blocks.

    timm dilates it as the stage before (as the DeepLab authors' ResNets); torchvision's MobileNetV3 and the
    ResNets of segmentation_models_pytorch do not. The weights are the same, the maps are not.

    Raises:
        UserError: For a backbone whose stages are not known.
    """
    net = backbone.net
    if isinstance(net, FeatureListNet) and "layer4" in net:
        stages = [net[f"layer{k}"] for k in (1, 2, 3, 4)]
    elif isinstance(net, EfficientNetFeatures | MobileNetV3Features):
        stages = list(net.blocks)
    else:
        raise UserError(f"--model.dilate_first is for ResNets and MobileNets, not for {backbone.name}")
    for stage in stages:
        wide = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        dilation = max((conv.dilation[0] for conv in wide), default=1)
        for conv in wide if dilation > 1 else ():
            conv.dilation = (dilation, dilation)
            conv.padding = tuple(dilation * (side // 2) for side in conv.kernel_size)


def split_name(name: str) -> tuple[bool, str]:
    """A model's name -> (is it DeepLabV3+, timm's name of the backbone).

    Raises:
        UserError: When the name does not start with deeplabv3_ or deeplabv3plus_, or timm does not know
            the rest.
    """
    family, _, short = name.partition("_")
    if family not in ("deeplabv3", "deeplabv3plus") or not short:
        raise UserError(
            f'no model "{name}"; expected deeplabv3_BACKBONE or deeplabv3plus_BACKBONE, '
            f"as {EXAMPLES[0]}.{near(name, EXAMPLES)}"
        )
    backbone = SHORT.get(short, short)
    if not timm.is_model(backbone) or "." in backbone:
        arch, _, tag = backbone.partition(".")
        if timm.is_model(arch):
            raise UserError(
                f'no model "{name}": weight tags stand apart; use --model.name {family}_{arch} '
                f"--model.weights timm:{tag}"
            )
        raise UserError(f'timm has no backbone "{backbone}".{_near_backbone(backbone)}')
    return family == "deeplabv3plus", backbone


def pretrained_config(backbone: str, tag: str | None) -> Any:
    """timm's record of a set of pretrained weights (source, mean, std), or None."""
    tag = tag or DEFAULT_TAGS.get(backbone)
    return timm.models.get_pretrained_cfg(f"{backbone}.{tag}" if tag else backbone, allow_unregistered=True)


def normalisation(backbone: str, tag: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the inputs a backbone was trained with, RGB, in [0, 1]."""
    config = pretrained_config(backbone, tag)
    if config is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(config.mean), tuple(config.std)


def _take_out_last_activations(net: Any) -> tuple[LastActivation, ...] | None:
    """Exchange the last activation of each of the four stages of a residual network.

    Returns:
        Them, shallowest first; () where the stages end without one; None where it is not known.
    """
    if isinstance(net, FeatureListNet) and "layer4" in net:
        blocks = [list(net[f"layer{k}"].children())[-1] for k in (1, 2, 3, 4)]
        if not all(isinstance(block, BasicBlock | Bottleneck) for block in blocks):
            return None
        ends = []
        for block in blocks:
            name = "act3" if isinstance(block, Bottleneck) else "act2"
            ends.append(LastActivation(block.get_submodule(name)))
            block.set_submodule(name, ends[-1])
        return tuple(ends)
    if isinstance(net, EfficientNetFeatures | MobileNetV3Features):
        last = [
            [m for m in stage.modules() if isinstance(m, BatchNormAct2d)][-1]
            for stage in net.blocks.children()
        ]
        return () if all(isinstance(norm.act, nn.Identity) for norm in last) else None
    return None


def _near_backbone(backbone: str) -> str:
    """The hint of `near`, over what a user may type: timm's names and the short ones."""
    match = difflib.get_close_matches(backbone.lower(), [*SHORT, *timm.list_models()], n=1, cutoff=0.6)
    return f' Did you mean "{match[0]}"?' if match else " See timm.list_models()."


def _create(name: str, output_stride: int) -> Any:
    """timm's feature extractor with random weights.

    timm says in three ways that an architecture knows no output stride: an unexpected argument, an
    assertion, or no feature extraction at all.
    """
    try:
        return timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"backbone {name} does not take output stride {output_stride} ({reason}); expected a CNN that "
            "does, as resnet101, mobilenetv2_100 or tf_efficientnet_lite0"
        ) from None
