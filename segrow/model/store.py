"""The model directory: model.safetensors and model.json, whole or not there at all.

Reading runs no code from the files and fetches nothing. Writing goes to a hidden neighbour that is renamed
when it is complete; a directory that is replaced waits as another hidden neighbour until the new one stands.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch

from .. import __version__
from ..atomic import appear, discard, locked, new_folder, sync_folder
from ..config import ModelConfig
from ..errors import UserError
from .segmenter import Group, Segmenter

FORMAT = 1
WEIGHTS, RECORD = "model.safetensors", "model.json"
_AT_ONCE = 16  # tensors
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
    if taken := [name for name in files if name in (WEIGHTS, RECORD) or Path(name).name != name]:
        raise ValueError(f"not a name for a further file: {', '.join(taken)}")
    record = {"format": FORMAT, "segrow": __version__, "timm": timm.__version__, **meta, **_describe(model)}
    record = json.loads(json.dumps(record))  # as it will be read: lists for tuples, names for numbers
    with exchanged(directory) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        try:
            safetensors.torch.save_file(tensors, temporary / WEIGHTS)
        except safetensors.SafetensorError as error:
            raise OSError(0, " ".join(str(error).split()), str(directory)) from None
        digests = {name: _sha(content) for name, content in files.items()}
        record["hashes"] = _hashes(record, {**digests, WEIGHTS: _sha_file(temporary / WEIGHTS)})
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
    directory = standing(Path(directory))
    if not (directory / RECORD).is_file():
        raise UserError(f"no model in {directory}: expected a folder with {RECORD} and {WEIGHTS}")
    record = _read_record(directory / RECORD)
    for name, expected in record["hashes"]["files"].items():
        _check_file(directory / name, expected)
    return _build(record, directory), record


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


def _hashes(record: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """SHA-256 of the configuration (all of model.json but this), of each file, and of both together.

    Args:
        files: That of each file by name.
    """
    config = _sha(json.dumps({k: v for k, v in record.items() if k != "hashes"}, sort_keys=True).encode())
    each = dict(sorted(files.items()))
    model = _sha((config + each[WEIGHTS]).encode())
    return {"config": config, "weights": each[WEIGHTS], "model": model, "files": each}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(model: Segmenter, path: Path) -> bool:
    """Put the tensors of a file in a model's place of them; False, and nothing done, when they do not fit.

    As aligned copies: the same numbers then give the same results, to the last bit. A few at a time, because
    what has been read of an open file counts as the process' memory, and so do the weights they replace.
    """
    with safetensors.safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if shapes != {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}:
        return False
    names = list(shapes)
    for start in range(0, len(names), _AT_ONCE):
        with safetensors.safe_open(path, "pt") as file:
            some = {name: file.get_tensor(name).clone() for name in names[start : start + _AT_ONCE]}
        model.load_state_dict(some, strict=False, assign=True)
    return True


def _read_record(path: Path) -> dict[str, Any]:
    """model.json, checked for version and hash."""
    try:
        record: Any = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} was changed or cut off after it was written; copy it again") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise UserError(f"{path} is not a model of segrow: expected a format version in it")
    if record["format"] > FORMAT:
        raise UserError(
            f"{path} has format {record['format']}, this segrow {__version__} reads up to {FORMAT}; "
            f"update segrow (it was written by {record.get('segrow', 'a newer one')})"
        )
    hashes = record.get("hashes")
    content = {key: value for key, value in record.items() if key != "hashes"}
    expected = _sha(json.dumps(content, sort_keys=True).encode())
    if (
        not isinstance(hashes, dict)
        or hashes.get("config") != expected
        or WEIGHTS not in hashes.get("files", ())
    ):
        raise UserError(f"{path} was changed after it was written (its hash differs); copy it again")
    return record


def _build(record: Mapping[str, Any], directory: Path) -> Segmenter:
    """The network that model.json describes, filled; no pretrained weights are fetched."""
    described = record["model"]
    fields = dict(described["config"])
    fields["rates"] = None if fields["rates"] is None else tuple(fields["rates"])
    layout = tuple(Group(**group) for group in described["layout"])
    normal = record["input"]
    mean, std = tuple(normal["mean"]), tuple(normal["std"])
    with torch.random.fork_rng(devices=[]):
        model = Segmenter(ModelConfig(**fields), layout, described["unknown"], mean, std)
    if not _fill(model, directory / WEIGHTS):
        raise UserError(
            f"the weights in {directory} do not fit {fields['name']} of timm {timm.__version__}; they were "
            f"written with timm {record['timm']}, install that version"
        )
    dtype = next(model.parameters()).dtype
    model.to(dtype).set_normalisation(mean, std, dtype)  # buffers too that no file holds
    return model.eval()


def _backup(directory: Path) -> Path:
    """Where a directory waits while it is being replaced."""
    return directory.with_name(f".{directory.name}.replaced")


@contextmanager
def exchanged(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory` to write files into, which then takes its place.

    What no model wrote and the new folder does not hold is kept. A kill at any moment leaves the old
    directory or the new one, which `load_model` finds; the next writer tidies up.

    Raises:
        UserError: When `directory` is something else than a model directory, or another process writes it.
    """
    directory = Path(directory).resolve()
    with locked(directory, "segrow"):
        settle(directory)
        if directory.exists() and not replaceable(directory):
            raise UserError(
                f"{directory} exists and is not a model directory; give another place for the model"
            )
        try:
            with new_folder(directory) as temporary:
                yield temporary
                sync_folder(temporary)
                if directory.exists():
                    os.rename(directory, _backup(directory))
                appear(temporary, directory)
        finally:
            settle(directory)


