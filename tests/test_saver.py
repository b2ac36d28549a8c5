"""Fast epochs are not written each, and yet nothing is lost but by a kill, and then at most a minute."""

from pathlib import Path

import pytest
import torch
from runs import start, weights

from segrow.config import RunPaths
from segrow.engine import checkpoint
from segrow.engine.checkpoint import Checkpoint, Saver
from segrow.engine.step import StepTrainer
from segrow.errors import NonFiniteLossError


@pytest.fixture(autouse=True)
def _a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 60.0)


def made(epoch: int, weight: torch.Tensor) -> Checkpoint:
    state = {"state": {0: {"momentum_buffer": weight}}}
    return Checkpoint(1, epoch, {"weight": weight}, state, {}, {}, 1.5)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (1.0, [59, 118]),  # after a 60th second there could be no other epoch's end
        (25.0, [2, 4, 6]),
        (31.0, [1, 2, 3, 4]),  # another epoch would be later than a minute
        (400.0, [1, 2, 3]),
    ],
)
def test_at_most_once_a_minute(tmp_path: Path, seconds: float, written: list[int]) -> None:
    time = 1000.0
    saver = Saver(tmp_path / "last.ckpt", tmp_path / "before.ckpt", lambda: time)
    seen: list[int] = []
    for epoch in range(1, written[-1] + 1):
        time += seconds
        saver.keep(made(epoch, torch.zeros(1)))
        last = Checkpoint.load(tmp_path / "last.ckpt")
        if last and last.epoch not in seen:
            seen.append(last.epoch)
    assert seen == written


def test_what_is_held_is_written_in_the_end(tmp_path: Path) -> None:
    """As it was after its epoch: the training goes on with the same tensors."""
    last, before = tmp_path / "last.ckpt", tmp_path / "before.ckpt"
    saver, weight = Saver(last, before), torch.ones(3)
    saver.keep(made(1, weight))
    assert not last.exists()
    weight += 1
    saver.finish()
    found = Checkpoint.load(last)
    assert found is not None
    assert found.epoch == 1
    assert found.model["weight"].tolist() == [1, 1, 1]
    assert found.optimizer["state"][0]["momentum_buffer"].tolist() == [1, 1, 1]
    last.unlink()
    saver.finish()
    assert not last.exists()  # once


def test_who_stops_the_writing_loses_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, time = tmp_path / "last.ckpt", 0.0
    saver = Saver(last, tmp_path / "before.ckpt", lambda: time)
    saver.keep(made(1, torch.ones(3)))
    time = 70.0

    def stop(self: Checkpoint, *places: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            saver.keep(made(2, torch.ones(3)))
    saver.finish()
    found = Checkpoint.load(last)
    assert found is not None
    assert found.epoch == 1


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, "--memory.size", "6", "--steps", "2") == 0
    return out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NonFiniteLossError("the loss is not finite")])
def test_a_stopped_step_goes_on_after_its_last_epoch(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out, epoch, saved = tmp_path / "run", StepTrainer._epoch, []
    save, words = Checkpoint.save, ("--memory.size", "6", "--steps", "2")

    def stop(self: StepTrainer, done: int, *rest: object) -> dict[str, float]:
        terms = epoch(self, done, *rest)  # type: ignore[arg-type]
        if self.ctx.step == 1 and done == 1:
            raise error
        return terms

    def note(self: Checkpoint, *places: Path) -> None:
        saved.append((self.step, self.epoch))
        save(self, *places)

    monkeypatch.setattr(Checkpoint, "save", note)
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_epoch", stop)
        assert start(root, out, *words) in (1, 2, 130)
    assert saved == [(0, 2), (1, 1)]  # once a step
    found = Checkpoint.load(RunPaths(out).checkpoint)
    assert found is not None
    assert (found.step, found.epoch) == (1, 1)
    if isinstance(error, KeyboardInterrupt):
        assert start(root, out, *words) == 0
        assert weights(out) == weights(whole)
