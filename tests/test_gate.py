"""The forgetting gate against a slow restatement, and its rules one by one."""

import json
import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from segrow.grow import gate
from segrow.grow.gate import (
    DRAWS,
    ENOUGH,
    FEW,
    NewClass,
    OldClass,
    Verdicts,
    judge_new,
    judge_old,
    new_verdict,
    verdict,
    with_unjudged,
)

NAMES = ("background", "cat", "dog", "zebra")
KNOWN = 3  # before


def predictions(
    n: int, seed: int, wrong: float, classes: int = 4
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Truth and two models' label maps of n images of 6 x 7 pixels; the first model knows no zebra."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (n, 6, 7))
    truth[rng.random(truth.shape) < 0.1] = -1
    before = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, KNOWN, truth.shape), truth % KNOWN)
    after = np.where(rng.random(truth.shape) < wrong, rng.integers(0, classes, truth.shape), truth)
    return truth, np.abs(before), np.abs(after)


def matrices(truth: NDArray[np.int64], maps: NDArray[np.int64], known: int) -> NDArray[np.int64]:
    found = np.zeros((len(truth), len(NAMES), known), np.int64)
    for i in range(len(truth)):
        for t, p in zip(truth[i].ravel(), maps[i].ravel(), strict=True):
            if t >= 0:
                found[i, t, p] += 1
    return found


# --- the slow restatement: pixel by pixel, image by image ---------------------------------------------------


def naive_iou(
    truth: NDArray[np.int64], maps: NDArray[np.int64], images: list[int], k: int, ignored: set[int]
) -> float:
    """100 x intersection / union of class k over some images, which may come more than once."""
    both = either = 0
    for i in images:
        counts = np.isin(truth[i], [*ignored, -1], invert=True)
        t, p = truth[i] == k, maps[i] == k
        both += int((t & p & counts).sum())
        either += int(((t | p) & counts).sum())
    return 100 * both / either if either else math.nan


def naive_drop(
    truth: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64], k: int, seed: int
) -> tuple[float, float, float]:
    """Drop of an old class, and the ends of its interval."""
    new = set(range(KNOWN, len(NAMES)))
    everything = list(range(len(truth)))

    def drop(images: list[int]) -> float:
        return naive_iou(truth, before, images, k, new) - naive_iou(truth, after, images, k, new)

    sets = np.random.default_rng(seed).integers(0, len(truth), (DRAWS, len(truth)))
    drops = sorted(d for d in (drop(row) for row in sets.tolist()) if not math.isnan(d))
    return drop(everything), naive_percentile(drops, 5), naive_percentile(drops, 95)


