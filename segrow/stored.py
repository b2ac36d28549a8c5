"""A model directory with the method that reads it."""

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
