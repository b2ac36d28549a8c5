"""How results are counted: each paper's definition of old, new and all, computed from stored matrices.

Published numbers differ by several points only because papers count differently. A run therefore stores,
for each step, the confusion matrix of all N+1 true classes against the known predictions, and this module
turns it into any of the definitions below. Whoever prints a number prints the definition's name beside it.

    summary = summarise(json.loads(path.read_text()), "ssul")
    summary["steps"][-1]["all"]          # a fraction in 0..1, or None where nothing can be counted
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from .errors import UserError, near
from .wording import count

FORMAT = 1
"""Newest version of results.json that this module reads."""

IntArray = npt.NDArray[np.int64]
Future = Literal["ignore", "background"]
Absent = Literal["zero", "drop", "drop-unless-predicted"]


@dataclass(frozen=True)
class Definition:
    """One way to count.

    Attributes:
        name: What the command line and every printed number call it.
        source: Who counts like this, and what was chosen here where the source leaves it open.
        images: Tested images: all of the validation split, or known (those with at least one pixel of
            a foreground class that is known at the step).
        background_in_old: Background is one of the old classes.
        background_in_all: Background is one of all classes.
        future: Pixels whose true class is not learnt yet are ignored, or are background in the truth.
        absent: A class without a pixel in the truth: zero (its IoU is 0 and it stays in every mean),
            drop (n/a, left out of every mean, even where it is predicted) or drop-unless-predicted
            (n/a only if it is not predicted either; predicted pixels of an absent class are an IoU of 0).
        drop_zero: Leave classes with IoU 0 out of the means.
        ignore_background: Pixels whose true class is background are not counted at all.
        future_ade: `future` on ADE20K, where it differs.
        without_background_ade: On ADE20K pixels labelled 0 are not counted and background is no class.
    """

    name: str
    source: str
    images: Literal["all", "known"]
    background_in_old: bool
    background_in_all: bool
    future: Future
    absent: Absent
    drop_zero: bool = False
    ignore_background: bool = False
    future_ade: Future | None = None
    without_background_ade: bool = False

    def on(self, data: str) -> "Definition":
        """The definition with this data set's particulars; any name but ade20k counts like VOC."""
        if data != "ade20k":
            return self
        rules = replace(self, future=self.future_ade or self.future)
        if self.without_background_ade:
            rules = replace(rules, background_in_old=False, background_in_all=False, ignore_background=True)
        return rules

    def describe(self, data: str) -> str:
        """One line for a table's caption: what `name` means on this data set."""
        rules = self.on(data)
        which = {"all": "all validation images", "known": "images with a known class"}[rules.images]
        background = {
            (True, True): "background counts in old and all",
            (False, True): "background counts in all",
            (True, False): "background counts in old",
            (False, False): "foreground classes only",
        }[rules.background_in_old, rules.background_in_all]
        future = {"ignore": "future classes ignored", "background": "future classes are background"}
        absent = {
            "zero": "absent classes count as 0",
            "drop": "absent classes left out",
            "drop-unless-predicted": "classes neither present nor predicted left out",
        }
        parts = [which, background, future[rules.future], absent[rules.absent]]
        if rules.ignore_background:
            parts.append("pixels labelled background ignored")
        if rules.drop_zero:
            parts.append("classes with IoU 0 left out (biased upward)")
        return f"{self.name}: " + "; ".join(parts)


DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        Definition(
            "ssul",
            "SSUL (arXiv 2106.11562), reference code. All validation images at every step; on ADE20K class 0"
            " counts like any other (151 classes).",
            images="all",
            background_in_old=True,
            background_in_all=True,
            future="ignore",
            absent="zero",
        ),
        Definition(
            "mib",
            "MiB (arXiv 2002.00718), the paper's tables: foreground classes only.",
            images="known",
            background_in_old=False,
            background_in_all=False,
            future="ignore",
            absent="drop",
        ),
        Definition(
            "mib-code",
            "MiB, the number its code prints: background is a class on VOC; on ADE20K pixels labelled 0 are"
            " ignored (150 classes). The code prints no old; here it is the base classes with background"
            " wherever background is a class, as PLOP counts.",
            images="known",
            background_in_old=True,
            background_in_all=True,
            future="ignore",
            absent="drop",
            without_background_ade=True,
        ),
        Definition(
            "plop",
            "PLOP (arXiv 2011.11390): pixels of classes not learnt yet count as background.",
            images="known",
            background_in_old=True,
            background_in_all=True,
            future="background",
            absent="drop",
        ),
        Definition(
            "dkd",
            "DKD (NeurIPS 2022): as PLOP on VOC, but absent classes count as 0; future classes are ignored"
            " on ADE20K.",
            images="known",
            background_in_old=True,
            background_in_all=True,
            future="background",
            absent="zero",
            future_ade="ignore",
        ),
        Definition(
            "nonzero",
            "As some later papers report (MBS, SELECT): the mean over classes whose IoU is not zero. Biased"
            " upward (a class that was lost entirely raises the mean), so never a default. They state neither"
            " which images nor what becomes of future classes; here both are as in ssul. Forgetting is not"
            " thinned: a class that fell to 0 is forgotten.",
            images="all",
            background_in_old=True,
            background_in_all=True,
            future="ignore",
            absent="drop",
            drop_zero=True,
        ),
        Definition(
            "foreground",
            "What someone who uses the model sees: foreground classes on all validation images; what has not"
            " been learnt yet is background, so painting over it is an error; a class that is neither present"
            " nor predicted is n/a, a class that is predicted without being present has IoU 0.",
            images="all",
            background_in_old=False,
            background_in_all=False,
            future="background",
            absent="drop-unless-predicted",
        ),
    )
}


