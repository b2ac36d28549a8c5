"""What a run says about itself: the head of results.json, and the engine's part of model.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import RunConfig
from ..data.base import Presence
from ..data.exclude import Exclusion
from ..methods.base import Method
from ..precision import mixed_remark
from ..scenario import Scenario
from .changes import changed_remarks, read_changes
from .folder import FREE, differences, images_hash, is_model_directory, read_config


def empty_results(
    config: RunConfig, method: Method, scenario: Scenario, val: Presence, excluded: Sequence[str] = ()
) -> dict[str, Any]:
    """results.json before the first step.

    Args:
        excluded: Images that are left out, each as SPLIT/ID.
    """
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
        "training": {"images": len(scenario.ids), "images_hash": images_hash(scenario.ids)},
        "evaluation": {
            "crop_val": config.train.crop_val,
            "crop": config.train.crop,
            "images": len(val.ids),
            "images_hash": images_hash(val.ids),
        },
        "excluded": Exclusion(images=frozenset(excluded)).hash if excluded else None,
        "remarks": [],
        "steps": [],
    }


def all_remarks(given: tuple[str, ...], config: RunConfig, method: Method) -> list[str]:
    """What a reader of the results should know before a step is trained."""
    size = config.memory.size
    if size and not method.paper_memory:
        given += (f"a memory of {size} images, which method {method.name} was published without",)
    if config.train.select == "best":
        given += ("the weights of every step were chosen on the validation images that it is tested on",)
    return list(given)


KEPT = "trained on kept views"
SHARED = "the base step is shared with"
AS_OURS = "trained as this run's own would be"


def kept_remarks(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which steps did not see a new view in every epoch, if any did not.

    Args:
        steps: As results.json holds them.
    """
    kept = {step["step"]: step["cost"]["features"]["views"] for step in steps if step["cost"].get("features")}
    if not kept:
        return []
    increments = [step["step"] for step in steps if step["step"]]
    some = f"step{'s' if len(kept) > 1 else ''} {', '.join(map(str, kept))}"
    which = "all increments" if list(kept) == increments else some
    views = " or ".join(map(str, sorted(set(kept.values()))))
    return [f"{which} {KEPT}, {views} an image of the step, not on new ones (train.feature_views)"]


def step_remarks(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the training of the steps so far leaves to say."""
    return [*kept_remarks(steps), *mixed_remark(steps)]


def base_remark(base: Path, plain: Mapping[str, Any]) -> str:
    """How the training of a shared base step differs from what this run would have done.

    Args:
        plain: Our configuration.
    """
    if is_model_directory(base):
        return f"{SHARED} the model {base.name}; how that was trained is not known here"
    there = read_config(base)
    found = [f"train.{row}" for row in differences(there["train"], plain["train"], _LATER)]
    theirs, ours = (train["step0_epochs"] or train["epochs"] for train in (there["train"], plain["train"]))
    if theirs != ours:
        found.append(f"epochs of the base step: {theirs} there, {ours} here")
    if there["method"] != plain["method"]:
        found.insert(0, f"method {there['method']['name']}")
    found += changed_remarks([change for change in read_changes(base) if change["step"] == 0])
    return f"{SHARED} {base.name}, {', '.join(found) or AS_OURS}"


# options of `train` that the base step does not depend on, or (its epochs) that are compared apart
_LATER = frozenset(
    {"lr", "backbone_lr", "epochs", "step0_epochs", "feature_views"}
    | {key.removeprefix("train.") for key in FREE}
)


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
    train = config.train
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
        "protocol": {"crop_val": train.crop_val, "crop": train.crop},
        # a later step on the same model should draw views alike: a mirrored digit is none
        "views": {"crop_mode": train.crop_mode, "scale": list(train.scale), "flip": train.flip},
        "training": training,
        "parent": parent,
    }
