"""What a machine can run out of: recognised in the errors of torch, numpy, PIL and the system.

with enough_memory(lambda: "use a smaller --train.batch_size"):
    train()                            # out of memory -> MachineError, one line
"""

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LeakError, MachineError, NonFiniteLossError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})

# what allocators say, in small letters: torch's on GPU and CPU, C++'s, cuDNN's and cuBLAS's, oneDNN's
_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "status_alloc_failed",
    "could not create a memory object",
)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+) ?(bytes|[kmgt]i?b)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

# what a loader process cannot do where /dev/shm is full or files may not be opened; it is not to blame
_SHARING = (
    "unable to allocate shared memory",
    "unable to open shared memory",
    "unable to resize file",
    "unable to mmap",
    "shared memory limit",
    "bus error",
    "sigbus",
    "received 0 items of ancdata",
    "too many open files",
    "can't start new thread",
    "could not hand over",
)

LOST = "another process of this run has ended: its own line says why, or the system killed it"
_LOST = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "remote process exited",
    "caused pair closure",
    "failed to recv, got 0 bytes",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation was refused, of the GPU's memory or the host's."""
    if isinstance(error, OSError):
        return error_number(error) == errno.ENOMEM
    if isinstance(error, LeakError | NonFiniteLossError):
        return False
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _MEMORY)
    )


def machine_refuses(error: BaseException) -> bool:
    """Whether the machine lacks memory, open files or room, so that the file at hand is not to blame."""
    of_system = isinstance(error, OSError) and error_number(error) in (*NO_ROOM, *TOO_MANY_FILES)
    return of_system or lacks_memory(error)


def error_number(error: OSError) -> int | None:
    """The system's number of an error, which one from a loader process has in its text alone."""
    found = re.findall(r"\[Errno (\d+)\]", str(error))
    return error.errno if error.errno is not None or not found else int(found[-1])


def refused_bytes(error: BaseException) -> int:
    """How much was asked for in vain; 0 when the error does not say."""
    match = _ASKED.search(str(error))
    return round(float(match[1]) * _UNITS[match[2][0].lower()]) if match else 0


def without_memory(error: BaseException) -> str:
    """How a line about it begins: `out of memory on the GPU (2.1 GiB more were asked for)`."""
    place = " on the GPU" if "cuda" in str(error).lower() else ""
    asked = refused_bytes(error)
    return f"out of memory{place}{f' ({size(asked)} more were asked for)' if asked else ''}"


def size(count: float) -> str:
    """Bytes for people: 2.1 GiB, 512 MiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


@contextmanager
def enough_memory(advice: Callable[[BaseException], str]) -> Iterator[None]:
    """Where memory runs out within, the user is told in one line, and what to do.

    Args:
        advice: Called with the error at once, while all that was allocated is still there.

    Raises:
        MachineError: When it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not lacks_memory(error):
            raise
        raise MachineError(f"{without_memory(error)}: {advice(error)}") from None


@contextmanager
def named(place: Path) -> Iterator[None]:
    """An error of the system within, such as a full disk in the middle of a file, says where it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(place)
        raise


def lacks_sharing(error: BaseException) -> bool:
    """Whether loader processes cannot be started, or cannot hand over what they read."""
    if isinstance(error, OSError):
        return error_number(error) in (*NO_ROOM, *TOO_MANY_FILES, errno.EAGAIN, errno.ENOMEM)
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SHARING)


def lost_process(error: BaseException) -> bool:
    """Whether another process of a data-parallel run went away, as gloo and NCCL say it."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)
