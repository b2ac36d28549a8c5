"""The benchmark as on a GPU, tiny and on a CPU: a start does not count, and updates without loading."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import base, data, increment, updates
from benchmarks.ours import later_epochs
from benchmarks.reference import Spent
from benchmarks.timing import epochs_for
from segrow.scenario import IGNORE, UNKNOWN

CPU = torch.device("cpu")
TINY = updates.Case("test_resnet", 2, 33, updates=1, warm=1, width=8)


def test_epochs_after_the_first_have_so_many_updates() -> None:
    for counted, images, batch in ((50, 832, 32), (50, 360, 32), (50, 2000, 32), (0, 832, 32)):
        epochs = epochs_for(counted, images, batch)
        assert (epochs - 1) * (images // batch) >= counted
        assert (epochs - 2) * (images // batch) < counted
    assert epochs_for(0, 100, 8) == 1


def test_the_first_epoch_is_out_on_both_sides(tmp_path: Path) -> None:
    """Three epochs of five updates: the first slow, a row every three updates and at an epoch's end."""
    log = tmp_path / "log.csv"
    rows = [(e, u, speed) for e, speed in enumerate((0.1, 2, 4)) for u in (2, 4)]
    with log.open("w", newline="") as file:
        csv.writer(file).writerows([("epoch", "iteration", "iterations_per_second"), *rows])
    assert later_epochs(log) == pytest.approx((5 / 2 + 5 / 4) / 10)
    log.write_text("epoch,iteration,iterations_per_second\n0,4,2.0\n")
    assert math.isnan(later_epochs(log))
    spent = Spent([10.0] * 5 + [0.5] * 5 + [0.25] * 5)
    assert spent.iteration(3) == pytest.approx(0.375)
    assert Spent([1.0, 3.0]).iteration(1) == 2


def test_updates_without_loading_have_rows_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "has_bf16", lambda: False)
    rows = updates.run(TINY, CPU, seed=1)
    assert {row.key.split(".")[2] for row in rows} == {f"test_resnet-{kind}" for kind in updates.KINDS}
    assert all(row.reference and row.ratio == pytest.approx(row.reference / row.ours) for row in rows)
    assert all("no loading" in row.measure and row.target is None for row in rows)


def test_on_a_gpu_memory_has_a_row_and_both_have_targets() -> None:
    large = replace(TINY, faster={"base": 2.5})
    theirs, ours = updates.Cost(1.0, 30 << 20), updates.Cost(0.5, 40 << 20)
    time, memory = updates._rows(large, "base", "16", theirs, ours, torch.device("cuda"))
    assert (time.ratio, time.target, time.met) == (2, 2.5, False)
    assert (memory.reference, memory.ours, memory.target, memory.met) == (30, 40, 1, False)
    rows = updates._rows(large, "kept", "bf16", theirs, ours, torch.device("cuda"))
    assert [row.met for row in rows] == [None, None]


@pytest.mark.parametrize("kind", updates.KINDS)
def test_an_update_of_each_kind_trains(kind: updates.Kind) -> None:
    """Kept features give the loss of the exact mode, up to bfloat16; and the loss falls."""
    update = updates.segrow(TINY, kind, "32", CPU, seed=1)
    losses = [float(update()) for _ in range(3)]
    assert losses[-1] < losses[0]
    if kind == "kept":
        exact = float(updates.segrow(TINY, "exact", "32", CPU, seed=1)())
        assert losses[0] == pytest.approx(exact, rel=0.05)


def test_both_sides_get_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours hides what is unknown behind saliency, the reference's loader writes it into the labels."""
    seen: list[Tensor] = []
    monkeypatch.setattr(updates.ReferenceStep, "update", lambda step, images, labels: seen.append(labels))
    updates.reference(TINY, "base", CPU, seed=1)()
    batch = updates.batch_of(TINY, updates.CLASSES + 1, seed=1)
    assert torch.equal(seen[0] == UNKNOWN, (batch.labels == 0) & batch.aux["saliency"])
    assert set(seen[0].unique().tolist()) == {UNKNOWN, IGNORE, 0, updates.CLASSES}


@pytest.fixture
def small_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The cases of a GPU, tiny, on the CPU, in one process; how many workers the reference is given."""
    tiny = {"name": "test_resnet", "batch": 2, "crop": 33, "images": 4, "counted": 3, "workers": 0}
    monkeypatch.setattr(data, "SIZE", (40, 48))
    monkeypatch.setattr(base, "spawned", lambda what, module, *words: base.measure(*words[:4]))
    targets: dict[str, float] = {"32": 2.5}
    monkeypatch.setattr(base, "ON_CPU", replace(base.ON_GPU, **tiny, synthetic=1, targets=targets))
    monkeypatch.setattr(increment, "CACHED_EPOCHS", 2)
    case = replace(increment.ON_GPU, **tiny, synthetic=1, rounds=1, device="cpu")
    monkeypatch.setattr(increment, "run", lambda options: increment._case(options, case))
    monkeypatch.setattr(updates, "has_bf16", lambda: False)
    monkeypatch.setattr(increment, "has_bf16", lambda: False)
    asked: list[int] = []
    loader = base.reference_loader

    def spy(*words: Any, workers: int, **more: Any) -> Any:
        asked.append(workers)
        return loader(*words, workers=workers, **more)

    monkeypatch.setattr(base, "reference_loader", spy)
    monkeypatch.setattr(increment, "reference_loader", spy)
    return asked


@pytest.mark.slow
def test_sections_of_a_gpu_in_a_tiny_size(tmp_path: Path, small_case: list[int]) -> None:
    out = tmp_path / "bench.json"
    words = ["--only", "base,increment", "--rounds", "1", "--device", "cpu", "--no-guard", "--out", str(out)]
    assert command.main(words) == 0
    rows = {row["key"]: row for row in json.loads(out.read_text())["rows"]}
    assert {
        "base.test_resnet.fp32",
        "updates.time.test_resnet-base.fp32",
        "increment.test_resnet-iteration.exact-fp32",
        "increment.test_resnet-iteration.cached-fp32",
        "updates.time.test_resnet-exact.fp32",
        "updates.time.test_resnet-kept.fp32",
    } <= rows.keys()
    assert all(0 < row["ours"] < math.inf for row in rows.values())  # nan without a later epoch
    assert small_case == [0, 0]  # as many as ours


def test_a_gpu_is_measured_long_enough() -> None:
    for case in (base.ON_GPU, increment.ON_GPU):
        assert min(case.counted, case.synthetic) >= 50
        assert case.workers is not None