def standing(directory: Path) -> Path:
    """Where a model is to be read: it may wait beside its place, when a writer was killed, or is at work."""
    waiting = _backup(directory.resolve())
    return waiting if not directory.exists() and _waits(waiting) else directory


def _waits(backup: Path) -> bool:
    """Whether a directory waits there; a link is none."""
    return backup.is_dir() and not backup.is_symlink()


def settle(directory: Path) -> None:
    """End an exchange that was killed between its renames: the old directory stands again, or the new one.

    For writers, who hold the lock.
    """
    directory = Path(directory).resolve()
    if _waits(_backup(directory)):
        _settle(directory, _backup(directory))


def replaceable(directory: Path) -> bool:
    """Whether a model may take the place of what is there: a model, or an empty folder."""
    return directory.is_dir() and ((directory / RECORD).is_file() or not any(directory.iterdir()))


def _settle(directory: Path, backup: Path) -> None:
    """End an exchange: back to the old directory if there is no new one, else keep only its foreign files."""
    if not directory.exists():
        os.rename(backup, directory)
        return
    ours = _written(backup / RECORD)
    for entry in backup.iterdir():
        if entry.name not in ours and not (directory / entry.name).exists():
            os.rename(entry, directory / entry.name)
    discard(backup)


def _written(path: Path) -> set[str]:
    """Names of the files that the writer of this model.json made."""
    try:
        record = _read_record(path)
    except (UserError, OSError):
        return {RECORD, WEIGHTS}
    return {RECORD, *record["hashes"]["files"]}


def read_record(directory: Path) -> dict[str, Any]:
    """model.json alone, checked for version and hash.

    Raises:
        UserError: When there is none, or it was changed or written by a newer segrow.
    """
    if not (directory / RECORD).is_file():
        raise UserError(f"no model in {directory}: expected a folder with {RECORD} and {WEIGHTS}")
    return _read_record(directory / RECORD)


def model_files(directory: Path) -> dict[str, Path]:
    """The files that belong to a model, by name, after their hashes have been compared.

    Raises:
        UserError: As `load_model`.
    """
    record = read_record(directory)
    for name, expected in record["hashes"]["files"].items():
        _check_file(directory / name, expected)
    return {name: directory / name for name in (RECORD, *record["hashes"]["files"])}


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole model directory again")
    if _sha_file(path) != expected:
        raise UserError(f"{path} was changed or cut off after it was written; copy it again")
