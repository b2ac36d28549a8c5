"""Tables of results for the terminal and for Markdown. Every table names the definition it was counted by."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from ..errors import UserError, shown
from ..protocol import StepSummary, Summary
from ..terminal import stacked

Summaries = Sequence[tuple[str, Summary]]
"""(name of the run or its method, how it was counted), in the order of printing."""

NOT_COUNTED = "n/a"


class Row(NamedTuple):
    """One printed line; percentages with one decimal, or n/a."""

    step: str
    method: str
    old: str
    new: str
    all: str
    harmonic: str
    forgetting: str


def percent(value: float | None) -> str:
    """A fraction in 0..1 as a percentage with one decimal; n/a for None."""
    if value is None:
        return NOT_COUNTED
    text = f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text


def definition_of(summaries: Summaries) -> Summary:
    """The first summary, once it is sure that all are counted alike.

    Raises:
        UserError: There is no run, or the runs are counted differently (another definition, or a data set
            on which it counts differently): numbers that must not stand side by side.
    """
    rules = list(dict.fromkeys(summary["rules"] for _, summary in summaries))
    if not rules:
        raise UserError("got no run to show, expected at least one; name a run folder.")
    if len(rules) > 1:
        raise UserError(
            f"these runs are not counted in one way ({' / '.join(rules)}); show them in separate tables."
        )
    return summaries[0][1]


def n_steps(summaries: Summaries) -> int:
    """Number of steps of the longest run."""
    return max(len(summary["steps"]) for _, summary in summaries)


def rows(summaries: Summaries) -> list[list[Row]]:
    """The lines of a table, one group a step; runs that have not come so far are left out of it.

    Two last groups hold the mean of `all` over the steps, with and without step 0.
    """
    groups = [
        [_row(name, summary["steps"][step]) for name, summary in summaries if step < len(summary["steps"])]
        for step in range(n_steps(summaries))
    ]
    if len(groups) > 1:
        groups.append([_mean_row("mean", name, summary["average"]) for name, summary in summaries])
        groups.append(
            [_mean_row("mean 1+", name, summary["average_without_step0"]) for name, summary in summaries]
        )
    return groups


def results_table(summaries: Summaries) -> Table:
    """Old, new, all, harmonic mean and forgetting per step and method.

    Args:
        summaries: Runs counted by the same definition.

    Raises:
        UserError: They are not.
    """
    first = definition_of(summaries)
    table = Table(title=f"mIoU in %, definition {first['definition']}", caption_justify="left")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("method", overflow="fold")
    for heading in Row._fields[2:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in rows(summaries):
        for i, row in enumerate(group):
            step = row.step if i == 0 else ""
            table.add_row(step, row.method, *row[2:], end_section=i == len(group) - 1)
    table.caption = stacked(notes(summaries))
    return table


def as_markdown(summaries: Summaries) -> str:
    """The same table as Markdown, the definition above it, notes below; ends with a newline.

    Raises:
        UserError: The runs are not counted by the same definition.
    """
    first = definition_of(summaries)
    lines = [
        f"mIoU in %, definition `{first['definition']}`",
        "",
        "| " + " | ".join(Row._fields) + " |",
        "|---:|---|" + "---:|" * (len(Row._fields) - 2),
    ]
    for group in rows(summaries):
        lines += [_markdown_row(row) for row in group]
    below = (f"{markdown(note)}  " for note in notes(summaries))
    return "\n".join([*lines, "", *below]).rstrip() + "\n"


def notes(summaries: Summaries) -> list[str]:
    """What stands below a table: how it was counted, which classes had nothing to count, remarks on runs."""
    first = definition_of(summaries)
    lines = [first["rules"]]
    absent: dict[str, None] = {}
    for _, summary in summaries:
        absent |= dict.fromkeys(name for step in summary["steps"] for name in step["absent"])
    if absent:
        lines.append(f"in some step without a pixel in the truth: {', '.join(absent)}")
    by_remark: dict[str, list[str]] = {}  # what several runs share is said once
    for name, summary in summaries:
        for remark in summary["remarks"]:
            by_remark.setdefault(remark, []).append(name)
    return lines + [f"{', '.join(names)}: {remark}" for remark, names in by_remark.items()]


def _row(name: str, step: StepSummary) -> Row:
    numbers = (step["old"], step["new"], step["all"], step["harmonic"], step["forgetting"])
    return Row(str(step["step"]), name, *map(percent, numbers))


def _mean_row(label: str, name: str, value: float | None) -> Row:
    return Row(label, name, "", "", percent(value), "", "")


def per_class_rows(summaries: Summaries) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the IoU per class after each run's last step; the lines are classes."""
    names = list(dict.fromkeys(c for _, summary in summaries for c in summary["steps"][-1]["per_class"]))
    last = [summary["steps"][-1]["per_class"] for _, summary in summaries]
    header = ["class", *(name for name, _ in summaries)]
    return header, [[c, *(percent(values[c]) if c in values else "" for values in last)] for c in names]


COST_COLUMNS = (
    "run",
    "step",
    "images + exemplars",
    "updates",
    "training s",
    "evaluation s",
    "peak MiB",
    "trainable / all (M)",
    "stored MiB",
)


def cost_rows(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """What each step cost, from results.json by run name; a shared base step stands with its own run."""
    lines = []
    for name, results in runs:
        for step in results["steps"]:
            if step["from_base"]:
                continue
            cost = step["cost"]
            lines.append(
                [
                    name,
                    str(step["step"]),
                    f"{step['images']} + {step['exemplars']}",
                    str(cost["iterations"]),
                    f"{cost['train_s']:.0f}",
                    f"{cost['eval_s']:.0f}",
                    f"{cost['peak_memory_bytes'] / 2**20:.0f}",
                    f"{cost['trainable'] / 1e6:.2f} / {cost['parameters'] / 1e6:.2f}",
                    f"{cost['stored_bytes'] / 2**20:.1f}",
                ]
            )
    return lines


def plain_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal; all columns but the first are aligned right."""
    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify="right" if k else "left")
    for line in lines:
        table.add_row(*line)
    return table


def plain_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join([_markdown_row(header), f"| {' | '.join(rule)} |", *map(_markdown_row, lines)])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown, cells))} |"


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line; an underscore inside a word means nothing there."""
    return re.sub(r"[\\`*\[\]<>|$~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", shown(text))
