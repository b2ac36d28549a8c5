"""A writer that exchanges a model directory in the middle of a read, at a chosen touch of its files."""

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest
import safetensors


@final
class Exchange:
    """Another version takes the place of a model at the n-th time that anything looks into it.

    Args:
        model: The model directory.
        other: Another version, which stands elsewhere on the same disk.
        at: The touch, from 0.
        apart: Each of the three renames at a touch of its own: in between, the model waits beside its place.

    Attributes:
        touches: How often somebody looked so far.
    """

    def __init__(self, model: Path, other: Path, at: int, apart: bool) -> None:
        self._model, self._at, self.touches, self._busy = model, at, 0, False
        waiting, gone = model.with_name(f".{model.name}.replaced"), other.with_name("gone")
        self._renames = [(model, waiting), (other, model), (waiting, gone)]
        self._gone, self._other, self._apart = gone, other, apart

    def touch(self, path: object) -> None:
        """Somebody looks at a path."""
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        here = os.path.basename(self._model)
        if self._busy or (f"/{here}" not in f"{name}/" and f".{here}.replaced" not in name):
            return
        self._busy = True
        try:
            if self.touches >= self._at:
                self._go(1 if self._apart else 3)
        finally:
            self._busy = False
        self.touches += 1

    def _go(self, renames: int) -> None:
        for _ in range(min(renames, len(self._renames))):
            os.rename(*self._renames.pop(0))

    def undo(self) -> None:
        """As it was at the beginning."""
        self._busy = True
        self._go(3)
        os.rename(self._model, self._other)
        os.rename(self._gone, self._model)


@contextmanager
def exchanged_at(model: Path, other: Path, at: int, apart: bool) -> Iterator[Exchange]:
    """Within, an `Exchange` lies in wait; afterwards all is as before."""
    exchange = Exchange(model, other, at, apart)

    def touching(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **more: Any) -> Any:
            exchange.touch(path)
            return real(path, *args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for where, name in (
            (os, "stat"),
            (os, "lstat"),
            (os, "open"),
            (os, "listdir"),
            (os, "scandir"),
            (builtins, "open"),
            (safetensors, "safe_open"),
        ):
            patch.setattr(where, name, touching(getattr(where, name)))
        try:
            yield exchange
        finally:
            patch.undo()
            exchange.undo()
