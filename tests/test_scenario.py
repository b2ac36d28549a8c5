"""Scenarios against selections written with loops, lookup tables against per-pixel remaps."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trees import Mask, voc_tree

from segrow.data.voc import VocDataset
from segrow.errors import UserError
from segrow.scenario import IGNORE, Scenario, build_scenario

VOC2012 = Path(__file__).parents[2] / "shared/data/VOC2012"
FEW = settings(max_examples=150, deadline=None)


@dataclass(frozen=True)
class Shown:
    """Presence as plain data."""

    ids: tuple[str, ...]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A random question to `build_scenario`."""

    names: tuple[str, ...]
    shown: dict[str, set[int]]
    chosen: tuple[str, ...] | None
    task: str
    order_seed: int | None

    @property
    def presence(self) -> Shown:
        present = np.zeros((len(self.shown), len(self.names)), dtype=np.bool_)
        for row, classes in enumerate(self.shown.values()):
            present[row, list(classes)] = True
        return Shown(tuple(self.shown), present)

    def build(self, setting: str, seed: int = 1) -> Scenario:
        return build_scenario(
            "toy", self.names, 255, self.presence, self.task, setting, self.chosen, self.order_seed, seed
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_raw = draw(st.integers(2, 9))
    names = ("background", *(f"class{c}" for c in range(1, n_raw)))
    subset = draw(
        st.none()
        | st.permutations(names[1:]).flatmap(lambda p: st.integers(1, len(p)).map(lambda k: tuple(p[:k])))
    )
    n = len(subset) if subset else n_raw - 1
    tasks = ["offline"] + [f"{b}-{i}" for b in range(1, n) for i in range(1, n) if (n - b) % i == 0]
    images = draw(st.lists(st.sets(st.integers(0, n_raw - 1)), max_size=25))
    # shuffled ids: the order of the data set is not that of the alphabet
    labels = draw(st.permutations(range(len(images))))
    shown = {f"img{label}": classes for label, classes in zip(labels, images, strict=True)}
    return Case(names, shown, subset, draw(st.sampled_from(tasks)), draw(st.none() | st.integers(0, 5)))


def naive_split(order: Sequence[int], task: str) -> list[list[int]]:
    """Raw ids of each step."""
    if task == "offline":
        return [list(order)]
    base, increment = (int(x) for x in task.split("-"))
    groups, rest = [list(order[:base])], list(order[base:])
    while rest:
        groups.append(rest[:increment])
        rest = rest[increment:]
    return groups


def naive_images(shown: dict[str, set[int]], groups: list[list[int]], setting: str) -> list[list[str]]:
    """Images of each step; overlap and disjoint."""
    steps = []
    for number, group in enumerate(groups):
        images = []
        for image, classes in shown.items():
            has_new = False
            has_future = False
            for c in classes:
                if c in group:
                    has_new = True
                for later in groups[number + 1 :]:
                    if c in later:
                        has_future = True
            if has_new and not (setting == "disjoint" and has_future):
                images.append(image)
        steps.append(images)
    return steps


def naive_remap(
    mask: Mask,
    names: Sequence[str],
    order: Sequence[int],
    visible: Collection[int],
    ignore_id: int,
) -> NDArray[np.int16]:
    """order[i - 1] = raw id of class index i."""
    out = np.zeros(mask.shape, dtype=np.int16)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            value = int(mask[y, x])
            if value == ignore_id or value >= len(names):
                out[y, x] = IGNORE
            elif value in order and list(order).index(value) + 1 in visible:
                out[y, x] = list(order).index(value) + 1
    return out


def naive_order(case: Case) -> list[int]:
    """The learning order in raw ids."""
    order = []
    for name in case.chosen or case.names[1:]:
        order.append(case.names.index(name))
    if case.order_seed is None:
        return order
    return [order[i] for i in np.random.default_rng(case.order_seed).permutation(len(order))]


def scenario_or_none(case: Case, setting: str, seed: int = 1) -> Scenario | None:
    """None when a step has no image."""
    try:
        return case.build(setting, seed)
    except UserError as error:
        if f"has no image in the {setting} setting" not in str(error):
            raise
    return None


@FEW
@given(cases(), st.sampled_from(["overlap", "disjoint"]))
def test_equals_a_naive_selection(case: Case, setting: str) -> None:
    scenario = scenario_or_none(case, setting)
    order = naive_order(case)
    groups = naive_split(order, case.task)
    images = naive_images(case.shown, groups, setting)
    if not all(images):
        assert scenario is None
        return
    assert scenario is not None
    assert [[case.names.index(n) for n in s.classes] for s in scenario.steps] == groups
    assert [list(s.images) for s in scenario.steps] == images
    assert scenario.raw_ids == (0, *order)
    assert scenario.classes == ("background", *(case.names[raw] for raw in order))


@FEW
@given(cases(), st.integers(0, 3))
def test_partitioned_gives_every_image_to_one_step_that_teaches_a_class_of_it(case: Case, seed: int) -> None:
    scenario = scenario_or_none(case, "partitioned", seed)
    if scenario is None:
        return
    order = naive_order(case)
    owners = Counter(image for step in scenario.steps for image in step.images)
    assert owners == {image: 1 for image, classes in case.shown.items() if classes & set(order)}
    for step, group in zip(scenario.steps, naive_split(order, case.task), strict=True):
        for image in step.images:
            assert case.shown[image] & set(group)
        assert list(step.images) == [image for image in case.shown if image in step.images]
    assert case.build("partitioned", seed) == scenario


def test_partitioned_chooses_uniformly_among_the_classes_present() -> None:
    shown = {f"i{k}": {1, 2, 3} if k % 2 else {0, 2, 4} for k in range(6000)}
    case = Case(("background", "a", "b", "c", "d"), shown, None, "1-1", None)
    scenario = case.build("partitioned")
    counts = [len(step.images) for step in scenario.steps]
    # binomial(3000, 1/3): standard deviation 26; b has two halves: binomial(3000, 1/3) + binomial(3000, 1/2)
    assert np.abs(np.array(counts) - [1000, 2500, 1000, 1500]).max() < 150
    assert case.build("partitioned", seed=2).steps != scenario.steps


def test_partitioned_does_not_depend_on_the_learning_order() -> None:
    shown = {f"i{k}": {1, 2, 3} for k in range(60)}
    names = ("background", "a", "b", "c")
    first = Case(names, shown, ("a", "b", "c"), "1-1", None).build("partitioned")
    second = Case(names, shown, ("c", "a", "b"), "1-1", None).build("partitioned")
    assert {s.classes: s.images for s in first.steps} == {s.classes: s.images for s in second.steps}


@FEW
@given(cases(), st.sampled_from(["overlap", "disjoint", "partitioned"]))
def test_every_training_image_shows_a_new_class_and_no_table_a_future_one(case: Case, setting: str) -> None:
    scenario = scenario_or_none(case, setting)
    if scenario is None:
        return
    for step in scenario.steps:
        table = scenario.train_table(step.index)
        assert set(table.tolist()) == {IGNORE, 0, *step.indices}
        seen = scenario.train_table(step.index, "seen")
        assert set(seen.tolist()) == {IGNORE, 0, *range(1, scenario.known(step.index))}
        for image in step.images:
            assert {int(table[raw]) for raw in case.shown[image]} & set(step.indices)


@FEW
@given(cases(), st.data())
def test_tables_equal_a_naive_remap(case: Case, data: st.DataObject) -> None:
    scenario = scenario_or_none(case, "overlap")
    if scenario is None:
        return
    values = data.draw(
        st.lists(st.sampled_from([*range(len(case.names) + 1), 254, 255]), min_size=12, max_size=12)
    )
    mask = np.array(values, dtype=np.uint8).reshape(3, 4)
    order = naive_order(case)
    visible = data.draw(st.sets(st.integers(0, len(order))))
    np.testing.assert_array_equal(
        scenario.table(visible)[mask], naive_remap(mask, case.names, order, visible, 255)
    )
    for step in scenario.steps:
        known = range(1, scenario.known(step.index))
        new, seen = scenario.train_table(step.index), scenario.train_table(step.index, "seen")
        np.testing.assert_array_equal(new[mask], naive_remap(mask, case.names, order, step.indices, 255))
        np.testing.assert_array_equal(seen[mask], naive_remap(mask, case.names, order, known, 255))
    everything = naive_remap(mask, case.names, order, range(1, len(order) + 1), 255)
    np.testing.assert_array_equal(scenario.eval_table()[mask], everything)
    assert scenario.eval_table().dtype == np.int16
    assert len(scenario.eval_table()) == 256


@FEW
@given(cases(), st.sampled_from(["overlap", "disjoint", "partitioned"]))
def test_images_seen_so_far_come_once_in_the_order_of_the_data_set(case: Case, setting: str) -> None:
    scenario = scenario_or_none(case, setting)
    if scenario is None:
        return
    for step in scenario.steps:
        union = {image for s in scenario.steps[: step.index + 1] for image in s.images}
        assert scenario.images(step.index, "seen") == tuple(i for i in case.shown if i in union)
        assert scenario.images(step.index) == step.images


def small(task: str = "2-1", setting: str = "overlap", **options: object) -> Scenario:
    """Four classes, every one shown; `options` of build_scenario."""
    names = options.pop("class_names", ("background", "cat", "dog", "horse", "sheep"))
    assert isinstance(names, tuple)
    present = np.eye(len(names), dtype=np.bool_)[1:]
    ids = tuple(f"i{k}" for k in range(len(present)))
    data = str(options.pop("data", "toy"))
    return build_scenario(data, names, 255, Shown(ids, present), task, setting, **options)  # type: ignore[arg-type]


def test_steps_and_known() -> None:
    scenario = small("2-1")
    assert [s.classes for s in scenario.steps] == [("cat", "dog"), ("horse",), ("sheep",)]
    assert [s.indices for s in scenario.steps] == [range(1, 3), range(3, 4), range(4, 5)]
    assert [scenario.known(t) for t in range(3)] == [3, 4, 5]


def test_offline_is_one_step() -> None:
    assert [s.classes for s in small("offline").steps] == [("cat", "dog", "horse", "sheep")]


def test_order_seed_shuffles_what_classes_selected() -> None:
    first = small("1-1", classes=("sheep", "cat", "dog"), order_seed=1)
    assert first == small("1-1", classes=("sheep", "cat", "dog"), order_seed=1)
    assert sorted(first.classes[1:]) == ["cat", "dog", "sheep"]
    orders = {small("1-1", order_seed=seed).classes for seed in range(8)}
    assert len(orders) > 3


def test_wide_masks_have_wide_tables() -> None:
    names = ("background", *(f"c{k}" for k in range(1, 300)))
    scenario = build_scenario(
        "toy", names, 65535, Shown(("a",), np.ones((1, 300), dtype=np.bool_)), "offline", "overlap"
    )
    table = scenario.eval_table()
    assert len(table) == 65536
    assert table[299] == 299
    assert table[255] == 255
    assert table[65535] == table[300] == IGNORE


def test_table_rejects_what_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"class index -1 is not in 0\.\.4"):
        small().table([-1])


