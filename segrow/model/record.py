"""model.json: what a model directory holds, and the hashes that tell whether it still is what was written.

hashes.files     SHA-256 of each file beside it
hashes.config    of all of model.json but `hashes`
hashes.model     of config and weights: the name of this version
hashes.record    of all of model.json but itself, so that the other hashes are covered too
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import MAX_CROP, MAX_SCALE, ModelConfig, TrainConfig
from ..documents import JSON_BYTES, read_bytes, read_json
from ..errors import UserError
from ..inside import is_file_name
from ..shapes import Shape, expect, shape_of
from ..tensor_files import shapes_in
from .steady import steadily

FORMAT = 1
WEIGHTS, RECORD = "model.safetensors", "model.json"
_AGAIN = "copy it again"
_INDEX = range(1 << 16)
_COUNT = (range(1 << 53), None)
NEEDED = ("step", "class_names", "scenario", "method", "protocol")
"""What the engine writes into model.json, and who uses a model must know."""
_HASHES = {"config": str, "weights": str, "model": str, "files": {str: str}, "record?": str}
VIEWS = ("crop_mode", "scale", "flip")
"""Options of `train` that say how training views are drawn."""
# what is read of model.json; models of an earlier segrow, or saved from Python, lack some of it
_SHAPE: Shape = {
    "timm": str,
    "class_names": [str],
    "class_steps": [_INDEX],
    "model": {
        "config": shape_of(ModelConfig),
        "layout": [{"name": str, "start": _INDEX, "stop": _INDEX, "form": str, "step": _INDEX}],
        "unknown": bool,
    },
    "input": {"mean": [float], "std": [float]},
    "hashes": _HASHES,
    "step?": range((1 << 16) - 1),  # there can be one more
    "method?": {"name": str, "fields": dict},
    "scenario?": {"data": str, "task": str, "setting": str, "classes": [str]},
    "protocol?": {"crop_val": bool, "crop": range(1, MAX_CROP + 1)},
    "views?": {name: shape_of(TrainConfig)[f"{name}?"] for name in VIEWS},
    "training?": {
        "train_s?": (float, None),
        "iterations?": _COUNT,
        "peak_memory_bytes?": _COUNT,
        "trainable?": _COUNT,
        "parameters?": _COUNT,
        "exemplars?": _COUNT,
        "features?": (dict, None),
        "precision?": str,
        "selected?": dict,
    },
    "parent?": (str, None),
    "change?": str,
    "learnt_as?": {str: str},
}


def is_model(directory: Path) -> bool:
    """Whether there is a model."""
    return steadily(directory, lambda folder: (folder / RECORD).is_file())


def read_record(directory: Path) -> dict[str, Any]:
    """model.json alone, checked for version, hashes and names.

    Raises:
        UserError: When there is none, it was changed, is a link, or was written by a newer segrow.
    """
    return steadily(directory, _record_in)


def _record_in(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    _refuse_link(path)
    if not path.is_file():
        raise UserError(f"no model in {folder}: expected a folder with {RECORD} and {WEIGHTS}")
    record: Any = read_json(path, "model", fix=_AGAIN)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise UserError(f"{path} is not a model of segrow: expected a format version in it; {_AGAIN}")
    if record["format"] > FORMAT:
        raise UserError(
            f"{path} has format {record['format']}, this segrow {__version__} reads up to {FORMAT}; "
            f"update segrow (it was written by {record.get('segrow', 'a newer one')})"
        )
    if not _is_unchanged(record):
        raise UserError(f"{path} was changed after it was written (its hash differs); {_AGAIN}")
    expect(record, _SHAPE, str(path), _AGAIN)
    _check_classes(record, path)
    if wrong := wrong_normalisation(record["input"]["mean"], record["input"]["std"]):
        raise UserError(f"{path}: {wrong}; {_AGAIN}")
    _check_views(record.get("views"), path)
    for name in record["hashes"]["files"]:
        if not is_file_name(name):
            raise UserError(
                f"{path} lists a file {name}, expected names of files beside it; do not use this model"
            )
    return record


def wrong_normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """What is wrong with mean and deviation of inputs whose colours go from 0 to 1; else nothing."""
    if len(mean) != 3 or len(std) != 3:
        return f"mean and std have {len(mean)} and {len(std)} numbers, expected three each"
    if not all(0 <= value <= 1 for value in mean) or not all(0.001 <= value <= 10 for value in std):
        many = f"mean {list(mean)} and std {list(std)}"
        return f"{many}, expected a mean from 0 to 1 and a std from 0.001 to 10, of colours from 0 to 1"
    return ""


def _check_classes(record: Mapping[str, Any], path: Path) -> None:
    """Every class has one name, one step and one channel.

    Raises:
        UserError: Where that is not so.
    """
    names, end = record["class_names"], 0
    for group in record["model"]["layout"]:
        if group["start"] != end or group["stop"] <= end:
            raise UserError(
                f"{path}: layout has classes {group['start']} to {group['stop']} after {end}; {_AGAIN}"
            )
        end = group["stop"]
    if not len(names) == len(record["class_steps"]) == end or len(set(names)) != end or not all(names):
        raise UserError(f"{path} does not name each of its {end} classes once; {_AGAIN}")
    steps = [
        group["step"] for group in record["model"]["layout"] for _ in range(group["start"], group["stop"])
    ]
    if record["class_steps"] != steps or steps != sorted(steps) or steps[-1] > record.get("step", steps[-1]):
        raise UserError(f"{path}: class_steps are not those of its layout and step; {_AGAIN}")
    if "scenario" in record and record["scenario"]["classes"][:end] != names:
        raise UserError(f"{path}: scenario.classes begins with other classes than class_names; {_AGAIN}")
    if other := sorted(record.get("learnt_as", {}).keys() - set(names[1:])):
        raise UserError(f"{path}: learnt_as names {other[0]}, which is not a class of the model; {_AGAIN}")


def _check_views(views: Mapping[str, Any] | None, path: Path) -> None:
    """Training views can be drawn so.

    Raises:
        UserError: They cannot.
    """
    if views is None:
        return
    scale = views["scale"]
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= MAX_SCALE or not 0 <= views["flip"] <= 1:
        raise UserError(f"{path}: views are not a scale LOW, HIGH and a flip from 0 to 1; {_AGAIN}")


def check_needed(record: Mapping[str, Any], directory: Path) -> None:
    """Refuse a record that says too little of where the model comes from.

    Raises:
        UserError: Naming what it lacks.
    """
    if missing := [key for key in NEEDED if key not in record]:
        raise UserError(
            f"{directory / RECORD} lacks {', '.join(missing)}; give a model that segrow train, add or import "
            "made"
        )


def _is_unchanged(record: Mapping[str, Any]) -> bool:
    """Whether the hashes are those of the record; one of an earlier segrow has none of itself."""
    hashes = record.get("hashes")
    if not isinstance(hashes, dict) or not isinstance(hashes.get("files"), dict):
        return False
    if WEIGHTS not in hashes["files"] or not set(hashes) <= {"config", "weights", "model", "files", "record"}:
        return False
    of_itself = hashes.get("record")
    ours = hashes_of(record, hashes["files"])
    return ours == {**hashes, "record": ours["record"] if of_itself is None else of_itself}


def hashes_of(record: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The hashes of a record and its files.

    Args:
        files: SHA-256 of each file by name.
    """
    rest = {key: value for key, value in record.items() if key != "hashes"}
    config = _of_value(rest)
    each = dict(sorted(files.items()))
    model = sha256((config + str(each[WEIGHTS])).encode())
    hashes = {"config": config, "weights": each[WEIGHTS], "model": model, "files": each}
    return {**hashes, "record": _of_value({**rest, "hashes": hashes})}


