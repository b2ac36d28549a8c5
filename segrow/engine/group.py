"""The processes of a data-parallel run: started, connected, and ended together, whichever meets a mistake.

    with together() as group:
        group.start(2)                        # the program again, where no launcher has started it twice
        group.connect(torch.device("cpu"))    # until the end of the block

They share a store (torch's, over TCP): that of torchrun, or one in the first process. Whoever ends early
writes there that it does, and it alone says why. A thread in each of them looks: where the main thread waits
in a reduction for one that will not come (NCCL would for half an hour), it ends the process.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from ..errors import MachineError
from ..resources import LOST, lacks_memory, lost_process
from ..stops import SIGNALS, Stopped

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other, in all reductions too."""
EVERY_S, GRACE_S = 0.3, 3.0
"""How often the thread looks, and how long the main thread may take to end by itself."""


MINE, SAID = "this process of the run says it", "another process of the run has said why"
"""Notes of an error, for `speaks`."""
BEFORE = "an earlier call in this program"


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that were started together.

    Attributes:
        by: Who started them.
        rank: Its number, and that of all.
        size: How many there are.
        local_rank: Its number on this machine.
        node: The machine's number.
        nodes: Machines.
        address: Of the store.
        port: Of the store.
        attempt: Of torchrun, which may start them again; None: the store is in the first process.
    """

    by: str
    rank: int
    size: int
    local_rank: int
    node: int
    nodes: int
    address: str
    port: int
    attempt: str | None = None

    @property
    def hosts(self) -> bool:
        """Whether the store is in this process, and goes with it."""
        return self.attempt is None and self.rank == 0


def find_place() -> Place | None:
    """What the environment says; None where nobody has started processes together.

    `salloc` and `srun --pty` start a shell by these names, in which a program stands alone.
    """
    here = os.environ
    address, port = here.get("MASTER_ADDR", "127.0.0.1"), _number("MASTER_PORT")
    if "TORCHELASTIC_RUN_ID" in here:
        size = _number("WORLD_SIZE", 1)
        nodes = size // _number("LOCAL_WORLD_SIZE", size)
        of_agent = here.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = here.get("TORCHELASTIC_RESTART_COUNT", "0") if of_agent else None
        rank, local, node = _number("RANK"), _number("LOCAL_RANK"), _number("GROUP_RANK")
        return Place("torchrun", rank, size, local, node, nodes, address, port, attempt)
    if "SLURM_NTASKS" in here and here.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        if "MASTER_ADDR" not in here:
            address = SLURMEnvironment.resolve_root_node_address(here.get("SLURM_NODELIST", "127.0.0.1"))
        port = port or 15_000 + _number("SLURM_JOB_ID") % 10_000  # the same in all, another in another job
        rank, size, local = _number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_LOCALID")
        node, nodes = _number("SLURM_NODEID"), _number("SLURM_NNODES", 1)
        return Place("SLURM", rank, size, local, node, nodes, address, port)
    if {"LOCAL_RANK", "WORLD_SIZE"} <= here.keys():
        rank = _number("LOCAL_RANK")
        return Place(BEFORE, rank, _number("WORLD_SIZE"), rank, 0, 1, address, port)
    return None


def _number(name: str, default: int = 0) -> int:
    return int(os.environ.get(name, default))


@final
class Started(ClusterEnvironment):
    """What Fabric asks of a launcher, answered by `Place`: all processes are there."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._place.address

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return find_place() is not None

    def world_size(self) -> int:
        return self._place.size

    def set_world_size(self, size: int) -> None:
        """It stands."""

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        """It stands."""

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        return self._place.node


@cache
def _host(port: int) -> "Store":
    """A store in this process, as long as the program: later calls meet in it too."""
    return _connect("0.0.0.0", port, PATIENCE, is_master=True)


def _connect(address: str, port: int, patience: timedelta, is_master: bool = False) -> "Store":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in every build of torch

    store: Store = TCPStore(address, port, None, is_master, patience, wait_for_workers=False)
    return store