# SSUL's orders: the same facts as its command line names, twice, typed by hand from its order b and w.
ORDER_B = [12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11, 17, 3, 6, 18, 10]
ORDER_W = [1, 2, 12, 14, 13, 19, 18, 7, 11, 20, 8, 4, 9, 16, 10, 3, 15, 6, 5, 17]
VOC = ("background", *(f"voc{k}" for k in range(1, 21)))


def test_named_orders_of_ssul() -> None:
    assert small("15-1_b", class_names=VOC, data="voc").raw_ids == (0, *ORDER_B)
    assert small("10-1_w", class_names=VOC, data="voc").raw_ids == (0, *ORDER_W)
    for letter in "bcdefghijklmnopqrstuvw":
        assert sorted(small(f"15-1_{letter}", class_names=VOC, data="voc").raw_ids) == list(range(21))


def test_disjoint_goes_by_learning_order_not_by_id() -> None:
    rng = np.random.default_rng(3)
    shown = {f"i{k}": {int(c) for c in rng.integers(0, 21, 3)} for k in range(600)}
    scenario = build_scenario(
        "voc", VOC, 255, Case(VOC, shown, None, "", None).presence, "15-1_b", "disjoint"
    )
    groups = naive_split(ORDER_B, "15-1")
    assert [list(s.images) for s in scenario.steps] == naive_images(shown, groups, "disjoint")


