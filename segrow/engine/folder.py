"""What a run folder says of itself, and whether it may be continued, or its base step shared."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import ModelConfig, RunConfig, RunPaths
from ..errors import UserError
from ..methods.base import Method, make_method
from ..model.record import RECORD, WEIGHTS, is_model, read_record
from ..model.segmenter import Segmenter
from ..model.store import load_model
from ..scenario import Scenario
from ..sealed import read_sealed_json, read_sealed_yaml
from ..shapes import Shape, expect
from ..wording import count
from .changes import COMPUTED, RATES, loss_was_lost

# may change between a run and its continuation: they do not change what is learnt
FREE = frozenset(
    {
        "segrow",
        "steps",
        "data.root",
        "data.exclude",  # the ids are compared, not the name of their list
        "train.workers",
        "train.log_every",
        "train.val_batch_size",
        "train.device",
        "train.feature_store",
        "train.feature_budget",
    }
)

# what a run did that was started before segrow had the option
BEFORE: dict[str, Any] = {
    "data.ignore": None,
    "train.feature_views": 0,
    "method.gives_way": [],
    "model.dilate_first": False,
    "model.norm_eps": None,
    "model.refine": False,
}

_NAMES = [str]
_INDEX = range(1 << 16)
# what is read of config.yaml and of results.json; runs of an earlier segrow lack some of it
CONFIG: Shape = {
    "task": str,
    "setting": str,
    "seed": int,
    "data": {
        "name": str,
        "root?": (str, None),
        "classes?": (_NAMES, None),
        "order_seed?": (int, None),
        "scenes?": int,
    },
    "model": {str: (str, bool, float, [float], None)},
    "memory?": {"size?": int},
    "train": {"epochs": int, "step0_epochs?": (int, None)},
    "method": {"name": str},
}
RESULTS: Shape = {
    **dict.fromkeys(("data?", "task?", "setting?", "method?"), str),
    "seed?": int,
    "memory?": int,
    "classes?": _NAMES,
    "remarks?": _NAMES,
    "unlabelled?": _NAMES,
    "changes?": [dict],
    "training?": ({"images_hash?": (str, None)}, None),
    "evaluation?": {"images_hash?": (str, None)},
    "excluded?": (str, None),
    "steps": [{"classes?": _NAMES, "images_hash?": str, "cost?": {"features?": ({"views": _INDEX}, None)}}],
}
# what a run that shares the base step compares
_SHARED: Shape = {
    "data": str,
    "classes": _NAMES,
    "evaluation": dict,
    "steps": [{"classes": _NAMES, "images": int, "images_hash": str}],
}
_AGAIN = "restore it, or delete the folder and train again"

# what the engine writes into model.json; the rest is the model's own
META = ("step", "class_names", "scenario", "method", "protocol", "training", "parent")


def configuration(config: RunConfig, method: Method, base: Path | None) -> dict[str, Any]:
    """A run's configuration as plain values, as config.yaml holds it.

    Args:
        base: The run, or model directory, whose base step is shared.
    """
    plain: dict[str, Any] = _plain({"segrow": __version__, **asdict(config)})
    plain["base"] = str(base.resolve()) if base else None
    plain["method"] = {"name": method.name, **_plain(method.fields())}
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def differences(there: Mapping[str, Any], here: Mapping[str, Any], free: frozenset[str] = FREE) -> list[str]:
    """`key: value there, value here` for every value that differs and is not free to."""
    return [f"{key}: {a} there, {b} here" for key, (a, b) in _differing(there, here, free).items()]


def _differing(
    there: Mapping[str, Any], here: Mapping[str, Any], free: frozenset[str] = FREE
) -> dict[str, tuple[Any, Any]]:
    a, b = ({**BEFORE, **_flat(side)} for side in (there, here))
    keys = sorted(key for key in a.keys() | b.keys() if key not in free and a.get(key) != b.get(key))
    return {key: (a.get(key), b.get(key)) for key in keys}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def check_folder(folder: Path, config: Mapping[str, Any]) -> str | None:
    """A run folder is continued only with the configuration it was started with, or what may change.

    A run that has not come to the end of its first epoch is no loss: any configuration starts it anew.

    The base may stand elsewhere now, where its base step is the same.

    Returns:
        A line when it does.

    Raises:
        UserError: Showing the difference; or when the folder holds something else.
    """
    if RunPaths(folder).config.exists():
        if not is_begun(folder):
            return None
        found = _differing_here(folder, config)
        allowed, line = _may_change(folder, config), None
        before, now = found.get("base", (None, None))
        if before and now and _same_base(folder, now):
            allowed |= {"base"}
            line = f"{now} holds the same base step, byte for byte, as {before} did: the run goes on"
        if not found.keys() <= allowed:
            rows = (f"{key}: {a} there, {b} here" for key, (a, b) in found.items())
            raise UserError(
                f"{folder} holds a run of another configuration ({'; '.join(rows)}); "
                "use another --out, or delete that folder"
            )
        return line
    if folder.exists() and not (folder.is_dir() and all(_is_litter(f) for f in folder.iterdir())):
        raise UserError(f"{folder} is there and is not a run folder; use another --out")
    return None


def _same_base(folder: Path, base: str) -> bool:
    """Whether the base step that a run has taken over is that of a base; so it is before it took one over.

    Raises:
        UserError: A record of either that is damaged.
    """
    mine = RunPaths(folder).model(0)
    place = Path(base)
    theirs = place if is_model_directory(place) else RunPaths(place).model(0)
    if not is_model(mine):
        return True
    return is_model(theirs) and _weights(mine) == _weights(theirs)


def _weights(folder: Path) -> str:
    """Hash of the weights of a model directory."""
    files: Mapping[str, str] = read_record(folder)["hashes"]["files"]
    return files[WEIGHTS]


def _is_litter(path: Path) -> bool:
    """Whether a call that was killed before it wrote anything, or this one, made it."""
    return path.suffix == ".tmp" or path.name == ".lock"


def is_begun(folder: Path) -> bool:
    """Whether a run folder holds anything that was trained."""
    paths = RunPaths(folder)
    return paths.results.exists() or (folder / "steps").exists() or any(folder.glob("*.ckpt*"))


def changed_options(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Before and now of what `check_folder` let pass and the run did not begin with."""
    if not RunPaths(folder).config.exists() or not is_begun(folder):
        return {}
    found = _differing_here(folder, config)
    found.pop("base", None)  # the same base step in another place
    return found


