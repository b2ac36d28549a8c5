"""What the page shows of each run, and of each image: values that its template only has to place."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..config import RunPaths
from ..model.record import is_model
from ..protocol import DEFINITIONS
from ..recipes import flatten, show
from ..stored import load_memory
from ..wording import count
from .charts import heat_map
from .findings import ConfusionRow, confusion
from .gallery import Gallery
from .runs import ReportRun
from .tables import percent

LAST = 9999
"""A view of a run's last step also stands for later ones, which other runs may have."""


class StepView(NamedTuple):
    """Something that shows while the slider is between two steps."""

    first: int
    last: int
    value: Any


class Prediction(NamedTuple):
    """What one run said of an image: for each step its label map, unknown map and IoU."""

    run: str
    labels: list[StepView]
    unknown: list[StepView]
    scores: list[StepView]


class Shot(NamedTuple):
    """An image of the grid; pictures are data URIs."""

    name: str
    why: str
    ratio: str
    photo: str
    truth: str
    predictions: list[Prediction]


class Column(NamedTuple):
    """A cell of the cost table: text, and its part of the column's largest."""

    text: str
    part: float


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run."""

    index: int
    name: str
    steps: list[StepView]
    heat: Any
    confusion: list[StepView]
    costs: list[tuple[str, list[Column]]]
    seen: list[tuple[str, str, str, str | None, str | None]]
    protocol: list[tuple[str, str]]
    config: list[tuple[str, str]]


def run_view(index: int, run: ReportRun, gallery: Gallery | None) -> RunView:
    """All that the page shows of one run.

    Args:
        index: Its place among the runs.
        run: The run.
        gallery: Its pictures, for examples of what it was trained on.
    """
    learnt = [1, *(int(record["known"]) for record in run.records)]
    names: list[str] = list(run.results["classes"])
    taken: list[list[ConfusionRow]] = [
        confusion(record, before, names) for record, before in zip(run.records, learnt, strict=False)
    ]
    captions = [f"step {r['step']} teaches {', '.join(r['classes'])}" for r in run.records]
    return RunView(
        index,
        run.name,
        _by_step(captions),
        heat_map(run),
        _by_step(taken),
        _costs(run),
        _seen(run, gallery),
        _protocol(run),
        [(key, show(value)) for key, value in flatten(run.config)],
    )


def _by_step(values: Sequence[Any]) -> list[StepView]:
    final = len(values) - 1
    return [StepView(k, LAST if k == final else k, value) for k, value in enumerate(values)]


COST_HEADINGS = (
    "updates",
    "training s",
    "evaluation s",
    "peak MiB",
    "trainable (M)",
    "parameters (M)",
    "stored MiB",
)


def _costs(run: ReportRun) -> list[tuple[str, list[Column]]]:
    """A line a step; what a shared base step cost stands with its own run."""
    keys = (
        ("iterations", 1.0, "{:.0f}"),
        ("train_s", 1.0, "{:.1f}"),
        ("eval_s", 1.0, "{:.1f}"),
        ("peak_memory_bytes", 2.0**20, "{:.0f}"),
        ("trainable", 1e6, "{:.2f}"),
        ("parameters", 1e6, "{:.2f}"),
        ("stored_bytes", 2.0**20, "{:.1f}"),
    )
    own = [record["cost"] for record in run.records if not record["from_base"]]
    largest = {key: max((cost.get(key) or 0 for cost in own), default=0) for key, _, _ in keys}
    lines = []
    for record in run.records:
        cells = []
        for key, unit, form in keys:
            value = None if record["from_base"] else record["cost"].get(key)
            text = "shared" if record["from_base"] else "–" if value is None else form.format(value / unit)
            part = 0.0 if value is None or not largest[key] else 100 * value / largest[key]
            cells.append(Column(text, round(part, 1)))
        lines.append((str(record["step"]), cells))
    return lines


def _seen(run: ReportRun, gallery: Gallery | None) -> list[tuple[str, str, str, str | None, str | None]]:
    """Step, its classes, how many images and exemplars, and pictures of some of both."""
    lines = []
    for record in run.records:
        step = int(record["step"])
        taught = count(record["images"], "image")
        if record["exemplars"]:
            before = RunPaths(run.folder).model(step - 1)
            kept = load_memory(before) if step and is_model(before) else ()
            ages = ", ".join(
                f"{sum(e.step == s for e in kept)} of step {s}" for s in sorted({e.step for e in kept})
            )
            taught += f" + {count(record['exemplars'], 'exemplar')}" + (f" ({ages})" if ages else "")
        seen = _uri(gallery.seen(step)) if gallery else None
        exemplars = _uri(gallery.exemplars(step)) if gallery else None
        lines.append((str(step), ", ".join(record["classes"]), taught, seen, exemplars))
    return lines


def _protocol(run: ReportRun) -> list[tuple[str, str]]:
    results, rules = run.results, DEFINITIONS[run.summary["definition"]]
    tested = results["evaluation"]
    size = f"centre crop of {tested['crop']} pixels" if tested["crop_val"] else "whole images"
    memory = results.get("memory", 0)
    shared = next((record["from_base"] for record in run.records if record["from_base"]), None)
    facts = [
        ("data, task, setting", f"{results['data']}, {results['task']}, {results['setting']}"),
        (
            "method",
            f"{results['method']}, {memory} exemplars" if memory else f"{results['method']}, no memory",
        ),
        ("seed", str(results["seed"])),
        ("classes in learning order", ", ".join(results["classes"][1:])),
        ("counted as", run.summary["rules"]),
        ("that is", rules.source),
        ("tested on", f"{tested['images']} validation images after every step, {size}"),
        ("trained with", f"segrow {results['segrow']}"),
    ]
    if shared:
        facts.append(("base step", f"shared: {Path(shared).name}"))
    return facts + [("remark", remark) for remark in run.summary["remarks"]]


def _uri(path: Path | None) -> str | None:
    if path is None:
        return None
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def legend(runs: Sequence[ReportRun], galleries: Mapping[str, Gallery]) -> list[tuple[str, str]]:
    """Foreground classes and their colours, in the learning order of the first run with pictures."""
    run = next((run for run in runs if run.name in galleries), None)
    if run is None:
        return []
    names, palette = run.results["classes"], galleries[run.name].palette
    return [(name, f"rgb({r} {g} {b})") for name, (r, g, b) in zip(names, palette, strict=True)][1:]


def shots(
    runs: Sequence[ReportRun], galleries: Mapping[str, Gallery], chosen: Sequence[tuple[int, str]]
) -> list[Shot]:
    """The images of the grid with what each run said of them.

    Args:
        runs: In the order of display.
        galleries: Pictures of those that have some, all of the same images.
        chosen: Which images, and why.
    """
    found = []
    first = next(iter(galleries.values()), None)
    if first is None:
        return []
    for k, why in chosen:
        with Image.open(first.photo(k)) as photo:
            ratio = f"{photo.width} / {photo.height}"
        predictions = []
        for run in runs:
            if run.name not in galleries:
                continue
            gallery = galleries[run.name]
            steps = range(len(gallery.scores))
            predictions.append(
                Prediction(
                    run.name,
                    _by_step([_uri(gallery.labels(step, k)) for step in steps]),
                    _by_step([_uri(gallery.unknown(step, k)) for step in steps]),
                    _by_step([percent(gallery.scores[step][k]) for step in steps]),
                )
            )
        found.append(
            Shot(
                first.images[k],
                why,
                ratio,
                _uri(first.photo(k)) or "",
                _uri(first.truth(k)) or "",
                predictions,
            )
        )
    return found
