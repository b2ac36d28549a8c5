"""The figures of a report as files: PNG, SVG and CSV beside the page, for papers and for other programs."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..atomic import write_atomic
from .charts import axis_of, drift_series, drifts, miou_series
from .figures import LINES, MARKERS, legend, plain_figure, words
from .findings import DRIFTS, matrix_of
from .gallery import Gallery
from .runs import NUMBERS, Group, ReportRun, Spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL, _GAP = 200, 8  # pixels: width of a picture of the grid, space between two
_OF_A_RUN = re.compile(r"(iou|confusion|cost|pictures)(-.*)\.(png|svg|csv)")
_LONGEST = 60  # characters of a run's name in the name of a file, which has 255 bytes
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # what a spreadsheet computes when a cell begins with it
_NAMED_CELLS = 30  # more classes than this have no names on an axis
Numbered = Sequence[tuple[str, Sequence[Spread]]]


def export(
    folder: Path,
    groups: Sequence[Group],
    definition: str,
    galleries: Mapping[str, Gallery],
    chosen: Sequence[tuple[int, str]],
) -> None:
    """Write every figure of a report into a folder.

    Args:
        folder: Where they go; files of the same names are replaced, figures of runs that are not shown any
            more taken away.
        groups: The runs.
        definition: How they are counted; stands in the headings.
        galleries: By the name of a run, of those whose pictures are shown.
        chosen: Which of their images, and why.
    """
    _lines(folder / "miou", f"mIoU in %, definition {definition}", _miou_panels(groups))
    _csv(folder / "miou.csv", ("group", "runs", "step", "number", "mean", "std", "n"), _miou_rows(groups))
    _lines(
        folder / "drift", "drift, % of pixels", [(says, drift_series(groups, key)) for key, says in DRIFTS]
    )
    _csv(folder / "drift.csv", ("run", "step", *(key for key, _ in DRIFTS)), _drift_rows(groups))
    runs = [run for group in groups for run in group.runs]
    slugs = slugs_of([run.name for run in runs])
    for run, slug in zip(runs, slugs, strict=True):
        _iou(folder / f"iou-{slug}", run, definition)
        _confusions(folder / f"confusion-{slug}", run)
        _cost(folder / f"cost-{slug}", run)
        if run.name in galleries:
            _pictures(folder / f"pictures-{slug}", run, galleries[run.name], chosen)
    shown = {f"-{slug}".casefold() for slug in slugs}
    for path in folder.iterdir():
        if (of := _OF_A_RUN.fullmatch(path.name)) and of[2].casefold() not in shown:
            path.unlink()


def slugs_of(names: Sequence[str]) -> list[str]:
    """The names of runs as parts of file names, each another one."""
    slugs: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.()-]+", "_", name)[:_LONGEST]
        free = (f"{plain}_{k}" if k > 1 else plain for k in itertools.count(1))
        slugs.append(next(slug for slug in free if slug.casefold() not in map(str.casefold, slugs)))
    return slugs


# ---- files


@contextmanager
def _figure(stem: Path, inches: tuple[float, float]) -> "Iterator[Figure]":
    """A figure that is written as stem.png and stem.svg at the end."""
    from matplotlib import rc_context

    with plain_figure(inches) as figure, rc_context({"svg.hashsalt": "segrow", "svg.fonttype": "none"}):
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it was laid out once for both files; with "none" each is drawn twice
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
            write_atomic(stem.with_name(f"{stem.name}.{kind}"), buffer.getvalue())


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([_cell(name) for name in header])
    writer.writerows([[_cell(value) for value in row] for row in rows])
    write_atomic(path, buffer.getvalue().encode("utf-8", "backslashreplace"))


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: a `'` goes before a name that could be one.

    It also goes before a name that begins with `'`, so that whoever drops one has the name again.
    """
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# ---- curves


def _miou_panels(groups: Sequence[Group]) -> list[tuple[str, Numbered]]:
    return [(key, miou_series(groups, key)) for key in NUMBERS]


def _miou_rows(groups: Sequence[Group]) -> list[list[Any]]:
    return [
        [group.label, " ".join(run.name for run in group.runs), step, key, *group.at(step, key)]
        for group in groups
        for step in range(group.n_steps)
        for key in NUMBERS
    ]