def _may_change(folder: Path, config: Mapping[str, Any]) -> frozenset[str]:
    """Options that a run may be continued with; none when nothing is left to train."""
    if _is_done(folder, config):
        return frozenset()
    return COMPUTED | (RATES if loss_was_lost(folder) else frozenset())


def _is_done(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether nothing is left to train of what is asked for."""
    if not RunPaths(folder).results.exists():
        return False
    results = read_results(folder)
    done, taught = len(results["steps"]), sum(len(step.get("classes", ())) for step in results["steps"])
    return done == config["steps"] or taught == len(results.get("classes", ())) - 1


def _differing_here(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """How a configuration differs from that of a run folder.

    Precision auto is that of the run when nothing is left to train: an earlier segrow had another default,
    and a recipe asks for 16 on a GPU and for auto on a CPU.
    """
    found = _differing(read_config(folder), config)
    if "auto" in found.get("train.precision", ()) and _is_done(folder, config):
        del found["train.precision"]
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder.

    Raises:
        UserError: When the folder is no run.
    """
    path = RunPaths(folder).config
    if not path.exists():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    loaded: dict[str, Any] = read_sealed_yaml(path, "configuration", CONFIG, fix=_AGAIN)
    return loaded


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder.

    Raises:
        UserError: When there is none.
    """
    path = RunPaths(folder).results
    if not path.exists():
        raise UserError(f"{folder} has no results.json; give the folder of a run that finished a step")
    return read_sealed_json(path, "results", RESULTS, fix=_AGAIN)


def check_data(stored: Mapping[str, Any], ours: Mapping[str, Any], scenario: Scenario) -> None:
    """A run is continued only on the data it was started on.

    Args:
        stored: results.json of the run.
        ours: What it would be now, without steps.

    Raises:
        UserError: Naming what differs.
    """
    found = [
        f"{key}: {stored.get(key)} there, {ours[key]} here"
        for key in ("classes", "evaluation", "excluded")
        if stored.get(key) != ours[key]
    ]
    for record, step in zip(stored["steps"], scenario.steps, strict=False):
        if record.get("images_hash") != images_hash(step.images):
            found.append(f"step {step.index}: other training images")
    if found:
        raise UserError(f"the data have changed since the run began ({'; '.join(found)}); use another --out")


_TRAINED: Shape = {"step": int, "method": {"name": str}, "training": {"exemplars": (int, None)}}


def check_step(
    record: Mapping[str, Any], folder: Path, step: int, run: RunConfig, scenario: Scenario, method: str | None
) -> None:
    """The model that a run stored after a step is that of this run and step.

    Args:
        record: Its model.json.
        folder: Where it stands.
        step: After which it was stored.
        run: The run's configuration, which says its network.
        scenario: The run's.
        method: Name of the run's method; None: the step was taken over from elsewhere.

    Raises:
        UserError: Showing all that differs.
    """
    expect(record, _TRAINED, str(folder / RECORD), _AGAIN)
    there = _plain(asdict(ModelConfig(**record["model"]["config"])))
    found = [f"model.{row}" for row in differences(there, _plain(asdict(run.model)), frozenset({"weights"}))]
    if method not in (None, record["method"]["name"]):
        found.append(f"method: {record['method']['name']} there, {method} here")
    if record["step"] != step:
        found.append(f"step: {record['step']} there, {step} here")
    wanted = list(scenario.classes[: scenario.known(step)])
    if record["class_names"] != wanted:
        found.append(f"classes: {', '.join(record['class_names'])} there, {', '.join(wanted)} here")
    if found:
        raise UserError(
            f"{folder} is not what this run stored after step {step} ({'; '.join(found)}); copy the run "
            "again, or use another --out"
        )


def is_model_directory(base: Path) -> bool:
    """Whether `--base` is a model directory, not a run."""
    return is_model(base)


def check_base(
    base: Path, plain: Mapping[str, Any], ours: Mapping[str, Any], method: Method, scenario: Scenario
) -> tuple[dict[str, Any] | None, str]:
    """The base step's record of another run, whose network, classes, images and protocol must match.

    Args:
        base: That run's folder; or a model directory of step 0, of which only network and classes are known.
        plain: Our configuration.
        ours: Our results.json, still without steps.

    Returns:
        The record, None for a model directory, which has none; and the hash of the model.

    Raises:
        UserError: Showing all that differs.
    """
    record = None
    if is_model_directory(base):
        model, meta = load_model(base)
        found = _model_differences(base, model, meta, plain, method, scenario)
    elif not base.exists():
        raise UserError(f"{base} is not there; give a run folder, or a model directory of step 0")
    else:
        record, found = _run_differences(base, plain, ours, scenario)
        model, meta = load_model(RunPaths(base).model(0))
    if method.unknown_head and model.unknown is None:
        found.append(f"unknown head: none there, method {method.name} needs one")
    method.check(model, plain["train"]["crop"])
    if found:
        raise UserError(f"the base step of {base} cannot be shared: {'; '.join(found)}")
    return record, meta["hashes"]["model"]


def _run_differences(
    base: Path, plain: Mapping[str, Any], ours: Mapping[str, Any], scenario: Scenario
) -> tuple[dict[str, Any], list[str]]:
    """The base step's record of a run, and what differs from ours."""
    there = read_results(base)
    if not there["steps"]:
        raise UserError(f"{base} has not finished its base step yet")
    expect({**there, "steps": there["steps"][:1]}, _SHARED, f"results {RunPaths(base).results}", _AGAIN)
    record: dict[str, Any] = there["steps"][0]
    config = read_config(base)
    found = [f"model.{row}" for row in differences(config["model"], plain["model"], frozenset())]
    for key in ("data", "classes", "evaluation"):
        if there[key] != ours[key]:
            found.append(f"{key}: {there[key]} there, {ours[key]} here")
    step = scenario.steps[0]
    if record["classes"] != list(step.classes) or record["images_hash"] != images_hash(step.images):
        found.append(
            f"base step: {_size(len(record['classes']), record['images'])} there, "
            f"{_size(len(step.classes), len(step.images))} here, or other images"
        )
    return record, found


def _size(classes: int, images: int) -> str:
    return f"{count(classes, 'class')} and {count(images, 'image')}"


def _model_differences(
    base: Path,
    model: Segmenter,
    meta: Mapping[str, Any],
    plain: Mapping[str, Any],
    method: Method,
    scenario: Scenario,
) -> list[str]:
    """What differs between a model directory and our base step; where its backbone began is no matter."""
    if missing := [key for key in META if key not in meta]:
        raise UserError(
            f"{base / RECORD} lacks {', '.join(missing)}; give a model that segrow train or import made"
        )
    there = _plain(asdict(model.config))
    found = [f"model.{row}" for row in differences(there, plain["model"], frozenset({"weights"}))]
    if meta["step"] != 0:
        found.append(f"step: {meta['step']} there, 0 here")
    wanted = list(scenario.classes[: scenario.known(0)])
    if meta["class_names"] != wanted:
        found.append(f"classes: {', '.join(meta['class_names'])} there, {', '.join(wanted)} here")
    name = meta["method"]["name"]
    if "." in name and name != method.name:
        found.append(f"method: {name} there, which is code outside segrow, {method.name} here")
    else:  # it is read with its own method: fails here if it must fail
        make_method(name, meta["method"]["fields"])
    return found


def images_hash(images: tuple[str, ...]) -> str:
    """Identifies a step's image list."""
    return hashlib.sha256("\n".join(images).encode()).hexdigest()[:16]
