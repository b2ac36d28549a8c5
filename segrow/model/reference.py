"""Checkpoints of the SSUL reference code (clovaai/SSUL) as a network with the same outputs.

Such a file holds `model_state` (names and tensors), `optimizer_state` and `best_score` (a numpy scalar).
Heads stand in the order unknown, background, base, step 1, …; without an unknown head the first one holds
background and base classes together. It becomes two heads here, with the same 3x3 convolution each.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UserError
from .backbones import IMAGENET_MEAN, IMAGENET_STD, MOBILENET, split_name
from .segmenter import Group, Segmenter
from .state_dicts import find_network, listed, read_file
from .weights import fill_whole

_ALL = slice(None)
_FIRST = "classifier.head.0.3.weight"
_RESNETS = {6: "resnet50", 23: "resnet101"}  # by blocks of the third stage
_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)  # blocks; the reference numbers them through, from 1
_MOBILENET_LOW = 4  # features below this number are its low_level_features
_MOBILENET_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}  # without expansion
_MOBILENET_BLOCK = {
    "conv_pw": "0.0",
    "bn1": "0.1",
    "conv_dw": "1.0",
    "bn2": "1.1",
    "conv_pwl": "2",
    "bn3": "3",
}


def read_reference_checkpoint(
    path: Path, config: ModelConfig, steps: Sequence[int], report: Callable[[str], None] = print
) -> Segmenter:
    """The network of a checkpoint, every tensor of both accounted for by name and shape.

    Nothing in the file is run: tensors, plain values and numpy scalars are read, all else is refused.

    Args:
        path: A file that the reference code saved.
        config: The network it holds: name, output_stride, separable; the reference has width 256. Its
            MobileNetV2 is given the reference's padding.
        steps: Number of foreground classes of step 0, 1, … up to the step it was saved after.
        report: Gets a line about what is left out beside the network.

    Returns:
        On the CPU, in evaluation mode; heads background, base, step 1, …, and unknown if there is one.

    Raises:
        UserError: For a file that cannot be read, holds code, or holds another layout, network or heads.
        ValueError: For a network that the reference code has not.
    """
    plus, backbone = split_name(config.name)
    if config.head != "conv" or not (backbone.startswith("resnet") or backbone == MOBILENET):
        raise ValueError(f"the reference code has no {config.name} with {config.head} heads")
    tensors = _read(path, report)
    _check_network(path, tensors, plus, backbone, config.separable)
    unknown = _check_heads(path, tensors, steps)
    layout = [Group("background", 0, 1, "conv", 0)]
    for step, size in enumerate(steps):
        start = layout[-1].stop
        layout.append(Group(f"step {step}" if step else "base", start, start + size, "conv", step))
    config = dataclasses.replace(config, reference_padding=backbone == MOBILENET)
    with torch.random.fork_rng(devices=[]):
        model = Segmenter(config, tuple(layout), unknown, IMAGENET_MEAN, IMAGENET_STD)
    _fill(path, model, tensors, config.name)
    return model.eval()


# --- the file ---------------------------------------------------------------------------------------------


def _read(path: Path, report: Callable[[str], None]) -> dict[str, Tensor]:
    """Its tensors, out of whatever they are wrapped in."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; give a file that the SSUL reference code saved")
    content = read_file(path, "checkpoint")
    tensors = find_network(path, content, [[_FIRST]], report)
    if _FIRST not in tensors:
        raise UserError(
            f"{path} is not a checkpoint of the SSUL reference code: expected names such as {_FIRST}, got "
            f"{listed(list(tensors) or [str(key) for key in content]) or 'nothing'} (the networks of MiB and "
            "PLOP are others; ResNet weights alone load with segrow train --model.weights file:PATH)"
        )
    return tensors


# --- which network ----------------------------------------------------------------------------------------


def _check_network(
    path: Path, tensors: Mapping[str, Tensor], plus: bool, backbone: str, separable: bool
) -> None:
    """Refuse another network in the words of the options, where the names tell which it is."""
    found = _network(tensors)
    wanted = _options(plus, "mobilenet" if backbone == MOBILENET else backbone, separable)
    if found and found != wanted:
        raise UserError(f"{path} holds another network than {wanted}; use {found}")


def _network(tensors: Mapping[str, Tensor]) -> str | None:
    """Options of the network that the names show, or None when its backbone is not one of the reference."""
    blocks = 0
    while f"backbone.layer3.{blocks}.conv3.weight" in tensors:
        blocks += 1
    mobile = any(name.startswith("backbone.low_level_features.") for name in tensors)
    backbone = "mobilenet" if mobile else _RESNETS.get(blocks)
    separable = any(name.startswith("classifier.") and ".body." in name for name in tensors)
    return _options("classifier.project.0.weight" in tensors, backbone, separable) if backbone else None


