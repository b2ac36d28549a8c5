"""What the code assumes of a machine, where it does not hold: other systems, other C libraries."""

import ctypes
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import build_tree, start

from segrow.engine import heap
from segrow.engine.cost import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    read, write = Path.read_text, Path.write_text

    def refuse_read(self: Path, *args: object, **more: object) -> str:
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self, *args, **more)  # type: ignore[arg-type]

    def refuse_write(self: Path, *args: object, **more: object) -> int:
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return write(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse_read)
    monkeypatch.setattr(Path, "write_text", refuse_write)


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1), ("win32", 0)])
def test_peak_memory_without_proc(
    without_proc: None, monkeypatch: pytest.MonkeyPatch, system: str, unit: int
) -> None:
    """getrusage counts KiB on Linux and bytes on macOS; Windows has none."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", system)
    reset_peak_memory(CPU)
    peak = peak_memory(CPU)
    assert before * unit <= peak <= (before + 1_000_000) * unit


def test_nothing_needs_what_windows_has_not(tmp_path: Path) -> None:
    """The commands are imported where there is no module `resource`."""
    code = (
        "import sys, torch, lightning_fabric\n"
        "sys.modules['resource'] = None\n"
        "import segrow.engine.run, segrow.grow, segrow.predict, segrow.commands.train\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("library", ["", "musl"])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("nothing of that library is called")

    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    heap.keep_freed_memory()
    heap.give_memory_back()


def test_a_mapped_file_that_cannot_be_removed_stays_until_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows keeps a file that is mapped."""
    root, out = build_tree(tmp_path / "voc").root, tmp_path / "run"
    mapped: list[bool] = []
    memmap, unlink = np.memmap, Path.unlink

    def open_map(*args: object, **more: object) -> object:
        mapped.append(True)
        return memmap(*args, **more)  # type: ignore[call-overload]

    def keep(self: Path, missing_ok: bool = False) -> None:
        if self.name == "features.bin" and mapped:
            raise PermissionError(13, "The file is used by another process", str(self))
        unlink(self, missing_ok)

    words = ("--train.feature_store", "disk", "--train.epochs", "4")
    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", open_map)
        patch.setattr(Path, "unlink", keep)
        assert start(root, out, *words, "--steps", "2") == 0
    assert mapped
    assert (out / "features.bin").exists()
    assert start(root, out, *words) == 0
    assert not (out / "features.bin").exists()