def naive_percentile(values: list[float], percent: float) -> float:
    """Linear between the two neighbours."""
    if not values:
        return math.nan
    place = (len(values) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


@pytest.mark.parametrize(("n", "seed", "wrong"), [(8, 0, 0.3), (5, 1, 0.8), (1, 2, 0.5)])
def test_drops_and_intervals_equal_the_restatement(n: int, seed: int, wrong: float) -> None:
    truth, before, after = predictions(n, seed, wrong)
    found = judge_old(
        matrices(truth, before, KNOWN), matrices(truth, after, 4), NAMES, range(KNOWN), 1.0, seed
    )
    assert [c.name for c in found] == list(NAMES[:KNOWN])
    for k, old in enumerate(found):
        drop, low, high = naive_drop(truth, before, after, k, seed)
        assert old.drop == pytest.approx(drop, abs=1e-9)
        assert old.interval == pytest.approx((low, high), abs=1e-9)
        assert old.images == sum(bool((image == k).any()) for image in truth)
        assert old.verdict == verdict(drop, (low, high), old.images, 1.0 if k else 5.0)


def test_new_classes_equal_the_restatement() -> None:
    truth, _, after = predictions(9, 5, 0.4)
    (new,) = judge_new(matrices(truth, after, 4), NAMES, KNOWN, 30.0, seed=4)
    everything = list(range(9))
    sets = np.random.default_rng(4).integers(0, 9, (DRAWS, 9)).tolist()
    drawn = sorted(naive_iou(truth, after, row, 3, set()) for row in sets)
    assert new.iou == pytest.approx(naive_iou(truth, after, everything, 3, set()))
    assert new.interval == pytest.approx((naive_percentile(drawn, 5), naive_percentile(drawn, 95)))
    assert new.verdict == new_verdict(new.iou, new.interval, new.images, 30.0)
    assert new.images == sum(bool((image == 3).any()) for image in truth)


def test_a_class_in_few_images_is_missing_from_some_draws() -> None:
    """Sets without it say nothing of it: no NaN comes through, and no warning."""
    truth, before, after = predictions(6, 3, 0.5)
    for maps in (truth, before, after):
        maps[1:][maps[1:] == 2] = 0
    with warnings.catch_warnings(action="error"):
        found = judge_old(matrices(truth, before, KNOWN), matrices(truth, after, 4), NAMES, [2], 1.0)
    assert found[0].images == 1
    assert found[0].verdict == "few"
    assert not any(math.isnan(v) for v in (found[0].drop, *found[0].interval))
    drop, low, high = naive_drop(truth, before, after, 2, 1)
    assert (found[0].drop, *found[0].interval) == pytest.approx((drop, low, high), abs=1e-9)


def test_no_image_at_all() -> None:
    empty = np.zeros((0, 4, KNOWN), np.int64), np.zeros((0, 4, 4), np.int64)
    (old,) = judge_old(*empty, NAMES, [1], 1.0)
    assert (old.images, old.verdict) == (0, "few")
    (new,) = judge_new(empty[1], NAMES, KNOWN, 10.0)
    assert new.verdict == "fails"


# --- the rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "interval", "images", "expected"),
    [
        (0.5, (0.1, 0.9), ENOUGH, "kept"),
        (1.5, (1.2, 1.9), FEW, "fails"),  # few images, but the interval is clear
        (1.5, (0.2, 2.9), ENOUGH - 1, "unsure"),  # above, but the interval is not clear
        (1.5, (0.2, 2.9), ENOUGH, "fails"),  # the same with enough images
        (0.5, (-1.0, 2.0), ENOUGH - 1, "unsure"),
        (0.5, (-1.0, 2.0), ENOUGH, "kept"),
        (-3.0, (-4.0, -2.0), ENOUGH - 1, "kept"),
        (40.0, (-1.0, 50.0), FEW - 1, "few"),
        (40.0, (30.0, 50.0), FEW - 1, "fails"),  # all of them say so
        (40.0, (30.0, 50.0), 2, "fails"),
        (40.0, (40.0, 40.0), 1, "few"),  # one image says nothing
        (0.0, (0.0, 0.0), FEW - 1, "few"),
        (1.0, (1.0, 1.0), ENOUGH, "kept"),  # as much as may be
        (math.nan, (math.nan, math.nan), ENOUGH, "few"),
    ],
)
def test_the_rule(drop: float, interval: tuple[float, float], images: int, expected: str) -> None:
    assert verdict(drop, interval, images, 1.0) == expected


@pytest.mark.parametrize(
    ("iou", "interval", "images", "least", "expected"),
    [
        (40.0, (35.0, 45.0), FEW, 30.0, "passes"),
        (40.0, (20.0, 60.0), ENOUGH, 30.0, "passes"),
        (40.0, (20.0, 60.0), ENOUGH - 1, 30.0, "unsure"),
        (40.0, (20.0, 60.0), FEW, None, "passes"),
        (40.0, (35.0, 45.0), FEW - 1, 30.0, "few"),
        (40.0, (35.0, 45.0), FEW - 1, None, "few"),
        (29.9, (20.0, 60.0), 1, 30.0, "fails"),
        (30.0, (30.0, 30.0), ENOUGH, 30.0, "passes"),
        (math.nan, (math.nan, math.nan), 0, 0.0, "fails"),
        (math.nan, (math.nan, math.nan), 0, None, "few"),
    ],
)
def test_the_rule_for_new_classes(
    iou: float, interval: tuple[float, float], images: int, least: float | None, expected: str
) -> None:
    assert new_verdict(iou, interval, images, least) == expected


def test_classes_that_no_label_tells_apart_are_listed() -> None:
    cat = OldClass("cat", 30, 80.0, 79.5, 0.5, (0.2, 0.8), "kept", None)
    blank, same, last = with_unjudged([cat], ["background", "cat", "dog"])
    assert same is cat
    assert (blank.name, blank.images, blank.verdict) == ("background", 0, "few")
    assert last.name == "dog"
    assert math.isnan(last.drop)
    assert Verdicts((blank, same, last)).passes
    assert with_unjudged([], ["background", "cat"]) == ()


