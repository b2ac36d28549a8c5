"""One self-contained HTML file about one run or many: numbers, curves, confusion, pictures, cost.

write_report([Path("runs/ssul"), Path("runs/mib")], Path("compare.html"))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import locked, write_atomic
from ..errors import UserError
from ..methods.base import Method
from ..resources import machine_refuses
from .charts import Chart, axis_of, drift_series, line_chart, miou_series
from .export import export
from .findings import DRIFTS, Warned, warnings
from .gallery import POOL, SHOWN, Gallery, choose, stored_gallery, update_gallery
from .runs import NUMBERS, Group, Number, ReportRun, Spread, group_runs, published, read_runs, tested_on
from .tables import NOT_COUNTED, definition_of, notes, percent, rows
from .template import fill
from .views import COST_HEADINGS, LAST, legend, run_view, shots

_HEADINGS: dict[Number, str] = {
    "all": "all known classes",
    "old": "classes of the base step",
    "new": "classes learnt since",
    "forgetting": "forgetting",
}


@dataclass(frozen=True)
class Pictures:
    """What could be drawn.

    Attributes:
        galleries: By the name of the run.
        problems: A sentence for each run without pictures, or with older ones.
    """

    galleries: dict[str, Gallery] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write_report(
    folders: Sequence[Path],
    out: Path,
    definition: str = "ssul",
    *,
    root: str | None = None,
    pool: int = POOL,
    allow_code: bool = False,
    trusted: Method | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the page, and its figures as PNG, SVG and CSV in a folder beside it.

    Args:
        folders: Run folders, in the order of display.
        out: The .html file; it appears whole or not at all.
        definition: How results are counted, a key of `protocol.DEFINITIONS`.
        root: The data set's folder, where it is not the one the runs were trained with.
        pool: Validation images among which the shown ones are chosen; 0 = no pictures.
        allow_code: Import methods from outside segrow.
        trusted: A method that is in use already, so its code need not be allowed.
        device: Where pictures are predicted, cpu or cuda; None: a GPU if there is one.
        say: Gets a line for each step whose pictures are drawn, and for each run without pictures or with
            older ones.

    Returns:
        The folder of figures.

    Raises:
        UserError: A folder is no run, or the runs are not counted in one way.
        OSError: The disk is full, or too many files are open.
    """
    runs = read_runs(folders, definition)
    definition_of([(run.name, run.summary) for run in runs])
    groups = group_runs(runs)
    pictures = Pictures(problems=["pictures were not asked for"]) if not pool else Pictures()
    for run in shown_runs(groups) if pool else ():
        _draw(run, root, pool, allow_code, trusted, device, say, pictures)
    same, chosen = _chosen(pictures, shown_runs(groups))
    if say and pool:
        for problem in pictures.problems:
            say(f"pictures: {problem}")
    try:
        figures = out.with_name(f"{out.stem}_figures")
        with locked(figures, "segrow report"):
            export(figures, groups, definition, same, chosen)
            text = render(groups, definition, pictures, same, chosen, figures.name)
            write_atomic(out, text.encode())
    except OSError as error:
        if machine_refuses(error):  # such as a full disk
            raise
        raise UserError(f"{out} cannot be written ({error.strerror or error}); use another --out") from None
    return figures


def shown_runs(groups: Sequence[Group]) -> list[ReportRun]:
    """The runs whose pictures are shown: of several seeds the first."""
    return [group.runs[0] for group in groups]


def _draw(
    run: ReportRun,
    root: str | None,
    pool: int,
    allow_code: bool,
    trusted: Method | None,
    device: str | None,
    say: Callable[[str], None] | None,
    pictures: Pictures,
) -> None:
    """Bring a run's pictures up to date, or take those of an earlier report."""
    try:
        pictures.galleries[run.name] = update_gallery(run, root, pool, allow_code, trusted, device, say)
        return
    except UserError as error:
        problem = f"{run.name}: {error}"
    except OSError as error:  # a folder that may be read only
        if machine_refuses(error):
            raise
        problem = f"{run.name}: pictures cannot be kept ({error})"
    try:
        pictures.galleries[run.name] = stored_gallery(run)
        problem += "; its pictures are those of an earlier report"
    except UserError:
        problem += "; so there are no pictures of it"
    pictures.problems.append(problem)


