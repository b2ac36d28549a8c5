"""Work that is done in a thread while the results before it are used."""

from collections.abc import Generator, Iterable
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread; at most so many of them wait.

    An error comes in its place. The thread ends with the loop, also with one that is left early.
    """
    ready: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    room, left = Semaphore(most), False

    def work() -> None:
        try:
            iterator = iter(items)
            while room.acquire() and not left:
                ready.put(([next(iterator)], None))
        except StopIteration:
            ready.put(([], None))
        except BaseException as error:
            ready.put(([], error))

    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if not item:
                return
            room.release()
            yield item[0]
    finally:
        left = True
        room.release()
        thread.join()