def test_a_class_is_never_taken_for_itself() -> None:
    """It won 30 pixels of its own, and lost some to nobody."""
    before, after = np.zeros((ENOUGH, 4, KNOWN), np.int64), np.zeros((ENOUGH, 4, 4), np.int64)
    before[:, 1, :2], after[:, 1, :2] = (40, 60), (10, 90)
    (cat,) = judge_old(before, after, NAMES, [1], 1.0)
    assert cat.confused is None
    (new,) = judge_new(np.eye(4, dtype=np.int64)[None] * 9, NAMES, KNOWN, None)
    assert new.confused is None


@pytest.mark.parametrize(
    ("lost", "max_drop", "expected"), [(40, 1.0, "kept"), (60, 1.0, "fails"), (60, 7.0, "kept")]
)
def test_background_may_lose_more(lost: int, max_drop: float, expected: str) -> None:
    """Each of ENOUGH images is 1,000 pixels of background, of which the new class takes some."""
    before, after = np.zeros((ENOUGH, 4, KNOWN), np.int64), np.zeros((ENOUGH, 4, 4), np.int64)
    before[:, 0, 0], after[:, 0, 0], after[:, 0, 3] = 1000, 1000 - lost, lost
    (background,) = judge_old(before, after, NAMES, [0], max_drop)
    assert background.drop == pytest.approx(lost / 10)
    assert background.verdict == expected


def test_pixels_of_a_new_class_count_for_no_old_one() -> None:
    """Before, the model could only be wrong there."""
    before, after = np.zeros((2, 4, 3), np.int64), np.zeros((2, 4, 4), np.int64)
    before[:, 1, 1] = after[:, 1, 1] = 10
    before[:, 3, 1] = 90  # zebras were taken for cats
    after[:, 3, 3] = 90
    (cat,) = judge_old(before, after, NAMES, [1], 1.0)
    assert (cat.before, cat.after, cat.drop) == (100.0, 100.0, 0.0)


def test_what_was_taken_for_what() -> None:
    before, after = np.zeros((30, 4, 3), np.int64), np.zeros((30, 4, 4), np.int64)
    before[:, 1] = [10, 80, 10]
    after[:, 1] = [10, 20, 20, 50]
    before[:, 2, 2] = after[:, 2, 2] = 10
    cat, dog = judge_old(before, after, NAMES, [1, 2], 1.0)
    assert cat.confused == ("zebra", 0.5)
    assert dog.confused is None
    assert (cat.verdict, dog.verdict) == ("fails", "fails")  # dog: false positives on cats
    assert cat.interval == pytest.approx((cat.drop, cat.drop))


def test_the_answer_as_a_whole() -> None:
    kept = OldClass("cat", 30, 80.0, 79.5, 0.5, (0.2, 0.8), "kept", None)
    unsure = OldClass("dog", 9, 80.0, 77.0, 3.0, (-1.0, 5.0), "unsure", ("zebra", 0.1))
    fails = OldClass("cow", 30, 80.0, 60.0, 20.0, (15.0, 25.0), "fails", ("zebra", 0.2))
    good, bad = (
        NewClass("zebra", 4, *rest, None)
        for rest in ((50.0, (0.0, math.nan), "few"), (0.0, (0.0, math.nan), "fails"))
    )
    assert Verdicts((kept, unsure), (good,)).passes
    assert not Verdicts((kept, fails), (good,)).passes
    assert not Verdicts((kept,), (bad,)).passes
    assert Verdicts().passes
    reasons = Verdicts((kept, unsure, fails), (bad,)).reasons
    assert len(reasons) == 2
    assert reasons[0] == "cow drops by 20.0 points (90 % interval 15.0 to 25.0, 30 images)"
    plain = json.loads(json.dumps(Verdicts((fails,), (bad,)).as_json()))
    assert plain["new"][0]["interval"] == [0.0, None]
    assert plain["old"][0]["confused"] == ["zebra", 0.2]


def test_the_numbers_in_the_description_are_those_of_the_code() -> None:
    assert gate.__doc__ is not None
    assert f"drawn {DRAWS:,} times" in gate.__doc__
    assert gate.INTERVAL == (5, 95)
