"""Kept features: of the right image, view, label table and teacher, always; and what happens without room."""

import copy
import errno
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import last_line, log, matrices, model, results, run_processes, start, weights
from runs import options as run_options
from steps import shake
from test_resume import Stopper
from torch import Tensor

from segrow.config import ModelConfig, TrainConfig
from segrow.data import open_dataset
from segrow.data.augment import Augmentation
from segrow.data.loader import EpochPlan, Loaded, StepImages, to_device
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.feature_store import FeatureStore, Layout, View
from segrow.engine.features import StepFeatures, _layout, keep_features
from segrow.engine.log import Display
from segrow.engine.machine import Machine
from segrow.engine.setup import make_fabric
from segrow.engine.step import chunks
from segrow.errors import LeakError, UserError
from segrow.memory import Exemplar
from segrow.methods.base import Method, StepContext
from segrow.methods.lwf import Lwf
from segrow.methods.mib import Mib
from segrow.methods.plop import Plop
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.scenario import Scenario, build_scenario

CROP, K, EPOCHS, BATCH, SEED = 32, 2, 5, 4, 7
NAMES = ("aeroplane", "bicycle", "bird", "boat")


class Bench(NamedTuple):
    """One increment, ready to keep features."""

    machine: Machine
    method: Method
    ctx: StepContext
    images: StepImages
    plan: EpochPlan
    store: FeatureStore

    def keep(self, epochs: int = EPOCHS) -> StepFeatures | None:
        return keep_features(self.store, self.machine, self.method, self.ctx, self.images, self.plan, epochs)

    def kept(self) -> StepFeatures:
        features = self.keep()
        assert features is not None
        features.build()
        return features

    def draw(self, features: StepFeatures, epochs: int = EPOCHS) -> Iterator[tuple[Loaded, list[int]]]:
        """Batches of all epochs, and the turn of each position's image (test_turns_count_draws)."""
        for epoch in range(epochs):
            for draws in self.plan.batches(epoch):
                (loaded,) = features.batches([draws])
                yield loaded, [draw.turn for draw in draws]


@pytest.fixture(scope="module")
def scenario(root: Path) -> Scenario:
    data = open_dataset("voc", str(root), 0)
    present = data.presence("train", progress=False)
    return build_scenario("voc", data.class_names, data.ignore_id, present, "2-1", "overlap", NAMES)


def network(name: str = "deeplabv3_test_resnet") -> Segmenter:
    torch.manual_seed(0)
    made = build_segmenter(ModelConfig(name=name, weights="none", width=8), 2, True, lambda line: None)
    shake(made, 3.0)
    balance(made)
    return made


@torch.no_grad()
def balance(made: Segmenter) -> None:
    """Shift the biases so that every channel wins somewhere: a teacher with something to say."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (16, 3, 4, 4)), np.ones((8, 8))).astype(np.uint8)
    out = made.eval()(torch.from_numpy(blocks))
    assert out.unknown is not None
    assert made.unknown is not None
    first = 0
    for head in made.heads:
        n = head.out.out_channels
        head.out.bias -= out.logits[:, first : first + n].mean((0, 2, 3))
        first += n
    made.unknown.out.bias -= out.unknown.mean()


def increment(
    root: Path,
    scenario: Scenario,
    method: Method,
    grown: Segmenter,
    step: int = 1,
    exemplars: tuple[Exemplar, ...] = (),
    store: FeatureStore | None = None,
    views: int = K,
) -> Bench:
    """A step as engine/run.py prepares it."""
    train = TrainConfig(
        batch_size=BATCH, crop=CROP, workers=0, device="cpu", feature_views=views, epochs=EPOCHS
    )
    fabric, precision = make_fabric(train)
    machine = Machine(fabric, precision, train, SEED, root, Display())
    teacher = copy.deepcopy(grown).eval().requires_grad_(False)
    grown.grow(1, step)
    ctx = StepContext(step, grown, teacher, scenario.known(step), scenario.known(step - 1))
    method.begin_step(ctx)
    ctx.share_frozen_trunk()
    images = StepImages(
        open_dataset("voc", str(root), 0),
        scenario,
        step,
        method.sees,
        exemplars,
        exemplar_labels="known",
        unshifted=False,
        aux=method.aux,
        augmentation=Augmentation(CROP, "scale", (0.5, 2.0), 0.5, "ignore", (124, 116, 104)),
        void="ignore",
    )
    plan = EpochPlan(len(images), len(exemplars), BATCH, SEED, step)
    return Bench(machine, method, ctx, images, plan, store or FeatureStore(1 << 30))


def direct(bench: Bench, image: str, number: int) -> tuple[tuple[Tensor, ...], np.ndarray, np.ndarray | None]:
    """The trunk's maps, raw ids and saliency of a view, without any store."""
    rng = np.random.default_rng([SEED, zlib.crc32(image.encode()), number])
    raw = bench.images.raw(image, rng)
    with torch.no_grad():
        pixels = raw.image[None].contiguous(memory_format=torch.channels_last)
        return bench.ctx.model.eval().encode(pixels), raw.mask, raw.saliency