def _drift_rows(groups: Sequence[Group]) -> list[list[Any]]:
    runs = [run for group in groups for run in group.runs]
    return [
        [run.name, step, *(vars(value)[key] for key, _ in DRIFTS)]
        for run in runs
        for step, value in enumerate(drifts(run))
    ]


def _lines(stem: Path, heading: str, panels: Sequence[tuple[str, Numbered]]) -> None:
    steps = max(len(values) for _, series in panels for _, values in series)
    lowest = 100 * min(axis_of(series).low for _, series in panels)
    with _figure(stem, (3.1 * len(panels), 3.3)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (title, series) in zip(axes, panels, strict=True):
            for i, (_, values) in enumerate(series):
                _line(panel, values, i)
            panel.set_title(title, fontsize=9)
            panel.set_xlabel("step")
            panel.set_xticks(range(0, steps, max(1, -(-steps // 8))))
            panel.set_xlim(-0.3, max(steps - 0.7, 0.3))
            panel.set_ylim(lowest, 100)
            panel.grid(axis="y", color="#dddddd", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
        names = [name for name, _ in panels[0][1]]
        legend(figure, axes[0].lines, names, ncols=min(len(names), 5))
        figure.suptitle(heading, fontsize=10)


def _line(panel: "Axes", values: Sequence[Spread], i: int) -> None:
    mean = np.array([np.nan if v.mean is None else 100 * v.mean for v in values])
    std = np.array([100 * (v.std or 0.0) for v in values])
    colour = LINES[i % len(LINES)]
    panel.plot(mean, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.6)
    if std.any():
        panel.fill_between(range(len(mean)), mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


# ---- one run


def _iou(stem: Path, run: ReportRun, definition: str) -> None:
    steps = run.summary["steps"]
    names = list(steps[-1]["per_class"])
    values = np.array([[_number(step["per_class"].get(name)) for step in steps] for name in names])
    with _figure(stem, (1.9 + 0.5 * len(steps), 0.9 + 0.21 * len(names))) as figure:
        axes = figure.subplots()
        drawn = axes.imshow(100 * values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(steps)))
        axes.set_yticks(range(len(names)), list(map(words, names)), fontsize=7)
        axes.set_xlabel("step")
        axes.set_title(f"IoU in %, definition {definition}", fontsize=9)
        figure.colorbar(drawn)
    rows = [[name, *(step["per_class"].get(name) for step in steps)] for name in names]
    _csv(stem.with_name(f"{stem.name}.csv"), ("class", *(f"step {step['step']}" for step in steps)), rows)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _confusions(stem: Path, run: ReportRun) -> None:
    """Matrices of every step side by side, rows divided by their sum; pixel counts in the CSV."""
    names: list[str] = list(run.results["classes"])
    records = run.records
    columns = min(4, len(records))
    lines = -(-len(records) // columns)
    side = 2.6 if len(names) <= _NAMED_CELLS else 3.4
    with _figure(stem, (side * columns + 1, side * lines + 0.4)) as figure:
        axes = figure.subplots(lines, columns, squeeze=False)
        for panel in axes.flat[len(records) :]:
            panel.set_axis_off()
        for record, panel in zip(records, axes.flat, strict=False):
            matrix = matrix_of(record).astype(float)
            matrix /= np.maximum(matrix.sum(1, keepdims=True), 1)
            panel.imshow(100 * matrix, vmin=0, vmax=100, cmap="magma_r", aspect="auto")
            panel.axhline(int(record["known"]) - 0.5, color="#888888", linewidth=0.8)
            panel.set_title(f"step {record['step']}", fontsize=8)
            panel.tick_params(labelsize=5)
            if len(names) <= _NAMED_CELLS:
                panel.set_yticks(range(len(names)), list(map(words, names)))
                panel.set_xticks(
                    range(matrix.shape[1]), list(map(words, names[: matrix.shape[1]])), rotation=90
                )
        figure.suptitle("true class (rows, below the line not learnt yet) taken for (columns), %", fontsize=9)
    rows = [
        [record["step"], names[truth], names[got], int(count)]
        for record in records
        for truth, line in enumerate(record["matrix"])
        for got, count in enumerate(line)
        if count
    ]
    _csv(stem.with_name(f"{stem.name}.csv"), ("step", "true", "predicted", "pixels"), rows)


COSTS: tuple[tuple[str, str, float], ...] = (
    ("train_s", "training, s", 1),
    ("eval_s", "evaluation, s", 1),
    ("peak_memory_bytes", "peak memory, MiB", 2**20),
    ("parameters", "parameters, M", 1e6),
    ("stored_bytes", "stored, MiB", 2**20),
)


def _cost(stem: Path, run: ReportRun) -> None:
    with _figure(stem, (2.4 * len(COSTS), 2.4)) as figure:
        for panel, (key, says, unit) in zip(figure.subplots(1, len(COSTS)), COSTS, strict=True):
            panel.bar(range(len(run.records)), [_scaled(record, key, unit) for record in run.records])
            panel.set_title(says, fontsize=9)
            panel.set_xlabel("step")
            panel.spines[["top", "right"]].set_visible(False)
    keys = [key for key, _, _ in COSTS] + ["trainable", "iterations"]
    rows = [
        [r["step"], r["images"], r["exemplars"], bool(r["from_base"]), *(r["cost"].get(k) for k in keys)]
        for r in run.records
    ]
    header = ("step", "images", "exemplars", "shared", *keys)
    _csv(stem.with_name(f"{stem.name}.csv"), header, rows)


def _scaled(record: dict[str, Any], key: str, unit: float) -> float:
    value = record["cost"].get(key)
    return float("nan") if value is None else value / unit


# ---- pictures


def _pictures(stem: Path, run: ReportRun, gallery: Gallery, chosen: Sequence[tuple[int, str]]) -> None:
    """The grid of one run: image, truth, prediction and unknown map after each step; the scores as CSV."""
    from matplotlib.patches import Patch

    steps = len(run.records)
    columns = ["image", "truth", *(f"step {step}" for step in range(steps))]
    grid = _montage([row for k, _ in chosen for row in _rows(gallery, k, steps)])
    with _figure(stem, (1.3 * len(columns), 1.3 * len(columns) * grid.height / grid.width + 0.9)) as figure:
        axes = figure.subplots()
        axes.imshow(grid, interpolation="none")
        width = grid.width / len(columns)
        axes.set_xticks([width * (k + 0.5) for k in range(len(columns))], columns, fontsize=8)
        axes.set_yticks([])
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.spines[:].set_visible(False)
        names = run.results["classes"]
        palette = np.array(gallery.palette) / 255
        if len(names) <= _NAMED_CELLS:
            patches = [Patch(color=palette[c]) for c in range(1, len(names))]
            legend(figure, patches, names[1:], ncols=8, fontsize=7)
    rows = [
        [k in dict(chosen), image_id, *(row[k] for row in gallery.scores)]
        for k, image_id in enumerate(gallery.images)
    ]
    _csv(stem.with_name(f"{stem.name}.csv"), ("shown", "image", *(f"step {s}" for s in range(steps))), rows)


def _rows(gallery: Gallery, k: int, steps: int) -> list[list[Image.Image]]:
    """Image, truth and predictions; below them the unknown maps."""
    photo = _open(gallery.photo(k), "RGBA")
    layers = [gallery.truth(k), *(gallery.labels(step, k) for step in range(steps))]
    painted = [Image.alpha_composite(photo, _open(layer, "RGBA")) for layer in layers]
    blank = Image.new("RGB", photo.size, "white")
    unknown = [_open(gallery.unknown(step, k), "RGB") for step in range(steps)]
    return [[photo, *painted], [blank, blank, *unknown]]


def _montage(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows, all of one width, on white."""
    heights = [round(_CELL * row[0].height / row[0].width) for row in rows]
    grid = Image.new("RGB", ((_CELL + _GAP) * len(rows[0]), sum(heights) + _GAP * len(rows)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            place = (column * (_CELL + _GAP) + _GAP // 2, top + _GAP // 2)
            grid.paste(picture.convert("RGB").resize((_CELL, height), Image.Resampling.LANCZOS), place)
        top += height + _GAP
    return grid


def _open(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert(mode)
