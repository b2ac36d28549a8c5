"""A model directory with the method that reads it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .methods.base import Method, make_method
from .model.segmenter import Segmenter
from .model.store import load_model

NEEDED = ("step", "class_names", "scenario", "method", "protocol")
"""What the engine writes into model.json, and who uses a model must know."""


def find_model(path: Path) -> Path:
    """A model directory, or the last one of a run folder.

    Raises:
        UserError: When there is none.
    """
    if (path / "model.json").exists():
        return path
    found = sorted((path / "steps").glob("*/model"))
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


def load_with_method(folder: Path, allow_code: bool) -> tuple[Segmenter, dict[str, Any], Method]:
    """A model, its model.json, and the method that knows how its logits become scores.

    Raises:
        UserError: When there is no model, its model.json says too little, or its method is code outside
            segrow and that is not allowed.
    """
    model, meta = load_model(folder)
    if missing := [key for key in NEEDED if key not in meta]:
        raise UserError(
            f"{folder / 'model.json'} lacks {', '.join(missing)}; give a model that segrow train, add or "
            "import made"
        )
    stored = meta["method"]
    if "." in stored["name"] and not allow_code:
        raise UserError(f"the model's method is code outside segrow ({stored['name']}); give --allow_code")
    return model, meta, make_method(stored["name"], stored["fields"])