def _options(plus: bool, backbone: str, separable: bool) -> str:
    return f"--model deeplabv3{'plus' if plus else ''}_{backbone}{' --separable_conv' if separable else ''}"


def _check_heads(path: Path, tensors: Mapping[str, Tensor], steps: Sequence[int]) -> bool:
    """Compare the heads with the steps; returns whether there is an unknown head."""
    sizes: list[int] = []
    while (last := tensors.get(f"classifier.head.{len(sizes)}.3.weight")) is not None and last.dim() == 4:
        sizes.append(last.shape[0])
    unknown = sizes[:1] == [1]  # alone, background and base classes are at least two
    expected = [1, 1, *steps] if unknown else [steps[0] + 1, *steps[1:]]
    if sizes == expected:
        return unknown
    classes = sizes[2:] if unknown else [size - 1 if i == 0 else size for i, size in enumerate(sizes)]
    if not classes or (unknown and sizes[1] != 1):
        raise UserError(
            f"{path} has heads of {_sum(sizes)} channels, which no step of the reference code has"
        )
    raise UserError(
        f"{path} has heads of {_sum(classes)} foreground classes (step {len(classes) - 1}), expected "
        f"{_sum(steps)} (step {len(steps) - 1}); {_fitting(classes)}"
    )


def _fitting(classes: Sequence[int]) -> str:
    """Which options the heads would fit."""
    base, increments = classes[0], set(classes[1:])
    if not increments:
        return f"its heads fit --step 0 of a task with {base} base classes"
    if len(increments) > 1:
        return "no task adds such different numbers of classes"
    return f"its heads fit --task {base}-{increments.pop()} --step {len(classes) - 1}"


def _sum(sizes: Iterable[int]) -> str:
    return " + ".join(str(size) for size in sizes) or "no"


# --- names ------------------------------------------------------------------------------------------------


def _fill(path: Path, model: Segmenter, tensors: Mapping[str, Tensor], wanted: str) -> None:
    """Copy by name, and account for every name on either side."""
    unknown, mobile = model.unknown is not None, model.trunk.backbone.name == MOBILENET
    fill_whole(
        path,
        model,
        tensors,
        wanted,
        lambda name: _source(name, unknown, mobile)[0],
        lambda name, theirs: theirs[_source(name, unknown, mobile)[1]],
    )


def _source(name: str, unknown: bool, mobile: bool) -> tuple[str, slice]:
    """The reference's name of one of our tensors, and which of its rows are ours."""
    part, _, rest = name.partition(".")
    if part == "trunk":
        return _trunk_source(rest, mobile), _ALL
    if part == "unknown":
        return f"classifier.head.0.{_layer(rest)}", _ALL
    number, _, rest = rest.partition(".")
    ours = int(number)
    if unknown:
        return f"classifier.head.{ours + 1}.{_layer(rest)}", _ALL
    rows = _ALL
    if ours < 2 and rest.startswith("out."):
        rows = slice(1) if ours == 0 else slice(1, None)
    return f"classifier.head.{max(ours - 1, 0)}.{_layer(rest)}", rows


def _layer(rest: str) -> str:
    """Of a head: `body.0`, `body.1`, `out` -> 0, 1, 3 (2 is the activation)."""
    if rest.startswith("out."):
        return f"3.{rest.removeprefix('out.')}"
    return _separable(rest.removeprefix("body."))


def _separable(rest: str) -> str:
    """A separable convolution stands in a container called body."""
    return re.sub(r"^0\.(?=[01]\.)", "0.body.", rest)


def _trunk_source(rest: str, mobile: bool) -> str:
    if rest.startswith("backbone.net."):
        return f"backbone.{_backbone_source(rest.removeprefix('backbone.net.'), mobile)}"
    branch = re.fullmatch(r"decoder\.aspp\.branches\.(\d)\.(project\.)?(.*)", rest)
    if branch is None:
        return rest.replace("decoder.", "classifier.", 1)
    layer = _separable(branch[3])
    if branch[2]:  # behind the pooling, which is layer 0 there
        layer = f"{int(layer[0]) + 1}{layer[1:]}"
    return f"classifier.aspp.convs.{branch[1]}.{layer}"


def _backbone_source(name: str, mobile: bool) -> str:
    """A ResNet has torchvision's names in timm too; of MobileNetV2 the blocks are numbered through."""
    if not mobile:
        return name
    first, _, rest = name.partition(".")
    if first != "blocks":
        return f"low_level_features.0.{('conv_stem', 'bn1').index(first)}.{rest}"
    stage, index, layer, last = rest.split(".")
    number = 1 + sum(_MOBILENET_STAGES[: int(stage)]) + int(index)
    level = "low" if number < _MOBILENET_LOW else "high"
    layer = (_MOBILENET_BLOCK if int(stage) else _MOBILENET_FIRST)[layer]
    return f"{level}_level_features.{number}.conv.{layer}.{last}"
