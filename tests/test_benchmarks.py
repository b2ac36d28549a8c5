"""The benchmark: its yardstick computes what it should, its guard can fail, its command line answers."""

import copy
import json
import math
import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
from runs import NAMES, build_tree, results, start
from steps import make_batch, next_step, tiny
from trees import voc_tree

from benchmarks import __main__ as command
from benchmarks import growth, loading, quality
from benchmarks.increment import Case, Cost, rows_of, whole_steps
from benchmarks.reference import (
    ReferenceStep,
    confusion,
    new_classes_iou,
    one_hot_bce,
    pseudo_labelled,
    shifted,
    train_reference,
)
from benchmarks.reference_data import ReferenceImages, ReferenceValidation, byte_table
from benchmarks.report import GUARD, Options, Row, guard, less, more, read_guard
from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.data.voc import VocDataset
from segrow.errors import UserError
from segrow.methods.ssul import Ssul
from segrow.scenario import IGNORE, UNKNOWN


def reference_labels(labels: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Targets of the slow restatement, with its last channel, unknown, moved to the front."""
    filled = naive.pseudo_labels(labels, teacher, True, 0.7)
    out = np.empty_like(filled)
    for place in np.ndindex(*filled.shape):
        value = filled[place]
        out[place] = 0 if value == naive.UNKNOWN else value if value == naive.IGNORED else value + 1
    return out


def test_loss_equals_a_slow_restatement() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([UNKNOWN, IGNORE, 0, 0, 3], (2, 6, 5))
    student, teacher = rng.normal(0, 3, (2, 5, 6, 5)), rng.normal(0, 3, (2, 4, 6, 5))  # unknown first
    targets = reference_labels(labels, np.roll(teacher, -1, axis=1))
    filled = pseudo_labelled(shifted(torch.from_numpy(labels)), torch.from_numpy(teacher).sigmoid())
    assert np.array_equal(filled.numpy(), targets)
    assert (targets > 1).sum() > (labels == 3).sum()  # there are pseudo-labels
    values, _ = naive.pixelwise("bce", student, targets)
    expected = values.sum() / (targets >= 0).sum()
    assert one_hot_bce(torch.from_numpy(student), filled).item() == pytest.approx(
        expected, rel=1e-6
    )  # its one-hot is float32


def test_update_equals_the_exact_path() -> None:
    method, model = Ssul(), tiny(dropout=0.0)
    with torch.no_grad():
        for head in model.heads[1:]:  # else a random teacher is certain of nothing
            head.out.bias += 1.5
    ctx = next_step(method, model, n_new=1, step=1)
    assert ctx.teacher is not None
    reference = ReferenceStep(copy.deepcopy(ctx.model), copy.deepcopy(ctx.teacher), total=10)
    reference.train_mode()
    batch = make_batch(ctx.known, seed=5)
    batch.labels[(batch.labels > 0) & (batch.labels < ctx.known_before)] = 0
    unknown = batch.labels.masked_fill((batch.labels == 0) & batch.aux["saliency"], UNKNOWN)
    loss = reference.update(ctx.model.normalise(batch.images), unknown)

    ctx.share_frozen_trunk()
    ctx.model.train()
    groups = method.parameter_groups(ctx, 0.01, 0.001)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    start = {name: value.clone() for name, value in ctx.model.state_dict().items()}
    sum(method.loss(ctx, batch).values()).backward()  # type: ignore[union-attr]
    optimizer.step()

    ours, theirs = ctx.model.state_dict(), reference.model.state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], start[name])}
    assert {name.split(".")[0] for name in moved} == {"heads", "unknown"}
    assert (ours["heads.2.out.weight"] - start["heads.2.out.weight"]).abs().max() > 1e-4
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=1e-7), name  # float32 one-hot
    assert math.isfinite(loss.item())


def test_base_step_trains_everything() -> None:
    model = tiny()
    step = ReferenceStep(model, None, total=10)
    step.train_mode()
    start = {name: value.clone() for name, value in model.named_parameters()}
    batch = make_batch(model.n_classes)
    step.update(model.normalise(batch.images), batch.labels)
    still = {name for name, value in model.named_parameters() if torch.equal(value, start[name])}
    assert not still
    assert step.rates == [0.001, 0.01]


def test_validation_keeps_the_best_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reference.LEAST_INTERVAL", 2)
    model = tiny()
    ctx = next_step(Ssul(), model, n_new=1, step=1)
    step = ReferenceStep(ctx.model, ctx.teacher, total=4)
    batch = make_batch(ctx.known)
    pairs = [(ctx.model.normalise(batch.images), batch.labels)] * 2
    spent = train_reference(
        step, pairs, 2, torch.device("cpu"), pairs[:1], range(3, 4), tmp_path / "best.pth"
    )
    assert len(spent.iterations) == 4
    stored = torch.load(tmp_path / "best.pth", weights_only=True)
    assert stored["best_score"] == spent.best >= 0
    assert stored["done"] in (2, 4)
    assert spent.evaluation > 0


def test_its_confusion_and_score() -> None:
    model = tiny().eval()
    batch = make_batch(model.n_classes)
    matrix = confusion(model, [(model.normalise(batch.images), batch.labels)], torch.device("cpu"))
    assert matrix.sum() == (batch.labels >= 0).sum()
    assert matrix.sum(1).tolist() == [(batch.labels == c).sum().item() for c in range(model.n_classes)]
    counts = np.array([[4, 0, 0], [1, 3, 1], [0, 0, 0]])
    assert new_classes_iou(counts, range(1, 3)) == pytest.approx((3 / 5 + 0) / 2)


def test_loader_shows_what_the_step_may_see(tmp_path: Path) -> None:
    tree = voc_tree(tmp_path / "VOC2012", train=6, val=2, size=(40, 48), classes=(1, 2))
    data = VocDataset(tree.root)
    table = np.full(256, IGNORE, np.int16)
    table[:21] = 0
    table[2] = 5
    images = ReferenceImages(data, data.ids("train"), table, crop=32, seed=1)
    seen: set[int] = set()
    for k in range(len(images)):
        pixels, labels = images[k]
        assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 32, 32))
        assert (labels.dtype, labels.shape) == (torch.int64, (32, 32))
        seen |= set(labels.unique().tolist())
    assert seen == {UNKNOWN, IGNORE, 0, 5}
    pixels, labels = ReferenceValidation(data, data.ids("val"), table, crop=32)[0]
    assert pixels.shape == (3, 32, 32)
    assert set(labels.unique().tolist()) <= {IGNORE, 0, 5}
    with pytest.raises(ValueError, match="does not fit"):
        byte_table(np.arange(300, dtype=np.int16))


def test_guard_fails_when_a_ratio_is_too_low() -> None:
    fast = less("increment.a.x", "a", "x", 10.0, 2.0, "s")
    assert fast.ratio == 5
    floors = {"increment.a.x": {"ratio": 6.0, "tolerance": 0.2}}
    assert guard([fast], ["increment"], floors, True) == []
    slow = replace(fast, ratio=4.7)
    (line,) = guard([slow], ["increment"], floors, True)
    assert line == "guard: increment.a.x is 4.7x, below its floor 4.8x"
    assert guard([slow], ["memory"], floors, True) == []
    (line,) = guard([], ["increment"], floors, True)
    assert "was not measured" in line


def test_guard_of_a_ceiling_and_of_bf16() -> None:
    row = Row("growth.time.x", "t", "x", 1.0, 2.0, "s", 1.2, 1.0, "at most", "exponent")
    assert row.met is False
    floors = {
        "growth.time.x": {"ratio": 1.0, "tolerance": 0.1},
        "growth.b.bf16": {"ratio": 2, "tolerance": 0},
    }
    (line,) = guard([row], ["growth"], floors, has_bf16=False)
    assert line == "guard: growth.time.x is 1.2 exponent, above its ceiling 1.1 exponent"
    assert len(guard([row], ["growth"], floors, has_bf16=True)) == 2


def test_guard_file_names_sections_and_ratios() -> None:
    for key, floor in read_guard(GUARD).items():
        assert key.partition(".")[0] in command.SECTIONS
        assert floor.keys() == {"ratio", "tolerance"}
        assert 0 <= floor["tolerance"] < 1


def test_rows_and_targets() -> None:
    row = more("base.m.fp32", "base", "fp32", 10.0, 20.0, "images/s", target=1.5)
    assert (row.ratio, row.met) == (2.0, True)
    assert replace(row, target=2.5).met is False
    assert replace(row, target=None).met is None


def test_cost_model() -> None:
    assert Cost(0.5).step(images=100, batch=16, epochs=8, views=0) == 8 * 6 * 0.5
    assert Cost(0.1, view=0.02).step(100, 16, 8, views=4) == pytest.approx(4 * 100 * 0.02 + 48 * 0.1)
    costs = {"reference": Cost(1.0), "exact fp32": Cost(0.5), "cached bf16": Cost(0.05, 0.01)}
    rows = rows_of(Case("net", 16, 65, 32, 1, {"cached bf16": 5.0}), costs, views=4)
    assert [row.key for row in rows[:2]] == [
        "increment.net-iteration.exact-fp32",
        "increment.net-iteration.cached-bf16",
    ]
    assert rows[0].ratio == 2
    assert [row.target for row in rows] == [None, None, None, 5.0, None, None]


def test_a_whole_step_counts_the_references_looks() -> None:
    """8 epochs of 27 batches: two looks at 79 images; then 462."""
    costs = {"reference": Cost(1.0), "exact fp32": Cost(0.5), "cached bf16": Cost(0.05, 0.01)}
    rows = whole_steps(Case("net", 16, 65, 32, 1, {}), costs, theirs=0.1, saving=2.0, ours=0.01)
    assert [row.reference for row in rows] == [pytest.approx(216 + 2 * (7.9 + 2) + 46.2)] * 2
    assert [row.ours for row in rows] == [
        pytest.approx(108 + 4.62),
        pytest.approx(444 * 2 * 0.01 + 216 * 0.05 + 4.62),
    ]


def test_the_reference_reaches_a_miou(tmp_path: Path) -> None:
    """From the same base step, counted the same way; with another seed it is another run."""
    root = build_tree(tmp_path / "VOC2012").root
    assert start(root, tmp_path / "ours", "--train.precision", "32") == 0
    stored = results(tmp_path / "ours")
    small = TrainConfig(epochs=1, lr=0.1, batch_size=4, crop=32, workers=0, device="cpu")
    network = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=8)
    data = DataConfig(name="voc", root=str(root), classes=NAMES)
    config = RunConfig(task="2-1", data=data, model=network, train=small)
    out = tmp_path / "reference"
    first = quality.reference(config, tmp_path / "ours", out, stored)
    assert 0 <= first <= 100
    longer = replace(config, train=replace(small, epochs=3))
    assert quality.reference(longer, tmp_path / "ours", tmp_path / "longer", stored) != first


def test_fewer_seeds_are_compared_with_the_same_ones() -> None:
    """Six of the exact mode and the default, three of another number of views, one of the reference."""
    found = {0: [20.0, 22, 24, 30, 30, 30], 2: [21.0, 23, 25, 31, 31, 31], 4: [20.0, 22, 27]}
    seconds = {0: [10.0, 10, 10, 40, 40, 40], 2: [5.0] * 6, 4: [4.0, 5, 6]}
    default, other = quality.rows_of("animals", found, seconds, short=False)
    assert (default.ratio, other.ratio) == (pytest.approx(1), pytest.approx(1))
    assert (default.reference, other.reference) == (pytest.approx(26), pytest.approx(22))
    assert "20.0, 22.0, 27.0 %, exact 20.0, 22.0, 24.0 %; 95 % interval ± 4.30 points" in other.note
    assert "training 2.00 times" in other.note
    assert "interval ± 0.00" in default.note
    row = quality.reference_row("animals", [21.5], found[0], short=False)
    assert (row.reference, row.ours, row.ratio) == (21.5, 20.0, -1.5)


def test_exponents_and_intervals() -> None:
    assert growth.steepest((10, 100, 1000), (1, 2, 20)) == pytest.approx(1)
    assert growth.fitted((10, 100, 1000), (3, 30, 300)) == pytest.approx(1)
    mean, half = quality.paired([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert quality.paired([1.0])[1] == math.inf


def test_help_and_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        command.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "example: python -m benchmarks" in text
    assert "--only" in text
    assert command.main(["--only", "increments", "--out", str(tmp_path / "b.json")]) == 2
    assert 'no section "increments"' in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda", "--out", str(tmp_path / "b.json")]) == 2
        assert "torch sees no GPU" in capsys.readouterr().err
    for name in ("rounds", "threads"):
        assert command.main([f"--{name}", "-1", "--out", str(tmp_path / "b.json")]) == 2
        assert f"--{name} is -1, expected 1 or more" in capsys.readouterr().err
    for words, said in (
        (["--seed", "-1"], "--seed is -1, expected 0 or more"),
        (["--base", "runs/x"], "--base, --weights and --compare are only for quality with --full and"),
        (["--full", "--only", "base", "--weights", "none"], "--base, --weights and --compare are only for"),
        (["--full", "--compare"], "--base, --weights and --compare are only for quality with --full"),
        (["--out", "/proc/x/b.json"], "--out /proc/x/b.json cannot be written"),
    ):
        assert command.main([*words, *([] if "--out" in words else ["--out", str(tmp_path / "b.json")])]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_file_says_what_was_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [less("growth.a.x", "a", "x", 3.0, 1.0, "s", target=2.0, note="how")]
    monkeypatch.setattr(growth, "run", lambda options: rows)
    out = tmp_path / "bench.json"
    assert command.main(["--only", "growth", "--no-guard", "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert stored["rows"][0]["ratio"] == 3.0
    assert stored["rows"][0]["met"] is True
    assert {"cpu", "cores", "ram_gib", "threads"} <= stored["machine"].keys()
    assert {"torch", "torchvision", "timm", "segrow", "python"} <= stored["versions"].keys()
    assert stored["seeds"] == [1]


def test_loading_of_too_few_images_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    tree = voc_tree(tmp_path / "VOC2012", train=6, val=2, size=(40, 48), classes=(15, 9))
    with pytest.raises(UserError, match=r"loading of .*VOC2012 failed: .*has no image in the overlap"):
        loading.spawn(tree.root, 32, 1, 1)


def test_loading_measures_both_loaders_and_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(what: str, module: str, *words: object) -> Any:
        """`process.spawned` without a process, which the test above has."""
        with monkeypatch.context() as patch, redirect_stdout(StringIO()) as said:
            patch.setattr(sys, "argv", [module, *map(str, words)])
            patch.delitem(sys.modules, module)
            runpy.run_module(module, run_name="__main__")
        return json.loads(said.getvalue())

    monkeypatch.setattr(loading, "spawned", here)
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    for name, value in {"BATCH": 2, "SMALL": 4, "LARGE": 4, "PAIRS": 12}.items():
        monkeypatch.setattr(loading, name, value)
    said: list[str] = []
    rows = loading.run(Options(None, tmp_path, tmp_path, rounds=1, say=said.append))
    assert [row.key.removeprefix("loading.") for row in rows] == [
        *("193", "193-normalised", "513", "513-normalised", "index-cold", "index-warm")
    ]
    by_key = {row.key: row for row in rows}
    for crop in ("193", "513"):
        row = by_key[f"loading.{crop}"]
        assert row.reference is not None
        assert row.ratio == pytest.approx(row.ours / row.reference)
        assert row.target == 3
        assert by_key[f"loading.{crop}-normalised"].reference == row.reference
    cold, warm = by_key["loading.index-cold"], by_key["loading.index-warm"]
    assert cold.ours > warm.ours > 0  # the second time is read from the cache
    assert cold.ratio == pytest.approx(40 / cold.ours)
    assert said[0] == "loading, 193 px"
    assert said[-1] == "loading: index of 12 masks, warm"
