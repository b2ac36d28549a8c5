"""`segrow reproduce`."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import UserError, near
from ..protocol import Summary, summarise
from ..recipes import NOT_PUBLISHED, Cell, cell, cells, files, merge, notes, read_recipe, references
from ..terminal import Terminal
from ..wording import are, count
from .options import RunOptions, parse_run
from .pages import finish_page, write_page
from .remarks import all_settings, differing, reference_lines, remarks

EXAMPLE = "segrow reproduce voc-15-1-ssul-m --data.root VOCdevkit/VOC2012"
DESCRIPTION = (
    "Train a recipe of the published tables (segrow recipes lists them), count it as its paper does, and "
    "print measured beside published. The same command again continues. Takes every option of segrow train."
)
QUICK_REMARK = "quick: a shortened run on a tiny network, not comparable with any published number"
BATCH = 4  # images that every step of the tiny data has


def main(argv: Sequence[str]) -> int:
    """Train, evaluate, compare."""
    name = argv[0] if argv else ""
    if name.startswith("-") and {"-h", "--help"} & set(argv):
        parse_run(["--help"], "reproduce", DESCRIPTION, EXAMPLE, cells()[0].name)
    chosen = _find(name)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--quick", action="store_true")
    early.add_argument("--json", action="store_true")
    flags, rest = early.parse_known_args(list(argv[1:]))
    for flag in (word.partition("=")[0] for word in rest):
        if flag in ("--recipe", "--method"):
            raise UserError(f"{flag}: the recipe {name} says it; use another recipe, or segrow train")
    shorten = _shortened(chosen) if flags.quick else {}
    options = parse_run(rest, "reproduce", DESCRIPTION, EXAMPLE, name, shorten)
    _check(chosen, options)
    return _run(chosen, options, flags.quick, flags.json)


def _find(name: str) -> Cell:
    """The recipe that a command line begins with.

    Raises:
        UserError: When there is none.
    """
    found = cell(name)
    if found:
        return found
    if name in files():
        raise UserError(f"recipe {name} has no published number; use segrow train --recipe {name}")
    if not name or name.startswith("-"):
        got = name or "nothing"
        raise UserError(f"expected the name of a recipe first, got {got}; `segrow recipes` lists them")
    names = [found.name for found in cells()]
    raise UserError(f'no recipe "{name}"; `segrow recipes` lists all.{near(name, names)}')


def _check(chosen: Cell, options: RunOptions) -> None:
    """What makes the recipe cannot be changed.

    Raises:
        UserError: Saying what was.
    """
    fixed = {"task": chosen.task, "setting": chosen.setting, "data": {"name": chosen.data}}
    changed = differing(options, {**fixed, "method": {"name": chosen.method}})
    if changed:
        raise UserError(f"recipe {chosen.name}, but {changed[0]}; use another recipe, or segrow train")


def _shortened(chosen: Cell) -> dict[str, Any]:
    """Options of --quick: two steps of one epoch, a network without pretrained weights, small crops."""
    memory = read_recipe(chosen.name).get("memory", {}).get("size", 0)
    return {
        "steps": 2,
        "model": {"name": "deeplabv3_test_resnet", "weights": "none", "width": 8},
        "memory": {"size": min(memory, 8)},
        # 64: local POD wants maps of 4 x 4 pixels at output stride 16
        "train": {"epochs": 1, "step0_epochs": 1, "batch_size": BATCH, "crop": 64, "workers": 0},
    }


def _run(chosen: Cell, options: RunOptions, quick: bool, as_json: bool) -> int:
    from ..engine.records import AS_OURS, SHARED
    from ..engine.run import train
    from ..engine.setup import is_first_process

    out = options.out or Path("runs") / (f"{chosen.name}-quick" if quick else chosen.name)
    config, run = options.config, out
    if quick and config.data.root is None:
        from ..data.tiny import compose

        run = out / "run"
        root = compose(_make(out / "data") / chosen.data, chosen.data)
        config = replace(config, data=replace(config.data, root=str(root)))
    said = comments(chosen, options, quick)
    console = Terminal(stderr=as_json)
    if is_first_process():
        for line in reference_lines(options):
            console.say(line)
    try:
        draw = partial(write_page, run, options.method) if options.report and not quick else None
        results = train(config, options.method, run, options.base, said, draw, options.strict)
    except UserError:
        if run != out and is_first_process() and not run.exists():  # refused before it began
            shutil.rmtree(out / "data", ignore_errors=True)
            if not any(out.iterdir()):
                out.rmdir()
        raise
    if not is_first_process():
        return 0
    if draw:
        finish_page(run, options.method, console.say)
    summary = summarise(results, chosen.definition)
    done, steps = len(summary["steps"]), _n_steps(results)
    if done < steps and not quick:
        summary["remarks"].append(f"{done} of {count(steps, 'step')} {are(done)} done: not comparable yet")
    foreign = [line for line in results["remarks"] if line.startswith(SHARED) and not line.endswith(AS_OURS)]
    comparable = done == steps and not quick and not foreign
    if as_json:
        print(json.dumps(compared(chosen, summary, comparable)))
        return 0
    title = f"{chosen.name}: mIoU in %, definition {summary['definition']}"
    console.say(title if comparable else f"{title} (not comparable)")
    console.print(comparison(chosen, summary, comparable))
    source = [] if chosen.published is None else [f"published: {chosen.source}"]
    for line in [f"counted as {summary['rules']}", *source, *summary["remarks"]]:
        console.say(f"- {line}")
    console.say(f"run folder: {run}")
    return 0


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); use another --out") from None
    return folder


def _n_steps(results: Mapping[str, Any]) -> int:
    """Number of steps of the whole task."""
    base, increment = map(int, str(results["task"]).split("_")[0].split("-"))
    return 1 + (len(results["classes"]) - 1 - base) // increment


def comments(chosen: Cell, options: RunOptions, quick: bool) -> tuple[str, ...]:
    """All that stands between a measured and the published number, sentences for results.json."""
    config = options.config
    found = [QUICK_REMARK] if quick else []
    # what --quick shortens is no news; everything else that differs from the recipe is
    found += remarks(options, {} if quick else _whole(chosen.name))
    for reference in references(options.method.name, chosen.data, chosen.task, config.memory.size > 0):
        if reference.otherwise and differing(options, reference.set):
            found.append(reference.otherwise)
    found += notes(chosen.row, chosen.data, chosen.task, config.memory.size > 0)
    return tuple(found)


def _whole(name: str) -> dict[str, Any]:
    """Every option that a recipe sets, or leaves as it is, and that changes what is learnt or counted."""
    plain = all_settings(parse_run([], "reproduce", "", "", name))
    where = {"train": ("device", "devices", "workers", "val_batch_size", "channels_last", "log_every")}
    for group, names in {**where, "data": ("root", "scenes")}.items():
        for word in names:
            del plain[group][word]
    del plain["steps"]  # a run that has not come to its end is not compared
    return merge(plain, read_recipe(name))  # also what this machine cannot do, such as float16


def compared(chosen: Cell, summary: Summary, comparable: bool) -> dict[str, Any]:
    """The comparison as plain values; mIoU in %.

    Args:
        comparable: Whether a difference may be formed.
    """
    measured, difference = _percent(summary["steps"][-1]["all"]), None
    if comparable and measured is not None and chosen.published is not None:
        difference = measured - chosen.published
    return {
        "recipe": chosen.name,
        "definition": summary["definition"],
        "rules": summary["rules"],
        "steps": len(summary["steps"]),
        "published": chosen.published,
        "source": chosen.source if chosen.published is not None else None,
        "measured": measured,
        "difference": difference,
        "comparable": comparable,
        "remarks": summary["remarks"],
    }


def comparison(chosen: Cell, summary: Summary, comparable: bool) -> Table:
    """Measured beside published, for the terminal."""
    values = compared(chosen, summary, comparable)
    table = Table()
    table.add_column("after the last step" if comparable else f"after step {summary['steps'][-1]['step']}")
    for heading in ("published", "measured", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = summary["steps"][-1]
    table.add_row("old", "", _number(_percent(last["old"])), "")
    table.add_row("new", "", _number(_percent(last["new"])), "")
    published = NOT_PUBLISHED if chosen.published is None else _number(chosen.published)
    difference = values["difference"]
    shown = "" if difference is None else f"{difference:+.2f}"
    table.add_row("all", published, _number(values["measured"]), shown if comparable else "not comparable")
    return table


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
