"""Another process that holds a folder's lock, or leaves half of a file."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segrow.atomic import locked


def child(work: Callable[[], object]) -> int:
    """Do something in a forked process; returns its exit code, minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def locked_elsewhere(folder: Path, what: str = "segrow test") -> Iterator[int]:
    """Another process writes in a folder; gives its number."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(folder, what):
            os.write(tell, b".")
            signal.pause()
    try:
        assert os.read(told, 1) == b"."
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)
