"""segrow on a GPU, held against the CPU and against expectations: one table, in at most nine minutes.

    python -m benchmarks.gpu                            on a GPU (make gpu)
    python -m benchmarks.gpu --data.root VOC2012        two steps of animals 4-1 on real photographs
    python -m benchmarks.gpu --device cpu --small       tries the script itself, and no GPU

Exit code 0 when every expectation was met, 1 when one was missed, 2 for a mistake in the options. What there
was no time for was missed.
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console

from segrow.devices import choose_device
from segrow.errors import UserError

from . import gpu_parity, gpu_runs, gpu_step
from .__main__ import about
from .pieces import Piece, Setting
from .report import Options, Row, show, write

SECTIONS = {"parity": gpu_parity, "step": gpu_step, "runs": gpu_runs}
MINUTES = 8.5  # of nine: the rest is for the start and the table


def main(argv: Sequence[str] | None = None) -> int:
    """Show everything; 0, 1 when an expectation was missed, 2 for a user's mistake."""
    arguments = parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="segrow-gpu-") as work:
        cache = {"SEGROW_CACHE": str(Path(work) / "cache")}  # nothing stays in the user's
        try:
            with mock.patch.dict(os.environ, cache):
                return run(arguments, Path(work), console)
        except UserError as error:
            console.print(f"benchmarks.gpu: {error}", markup=False, soft_wrap=True)
            return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="segrow on a GPU, held against the CPU and against expectations.",
    )
    out.add_argument(
        "--device", default="cuda", help="cuda (default), or cpu, which only shows that this script runs"
    )
    out.add_argument("--small", action="store_true", help="tiny networks and images: seconds, no figures")
    out.add_argument(
        "--data.root", dest="root", type=Path, metavar="DIR", help="VOC 2012 (default: embedded data)"
    )
    out.add_argument(
        "--only", metavar="SECTION,...", help=f"some of {', '.join(SECTIONS)} (default: all, in this order)"
    )
    out.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"that everything may take (default: {MINUTES:g})"
    )
    out.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    out.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    return out


def run(arguments: argparse.Namespace, work: Path, console: Console) -> int:
    """All pieces, the table, the file and what was missed."""
    clock = Clock(60 * arguments.minutes)
    sections = chosen(arguments.only)
    if not arguments.minutes > 0:
        raise UserError(f"--minutes is {arguments.minutes:g}, expected more than 0")
    if not arguments.out.resolve().parent.is_dir():
        raise UserError(f"--out {arguments.out}: its folder does not exist; make it first")
    device = torch.device(choose_device(arguments.device, "--device"))
    setting = Setting(device, arguments.small, arguments.root, work, arguments.seed)

    def say(line: str) -> None:
        console.print(f"{clock.spent():5.0f} s  {line}", markup=False, soft_wrap=True)

    rows, missed = worked(
        [p for name in sections for p in SECTIONS[name].pieces(setting)], clock, setting, say
    )
    show(rows, Console(highlight=False, width=None if Console().is_terminal else 150), "segrow on a GPU")
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    write(arguments.out, rows, {**about(Options(arguments.root, work, work), command), "missed": missed})
    if not setting.on_gpu:
        say("on the CPU: nothing here is about a GPU; what only a GPU has was left out")
    for line in missed:
        say(f"missed: {line}")
    say(f"{len(rows)} figures, {len(missed)} missed; written to {arguments.out}")
    return 1 if missed else 0


class Clock:
    """How much time is left.

    Args:
        seconds: That there are.
    """

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds

    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Seconds that remain."""
        return self._seconds - self.spent()


def worked(
    pieces: Sequence[Piece], clock: Clock, setting: Setting, say: Callable[[str], None]
) -> tuple[list[Row], list[str]]:
    """The rows of all pieces for which there is time, and a line for each thing that was missed."""
    rows: list[Row] = []
    missed: list[str] = []
    for piece in pieces:
        needs = 0.0 if setting.small else piece.seconds
        if clock.left() <= needs:
            missed.append(f"{piece.name}: skipped, {clock.left():.0f} s are left and it may take {needs:.0f}")
            continue
        say(piece.name)
        try:
            with ended_after(clock.left()):
                found = piece.work()
        except (Exception, SystemExit) as error:  # what the GPU has shown; the other pieces follow
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            missed.append(f"{piece.name}: {type(error).__name__}: {lines[0]}")
            continue
        rows += found
        missed += [missed_by(row) for row in found if row.met is False]
    return rows, missed


class OutOfTimeError(Exception):
    """All the time is over."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """What takes longer is ended, as soon as Python is asked.

    Raises:
        OutOfTimeError: Then.
    """

    def end(number: int, frame: object) -> None:
        raise OutOfTimeError("ended, for the time is over")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def missed_by(row: Row) -> str:
    """An expectation that was not met, in words."""
    return f"{row.measure} ({row.variant}): {row.ratio:.3g}, expected {row.direction} {row.target:g}"


def chosen(only: str | None) -> tuple[str, ...]:
    """The sections that `--only` names.

    Raises:
        UserError: For a name that is no section.
    """
    names = tuple(SECTIONS) if only is None else tuple(only.split(","))
    for name in names:
        if name not in SECTIONS:
            raise UserError(f'no section "{name}"; expected some of {",".join(SECTIONS)}')
    return names


if __name__ == "__main__":
    sys.exit(main())
