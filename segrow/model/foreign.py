"""Models trained elsewhere as a network with the same logits: torchvision's DeepLabV3 on a ResNet.

Its MobileNetV3 has other normalisations than timm's; segmentation_models_pytorch dilates the first block of a
stage otherwise, and its DeepLabV3+ has one layer more. Their logits would differ, so they are refused.

Such a file holds a state dict, or a training checkpoint with one in it (`state_dict` or `model`). Its first
channel is background. Its 3x3 convolution before the last layer becomes that of two heads, background and the
rest.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import UserError
from .backbones import IMAGENET_MEAN, IMAGENET_STD
from .segmenter import Group, Segmenter
from .weights import MAY_LACK, listed, read_tensors

BACKBONES = {6: "resnet50", 23: "resnet101"}
"""By blocks of the third stage."""
ARCHS = tuple(f"deeplabv3_{name}" for name in BACKBONES.values())
BACKGROUND = ("background", "__background__", "_background_")


_BACKBONE, _ASPP, _CONV, _NORM, _OUT = (
    "backbone.",
    "classifier.0.",
    "classifier.1.",
    "classifier.2.",
    "classifier.4.",
)
_UNUSED = ("aux_classifier.", "backbone.fc.")
"""Beginnings of names that do not matter for the output."""


def read_foreign(path: Path, names: Sequence[str], arch: str | None = None) -> Segmenter:
    """The network of a state dict, every tensor of both accounted for by name and shape.

    Args:
        path: .safetensors, .pth or .pt; nothing in it is run.
        names: Its classes in the order of its channels, with background first or without it.
        arch: One of ARCHS, which the file is then held to; None: as its names show.

    Returns:
        The model on the CPU in evaluation mode, with heads background and base.

    Raises:
        UserError: For a file that cannot be read or holds another network, or names that do not fit.
    """
    tensors = _stripped(read_tensors(path))
    if f"{_OUT}weight" not in tensors:
        raise UserError(
            f"{path} holds no DeepLabV3 of torchvision: expected names such as {_OUT}weight, got "
            f"{listed(list(tensors)) or 'no tensor'}"
        )
    blocks = 0
    while f"{_BACKBONE}layer3.{blocks}.conv3.weight" in tensors:
        blocks += 1
    if blocks not in BACKBONES:
        raise UserError(
            f"{path} has a backbone that is no ResNet-50 or ResNet-101; expected one of {', '.join(ARCHS)}"
        )
    found = f"deeplabv3_{BACKBONES[blocks]}"
    if arch not in (None, found):
        raise UserError(f"{path} holds {found}, not {arch}; leave --arch out, or give --arch {found}")
    channels = int(tensors[f"{_OUT}weight"].shape[0])
    check_names(path, names, channels)
    config = ModelConfig(found, "none", output_stride=8)
    layout = (Group("background", 0, 1, "conv", 0), Group("base", 1, channels, "conv", 0))
    with torch.random.fork_rng(devices=[]):
        model = Segmenter(config, layout, False, IMAGENET_MEAN, IMAGENET_STD)
    _fill(path, model, tensors)
    return model.eval()


def check_names(path: Path, names: Sequence[str], channels: int) -> None:
    """One name a channel; background may be left out.

    Raises:
        UserError: Saying how many were expected.
    """
    given = list(names[1:] if names and names[0] in BACKGROUND else names)
    if len(given) != channels - 1:
        raise UserError(
            f"{path} has {channels} channels, got {len(given)} names besides background; expected --names "
            f"with {channels - 1}, in the order of its channels"
        )
    if twice := sorted({name for name in given if given.count(name) > 1 or name in BACKGROUND}):
        raise UserError(f'--names holds "{twice[0]}" twice; every class needs a name of its own')


def _stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what a wrapper put before all of them."""
    found = dict(tensors)
    for prefix in ("module.", "_orig_mod.", "model."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _fill(path: Path, model: Segmenter, tensors: Mapping[str, Tensor]) -> None:
    """Copy by name, and account for every name on either side."""
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    lacking: list[str] = []
    for name, mine in model.state_dict().items():
        source = _source(name)
        theirs = tensors.get(source)
        if theirs is None:
            if name.rpartition(".")[2] not in MAY_LACK:
                lacking.append(source)
            state[name] = mine
            continue
        used.add(source)
        rows = slice(None)
        if source.startswith(_OUT):
            rows = slice(1) if name.startswith("heads.0.") else slice(1, None)
        state[name] = theirs[rows] if theirs.dim() else theirs
        if state[name].shape != mine.shape:
            raise UserError(
                f"{path} does not fit DeepLabV3: {source} is {tuple(theirs.shape)}, expected one for "
                f"{tuple(mine.shape)}"
            )
        if theirs.is_floating_point() != mine.is_floating_point() or not theirs.isfinite().all():
            raise UserError(f"{path} holds no weights in {source}: expected finite floating-point numbers")
    if lacking:
        raise UserError(f"{path} does not fit DeepLabV3: it lacks {listed(lacking)}")
    if extra := [n for n in tensors if n not in used and not n.startswith(_UNUSED)]:
        raise UserError(f"{path} does not fit DeepLabV3: it also has {listed(extra)}")
    model.load_state_dict(state)


def _source(name: str) -> str:
    """torchvision's name of one of our tensors."""
    if name.startswith("trunk.backbone.net."):
        return _BACKBONE + name.removeprefix("trunk.backbone.net.")
    if name.startswith("trunk.decoder.aspp.project."):
        return f"{_ASPP}project.{name.removeprefix('trunk.decoder.aspp.project.')}"
    branch = re.fullmatch(r"trunk\.decoder\.aspp\.branches\.(\d)\.(project\.)?(\d)\.(\w+)", name)
    if branch is not None:
        # behind the pooling, which is layer 0 there
        layer = int(branch[3]) + (1 if branch[2] else 0)
        return f"{_ASPP}convs.{branch[1]}.{layer}.{branch[4]}"
    rest = re.sub(r"^heads\.\d\.", "", name)
    return re.sub(
        r"^(body\.0\.|body\.1\.|out\.)",
        lambda part: {"body.0.": _CONV, "body.1.": _NORM, "out.": _OUT}[part[0]],
        rest,
    )