def _chosen(
    pictures: Pictures, runs: Sequence[ReportRun]
) -> tuple[dict[str, Gallery], list[tuple[int, str]]]:
    """Runs that can be compared on the same images, and which images; the others are named as problems."""
    first = next((pictures.galleries[run.name] for run in runs if run.name in pictures.galleries), None)
    if first is None:
        return {}, []
    same = {name: g for name, g in pictures.galleries.items() if g.images == first.images}
    pictures.problems.extend(
        f"{name}: its pictures are of other images, so they are not shown beside these"
        for name in pictures.galleries
        if name not in same
    )
    steps = max(len(g.scores) for g in same.values())
    scores = [
        [
            _mean([g.scores[min(step, len(g.scores) - 1)][k] for g in same.values()])
            for k in range(len(first.images))
        ]
        for step in range(steps)
    ]
    return same, choose(scores, SHOWN)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def render(
    groups: Sequence[Group],
    definition: str,
    pictures: Pictures,
    galleries: Mapping[str, Gallery],
    chosen: Sequence[tuple[int, str]],
    figures: str,
) -> str:
    """The page as text.

    Args:
        groups: The runs.
        definition: How they are counted.
        pictures: For its problems.
        galleries: Pictures of the runs that are shown, by name; all of the same images.
        chosen: Which of these images, and why.
        figures: Name of the folder of figures beside the page.
    """
    runs = [run for group in groups for run in group.runs]
    steps = max(len(run.records) for run in runs)
    gallery = next(iter(galleries.values()), None)
    return fill(
        "report.html",
        title=_title(runs),
        version=__version__,
        rules=definition_of([(run.name, run.summary) for run in runs])["rules"],
        definition=definition,
        notes=notes([(run.name, run.summary) for run in runs]),
        headline=[_headline(group) for group in groups],
        full=rows([(run.name, run.summary) for run in runs]),
        averaged=[(g.label, [run.name for run in g.runs]) for g in groups if len(g.runs) > 1],
        published=_published(groups, definition),
        warned=_warned(runs),
        charts=_miou_charts(groups, steps),
        drifts=_drift_charts(groups, steps),
        runs=[run_view(index, run, galleries.get(run.name)) for index, run in enumerate(runs)],
        steps=steps,
        last=LAST,
        cost_headings=COST_HEADINGS,
        shots=shots(runs, galleries, chosen),
        problems=pictures.problems,
        looked_at=None if gallery is None else (len(gallery.images), gallery.of),
        legend=legend(runs, galleries),
        figures=figures,
    )


def _title(runs: Sequence[ReportRun]) -> str:
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


def _warned(runs: Sequence[ReportRun]) -> list[tuple[Warned, list[str]]]:
    """Each warning once, with the runs that it is about."""
    found: dict[Warned, list[str]] = {}
    for run in runs:
        for warned in warnings(run.results, run.summary):
            found.setdefault(warned, []).append(run.name)
        if tested_on(run) != tested_on(runs[0]):
            text = f"tested on {tested_on(run)[0]} images that are not those of {runs[0].name}"
            warned = Warned("other images", f"{text}: not comparable")
            found.setdefault(warned, []).append(run.name)
        if set(run.results["classes"]) != set(runs[0].results["classes"]):
            warned = Warned("other classes", f"learns other classes than {runs[0].name}: not comparable")
            found.setdefault(warned, []).append(run.name)
    return list(found.items())


def measured(value: Spread) -> str:
    """`71.4`, or over several runs `71.4 ± 0.3`; n/a where nothing can be counted."""
    if value.std is None:
        return percent(value.mean)
    return f"{percent(value.mean)} ± {percent(value.std)}"


def _headline(group: Group) -> dict[str, Any]:
    last = group.n_steps - 1
    done = {len(run.records) for run in group.runs}
    return {
        "label": group.label,
        "step": str(last),
        "cells": [(key, measured(group.at(last, key))) for key in NUMBERS],
        "average": measured(group.average()) if len(done) == 1 else NOT_COUNTED,
    }


def _published(groups: Sequence[Group], definition: str) -> list[dict[str, str]]:
    """For each group whose experiment is in the published tables: the number, and how it compares."""
    found = []
    for group in groups:
        cell, *others = (published(run) for run in group.runs)
        if cell is None or cell.published is None or any(other != cell for other in others):
            continue
        remark = ""
        if not all(run.finished for run in group.runs):
            remark = "after the last step, which is not reached here"
        elif cell.definition != definition:
            remark = f"counted as {cell.definition}, so not comparable with the numbers of this page"
        found.append(
            {
                "label": group.label,
                "value": f"{cell.published:.1f}",
                "definition": cell.definition,
                "source": cell.source,
                "remark": remark,
                "recipe": cell.name,
            }
        )
    return found


def _miou_charts(groups: Sequence[Group], steps: int) -> list[Chart]:
    series = {key: miou_series(groups, key) for key in _HEADINGS}
    together = axis_of(series["all"], series["old"], series["new"])  # these are compared with each other
    return [
        line_chart(heading, series[key], steps, axis_of(series[key]) if key == "forgetting" else together)
        for key, heading in _HEADINGS.items()
    ]


def _drift_charts(groups: Sequence[Group], steps: int) -> list[Chart]:
    series = {heading: drift_series(groups, key) for key, heading in DRIFTS}
    return [line_chart(heading, values, steps, axis_of(values)) for heading, values in series.items()]
