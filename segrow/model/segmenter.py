"""The network: a trunk that all classes share, and heads that are added step by step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UserError
from .backbones import Backbone, dilate_first_blocks, normalisation, pad_as_reference, split_name
from .decoder import ConvNormAct, DeepLabV3, DeepLabV3Plus, init_v3, init_v3plus
from .weights import load_backbone_weights, parse_weights

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


class SegOutput(NamedTuple):
    """What the network says about a batch.

    Attributes:
        logits: B C h w, channel = class index, at the features' resolution.
        unknown: B 1 h w, or None when the model has no unknown head.
        features: B D h w, the trunk's result before dropout.
        stages: The backbone's maps, deepest last; empty when only heads were run.
        before: The last four of them before their last activation; only when asked for.
    """

    logits: Tensor
    unknown: Tensor | None
    features: Tensor
    stages: tuple[Tensor, ...]
    before: tuple[Tensor, ...] = ()


class TrunkOutput(NamedTuple):
    """What the trunk says about a batch: `features`, `stages` and `before` of SegOutput."""

    features: Tensor
    stages: tuple[Tensor, ...] = ()
    before: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Group:
    """The class range [start, stop) of one head, its form (conv, linear) and the step that taught it."""

    name: str
    start: int
    stop: int
    form: str
    step: int


class Trunk(nn.Module):
    """Backbone and decoder."""

    def __init__(self, backbone: Backbone, decoder: DeepLabV3 | DeepLabV3Plus) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.channels = decoder.channels

    def forward(self, images: Tensor, before: bool = False) -> TrunkOutput:
        """Normalised images B 3 H W -> features and maps.

        Args:
            before: Also the maps before their last activation.
        """
        stages, raw = self.backbone.forward_before(images) if before else (self.backbone(images), ())
        return TrunkOutput(self.decoder.join(self.decoder.encode(stages)), stages, raw)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images B 3 H W -> maps, as small as they can be, that `join` makes the features of."""
        return self.decoder.encode(self.backbone(images))

    def join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What `encode` gave, or a copy that was kept -> features B D h w."""
        return self.decoder.join(parts)


class Head(nn.Module):
    """Features B D h w -> logits B n h w.

    Attributes:
        body: conv form: 3x3 (or separable) without bias, BN, ReLU; linear form: nothing.
        out: The 1x1 convolution; row i of its weight and bias belongs to the head's i-th class.
    """

    def __init__(
        self, channels: int, width: int, classes: int, form: str, plus: bool, separable: bool = False
    ) -> None:
        super().__init__()
        conv = form == "conv"
        self.body: nn.Module = nn.Identity()
        if conv:
            self.body = ConvNormAct(channels, width, 3, separable=separable)
        self.out = nn.Conv2d(width if conv else channels, classes, 1)
        if conv:  # a linear head is MiB's and PLOP's: torch's own initialisation (METHODS 5)
            self.apply(init_v3plus if plus else init_v3)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(features))
        return logits


@final
class Segmenter(nn.Module):
    """A segmentation network that grows.

    Attributes:
        config: How it was built.
        layout: One group of classes a head, in channel order.
        trunk: Backbone and decoder.
        heads: One head a group; their outputs are concatenated.
        unknown: The auxiliary head of one channel, beside the classes; or None.
        dropout: In front of all heads.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: tuple[Group, ...],
        unknown: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        """Build with random weights.

        Args:
            mean: Of the input, RGB, in [0, 1].
            std: Standard deviation of the input, RGB, in [0, 1].

        Raises:
            UserError: For a value of `config` that cannot be built.
        """
        super().__init__()
        _check(config)
        plus, name = split_name(config.name)
        backbone = Backbone(name, config.output_stride)
        if config.reference_padding:
            pad_as_reference(backbone)
        if config.dilate_first:
            dilate_first_blocks(backbone)
        for module in backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = config.norm_momentum
                module.eps = module.eps if config.norm_eps is None else config.norm_eps
        rates = tuple(config.rates or RATES[config.output_stride])
        decoder: DeepLabV3 | DeepLabV3Plus
        if plus:
            decoder = DeepLabV3Plus(backbone, config.width, rates, config.separable, config.refine)
        else:
            decoder = DeepLabV3(backbone, config.width, rates, config.separable)
        self.config = config
        self._plus = plus
        self.layout = layout
        self.trunk = Trunk(backbone, decoder)
        self.heads = nn.ModuleList([self._head(group.stop - group.start, group.form) for group in layout])
        self.unknown = self._head(1, config.head) if unknown else None
        self.dropout = nn.Dropout(config.dropout)
        self._frozen_norms: set[str] = set()  # by name: survives copies and exchanged norm classes
        self.mean: Tensor
        self.std: Tensor
        self.set_normalisation(mean, std)

    def _head(self, classes: int, form: str) -> Head:
        config = self.config
        return Head(self.trunk.channels, config.width, classes, form, self._plus, config.separable)

    @property
    def n_classes(self) -> int:
        """Number of classes, background included."""
        return self.layout[-1].stop

    def set_normalisation(
        self, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        """How images are normalised: RGB, in [0, 1]; not part of the state dict."""
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=dtype).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 B 3 H W, RGB -> (x / 255 - mean) / std in the model's precision."""
        x = images.to(self.mean.dtype, copy=True)  # and then in place: new memory costs more than the sums
        return x.div_(255).sub_(self.mean).div_(self.std)

    def features(self, images: Tensor, before: bool = False) -> TrunkOutput:
        """The trunk alone: uint8 B 3 H W -> features B D h w before dropout, and the backbone's maps.

        Args:
            before: Also the maps before their last activation.
        """
        out: TrunkOutput = self.trunk(self.normalise(images), before)
        return out

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 B 3 H W -> the trunk's maps before they are joined (`trunk.join`), for keeping them."""
        parts: tuple[Tensor, ...] = self.trunk.encode(self.normalise(images))
        return parts

    def classify(
        self, features: Tensor, stages: tuple[Tensor, ...] = (), before: tuple[Tensor, ...] = ()
    ) -> SegOutput:
        """The heads alone, on features B D h w, which may be cached or shared with another model.

        In training one dropout mask stands in front of all heads.
        """
        dropped = self.dropout(features)
        logits = torch.cat([head(dropped) for head in self.heads], 1)
        unknown = None if self.unknown is None else self.unknown(dropped)
        return SegOutput(logits, unknown, features, stages, before)

    def classify_some(self, features: Tensor, heads: Sequence[int], unknown: bool) -> Tensor:
        """Some heads alone, under the same dropout mask as `classify` would draw.

        Args:
            features: B D h w.
            heads: Their indices, ascending.
            unknown: Also the unknown head, last.

        Returns:
            B n h w.
        """
        dropped = self.dropout(features)
        logits = [self.heads[k](dropped) for k in heads]
        if unknown and self.unknown is not None:
            logits.append(self.unknown(dropped))
        return torch.cat(logits, 1)

    def forward(self, images: Tensor, before: bool = False) -> SegOutput:
        """uint8 B 3 H W, RGB -> logits at the features' resolution.

        Args:
            before: Also the maps before their last activation.
        """
        return self.classify(*self.features(images, before))

    def heads_of(self, *names: str) -> list[Head]:
        """The heads of the named groups, in channel order."""
        pairs = zip(self.layout, self.heads, strict=True)
        return [head for group, head in pairs if group.name in names and isinstance(head, Head)]

    def grow(self, n_new: int, step: int) -> None:
        """Add a head of `n_new` random classes; what the old heads say stays bit-identical.

        Args:
            step: The step that teaches them; larger than any before.

        Raises:
            ValueError: For no class, or a step that has passed.
        """
        if n_new < 1 or step <= self.layout[-1].step:
            raise ValueError(f"cannot grow by {n_new} classes in step {step}, last is {self.layout[-1]}")
        head = self._head(n_new, self.config.head).to(next(self.heads.parameters()))
        self.heads.append(head.train(self.training))
        start = self.n_classes
        self.layout += (Group(f"step {step}", start, start + n_new, self.config.head, step),)

    @torch.no_grad()
    def initialise_from_unknown(self, group: int = -1) -> None:
        """Weight transfer (SSUL): a head starts as the unknown head (METHODS 2, step t > 0).

        The 3x3 convolution and its BN are copied, running statistics too; the single output row and bias go
        to every class of the head.

        Raises:
            ValueError: When the model has no unknown head.
        """
        if self.unknown is None:
            raise ValueError("this model has no unknown head to start from")
        head = self.heads[group]
        if not isinstance(head, Head) or self.unknown.out.bias is None or head.out.bias is None:
            raise TypeError("expected a head with bias")
        head.body.load_state_dict(self.unknown.body.state_dict())
        head.out.weight.copy_(self.unknown.out.weight.expand_as(head.out.weight))
        head.out.bias.copy_(self.unknown.out.bias.expand_as(head.out.bias))

    @torch.no_grad()
    def initialise_from_background(self, group: int = -1, split: bool = True) -> None:
        """MiB's initialisation: every class of a head starts as background (METHODS 3, Initialisation).

        The row of background is copied to each of the head's n classes (and, of a conv head, what stands
        before it).

        Args:
            split: Lower the biases of these classes and of background by log(n + 1), so that under softmax
                they share the old background's probability and the old classes keep theirs.
        """
        head, source = self.heads[group], self.heads[0]
        if not isinstance(head, Head) or not isinstance(source, Head):
            raise TypeError("expected heads")
        if head.out.bias is None or source.out.bias is None:
            raise TypeError("expected heads with bias")
        head.body.load_state_dict(source.body.state_dict())
        if split:
            source.out.bias[0] -= math.log(head.out.out_channels + 1)
        head.out.weight.copy_(source.out.weight[:1].expand_as(head.out.weight))
        head.out.bias.copy_(source.out.bias[:1].expand_as(head.out.bias))

    def freeze(self, *modules: nn.Module, parameters: bool = True, norms: bool = True) -> None:
        """Freeze parts of this model; adds to what is frozen already and survives `.train()`.

        Args:
            modules: Modules of this model.
            parameters: Their parameters get no gradient.
            norms: Their batch normalisations stay in evaluation mode, so running statistics do not move.

        Raises:
            ValueError: For a module that is not part of this model.
        """
        names = {id(module): name for name, module in self.named_modules()}
        for root in modules:
            if id(root) not in names:
                raise ValueError(f"{type(root).__name__} is not part of this model")
            if parameters:
                root.requires_grad_(False)
            if norms:
                self._frozen_norms |= {names[id(norm)] for norm in _norms(root)}
        self.train(self.training)

    def unfreeze(self) -> None:
        """Everything trains again."""
        self.requires_grad_(True)
        self._frozen_norms.clear()
        self.train(self.training)

    @property
    def frozen_norms(self) -> frozenset[str]:
        """Names of the batch normalisations that stay in evaluation mode."""
        return frozenset(self._frozen_norms)

    @property
    def trunk_frozen(self) -> bool:
        """Whether the trunk is a constant function: no gradient, and every norm in evaluation mode."""
        names = {name for name, module in self.named_modules() if isinstance(module, _NORM)}
        inside = {name for name in names if name.startswith("trunk.")}
        trains = any(parameter.requires_grad for parameter in self.trunk.parameters())
        return not trains and inside <= self._frozen_norms

    def train(self, mode: bool = True) -> "Segmenter":
        """As in torch, but frozen norms stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen_norms:
            self.get_submodule(name).train(False)
        return self


_NORM = nn.modules.batchnorm._BatchNorm


def _norms(root: nn.Module) -> Iterable[nn.Module]:
    return (module for module in root.modules() if isinstance(module, _NORM))


def build_segmenter(
    config: ModelConfig, n_base: int, unknown: bool, report: Callable[[str], None] = print
) -> Segmenter:
    """The network of the base step, its backbone pretrained as `config.weights` says.

    Args:
        n_base: Number of base classes, background not counted.
        unknown: Whether there is an auxiliary head for unknown objects.
        report: Gets one or two lines saying what was loaded and what was not.

    Raises:
        UserError: For an unknown backbone, weights that cannot be had or do not fit.
    """
    if n_base < 1:
        raise ValueError(f"expected at least one base class, got {n_base}")
    layout: tuple[Group, ...]
    if config.head == "conv":
        layout = (Group("background", 0, 1, "conv", 0), Group("base", 1, n_base + 1, "conv", 0))
    else:
        layout = (Group("base", 0, n_base + 1, config.head, 0),)
    _, name = split_name(config.name)
    source = parse_weights(config.weights, name)
    mean, std = normalisation(name, source.value if source.kind == "timm" else None)
    model = Segmenter(config, layout, unknown, mean, std)
    load_backbone_weights(model.trunk.backbone, source, report)
    return model


def _check(config: ModelConfig) -> None:
    """Refuse values that torch would only reject later, in other words."""
    if config.output_stride not in RATES:
        raise UserError(f"output stride {config.output_stride} is not possible; use 8 or 16")
    if config.head not in ("conv", "linear"):
        raise UserError(f'head form "{config.head}" is not known; use conv or linear')
    if config.width < 1:
        raise UserError(f"model width is {config.width}, expected at least 1")
    if config.rates is not None and (not config.rates or min(config.rates) < 1):
        raise UserError(f"ASPP rates are {config.rates}, expected one or more whole numbers from 1")
    if not 0 <= config.dropout < 1:
        raise UserError(f"dropout is {config.dropout}, expected a probability below 1")
    if not 0 < config.norm_momentum <= 1:
        raise UserError(f"norm momentum is {config.norm_momentum}, expected a number in (0, 1]")
    if config.norm_eps is not None and not config.norm_eps > 0:
        raise UserError(f"norm eps is {config.norm_eps}, expected a number above 0")
    if config.refine and not (split_name(config.name)[0] and config.separable):
        raise UserError(f"--model.refine is for a separable deeplabv3plus, not for {config.name}")