def stored(scenario: Scenario, step: int = 0, n: int = 3) -> tuple[Exemplar, ...]:
    taught = scenario.steps[step]
    return tuple(Exemplar(image, step, tuple(taught.indices)) for image in taught.images[:n])


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 20), st.integers(0, 9), st.integers(2, 4), st.integers(1, 6))
def test_turns_count_draws(n_images: int, n_exemplars: int, batch: int, epochs: int) -> None:
    """With a memory the images come from one endless sequence of permutations, without one epoch by epoch."""
    plan = EpochPlan(n_images, n_exemplars, batch, SEED, 1)
    found: dict[tuple[int, bool], list[int]] = {}
    for epoch in range(epochs):
        for draws in plan.batches(epoch):
            for draw in draws:
                found.setdefault((draw.index, draw.from_memory), []).append(draw.turn)
    most = plan.turns(epochs)
    for (_, replayed), turns in found.items():
        assert len(set(turns)) == len(turns)  # the same view comes again only after all others
        assert max(turns) < most[replayed]
        if n_exemplars:
            assert sorted(turns) == list(range(len(turns)))
        else:
            assert turns == sorted(turns)


@pytest.mark.parametrize("name", ["deeplabv3_test_resnet", "deeplabv3plus_resnet10t"])
def test_what_is_read_is_of_this_image_view_table_and_teacher(
    root: Path, scenario: Scenario, name: str
) -> None:
    exemplars = stored(scenario)
    bench = increment(root, scenario, Ssul(threshold=0.4), network(name), exemplars=exemplars)
    features = bench.kept()
    new = set(scenario.steps[1].indices)
    certain, labelled = 0, Counter[bool]()
    for (batch, ids), turns in bench.draw(features):
        assert batch.images.numel() == 0
        assert batch.verdict is not None
        for k, (image, turn) in enumerate(zip(ids, turns, strict=True)):
            parts, mask, saliency = direct(bench, image, turn % K)
            for kept, part in zip(batch.parts, parts, strict=True):
                assert kept.dtype == torch.bfloat16
                torch.testing.assert_close(kept[k].float(), part[0], rtol=1e-2, atol=1e-5)
            replayed = bool(batch.from_memory[k])
            shown = new if not replayed else {1, 2}  # of step 0
            expected = np.zeros(mask.shape, np.int64)
            for index in shown:
                expected[mask == scenario.raw_ids[index]] = index
            expected[mask == 255] = -1
            assert (batch.labels[k].numpy() == expected).all()
            labelled[replayed] += int((expected > 0).sum())
            assert saliency is not None
            assert (batch.aux["saliency"][k].numpy() == saliency).all()
            assert bench.ctx.teacher is not None
            with torch.no_grad():
                joined = bench.ctx.model.trunk.join(tuple(p[k : k + 1].float() for p in batch.parts))
                said = bench.method.verdict(bench.ctx, bench.ctx.teacher.classify(joined), (CROP, CROP))
            assert said is not None
            assert (batch.verdict[k] != said[0]).float().mean() < 0.01  # ties of rounding
            certain += int((batch.verdict[k] > 0).sum())
    assert certain > 100
    assert min(labelled.values()) > 100


