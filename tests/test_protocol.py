"""Protocol: every definition against a naive count over pixels, and the arithmetic of the papers' tables."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrow.errors import UserError
from segrow.protocol import DEFINITIONS, counts, definition, iou, summarise

# The oracle's own copy of the rules, written from the papers' table and not from the package:
# images, background in old, background in all, future, absent, zero IoU leaves the mean, class 0 ignored
RULES: dict[tuple[str, str], tuple[str, bool, bool, str, str, bool, bool]] = {
    ("ssul", "voc"): ("all", True, True, "ignore", "zero", False, False),
    ("ssul", "ade20k"): ("all", True, True, "ignore", "zero", False, False),
    ("mib", "voc"): ("known", False, False, "ignore", "drop", False, False),
    ("mib", "ade20k"): ("known", False, False, "ignore", "drop", False, False),
    ("mib-code", "voc"): ("known", True, True, "ignore", "drop", False, False),
    ("mib-code", "ade20k"): ("known", False, False, "ignore", "drop", False, True),
    ("plop", "voc"): ("known", True, True, "background", "drop", False, False),
    ("plop", "ade20k"): ("known", True, True, "background", "drop", False, False),
    ("dkd", "voc"): ("known", True, True, "background", "zero", False, False),
    ("dkd", "ade20k"): ("known", True, True, "ignore", "zero", False, False),
    ("nonzero", "voc"): ("all", True, True, "ignore", "drop", True, False),
    ("nonzero", "ade20k"): ("all", True, True, "ignore", "drop", True, False),
    ("foreground", "voc"): ("all", False, False, "background", "union", False, False),
    ("foreground", "ade20k"): ("all", False, False, "background", "union", False, False),
}

Pixels = list[tuple[int, int]]  # (true class or -1 = void, predicted class)


def naive_class(pixels: Pixels, c: int, known: int, rules: tuple[Any, ...]) -> float | None:
    """IoU of one class, pixel by pixel."""
    _, _, _, future, absent, _, ignore_zero = rules
    both = either = present = 0
    for truth, predicted in pixels:
        if truth == -1:
            continue
        if truth >= known:
            if future == "ignore":
                continue
            truth = 0
        if ignore_zero and truth == 0:
            continue
        present += truth == c
        both += truth == c and predicted == c
        either += truth == c or predicted == c
    if present == 0 and absent == "zero":
        return 0.0
    if present == 0 and absent == "drop":
        return None
    return both / either if either else None


def naive_mean(values: Sequence[float | None], drop_zero: bool = False) -> float | None:
    total, n = 0.0, 0
    for value in values:
        if value is None or (drop_zero and value == 0):
            continue
        total, n = total + value, n + 1
    return total / n if n else None


def naive(
    truths: list[list[int]], predictions: list[list[list[int]]], knowns: list[int], rules: tuple[Any, ...]
) -> list[dict[str, Any]]:
    """One dict a step; truths[image][pixel], predictions[step][image][pixel]."""
    images, bg_old, bg_all, _, _, drop_zero, _ = rules
    history: list[dict[int, float | None]] = []
    for step, known in enumerate(knowns):
        pixels: Pixels = []
        for truth, predicted in zip(truths, predictions[step], strict=True):
            if images == "known" and not any(1 <= t < known for t in truth):
                continue
            pixels += zip(truth, predicted, strict=True)
        history.append({c: naive_class(pixels, c, known, rules) for c in range(known)})
    rows = []
    for step, known in enumerate(knowns):
        values = history[step]
        old = naive_mean([values[c] for c in range(0 if bg_old else 1, knowns[0])], drop_zero)
        new = naive_mean([values[c] for c in range(knowns[0], known)], drop_zero)
        counted = list(range(0 if bg_all else 1, known))
        falls = []
        for c in counted:
            before = [h[c] for h in history[:step] if c in h]
            seen = [b for b in before if b is not None]
            now = values[c]
            falls.append(max(seen) - now if seen and now is not None else None)
        harmonic = None
        if old is not None and new is not None:
            harmonic = 2 / (1 / old + 1 / new) if old and new else 0.0
        rows.append(
            {
                "old": old,
                "new": new,
                "all": naive_mean([values[c] for c in counted], drop_zero),
                "harmonic": harmonic,
                "forgetting": naive_mean(falls),
                "per_class": {f"c{c}": values[c] for c in counted},
            }
        )
    return rows


def histogram(truth: Sequence[int], predicted: Sequence[int], total: int, known: int) -> np.ndarray:
    matrix = np.zeros((total, known), dtype=np.int64)
    for t, p in zip(truth, predicted, strict=True):
        if t >= 0:
            matrix[t, p] += 1
    return matrix


def results_of(
    truths: list[list[int]], predictions: list[list[list[int]]], knowns: list[int], total: int, data: str
) -> dict[str, Any]:
    """results.json, as an evaluation over these images stores it."""
    steps = []
    for step, known in enumerate(knowns):
        everything = np.zeros((total, known), dtype=np.int64)
        with_known = everything.copy()
        for truth, predicted in zip(truths, predictions[step], strict=True):
            matrix = histogram(truth, predicted, total, known)
            everything += matrix
            with_known += matrix * bool(matrix[1:known].sum())
        steps.append(
            {
                "step": step,
                "known": known,
                "matrix": everything.tolist(),
                "matrix_known": with_known.tolist(),
            }
        )
    classes = [f"c{c}" for c in range(total)]
    return {"format": 1, "data": data, "classes": classes, "steps": steps}


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]], list[int], int]:
    sizes = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))  # classes a step
    future = draw(st.integers(0, 2))  # classes that no step has reached yet
    knowns = [1 + sum(sizes[: i + 1]) for i in range(len(sizes))]
    total = knowns[-1] + future
    n_images, n_pixels = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    line = st.lists(st.integers(-1, total - 1), min_size=n_pixels, max_size=n_pixels)
    truths = draw(st.lists(line, min_size=n_images, max_size=n_images))
    predictions = []
    for known in knowns:
        # mostly right, as a model is: otherwise nearly every IoU is 0
        guesses = []
        for truth in truths:
            wrong = draw(
                st.lists(st.none() | st.integers(0, known - 1), min_size=n_pixels, max_size=n_pixels)
            )
            pairs = zip(truth, wrong, strict=True)
            guesses.append([(t if 0 <= t < known else 0) if w is None else w for t, w in pairs])
        predictions.append(guesses)
    return truths, predictions, knowns, total


@pytest.mark.parametrize(("name", "data"), sorted(RULES))
@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_definitions_agree_with_a_count_over_pixels(
    name: str, data: str, run: tuple[list[list[int]], list[list[list[int]]], list[int], int]
) -> None:
    truths, predictions, knowns, total = run
    expected = naive(truths, predictions, knowns, RULES[name, data])
    summary = summarise(results_of(truths, predictions, knowns, total, data), name)
    assert summary["definition"] == name
    for step, want in zip(summary["steps"], expected, strict=True):
        for key in ("old", "new", "all", "harmonic", "forgetting"):
            assert step[key] == (None if want[key] is None else pytest.approx(want[key])), key
        assert step["per_class"].keys() == want["per_class"].keys()
        for c, value in want["per_class"].items():
            assert step["per_class"][c] == (None if value is None else pytest.approx(value)), c
    alls = [row["all"] for row in expected]
    for key, values in (("average", alls), ("average_without_step0", alls[1:])):
        mean = naive_mean(values)
        assert summary[key] == (None if mean is None else pytest.approx(mean))  # type: ignore[literal-required]
    assert summary["forgetting"] == summary["steps"][-1]["forgetting"]
    json.dumps(summary, allow_nan=False)


def test_every_definition_has_an_oracle() -> None:
    assert {name for name, _ in RULES} == set(DEFINITIONS)
    assert all(name == d.name and d.source for name, d in DEFINITIONS.items())


def spread(mean: float, n: int) -> list[float]:
    """n different IoUs around a mean in percent, as fractions."""
    return [(mean + i - (n - 1) / 2) / 100 for i in range(n)]


def two_steps(values: list[float], base: int) -> dict[str, Any]:
    """Results whose last step has these IoUs for classes 0..N: each class errs into the next, in a ring."""
    n, wrong = len(values), 1_000_000
    matrix = np.zeros((n, n), dtype=np.int64)
    for c, value in enumerate(values):
        matrix[c, (c + 1) % n] = wrong  # so the union of each class is 2 x wrong + its intersection
        matrix[c, c] = round(2 * wrong * value / (1 - value))
    first = np.eye(n, base, dtype=np.int64)
    steps = [
        {"step": i, "known": m.shape[1], "matrix": m.tolist(), "matrix_known": m.tolist()}
        for i, m in enumerate((first, matrix))
    ]
    return {"format": 1, "data": "voc", "classes": [f"c{i}" for i in range(n)], "steps": steps}


def test_plop_arithmetic_background_is_the_sixteenth_old_class() -> None:
    # VOC 15-1 in PLOP's paper: (16 x 65.12 + 5 x 21.11) / 21 = 54.64
    assert pytest.approx(54.64, abs=0.005) == (16 * 65.12 + 5 * 21.11) / 21
    last = summarise(two_steps(spread(65.12, 16) + spread(21.11, 5), base=16), "plop")["steps"][-1]
    assert last["old"] == pytest.approx(0.6512, abs=1e-5)
    assert last["new"] == pytest.approx(0.2111, abs=1e-5)
    assert last["all"] == pytest.approx(0.5464, abs=5e-5)


def test_mib_arithmetic_counts_twenty_foreground_classes() -> None:
    # VOC 15-1 in MiB's paper: 15 x 35.1 + 5 x 13.5 = 20 x 29.7; background must not matter
    assert pytest.approx(20 * 29.7) == 15 * 35.1 + 5 * 13.5
    for background in (0.0, 0.9):
        values = [background, *spread(35.1, 15), *spread(13.5, 5)]
        last = summarise(two_steps(values, base=16), "mib")["steps"][-1]
        assert last["old"] == pytest.approx(0.351, abs=1e-5)
        assert last["new"] == pytest.approx(0.135, abs=1e-5)
        assert last["all"] == pytest.approx(0.297, abs=1e-5)
        assert "c0" not in last["per_class"]


def one_step(matrix: list[list[int]], data: str = "voc") -> dict[str, Any]:
    known = len(matrix[0])
    step = {"step": 0, "known": known, "matrix": matrix, "matrix_known": matrix}
    return {"format": 1, "data": data, "classes": [f"c{i}" for i in range(len(matrix))], "steps": [step]}


def test_future_pixels_ignored_or_background() -> None:
    matrix = [[8, 0], [0, 4], [6, 4]]  # class 2 is not learnt; 4 of its pixels are predicted as class 1
    assert iou(matrix, 2, "ignore").tolist() == [1.0, 1.0]
    assert iou(matrix, 2, "background").tolist() == [14 / 18, 0.5]
    assert summarise(one_step(matrix), "ssul")["steps"][0]["per_class"] == {"c0": 1.0, "c1": 1.0}
    assert summarise(one_step(matrix), "plop")["steps"][0]["per_class"] == {"c0": 14 / 18, "c1": 0.5}
    assert summarise(one_step(matrix, "ade20k"), "dkd")["steps"][0]["per_class"] == {"c0": 1.0, "c1": 1.0}
    assert summarise(one_step(matrix), "foreground")["steps"][0]["per_class"] == {"c1": 0.5}


def test_absent_class_is_said_and_never_silent() -> None:
    never = [[5, 0, 0], [0, 5, 0], [0, 0, 0]]  # class 2: not in the truth, not predicted
    wrong = [[5, 0, 2], [0, 5, 0], [0, 0, 0]]  # class 2: predicted though absent
    for matrix, name, value in (
        (never, "ssul", 0.0),
        (never, "dkd", 0.0),
        (never, "mib", None),
        (never, "plop", None),
        (never, "foreground", None),
        (wrong, "mib", None),
        (wrong, "foreground", 0.0),
    ):
        step = summarise(one_step(matrix), name)["steps"][0]
        assert (step["per_class"]["c2"], step["absent"]) == (value, ["c2"]), name
    assert np.isnan(iou(never, 3, "ignore")[2])


def test_absent_class_lowers_ssul_but_not_plop() -> None:
    matrix = [[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]]
    assert summarise(one_step(matrix), "ssul")["steps"][0]["all"] == pytest.approx(0.75)
    assert summarise(one_step(matrix), "plop")["steps"][0]["all"] == pytest.approx(1.0)


def test_ade_background_is_ignored_in_mib_code_only() -> None:
    matrix = [[9, 3], [0, 3]]
    ade = summarise(one_step(matrix, "ade20k"), "mib-code")["steps"][0]
    assert ade["per_class"] == {"c1": 1.0}
    voc = summarise(one_step(matrix, "folder"), "mib-code")["steps"][0]
    assert voc["per_class"] == {"c0": 0.75, "c1": 0.5}
    assert summarise(one_step(matrix, "ade20k"), "mib")["steps"][0]["per_class"] == {"c1": 0.5}
    assert counts(matrix, 2, "ignore", ignore_background=True).truth.tolist() == [0, 3]


def test_lost_class_raises_nonzero_and_counts_as_forgotten() -> None:
    first = {"step": 0, "known": 3, "matrix": [[5, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 0]]}
    second = {"step": 1, "known": 4, "matrix": [[5, 0, 0, 0], [5, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]]}
    steps = [{**s, "matrix_known": s["matrix"]} for s in (first, second)]
    results = {"format": 1, "data": "voc", "classes": ["background", "a", "b", "c"], "steps": steps}
    summary = summarise(results, "nonzero")
    assert summary["steps"][1]["all"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert summary["forgetting_per_class"] == {"background": 0.5, "a": 1.0, "b": 0.0}
    assert summary["forgetting"] == pytest.approx(0.5)
    ssul = summarise(results, "ssul")
    assert ssul["steps"][1]["all"] == pytest.approx(2.5 / 4)
    assert ssul["steps"][0]["new"] is None
    assert ssul["steps"][0]["forgetting"] is None
    assert ssul["average"] == pytest.approx((1 + 2.5 / 4) / 2)
    assert ssul["average_without_step0"] == pytest.approx(2.5 / 4)


def test_forgetting_counts_from_the_best_earlier_step() -> None:
    def step(index: int, hits: int) -> dict[str, Any]:
        known = 2 + index
        matrix = np.zeros((4, known), dtype=int)
        np.fill_diagonal(matrix, 10)
        matrix[1, :2] = [10 - hits, hits]
        return {"step": index, "known": known, "matrix": matrix.tolist(), "matrix_known": matrix.tolist()}

    classes = ["background", "a", "b", "c"]
    results = {"format": 1, "data": "voc", "classes": classes, "steps": [step(0, 5), step(1, 8), step(2, 6)]}
    summary = summarise(results, "foreground")
    assert summary["steps"][1]["forgetting"] == pytest.approx(-0.3)  # it got better: negative
    assert summary["forgetting_per_class"] == pytest.approx({"a": 0.2, "b": 0.0})  # c is learnt last: no part


def test_summary_is_json_and_a_lone_base_step_has_no_average_after_it() -> None:
    summary = summarise(one_step([[3, 1], [0, 4]]), "ssul")
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["forgetting"], summary["average_without_step0"]) == (None, None)
    assert summary["forgetting_per_class"] == {}


def test_describe_names_the_rules_of_the_data_set() -> None:
    voc, ade = DEFINITIONS["dkd"].describe("voc"), DEFINITIONS["dkd"].describe("ade20k")
    assert "future classes are background" in voc
    assert "future classes ignored" in ade
    assert "foreground classes only" in DEFINITIONS["mib-code"].describe("ade20k")
    assert "biased upward" in DEFINITIONS["nonzero"].describe("voc")


def test_unknown_definition_has_a_near_match() -> None:
    with pytest.raises(UserError, match=r'unknown definition "mib-cod".*nonzero.*Did you mean "mib-code"\?'):
        definition("mib-cod")
    with pytest.raises(UserError, match="unknown definition"):
        summarise(one_step([[1, 0], [0, 1]]), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"format 2, this segrow reads 1"),
        ({"steps": []}, r"no step yet"),
        ({"classes": ["c0", "c1", "c2"]}, r"matrix has 2 rows of \[2\] values, expected 3 rows"),
        ({"classes": ["c0"]}, r"step 0 knows 2 of 1 class"),
    ],
)
def test_results_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        summarise({**one_step([[1, 0], [0, 1]]), **change}, "ssul")
    assert "\n" not in str(error.value)


def test_steps_out_of_order_or_ragged_are_refused() -> None:
    results = one_step([[1, 0], [0, 1]])
    results["steps"] = results["steps"] * 2
    with pytest.raises(UserError, match="step 0 where step 1 was expected"):
        summarise(results, "ssul")
    results = one_step([[1, 0], [0, 1]])
    results["steps"][0]["matrix_known"] = [[1, 0], [0]]
    with pytest.raises(UserError, match=r"matrix_known has 2 rows of \[1, 2\] values"):
        summarise(results, "ssul")


def test_protocol_needs_no_torch() -> None:
    code = "import sys, segrow.protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
