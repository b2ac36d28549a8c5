"""Loader processes that cannot do their work: the same batches without them, or one line."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import last_line, options, start, weights
from torch.utils.data import DataLoader, Dataset, get_worker_info

from segrow.data import loader, workers
from segrow.data.loader import StepImages
from segrow.data.workers import Sharing, survive
from segrow.errors import MachineError
from segrow.processes import MUTE
from segrow.resources import lacks_sharing

Capture = pytest.CaptureFixture[str]
TOLD = "loader processes cannot hand over what they read"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm, /proc")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    yield
    Sharing.works = True


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out) == 0
    return out


class Numbers(Dataset[int]):
    """0 to 19; what `fault` does happens in a loader process alone, at number 9."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == 9 and get_worker_info():
            self.fault()
        return index


def no_shared_memory() -> None:
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


def no_files() -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def bus_error() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mistaken() -> None:
    raise KeyError("a mistake of the program")


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("fault", [no_shared_memory, no_files, bus_error])
def test_the_rest_is_read_without_them(fault: Callable[[], None], persistent: bool, capfd: Any) -> None:
    batches = DataLoader(Numbers(fault), batch_size=2, num_workers=1, persistent_workers=persistent)
    for _ in range(2):
        assert [number for batch in survive(batches) for number in batch.tolist()] == list(range(20))
        assert not multiprocessing.active_children()  # the collector would end them, and wait for them
    said = " ".join(capfd.readouterr().err.split())
    assert said.count(TOLD) == 1
    assert "/dev/shm has" in said
    assert "--shm-size" in said


def test_a_killed_one_is_one_line() -> None:
    batches = DataLoader(Numbers(killed), batch_size=2, num_workers=1)
    with pytest.raises(MachineError, match=r"^loader process \d+ was ended by SIGKILL.*fewer workers"):
        list(survive(batches))
    assert Sharing.works


class _Own(Dataset[int]):
    """Who reads."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize(("code", "told"), [(MUTE, True), (-signal.SIGKILL, False)])
def test_one_that_dies_in_an_update(code: int, told: bool, capfd: Any) -> None:
    """It is not the update that fails, and what was read before it stays as it is."""
    batches = DataLoader(_Own(), num_workers=1, worker_init_fn=_ends_when_asked)
    rest = survive(batches)
    process = int(next(rest))
    assert process != os.getpid()
    os.kill(process, signal.SIGUSR1 if code == MUTE else signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    assert sum(range(1000)) == 499500  # torch raised here
    if told:
        assert [int(one) for one in rest] == [os.getpid()] * 8
        assert TOLD in " ".join(capfd.readouterr().err.split())
    else:
        with pytest.raises(MachineError, match="was ended by SIGKILL"):
            next(rest)


def _ends_when_asked(number: int) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(MUTE))


@pytest.mark.parametrize("fault", [mistaken])
def test_a_mistake_of_the_program_is_none_of_these(fault: Callable[[], None]) -> None:
    with pytest.raises(KeyError):
        list(survive(DataLoader(Numbers(fault), batch_size=2, num_workers=1)))
    assert Sharing.works


def test_they_cannot_be_started(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """As where the system allows no more processes."""

    def refuse(*words: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    batches = DataLoader(Numbers(killed), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert [n for batch in survive(batches) for n in batch.tolist()] == list(range(20))
    assert TOLD in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), OSError(errno.ENOENT, "No such file"), KeyError("x")]
)
def test_what_is_no_such_error(error: Exception) -> None:
    assert not lacks_sharing(error)


def test_nothing_is_shared_in_a_thread() -> None:
    """Where that fails nobody hears of it, and the main process waits for ever."""
    tensor = torch.zeros(3)
    assert not workers.shared(tensor).is_shared()
    batches = DataLoader(_Shares(), batch_size=None, num_workers=1)
    assert list(survive(batches)) == [True, True]


class _Shares(Dataset[bool]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> bool:
        return workers.shared(torch.zeros(3)).is_shared()


@pytest.mark.parametrize(
    "more", [(), ("--train.feature_views", "1", "--train.epochs", "3")], ids=["", "kept features"]
)
def test_a_run_without_shared_memory(
    root: Path,
    whole: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    """The same weights to the last bit; every loader of the run."""
    plain = whole
    if more:
        plain = tmp_path / "plain"
        assert start(root, plain, *more) == 0
    monkeypatch.setattr(
        torch.UntypedStorage, "_new_shared", classmethod(lambda *words, **options: no_shared_memory())
    )
    assert start(root, tmp_path / "run", *more, "--train.workers", "2") == 0
    assert " ".join(capsys.readouterr().err.split()).count(TOLD) == 1
    assert weights(tmp_path / "run") == weights(plain)


def test_a_killed_loader_process_can_be_continued_from(
    root: Path, whole: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = StepImages._item

    def item(self: StepImages, draw: Any) -> Any:
        if get_worker_info() and draw.seed[2:4] == (1, 0):  # the second epoch
            killed()
        return inner(self, draw)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StepImages, "_item", item)
        assert start(root, out, "--train.workers", "1") == 2
    assert "loader process" in last_line(capsys.readouterr().err)
    assert start(root, out, "--train.workers", "1") == 0
    assert weights(out) == weights(whole)
    assert loader.survive is survive


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("more", [(), ("--train.feature_views", "1")], ids=["", "kept features"])
def test_a_real_small_shm(root: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """64 KiB, of which a batch needs some 20."""
    words = options(root, tmp_path / "run", *more, "--train.workers", "2", "--train.crop", "64")
    command = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    line = ["unshare", "-rm", "bash", "-c", command, "bash", sys.executable, "-m", "segrow", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr and "segrow" not in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count(TOLD) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("limit", [24, 32, 64])
def test_few_open_files(root: Path, tmp_path: Path, limit: int) -> None:
    """Trained, or one line; never a traceback, never a hang."""
    words = options(root, tmp_path / "run", "--train.workers", "2")
    done = subprocess.run(
        [sys.executable, "-m", "segrow", *words],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "Too many open files" in last_line(done.stderr)