def test_exemplars_have_a_number_of_views_of_their_own(root: Path, scenario: Scenario) -> None:
    """Two of them, two draws an iteration: they come again sooner than the step's images."""
    bench = increment(root, scenario, Ssul(), network(), exemplars=stored(scenario, n=2), views=5)
    features = bench.keep(4)
    assert features is not None
    features.build()
    counts = (features.record()["views"], features.record()["exemplar_views"])
    assert counts[0] < counts[1] == 5
    seen: set[int] = set()
    for (batch, ids), turns in bench.draw(features, 4):
        for k, (image, turn) in enumerate(zip(ids, turns, strict=True)):
            number = turn % int(counts[bool(batch.from_memory[k])])
            if batch.from_memory[k]:
                seen.add(number)
            (kept,) = bench.store.maps(bench.store.gather([View(image, number)]))
            assert torch.equal(batch.parts[0][k], kept[0])
    assert seen == set(range(5))


@pytest.mark.parametrize("method", [Ssul(), Mib(freeze="trunk")])
def test_dropout_is_fresh_on_kept_features(root: Path, scenario: Scenario, method: Method) -> None:
    bench = increment(root, scenario, method, network())
    features = bench.kept()
    (loaded, _), _ = next(bench.draw(features))
    model = bench.ctx.model.train()

    def value(seed: int, probability: float) -> float:
        torch.manual_seed(seed)
        model.dropout.p = probability
        batch = to_device(loaded, torch.device("cpu"), True)
        return torch.stack(list(method.loss(bench.ctx, batch).values())).sum().item()

    assert value(1, 0.5) == value(1, 0.5) != value(2, 0.5)
    assert value(1, 0.0) == value(2, 0.0)


