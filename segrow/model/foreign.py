"""Models trained elsewhere as a network with the same logits.

DeepLabV3 of torchvision, DeepLabV3 and V3+ of segmentation_models_pytorch (smp).

A file holds a state dict, or a training checkpoint with one in it (`model/state_dicts.py`). Its first
channel is background. What stands before the last layer becomes that of two heads, background and the rest.

What weights do not tell is taken as the library builds it by default: output stride and dilations.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from ..class_lists import escaped, has_unseen
from ..config import ModelConfig
from ..errors import UserError
from .backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, normalisation, split_name
from .decoder import LOW_LEVEL
from .own_names import BACKGROUND, compare_names
from .record import wrong_normalisation
from .segmenter import Group, Segmenter
from .state_dicts import find_network, listed, read_file
from .weights import fill_whole

RATES = (12, 24, 36)
"""Dilations of the ASPP in both libraries."""

_RESNETS: dict[tuple[int, ...], tuple[str, ...]] = {
    (2, 2, 2, 2): ("resnet18",),
    (3, 4, 6, 3): ("resnet34", "resnet50"),
    (3, 4, 23, 3): ("resnet101",),
    (3, 8, 36, 3): ("resnet152",),
}
"""By blocks of each stage; where there are two the second has three convolutions a block."""
_TORCHVISION_LAST, _SMP_LAST = "classifier.4.", "segmentation_head.0."
_MARKS = ((f"{_TORCHVISION_LAST}weight",), (f"{_SMP_LAST}weight",))
_NORMALISATION = ("mean", "std")
"""What a module that trains such a network may hold of its inputs, beside it."""


@dataclass(frozen=True)
class Foreign:
    """What a file holds, as one of our networks, and where the file has each of its tensors.

    Attributes:
        config: The network.
        backbone: Its name of a tensor of the backbone, from timm's name.
        aspp: What its names of the ASPP begin with.
        others: Beginnings of further names, ours to theirs; a head's stand without the head.
        unused: Beginnings of its names that do not matter for the output.
        normalisation: Mean and deviation of its inputs.
    """

    config: ModelConfig
    backbone: Callable[[str], str]
    aspp: str
    others: Mapping[str, str]
    unused: tuple[str, ...]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = (IMAGENET_MEAN, IMAGENET_STD)

    def source(self, name: str) -> str:
        """The file's name of one of our tensors."""
        if name.startswith("trunk.backbone.net."):
            return self.backbone(name.removeprefix("trunk.backbone.net."))
        if name.startswith("trunk.decoder.aspp.project."):
            return f"{self.aspp}project.{name.removeprefix('trunk.decoder.aspp.project.')}"
        branch = re.fullmatch(r"trunk\.decoder\.aspp\.branches\.(\d)\.(project\.)?(\d)\.(.+)", name)
        if branch is not None:  # behind the pooling, which is layer 0 there
            layer = int(branch[3]) + (1 if branch[2] else 0)
            return f"{self.aspp}convs.{branch[1]}.{layer}.{branch[4]}"
        rest = re.sub(r"^heads\.\d\.", "", name)
        mine = next(start for start in self.others if rest.startswith(start))
        return self.others[mine] + rest.removeprefix(mine)

    @property
    def last(self) -> str:
        """What the names of its last layer begin with."""
        return self.others["out."]


