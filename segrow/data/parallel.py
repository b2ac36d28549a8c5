"""Reading many files in as many processes as there are cores, with a bar on stderr."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import UserError
from ..processes import context, cores
from ..stops import held, in_a_group_of_its_own
from ..terminal import Terminal

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 64  # items a process reads at a time
SERIAL = 256  # fewer items than this are read sooner than processes start


def in_chunks(read: Callable[[Sequence[T]], R], items: Sequence[T], what: str, progress: bool) -> Iterator[R]:
    """What `read` makes of each chunk of the items, in order.

    Args:
        read: A function of a module, or a partial one, which a process can be sent.
        items: At most CHUNK of them are given to it at a time.
        what: Says what is done.
        progress: Show a bar on stderr, when that is a terminal.

    Raises:
        UserError: A process was killed.
    """
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # no refreshing thread: processes are forked below, and a fork should not meet a thread with a lock
    console = Terminal(stderr=True)
    shown = progress and console.is_terminal  # elsewhere it would leave an empty line
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not shown) as bar:
        task = bar.add_task(what, total=len(items))
        for chunk, result in zip(chunks, _each(read, chunks, len(items)), strict=True):
            yield result
            bar.update(task, advance=len(chunk), refresh=True)


def _each(read: Callable[[Sequence[T]], R], chunks: Sequence[Sequence[T]], n_items: int) -> Iterator[R]:
    workers = min(cores(), len(chunks))
    if n_items < SERIAL or workers < 2:
        yield from map(read, chunks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=context(), initializer=in_a_group_of_its_own)
    try:
        with held():  # a process that dies while the pool is shut down would let it wait forever
            results = pool.map(read, chunks)
        yield from results
    except BrokenProcessPool:
        raise UserError(
            "a process that reads images was killed, as the system does when memory runs out; close other "
            "programs, or give segrow fewer cores (taskset), and try again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
