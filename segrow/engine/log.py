"""log.csv, TensorBoard and the progress bar of a run."""

import csv
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ..atomic import write_atomic
from ..config import RunPaths
from ..documents import read_text
from ..errors import UserError, shown
from ..terminal import Terminal

T = TypeVar("T")
_LOG_BYTES = 1 << 28
_SUM = "checksum"
COLUMNS = ("step", "epoch", "iteration", "lr", "iterations_per_second", "total", "terms", _SUM)
_VALUES = COLUMNS[:-1]  # all columns of a log that an earlier segrow wrote


class RunLog:
    """Appends to log.csv and TensorBoard; a resumed run first drops what it will repeat."""

    def __init__(self, root: Path, step: int, epoch: int, iterations: int) -> None:
        """Open the log at an epoch.

        Args:
            root: The run's folder.
            step: The step in progress.
            epoch: First epoch that will be written; rows from there on are dropped.
            iterations: Updates of an epoch (TensorBoard counts updates within a step).
        """
        path = RunPaths(root).log
        rows = _rows(path) if path.exists() else []
        self._sum = ""
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(COLUMNS)
        writer.writerows(self._summed(row) for row in rows if (int(row[0]), int(row[1])) < (step, epoch))
        write_atomic(path, buffer.getvalue().encode())
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file)
        self._board = SummaryWriter(
            str(root / "tensorboard" / f"step_{step:02d}"), purge_step=epoch * iterations, max_queue=100
        )
        self._step = step
        self._iterations = iterations

    def write(self, epoch: int, iteration: int, lr: float, speed: float, terms: Mapping[str, float]) -> None:
        """One line: mean losses since the last one.

        Args:
            lr: Learning rate of the first parameter group.
            speed: Iterations per second.
            terms: Loss terms by name.
        """
        total = sum(terms.values())
        values = (self._step, epoch, iteration, f"{lr:.6g}", f"{speed:.3f}", f"{total:.6f}")
        words = " ".join(f"{k}={v:.6f}" for k, v in terms.items())
        self._csv.writerow(self._summed([*map(str, values), words]))
        self._file.flush()
        update = epoch * self._iterations + iteration
        for name, value in {"total": total, **terms}.items():
            self._board.add_scalar(f"loss/{name}", value, update)
        self._board.add_scalar("lr", lr, update)

    def _summed(self, row: Sequence[str]) -> list[str]:
        self._sum = _sum_of(self._sum, row)
        return [*row, self._sum]

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


class Display:
    """What a person sees: a progress bar on a terminal, one line an epoch elsewhere.

    Args:
        quiet: Show nothing (all processes but the first).

    Attributes:
        live: There is a terminal, so the bar is shown.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Terminal(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.live,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.say(line)

    def track(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """A bar over any loop."""
        bar = self._progress.add_task(shown(what), total=total, note="", left="")
        try:
            for item in items:
                yield item
                self._progress.advance(bar)
        finally:
            self._progress.remove_task(bar)

    def training(self, what: str, total: int, done: int) -> "TrainingBar":
        """The bar of one step, `total` updates of which `done` are behind."""
        return TrainingBar(self._progress, what, total, done)


class TrainingBar:
    """Progress of a step with loss terms and it/s."""

    def __init__(self, progress: Progress, what: str, total: int, done: int) -> None:
        self._progress = progress
        self._bar = progress.add_task(shown(what), total=total, completed=done, note="", left="")
        self._since = time.perf_counter()
        self._count = 0

    def advance(self) -> None:
        """One update is done."""
        self._count += 1
        self._progress.advance(self._bar)

    def show(self, terms: Mapping[str, float], left: str = "") -> float:
        """Show the terms; returns iterations per second since the last call.

        Args:
            left: Of the whole run.
        """
        now = time.perf_counter()
        speed = self._count / max(now - self._since, 1e-9)
        self._since, self._count = now, 0
        note = "  ".join(f"{k} {v:.3f}" if math.isfinite(v) else f"{k} {v}" for k, v in terms.items())
        self._progress.update(self._bar, note=shown(f"{note}  {speed:.2f} it/s"), left=left)
        return speed

    def close(self) -> None:
        """Take the bar away."""
        self._progress.remove_task(self._bar)


_NUMBER = re.compile(r"[0-9]{1,9}")


def _sum_of(before: str, row: Sequence[str]) -> str:
    """Checksum of a row and, by that of the row before, of all rows up to it."""
    return hashlib.sha256(json.dumps([before, *row]).encode()).hexdigest()[:8]


def _rows(path: Path) -> list[list[str]]:
    """The rows of log.csv without their checksums; a last one that a kill cut off is left out.

    Raises:
        UserError: Something else is in the file, or a row was changed, taken out or moved. That the last rows
            are gone is not noticed: nobody waits for the disk to have them.
    """
    text = read_text(path, "log", _LOG_BYTES)
    lines = text.splitlines()
    if text and not text.endswith(("\n", "\r")):
        lines = lines[:-1]
    rows: list[list[str]] = []
    before = ""
    try:
        head, *found = list(csv.reader(lines)) or [[]]
        summed = head != list(_VALUES)
        if summed and head and head != list(COLUMNS):
            raise ValueError
        for cells in found:
            row = cells[: len(_VALUES)]
            before = _sum_of(before, row)
            expected = [*row, before] if summed else row
            if len(row) != len(_VALUES) or cells != expected or not all(map(_NUMBER.fullmatch, row[:2])):
                raise ValueError
            rows.append(row)
    except (ValueError, csv.Error):
        raise UserError(
            f"log {path} is damaged in line {len(rows) + 2}; restore it, or delete it to go on without it"
        ) from None
    return rows
