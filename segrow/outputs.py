"""Standard output and standard error that take no more: a full disk behind `>`, a reader that went away.

Where the reader has gone, as `| head` does, a command goes on in silence: what it writes, and its exit code,
must not depend on who reads along.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast, final

_OUTPUT, _ERRORS = "standard output", "standard error"


@final
class _Named:
    """A stream whose errors say which it is, silent once its reader has gone; all else is the stream's.

    Attributes:
        failed: The last error.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self.failed: OSError | None = None
        self._unread = False

    def __getattr__(self, key: str) -> Any:
        return getattr(self._stream, key)

    def write(self, text: str) -> int:
        """As the stream."""
        with self._naming():
            if not self._unread:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream."""
        with self._naming():
            if not self._unread:
                self._stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._unread = True
        except OSError as error:
            error.filename, self.failed = self._name, error
            raise


@contextmanager
def named_outputs() -> Iterator[None]:
    """Within, an OSError of standard output or standard error has its name for a file name.

    A stream that is None, as where the caller has closed it, stays so.

    Raises:
        OSError: At the end, when standard output has refused something, which argparse for one keeps to
            itself, or refuses it now.
    """
    out = None if sys.stdout is None else _Named(sys.stdout, _OUTPUT)
    err = None if sys.stderr is None else _Named(sys.stderr, _ERRORS)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield
        if out is not None:
            out.flush()
            if out.failed:
                raise out.failed


def drop_refused() -> None:
    """At the end of a process: what its outputs do not take is dropped.

    Else Python would try it once more, print a traceback and change the exit code to 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError):  # no file stands behind it
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
