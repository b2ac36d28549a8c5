"""Two processes that make a call together: they meet, meet again, and end together, with one line."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pair import LAUNCHERS, Pair, run_pair
from torch import nn

from segrow.config import ModelConfig
from segrow.engine import group
from segrow.engine.group import together
from segrow.errors import MachineError, UserError
from segrow.evaluate import evaluate
from segrow.methods.base import StepContext, make_method
from segrow.model.segmenter import build_segmenter

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
CPU = torch.device("cpu")
TORCHRUN = LAUNCHERS[0]
TINY = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=8)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "EVERY_S", 0.05)
    monkeypatch.setattr(group, "GRACE_S", 0.3)


def rank() -> int:
    place = group.find_place()
    assert place is not None
    return place.rank


def lines(done: Pair) -> list[str]:
    assert "Traceback" not in "".join(done.said), done
    return [line for text in done.said for line in text.splitlines()]


def reduce_ranks() -> float:
    total = torch.tensor([float(rank() + 1)])
    torch.distributed.all_reduce(total)
    return total.item()


@pytest.mark.parametrize("by", LAUNCHERS)
def test_they_meet_again_in_the_next_call(by: str, tmp_path: Path) -> None:
    """The store still holds the addresses of the first group; between calls there is none."""

    def body() -> int:
        for call in (1, 2):
            with together() as both:
                both.connect(CPU)
                assert both.place is not None
                store = group._reach(both.place)
                assert store.check([f"{call}/here/0", f"{call}/here/1"])
                assert not store.check([f"{call + 1}/here/0"])
                assert reduce_ranks() == 3
            assert not torch.distributed.is_initialized()
        return 0

    assert run_pair(body, by, tmp_path) == Pair([0, 0], ["", ""], pytest.approx(0, abs=60))


def blocked() -> None:
    """As a reduction on a GPU whose other half does not come."""
    time.sleep(60)


@pytest.mark.parametrize("waits", [blocked, reduce_ranks], ids=["nccl", "gloo"])
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("by", LAUNCHERS)
def test_one_fails_and_the_other_ends(by: str, who: int, waits: Callable[[], object], tmp_path: Path) -> None:
    def body() -> int:
        with together() as both:
            both.connect(CPU)
            if rank() == who:
                raise UserError("image x cannot be decoded")
            waits()
        return 0

    done = run_pair(body, by, tmp_path)
    assert lines(done) == ["segrow: image x cannot be decoded"]
    assert done.codes == [2, 2]
    assert done.seconds < 30


def test_a_mistake_that_all_meet_is_said_once(tmp_path: Path) -> None:
    """Before they are together, after it, and where a program goes on after the first."""

    def body() -> int:
        for call in range(2):
            try:
                with together() as both:
                    both.connect(CPU)
                    reduce_ranks()
                    raise UserError(f"mistake {call}")
            except UserError:
                if call:
                    raise
        return 0

    def early() -> int:
        raise UserError("--train.epochs should be at least 1, got 0")

    done = run_pair(body, TORCHRUN, tmp_path)
    assert (done.codes, lines(done)) == ([2, 2], ["segrow: mistake 1"])
    done = run_pair(early, TORCHRUN, tmp_path)
    assert (done.codes, lines(done)) == ([2, 2], ["segrow: --train.epochs should be at least 1, got 0"])


def test_one_that_never_comes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "PATIENCE", group.timedelta(seconds=0.5))

    def body() -> int:
        with together() as both:
            if rank():
                blocked()
            with pytest.raises(MachineError, match=r"^1 of 2 processes came within 0 minutes; look what"):
                both.connect(CPU)
            raise UserError("only one came")

    done = run_pair(body, TORCHRUN, tmp_path)
    assert lines(done) == ["segrow: only one came"]


@pytest.mark.parametrize("who", [0, 1])
def test_one_that_is_killed_ends_the_other(who: int, tmp_path: Path) -> None:
    def body() -> int:
        with together() as both:
            both.connect(CPU)
            reduce_ranks()
            if rank() == who:
                os.kill(os.getpid(), signal.SIGKILL)
            reduce_ranks()
        return 0

    done = run_pair(body, LAUNCHERS[2], tmp_path)
    assert sorted(done.codes, key=str) == [-9, 1]
    assert [line for line in lines(done) if "another process of this run has ended" in line] == lines(done)
    assert len(lines(done)) == 1


def test_a_signal_ends_what_waits_in_a_reduction(tmp_path: Path) -> None:
    """Python's own handler would wait for the reduction's end; torchrun would for half a minute."""

    def body() -> int:
        with together() as both:
            both.connect(CPU)
            if rank() == 0:
                blocked()
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            reduce_ranks()
        return 0

    done = run_pair(body, TORCHRUN, tmp_path)
    assert (done.codes, lines(done)) == ([143, 143], ["segrow: stopped by SIGTERM"])


def test_what_is_computed_outside_of_a_run_waits_for_nobody(tmp_path: Path) -> None:
    """In a program with a process group of its own, evaluation or `segrow add` in the first process alone."""

    def body() -> int:
        with together() as both:
            both.connect(CPU)
            if rank() == 0:
                ctx = StepContext(0, nn.Identity(), None, 3, 1)  # type: ignore[arg-type]
                assert ctx.sum(torch.ones(1)).item() == 1
                assert ctx.mean(torch.ones(2), torch.tensor([True, False])).item() == 1
                untrained = build_segmenter(TINY, 2, False, lambda line: None)
                found = evaluate(untrained, make_method("ssul", {}).scores, [], 3, set(), CPU)  # type: ignore[arg-type]
                assert found.all.sum() == 0
            assert reduce_ranks() == 3
        return 0

    assert run_pair(body, TORCHRUN, tmp_path).said == ["", ""]
