"""The memory of a process that trains on a CPU, as the C library hands it out."""

import ctypes
import platform

# of glibc's malloc.h; mallopt takes a number and a C int
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_GIB = 1 << 30
_MOST_OF_OLDER = 1 << 25  # an older glibc refuses more


def keep_freed_memory() -> None:
    """Let what is freed be used again instead of giving it back to the system.

    Every update needs the same large blocks. glibc gives those of 32 MiB and more back at once, and what it
    keeps is cut off at the end of the heap: the next update takes them anew, with a page fault for every
    4 KiB. Kept, a base step was some 10 % faster (docs/performance.md), for some 5 % more memory.
    Nothing happens with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_TRIM_THRESHOLD, _GIB)
    if not library.mallopt(_MMAP_THRESHOLD, _GIB):
        library.mallopt(_MMAP_THRESHOLD, _MOST_OF_OLDER)


def give_memory_back() -> None:
    """What is kept and not used goes back to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
