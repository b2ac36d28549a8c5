"""A thread that works ahead: the same results, the same errors, and it never stays behind."""

import threading
from collections.abc import Iterator
from itertools import count, islice

import pytest

from segrow.ahead import ahead


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_it_gives_all_in_order_from_a_thread() -> None:
    makers = set()

    def made() -> Iterator[int]:
        for number in range(50):
            makers.add(threading.current_thread().name)
            yield number

    assert list(ahead(made(), 3)) == list(range(50))
    assert makers == {"ahead"}
    assert list(ahead([], 1)) == []


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(2), StopIteration(1)])
def test_an_error_comes_in_its_place(error: BaseException) -> None:
    def made() -> Iterator[int]:
        yield from (1, 2)
        raise error

    got = []
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        got.extend(item for item in _noted(ahead(made(), 5), got))
    assert got == [1, 2]


def _noted(items: Iterator[int], into: list[int]) -> Iterator[int]:
    for item in items:
        into.append(item)
        yield from ()


def test_at_most_so_many_wait_and_a_loop_may_be_left() -> None:
    made: list[int] = []
    four = threading.Event()

    def numbers() -> Iterator[int]:
        for number in count():
            made.append(number)
            if number == 3:
                four.set()
            yield number

    results = ahead(numbers(), 3)
    assert list(islice(results, 1)) == [0]
    assert four.wait(10)  # the one that was taken, and three that wait
    assert made == [0, 1, 2, 3]
    results.close()
    assert made == [0, 1, 2, 3]


def test_one_that_was_never_begun() -> None:
    ahead(iter([1]), 1).close()