def read_foreign(
    path: Path,
    names: Sequence[str],
    arch: str | None = None,
    output_stride: int | None = None,
    rates: Sequence[int] | None = None,
    report: Callable[[str], None] = print,
) -> Segmenter:
    """The network of a state dict, every tensor of both accounted for by name and shape.

    Args:
        path: A file of safetensors or torch.save, in any wrapping; nothing in it is run.
        names: Its classes in the order of its channels, with background first or without it.
        arch: The network's name here, such as deeplabv3_resnet50; None: as its names show.
        output_stride: 8 or 16; None: as its library builds it by default.
        rates: Dilations of the ASPP; None: RATES.
        report: Gets a line about what is left out beside the network.

    Returns:
        The model on the CPU in evaluation mode, with heads background and base.

    Raises:
        UserError: For a file that cannot be read or holds another network, or names that do not fit.
    """
    content = read_file(path, "weights file")
    tensors = _older_names(find_network(path, content, _MARKS, report, beside=_NORMALISATION))
    rates = tuple(rates or RATES)
    if f"{_TORCHVISION_LAST}weight" in tensors:
        foreign = _torchvision(path, tensors, arch, output_stride, rates)
    elif f"{_SMP_LAST}weight" in tensors and any(name.startswith("decoder.aspp.") for name in tensors):
        foreign = _smp(path, tensors, arch, output_stride, rates)
    else:
        raise UserError(
            f"{path} holds no DeepLab of torchvision or segmentation_models_pytorch: expected names such as "
            f"{_TORCHVISION_LAST}weight or {_SMP_LAST}weight, got {listed(list(tensors)) or 'no tensor'}"
        )
    if aside := [name for name in tensors if name.startswith(foreign.unused)]:
        report(f"{path}: left out, for the output does not depend on it: {listed(aside)}")
    if other := sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}):
        report(f"{path}: numbers of {', '.join(other)} are taken as float32")
    channels = int(tensors[f"{foreign.last}weight"].shape[0])
    check_names(path, names, channels)
    for note in compare_names(path, names, channels, content):
        report(note)
    layout = (Group("background", 0, 1, "conv", 0), Group("base", 1, channels, "conv", 0))
    mean, std = _inputs(path, tensors, foreign)
    with torch.random.fork_rng(devices=[]):
        model = Segmenter(foreign.config, layout, False, mean, std)
    fill_whole(
        path,
        model,
        tensors,
        foreign.config.name,
        foreign.source,
        lambda name, theirs: _rows(name, theirs, foreign),
        foreign.unused,
    )
    return model.eval()


def check_names(path: Path, names: Sequence[str], channels: int) -> None:
    """One name a channel; background may be left out.

    Raises:
        UserError: Saying how many were expected.
    """
    if channels < 2:
        raise UserError(
            f"{path} has {channels} channel, which tells one class from the rest; expected background and "
            "each class in a channel of its own"
        )
    given = list(names[1:] if names and names[0] in BACKGROUND else names)
    if not names or len(given) != channels - 1:
        raise UserError(
            f"{path} has {channels} channels, got {len(given)} names besides background; expected --names "
            f"with {channels - 1}, in the order of its channels"
        )
    if unseen := [name for name in given if has_unseen(name)]:
        raise UserError(
            f'--names: "{escaped(unseen[0])}" has a character in it that is not seen; type it anew'
        )
    if twice := sorted({name for name in given if given.count(name) > 1 or name in BACKGROUND}):
        raise UserError(f'--names holds "{twice[0]}" twice; every class needs a name of its own')


# --- the two libraries --------------------------------------------------------------------------------------


def _torchvision(
    path: Path, tensors: Mapping[str, Tensor], arch: str | None, stride: int | None, rates: tuple[int, ...]
) -> Foreign:
    others = {"body.0.": "classifier.1.", "body.1.": "classifier.2.", "out.": _TORCHVISION_LAST}
    unused = ("aux_classifier.", "backbone.fc.")
    if "backbone.0.0.weight" in tensors:
        found = _agreed(path, "deeplabv3_mobilenetv3_large_100", arch)
        there = _mobilenet_names(found)
        config = ModelConfig(
            found, "none", stride or 16, rates=rates, dilate_first=True, norm_eps=1e-3, width=256
        )
        return Foreign(config, lambda name: f"backbone.{there[name]}", "classifier.0.", others, unused)
    found = _agreed(path, f"deeplabv3_{_resnet(path, tensors, 'backbone.')}", arch)
    config = ModelConfig(found, "none", stride or 8, rates=rates)
    return Foreign(config, lambda name: f"backbone.{name}", "classifier.0.", others, unused)


