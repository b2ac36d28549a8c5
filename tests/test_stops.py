"""Signals end a command as Ctrl-C does: nothing half-written, a line that says how to go on, an exit code."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import EVERY_EPOCH, last_line, matrices, no_signal_ignored, options, start, weights

from segrow import cli, demo
from segrow.demo import DemoSize
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer
from segrow.stops import Stopped, stoppable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out) == 0
    return out


def after(owner: Any, name: str, n: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """The signal, from this very process, after the n-th call."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapper(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        result = inner(*words, **more)
        if calls == n:
            signal.raise_signal(number)
        return result

    patch.setattr(owner, name, wrapper)


@SIGNALS
@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [(StepTrainer, "_update", 2), (StepTrainer, "_update", 9), (Checkpoint, "save", 3)],
    ids=["first epoch", "later epoch", "checkpoint"],
)
def test_train_goes_on(
    root: Path,
    whole: Path,
    tmp_path: Path,
    capsys: Capture,
    number: int,
    code: int,
    owner: Any,
    name: str,
    n: int,
) -> None:
    out, before = tmp_path / "run", signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        after(owner, name, n, number, patch)
        assert start(root, out) == code
    line = last_line(capsys.readouterr().err)
    assert "the same command continues from the last finished epoch" in line
    assert (signal.Signals(number).name in line) is (code != 130)
    assert signal.getsignal(number) is before
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert start(root, out) == 0
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)


@pytest.mark.parametrize("program", ["demo", "reproduce", "main.py"])
def test_other_commands_that_train(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """The signal comes in the first update."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main.py sets it: put it back
    monkeypatch.setattr(demo, "SIZE", DemoSize(scenes=100, base_epochs=1, epochs=1))
    monkeypatch.setattr(StepTrainer, "_update", lambda *words: signal.raise_signal(signal.SIGTERM))
    if program == "main.py":
        words = [*options(root, tmp_path / "out")[3:], "--data_root", str(root), "--overlap"]
        code = cli.seed_main(words)
    else:
        more = {"demo": [], "reproduce": ["voc-15-1-mib", "--quick", "--train.device", "cpu"]}
        code = cli.main([program, *more[program], "--out", str(tmp_path / "out")])
    assert code == 143
    line = last_line(capsys.readouterr().err)
    assert "stopped by SIGTERM; the same command continues from the last finished epoch" in line


def test_an_ignored_signal_stays_ignored() -> None:
    """As `nohup` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals() -> None:
    found: list[Any] = []

    def work() -> None:
        with stoppable():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_second_signal_ends_at_once() -> None:
    """Whatever is being cleaned up."""
    program = (
        "import os, signal, time\n"
        "from segrow.stops import stoppable\n"
        "with stoppable():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")


def test_the_code_of_a_signal() -> None:
    assert [Stopped(number).code for number in (2, 15, 1)] == [130, 143, 129]


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@SIGNALS
@pytest.mark.parametrize(
    "more",
    [
        ("--train.workers", "2"),
        pytest.param(
            ("--train.workers", "1", "--train.devices", "2"),
            marks=pytest.mark.skipif(
                not torch.distributed.is_available(), reason="torch without distributed"
            ),
        ),
    ],
    ids=["workers", "two processes"],
)
def test_processes_end_with_it(
    root: Path, tmp_path: Path, number: int, code: int, more: tuple[str, ...]
) -> None:
    """`kill PID`, which the loader processes and those of other devices never hear of."""
    out = tmp_path / "run"
    words = options(root, out, *more, "--train.epochs", "2000")
    process = subprocess.Popen(
        [sys.executable, EVERY_EPOCH, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=no_signal_ignored,
    )
    try:
        _wait((out / "last.ckpt").exists)
        started = _children(process.pid)
        started += [child for pid in started for child in _children(pid)]
        assert len(started) >= 2
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code
    assert "the same command continues from the last finished epoch" in last_line(err)
    assert err.count("stopped") == 1
    _wait(lambda: not any(map(_alive, started)), 15)


class Gone:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)


def test_a_signal_in_a_destructor_is_not_lost(capsys: Capture) -> None:
    def command() -> None:
        with stoppable():
            Gone()
            time.sleep(30)

    with pytest.raises(Stopped) as stop:
        command()
    assert stop.value.code == 143
    assert capsys.readouterr().err == ""