def _within(prefix: object, store: "Store") -> "Store":
    """The part of a store whose names begin so."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(str(prefix), store)


def _reach(place: Place, patience: timedelta = PATIENCE) -> "Store":
    """A connection to the store, of its own: a wait on another one holds nobody up.

    Raises:
        MachineError: There is none.
    """
    try:
        if place.hosts:
            _host(place.port)
        store = _connect(place.address, place.port, patience)
    except RuntimeError:
        where = f"{place.address}:{place.port}"
        raise MachineError(
            f"process {place.rank} of {place.size} does not reach the others at {where}; start them "
            "together, or set MASTER_PORT to a port that is free"
        ) from None
    return _within(f"segrow/{place.attempt}", store)


def speaks(error: BaseException) -> bool:
    """Whether this process, which ends with an error, says its line: one of those that end together does."""
    place = find_place()
    if place is None or place.size == 1:
        return True
    if SAID in getattr(error, "__notes__", ()):
        return False
    if MINE in getattr(error, "__notes__", ()):
        return True
    if place.by == "SLURM":  # not in a call: there is no store, and all have the same command
        return place.rank == 0
    try:
        store = _reach(place, timedelta(seconds=2 if place.attempt is None else 20))
        return _owner(store, place, store.add(f"calls/{place.rank}", 0), _exit_code(error))[0] == place.rank
    except (RuntimeError, MachineError):  # the first process was killed
        return place.rank <= 1


def _owner(store: "Store", place: Place, call: int, code: int) -> tuple[int, int]:
    """Rank and exit code of the first process that ended a call early: this one, if none had."""
    owner, its_code = store.compare_set(f"{call}/cause", "", f"{place.rank} {code}").split()
    return int(owner), int(its_code)


@final
class Group:
    """The processes of one call, from the view of one of them."""

    def __init__(self) -> None:
        self.place: Place | None = None
        self._store: Store | None = None
        self._call = 0
        self._children: list[subprocess.Popen[bytes]] = []
        self._watch: _Watch | None = None

    def join(self, place: Place) -> None:
        """Meet the others, and look from now on whether they end."""
        self.place, self._store = place, _reach(place)
        self._call = self._store.add(f"calls/{place.rank}", 1)
        self._watch = _Watch(place, self._call, self._children)
        self._watch.start()

    def start(self, devices: int) -> Place:
        """Start the program again for every further device, unless all are there; where this one stands."""
        if self.place is not None:
            return self.place
        place = Place(BEFORE, 0, devices, 0, 0, 1, "127.0.0.1", find_free_network_port())
        os.environ.update(
            {
                "MASTER_ADDR": place.address,
                "MASTER_PORT": str(place.port),
                "WORLD_SIZE": str(devices),
                "LOCAL_RANK": "0",
            }
        )
        main = sys.modules["__main__"].__spec__
        program = ["-m", main.name.removesuffix(".__main__")] if main else [str(Path(sys.argv[0]).resolve())]
        for rank in range(1, devices):
            environment = {**os.environ, "LOCAL_RANK": str(rank)}
            self._children.append(
                subprocess.Popen([sys.executable, *program, *sys.argv[1:]], env=environment)
            )
        self.join(place)
        return place

    def connect(self, device: torch.device) -> None:
        """The process group, made anew for every call.

        Raises:
            MachineError: Not all came.
        """
        if self.place is None or self._store is None:
            return
        if dist.is_initialized():  # of a call that failed
            dist.destroy_process_group()
        mine = _within(self._call, self._store)
        try:
            mine.set(f"here/{self.place.rank}", "")
            mine.wait([f"here/{rank}" for rank in range(self.place.size)], PATIENCE)
        except dist.DistStoreError:
            there = sum(mine.check([f"here/{rank}"]) for rank in range(self.place.size))
            raise MachineError(
                f"{there} of {self.place.size} processes came within {PATIENCE.seconds // 60} minutes; "
                f"look what became of the others"
            ) from None
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_within("group", mine),
            rank=self.place.rank,
            world_size=self.place.size,
            timeout=PATIENCE,
            device_id=device if on_gpu else None,
        )

    def fail(self, error: BaseException) -> None:
        """This process ends early; where another did before, and has said why, it ends without a word.

        Raises:
            SystemExit: Then, with the other's exit code.
        """
        if self.place is None or self._store is None:
            return
        try:
            owner, code = _owner(self._store, self.place, self._call, _exit_code(error))
        except RuntimeError:  # the store has gone with the first process
            owner, code = 1, 1
        error.add_note(MINE if owner == self.place.rank else SAID)
        if self._watch is not None:
            self._watch.stop()
        with suppress(RuntimeError):  # not all looked in time, or the store has gone
            self._store.set(f"{self._call}/seen/{self.place.rank}", "")
            if self.place.hosts:
                seen = [f"{self._call}/seen/{rank}" for rank in range(self.place.size)]
                self._store.wait(seen, timedelta(seconds=GRACE_S + 2))
        for child in self._children:
            child.terminate()
        for child in self._children:
            try:
                child.wait(GRACE_S + 2)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._children:
            os.environ["WORLD_SIZE"] = "1"  # so a later call in this program does not wait for them
        if dist.is_initialized() and dist.get_backend() == "gloo":  # NCCL may wait for what does not come
            dist.destroy_process_group()
        if lost_process(error) and owner != self.place.rank:
            raise SystemExit(code) from None

    def leave(self) -> None:
        """The call has come to its end in all of them."""
        if self.place is None:
            return
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        if self._watch is not None:
            self._watch.stop()


@contextmanager
def together() -> Iterator[Group]:
    """A call that several processes make: those that a launcher started, or that `Group.start` starts.

    With one process nothing happens. Where one ends early, all do, within seconds.
    """
    group = Group()
    place = find_place()
    try:
        if place is not None and place.size > 1:
            group.join(place)
        yield group
        group.leave()
    except BaseException as error:
        group.fail(error)
        raise


def _exit_code(error: BaseException) -> int:
    """What the command line makes of it."""
    if isinstance(error, Stopped):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ValueError | OSError) or lacks_memory(error) else 1


@final
class _Watch(threading.Thread):
    """Ends the process when another one has ended early, or a signal came, and the main thread does not."""

    def __init__(self, place: Place, call: int, children: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True, name="watch of the other processes")
        self._place, self._call, self._children = place, call, children
        self._store = _reach(place)
        self._over = threading.Event()
        self._signals, self._before = -1, -1
        if threading.current_thread() is threading.main_thread() and sys.platform != "win32":
            # told at once, while Python itself waits until the main thread comes back from a reduction
            self._signals, end = os.pipe()
            os.set_blocking(self._signals, False)
            os.set_blocking(end, False)
            self._before = signal.set_wakeup_fd(end, warn_on_full_buffer=False)

    def run(self) -> None:
        ended = None
        while ended is None:
            if self._over.wait(EVERY_S):
                return
            ended = self._look()
        code, line = ended
        # after a signal the main thread may first wait for others to end
        if self._over.wait(GRACE_S if code < 128 else 3 * GRACE_S):
            return
        try:
            owner, _ = _owner(self._store, self._place, self._call, code)
        except RuntimeError:  # the store has gone with the first process
            owner = 1
        line = line if owner == self._place.rank else ""
        with suppress(OSError, ValueError):
            if line:
                sys.stderr.write(f"segrow: {line}\n")
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # a progress bar has hidden the cursor
            sys.stdout.flush()
            sys.stderr.flush()
        if self._place.hosts:
            time.sleep(3 * EVERY_S)  # the others look once more
        os._exit(code)

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self._signals >= 0:
            os.close(signal.set_wakeup_fd(self._before))
            os.close(self._signals)

    def _look(self) -> tuple[int, str] | None:
        """Exit code, and a line where nobody has said one, when it is time to end."""
        with suppress(BlockingIOError):
            came = set(os.read(self._signals, 64)) & set(SIGNALS) if self._signals >= 0 else ()
            if came:
                return 128 + min(came), f"stopped by {signal.Signals(min(came)).name}"
        codes = [child.poll() or 0 for child in self._children]
        if any(code < 0 for code in codes):
            return 1, LOST
        if any(codes):
            return max(codes), ""  # it has said why
        try:
            if self._store.check([f"{self._call}/cause"]):
                owner, code = _owner(self._store, self._place, self._call, 1)
                self._store.set(f"{self._call}/seen/{self._place.rank}", "")
                if owner != self._place.rank:
                    return code, ""
        except RuntimeError:  # the store has gone with the first process
            return 1, LOST
        return None
