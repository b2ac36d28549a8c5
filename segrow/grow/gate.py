"""The forgetting gate: did a model lose an old class, and did it learn the new ones?

Everything is computed from a confusion matrix of every image, before and after: int64 n x true x predicted.
The rules, in points of IoU (0..100), per class and over all images together:

- drop = IoU before - IoU after. The images are drawn 1,000 times with replacement; the interval of the drop
  is the middle 90 % of the drops of these sets (5th to 95th percentile).
- An old class *fails* when its drop is above `max_drop` and either the lower end of the interval is above it
  too, or at least ENOUGH images show the class, so that the drop itself is to be believed.
- It is *unsure* when fewer than ENOUGH images show it and `max_drop` lies in the interval: there are too few
  images to tell. Fewer than FEW images do not clear a class: *few*, unless two or more of them say alike that
  it fails. Classes that the gate's labels do not tell apart are *few* too.
- Else it is *kept*.
- A new class *fails* when its IoU on held-out images is below `min_new`. That is the number itself: an
  interval is printed beside it, but does not excuse. It is *few* when fewer than FEW of them show it,
  *unsure* when fewer than ENOUGH do and `min_new` lies in the interval, else it *passes*.

Background may lose BACKGROUND points, or `max_drop` where that is more: the new class takes its pixels from
there, and objects of it may stand undrawn in the images of the gate.

Pixels whose true class is new do not count for old classes: before, nobody could have known them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..wording import count

ENOUGH = 20
"""Images that show a class from which on its drop is believed without an interval."""
BACKGROUND = 5.0
"""Points that background may lose."""
FEW = 5
"""Fewer images that show a class do not clear it."""
DRAWS = 1000
INTERVAL = (5.0, 95.0)

Verdict = Literal["kept", "fails", "unsure", "few"]
NewVerdict = Literal["passes", "fails", "unsure", "few"]
Floats = NDArray[np.float64]
Matrices = NDArray[np.int64]


@dataclass(frozen=True)
class OldClass:
    """What became of a class that the model knew before. IoU and drop in points, 0..100.

    Attributes:
        name: The class.
        images: How many images show it.
        before: IoU; NaN where it is neither shown nor predicted.
        after: The same of the new model.
        drop: before - after.
        interval: 90 % bootstrap interval of the drop; NaN without images.
        verdict: kept, fails, unsure or few (see above).
        confused: The class that took most of its pixels, and the share of its true pixels that moved there;
            None when none did.
    """

    name: str
    images: int
    before: float
    after: float
    drop: float
    interval: tuple[float, float]
    verdict: Verdict
    confused: tuple[str, float] | None


@dataclass(frozen=True)
class NewClass:
    """How well a class was learnt, on held-out images. IoU in points.

    Attributes:
        name: The class.
        images: How many held-out images show it.
        iou: NaN where it is neither shown nor predicted.
        interval: 90 % bootstrap interval.
        verdict: passes, fails, unsure or few (see above).
        confused: The class that its pixels are taken for most, and their share; None when none are.
    """

    name: str
    images: int
    iou: float
    interval: tuple[float, float]
    verdict: NewVerdict
    confused: tuple[str, float] | None


@dataclass(frozen=True)
class Verdicts:
    """The gate's answer.

    Attributes:
        old: Of every class that was known before; empty without a gate.
        new: Of the new classes; empty when nothing was held out.
        strict: Too few images to be sure of a class stop the model too.
    """

    old: tuple[OldClass, ...] = ()
    new: tuple[NewClass, ...] = ()
    strict: bool = False

    @property
    def passes(self) -> bool:
        """Whether nothing stops the new model."""
        stopping = ("fails", "unsure", "few") if self.strict else ("fails",)
        verdicts = [*(c.verdict for c in self.old), *(c.verdict for c in self.new)]
        return not any(verdict in stopping for verdict in verdicts)

    @property
    def reasons(self) -> list[str]:
        """A sentence for every class that stops the model."""
        classes: list[OldClass | NewClass] = [*self.old, *self.new]
        doubted = [
            f"{c.name} is {c.verdict}: {c.images} image{'s show' if c.images != 1 else ' shows'} it, "
            f"{FEW if c.verdict == 'few' else ENOUGH} are needed (--strict)"
            for c in classes
            if self.strict and c.verdict in ("unsure", "few")
        ]
        return [*self._failures(), *doubted]

    def _failures(self) -> list[str]:
        found = [
            f"{c.name} drops by {c.drop:.1f} points (90 % interval {c.interval[0]:.1f} to "
            f"{c.interval[1]:.1f}, {count(c.images, 'image')})"
            for c in self.old
            if c.verdict == "fails"
        ]
        return found + [f"{c.name} reaches {c.iou:.1f} points only" for c in self.new if c.verdict == "fails"]

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return {
            "passes": self.passes,
            "strict": self.strict,
            "reasons": self.reasons,
            "old": [_plain(vars(c)) for c in self.old],
            "new": [_plain(vars(c)) for c in self.new],
        }


def judge_old(
    before: Matrices,
    after: Matrices,
    names: Sequence[str],
    judged: Sequence[int],
    max_drop: float,
    seed: int = 1,
) -> tuple[OldClass, ...]:
    """Compare two models on the same images.

    Args:
        before: n x C x K; C = classes known after, K = before.
        after: n x C x C.
        names: All C.
        judged: Indices of the old classes that the images' labels tell apart.
        max_drop: Largest drop in points that is no forgetting; of background BACKGROUND, if that is more.
        seed: Of the bootstrap.
    """
    known = before.shape[2]
    # rows of new classes do not count; a prediction of a new class on an old one's pixels does
    counts = [_counts(m[:, :known], known) for m in (before, after)]
    weights = _draws(len(before), seed)
    ious = [_iou(*(part.sum(0) for part in c)) for c in counts]
    drawn = [_iou(*(weights @ part for part in c)) for c in counts]
    drops = drawn[0] - drawn[1]
    shown = (before[:, :known].sum(2) > 0).sum(0)
    result = []
    for k in judged:
        drop, interval = float(ious[0][k] - ious[1][k]), _interval(drops[:, k])
        result.append(
            OldClass(
                names[k],
                int(shown[k]),
                float(ious[0][k]),
                float(ious[1][k]),
                drop,
                interval,
                verdict(drop, interval, int(shown[k]), max_drop if k else max(max_drop, BACKGROUND)),
                _moved(before[:, k].sum(0), after[:, k].sum(0), k, names),
            )
        )
    return tuple(result)


def with_unjudged(old: Sequence[OldClass], known: Sequence[str]) -> tuple[OldClass, ...]:
    """The verdicts of all old classes, in order: those that no label told apart are *few* of no image.

    Args:
        old: Of those that were judged; empty: there was no gate, so there are no verdicts.
        known: Names of all.
    """
    if not old:
        return ()
    nan = float("nan")
    judged = {c.name: c for c in old}
    return tuple(
        judged.get(name) or OldClass(name, 0, nan, nan, nan, (nan, nan), "few", None) for name in known
    )


def judge_new(
    after: Matrices, names: Sequence[str], first: int, min_new: float | None, seed: int = 1
) -> tuple[NewClass, ...]:
    """The new classes on held-out images.

    Args:
        after: n x C x C.
        names: All C.
        first: Index of the first new class.
        min_new: Least IoU in points; None = any will do.
        seed: Of the bootstrap.
    """
    n_classes = after.shape[2]
    parts = _counts(after, n_classes)
    weights = _draws(len(after), seed)
    total, drawn = _iou(*(part.sum(0) for part in parts)), _iou(*(weights @ part for part in parts))
    shown = (after.sum(2) > 0).sum(0)
    result = []
    for k in range(first, n_classes):
        iou, interval, images = float(total[k]), _interval(drawn[:, k]), int(shown[k])
        result.append(
            NewClass(
                names[k],
                images,
                iou,
                interval,
                new_verdict(iou, interval, images, min_new),
                _moved(np.zeros(n_classes, np.int64), after[:, k].sum(0), k, names),
            )
        )
    return tuple(result)


def verdict(drop: float, interval: tuple[float, float], images: int, max_drop: float) -> Verdict:
    """The rule for one old class (see the top of this file)."""
    low, high = interval
    if drop > max_drop and (images >= ENOUGH or (images > 1 and low > max_drop)):
        return "fails"
    if images < FEW or np.isnan(drop):
        return "few"
    return "unsure" if images < ENOUGH and low <= max_drop < high else "kept"


def new_verdict(iou: float, interval: tuple[float, float], images: int, min_new: float | None) -> NewVerdict:
    """The rule for one new class (see the top of this file)."""
    if min_new is not None and not iou >= min_new:  # NaN too
        return "fails"
    if images < FEW:
        return "few"
    return "unsure" if min_new is not None and images < ENOUGH and interval[0] < min_new else "passes"


def _counts(matrices: Matrices, known: int) -> tuple[Floats, Floats]:
    """Intersection and union of each image and class: n x known, of matrices n x known x at least known."""
    intersection = np.diagonal(matrices, axis1=1, axis2=2)[:, :known].astype(np.float64)
    union = matrices.sum(2)[:, :known] + matrices.sum(1)[:, :known] - intersection
    return intersection, union


def _iou(intersection: Floats, union: Floats) -> Floats:
    """Points; NaN where there is no union."""
    result = np.full(union.shape, np.nan)
    np.divide(100 * intersection, union, out=result, where=union > 0)
    return result


def _draws(n: int, seed: int) -> Floats:
    """How often each of n images is in each drawn set: DRAWS x n."""
    chosen = np.random.default_rng(seed).integers(0, max(n, 1), (DRAWS, n))
    weights = np.zeros((DRAWS, n))
    np.add.at(weights, (np.arange(DRAWS)[:, None], chosen), 1)
    return weights


def _interval(values: Floats) -> tuple[float, float]:
    """The middle 90 % of the sets in which the class can be counted; NaN where it is in none."""
    counted = values[~np.isnan(values)]
    if not len(counted):
        return float("nan"), float("nan")
    low, high = np.percentile(counted, INTERVAL)
    return float(low), float(high)


def _moved(
    before: NDArray[np.int64], after: NDArray[np.int64], k: int, names: Sequence[str]
) -> tuple[str, float] | None:
    """Which other class took most pixels of class k, and their share of its pixels.

    Args:
        before: Predictions on its pixels, K.
        after: The same afterwards, C.
    """
    gained = after.astype(np.int64).copy()
    gained[: len(before)] -= before
    gained[k] = 0
    worst, pixels = int(gained.argmax()), int(after.sum())
    if gained[worst] <= 0:
        return None
    return names[worst], float(gained[worst] / pixels)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
