"""Processes beside this one: how many, and how they are started.

    DataLoader(images, **loader_processes(2, "cpu"))
    ProcessPoolExecutor(cores(), mp_context=context())

Where Python forks (Linux before Python 3.14) a new process goes on from here. Elsewhere (macOS, Windows,
Python 3.14) it begins anew and, as Python does it, runs the program's main file first: a script whose calls
do not stand under `if __name__ == "__main__":` would start itself again in every one of them. What segrow
starts needs nothing of that file, so it is left out, and a script of three lines works everywhere.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from .stops import in_a_group_of_its_own

_STARTING = threading.Lock()


class _Process(SpawnProcess):
    """Begins anew, without the program's main file."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_main():
            return SpawnProcess._Popen(process_obj)


class _Spawn(SpawnContext):
    Process = _Process


def context() -> BaseContext:
    """How processes are started: forked where Python does that by itself, else anew."""
    if multiprocessing.get_start_method() == "fork":
        return multiprocessing.get_context("fork")
    return _Spawn()


@contextmanager
def _without_main() -> Iterator[None]:
    """Within, the main module has no file that a new process could run."""
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def loader_processes(wanted: int | None, device: str) -> dict[str, Any]:
    """Arguments of a DataLoader: at most so many processes, and what they need.

    Args:
        wanted: Number of processes; 0 = the main process reads; None: as `worker_count` says.
        device: cpu or cuda: what the batches are for. A GPU copies from page-locked memory while it computes.
    """
    workers = worker_count(wanted, device)
    return {
        "num_workers": workers,
        "multiprocessing_context": context() if workers else None,
        "worker_init_fn": begin_worker,
        "pin_memory": device == "cuda",
    }


MUTE = 74
"""Exit code of a loader process that cannot hand over what it has read."""


def begin_worker(number: int) -> None:
    """In every loader process, first: what Python does in threads there ends with it, without a word.

    It hands over what was read in a thread. Where that fails Python prints a traceback and drops it, for
    which the main process would wait for ever; so the loader process ends. Another thread prints one when the
    main process is gone.
    """
    in_a_group_of_its_own()  # a signal to all processes of a terminal is the first one's to answer
    show = sys.excepthook

    def quiet(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            show(kind, error, trace)

    sys.excepthook = quiet
    Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(MUTE))  # type: ignore[attr-defined]


def worker_count(wanted: int | None, device: str) -> int:
    """Loader processes: not more than there are cores to run them (the draws do not depend on it).

    Args:
        wanted: None: two; for a GPU, which sees images faster, its share of the cores, at most eight.
        device: cpu or cuda.
    """
    if wanted is None:
        wanted = min(8, max(1, cores() // _devices())) if device == "cuda" else 2
    return min(wanted, cores())


def _devices() -> int:
    """How many processes, one a GPU, train together on this machine."""
    from torch import cuda, distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return min(distributed.get_world_size(), max(1, cuda.device_count()))


def can_start_again() -> bool:
    """Whether the program can be run a second time by its command line, as Fabric starts further devices.

    Not from an interactive interpreter, a notebook, `python -c` or standard input.
    """
    if "ps1" in vars(sys):
        return False
    return sys.modules["__main__"].__spec__ is not None or Path(sys.argv[0]).is_file()


def cores() -> int:
    """Cores that this process may use: those it is bound to, or what its control group gives it, if fewer."""
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(bound, quota() or bound)


def quota(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Cores' worth of time that a container may use, rounded up; None without a limit.

    Args:
        group: Where the control group is mounted: version 2 has cpu.max, version 1 cpu/cpu.cfs_*_us.
    """
    try:
        if (group / "cpu.max").is_file():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = (
                (group / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
    except (OSError, ValueError):
        return None  # no Linux, or no control groups
    return -(-int(most) // int(period)) if most.isdigit() and int(most) else None


SPINS = "2500"
"""Turns, some tens of microseconds, that a thread waits busily before it sleeps (docs/performance.md)."""


def before_torch() -> None:
    """What torch reads when it is imported: its threads soon sleep while they wait, and errors are lines.

    The user's own settings stand.

    By default they wait busily, which takes the core from who has work: beside another busy program training
    is several times slower. Sleeping at once costs a sixth of the speed of an idle machine. GOMP_SPINCOUNT is
    of the OpenMP library that torch brings on Linux; others do not know it, and wait as they always do.

    Where another process of a run has ended, torch would write some fifty lines of C++ about it.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def limit_threads(processes: int = 1) -> None:
    """Not more threads of torch, of all processes together, than there are cores for this program.

    torch counts the cores a process is bound to, not a container's quota, and knows no other processes.
    OMP_NUM_THREADS goes over it, and a lower number that was set stays.

    Args:
        processes: As many that compute at the same time; those not started yet inherit it.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = min(torch.get_num_threads(), max(1, cores() // processes))
    torch.set_num_threads(threads)
    if processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
