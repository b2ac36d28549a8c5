"""segrow beside the SSUL reference loop, as ratios measured in one run.

python -m benchmarks                                   the short form, under 10 minutes on 2 cores
python -m benchmarks --only increment,memory           some sections
python -m benchmarks --data.root VOC2012 --full        on real data, with the paired seeds of `quality`
python -m benchmarks calibrate                         the re-stated loop beside what the reference code needs
"""

import argparse
import datetime
import importlib
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segrow.errors import UserError

from . import quality
from .machine import describe, has_bf16, versions
from .report import GUARD, Options, Row, guard, read_guard, show, write

# one module each, with `run(options) -> list[Row]`, in the order of the table
SECTIONS = ("increment", "base", "loading", "memory", "inference", "growth", "quality")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, 1 when a ratio fell below its floor, 2 for a user's mistake."""
    arguments = parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    # what the index of temporary data would leave in the user's cache
    with tempfile.TemporaryDirectory(prefix="segrow-bench-") as work:
        before = os.environ.get("SEGROW_CACHE")
        os.environ["SEGROW_CACHE"] = str(Path(work) / "cache")
        try:
            return run(arguments, Path(work), console)
        except UserError as error:
            console.print(f"benchmarks: {error}", markup=False, soft_wrap=True)
            return 2
        finally:
            if before is None:
                del os.environ["SEGROW_CACHE"]
            else:
                os.environ["SEGROW_CACHE"] = before


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="segrow beside a re-statement of the SSUL reference loop: every figure is a ratio "
        "measured in one run.",
        epilog="example: python -m benchmarks --only increment --data.root ~/data/VOC2012 --out bench.json",
    )
    out.add_argument(
        "task", nargs="?", choices=("all", "calibrate"), default="all", help="calibrate: the yardstick itself"
    )
    out.add_argument(
        "--data.root",
        dest="root",
        type=Path,
        metavar="DIR",
        help="VOC 2012 with saliency maps (default: embedded data)",
    )
    out.add_argument(
        "--only", metavar="SECTION,...", help=f"sections to run, of {', '.join(SECTIONS)} (default: all)"
    )
    out.add_argument("--full", action="store_true", help="the long form: more rounds, six seeds of quality")
    out.add_argument(
        "--base", type=Path, metavar="RUN", help="quality --full: share the base step of this run"
    )
    out.add_argument(
        "--weights", default="timm", help="quality --full: as --model.weights of segrow train (default: timm)"
    )
    out.add_argument(
        "--compare",
        action="store_true",
        help="quality --full: three seeds of the reference loop and of other numbers of views too",
    )
    out.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    out.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="measurements of a variant (default: as many as a section needs)",
    )
    out.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where increments and the base step are measured; cuda: ResNet-101, 513 px, batch 32, AMP "
        "(default: cpu; the other sections are about the CPU)",
    )
    out.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    out.add_argument(
        "--out", type=Path, default=Path("bench.json"), metavar="FILE", help="default: bench.json"
    )
    out.add_argument("--no-guard", action="store_true", help="do not compare with benchmarks/guard.json")
    return out


def run(arguments: argparse.Namespace, work: Path, console: Console) -> int:
    """All sections, the table, the file and the guard."""
    sections = chosen(arguments.only)
    check(arguments, sections)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root = arguments.root
    start = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"[dim]{time.perf_counter() - start:5.0f} s[/dim]  {line}")

    options = Options(
        root,
        work,
        arguments.out.parent,
        full=arguments.full,
        seed=arguments.seed,
        rounds=arguments.rounds or 0,
        base=arguments.base,
        weights=arguments.weights,
        compare=arguments.compare,
        say=say,
        device=arguments.device,
    )
    console.print(f"data: {root or 'embedded'}; {torch.get_num_threads()} threads", markup=False)
    if arguments.task == "calibrate":
        sections = ("calibrate",)
    rows: list[Row] = []
    for name in sections:
        rows += importlib.import_module(f"benchmarks.{name}").run(options)
    # a file or a pipe has no width of its own, and a table of 80 columns cannot be read
    wide = None if Console().is_terminal else 150
    show(rows, Console(highlight=False, width=wide))
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    write(arguments.out, rows, about(options, command))
    console.print(f"{time.perf_counter() - start:.0f} s in all; written to {arguments.out}", markup=False)
    if arguments.no_guard or options.on_gpu:  # the floors were measured on a CPU
        return 0
    fallen = guard(rows, sections, read_guard(GUARD), has_bf16())
    for line in fallen:
        console.print(line, markup=False, soft_wrap=True)
    return 1 if fallen else 0


def check(arguments: argparse.Namespace, sections: Sequence[str]) -> None:
    """Refuse what would only fail, or be ignored, after minutes of measuring.

    Raises:
        UserError: For the first mistake.
    """
    for name in ("rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}, expected 1 or more; leave it out for the default")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}, expected 0 or more")
    long = arguments.full and arguments.root is not None and "quality" in sections
    if (arguments.base is not None or arguments.weights != "timm" or arguments.compare) and not long:
        raise UserError(
            "--base, --weights and --compare are only for quality with --full and --data.root; leave them out"
        )
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written ({error.strerror}); use another") from None
    if not os.access(arguments.out.parent, os.W_OK):
        raise UserError(f"--out {arguments.out} cannot be written (no permission); use another")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU; leave it out to measure on the CPU")


def chosen(only: str | None) -> tuple[str, ...]:
    """The sections that `--only` names.

    Raises:
        UserError: For a name that is no section.
    """
    names = SECTIONS if only is None else tuple(only.split(","))
    for name in names:
        if name not in SECTIONS:
            raise UserError(f'no section "{name}"; expected some of {",".join(SECTIONS)}')
    return names


def about(options: Options, command: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "form": "full" if options.full else "short",
        "data": "embedded" if options.root is None else options.root.name,
        "seeds": sorted({options.seed, *(quality.SEEDS if quality.is_long(options) else ())}),
        "machine": describe(),
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