@pytest.mark.parametrize("setting", ["overlap", "disjoint", "partitioned"])
def test_from_files_to_steps(tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    tree = voc_tree(tmp_path / "VOC2012", train=90, val=2, size=(6, 20), saliency=False)
    data = VocDataset(tree.root)
    presence = data.presence("train", progress=False)
    scenario = build_scenario("voc", data.class_names, data.ignore_id, presence, "15-1_b", setting)
    groups = naive_split(ORDER_B, "15-1")
    got = [list(s.images) for s in scenario.steps]
    if setting != "partitioned":
        assert got == naive_images(tree.shown["train"], groups, setting)
    else:
        assert sorted(image for images in got for image in images) == sorted(tree.ids("train"))
    for group, step in zip(groups, scenario.steps, strict=True):
        for image in step.images:
            mask = data.mask("train", image)
            labels = scenario.train_table(step.index)[mask]
            assert set(labels.ravel().tolist()) & set(step.indices)
            assert set(labels.ravel().tolist()) <= {IGNORE, 0, *step.indices}
            expected = naive_remap(mask, VOC, ORDER_B, [ORDER_B.index(c) + 1 for c in group], 255)
            np.testing.assert_array_equal(labels, expected)


@pytest.mark.skipif(not VOC2012.is_dir(), reason="the real part of VOC 2012 is not here")
def test_animals_on_real_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path))
    data = VocDataset(VOC2012)
    classes = ("person", "chair", "cat", "dog", "horse", "sheep", "cow", "sofa")
    presence = data.presence("train", progress=False)
    scenario = build_scenario("voc", data.class_names, data.ignore_id, presence, "4-1", "overlap", classes)
    counts = {s.classes: len(s.images) for s in scenario.steps[1:]}
    assert counts == {("horse",): 444, ("sheep",): 299, ("cow",): 262, ("sofa",): 91}
    assert len(presence.ids) == 3151


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        (
            "3-2",
            {},
            "task 3-2 does not add up: 3 + 1 x 2 = 5, but toy has 4 classes to learn; change the task",
        ),
        ("1-2", {}, "1 + 1 x 2 = 3, 1 + 2 x 2 = 5, but toy has 4"),
        ("4-1", {}, "4 + 1 x 1 = 5, but toy has 4"),
        ("9-1", {}, "9 + 1 x 1 = 10, but toy has 4"),
        ("2-1", {"classes": ("cat", "dog")}, "2 + 1 x 1 = 3, but toy has 2 classes to learn"),
        ("2-0", {}, 'task "2-0" teaches 0 classes in a step'),
        ("0-2", {}, 'task "0-2" teaches 0 classes in a step'),
        ("ofline", {}, 'unknown task "ofline", expected BASE-INCREMENT .* Did you mean "offline"?'),
        ("15-1s", {}, 'unknown task "15-1s", .* Did you mean "15-1"?'),
        (
            "15-5s",
            {},
            'unknown task "15-5s", .* Did you mean "15-1"? MiB\'s and PLOP\'s s: 15 classes, then one',
        ),
        ("15-5S", {}, 'Did you mean "15-1"?'),
        ("10-10s", {}, 'Did you mean "10-1"?'),
        ("15_1", {}, 'Did you mean "15-1"?'),
        ("15\u20131", {}, 'Did you mean "15-1"?'),
        ("15 - 1", {}, 'Did you mean "15-1"?'),
        ("15-1-1-1-1-1", {}, 'Did you mean "15-1"?'),
        ("15-1-overlap", {}, 'Did you mean "15-1" with --setting overlap?'),
        ("15-5s_disjoint", {}, 'Did you mean "15-1" with --setting disjoint?'),
        ("100-50b", {}, 'Its steps are those of "100-50", but "b" is a class order'),
        ("15-5s_b", {}, 'Its steps are those of "15-1", but "b" is a class order'),
        ("50", {}, "MiB's and PLOP's task \"50\" of ADE20K is 50-50 here"),
        ("Offline", {}, 'Did you mean "offline"?'),
        ("joint", {}, 'Did you mean "offline"?'),
        ("2-1", {"setting": "overlaped"}, 'unknown setting "overlaped", .* Did you mean "overlap"?'),
        (
            "2-1",
            {"classes": ("cat", "shep")},
            'unknown class "shep"; toy has 4 classes: cat, .* Did you mean "sheep"?',
        ),
        ("2-1", {"classes": ("cat", "background")}, '"background" is what no class covers'),
        ("2-1", {"classes": ("cat", "dog", "cat")}, '--data.classes hold "cat" twice'),
        ("2-1", {"classes": ()}, "--data.classes is empty"),
        ("2-1", {"class_names": ("background", "cat", "cat")}, 'the classes of toy hold "cat" twice'),
        ("offline", {"class_names": ("background",)}, "toy has no class besides background"),
        ("2-1_b", {}, "task 2-1_b: the order b is one of voc's 20 classes, not of toy"),
        (
            "15-1_z",
            {"class_names": VOC, "data": "voc"},
            'unknown class order "z" in task 15-1_z, expected b, c,',
        ),
        ("15-1_B", {"class_names": VOC, "data": "voc"}, 'unknown class order "B" .* Did you mean "15-1_b"?'),
        ("15-1_b", {"class_names": VOC, "data": "voc", "order_seed": 1}, "and --data.order_seed another"),
        (
            "1-1_b",
            {"class_names": VOC, "data": "voc", "classes": ("voc1", "voc2")},
            "and --data.classes another",
        ),
    ],
)
def test_one_line_errors(task: str, options: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        small(task, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    pattern = ".*".join(re.escape(part) for part in line.split(" .* "))
    assert re.search(pattern, message), message
    assert "\n" not in message


@pytest.mark.parametrize("task", ["15-5-1", "abc", "", "overlap", "1.5-1"])
def test_what_is_near_no_task_gets_no_hint(task: str) -> None:
    with pytest.raises(UserError, match="unknown task") as caught:
        small(task)
    assert str(caught.value).endswith("such as 15-1, 15-1_b, or offline.")


@pytest.mark.parametrize(
    ("setting", "shown", "line"),
    [
        (
            "overlap",
            [{1}, {2}],
            r"step 1 \(sheep\) has no image in the overlap setting: no training image shows",
        ),
        (
            "disjoint",
            [{1, 3}, {2, 3}],
            r"step 0 \(cat, dog\) has no image in the disjoint setting: every training",
        ),
        (
            "partitioned",
            [{1}, {2}],
            r"step 1 \(sheep\) has no image in the partitioned setting: no training image",
        ),
    ],
)
def test_a_step_without_images_is_named(setting: str, shown: list[set[int]], line: str) -> None:
    names = ("background", "cat", "dog", "sheep")
    case = Case(names, {f"i{k}": classes for k, classes in enumerate(shown)}, None, "2-1", None)
    with pytest.raises(UserError, match=line):
        case.build(setting)
