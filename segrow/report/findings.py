"""What a run's matrices say beyond its mIoU: what classes were taken for, drift, and what looks wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..protocol import Summary
from .tables import percent

FEW_TRAIN = 20
"""Fewer training images a new class than this are remarked on."""
FEW_VAL = 100
"""Fewer validation images than this are remarked on."""
COLLAPSED = 0.2
"""A class has collapsed when its IoU is below this part of its best ..."""
ONCE_LEARNT = 0.1
"""... provided that its best was at least this."""
NAMED = 3  # classes that a confused one was taken for most, by name; the others together

Kind = Literal["right", "background", "class", "rest"]
Row = Literal["background", "old", "new", "future"]


class Share(NamedTuple):
    """A part of a class's pixels: what they were taken for, and which fraction."""

    name: str
    fraction: float
    kind: Kind


@dataclass(frozen=True)
class ConfusionRow:
    """What the pixels of one true class were taken for after a step.

    Attributes:
        name: The class.
        row: background, old (learnt earlier), new (learnt in this step) or future (not learnt yet: its
            pixels can only be background, or drift into a known class).
        pixels: How many pixels the class has in the truth.
        shares: They add up to 1; empty for a class without pixels. The right ones stand first.
    """

    name: str
    row: Row
    pixels: int
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Drift:
    """Fractions of pixels, None where there are none.

    Attributes:
        old_as_background: Of classes learnt in earlier steps, predicted as background.
        old_as_new: Of classes learnt in earlier steps, predicted as a class of this step.
        background_as_class: Of background, predicted as any class.
        future_as_class: Of classes that are not learnt yet, predicted as a class that is.
    """

    old_as_background: float | None
    old_as_new: float | None
    background_as_class: float | None
    future_as_class: float | None


DRIFTS: tuple[tuple[str, str], ...] = (
    ("old_as_background", "old classes taken for background"),
    ("old_as_new", "old classes taken for this step's"),
    ("background_as_class", "background taken for a class"),
    ("future_as_class", "future classes taken for a known one"),
)


class Warned(NamedTuple):
    """Something a reader should look at: a kind in two words, and a sentence."""

    kind: str
    text: str


def matrix_of(record: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """Pixels, true classes x predicted (known) classes, over all validation images."""
    return np.asarray(record["matrix"], dtype=np.int64)


def confusion(record: Mapping[str, Any], learnt: int, names: list[str]) -> list[ConfusionRow]:
    """What every class was taken for after a step.

    Args:
        record: A step of results.json.
        learnt: Number of classes known before the step, background included.
        names: All classes by index.
    """
    matrix, known = matrix_of(record), int(record["known"])
    rows = []
    for index, values in enumerate(matrix):
        pixels = int(values.sum())
        row: Row = "background" if index == 0 else "old" if index < learnt else "new"
        if index >= known:
            row = "future"
        shares = _shares(values / pixels, index, names) if pixels else ()
        rows.append(ConfusionRow(names[index], row, pixels, shares))
    return rows


def _shares(parts: npt.NDArray[np.float64], index: int, names: list[str]) -> tuple[Share, ...]:
    """The right pixels, those taken for background, the largest mistakes by name, the rest."""
    found = []
    if index < len(parts):
        found.append(Share(names[index], float(parts[index]), "right"))
    if index:
        found.append(Share(names[0], float(parts[0]), "background"))
    others = [c for c in np.argsort(-parts, kind="stable").tolist() if c not in (0, index) and parts[c] > 0]
    found += [Share(names[c], float(parts[c]), "class") for c in others[:NAMED]]
    if rest := float(parts[others[NAMED:]].sum()):
        found.append(Share(f"{len(others) - NAMED} other classes", rest, "rest"))
    return tuple(share for share in found if share.fraction > 0)


def drift(record: Mapping[str, Any], learnt: int) -> Drift:
    """How far pixels have drifted after a step.

    Args:
        record: A step of results.json.
        learnt: Number of classes known before the step, background included.
    """
    matrix, known = matrix_of(record), int(record["known"])
    old = matrix[1:learnt]
    return Drift(
        _fraction(old[:, 0], old),
        _fraction(old[:, learnt:], old),
        _fraction(matrix[0, 1:], matrix[0]),
        _fraction(matrix[known:, 1:], matrix[known:]),
    )


def _fraction(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> float | None:
    total = int(whole.sum())
    return int(part.sum()) / total if total else None


def warnings(results: Mapping[str, Any], summary: Summary) -> list[Warned]:
    """What a reader of a run should look at before its mean numbers.

    Args:
        results: Its results.json.
        summary: The same, counted.
    """
    found = []
    names: list[str] = list(results["classes"])
    records = results["steps"]
    taught = sum(len(record["classes"]) for record in records)
    if taught < len(names) - 1:
        text = f"{taught} of {len(names) - 1} classes are taught after step {records[-1]['step']}"
        found.append(Warned("unfinished", text))
    for record in records:
        count, images = len(record["classes"]), int(record["images"])
        if images < FEW_TRAIN * count:
            text = f"step {record['step']} teaches {_classes(count)} from {images} images"
            found.append(Warned("few images", f"{text}, fewer than {FEW_TRAIN} a class"))
    tested = int(results["evaluation"]["images"])
    if tested < FEW_VAL:
        found.append(Warned("few images", f"tested on {tested} images, fewer than {FEW_VAL}"))
    last = records[-1]
    matrix = matrix_of(last)
    never = [names[c] for c in range(int(last["known"])) if matrix[:, c].sum() == 0]
    collapsed = _collapsed(summary, never)
    for name in never:
        if name not in collapsed:
            text = f"{name}: no pixel is given this class after step {last['step']}"
            found.append(Warned("never predicted", text))
    return [*found, *collapsed.values()]


def _collapsed(summary: Summary, never: Sequence[str]) -> dict[str, Warned]:
    """Classes that were learnt once and are all but lost, by name."""
    found = {}
    final = summary["steps"][-1]
    for name, value in final["per_class"].items():
        values = [(step["per_class"].get(name), step["step"]) for step in summary["steps"]]
        best, when = max(((v, step) for v, step in values if v is not None), default=(0.0, 0))
        if value is None or best < ONCE_LEARNT or value >= COLLAPSED * best:
            continue
        text = f"{name}: IoU fell from {percent(best)} % after step {when} to {percent(value)} %"
        found[name] = Warned("collapsed", text + (" (never predicted)" if name in never else ""))
    return found


def _classes(count: int) -> str:
    return "one class" if count == 1 else f"{count} classes"
