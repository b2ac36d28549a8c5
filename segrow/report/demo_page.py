"""One self-contained HTML page about a few runs: numbers, curves, pictures, cost. Needs no network."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import write_atomic
from ..protocol import Summary
from .tables import Summaries, n_steps, notes, percent, rows
from .template import fill

Results = Mapping[str, Mapping[str, Any]]
"""results.json of each run, by the name its summary has."""


def write_page(
    path: Path, title: str, summaries: Summaries, results: Results, figures: Mapping[str, Path], command: str
) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        path: The .html file.
        title: Heading of the page.
        summaries: (name, counted results) of each run, all by the same definition, in order of display.
        results: What the runs stored, by the same names.
        figures: Caption -> PNG or JPEG file, in order; they are embedded.
        command: The command line that makes this page again.

    Raises:
        UserError: The runs are not counted by the same definition.
        KeyError: A summary has no results of its name.
    """
    names = [name for name, _ in summaries]
    text = fill(
        "page.html",
        title=title,
        command=command,
        version=__version__,
        notes=notes(summaries),
        names=names,
        facts=_facts([results[name] for name in names]),
        headline=_headline(summaries),
        full=rows(summaries),
        classes=_per_class(summaries),
        costs=_costs({name: results[name] for name in names}),
        figures=[(caption, _embedded(file)) for caption, file in figures.items()],
    )
    write_atomic(path, text.encode())


def _embedded(file: Path) -> str:
    kind = "jpeg" if file.suffix.lower() in {".jpg", ".jpeg"} else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"


def _facts(stored: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was run: (label, value); values that differ between runs stand side by side."""

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(one[key]) for one in stored))

    longest = max(stored, key=lambda one: len(one["steps"]))
    facts = [
        ("data", each("data")),
        ("task", each("task")),
        ("setting", each("setting")),
        ("methods", each("method")),
        ("seed", each("seed")),
    ]
    for step in longest["steps"]:
        taught = ", ".join(step["classes"])
        facts.append((f"step {step['step']}", f"{taught} ({step['images']} images)"))
    evaluation = longest["evaluation"]
    size = f"centre crop of {evaluation['crop']} pixels" if evaluation["crop_val"] else "whole images"
    facts.append(("tested on", f"{evaluation['images']} images, {size}"))
    return facts


def _headline(summaries: Summaries) -> list[tuple[str, list[str]]]:
    """(label, one cell a method): `all` at each step, then what the last step of each run came to."""
    lines = []
    for step in range(n_steps(summaries)):
        cells = [_all_at(summary, step) for _, summary in summaries]
        lines.append((f"all, step {step}", cells))
    last = [summary["steps"][-1] for _, summary in summaries]
    lines.append(("old, last step", [percent(step["old"]) for step in last]))
    lines.append(("new, last step", [percent(step["new"]) for step in last]))
    lines.append(("forgetting", [percent(step["forgetting"]) for step in last]))
    return lines


def _all_at(summary: Summary, step: int) -> str:
    return percent(summary["steps"][step]["all"]) if step < len(summary["steps"]) else "–"


def _per_class(summaries: Summaries) -> list[tuple[str, list[tuple[str, str]]]]:
    """(class, for each method its IoU at the last step and the drop from its best)."""
    names = dict.fromkeys(name for _, s in summaries for name in s["steps"][-1]["per_class"])
    lines = []
    for name in names:
        cells = []
        for _, summary in summaries:
            values, drops = summary["steps"][-1]["per_class"], summary["forgetting_per_class"]
            value = percent(values[name]) if name in values else "–"
            cells.append((value, percent(drops[name]) if name in drops else "–"))
        lines.append((name, cells))
    return lines


def _costs(results: Results) -> list[list[tuple[str, str, str, str, str, str]]]:
    """One group a step, one line a run: step, method, seconds of training and evaluation, parameters."""
    groups = []
    for index in range(max(len(stored["steps"]) for stored in results.values())):
        group = []
        for name, stored in results.items():
            if index < len(stored["steps"]):
                step = stored["steps"][index]
                group.append((str(index), name, *_cost(step["cost"], step["from_base"])))
        groups.append(group)
    return groups


def _cost(cost: Mapping[str, Any], from_base: str | None) -> tuple[str, str, str, str]:
    """A base step taken from another run cost this run no training."""
    train = "shared" if from_base else _number(cost["train_s"], ".1f")
    return (
        train,
        _number(cost["eval_s"], ".1f"),
        _number(cost["trainable"], ",d"),
        _number(cost["parameters"], ",d"),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
