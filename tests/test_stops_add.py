"""Signals end `segrow add` as they end a run: the model stands, and the same command goes on."""

import errno
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import build_tree, last_line, model, snapshot, start
from trees import folder_tree

from segrow import cli
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer
from segrow.errors import UserError
from segrow.grow import step
from segrow.model import store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
Capture = pytest.CaptureFixture[str]
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a base step, and `photos` beside it."""
    top = tmp_path_factory.mktemp("base")
    assert start(build_tree(top / "VOC2012").root, top / "run", "--steps", "1") == 0
    shutil.copytree(model(top / "run", 0), top / "animals")
    folder_tree(top / "photos", ("background", "zebra"), train=[{1}] * 8, val=0, size=(40, 48))
    return top


def add(base: Path, animals: Path) -> int:
    words = ["add", str(animals), "--data", str(base / "photos"), "--classes", "zebra"]
    return cli.main([*words, "--workers", "0", "--device", "cpu", "--epochs", "2", "--batch-size", "4"])


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights after an `add` that nothing disturbed."""
    animals = Path(shutil.copytree(base / "animals", tmp_path_factory.mktemp("taught") / "animals"))
    assert add(base, animals) == 0
    return (animals / "model.safetensors").read_bytes()


def before(owner: Any, name: str, n: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """The signal, from this very process, before the n-th call."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapper(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n:
            signal.raise_signal(number)
        return inner(*words, **more)

    patch.setattr(owner, name, wrapper)


def count(owner: Any, name: str, patch: pytest.MonkeyPatch) -> list[None]:
    """A list that becomes longer with every call."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls: list[None] = []

    def wrapper(*words: Any, **more: Any) -> Any:
        calls.append(None)
        return inner(*words, **more)

    patch.setattr(owner, name, wrapper)
    return calls


@pytest.mark.parametrize(
    ("number", "code", "owner", "name", "n", "left"),
    [  # every place once, every signal at one place
        (*SIGNALS[0], StepTrainer, "_update", 1, 4),
        (*SIGNALS[1], StepTrainer, "_update", 1, 4),
        (*SIGNALS[2], StepTrainer, "_update", 1, 4),
        (*SIGNALS[0], StepTrainer, "_update", 4, 2),
        (*SIGNALS[0], Checkpoint, "save", 2, 2),
        (*SIGNALS[0], step, "_judge", 1, 0),
        (*SIGNALS[0], step, "succeed", 1, 0),
        (*SIGNALS[0], store, "_fill", 3, 0),
    ],
    ids=["term", "int", "hup", "second epoch", "checkpoint", "gate", "exchange", "reading back"],
)
def test_the_same_command_goes_on(
    base: Path,
    taught: bytes,
    tmp_path: Path,
    capsys: Capture,
    number: int,
    code: int,
    owner: Any,
    name: str,
    n: int,
    left: int,
) -> None:
    """Args: left: updates of 4 that are still to be done."""
    animals = Path(shutil.copytree(base / "animals", tmp_path / "animals"))
    there = snapshot(animals)
    with pytest.MonkeyPatch.context() as patch:
        before(owner, name, n, number, patch)
        assert add(base, animals) == code
    by = f" by {signal.Signals(number).name}" if code != 130 else ""
    line = last_line(capsys.readouterr().err)
    assert line == f"segrow: stopped{by}; the same command continues from the last finished epoch"
    assert snapshot(animals) == there
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"animals", ".animals.add"}
    with pytest.MonkeyPatch.context() as patch:
        done = count(StepTrainer, "_update", patch)
        assert add(base, animals) == 0
    assert len(done) == left
    assert (animals / "model.safetensors").read_bytes() == taught
    assert [path.name for path in tmp_path.iterdir()] == ["animals"]


@pytest.mark.parametrize(
    "error",
    [
        UserError("image x cannot be decoded"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB."),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["image", "driver", "memory", "disk"],
)
def test_an_error_keeps_the_finished_epochs(
    base: Path, taught: bytes, tmp_path: Path, error: Exception
) -> None:
    animals = Path(shutil.copytree(base / "animals", tmp_path / "animals"))
    inner, calls = StepTrainer._update, 0

    def failing(self: StepTrainer, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # the last update of the second epoch
            raise error
        return inner(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "_update", failing)
        if "CUDA error" in str(error):
            with pytest.raises(RuntimeError):
                add(base, animals)
        else:
            assert add(base, animals) == 2
    with pytest.MonkeyPatch.context() as patch:
        done = count(StepTrainer, "_update", patch)
        assert add(base, animals) == 0
    assert len(done) == 2
    assert (animals / "model.safetensors").read_bytes() == taught
    assert [path.name for path in tmp_path.iterdir()] == ["animals"]
