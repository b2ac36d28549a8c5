"""The model directory: model.safetensors and model.json, whole or not there at all.

Reading runs no code from the files and fetches nothing. Writing goes to a hidden neighbour that is renamed
when it is complete; a directory that is replaced waits as another hidden neighbour until the new one stands.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import __version__
from ..config import ModelConfig
from ..errors import UserError
from ..inside import is_file_name
from ..resources import machine_refuses
from ..tensor_files import shapes_in
from .exchange import exchanged
from .record import (
    FORMAT,
    RECORD,
    WEIGHTS,
    check_files,
    content_beside,
    hashes_of,
    read_record,
    sha256,
    sha256_of_file,
)
from .segmenter import Group, Segmenter
from .steady import steadily

_AT_ONCE = 1 << 24  # numbers, or one tensor that has more
OURS = ("format", "segrow", "timm", "class_steps", "model", "input", "hashes")
"""Keys of model.json that `save_model` writes itself."""


def save_model(
    model: Segmenter,
    directory: Path,
    meta: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
    add: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a model directory, replacing a model that is there; a reader never meets half of one.

    Args:
        model: What is saved: every tensor of its state dict, layout, configuration, normalisation.
        directory: Where; its parents are made. Files there that no model wrote are kept.
        meta: The caller's part of model.json, JSON values: `class_names` (background first) and whatever else
            there is to say (steps, method, protocol, crop, parent …).
        extra: Further files by name, e.g. method.safetensors; their hashes are recorded too.
        add: Puts more into the new folder before it takes its place, e.g. history/.

    Raises:
        UserError: When `directory` is something else than a model directory.
        ValueError: When `meta` does not name every class, or uses a key of the format itself.
    """
    names = list(meta.get("class_names", ()))
    if len(names) != model.n_classes:
        raise ValueError(f"meta names {len(names)} classes, the model has {model.n_classes}")
    if taken := [key for key in meta if key in OURS]:
        raise ValueError(f"meta may not set {', '.join(taken)}")
    files = dict(extra or {})
    if taken := [name for name in files if name in (WEIGHTS, RECORD) or not is_file_name(name)]:
        raise ValueError(f"not a name for a further file: {', '.join(taken)}")
    record = {"format": FORMAT, "segrow": __version__, "timm": timm.__version__, **meta, **_describe(model)}
    record = json.loads(json.dumps(record))  # as it will be read: lists for tuples, names for numbers
    with exchanged(directory) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        try:
            safetensors.torch.save_file(tensors, temporary / WEIGHTS)
        except safetensors.SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # as it says of a full disk
            reason = os.strerror(int(number[1])) if number else " ".join(str(error).split())
            raise OSError(int(number[1]) if number else 0, reason, str(directory)) from None
        digests = {name: sha256(content) for name, content in files.items()}
        record["hashes"] = hashes_of(record, {**digests, WEIGHTS: sha256_of_file(temporary / WEIGHTS)})
        files[RECORD] = json.dumps(record, indent=1).encode()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        # safetensors lets nobody else read what it writes; as readable as the other files
        shutil.copymode(temporary / RECORD, temporary / WEIGHTS)
        add(temporary)


def load_model(directory: Path) -> tuple[Segmenter, dict[str, Any]]:
    """Read a model directory.

    Returns:
        The model on the CPU, in evaluation mode, and the whole of model.json; its hashes have been checked.
        The caller's random state is left alone.

    Raises:
        UserError: When there is no model, it was written by a newer segrow, or a file was changed, cut
            off or lost.
    """
    model, record, _ = load_whole(directory)
    return model, record


def load_whole(directory: Path) -> tuple[Segmenter, dict[str, Any], dict[str, bytes]]:
    """A model directory as `load_model`, with the contents of its further files by name, all of one version.

    Raises:
        UserError: As `load_model`.
    """

    def load(folder: Path) -> tuple[Segmenter, dict[str, Any], dict[str, bytes]]:
        record = read_record(folder)
        check_files(record, folder)
        names = [name for name in record["hashes"]["files"] if name != WEIGHTS]
        found = {name: content_beside(record, folder, name) for name in names}
        beside = {name: content for name, content in found.items() if content is not None}
        return _build(record, folder), record, beside

    return steadily(Path(directory), load)


