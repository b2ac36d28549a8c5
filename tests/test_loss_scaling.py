"""Precision 16 without a GPU: the scaler of its losses, on a processor that computes in fp16 slowly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins import Precision as FabricPrecision
from runs import build_tree, start, tensors, weights

from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import begin_scaling

SGD = torch.optim.SGD
FIRST_SCALE = 2.0**16  # torch's; the first updates of fp16 overflow with it


class Overflows(torch.amp.GradScaler):
    """torch's scaler, which begins so high that the first updates of a step overflow."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device, init_scale=2.0**100)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process train in fp16 on the CPU, with a scaler."""

    def precision(name: str, device: str) -> FabricPrecision:
        return MixedPrecision("16-mixed", "cpu", Overflows())

    def optimizer(groups: Any, **options: Any) -> torch.optim.Optimizer:
        return SGD(groups, **{**options, "fused": None})  # as on a GPU

    monkeypatch.setattr("segrow.engine.setup.make_precision", precision)
    monkeypatch.setattr(torch.optim, "SGD", optimizer)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    build_tree(root)
    return root


@pytest.mark.usefixtures("half")
def test_updates_that_overflow_are_skipped_with_clipping_too(root: Path, tmp_path: Path) -> None:
    """Fabric's clipping raises on gradients that are not finite, unless it is told not to."""
    assert start(root, tmp_path, "--steps", "1", "--train.clip", "1") == 0
    assert all(bool(value.isfinite().all()) for value in tensors(tmp_path, 0).values())


@pytest.mark.usefixtures("half")
def test_a_step_begins_with_a_fresh_scaler(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run that is continued between two steps ends with the weights of one that was not stopped."""
    scales: list[tuple[int, int, float]] = []
    save = Checkpoint.save

    def spy(self: Checkpoint, path: Path, before: Path | None = None) -> None:
        scales.append((self.step, self.epoch, self.scaler["scale"]))
        save(self, path, before)

    monkeypatch.setattr(Checkpoint, "save", spy)
    assert start(root, tmp_path / "one", "--steps", "2") == 0
    whole, scales[:] = list(scales), []
    assert start(root, tmp_path / "two", "--steps", "1") == 0
    assert start(root, tmp_path / "two", "--steps", "2") == 0
    assert scales == whole
    assert all(scale < 2.0**100 for _, _, scale in whole)  # some update overflowed in every epoch's step
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_the_scaler_of_a_step_is_new() -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    scaler = precision.scaler
    assert scaler is not None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 8.0})
    begin_scaling(precision)
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == FIRST_SCALE
    begin_scaling(FabricPrecision())  # has none
