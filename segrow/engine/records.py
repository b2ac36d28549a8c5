"""What a run says about itself: the head of results.json, and the engine's part of model.json."""

from typing import Any

from .. import __version__
from ..config import RunConfig
from ..data.base import Presence
from ..methods.base import Method
from ..scenario import Scenario
from .setup import images_hash


def empty_results(config: RunConfig, method: Method, scenario: Scenario, val: Presence) -> dict[str, Any]:
    """results.json before the first step."""
    return {
        "format": 1,
        "segrow": __version__,
        "data": scenario.data,
        "task": scenario.task,
        "setting": scenario.setting,
        "method": method.name,
        "memory": config.memory.size,
        "seed": config.seed,
        "classes": list(scenario.classes),
        "evaluation": {
            "crop_val": config.train.crop_val,
            "crop": config.train.crop,
            "images": len(val.ids),
            "images_hash": images_hash(val.ids),
        },
        "remarks": [],
        "steps": [],
    }


def all_remarks(given: tuple[str, ...], config: RunConfig, method: Method) -> list[str]:
    """What a reader of the results should know; the engine itself sees to the memory and the selection."""
    size = config.memory.size
    if size and not method.paper_memory:
        given += (f"a memory of {size} images, which method {method.name} was published without",)
    if config.train.select == "best":
        given += ("the weights of every step were chosen on the validation images that it is tested on",)
    return list(given)


def model_meta(
    config: RunConfig,
    method: Method,
    scenario: Scenario,
    step: int,
    parent: str | None,
    training: dict[str, Any],
) -> dict[str, Any]:
    """The engine's part of a step's model.json.

    Args:
        parent: Hash of the model that the step started from.
        training: What it cost; with `selected` where the weights were chosen.
    """
    return {
        "step": step,
        "class_names": list(scenario.classes[: scenario.known(step)]),
        "scenario": {
            "data": scenario.data,
            "task": scenario.task,
            "setting": scenario.setting,
            "classes": list(scenario.classes),
        },
        "method": {"name": method.name, "fields": method.fields()},
        "protocol": {"crop_val": config.train.crop_val, "crop": config.train.crop},
        "training": training,
        "parent": parent,
    }
