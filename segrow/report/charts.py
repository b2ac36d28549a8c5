"""Charts of the page as numbers that its template draws: lines with bands, and cells of a heat map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .findings import Drift, drift
from .runs import Group, Number, ReportRun, Spread, spread
from .tables import percent

WIDTH, HEIGHT = 360, 240  # of a chart's own coordinates, which scale with the page
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 30
COLOURS = 7  # of lines; they and the shapes of the marks repeat after that

# dark blue - green - yellow, lightness grows evenly (anchors of matplotlib's viridis)
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


class Mark(NamedTuple):
    """A point of a line, and what it says when pointed at."""

    x: float
    y: float
    says: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        colour: Index of its colour.
        paths: Points of each unbroken part ("x,y x,y"); where nothing can be counted there is a gap.
        bands: Outlines of mean ± standard deviation, a part each; empty for single runs.
        marks: Every point.
    """

    name: str
    colour: int
    paths: tuple[str, ...]
    bands: tuple[str, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """A chart: heading, where its axes are labelled, and its lines."""

    heading: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


class Cell(NamedTuple):
    """A cell of a heat map: its text, colours of ground and text, and whether the step teaches the class."""

    text: str
    ground: str
    ink: str
    taught: bool


class Axis(NamedTuple):
    """Ends of a y axis, as fractions."""

    low: float
    high: float


WHOLE = Axis(0.0, 1.0)
Series = Sequence[tuple[str, Sequence[Spread]]]


def line_chart(heading: str, series: Series, n_steps: int, axis: Axis = WHOLE) -> Chart:
    """Fractions per step as lines.

    Args:
        heading: Of the chart.
        series: Name of each line, and mean and deviation after each step.
        n_steps: Steps on the x axis.
        axis: Ends of the y axis.
    """
    every = max(1, -(-n_steps // 12))
    x_ticks = tuple((_x(step, n_steps), str(step)) for step in range(0, n_steps, every))
    values_at = [axis.low + (axis.high - axis.low) * k / 4 for k in range(5)]
    y_ticks = tuple((_y(value, axis), f"{round(100 * value, 6):g}") for value in values_at)
    lines = tuple(
        _line(name, index % COLOURS, values, n_steps, axis) for index, (name, values) in enumerate(series)
    )
    return Chart(heading, x_ticks, y_ticks, lines)


def axis_of(*every: Series) -> Axis:
    """From 0 to a round fraction that all stay under; where values are below 0, four equal intervals around
    it, the smallest round ones that hold them."""
    spreads = [v for series in every for _, values in series for v in values]
    there = [(v.mean, v.std or 0.0) for v in spreads if v.mean is not None]
    highest = max((mean + std for mean, std in there), default=0.0)
    if all(mean >= 0 for mean, _ in there):
        return Axis(0.0, _round(highest))
    lowest = min(mean - std for mean, std in there)
    for interval in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        below = math.ceil(-lowest / interval)
        fits = below + math.ceil(max(highest, 0.0) / interval) <= 4
        if fits and max(below, 4 - below) * interval <= 1:
            return Axis(-below * interval, (4 - below) * interval)
    return Axis(-1.0, 1.0)


def _round(value: float) -> float:
    """The least of a few round fractions that is not below it."""
    return next((fraction for fraction in (0.08, 0.2, 0.4, 0.6, 0.8) if value <= fraction), 1.0)


def _x(step: int, n_steps: int) -> float:
    inside = WIDTH - LEFT - RIGHT
    share = 0.5 if n_steps == 1 else 0.03 + 0.94 * step / (n_steps - 1)
    return round(LEFT + inside * share, 2)


def _y(value: float, axis: Axis) -> float:
    share = (value - axis.low) / (axis.high - axis.low)
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(share, 0.0), 1.0)), 2)


def _line(name: str, colour: int, values: Sequence[Spread], n_steps: int, axis: Axis) -> Line:
    parts: list[list[tuple[int, float, float]]] = [[]]
    marks = []
    for step, (mean, std, _) in enumerate(values):
        if mean is None:
            parts.append([])
            continue
        parts[-1].append((step, mean, std or 0.0))
        says = f"{name}, step {step}: {percent(mean)} %"
        marks.append(
            Mark(_x(step, n_steps), _y(mean, axis), says if std is None else f"{says} ± {percent(std)}")
        )
    parts = [part for part in parts if part]
    deviates = any(std is not None for _, std, _ in values)
    paths = tuple(" ".join(f"{_x(s, n_steps)},{_y(mean, axis)}" for s, mean, _ in part) for part in parts)
    bands = tuple(_band(part, n_steps, axis) for part in parts if deviates)
    return Line(name, colour, paths, bands, tuple(marks))


def _band(part: Sequence[tuple[int, float, float]], n_steps: int, axis: Axis) -> str:
    above = [f"{_x(s, n_steps)},{_y(mean + std, axis)}" for s, mean, std in part]
    below = [f"{_x(s, n_steps)},{_y(mean - std, axis)}" for s, mean, std in reversed(part)]
    return " ".join(above + below)


def miou_series(groups: Sequence[Group], key: Number) -> list[tuple[str, list[Spread]]]:
    """One of the summary's numbers after each step that all runs of a group have done."""
    return [(group.label, [group.at(step, key) for step in range(group.n_steps)]) for group in groups]


def drift_series(groups: Sequence[Group], key: str) -> list[tuple[str, list[Spread]]]:
    """One kind of drift after each step.

    Args:
        key: A field of `findings.Drift`.
    """
    return [
        (
            group.label,
            [spread([vars(drifts(run)[step])[key] for run in group.runs]) for step in _steps(group)],
        )
        for group in groups
    ]


def _steps(group: Group) -> range:
    return range(group.n_steps)


def drifts(run: ReportRun) -> list[Drift]:
    """The drift after each step of a run."""
    learnt = [1, *(int(record["known"]) for record in run.records)]
    return [drift(record, before) for record, before in zip(run.records, learnt, strict=False)]


def heat_map(run: ReportRun) -> list[tuple[str, list[Cell]]]:
    """Each class with a cell a step: its IoU by the definition, empty before it is learnt."""
    names = run.summary["steps"][-1]["per_class"]
    taught = {name: record["step"] for record in run.records for name in record["classes"]}
    lines = []
    for name in names:
        cells = []
        for step in run.summary["steps"]:
            if name not in step["per_class"]:
                cells.append(Cell("", "transparent", "inherit", False))
                continue
            value = step["per_class"][name]
            ground, ink = ("transparent", "inherit") if value is None else colours(value)
            cells.append(Cell(percent(value), ground, ink, taught.get(name) == step["step"]))
        lines.append((name, cells))
    return lines


def colours(value: float) -> tuple[str, str]:
    """Ground and text colour of a fraction: light text on dark, dark on light."""
    place = min(max(value, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    part = place - low
    rgb = [round(a + (b - a) * part) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True)]
    light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) > 110
    return f"rgb({rgb[0]} {rgb[1]} {rgb[2]})", "#111" if light else "#fff"
