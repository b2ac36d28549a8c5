"""Batches of kept features, put together ahead or not: those that a plain reading of the rows gives."""

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import last_line, only_line, results, start
from test_features import Bench, increment, network, scenario, stored
from torch import Tensor

from segrow.data.loader import Draw
from segrow.engine import feature_store, features
from segrow.engine.feature_store import FeatureStore, View
from segrow.errors import UserError
from segrow.methods.ssul import Ssul
from segrow.scenario import Scenario

__all__ = ["scenario"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def plainly(bench: Bench, draws: Sequence[Draw], counts: tuple[int, int]) -> dict[str, Any]:
    """Image by image, in numpy, with the labels that the exact mode would show."""
    store, images = bench.store, bench.images
    layout = store._layout()
    *maps, ids, salient, judged = layout.spans()
    found: dict[str, list[Any]] = {}
    for draw in draws:
        view = View(images.image_id(draw), draw.turn % counts[draw.from_memory])
        row = store._rows[store._where[view]].numpy()
        mask = row[ids].view(layout.mask).reshape(layout.crop)
        bits = np.unpackbits(row[salient], count=math.prod(layout.crop)).view(np.bool_)
        labels, aux = images.label(draw, mask, bits.reshape(layout.crop))
        verdict = row[judged].view(layout.verdict).astype(np.int16) + feature_store.LOWEST
        parts = [
            torch.from_numpy(row[span].copy()).view(torch.bfloat16).view(shape).permute(2, 0, 1)
            for span, shape in zip(maps, layout.parts, strict=True)
        ]
        values = {"labels": labels, "verdict": torch.from_numpy(verdict.reshape(layout.crop))}
        values |= {f"part {k}": part for k, part in enumerate(parts)} | aux
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    stacked: dict[str, Any] = {name: torch.stack(some) for name, some in found.items()}
    memory = torch.tensor([draw.from_memory for draw in draws])
    return {**stacked, "from memory": memory, "ids": [images.image_id(draw) for draw in draws]}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize(("thread", "unshifted"), [(False, False), (True, False), (True, True)])
def test_the_batches_of_a_plain_reading(
    root: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch, thread: bool, unshifted: bool
) -> None:
    if thread:
        monkeypatch.setattr(features, "THREADED", ("cpu",))
    bench = increment(root, scenario, Ssul(threshold=0.4), network(), exemplars=stored(scenario))
    bench.images.unshifted = unshifted
    bench.images.aux = ("saliency", "everything")
    kept = bench.kept()
    draws = [batch for epoch in range(2) for batch in bench.plan.batches(epoch)]
    replayed = 0
    for (batch, ids), drawn in zip(kept.batches(draws), draws, strict=True):
        got = {"labels": batch.labels, "verdict": batch.verdict, "from memory": batch.from_memory}
        got |= {f"part {k}": part for k, part in enumerate(batch.parts)} | batch.aux | {"ids": ids}
        expected = plainly(bench, drawn, kept._counts)
        assert got.keys() == expected.keys()
        assert [name for name, value in got.items() if not same(value, expected[name])] == []
        replayed += int(batch.from_memory.sum())
    assert replayed


def test_a_loop_that_is_left_early(root: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "THREADED", ("cpu",))
    bench = increment(root, scenario, Ssul(), network())
    batches = bench.kept().batches(bench.plan.batches(0))
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name == "ahead"]
    batches.close()


def test_a_run_with_a_thread(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of the thread is one line, and the same command goes on."""
    gather, calls = FeatureStore.gather, 0

    def refuse(self: FeatureStore, views: Sequence[View]) -> Tensor:
        nonlocal calls
        if threading.current_thread().name == "ahead":
            calls += 1
            if calls == 4:
                raise UserError("features of bird were changed on the disk")
        return gather(self, views)

    monkeypatch.setattr(features, "THREADED", ("cpu",))
    words = ("--train.epochs", "3", "--train.step0_epochs", "1", "--memory.size", "6", "--steps", "2")
    words = (*words, "--train.feature_store", "device")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "gather", refuse)
        assert start(root, tmp_path / "run", *words) == 2
    assert last_line(capsys.readouterr().err) == "segrow: features of bird were changed on the disk"
    assert start(root, tmp_path / "run", *words) == 0
    assert results(tmp_path / "run")["steps"][1]["cost"]["features"] is not None


def test_a_device_that_is_too_small(root: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = increment(root, scenario, Ssul(), network())
    empty = torch.empty

    def full(*size: Any, **more: Any) -> Tensor:
        if more.get("device") is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UserError, match=r"views need .* GiB of the GPU's memory, which has less; use "):
        bench.store._allocate(4, 64, bench.machine)


def test_a_device_is_one(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--train.feature_store", "device", "--train.devices", "2")
    assert start(root, tmp_path / "run", *words) == 2
    line = only_line(capsys.readouterr().err)
    assert "keeps features in the memory of one GPU, and --train.devices is 2; use ram" in line
