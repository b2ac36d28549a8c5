"""Everything that is decided, and can fail, before a run writes its first file."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from ..config import MAX_CROP, MAX_SCALE, RunConfig, TrainConfig
from ..data import open_dataset
from ..data.base import Presence, SegDataset
from ..data.contents import find_copies
from ..data.exclude import read_exclusion
from ..devices import choose_device
from ..errors import UserError
from ..methods.base import Method
from ..precision import choose
from ..processes import can_start_again, limit_threads
from ..scenario import Scenario, Step, build_scenario, unseen_notes
from ..wording import count
from .group import Group, Started, find_place
from .select import check_selection
from .step import make_precision

MAX_COUNT = (1 << 31) - 1
"""Largest whole number of an option: what takes numbers of 32 bits can go on with it."""
LEAST = 2
"""Images of a forward pass: batch normalisation needs as many."""


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


def prepare(
    config: RunConfig,
    method: Method,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
    strict: bool = False,
) -> Prepared:
    """Open the data, index it, build the scenario, and check that the options fit it.

    Args:
        config: What to do.
        method: How.
        progress: Show a bar on stderr while masks are read.
        say: Gets a line per note on the data.
        strict: Copies of images are a mistake, not a note.

    Raises:
        UserError: For anything that would fail later.
    """
    data = open_dataset(
        config.data.name,
        config.data.root,
        config.data.scenes,
        exclude=read_exclusion(config.data.exclude),
        ignore=config.data.ignore,
    )
    if "saliency" in method.aux:
        data.require_saliency()
    train = data.presence("train", progress)
    val = data.presence("val", progress)
    if not val.ids:
        raise UserError(
            f"{data.root} has no validation images, on which every step is evaluated; add some "
            "(images/val, masks/val)"
        )
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
        ignored=data.ignored,
    )
    copies = find_copies(data.image_paths("train", scenario.ids), data.image_paths("val", val.ids))
    if strict:
        copies.refuse(
            f"leave them out: segrow data check {data.root} --fix-list FILE, then --data.exclude FILE"
        )
    data.notes += (*unseen_notes(scenario, train), *copies.notes())
    _check_batches(config.train, scenario.steps[: config.steps])
    _check_memory(config, scenario, method)
    if config.train.select == "best":
        check_selection(scenario, scenario.steps[: config.steps], val)
    for note in data.notes:  # last, for an error is one line
        say(f"note: {note}")
    return Prepared(data, scenario, train, val)


def check_ranges(config: RunConfig) -> None:
    """Numbers that no run can use.

    Raises:
        UserError: Naming the first option that is out of its range, or a device that is not there.
    """
    train = config.train
    choose_device(train.device, "--train.device")
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
    counts = {f"train.{name}": getattr(train, name) for name in whole} | {"model.width": config.model.width}
    for name, value in counts.items():
        if value is not None and value > MAX_COUNT:
            raise UserError(f"--{name} should be at most {MAX_COUNT}, got {value}")
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
        "feature_views",
        "feature_budget",
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
    if not 0 < low <= high <= MAX_SCALE:
        raise UserError(
            f"--train.scale should be LOW,HIGH with 0 < LOW <= HIGH <= {MAX_SCALE:g}, got {low},{high}"
        )
    if train.feature_store == "device" and train.devices > 1:
        raise UserError(
            f"--train.feature_store device keeps features in the memory of one GPU, and --train.devices is "
            f"{train.devices}; use ram, which is then a file that all share"
        )
    if train.crop > MAX_CROP:
        raise UserError(f"--train.crop should be at most {MAX_CROP}, got {train.crop}")


def _check_batches(train: TrainConfig, steps: Sequence[Step]) -> None:
    """Every forward pass of every step has the two images that batch normalisation needs.

    What an error advises fits all steps: no further error follows.
    """
    step = min(steps, key=lambda step: len(step.images))
    images, names = len(step.images), ", ".join(step.classes)
    if images < LEAST:
        raise UserError(
            f"step {step.index} ({names}) has {images} image, expected {LEAST} or more, which batch "
            f"normalisation needs; annotate more images of it, or leave it out: name the other classes in "
            "--data.classes, and give a --task that adds up"
        )
    parts = train.devices * train.accumulate
    advice = _batches_for(train, images)
    if train.batch_size % parts:
        raise UserError(
            f"--train.batch_size {train.batch_size} should be a multiple of devices x accumulate = {parts}; "
            f"use {advice}"
        )
    if train.batch_size // parts < LEAST:
        raise UserError(
            f"--train.batch_size {train.batch_size} leaves fewer than {LEAST} images in a forward pass "
            f"(devices x accumulate = {parts}), which batch normalisation cannot train on; use {advice}"
        )
    if train.batch_size > images:
        raise UserError(
            f"step {step.index} ({names}) has {images} images, fewer than the batch size "
            f"{train.batch_size}; use {advice}"
        )


def _batches_for(train: TrainConfig, images: int) -> str:
    """Options of a batch that can be drawn from so many images, as near as possible to what was asked for."""
    devices = min(train.devices, images // LEAST)
    accumulate = min(train.accumulate, images // LEAST // devices)
    parts = devices * accumulate
    batch = max(min(train.batch_size, images) // parts, LEAST) * parts
    wanted = {"devices": devices, "accumulate": accumulate, "batch_size": batch}
    return " ".join(
        f"--train.{name} {value}" for name, value in wanted.items() if value != getattr(train, name)
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
            f"--memory.size {size} is larger than the data ({available} training images); use "
            f"{available} or less"
        )


def is_first_process() -> bool:
    """Whether this process speaks and writes; also right before the others have been started."""
    place = find_place()
    return place is None or place.rank == 0


def check_started(devices: int) -> None:
    """Compare --train.devices with the processes that were started from outside: torchrun's, SLURM's.

    Else each of them would be a run of its own in one folder, or devices would be idle without a word. Only
    the first process says so; the others end.

    Raises:
        UserError: They differ.
    """
    place = find_place()
    if place is None or place.size == devices:
        return
    if place.rank:
        raise SystemExit(2)
    if place.by == "torchrun":
        instead = f"torchrun --nproc_per_node {devices}" if devices > 1 else "leave torchrun out"
    else:
        instead = f"srun --ntasks {devices}" if place.by == "SLURM" else "a program of its own"
    raise UserError(
        f"{place.by} started {count(place.size, 'process')}, and --train.devices is {devices}; "
        f"give --train.devices {place.size}, or {instead}"
    )


def make_fabric(train: TrainConfig, group: Group | None = None) -> tuple[Fabric, Precision]:
    """Devices and precision; starts the other processes of a data-parallel run.

    Args:
        group: Those that make this call together; None: this one alone.

    Raises:
        UserError: For a device that is not there, or another number of processes than devices.
    """
    check_started(train.devices)
    place = find_place()
    on_machine = train.devices // place.nodes if place else train.devices
    device = choose_device(train.device, "--train.device")
    if device == "cuda" and on_machine > torch.cuda.device_count():
        raise UserError(f"--train.devices {train.devices}, but there are {torch.cuda.device_count()} GPUs")
    if train.devices > 1 and place is None and not can_start_again():
        raise UserError(
            f"--train.devices {train.devices} starts the program again for every further device, and this "
            "one is not a file; put the lines into a script, or use segrow train"
        )
    if device == "cpu":
        limit_threads(train.devices)
    precision = make_precision(choose(train.precision, device).used, device)
    if train.devices == 1:
        fabric = Fabric(accelerator=device, devices=1, plugins=[precision])
    else:
        group = group or Group()
        place = group.start(train.devices)
        group.connect(torch.device(device, place.local_rank) if device == "cuda" else torch.device(device))
        fabric = Fabric(
            accelerator=device,
            devices=on_machine,
            num_nodes=place.nodes,
            strategy=DDPStrategy(**_buffers_stay()),
            plugins=[precision, Started(place)],
        )
    fabric.launch()
    return fabric, precision


def _buffers_stay() -> dict[str, Any]:
    """Running statistics are those of all batches in every process: nobody need send them around.

    torch 2.14 warns of the older name of this option.
    """
    new, old = "forward_sync_buffers", "broadcast_buffers"
    return {new if new in inspect.signature(DistributedDataParallel).parameters else old: False}
