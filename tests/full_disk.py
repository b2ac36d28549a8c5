"""A stand-in for a disk that is full after so many bytes.

with pytest.MonkeyPatch.context() as patch:
    Full(patch, 60_000)
    ...
"""

import errno
import io
import os
from typing import Any

import pytest


class Full:
    """All files that are written whole take no more than so many bytes together."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int, number: int = errno.ENOSPC) -> None:
        self.room, self.number, self._open = room, number, os.fdopen
        patch.setattr(os, "fdopen", self.fdopen)

    def fdopen(self, descriptor: int, mode: str = "r", *words: Any, **more: Any) -> Any:
        if mode != "wb":
            return self._open(descriptor, mode, *words, **more)
        full = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                full.room -= len(memoryview(data).cast("B"))
                if full.room < 0:
                    raise OSError(full.number, "No space left on device")
                return super().write(data)

        return File(descriptor, "wb")
