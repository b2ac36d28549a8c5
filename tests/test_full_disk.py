"""A disk that is full at any moment of a run: one line, nothing lost, and the same command goes on."""

import contextlib
import errno
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_disk import Full
from runs import last_line, matrices, options, results, start, weights
from tensorboard.summary.writer.record_writer import RecordWriter
from trees import folder_tree

from segrow import cli
from segrow.engine import log
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.run import Run

Capture = pytest.CaptureFixture[str]
SAME = ("--memory.size", "6")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *SAME) == 0
    return out


@pytest.mark.parametrize(
    ("room", "number"),
    [
        *((room, errno.ENOSPC) for room in (100, 3_000, 60_000, 300_000, 700_000, 1_000_000)),
        *((60_000, number) for number in (errno.EDQUOT, errno.EFBIG)),
    ],
)
def test_train(root: Path, whole: Path, tmp_path: Path, capsys: Capture, room: int, number: int) -> None:
    """Wherever it happens: the configuration, a log, a checkpoint, a model, the results."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, room, number)
        assert start(root, out, *SAME) == 2
    line = last_line(capsys.readouterr().err)
    assert "No space left on device; what was written before is whole; make room; the same command" in line
    assert str(out) in line
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert start(root, out, *SAME) == 0
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(log.RunLog, "write"), (log.RunLog, "close"), (Checkpoint, "save"), (Run, "_write_results")],
)
def test_at_a_named_place(
    root: Path, whole: Path, tmp_path: Path, capsys: Capture, owner: Any, name: str
) -> None:
    def full(*words: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, full)
        assert start(root, out, *SAME) == 2
    assert f"{out}: No space left on device" in last_line(capsys.readouterr().err)
    assert start(root, out, *SAME) == 0
    assert weights(out) == weights(whole)


def test_earlier_results_stay(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(root, out, *SAME, "--steps", "1") == 0
    before = (out / "results.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 50_000, errno.ENOSPC)
        assert start(root, out, *SAME) == 2
    assert (out / "results.json").read_bytes() == before
    assert len(results(out)["steps"]) == 1


def test_add(whole: Path, tmp_path: Path, capsys: Capture) -> None:
    """The model stays, and so does what the step had done."""
    photos = folder_tree(
        tmp_path / "photos", ("background", "zebra"), train=[{1}] * 8, val=0, size=(40, 48)
    ).root
    animals = Path(shutil.copytree(whole / "steps/00/model", tmp_path / "animals"))
    before = (animals / "model.json").read_bytes()
    words = ["add", str(animals), "--data", str(photos), "--classes", "zebra"]
    words += ["--workers", "0", "--device", "cpu", "--epochs", "2"]
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 20_000, errno.ENOSPC)
        assert cli.main(words) == 2
    assert "No space left on device" in last_line(capsys.readouterr().err)
    assert (animals / "model.json").read_bytes() == before
    assert list(tmp_path.glob(".animals.add-*"))
    assert cli.main(words) == 0
    assert not list(tmp_path.glob(".animals.add-*"))


def test_a_folder_that_takes_nothing(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Callable[..., int] = os.open

    def refuse(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return inner(path, flags, *words, **more)

    monkeypatch.setattr("segrow.atomic.os.open", refuse)
    assert start(root, tmp_path / "run") == 2
    line = last_line(capsys.readouterr().err)
    assert "Read-only file system" in line
    assert str(tmp_path) in line


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("room", ["12k", "600k", "1500k"])
def test_a_real_small_disk(root: Path, whole: Path, tmp_path: Path, room: str) -> None:
    """With a log for TensorBoard and kept features in a file; then the disk grows."""
    more = (*SAME, "--train.feature_store", "disk", "--train.precision", "32")  # as conftest has it
    (tmp_path / "disk").mkdir()
    command = shlex.join([sys.executable, "-m", "segrow", *options(root, tmp_path / "disk/run", *more)])
    place = shlex.quote(str(tmp_path / "disk"))
    script = (
        f"mount -t tmpfs -o size={room} tmpfs {place} || exit 77\n"
        f"{command}; test $? = 2 || exit 1\n"
        f"mount -o remount,size=64m {place} && {command} && cp -r {place}/run {tmp_path}/kept"
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, timeout=500
    )
    if done.returncode == 77 or ("unshare" in done.stderr and "segrow" not in done.stderr):
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert weights(tmp_path / "kept") == weights(whole)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_tensorboard(root: Path, whole: Path, tmp_path: Path, capfd: Any, n: int) -> None:
    """It writes in a thread, from the n-th record on in vain: no traceback of it, no hang."""
    inner, calls = RecordWriter.write, [0]

    def write(self: RecordWriter, data: bytes) -> None:
        calls[0] += 1
        if calls[0] >= n:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(self, data)

    out, show = tmp_path / "run", threading.excepthook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordWriter, "write", write)
        assert start(root, out, *SAME, "--train.log_every", "1") == 2
    assert threading.excepthook is show
    assert f"{out}: No space left on device" in last_line(capfd.readouterr().err)
    assert start(root, out, *SAME, "--train.log_every", "1") == 0
    assert weights(out) == weights(whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
@pytest.mark.parametrize("words", ["--help", "--version", "methods"])
def test_what_is_printed(capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([words]) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):  # what could not be written is tried again
            full.close()
    assert "No space left on device; what was written before is whole" in last_line(capsys.readouterr().err)
