"""Processes beside the program: how many, and that a script needs no guard wherever they begin anew."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import build_tree, matrices, options, run_processes, start, weights

import segrow
from segrow import cli, processes
from segrow.config import TrainConfig
from segrow.engine.setup import make_fabric
from segrow.errors import UserError
from segrow.processes import can_start_again, context, cores, loader_processes, quota

# what a new process does by default on macOS and Windows, and on Linux from Python 3.14 on
METHODS = ("spawn", "forkserver")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("voc")).root


def photos(folder: Path, n: int = 8) -> Path:
    """Images of one class, and their masks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("background\nblob\n")
    for k in range(n):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "images" / f"{k}.png")
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(folder / "masks" / f"{k}.png")
    return folder


def run_script(path: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Lines of a user's script, none under a guard."""
    path.write_text("\n".join(lines))
    return run_processes([], (str(path),))


def begin_anew(method: str) -> tuple[str, ...]:
    """The first lines of such a script; few masks are read in processes, too."""
    return (
        "import multiprocessing",
        f"multiprocessing.set_start_method({method!r})",
        "import segrow.data.parallel",
        "segrow.data.parallel.SERIAL, segrow.data.parallel.CHUNK = 1, 4",
    )


# --- scripts without a guard ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_readmes_lines_are_a_script(root: Path, tmp_path: Path) -> None:
    """add_classes with loader processes, the index' pool, and load, where processes begin anew."""
    run = tmp_path / "run"
    assert start(root, run, "--steps", "1", "--train.epochs", "1") == 0
    data = photos(tmp_path / "photos")
    done = run_script(
        tmp_path / "mine.py",
        *begin_anew("forkserver"),
        "import segrow",
        f"outcome = segrow.add_classes({str(run)!r}, {str(data)!r}, ['blob'], out={str(tmp_path / 'm')!r},",
        f"    check={str(root)!r}, max_drop=100, epochs=1, workers=1, device='cpu')",
        f"seen = segrow.load({str(tmp_path / 'm')!r})({str(data / 'images/0.png')!r})",
        "print('once', outcome.passed, seen.labels.shape)",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("once True (40, 40)") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("forkserver", ("ssul", "--train.epochs", "4")),
        ("spawn", ("plop", "--train.crop", "64")),
        ("spawn", ("mib", "--memory.size", "4")),
    ],
)
def test_a_whole_run_is_the_same(root: Path, tmp_path: Path, method: str, more: tuple[str, ...]) -> None:
    """Training, kept features (ssul), a scan (plop), exemplars, evaluation: all in processes begun anew."""
    words = ("--method", *more, "--train.precision", "32", "--steps", "2")
    assert start(root, tmp_path / "here", *words) == 0
    there = options(root, tmp_path / "there", *words, "--train.workers", "1")
    done = run_script(
        tmp_path / "mine.py",
        *begin_anew(method),
        "from segrow import cli",
        f"assert cli.main({there!r}) == 0",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path / "there") == weights(tmp_path / "here")
    assert matrices(tmp_path / "there") == matrices(tmp_path / "here")


