"""`eval.py` and `main.py --test_only`: find what was trained, evaluate it, print what that code printed."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ..devices import choose_device
from ..errors import UserError
from ..protocol import counts, summarise
from ..terminal import Terminal
from .eval import EvalOptions, evaluate_model
from .options import parse_run
from .seed_options import Seed
from .seed_translate import DATASETS, LOSSES, Place, folder, translate

DEFINITION = "ssul"
# options that only training reads
IDLE = frozenset(
    {"num_classes", "amp", "train_epoch", "total_itrs", "curr_itrs", "lr", "lr_policy", "step_size"}
    | {"batch_size", "weight_decay", "random_seed", "print_interval", "val_interval", "download", "pseudo"}
    | {"pseudo_thresh", "mem_size", "freeze", "bn_freeze", "w_transfer", "reference"}
)
# options of segrow that evaluation reads, too
USED = ("--data.", "--train.crop", "--train.val_batch_size", "--train.workers", "--train.device")


def run(seed: Seed, place: Place) -> int:
    """Evaluate one step.

    Raises:
        UserError: When there is nothing to evaluate, or it does not fit the data.
    """
    config = parse_run(translate(seed, place), "train", "", "").config
    for line in _remarks(seed):
        Terminal(stderr=True).say(f"{seed.prog}: {line}")
    found, step = locate(seed)
    options = EvalOptions(
        name=config.data.name,
        root=config.data.root,
        scenes=config.data.scenes,
        batch_size=config.train.val_batch_size,
        workers=config.train.workers,
        crop=config.train.crop if config.train.crop_val else None,
        device=choose_device(config.train.device, "--train.device"),
    )
    one = replace(place, count=1, visible=place.visible.partition(",")[0])
    console = Terminal()
    console.say(f"{seed.prog}: {one.describe()}")
    console.say(f"evaluates {found}")
    if found.is_dir():
        _compare(seed, found)
        results = evaluate_model(found, options, progress=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            imported = Path(temporary) / "model"
            import_file(seed, found, step, imported)
            _compare(seed, imported)
            results = evaluate_model(imported, options, progress=True)
    console.print(report(results))
    for remark in results.get("remarks", ()):
        console.say(remark)
    return 0


def _remarks(seed: Seed) -> list[str]:
    """One line for each kind of option that an evaluation has no use for."""
    lines = []
    idle = [f"--{field.name}" for field in fields(seed) if field.name in seed.given & IDLE]
    words = (word.partition("=")[0] for word in seed.rest if word.startswith("--"))
    idle += [name for name in words if not name.startswith(USED) or name == "--train.devices"]
    if idle:
        lines.append(f"{', '.join(idle)}: no effect, nothing is trained")
    if "test_only" in seed.given and seed.prog == "eval.py":
        lines.append("--test_only: no effect, eval.py does nothing else")
    if "val_batch_size" in seed.given and not seed.crop_val:
        lines.append("--val_batch_size: no effect, without --crop_val whole images are evaluated one by one")
    if "separable_conv" in seed.given and not seed.plus:
        lines.append("--separable_conv: no effect, the reference code has it for deeplabv3plus models only")
    if "," in seed.gpu_id:
        lines.append(f"--gpu_id {seed.gpu_id}: one device evaluates, the first")
    return lines


def _compare(seed: Seed, model: Path) -> None:
    """What was said of the model, beside what its directory says: that is what counts.

    Raises:
        UserError: For a model of another task or data set.
    """
    from ..model.record import read_record

    record = read_record(model)
    scenario, network, fields = record["scenario"], record["model"]["config"], record["method"]["fields"]
    for name, said, there in (
        ("dataset", DATASETS[seed.dataset], scenario["data"]),
        ("task", seed.task, scenario["task"]),
    ):
        if name in seed.given and said != there:
            raise UserError(
                f"--{name} {getattr(seed, name)}, but {model} is a model of {there}; leave it out"
            )
    loss = LOSSES[seed.loss_type]
    pairs = {
        "model": (seed.model, network["name"]),
        "output_stride": (seed.output_stride, network["output_stride"]),
        "loss_type": (loss, fields.get("loss_type", loss)),
        "overlap": (seed.setting, scenario["setting"]),
    }
    lines = [
        f"--{name} says {said}, the model is of {there}; that is used"
        for name, (said, there) in pairs.items()
        if name in seed.given and said != there
    ]
    if seed.unknown != record["model"]["unknown"]:
        has = "has an" if record["model"]["unknown"] else "has no"
        given = "is given" if seed.unknown else "is not given"
        lines.append(f"--unknown {given}, the model {has} unknown head; that is used")
    if seed.separable_conv and seed.plus and not network.get("separable"):
        lines.append("--separable_conv is given, the model has plain convolutions; that is used")
    for line in lines:
        Terminal(stderr=True).say(f"{seed.prog}: {line}")


def locate(seed: Seed) -> tuple[Path, int]:
    """What to evaluate: a model directory or the reference code's file, and its step.

    That is `--ckpt` if given, else the run's folder, else checkpoints/ of the reference code.

    Raises:
        UserError: When nothing is there, or not the step asked for.
    """
    from ..model.record import is_model

    place = Path(seed.ckpt) if seed.ckpt is not None else folder(seed)
    if is_model(place):
        return place, _stored_step(seed, place)
    if seed.ckpt is not None and place.is_file():
        return place, _named_step(seed, place)
    models = {int(path.parent.name): path for path in sorted((place / "steps").glob("[0-9]*/model"))}
    if seed.ckpt is not None and not models:
        raise UserError(f"--ckpt {place}: expected a model directory, a run folder, or the reference's .pth")
    pattern = f"{seed.model}_{seed.dataset}_{seed.task}_step_*_{seed.setting}.pth"
    if not models:
        models = {_step_in(path): path for path in Path("checkpoints").glob(pattern)}
    if not models:
        raise UserError(
            f"nothing to evaluate: there is neither a run in {place} nor checkpoints/{pattern}; "
            "train it first, or give --ckpt"
        )
    if "curr_step" not in seed.given:
        return models[max(models)], max(models)
    if seed.curr_step not in models:
        there = ", ".join(map(str, sorted(models)))
        raise UserError(
            f"--curr_step {seed.curr_step} is not in {models[max(models)].parent}; there is {there}"
            if models[max(models)].is_file()
            else f"--curr_step {seed.curr_step} is not in {place}; there is {there}"
        )
    return models[seed.curr_step], seed.curr_step


def _stored_step(seed: Seed, model: Path) -> int:
    from ..model.record import read_record

    step = int(read_record(model)["step"])
    if "curr_step" in seed.given and seed.curr_step != step:
        raise UserError(f"--curr_step {seed.curr_step}, but {model} is a model of step {step}")
    return step


def _step_in(path: Path) -> int:
    """The step in the name of a checkpoint of the reference code; -1 where there is none."""
    match = re.search(r"_step_(\d+)_", path.name)
    return int(match[1]) if match else -1


def _named_step(seed: Seed, path: Path) -> int:
    if "curr_step" in seed.given:
        return seed.curr_step
    if (step := _step_in(path)) < 0:
        raise UserError(f"--ckpt {path}: its name does not say which step it is of; add --curr_step")
    return step


def import_words(seed: Seed, source: Path, step: int, out: Path) -> list[str]:
    """Words behind `segrow import-ssul` that do what `import_file` does."""
    values = {
        "--task": seed.task,
        "--step": str(step),
        "--model": seed.model,
        "--dataset": seed.dataset,
        "--setting": seed.setting,
        "--output_stride": str(seed.output_stride),
        "--loss_type": seed.loss_type,
        "--crop_size": str(seed.crop_size),
        "--out": str(out),
    }
    flags = {"--separable_conv": seed.separable_conv and seed.plus, "--no_crop_val": not seed.crop_val}
    words = [word for pair in values.items() for word in pair]
    return [str(source), *words, *(flag for flag, on in flags.items() if on)]


def import_file(seed: Seed, source: Path, step: int, out: Path) -> None:
    """The reference code's checkpoint as a model directory.

    Raises:
        UserError: When it cannot be read, or does not fit the options.
    """
    from .import_ssul import main

    main(import_words(seed, source, step, out))


def report(results: Mapping[str, Any]) -> Table:
    """IoU and accuracy of every class after the last step, and the means that the reference code prints.

    *before* are the classes of the base step with background, *after* all others. A class without a pixel
    in the truth counts as 0 in both. Accuracy is the share of a class's pixels that are found.

    Args:
        results: results.json of a run, or what `evaluate_model` gives.
    """
    stored = results["steps"][-1]
    known = int(stored["known"])
    summary = summarise(results, DEFINITION)
    last = summary["steps"][-1]
    pixels = counts(stored["matrix"], known, "ignore")
    accuracy = pixels.intersection / np.maximum(pixels.truth, 1)
    unlabelled = set(results.get("unlabelled", ()))
    labelled = np.array([name not in unlabelled for name in results["classes"][:known]])
    base = int(results.get("base_known", results["steps"][0]["known"]))
    table = Table(title=f"step {stored['step']}, definition {DEFINITION}", caption=summary["rules"])
    table.caption_justify = "left"
    table.add_column("class")
    for heading in ("IoU %", "accuracy %"):
        table.add_column(heading, justify="right", no_wrap=True)

    def share(first: int, last: int) -> str:
        return _percent(_mean(accuracy[first:last], labelled[first:last]))

    for k, (name, value) in enumerate(last["per_class"].items()):
        table.add_row(name, _percent(value), share(k, k + 1), end_section=k + 1 == known)
    table.add_row(f"before: 0 to {base - 1}", _percent(last["old"]), share(0, base))
    table.add_row(
        f"after: {base} to {known - 1}" if known > base else "after",
        _percent(last["new"]),
        share(base, known),
    )
    table.add_row("all", _percent(last["all"]), share(0, known))
    overall = pixels.intersection.sum() / max(int(pixels.truth.sum()), 1)
    table.add_row("all pixels", "", _percent(overall))
    return table


def _mean(values: NDArray[np.float64], labelled: NDArray[np.bool_]) -> float | None:
    """Over the classes that the data label."""
    return float(values[labelled].mean()) if labelled.any() else None


def _percent(value: float | None) -> str:
    """Two decimals, as in the published tables."""
    return "n/a" if value is None else f"{100 * value:.2f}"