def _smp(
    path: Path, tensors: Mapping[str, Tensor], arch: str | None, stride: int | None, rates: tuple[int, ...]
) -> Foreign:
    plus = "decoder.block1.0.weight" in tensors
    family, aspp = ("deeplabv3plus", "decoder.aspp.0.") if plus else ("deeplabv3", "decoder.aspp.")
    if (f"{aspp}convs.1.0.0.weight" in tensors) != plus:
        raise UserError(
            f"{path} has {'plain' if plus else 'separable'} convolutions in its ASPP; expected smp's default "
            f"for {family}, decoder_aspp_separable={plus}"
        )
    through_timm = any(name.startswith("encoder.model.") for name in tensors)
    start = "encoder.model." if through_timm else "encoder."
    if through_timm:
        if arch is None:
            raise UserError(
                f"{path} has an encoder of timm, whose name it does not hold; give --arch {family}_NAME with "
                "what stands behind tu- in encoder_name"
            )
        found = arch
        if not arch.startswith(f"{family}_"):
            raise UserError(f"{path} holds a {family}, not {arch}; give --arch {family}_NAME")
    else:
        found = _agreed(path, f"{family}_{_resnet(path, tensors, start)}", arch)
    others = {
        "trunk.decoder.project.": "decoder.block1.",
        "trunk.decoder.refine.0.": "decoder.aspp.1.",
        "trunk.decoder.refine.1.": "decoder.aspp.2.",
        "body.0.": "decoder.block2.0." if plus else "decoder.conv.",
        "body.1.": "decoder.block2.1." if plus else "decoder.bn.",
        "out.": _SMP_LAST,
    }
    config = ModelConfig(
        found,
        "none",
        stride or (16 if plus else 8),
        width=int(tensors[f"{_SMP_LAST}weight"].shape[1]),
        rates=rates,
        separable=plus,
        dilate_first=not through_timm,
        refine=plus,
    )
    inputs = normalisation(split_name(found)[1], None) if through_timm else (IMAGENET_MEAN, IMAGENET_STD)
    unused = ("classification_head.", "encoder.fc.")
    return Foreign(config, lambda name: start + name, aspp, others, unused, inputs)


def _agreed(path: Path, found: str, arch: str | None) -> str:
    if arch not in (None, found):
        raise UserError(f"{path} holds {found}, not {arch}; leave --arch out, or give --arch {found}")
    return found


def _resnet(path: Path, tensors: Mapping[str, Tensor], start: str) -> str:
    """timm's name of a ResNet, from its blocks."""
    stages = [f"{start}layer{stage}." for stage in (1, 2, 3, 4)]
    numbers = [[re.match(rf"{re.escape(s)}(\d+)\.", name) for name in tensors] for s in stages]
    blocks = tuple(len({found[1] for found in stage if found}) for stage in numbers)
    fitting = _RESNETS.get(blocks)
    if fitting is None:
        known = ", ".join(name for names in _RESNETS.values() for name in names)
        raise UserError(
            f"{path} has a backbone that is not known; expected {known}, torchvision's mobilenet_v3_large or "
            "an encoder tu-NAME of segmentation_models_pytorch"
        )
    return fitting[f"{stages[0]}0.conv3.weight" in tensors and len(fitting) > 1]


def _mobilenet_names(arch: str) -> dict[str, str]:
    """timm's names of a MobileNetV3-Large -> torchvision's: both list the same tensors in the same order."""
    with torch.device("meta"):
        theirs = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None).backbone.state_dict()
    with torch.random.fork_rng(devices=[]):
        ours = Backbone(split_name(arch)[1], 16).net.state_dict()
    return dict(zip(ours, theirs, strict=True))


# --- tensors ------------------------------------------------------------------------------------------------


def _inputs(
    path: Path, tensors: dict[str, Tensor], foreign: Foreign
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the inputs: the library's, or the file's own, which are taken out."""
    own = [tensors.pop(name, None) for name in _NORMALISATION]
    if own == [None, None]:
        return foreign.normalisation
    mean, std = ([] if value is None else value.flatten().tolist() for value in own)
    if wrong := wrong_normalisation(mean, std):
        raise UserError(f"{path}: {wrong}; mend both, or take them out of the file")
    return tuple(mean), tuple(std)


def _older_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """smp's DeepLabV3 once numbered the parts of its decoder."""
    numbered = {"decoder.0.": "decoder.aspp.", "decoder.1.": "decoder.conv.", "decoder.2.": "decoder.bn."}
    return {
        next((new + n.removeprefix(old) for old, new in numbered.items() if n.startswith(old)), n): value
        for n, value in tensors.items()
    }


def _rows(name: str, theirs: Tensor, foreign: Foreign) -> Tensor:
    """A head's own rows of the last layer; and, of DeepLabV3+, the stride-4 channels first, as here."""
    head = re.fullmatch(r"heads\.(\d)\.(.+)", name)
    if head is None:
        return theirs
    if head[2].startswith("out."):
        return theirs[:1] if head[1] == "0" else theirs[1:]
    if foreign.config.refine and head[2] in ("body.0.0.weight", "body.0.1.weight"):
        # depthwise, one row a channel; then pointwise, one column a channel
        return theirs.roll(LOW_LEVEL, 0 if head[2] == "body.0.0.weight" else 1)
    return theirs