def _of_value(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """In hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link, expected the file itself; copy the file to its place")


def model_files(directory: Path) -> dict[str, Path]:
    """The files that belong to a model, by name, after their hashes have been compared.

    Raises:
        UserError: When there is no model, or a file was changed, cut off or lost, or is a link.
    """

    def files(folder: Path) -> dict[str, Path]:
        record = read_record(folder)
        check_files(record, folder)
        return {name: folder / name for name in (RECORD, *record["hashes"]["files"])}

    return steadily(directory, files)


def check_files(record: Mapping[str, Any], folder: Path) -> None:
    """Compare the files in a folder with the hashes of a record.

    Raises:
        UserError: As `model_files`.
    """
    for name, expected in record["hashes"]["files"].items():
        path = folder / name
        _refuse_link(path)
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the whole model directory again")
        small = name == WEIGHTS or path.stat().st_size <= JSON_BYTES  # the weights are as large as they say
        if name == WEIGHTS:
            shapes_in(path, "weights")
        if not small or sha256_of_file(path) != expected:
            raise UserError(f"{path} was changed or cut off after it was written; {_AGAIN}")


def read_file_beside(directory: Path, name: str) -> bytes | None:
    """A further file of a model, such as memory.json; None where the model has none of that name.

    Raises:
        UserError: When there is no model, or the file was changed or lost, or is a link.
    """
    return steadily(directory, lambda folder: content_beside(read_record(folder), folder, name))


def content_beside(record: Mapping[str, Any], folder: Path, name: str) -> bytes | None:
    """As `read_file_beside`, of the version that a record is of."""
    expected = record["hashes"]["files"].get(name)
    if expected is None:
        return None
    path = folder / name
    _refuse_link(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole model directory again")
    content = read_bytes(path, "file", JSON_BYTES)
    if sha256(content) != expected:
        raise UserError(f"{path} was changed or cut off after it was written; {_AGAIN}")
    return content