class StepSummary(TypedDict):
    """One step's numbers: fractions in 0..1, None where nothing can be counted (printed as n/a).

    `old`: mean IoU of the base step's classes; `new`: of all classes learnt after the base step (None at
    step 0); `all`: of all classes known; `harmonic`: harmonic mean of old and new; `forgetting`: mean drop
    of the classes learnt before this step (None at step 0); `per_class`: the classes that count in `all`;
    `absent`: those of them without a pixel in the truth.
    """

    step: int
    old: float | None
    new: float | None
    all: float | None
    harmonic: float | None
    forgetting: float | None
    per_class: dict[str, float | None]
    absent: list[str]


class Summary(TypedDict):
    """A run counted by one definition; JSON-able. `rules` says in one line how. See `summarise`.

    `remarks`: sentences to print with the numbers: how a run differs from its method's paper, what data lack.
    """

    definition: str
    rules: str
    remarks: list[str]
    steps: list[StepSummary]
    forgetting: float | None
    forgetting_per_class: dict[str, float | None]
    average: float | None
    average_without_step0: float | None


class Counts(NamedTuple):
    """Pixels of each known class (int64, length known): in both, in either, in the truth."""

    intersection: IntArray
    union: IntArray
    truth: IntArray


def definition(name: str) -> Definition:
    """The definition of that name.

    Raises:
        UserError: There is none; the message lists them.
    """
    if name not in DEFINITIONS:
        options = ", ".join(DEFINITIONS)
        raise UserError(f'unknown definition "{name}"; choose one of {options}.{near(name, DEFINITIONS)}')
    return DEFINITIONS[name]


def counts(matrix: npt.ArrayLike, known: int, future: Future, ignore_background: bool = False) -> Counts:
    """Count intersection, union and truth of each known class.

    Args:
        matrix: (N+1) x known pixel counts; row = true class, column = predicted class.
        known: Number of classes known, background included.
        future: What becomes of the rows of classes that are not known yet.
        ignore_background: Leave out pixels whose true class is background, also those that `future`
            turned into background.
    """
    stored = np.asarray(matrix, dtype=np.int64)
    rows = stored[:known].copy()
    if future == "background":
        rows[0] += stored[known:].sum(axis=0)
    if ignore_background:
        rows[0] = 0
    intersection, truth = np.diagonal(rows).copy(), rows.sum(axis=1)
    return Counts(intersection, truth + rows.sum(axis=0) - intersection, truth)


def iou(matrix: npt.ArrayLike, known: int, future: Future) -> npt.NDArray[np.float64]:
    """Intersection over union of each known class, NaN where the class is neither present nor predicted.

    Args:
        matrix: (N+1) x known pixel counts; row = true class, column = predicted class.
        known: Number of classes known, background included.
        future: Whether pixels of classes not known yet are ignored or are background.

    Returns:
        float64, length known, in 0..1.
    """
    c = counts(matrix, known, future)
    values = np.full(known, np.nan)
    np.divide(c.intersection, c.union, out=values, where=c.union > 0)
    return values


