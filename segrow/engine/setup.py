"""Everything that is decided, and can fail, before a run writes its first file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from lightning_fabric.utilities.rank_zero import rank_zero_only

from .. import __version__
from ..config import RunConfig, RunPaths, TrainConfig
from ..data import open_dataset
from ..data.base import Presence, SegDataset
from ..errors import UserError
from ..methods.base import Method, make_method
from ..model.store import RECORD, load_model
from ..scenario import Scenario, Step, build_scenario
from .select import check_selection
from .step import make_precision

# may change between a run and its continuation: they do not change what is learnt
FREE = frozenset(
    {
        "segrow",
        "steps",
        "data.root",
        "train.workers",
        "train.log_every",
        "train.val_batch_size",
        "train.device",
    }
)

# what the engine writes into model.json; the rest is the model's own
META = ("step", "class_names", "scenario", "method", "protocol", "training", "parent")


@dataclass(frozen=True)
class Prepared:
    """A run's data and scenario, checked.

    Attributes:
        data: The data set.
        scenario: Steps, classes, lookup tables.
        train: Classes present in every training image.
        val: The same of the validation images.
    """

    data: SegDataset
    scenario: Scenario
    train: Presence
    val: Presence


def prepare(config: RunConfig, method: Method, progress: bool = True) -> Prepared:
    """Open the data, index it, build the scenario, and check that the options fit it.

    Raises:
        UserError: For anything that would fail later.
    """
    data = open_dataset(config.data.name, config.data.root, config.data.scenes)
    if "saliency" in method.aux:
        data.require_saliency()
    train = data.presence("train", progress)
    val = data.presence("val", progress)
    if not val.ids:
        raise UserError(f"{data.root} has no validation images; every step is evaluated on them")
    scenario = build_scenario(
        config.data.name,
        data.class_names,
        data.ignore_id,
        train,
        config.task,
        config.setting,
        config.data.classes,
        config.data.order_seed,
        config.seed,
    )
    _check_batches(config.train, scenario.steps[: config.steps])
    _check_memory(config, scenario, method)
    if config.train.select == "best":
        check_selection(scenario, scenario.steps[: config.steps], val)
    return Prepared(data, scenario, train, val)


def check_ranges(config: RunConfig) -> None:
    """Numbers that no run can use.

    Raises:
        UserError: Naming the first option that is out of its range.
    """
    train = config.train
    whole = (
        "epochs",
        "step0_epochs",
        "batch_size",
        "accumulate",
        "devices",
        "crop",
        "val_batch_size",
        "log_every",
        "step_size",
    )
    for name in whole:
        value = getattr(train, name)
        if value is not None and value < 1:
            raise UserError(f"--train.{name} should be at least 1, got {value}")
    if config.steps is not None and config.steps < 1:
        raise UserError(
            f"--steps should be at least 1 (1 trains the base step alone), got {config.steps}; "
            "leave it out to train all steps"
        )
    rates = (
        "lr",
        "backbone_lr",
        "step0_lr",
        "step0_backbone_lr",
        "lr_floor",
        "weight_decay",
        "clip",
        "workers",
    )
    named = {f"train.{name}": getattr(train, name) for name in rates}
    named |= {
        "seed": config.seed,
        "data.order_seed": config.data.order_seed,
        "memory.size": config.memory.size,
    }
    for name, value in named.items():
        if value is not None and not value >= 0:
            raise UserError(f"--{name} should be 0 or more, got {value}")
    if not 0 <= train.momentum < 1:
        raise UserError(f"--train.momentum should be from 0 to below 1, got {train.momentum}")
    if not 0 <= train.flip <= 1:
        raise UserError(f"--train.flip should be a probability from 0 to 1, got {train.flip}")
    low, high = train.scale
    if not 0 < low <= high:
        raise UserError(f"--train.scale should be LOW,HIGH with 0 < LOW <= HIGH, got {low},{high}")


def _check_batches(train: TrainConfig, steps: Sequence[Step]) -> None:
    parts = train.devices * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f"--train.batch_size {train.batch_size} should be a multiple of devices x accumulate = {parts}"
        )
    if train.batch_size // parts < 2:
        raise UserError(
            f"--train.batch_size {train.batch_size} leaves fewer than 2 images in a forward pass, "
            "which batch normalisation cannot train on; use a larger batch or a smaller --train.accumulate"
        )
    for step in steps:
        if train.batch_size > len(step.images):
            raise UserError(
                f"step {step.index} ({', '.join(step.classes)}) has {len(step.images)} images, fewer than "
                f"the batch size {train.batch_size}; use --train.batch_size {len(step.images)} or less"
            )


def _check_memory(config: RunConfig, scenario: Scenario, method: Method) -> None:
    size = config.memory.size
    if size and method.sees == "seen":
        raise UserError(
            f"--memory.size {size} with method {method.name}, which sees all images; use --memory.size 0"
        )
    if config.memory.unshifted and not method.unknown_head:
        raise UserError(
            f"--memory.unshifted shifts labels into the unknown channel, which method {method.name} does not "
            "have here; leave it out"
        )
    available = len(scenario.images(len(scenario.steps) - 1, "seen"))
    if size > available:
        raise UserError(
            f"--memory.size {size} is larger than the data ({available} training images); use a smaller one"
        )
    if size and len(scenario.steps) == 1:
        raise UserError(f"--memory.size {size} has no use in a single step; use --memory.size 0")


def is_first_process() -> bool:
    """Whether this process speaks and writes; also right before the others have been started."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def make_fabric(train: TrainConfig) -> tuple[Fabric, Precision]:
    """Devices and precision; starts the other processes of a data-parallel run.

    Raises:
        UserError: For a device that is not there.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if train.device == "auto" else train.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--train.device cuda, but torch sees no GPU; use --train.device cpu")
    if device == "cuda" and train.devices > torch.cuda.device_count():
        raise UserError(f"--train.devices {train.devices}, but there are {torch.cuda.device_count()} GPUs")
    precision = make_precision(train.precision, device)
    fabric = Fabric(
        accelerator=device,
        devices=train.devices,
        strategy="ddp" if train.devices > 1 else "auto",
        plugins=[precision],
    )
    fabric.launch()
    return fabric, precision


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
    a, b = _flat(there), _flat(here)
    return [
        f"{key}: {a.get(key)} there, {b.get(key)} here"
        for key in sorted(a.keys() | b.keys())
        if key not in free and a.get(key) != b.get(key)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """A run folder is continued only with the configuration it was started with.

    Raises:
        UserError: Showing the difference; or when the folder holds something else.
    """
    stored = RunPaths(folder).config
    if stored.exists():
        found = differences(read_config(folder), config)
        if found:
            raise UserError(
                f"{folder} holds a run of another configuration ({'; '.join(found)}); "
                "use another --out, or delete that folder"
            )
    elif folder.exists() and not (folder.is_dir() and all(f.suffix == ".tmp" for f in folder.iterdir())):
        raise UserError(f"{folder} is there and is no run folder; use another --out")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder.

    Raises:
        UserError: When the folder is no run.
    """
    path = RunPaths(folder).config
    if not path.exists():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        loaded = None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is damaged; restore it, or delete the folder and train again")
    return loaded


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run folder.

    Raises:
        UserError: When there is none.
    """
    path = RunPaths(folder).results
    if not path.exists():
        raise UserError(f"{folder} has no results.json; give the folder of a run that finished a step")
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        loaded = None
    if not isinstance(loaded, dict) or "steps" not in loaded:
        raise UserError(f"{path} is damaged; restore it, or delete the folder and train again")
    return loaded


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
        for key in ("classes", "evaluation")
        if stored.get(key) != ours[key]
    ]
    for record, step in zip(stored["steps"], scenario.steps, strict=False):
        if record["images_hash"] != images_hash(step.images):
            found.append(f"step {step.index}: other training images")
    if found:
        raise UserError(f"the data have changed since the run began ({'; '.join(found)}); use another --out")


def is_model_directory(base: Path) -> bool:
    """Whether `--base` is a model directory, not a run."""
    return (base / RECORD).is_file()


def check_base(
    base: Path, plain: Mapping[str, Any], ours: Mapping[str, Any], method: Method, scenario: Scenario
) -> dict[str, Any] | None:
    """The base step's record of another run, whose network, classes, images and protocol must match.

    Args:
        base: That run's folder; or a model directory of step 0, of which only network and classes are known.
        plain: Our configuration.
        ours: Our results.json, still without steps.

    Returns:
        The record; None for a model directory, which has none.

    Raises:
        UserError: Showing all that differs.
    """
    record = None
    if is_model_directory(base):
        folder, found = base, _model_differences(base, plain, method, scenario)
    else:
        folder = RunPaths(base).model(0)
        record, found = _run_differences(base, plain, ours, scenario)
    model, _ = load_model(folder)
    if method.unknown_head and model.unknown is None:
        found.append(f"unknown head: none there, method {method.name} needs one")
    method.check(model)
    if found:
        raise UserError(f"the base step of {base} cannot be shared: {'; '.join(found)}")
    return record


def _run_differences(
    base: Path, plain: Mapping[str, Any], ours: Mapping[str, Any], scenario: Scenario
) -> tuple[dict[str, Any], list[str]]:
    """The base step's record of a run, and what differs from ours."""
    there = read_results(base)
    if not there["steps"]:
        raise UserError(f"{base} has not finished its base step yet")
    record: dict[str, Any] = there["steps"][0]
    config = read_config(base)
    found = [f"model.{row}" for row in differences(config["model"], plain["model"], frozenset())]
    for key in ("data", "classes", "evaluation"):
        if there[key] != ours[key]:
            found.append(f"{key}: {there[key]} there, {ours[key]} here")
    step = scenario.steps[0]
    if record["classes"] != list(step.classes) or record["images_hash"] != images_hash(step.images):
        found.append(
            f"base step: {len(record['classes'])} classes and {record['images']} images there, "
            f"{len(step.classes)} classes and {len(step.images)} images here, or other images"
        )
    return record, found


def _model_differences(base: Path, plain: Mapping[str, Any], method: Method, scenario: Scenario) -> list[str]:
    """What differs between a model directory and our base step; where its backbone began is no matter."""
    model, meta = load_model(base)
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
