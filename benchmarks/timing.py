"""Two or more variants in one run, in turn (A B A B), so that a busy machine slows all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def alternate(
    variants: Mapping[str, Callable[[], T]], rounds: int, say: Callable[[str], None], what: str
) -> dict[str, list[T]]:
    """Call every variant once a round; returns what they gave, by name.

    Args:
        variants: Name -> what is measured.
        rounds: How often each is called.
        say: Gets a line of progress.
        what: Name of the measurement in it.
    """
    found: dict[str, list[T]] = {name: [] for name in variants}
    for k in range(rounds):
        for name, measure in variants.items():
            say(f"{what}: {name}, {k + 1} of {rounds}")
            found[name].append(measure())
    return found


def epochs_for(counted: int, images: int, batch: int) -> int:
    """Epochs to train where at least so many updates count, and those of the first, a start, do not.

    Args:
        counted: 0 = one epoch, all of which counts.
        images: Of an epoch.
        batch: Images of an update; a rest is left out.
    """
    return 1 + math.ceil(counted / (images // batch))


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return float(statistics.median(values))
