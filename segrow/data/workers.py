"""The processes that read images, and what happens where they cannot do their work."""

import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

from torch import Tensor
from torch._C import _error_if_any_worker_fails
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..errors import MachineError
from ..processes import MUTE
from ..resources import lacks_sharing, size
from ..terminal import Terminal

T = TypeVar("T")


def shared(tensor: Tensor) -> Tensor:
    """In a loader process: into shared memory at once, as `default_collate` does.

    Where there is no room the error then reaches the main process. A tensor that is moved on its way there
    fails in a thread, and the main process would wait for it for ever.
    """
    if get_worker_info() is None:
        return tensor
    moved: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return moved


@final
class Sharing:
    """Whether loader processes can hand over what they read; once they could not, no more are started.

    Attributes:
        works: False after the first failure, for the whole process.
    """

    works: ClassVar[bool] = True

    @classmethod
    def fail(cls, error: BaseException) -> None:
        """Say once what happens instead."""
        cls.works = False
        place = Path("/dev/shm")
        room = f"/dev/shm has {size(shutil.disk_usage(place).total)}; " if place.is_dir() else ""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[-1]
        Terminal(stderr=True).say(
            f"loader processes cannot hand over what they read ({room}{reason}): from here on the main "
            "process reads the images itself, as with 0 workers, which is slower and changes no result; more "
            "room (docker run --shm-size 1g), or a higher limit of open files (ulimit -n), avoids it"
        )


def _cause(error: BaseException, processes: Sequence[BaseProcess]) -> BaseException:
    """The death of a loader process, which may be met first as a connection that breaks off."""
    if not isinstance(error, EOFError | ConnectionError | FileNotFoundError | RuntimeError):
        return error
    for _ in range(50 if not isinstance(error, RuntimeError) else 1):
        try:
            _error_if_any_worker_fails()  # clears what torch would raise at any later time, too
            time.sleep(0.1)
        except RuntimeError as found:
            error = found
            break
    for process in processes:
        if process.exitcode == MUTE:
            return RuntimeError("a loader process could not hand over what it had read")
        if process.exitcode and process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            return RuntimeError(f"DataLoader worker (pid {process.pid}) was ended by {name}")
    return error


@contextmanager
def _deaths_are_heard() -> Iterator[None]:
    """Within, a loader process that dies, or has died, is an error at once.

    torch would raise it at any time, such as in the middle of an update, where nobody reads on without it.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield  # as torch, which then looks every five seconds
        return
    before = signal.signal(signal.SIGCHLD, lambda number, frame: _error_if_any_worker_fails())
    try:
        _error_if_any_worker_fails()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _end(iterator: _MultiProcessingDataLoaderIter, error: Exception) -> BaseException:
    """End the loader processes; why they failed.

    At once: the error holds the iterator, so only the garbage collector would end them, which closes the
    queue that tells them first, and waits five seconds for each.
    """
    cause = _cause(error, iterator._workers)
    with suppress(RuntimeError):  # another process that was killed
        iterator._shutdown_workers()
    return cause


_END: Any = object()


def _next(iterator: Iterator[T]) -> T:
    with _deaths_are_heard():
        return next(iterator, _END)


def survive(loader: DataLoader[T]) -> Iterator[T]:
    """What a loader gives. Where its processes cannot share memory the rest is read here, the same items.

    Raises:
        MachineError: A loader process was killed.
    """
    done = 0
    iterator: Any = None
    if Sharing.works or not loader.num_workers:
        try:
            with _deaths_are_heard():
                iterator = iter(loader)
            while (item := _next(iterator)) is not _END:
                yield item
                done += 1
        except Exception as error:
            cause = _end(iterator, error) if isinstance(iterator, _MultiProcessingDataLoaderIter) else error
            if loader.num_workers and lacks_sharing(cause):
                Sharing.fail(cause)
            elif match := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.+)", str(cause)):
                raise MachineError(
                    f"loader process {match[1]} {match[2].split('.')[0]}: perhaps the machine has too little "
                    "memory, of which fewer workers need less; give the command again"
                ) from None
            else:
                raise
        else:
            return
    for indices in islice(iter(loader.batch_sampler or ()), done, None):
        yield loader.collate_fn([loader.dataset[index] for index in indices])
