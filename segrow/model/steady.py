"""Read a model directory beside a writer: all of it is of one version, whatever is exchanged meanwhile.

    record, memory = steadily(directory, lambda folder: (read_record(folder), load_memory(folder)))

No reader takes a lock: it may not be allowed to write. It compares which folder stood there before and after.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import UserError

T = TypeVar("T")
_TRIES = 30  # one exchange ends before the next read does; nobody exchanges a model so often for long
_Seen = tuple[Path, int, int, int, int]


def waiting_place(directory: Path) -> Path:
    """Where a directory waits while another one takes its place."""
    return directory.with_name(f".{directory.name}.replaced")


def is_waiting(place: Path) -> bool:
    """Whether a directory waits there; a link is none."""
    return place.is_dir() and not place.is_symlink()


def steadily(directory: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a model directory, from its first file to the last of one version.

    Where a writer exchanged the directory meanwhile, all is read again; errors of such a read say nothing.

    Args:
        directory: The model directory; need not be there.
        read: Is given where the model stands, which is beside its place while a writer exchanges it, or after
            one was killed. It may be called several times.

    Raises:
        UserError: Each time another model took the place. And what `read` raises where none did.
    """
    for _ in range(_TRIES):
        before = _seen(directory)
        try:
            found = read(before[0] if before else directory)
        except Exception:  # of any kind: half of one version with half of another can fail in every way
            if _seen(directory) == before:
                raise
            continue
        if _seen(directory) == before:
            return found
    raise UserError(
        f"{directory} was replaced {_TRIES} times while it was read; wait until nothing writes there, then "
        "give the command again"
    )


def _seen(directory: Path) -> _Seen | None:
    """Where a model stands, and what tells that folder from every other one; None where none is.

    The times too: a system may give the number of a removed folder to the next one.
    """
    looks: list[tuple[Path, Callable[[Path], os.stat_result]]] = [(directory, os.stat)]
    with suppress(ValueError):  # a zero byte in the name, or the root of the disk: nothing waits beside it
        # the last look is for the case that an exchange ended between the first two
        looks += [(waiting_place(Path(os.path.realpath(directory))), os.lstat), (directory, os.stat)]
    for place, look in looks:
        with suppress(OSError, ValueError):
            found = look(place)
            if place is directory or stat.S_ISDIR(found.st_mode):
                return place, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    return None
