"""Exemplars: the choice keeps its guarantees, each shows only what was annotated while it was stored."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segrow.errors import LeakError, UserError
from segrow.memory import (
    Candidate,
    Exemplar,
    check_memory,
    exemplar_table,
    from_json,
    merge_candidates,
    select_exemplars,
    to_json,
    unshift,
)
from segrow.scenario import IGNORE, UNKNOWN, Scenario, Step


def candidates_of(contents: Sequence[frozenset[int]]) -> list[Candidate]:
    return [Candidate(Exemplar(f"image{i}", 0, (1, 2, 3)), c) for i, c in enumerate(contents)]


def scenario() -> Scenario:
    """apple, pear | plum | fig; image b belongs to steps 0 and 1."""
    return Scenario(
        data="folder",
        task="2-1",
        setting="overlap",
        classes=("background", "pear", "apple", "plum", "fig"),
        raw_ids=(0, 2, 1, 3, 5),  # raw id 4 is a class that nobody learns
        ignore_id=255,
        n_raw=6,
        steps=(
            Step(0, ("pear", "apple"), 1, ("a", "b")),
            Step(1, ("plum",), 3, ("b", "c")),
            Step(2, ("fig",), 4, ("d",)),
        ),
    )


# --- the choice -----------------------------------------------------------------------------------------


def explained(chosen: Sequence[frozenset[int]], all_: Sequence[frozenset[int]], size: int, n: int) -> bool:
    """Whether some order of the n classes, taken in turn, leads to this choice.

    In its turn a class adds an image that contains it, unless all of those are chosen. The choice ends at
    `size` images, or when no class has any left.
    """
    for order in permutations(range(1, n + 1)):
        left, taken, fits = Counter(all_), list(chosen), True
        while fits and len(chosen) - len(taken) < size and any(set(order) & c for c in left.elements()):
            for c in order:
                if len(chosen) - len(taken) == size or not any(c in contents for contents in left.elements()):
                    continue
                if not taken or c not in taken[0]:
                    fits = False
                    break
                left[taken.pop(0)] -= 1
        if fits and not taken:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    contents=st.lists(st.frozensets(st.integers(1, 3)), max_size=9),
    n=st.integers(0, 3),
    size=st.integers(0, 12),
    seed=st.tuples(st.integers(0, 99), st.integers(0, 5)),
)
def test_choice_keeps_its_guarantees(
    contents: list[frozenset[int]], n: int, size: int, seed: tuple[int, int]
) -> None:
    candidates = candidates_of(contents)
    contains = {c.exemplar.image: c.contains for c in candidates}
    chosen = select_exemplars(candidates, range(1, n + 1), size, seed)
    images = [e.image for e in chosen]
    useful = {image for image, c in contains.items() if c & set(range(1, n + 1))}
    assert len(images) == len(set(images)) == min(size, len(useful))
    assert set(images) <= useful
    assert all(c.exemplar in chosen for c in candidates if c.exemplar.image in images)
    assert explained([contains[i] for i in images], contents, size, n)
    assert chosen == select_exemplars(candidates, range(1, n + 1), size, seed)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    size=st.integers(0, 15),
    seed=st.integers(0, 99),
)
def test_classes_are_balanced(counts: list[int], size: int, seed: int) -> None:
    """With one class an image: no class has two fewer than another unless it has no images left."""
    contents = [frozenset({c}) for c, count in enumerate(counts, start=1) for _ in range(count)]
    candidates = candidates_of(contents)
    chosen = select_exemplars(candidates, range(1, len(counts) + 1), size, (seed,))
    got = Counter(next(iter(contents[int(e.image.removeprefix("image"))])) for e in chosen)
    most = max(got.values(), default=0)
    for c, count in enumerate(counts, start=1):
        assert got[c] == count or got[c] >= most - 1


def test_the_draw_is_uniform_and_hangs_on_the_seed() -> None:
    candidates = candidates_of([frozenset({1}), frozenset({1, 2}), frozenset({1, 3}), frozenset({1})])
    first = Counter(select_exemplars(candidates, (1,), 1, (s, 3))[0].image for s in range(800))
    assert set(first) == {c.exemplar.image for c in candidates}
    assert all(150 < count < 250 for count in first.values())


def test_the_class_order_is_drawn() -> None:
    candidates = candidates_of([frozenset({1}), frozenset({2}), frozenset({3})])
    first = Counter(select_exemplars(candidates, (1, 2, 3), 1, (s,))[0].image for s in range(300))
    assert all(60 < first[c.exemplar.image] < 140 for c in candidates)


# --- candidates -------------------------------------------------------------------------------------------


def test_candidates_are_the_old_exemplars_and_the_images() -> None:
    previous = [(Exemplar("b", 0, (1, 2)), frozenset({1})), (Exemplar("a", 0, (1, 2)), frozenset({2}))]
    images = [("c", frozenset({3})), ("b", frozenset({3, 2}))]
    assert merge_candidates(previous, images, 1, (3,)) == [
        Candidate(Exemplar("a", 0, (1, 2)), frozenset({2})),
        Candidate(Exemplar("b", 1, (1, 2, 3)), frozenset({1, 2, 3})),  # annotated twice
        Candidate(Exemplar("c", 1, (3,)), frozenset({3})),
    ]


@settings(max_examples=60, deadline=None)
@given(
    old=st.dictionaries(st.sampled_from("abcd"), st.frozensets(st.integers(1, 3), min_size=1), max_size=4),
    new=st.dictionaries(st.sampled_from("abcd"), st.frozensets(st.integers(1, 5)), max_size=4),
)
def test_merged_candidates_are_unions(old: dict[str, frozenset[int]], new: dict[str, frozenset[int]]) -> None:
    previous = [(Exemplar(i, 0, tuple(sorted(c))), c) for i, c in old.items()]
    merged = merge_candidates(previous, list(new.items()), 1, range(4, 6))
    assert [c.exemplar.image for c in merged] == sorted({*old, *new})
    for candidate in merged:
        image = candidate.exemplar.image
        assert candidate.contains == old.get(image, frozenset()) | new.get(image, frozenset())
        annotated = set(old.get(image, ())) | ({4, 5} if image in new else set())
        assert candidate.exemplar.classes == tuple(sorted(annotated))
        assert candidate.exemplar.step == (1 if image in new else 0)


# --- what an exemplar shows -----------------------------------------------------------------------------


def test_tables_of_an_exemplar() -> None:
    exemplar = Exemplar("a", 0, (1, 2))
    known, seen = (exemplar_table(scenario(), exemplar, 2, labels) for labels in ("known", "seen"))
    # raw ids: 0 background, 1 apple = class 2, 2 pear = 1, 3 plum = 3, 4 nobody's, 5 fig = 4
    assert known[:6].tolist() == [0, 2, 1, 0, 0, 0]
    assert seen[:6].tolist() == [0, 2, 1, 3, 0, 4]
    assert exemplar_table(scenario(), exemplar, 1, "seen")[:6].tolist() == [0, 2, 1, 3, 0, 0]
    for table in (known, seen):
        assert (table[6:] == IGNORE).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), height=st.integers(1, 6), width=st.integers(1, 6))
def test_unshift_equals_the_naive_one(seed: int, height: int, width: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 6, (height, width)).astype(np.int16)
    ours = unshift(labels)
    assert ours.dtype == np.int16
    assert (ours == naive.unshift(labels.astype(np.int64))).all()


def test_unshift_by_hand() -> None:
    labels = np.array([IGNORE, 0, 1, 2, 7], np.int16)
    assert unshift(labels).tolist() == [IGNORE, UNKNOWN, 0, 1, 6]
    assert labels.tolist() == [IGNORE, 0, 1, 2, 7]


# --- the guard --------------------------------------------------------------------------------------------


def test_a_rightful_memory_passes() -> None:
    check_memory((), scenario(), 0)
    check_memory(
        (Exemplar("a", 0, (1, 2)), Exemplar("b", 1, (1, 2, 3)), Exemplar("c", 1, (3,))), scenario(), 2
    )


@pytest.mark.parametrize(
    ("exemplar", "step", "allowed"),
    [
        (Exemplar("d", 0, ()), 1, r"\[\]"),  # an image of a later step
        (Exemplar("nowhere", 0, (1,)), 2, r"\[\]"),
        (Exemplar("a", 0, (1, 2)), 0, r"\[\]"),  # nothing is stored before step 0
        (Exemplar("a", 0, (1, 2, 3)), 2, r"\[1, 2\]"),  # a class of a step that it was not in
        (Exemplar("b", 1, (1, 2, 3)), 1, r"\[1, 2\]"),  # of step 1, which is only being trained
        (Exemplar("c", 1, (1,)), 2, r"\[3\]"),
    ],
)
def test_a_memory_that_could_not_be(exemplar: Exemplar, step: int, allowed: str) -> None:
    rightful = (Exemplar("a", 0, (1, 2)),) if step else ()
    granted = list(exemplar.classes)
    message = f"exemplar {exemplar.image} may show classes {allowed} at step {step}, .* grants it .*{granted}"
    with pytest.raises(LeakError, match=message.replace(f"{granted}", str(granted).replace("[", r"\["))):
        check_memory((*rightful, exemplar), scenario(), step)


# --- memory.json ----------------------------------------------------------------------------------------


def test_memory_survives_its_file(tmp_path: Path) -> None:
    memory = (Exemplar("a", 0, (1, 2)), Exemplar("ü/b", 1, (1, 2, 3)))
    path = tmp_path / "memory.json"
    path.write_bytes(to_json(memory))
    assert from_json(path.read_bytes()) == memory


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{}", "memory.json lacks exemplars;"),
        (b'{"exemplars": [1]}', "memory.json: exemplars[0] holds 1,"),
        *(
            (
                json.dumps({"exemplars": [{"image": name, "step": 0, "classes": [1]}]}).encode(),
                "below the data set",
            )
            for name in ("../x", "/etc/x", "a/../../x", "C:x", "a\\..\\x", "", "..", "a//b", "./a")
        ),
    ],
)
def test_a_damaged_memory_is_one_line(content: bytes, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        from_json(content)
    assert "\n" not in str(caught.value)