def test_parts_of_a_batch_stay_together(root: Path, scenario: Scenario) -> None:
    """Gradient accumulation: maps, labels and verdict of the same images."""
    bench = increment(root, scenario, Ssul(), network())
    (batch, _), _ = next(bench.draw(bench.kept()))
    assert batch.verdict is not None
    for k, tensors in enumerate(chunks(batch, 2)):
        some = slice(k * BATCH // 2, (k + 1) * BATCH // 2)
        assert torch.equal(tensors["parts.0"], batch.parts[0][some])
        assert torch.equal(tensors["labels"], batch.labels[some])
        assert torch.equal(tensors["verdict"], batch.verdict[some])
        assert torch.equal(tensors["aux.saliency"], batch.aux["saliency"][some])
    moved = to_device(batch, torch.device("cpu"), True)
    assert moved.verdict is not None  # else the teacher's heads would run again
    assert torch.equal(moved.verdict, batch.verdict)


@pytest.mark.parametrize(("mask", "verdict", "highest"), [("uint8", "uint8", 250), ("uint16", "int16", 999)])
def test_a_row_gives_back_what_was_written(root: Path, mask: str, verdict: str, highest: int) -> None:
    """With more than 255 ids and classes too."""
    rng = np.random.default_rng(0)
    fabric, precision = make_fabric(TrainConfig(device="cpu"))
    machine = Machine(fabric, precision, TrainConfig(), SEED, root, Display())
    store, views = FeatureStore(1 << 20), [View("a", 0), View("b", 3)]
    store.prepare(views, Layout(((2, 3, 4),), (5, 6), mask, True, verdict), "trunk", machine)
    maps = torch.randn(2, 4, 2, 3).bfloat16()
    ids = rng.integers(0, highest, (2, 5, 6)).astype(mask)
    salient = rng.random((2, 5, 6)) < 0.5
    said = torch.from_numpy(rng.integers(-2, highest, (2, 5, 6)).astype(np.int16))
    for k, view in enumerate(views):
        store.write(view, [maps[k]], ids[k], salient[k])
        store.write_verdict(view, said[k])
    rows = store.read(store.gather(views[::-1]))
    assert rows.saliency is not None
    assert rows.verdict is not None
    assert torch.equal(rows.parts[0], maps.flip(0))
    assert (rows.mask.numpy() == ids[::-1]).all()
    assert (rows.saliency.numpy() == salient[::-1]).all()
    assert torch.equal(rows.verdict, said.flip(0))
    other = Layout(((2, 3, 4),), (5, 6), mask, False, verdict)
    assert store.prepare(views, other, "trunk", machine) == views  # rows of another form are not taken over


@pytest.mark.parametrize(
    ("known", "ids", "expected"), [(5, 255, ("uint8", "uint8")), (300, 999, ("int16", "uint16"))]
)
def test_types_hold_all_ids_and_classes(
    root: Path,
    scenario: Scenario,
    known: int,
    ids: int,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = increment(root, scenario, Ssul(), network())
    bench.ctx.known_before = known
    monkeypatch.setattr(bench.images.data, "ignore_id", ids)
    layout = _layout(bench.ctx, bench.method, bench.images, bench.machine)
    assert (layout.verdict, layout.mask) == expected


def test_views_of_an_image_differ_and_take_turns(root: Path, scenario: Scenario) -> None:
    bench = increment(root, scenario, Ssul(), network())
    features = bench.kept()
    seen: dict[tuple[str, int], set[bytes]] = {}
    for (batch, ids), turns in bench.draw(features, 3 * K):
        for image, turn, part in zip(ids, turns, batch.parts[0], strict=True):
            seen.setdefault((image, turn % K), set()).add(part.float().numpy().tobytes())
    assert len(seen) > len(bench.images)
    assert all(len(rows) == 1 for rows in seen.values())  # the same again after K turns
    assert len(set.union(*seen.values())) == len(seen)  # and no other twice
    flips = [
        bench.images.augmentation.view((40, 48), View(image, k).rng(SEED)).flip
        for image in bench.images.images
        for k in range(K)
    ]
    assert 0 < sum(flips) < len(flips)


def test_an_image_of_two_tables_is_kept_once(root: Path, scenario: Scenario) -> None:
    """As an exemplar it shows its old classes, as an image of the step the new ones."""
    image = next(i for i in scenario.steps[1].images if i in scenario.steps[0].images)
    bench = increment(
        root, scenario, Ssul(), network(), exemplars=(Exemplar(image, 0, tuple(scenario.steps[0].indices)),)
    )
    features = bench.kept()
    assert features.record()["bytes"] == len(bench.images) * K * bench.store._layout().row
    found: dict[bool, set[int]] = {False: set(), True: set()}
    parts: dict[int, set[bytes]] = {0: set(), 1: set()}
    for (batch, ids), turns in bench.draw(features):
        for k, (name, turn) in enumerate(zip(ids, turns, strict=True)):
            if name == image:
                found[bool(batch.from_memory[k])] |= set(batch.labels[k].unique().tolist()) - {-1, 0}
                parts[turn % K].add(batch.parts[0][k].float().numpy().tobytes())
    assert found[False] <= {3}
    assert found[True] <= {1, 2}
    assert found[False]
    assert found[True]
    assert all(len(values) == 1 for values in parts.values())


def counted(bench: Bench) -> list[int]:
    """Images that go through the trunk's backbone from now on."""
    counts: list[int] = []
    assert bench.ctx.frozen_trunk is not None
    bench.ctx.frozen_trunk.backbone.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def test_the_next_step_takes_over_what_the_trunk_said_but_not_the_teachers_verdict(
    root: Path, scenario: Scenario
) -> None:
    grown, store = network(), FeatureStore(1 << 30)
    first = increment(root, scenario, Ssul(threshold=0.3), grown, 1, store=store)
    first.kept()
    old = set(first.images.images)
    shared = sorted(old & set(scenario.steps[2].images))
    assert shared
    shake(grown.heads[1], 3.0)  # as if the step had trained: the next teacher says something else
    kept = [store.read(store.gather([View(image, 1)])) for image in shared]
    second = increment(root, scenario, Ssul(threshold=0.3), grown, 2, store=store)
    counts = counted(second)
    features = second.kept()
    new = [image for image in second.images.images if image not in old]
    # in batches of one size, and once an empty image to see what a row holds
    assert sum(counts) - 1 == -(-len(new) * K // BATCH) * BATCH
    changed = False
    for image, before in zip(shared, kept, strict=True):
        after = store.read(store.gather([View(image, 1)]))
        assert all(torch.equal(a, b) for a, b in zip(after.parts, before.parts, strict=True))
        assert (after.mask == before.mask).all()
        assert after.verdict is not None
        assert before.verdict is not None
        changed |= not torch.equal(after.verdict, before.verdict)
    assert changed
    for (batch, _), _ in second.draw(features, 1):
        assert set(batch.labels.unique().tolist()) <= {-1, 0, 4}  # not step 1's class 3


def test_another_trunk_keeps_nothing(root: Path, scenario: Scenario) -> None:
    grown, store = network(), FeatureStore(1 << 30)
    increment(root, scenario, Ssul(), grown, 1, store=store).kept()
    with torch.no_grad():
        next(grown.trunk.parameters())[0] *= 1.5
    bench = increment(root, scenario, Ssul(), grown, 2, store=store)
    features = bench.kept()
    for (batch, ids), turns in bench.draw(features, 1):
        for k, (image, turn) in enumerate(zip(ids, turns, strict=True)):
            torch.testing.assert_close(
                batch.parts[0][k].float(), direct(bench, image, turn % K)[0][0][0], rtol=1e-2, atol=1e-5
            )


def test_less_room_takes_nothing_over(root: Path, scenario: Scenario) -> None:
    """Old and new rows together would be above the budget: everything is computed again, and is right."""
    grown, store = network(), FeatureStore(1 << 30)
    increment(root, scenario, Ssul(), grown, 1, store=store).kept()
    second = increment(root, scenario, Ssul(), grown, 2, store=store)
    store.budget = len(second.images) * K * store._layout().row
    counts = counted(second)
    second.kept()
    assert sum(counts) - 1 == -(-len(second.images) * K // BATCH) * BATCH


@pytest.mark.parametrize("replayed", [False, True])
def test_labels_that_may_not_be_seen_are_met_behind_the_store(
    root: Path, scenario: Scenario, replayed: bool
) -> None:
    """Before the first update, and though it is the last exemplar that shows them."""
    bench = increment(root, scenario, Ssul(), network(), exemplars=stored(scenario))
    if replayed:
        bench.images.exemplar_tables[-1] = np.full(256, 3, np.int16)
    else:
        bench.images.table = scenario.eval_table()
    with pytest.raises(LeakError, match="at step 1, which may see"):
        bench.kept()


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (Ssul(), True),
        (Ssul(bn_freeze=False), False),  # the trunk's statistics move
        (Ssul(freeze="none"), False),
        (Mib(freeze="trunk"), True),  # the teacher's heads run on kept features
        (Lwf(freeze="trunk"), True),
        (Lwf(freeze="trunk", mse=1.0), False),  # it wants maps of the backbone
        (Plop(freeze="trunk"), False),
        (Mib(), False),
    ],
)
def test_what_can_be_kept(root: Path, scenario: Scenario, method: Method, kept: bool) -> None:
    bench = increment(root, scenario, method, network())
    features = bench.keep()
    assert (features is not None) == kept
    if features is None:
        return
    features.build()
    (batch, _), _ = next(bench.draw(features))
    losses = method.loss(bench.ctx, to_device(batch, torch.device("cpu"), True))
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize(("views", "epochs", "kept"), [(0, 9, False), (2, 2, False), (2, 3, True)])
def test_views_that_would_be_used_once_are_not_kept(
    root: Path, scenario: Scenario, views: int, epochs: int, kept: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = increment(root, scenario, Ssul(), network(), views=views)
    assert (bench.keep(epochs) is not None) == kept
    said = capfd.readouterr().err
    if kept:
        assert "are kept" in said
    elif views:
        n = len(bench.images)
        shown = n // BATCH * BATCH * epochs
        line = f"keeps no features: {2 * n} views would be kept, and {shown} are shown in {epochs} epochs;"
        assert line in said
        assert "(exact mode)" in said
    else:
        assert not said  # as was asked


def test_a_too_small_budget_is_said(
    root: Path, scenario: Scenario, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = increment(root, scenario, Ssul(), network(), store=FeatureStore(10_000))
    assert bench.keep() is None
    line = last_line(capfd.readouterr().err)
    assert line.startswith(f"step 1  features of {len(bench.images) * K} views (2 per image), ")
    assert "more than --train.feature_budget 9.31e-06, so the trunk runs every iteration (exact mode)" in line


def test_exemplars_count_in_the_budget(root: Path, scenario: Scenario) -> None:
    bench = increment(root, scenario, Ssul(), network(), exemplars=stored(scenario))
    row = _layout(bench.ctx, bench.method, bench.images, bench.machine).row
    bench.store.budget = len(bench.images) * K * row
    assert bench.keep() is None
    bench.store.budget = (len(bench.images) + len(bench.images.exemplars)) * K * row
    assert bench.keep() is not None


def test_no_room_on_the_disk(root: Path, scenario: Scenario, tmp_path: Path) -> None:
    store = FeatureStore(1 << 30, tmp_path / "nowhere" / "features.bin")
    features = increment(root, scenario, Ssul(), network(), store=store).keep()
    assert features is not None
    with pytest.raises(UserError, match=r"the features of \d+ views need .* \(No such file or directory\)"):
        features.build()


def test_a_row_is_as_long_as_its_fields() -> None:
    layout = Layout(((3, 4, 8), (2, 2, 5)), (32, 33), "uint8", True, "int16")
    assert layout.sizes() == [2 * 96, 2 * 20, 1056, 132, 2112]
    ends = 0
    for span, size in zip(layout.spans(), layout.sizes(), strict=True):
        assert span.start >= ends
        assert span.start % 64 == 0
        assert span.stop - span.start == size
        ends = span.stop
    assert ends <= layout.row < ends + 64


# --- whole runs -----------------------------------------------------------------------------------------

KEPT = ("--train.epochs", "8", "--train.feature_views", "2", "--memory.size", "6", "--train.log_every", "1")


KEPT_REMARK = "{} trained on kept views, 2 an image of the step, not on new ones (train.feature_views)"


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run that trains on kept features."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *KEPT) == 0
    return out


def test_a_run_records_what_it_kept(whole: Path) -> None:
    found = [step["cost"]["features"] for step in results(whole)["steps"]]
    assert found[0] is None  # the base step trains the trunk
    for record in found[1:]:
        assert record["views"] == 2
        assert record["bytes"] > 0
        assert record["seconds"] > 0
    assert KEPT_REMARK.format("all increments") in results(whole)["remarks"]


def test_a_file_serves_as_well_as_memory_and_is_gone(root: Path, whole: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", *KEPT, "--train.feature_store", "disk") == 0
    assert weights(tmp_path / "run") == weights(whole)
    assert not list((tmp_path / "run").glob("features*"))


def test_a_file_that_was_left_behind_goes(root: Path, whole: Path, tmp_path: Path) -> None:
    """Of a process that was killed before it could take the name away."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 9, True)
        assert start(root, out, *KEPT) == 130
    (out / "features.bin").write_bytes(b"rows")
    assert start(root, out, *KEPT) == 0
    assert not list(out.glob("features*"))
    assert weights(out) == weights(whole)


def test_a_full_disk_is_no_dead_end(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk = (*KEPT, "--train.feature_store", "disk")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert start(root, tmp_path / "run", *disk) == 2
    said = last_line(capfd.readouterr().err)
    assert "(No space left on device); make room, or continue with --train.feature_budget 0" in said
    assert start(root, tmp_path / "run", *disk, "--train.feature_budget", "0") == 0
    assert start(root, tmp_path / "exact", *KEPT, "--train.feature_views", "0") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "exact")


def test_a_run_from_before_the_cache_was_exact(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    exact = (*KEPT, "--train.feature_views", "0", "--train.epochs", "2")
    assert start(root, out, *exact, "--steps", "2") == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["train"] = {k: v for k, v in config["train"].items() if not k.startswith("feature_")}
    del config["method"]["gives_way"]
    for name in ("dilate_first", "norm_eps", "refine"):
        del config["model"][name]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    assert start(root, out, *KEPT, "--train.epochs", "2") == 2
    assert "train.feature_views: 0 there, 2 here" in last_line(capfd.readouterr().err)
    assert start(root, out, *exact) == 0


@pytest.mark.parametrize("n", [9, 18])
def test_a_stopped_run_continues_on_the_same_views(root: Path, whole: Path, tmp_path: Path, n: int) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", n, True)  # in step 1, in step 2
        assert start(root, out, *KEPT) == 130
    kept = Checkpoint.load(out / "last.ckpt")
    assert kept is not None
    assert {name.split(".")[0] for name in kept.model} == {"heads", "unknown"}  # the trunk has not moved
    assert start(root, out, *KEPT) == 0
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)
    assert [row["total"] for row in log(out)] == [row["total"] for row in log(whole)]


def test_without_room_a_run_is_that_of_the_exact_mode(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = (*KEPT, "--train.feature_budget", "1e-6")
    assert start(root, tmp_path / "small", *small) == 0
    said = capfd.readouterr().err
    assert said.count("so the trunk runs every iteration (exact mode)") == 2
    assert start(root, tmp_path / "exact", *KEPT, "--train.feature_views", "0") == 0
    assert weights(tmp_path / "small") == weights(tmp_path / "exact")
    found = [step["cost"]["features"] for step in results(tmp_path / "small")["steps"]]
    assert found == [None] * len(found)
    for name in ("small", "exact"):
        assert not [line for line in results(tmp_path / name)["remarks"] if "kept views" in line]


def test_the_remark_says_which_steps_kept_views(root: Path, tmp_path: Path) -> None:
    """Step 2 shows 7 images, so one batch of 4 an epoch: of its 14 views two epochs use none twice."""
    few = ("--train.epochs", "3", "--train.feature_views", "2")
    assert start(root, tmp_path / "run", *few) == 0
    kept = [bool(step["cost"]["features"]) for step in results(tmp_path / "run")["steps"]]
    assert kept == [False, True, False]
    for _ in range(2):  # also when the same command finds everything done
        assert KEPT_REMARK.format("step 1") in results(tmp_path / "run")["remarks"]
        assert start(root, tmp_path / "run", *few) == 0
    assert results(tmp_path / "run")["remarks"].count(KEPT_REMARK.format("step 1")) == 1


def test_negative_numbers_are_refused(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option in ("feature_views", "feature_budget"):
        assert start(root, tmp_path / "run", f"--train.{option}", "-1") == 2
        assert f"--train.{option} should be 0 or more" in last_line(capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", [9, 17])
def test_thresholds_come_back_before_the_verdict(root: Path, tmp_path: Path, n: int) -> None:
    """The teacher's verdict is written anew after a resume: with the step's thresholds."""
    more = (*KEPT, "--method", "mib", "--method.freeze", "trunk", "--method.pseudo", "entropy")
    assert start(root, tmp_path / "whole", *more) == 0
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", n, True)  # in step 1, in step 2
        assert start(root, tmp_path / "run", *more) == 130
    assert start(root, tmp_path / "run", *more) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


SLOW = """
import os, sys, time
from segrow import cli
from segrow.engine.feature_store import FeatureStore

def slowly(write):
    def slow(*arguments):
        if os.environ.get("LOCAL_RANK") == "1":
            time.sleep(0.05)
        write(*arguments)
    return slow

FeatureStore.write = slowly(FeatureStore.write)
FeatureStore.write_verdict = slowly(FeatureStore.write_verdict)
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_keep_one_file(root: Path, tmp_path: Path) -> None:
    """Also when one of them takes its time: a verdict is on rows that are there.

    Three views, so that in step 2, which finds many, a process judges others than those it computed.
    """
    three = ("--train.feature_views", "3", "--train.epochs", "12", "--model.dropout", "0")
    same = (*KEPT, *three, "--method", "mib", "--method.freeze", "trunk", "--method.pseudo", "entropy")
    assert start(root, tmp_path / "base", *same, "--steps", "1") == 0
    same = (*same, "--base", str(tmp_path / "base"))
    assert start(root, tmp_path / "one", *same) == 0
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    done = run_processes(
        run_options(root, tmp_path / "two", *same, "--train.devices", "2"), program=(str(program),)
    )
    assert done.returncode == 0, done.stderr
    one, two = (log(tmp_path / name) for name in ("one", "two"))
    assert [float(row["total"]) for row in one] == pytest.approx([float(r["total"]) for r in two], rel=1e-3)
    assert not list((tmp_path / "two").glob("features*"))
    assert model(tmp_path / "two", 2).exists()