def summarise(results: Mapping[str, Any], definition_name: str) -> Summary:
    """Count a run by one paper's definition.

    Forgetting of a class at a step is its best IoU at any earlier step minus its IoU at that step: 0 or
    more when it got worse, negative when it got better, n/a before it was learnt, at the step that teaches
    it, and where it is absent. `forgetting` is the mean over the classes learnt before the last step that
    the definition counts in `all`, at the last step. `average` is the mean of `all` over the steps.

    Args:
        results: The content of results.json. Classes that it lists as `unlabelled`, since the data that a
            model was evaluated on do not have them, are n/a by every definition.
        definition_name: A key of `DEFINITIONS`.

    Raises:
        UserError: Unknown definition, newer format, or matrices that do not fit the classes.
    """
    data = str(results.get("data", ""))
    rules = definition(definition_name).on(data)
    _check(results)
    names: list[str] = list(results["classes"])
    # a single model has no base step among its records, so it says how many classes that had
    base = int(results.get("base_known", results["steps"][0]["known"]))
    best: dict[str, float] = {}  # per class: the best IoU so far
    steps: list[StepSummary] = []
    dropped: dict[str, float | None] = {}
    learnt = 0  # classes known before the step
    unlabelled = {names.index(name) for name in results.get("unlabelled", ()) if name in names}
    for stored in results["steps"]:
        known = int(stored["known"])
        values, absent = _per_class(stored, known, rules, unlabelled)
        counted = range(0 if rules.background_in_all else 1, known)
        per_class = {names[i]: values[i] for i in counted}
        dropped = {names[i]: _drop(best.get(names[i]), values[i]) for i in counted if i < learnt}
        for name, value in per_class.items():
            if value is not None:
                best[name] = max(value, best.get(name, value))
        old = _mean(values[0 if rules.background_in_old else 1 : base], rules.drop_zero)
        new = _mean(values[base:], rules.drop_zero)
        steps.append(
            {
                "step": int(stored["step"]),
                "old": old,
                "new": new,
                "all": _mean(per_class.values(), rules.drop_zero),
                "harmonic": _harmonic(old, new),
                "forgetting": _mean(dropped.values()),
                "per_class": per_class,
                "absent": [names[i] for i in counted if i in absent],
            }
        )
        learnt = known
    return {
        "definition": rules.name,
        "rules": rules.describe(data),
        "remarks": [str(remark) for remark in results.get("remarks", ())],
        "steps": steps,
        "forgetting": steps[-1]["forgetting"],
        "forgetting_per_class": dropped,
        "average": _mean(step["all"] for step in steps),
        "average_without_step0": _mean(step["all"] for step in steps[1:]),
    }


def _per_class(
    stored: Mapping[str, Any], known: int, rules: Definition, unlabelled: Set[int]
) -> tuple[list[float | None], set[int]]:
    """IoU of each known class by the definition's rule for absent ones, and the classes absent in truth."""
    matrix = stored["matrix"] if rules.images == "all" else stored["matrix_known"]
    c = counts(matrix, known, rules.future, rules.ignore_background)
    values: list[float | None] = []
    columns = zip(*(column.tolist() for column in c), strict=True)
    for index, (intersection, union, truth) in enumerate(columns):
        if index in unlabelled:
            values.append(None)
        elif truth == 0 and rules.absent == "zero":
            values.append(0.0)
        elif truth == 0 and (rules.absent == "drop" or union == 0):
            values.append(None)
        else:
            values.append(intersection / union)
    return values, set(np.flatnonzero(c.truth == 0).tolist())


def _mean(values: Iterable[float | None], drop_zero: bool = False) -> float | None:
    """Mean of what can be counted; None where nothing can."""
    kept = [v for v in values if v is not None and not (drop_zero and v == 0)]
    return sum(kept) / len(kept) if kept else None


def _harmonic(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return None
    return 2 * old * new / (old + new) if old + new > 0 else 0.0


def _drop(best: float | None, value: float | None) -> float | None:
    return None if best is None or value is None else best - value


_NEEDED = ("step", "known", "matrix", "matrix_known")  # of every step's record


def _whole_numbers(matrix: Any) -> bool:
    """Whether it is a list of lists of counts."""
    return isinstance(matrix, list) and all(
        isinstance(row, list) and all(isinstance(n, int) and n >= 0 for n in row) for row in matrix
    )


def _check(results: Mapping[str, Any]) -> None:
    """Refuse results that would be counted wrongly without a sound."""
    version = results.get("format")
    if version != FORMAT:
        raise UserError(
            f"results have format {version!r}, this segrow reads {FORMAT}; update segrow, or run again."
        )
    steps: Sequence[Mapping[str, Any]] = results.get("steps", ())
    if not isinstance(steps, list) or not steps:
        raise UserError("results have no step yet; wait for the base step, or check the run's log.")
    if not isinstance(results.get("classes"), list):
        raise UserError("results lack classes; restore results.json, or run again.")
    for index, stored in enumerate(steps):
        if not isinstance(stored, Mapping):
            raise UserError(f"record {index} of results is not a step; restore results.json, or run again.")
        lacking = [key for key in _NEEDED if key not in stored]
        if lacking:
            raise UserError(
                f"record {index} of results lacks {', '.join(lacking)}; restore results.json, or run again."
            )
    total, learnt = len(results["classes"]), 0
    first = int(steps[0]["step"]) if "base_known" in results else 0
    for index, stored in enumerate(steps, first):
        if stored["step"] != index:
            raise UserError(f"results have step {stored['step']} where step {index} was expected; run again.")
        known = stored["known"]
        if not isinstance(known, int) or not learnt < known <= total:
            raise UserError(
                f"step {index} knows {known} of {count(total, 'class')} after {learnt}; each step must add "
                "some; run again."
            )
        for key in ("matrix", "matrix_known"):
            if not _whole_numbers(stored[key]):
                raise UserError(
                    f"step {index}: {key} holds something else than counts of pixels; restore results.json,"
                    " or run again."
                )
            widths = [len(row) for row in stored[key]]
            if widths != [known] * total:
                raise UserError(
                    f"step {index}: {key} has {len(widths)} rows of {sorted(set(widths))} values, expected"
                    f" {total} rows (true classes) of {known} (known classes); run again."
                )
        learnt = known
