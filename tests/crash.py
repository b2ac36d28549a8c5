"""Kill a command before every single thing that it does to the disk.

for point in crash_points(command, root, every): look(root)  # as the kill left it

The process is forked with torch already there. A few points are real kills, as dear as the command.
For all of them the command runs once: the folder is copied before each call, and a kill leaves nothing else.
"""

import builtins
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CALLS = (
    "open",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "remove",
    "rmdir",
    "link",
    "ftruncate",
    "fsync",
    "write",
)
KILLED = 137
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killer:
    """Ends this process before the k-th call that changes something below `root`.

    Args:
        root: Calls on paths elsewhere do not count; calls on descriptors do.
        point: Which call, from 0.
        copies: Where instead the folder goes before each call, by its number; None: nowhere.
    """

    def __init__(self, root: Path, point: int, copies: Path | None = None) -> None:
        self.root, self.point, self.copies = str(root), point, copies
        self.calls: list[str] = []
        for name in CALLS:
            # nobody waits for the disk: what a killed process has written the next one reads
            real = (lambda descriptor: None) if name == "fsync" else getattr(os, name)
            setattr(os, name, self._guarded(real, name))
        builtins.open = io.open = self._opening(io.open)  # type: ignore[assignment]

    def step(self, name: str) -> None:
        if len(self.calls) == self.point:
            os._exit(KILLED)
        if copies := self.copies:
            self.copies, calls, self.calls = None, self.calls, []  # copying makes calls of its own
            shutil.copytree(self.root, copies / str(len(calls)), symlinks=True)
            self.copies, self.calls = copies, calls
        self.calls.append(name)

    def _counts(self, place: Any, options: dict[str, Any]) -> bool:
        if isinstance(place, int):
            return place > 2
        return options.get("dir_fd") is not None or os.fsdecode(place).startswith(self.root)

    def _guarded(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(place: Any, *args: Any, **options: Any) -> Any:
            reads = name == "open" and not (args and args[0] & _WRITES)
            if not reads and self._counts(place, options):
                self.step(name)
            return real(place, *args, **options)

        return call

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(place: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if set(mode) & set("wxa+") and not isinstance(place, int) and self._counts(place, {}):
                self.step("open")
            return real(place, mode, *args, **options)

        return call


def in_child(work: Callable[[], object], root: Path | None = None, point: int = -1) -> int:
    """Do something in a forked process; returns its exit code.

    Args:
        root: With it the process is killed before call `point` that changes something below it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        try:
            if root is not None:
                Killer(root, point)
            result = work()
            os._exit(result if isinstance(result, int) else 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_points(work: Callable[[], object], root: Path, every: bool, since: float = 0.0) -> Iterator[int]:
    """Every point at which a command can be killed; at each the disk is as the kill left it.

    What is below `root` is put back before each point. Of calls of fsync in a row the first is enough: they
    change nothing that the next process could see.

    Args:
        work: The command.
        root: The folder that it changes.
        every: All points, of one call of the command; else real kills before the first call, the last, and
            those by which something gets its name.
        since: Part of the calls at the beginning that is left out, for another test tries them.
    """
    kept = root.with_name(f"{root.name}.kept")
    shutil.copytree(root, kept, symlinks=True)
    work()  # what is imported now, no child has to
    put_back(root, kept)
    copies = root.with_name(f"{root.name}.copies") if every else None
    calls = calls_of(work, root, copies)
    assert calls, "it writes nothing"
    some = [
        point
        for point, name in enumerate(calls)
        if (every and not (point and name == calls[point - 1] == "fsync"))
        or point in (0, len(calls) - 1)
        or name in ("rename", "replace")
    ]
    some = [point for point in some if point >= since * len(calls)]
    for point in some:
        put_back(root, copies / str(point) if copies else kept)
        if copies or in_child(work, root, point) == KILLED:
            yield point
        else:  # TensorBoard's thread writes less often at times
            assert point > len(calls) - 5
    print(f"{len(some)} of {len(calls)} points tried")
    shutil.rmtree(kept)
    if copies:
        shutil.rmtree(copies)


def calls_of(work: Callable[[], object], root: Path, copies: Path | None = None) -> list[str]:
    """What a command does to the disk; `copies` as for `Killer`."""
    told = root.with_name("calls")

    def count() -> None:
        killer = Killer(root, 1 << 30, copies)
        work()
        told.write_text(" ".join(killer.calls))

    assert in_child(count) == 0
    return told.read_text().split()


def put_back(root: Path, kept: Path) -> None:
    shutil.rmtree(root)
    shutil.copytree(kept, root, symlinks=True)


def litter(root: Path) -> list[str]:
    """Hidden files and folders, which are what a writer may leave."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(".*"))