def _describe(model: Segmenter) -> dict[str, Any]:
    """The model's own part of model.json."""
    return {
        "class_steps": [group.step for group in model.layout for _ in range(group.start, group.stop)],
        "model": {
            "config": dataclasses.asdict(model.config),
            "layout": [dataclasses.asdict(group) for group in model.layout],
            "unknown": model.unknown is not None,
        },
        "input": {
            "mean": [round(value, 6) for value in model.mean.flatten().tolist()],
            "std": [round(value, 6) for value in model.std.flatten().tolist()],
        },
    }


def _fill(model: Segmenter, path: Path) -> None:
    """Put the tensors of a file in a model's place of them, whose names and shapes are the same.

    As aligned copies: the same numbers then give the same results, to the last bit. Convolutions stand in
    the memory format of the images (channels last), into which every pass would convert them else. A few at
    a time, because what has been read of an open file counts as the process' memory, and so do the weights
    they replace.
    """
    left = [(name, tensor.numel()) for name, tensor in model.state_dict().items()]
    while left:
        some: dict[str, Tensor] = {}
        numbers = 0
        with safetensors.safe_open(path, "pt") as file:
            while left and (not some or numbers + left[0][1] <= _AT_ONCE):
                name, more = left.pop(0)
                tensor = file.get_tensor(name)
                layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                some[name] = tensor.clone(memory_format=layout)
                numbers += more
        model.load_state_dict(some, strict=False, assign=True)


def _build(record: Mapping[str, Any], directory: Path) -> Segmenter:
    """The network that model.json describes, filled; no pretrained weights are fetched."""
    normal = record["input"]
    mean, std = tuple(normal["mean"]), tuple(normal["std"])
    there = shapes_in(directory / WEIGHTS, "weights")
    with torch.device("meta"), _NoRandomWeights():  # needs no memory, whatever the numbers in model.json are
        sketch = _network(record, directory, len(there))
    if there != {name: tuple(tensor.shape) for name, tensor in sketch.state_dict().items()}:
        raise UserError(
            f"the weights in {directory} do not fit {sketch.config.name} of timm {timm.__version__}; they "
            f"were written with timm {record['timm']}, install that version"
        )
    with torch.random.fork_rng(devices=[]), _NoRandomWeights():
        model = _network(record, directory, len(there))
    _fill(model, directory / WEIGHTS)
    dtype = next(model.parameters()).dtype
    model.to(dtype).set_normalisation(mean, std, dtype)  # buffers too that no file holds
    return model.eval()


class _NoRandomWeights(TorchFunctionMode):
    """Networks are built without the random numbers that a file's tensors replace: half of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def _network(record: Mapping[str, Any], directory: Path, tensors: int) -> Segmenter:
    """The network that model.json describes.

    Args:
        tensors: Number of them in the file of weights, for which there cannot be more heads.

    Raises:
        UserError: It describes none.
    """
    described, where = record["model"], directory / RECORD
    fields = dict(described["config"])
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if other := sorted(set(fields) - known):
        raise UserError(
            f"{where} has {', '.join(other)} of a network, which this segrow lacks; update segrow"
        )
    if fields.get("rates") is not None:
        fields["rates"] = tuple(fields["rates"])
    layout = tuple(Group(**group) for group in described["layout"])
    mean, std = tuple(record["input"]["mean"]), tuple(record["input"]["std"])
    try:
        if len(layout) > tensors:
            raise ValueError("more heads than the weights have")
        return Segmenter(ModelConfig(**fields), layout, described["unknown"], mean, std)
    except UserError as error:
        reason = str(error).partition("; ")[0]  # without the advice, which is for options
        raise UserError(f"{where}: {reason}; copy the model again") from None
    except Exception as error:  # torch and timm have a kind for every number that cannot be
        if machine_refuses(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} describes no network ({reason}); copy the model again") from None
