"""Signals that end a command: Ctrl-C, `kill`, a closed terminal. All end it alike, each with its code."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

SIGNALS = (signal.SIGINT, signal.SIGTERM, *(() if sys.platform == "win32" else (signal.SIGHUP,)))


@final
class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; what is handled as Ctrl-C handles this too.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def code(self) -> int:
        """The exit code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self.number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, the first signal raises `Stopped` in the main thread; a second one ends the process at once.

    A signal that is ignored (as `nohup` asks) stays ignored. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)  # no cleaning up, which may be what takes so long
        asked = True
        raise Stopped(number)

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        nonlocal asked
        if not isinstance(lost.exc_value, Stopped):
            show(lost)
            return
        # raised where Python passes over every exception, such as a destructor: once more, outside of it
        asked = False
        threading.Timer(0.05, os.kill, (os.getpid(), lost.exc_value.number)).start()

    show, sys.unraisablehook = sys.unraisablehook, hook
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Signals wait until the end; in a process that begins meanwhile, until it says what to do with them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_a_group_of_its_own() -> None:
    """In a process that was begun under `held`: what a terminal sends to all goes to the first process alone.

    That one ends the others in order. A signal that is sent to this very process still ends it.
    """
    if sys.platform == "win32":
        return
    os.setpgid(0, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # what came meanwhile is dropped
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
