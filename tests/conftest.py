"""For all tests: one thread (tiny tensors), a cache of their own, warnings of segrow are errors."""

import os

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as every command says before torch is imported

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from runs import build_tree

from segrow import precision
from segrow.engine import checkpoint

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # the few real subprocesses too

_NATIVE_BF16 = precision.native_bf16
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish() -> None:
    """What the tests and torch consist of stays to the end: the collector need not walk through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_rembg() -> Iterator[None]:
    """Where rembg is installed `segrow add` would use it, and fetch weights; a test says when it should."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rembg", None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _signals() -> None:
    """Whoever runs the tests may ignore signals, as `nohup` and shells do, and segrow would respect that."""
    for number in (signal.SIGINT, signal.SIGTERM, *(() if sys.platform == "win32" else (signal.SIGHUP,))):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and a run waits a hundred times; real processes do wait (`run_processes`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # a closed file is still an error
        yield


@pytest.fixture(autouse=True, scope="session")
def _every_epoch() -> Iterator[None]:
    """Runs are saved after every epoch, however short; `every_epoch.py` does it in processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _float32() -> Iterator[None]:
    """Precision auto is 32 on every machine, so all tests compute alike; `machine_bf16` takes it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "native_bf16", lambda device: (False, f"the tests say so of {device}"))
        yield


@pytest.fixture
def machine_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision auto is what this machine has."""
    monkeypatch.setattr(precision, "native_bf16", _NATIVE_BF16)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    before = os.environ.get("SEGROW_CACHE")
    os.environ["SEGROW_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["SEGROW_CACHE"]
    else:
        os.environ["SEGROW_CACHE"] = before


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports are files with nothing in them, where a test is not about how they look."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)
    monkeypatch.setattr(Figure, "savefig", lambda *words, **more: None)


@pytest.fixture
def rembg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the two functions that are called: what is red is salient."""
    module = ModuleType("rembg")

    def new_session(name: str) -> str:
        if name not in ("u2net", "u2netp"):
            raise ValueError(f"no session {name}")
        return name

    def remove(picture: Image.Image, session: str, only_mask: bool) -> Image.Image:
        assert session in ("u2net", "u2netp")
        assert only_mask
        return picture.getchannel("R")

    module.new_session = new_session  # type: ignore[attr-defined]
    module.remove = remove  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rembg", module)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small VOC tree of `runs.build_tree`, one a file; some files have another one of this name."""
    return build_tree(tmp_path_factory.mktemp("data") / "VOC2012").root
