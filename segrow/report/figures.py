"""Pictures of results: overlays (numpy), curves per step and grids of predictions (matplotlib, PNG)."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len, set_cell_size

from ..atomic import write_atomic
from ..errors import shown
from ..palette import voc_palette
from .tables import Summaries, definition_of, n_steps

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[Any]

# Okabe and Ito's colours: told apart with any colour vision; shapes repeat the difference in grey
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CELL = 1.55  # inches: width of one picture of the grid
_LONGEST = 24  # columns of a name in a figure; the CSV beside it and the page hold all of it
_PANELS: tuple[Literal["all", "old", "new"], ...] = ("all", "old", "new")


@dataclass(frozen=True)
class Example:
    """One image of a qualitative grid.

    Attributes:
        image: uint8 H W 3.
        truth: H W class indices; negative = void.
        predictions: For each method one H W label map a step, in order.
    """

    image: Image
    truth: Labels
    predictions: Mapping[str, Sequence[Labels]]


def outline(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label, and that neighbour: bool H W."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        low = [slice(None), slice(None)]
        high = [slice(None), slice(None)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        change = labels[tuple(low)] != labels[tuple(high)]
        edge[tuple(low)] |= change
        edge[tuple(high)] |= change
    return edge


def overlay(image: Image, labels: Labels, palette: Image, alpha: float = 0.55) -> Image:
    """An image with its labels painted over: a tint, and the full colour along the outlines.

    Background and void (negative) stay as they are, so that what was found stands out.

    Args:
        image: uint8 H W 3.
        labels: H W class indices, each below the length of the palette.
        palette: uint8 n x 3.
        alpha: Weight of the colour inside a region, 0..1.

    Returns:
        uint8 H W 3.

    Raises:
        ValueError: Sizes differ, or a label has no colour.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"image is {image.shape}, labels are {labels.shape}; expected H W 3 and H W")
    if labels.size and labels.max() >= len(palette):
        raise ValueError(f"label {labels.max()} has no colour in a palette of {len(palette)}")
    painted = labels > 0
    weight = np.where(outline(labels), 1.0, alpha)[..., None] * painted[..., None]
    colours = palette[np.where(painted, labels, 0)]
    mixed: Image = np.rint(image * (1 - weight) + colours * weight).astype(np.uint8)
    return mixed


def curves(summaries: Summaries, path: Path) -> Path:
    """mIoU per step of several runs as a PNG: all, old and new side by side; n/a leaves a gap.

    Args:
        summaries: Runs counted by the same definition.
        path: Where the picture goes; written under a temporary name first.

    Raises:
        UserError: The runs are not counted by the same definition.
    """
    first = definition_of(summaries)
    with _figure(path, (9.6, 3.5)) as figure:
        axes = figure.subplots(1, 3, sharey=True)
        headings = ("all known classes", "base classes", "classes learnt since")
        for panel, key, heading in zip(axes, _PANELS, headings, strict=True):
            for i, (_, summary) in enumerate(summaries):
                values = [_percentage(step[key]) for step in summary["steps"]]
                panel.plot(
                    range(len(values)),
                    values,
                    color=LINES[i % len(LINES)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    linewidth=1.8,
                    clip_on=False,
                )
            _tidy(panel, heading, n_steps(summaries))
        axes[0].set_ylabel("mIoU (%)")
        legend(figure, axes[0].lines, [name for name, _ in summaries], ncols=min(len(summaries), 6))
        figure.suptitle(f"mIoU after each step, definition {first['definition']}", fontsize=11)
    return path


def qualitative(examples: Sequence[Example], classes: Sequence[str], path: Path) -> Path:
    """A PNG grid: image, truth, then the prediction after each step; one row a method and example.

    Args:
        examples: At least one; all have the same methods.
        classes: Names by class index, [0] = background; those that appear make the legend.
        path: Where the picture goes; written under a temporary name first.
    """
    from matplotlib.patches import Patch

    palette = voc_palette(len(classes))
    methods = list(examples[0].predictions)
    steps = max(len(maps) for example in examples for maps in example.predictions.values())
    n_rows, seen = len(examples) * len(methods), _classes_in(examples)
    heights = [e.image.shape[0] / e.image.shape[1] for e in examples for _ in methods]
    inches = (_CELL * (steps + 2), (_CELL + 0.06) * sum(heights) + 0.7)
    with _figure(path, inches) as figure:
        axes = figure.subplots(n_rows, steps + 2, squeeze=False, height_ratios=heights)
        for panel in axes.flat:
            panel.set_axis_off()
        for e, example in enumerate(examples):
            top = axes[e * len(methods)]
            top[0].imshow(example.image)
            top[1].imshow(overlay(example.image, example.truth, palette))
            for m, method in enumerate(methods):
                row = axes[e * len(methods) + m]
                _row_label(row[2], words(method))
                for step, labels in enumerate(example.predictions[method]):
                    row[2 + step].imshow(overlay(example.image, labels, palette))
        for panel, heading in zip(
            axes[0], ["image", "truth", *(f"step {s}" for s in range(steps))], strict=True
        ):
            panel.set_title(heading, fontsize=9)
        patches = [Patch(color=palette[c] / 255) for c in seen]
        if patches:
            legend(figure, patches, [classes[c] for c in seen], ncols=min(8, len(patches)), fontsize=8)
    return path


def _classes_in(examples: Sequence[Example]) -> list[int]:
    """Foreground classes that some map of the examples shows."""
    maps = [e.truth for e in examples]
    maps += [labels for e in examples for series in e.predictions.values() for labels in series]
    return sorted({int(c) for labels in maps for c in np.unique(labels) if c > 0})


def _row_label(panel: "Axes", text: str) -> None:
    panel.text(-0.04, 0.5, text, transform=panel.transAxes, rotation=90, va="center", ha="right", fontsize=9)


def _percentage(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _tidy(panel: "Axes", heading: str, steps: int) -> None:
    """Only the lines a reader needs; whole steps on the x axis, 0..100 on the y axis."""
    panel.set_title(heading, fontsize=10)
    panel.set_xlabel("step")
    panel.set_xticks(range(0, steps, max(1, steps // 8)))
    panel.set_xlim(-0.3, steps - 0.7)
    panel.set_ylim(0, 100)
    panel.grid(axis="y", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def words(name: str) -> str:
    """A name as it stands in a figure: one line, and no longer than there is room for."""
    text = shown(name)
    return text if cell_len(text) <= _LONGEST else f"{set_cell_size(text, _LONGEST - 1)}…"


def legend(figure: "Figure", handles: Sequence["Artist"], names: Sequence[str], **options: Any) -> None:
    """A legend below a figure, with a line for every name, also for one that begins with an underscore."""
    made = figure.legend(
        handles, [str(k) for k in range(len(names))], loc="outside lower center", frameon=False, **options
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(words(name))


@contextmanager
def plain_figure(inches: tuple[float, float]) -> "Iterator[Figure]":
    """A figure whose texts are no formulas, whatever `$` is in them; draw and save it inside.

    No pyplot: no global state, no display. A letter that the font lacks is drawn as a box.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def _figure(path: Path, inches: tuple[float, float]) -> "Iterator[Figure]":
    """A figure that is written to `path` at the end."""
    with plain_figure(inches) as figure:
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    write_atomic(path, buffer.getvalue())