def test_a_guarded_script_works_as_well(tmp_path: Path) -> None:
    """Its main file is not run again, whatever it defines."""
    done = run_script(
        tmp_path / "mine.py",
        "import multiprocessing, os",
        "from concurrent.futures import ProcessPoolExecutor",
        "from segrow.processes import context",
        "print('main')",
        "if __name__ == '__main__':",
        "    multiprocessing.set_start_method('spawn')",
        "    with ProcessPoolExecutor(1, mp_context=context()) as pool:",
        "        print(pool.submit(os.path.basename, 'a/b').result())",
        "    print(multiprocessing.process.current_process().name, __file__.endswith('mine.py'))",
    )
    assert done.stdout.splitlines() == ["main", "b", "MainProcess True"], done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_context_follows_pythons_own(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    assert context().get_start_method() == "spawn"
    none = loader_processes(0, "cpu")
    assert (none["num_workers"], none["multiprocessing_context"]) == (0, None)
    assert loader_processes(1, "cpu")["multiprocessing_context"].get_start_method() == "spawn"
    if sys.platform == "linux":
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
        assert context().get_start_method() == "fork"


# --- several devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["-c", ""])  # as python -c, and as an interpreter, set it
def test_devices_need_a_program_that_can_be_started_again(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    """Fabric would wait for the second process for half an hour."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [argument])
    with pytest.raises(
        UserError, match=r"--train.devices 2 starts the program again .* put the lines into a"
    ):
        make_fabric(TrainConfig(device="cpu", devices=2))
    make_fabric(TrainConfig(device="cpu"))


def test_an_interactive_interpreter_cannot_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [__file__])
    assert can_start_again()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert not can_start_again()


# --- how many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a process bound to cores")
def test_cores_are_those_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for given, expected in ((None, 8), (2, 2), (64, 8)):
        monkeypatch.setattr(processes, "quota", lambda given=given: given)
        assert cores() == expected
    assert processes.worker_count(20, "cpu") == 8


@pytest.mark.parametrize(
    ("there", "devices", "expected"), [(16, 1, 8), (16, 4, 4), (8, 4, 2), (4, 1, 4), (2, 4, 1), (1, 1, 1)]
)
def test_loader_processes_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, there: int, devices: int, expected: int
) -> None:
    """Each device's share of the cores; on a CPU they are needed for the training."""
    monkeypatch.setattr(processes, "cores", lambda: there)
    monkeypatch.setattr(processes, "_devices", lambda: devices)
    assert loader_processes(None, "cuda")["num_workers"] == expected
    assert loader_processes(None, "cpu")["num_workers"] == min(2, there)
    assert loader_processes(1, "cuda")["num_workers"] == 1


# --- threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "waits"),
    [
        (("import segrow", "segrow.load"), "2500 None"),
        (("from segrow import cli", "cli.main(['methods', 'ssul'])"), "2500 None"),
        (
            ("import os", "os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'", "import segrow", "segrow.load"),
            "None ACTIVE",
        ),
        (("import os", "os.environ['GOMP_SPINCOUNT'] = '7'", "import segrow", "segrow.load"), "7 None"),
    ],
)
def test_threads_sleep_soon_while_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], waits: str
) -> None:
    """Said before torch is imported, which reads it once; the user's own word stands."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):  # segrow has set one in this process
        monkeypatch.delenv(name, raising=False)
    watch = (
        "import os, sys",
        "class Watch:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name == 'torch':",
        "            print('waits', os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))",
        "            sys.exit()",
        "sys.meta_path.insert(0, Watch())",
    )
    done = run_script(tmp_path / "mine.py", *watch, *lines)
    assert f"waits {waits}" in done.stdout.splitlines(), done.stderr


@pytest.fixture
def torch_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch has eight threads; what is set instead."""
    chosen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    return chosen


def test_no_more_threads_than_cores(torch_threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for there, processes_, expected in ((8, 1, 8), (3, 1, 3), (8, 2, 4), (2, 4, 1), (64, 1, 8)):
        monkeypatch.setattr(processes, "cores", lambda there=there: there)
        processes.limit_threads(processes_)
        assert torch_threads.pop() == expected
        assert os.environ.get("OMP_NUM_THREADS") == (str(expected) if processes_ > 1 else None)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    processes.limit_threads()
    assert torch_threads == []


def test_what_computes_on_a_cpu_limits_its_threads(
    root: Path, tmp_path: Path, torch_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 3)
    make_fabric(TrainConfig(device="cpu"))
    assert torch_threads == [3]
    out = tmp_path / "run"
    assert start(root, out, "--steps", "1", "--train.epochs", "1") == 0
    torch_threads.clear()
    segrow.load(out)
    assert torch_threads == [3]
    assert cli.main(["eval", str(out), "--data.root", str(root)]) == 0
    assert 3 in torch_threads[1:]
