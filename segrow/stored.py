"""A model directory with the method that reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import UserError
from .memory import Exemplar, from_json
from .methods.base import Method, make_method
from .model.record import RECORD, check_needed, is_model, read_file_beside
from .model.segmenter import Segmenter
from .model.store import load_whole
from .tensor_files import parse_safetensors

MEMORY, METHOD_STATE = "memory.json", "method.safetensors"
"""Files of a model directory: its exemplars; what `Method.state_dict` gave, missing when that was nothing."""


def find_model(path: Path) -> Path:
    """A model directory, or the last one of a run folder.

    Raises:
        UserError: When there is none.
    """
    if is_model(path):
        return path
    found = [step / "model" for step in sorted((path / "steps").glob("*")) if is_model(step / "model")]
    if not found:
        raise UserError(f"{path} holds no model: expected model.json in it, or a run folder with steps/")
    return found[-1]


def step_of_run(folder: Path) -> Path | None:
    """The run whose step a model directory is (`RUN/steps/NN/model`); None when it is no run's."""
    place = folder.resolve()
    run = place.parents[2] if len(place.parents) > 2 else place
    inside = place.name == "model" and place.parent.parent.name == "steps"
    return run if inside and (run / "config.yaml").is_file() else None


def data_names(meta: Mapping[str, Any], class_names: Sequence[str]) -> dict[int, int]:
    """Where a data set has the classes of a model: raw id -> class index, background apart.

    A class that was renamed is also found under the name that it was learnt by.

    Args:
        meta: The model's model.json.
        class_names: Of the data set, by raw id.
    """
    mine = list(meta["class_names"])
    found = {raw: mine.index(name) for raw, name in enumerate(class_names) if raw and name in mine[1:]}
    before = {old: mine.index(new) for new, old in meta.get("learnt_as", {}).items()}
    for raw, name in enumerate(class_names):
        if raw and name in before and before[name] not in found.values():
            found.setdefault(raw, before[name])
    return found


def origin_names(meta: Mapping[str, Any], class_names: Sequence[str]) -> dict[int, int]:
    """Where the data set that a model was trained on has its classes: raw id -> class index.

    There a renamed class is called what it was learnt by, whatever has that name now.

    Args:
        meta: The model's model.json.
        class_names: Of that data set, by raw id.
    """
    learnt_as = meta.get("learnt_as", {})
    mine = {learnt_as.get(name, name): k for k, name in enumerate(meta["class_names"]) if k}
    return {raw: mine[name] for raw, name in enumerate(class_names) if raw and name in mine}


@dataclass(frozen=True)
class Stored:
    """All that a model directory holds, of one version.

    Attributes:
        folder: The directory, for errors.
        model: On the CPU, in evaluation mode.
        meta: Its model.json.
        method: Knows how logits become scores; with its state.
        beside: Contents of the further files by name, such as memory.json.
    """

    folder: Path
    model: Segmenter
    meta: dict[str, Any]
    method: Method
    beside: Mapping[str, bytes]

    def memory(self) -> tuple[Exemplar, ...]:
        """Its exemplars; none where it has no memory.

        Raises:
            UserError: When the file holds something else.
        """
        return memory_in(self.beside.get(MEMORY), self.folder)


def load_with_method(
    folder: Path,
    allow_code: bool,
    device: torch.device | str = "cpu",
    trusted: Method | None = None,
) -> tuple[Segmenter, dict[str, Any], Method]:
    """A model, its model.json, and its method, as `load_stored`."""
    stored = load_stored(folder, allow_code, device, trusted)
    return stored.model, stored.meta, stored.method


def load_stored(
    folder: Path,
    allow_code: bool,
    device: torch.device | str = "cpu",
    trusted: Method | None = None,
) -> Stored:
    """A model with the method that knows how its logits become scores, the method's state, and its memory.

    Everything that reads a model goes through here: without the state, scores can be other ones.

    Args:
        folder: The model directory.
        allow_code: Import a method from outside segrow.
        device: Where the method's state goes; the model is on the CPU.
        trusted: A method that is in use already: its name is no code that would have to be allowed.

    Raises:
        UserError: When there is no model, its model.json says too little, or its method is code outside
            segrow and that is not allowed.
    """
    model, meta, beside = load_whole(folder)
    check_needed(meta, folder)
    stored = meta["method"]
    known = trusted is not None and trusted.name == stored["name"]
    if "." in stored["name"] and not allow_code and not known:
        raise UserError(f"the model's method is code outside segrow ({stored['name']}); give --allow_code")
    try:
        method = make_method(stored["name"], stored["fields"])
    except UserError as error:
        advice = "" if "; " in str(error) else "; copy the model again"
        raise UserError(f"{folder / RECORD}: {error}{advice}") from None
    restore_state(method, beside.get(METHOD_STATE), folder, device)
    return Stored(folder, model, meta, method, beside)


def restore_state(method: Method, content: bytes | None, folder: Path, device: torch.device | str) -> None:
    """Give a method the state that is stored beside the model it trained; none where none is.

    Args:
        content: Of method.safetensors.
        folder: The model directory, for errors.

    Raises:
        UserError: When the file cannot be read, or holds what the method does not have.
    """
    if content is None:
        return
    state = parse_safetensors(content, f"state of a method {folder / METHOD_STATE}", "copy the model again")
    method.load_state_dict({name: value.to(device) for name, value in state.items()})


def state_of(method: Method) -> dict[str, Tensor]:
    """What `Method.state_dict` gives, as files hold it: copies on the CPU, each with memory of its own.

    Raises:
        UserError: Naming the first value that no file can hold.
    """
    state: Any = method.state_dict()
    where = f"method {method.name}: state_dict()"
    if not isinstance(state, Mapping):
        raise UserError(f"{where} gave {type(state).__name__}, expected a mapping of names to tensors")
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"{where} gave the name {name!r}, expected text")
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f'{where} gave "{name}" of {kind}, expected a tensor, as torch.tensor(value)')
        if value.layout != torch.strided or value.is_meta or value.is_quantized or not _fits(name, value):
            kind = "on meta, without values" if value.is_meta else f"of {value.layout}, {value.dtype}"
            raise UserError(
                f'{where} gave "{name}" {kind}, which no file can hold; give a dense tensor of '
                "another type, or under another name"
            )
        found[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return found


def _fits(name: str, value: Tensor) -> bool:
    """Whether safetensors knows the kind of number, and takes the name."""
    try:
        written = safetensors.torch.save({name: torch.zeros(0, dtype=value.dtype)})
        return name in safetensors.torch.load(written)
    except (KeyError, UnicodeError, SafetensorError):
        return False


def load_memory(folder: Path) -> tuple[Exemplar, ...]:
    """The exemplars that are stored beside a model; none where it has no memory.

    Raises:
        UserError: When the file was changed or lost, or holds something else.
    """
    return memory_in(read_file_beside(folder, MEMORY), folder)


def memory_in(content: bytes | None, folder: Path) -> tuple[Exemplar, ...]:
    """The exemplars in the content of memory.json.

    Args:
        folder: The model directory, for errors.

    Raises:
        UserError: When it holds something else.
    """
    return () if content is None else from_json(content, f"memory {folder / MEMORY}")
