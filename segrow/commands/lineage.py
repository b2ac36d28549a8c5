"""`segrow lineage`, `rollback`, `rename-class`, `remove-class`: a model directory and its past."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..errors import UserError
from ..model.lineage import remove_class, rename_class, rollback, version_of, versions
from ..model.record import is_model
from ..stored import step_of_run
from ..terminal import Terminal
from ..wording import count
from .parser import OneLineParser


def lineage(argv: Sequence[str]) -> int:
    """Print all versions of a model."""
    parser = OneLineParser(
        prog="segrow lineage",
        description="The versions of a model: what each step added, and which one it came from.",
        epilog="Example: segrow lineage models/animals",
    )
    parser.add_argument("model", metavar="MODEL", help="a model directory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(list(argv))
    found = versions(_model(args.model))
    if args.json:
        print(json.dumps({"versions": [version.as_json() for version in found]}))
        return 0
    table = Table(title=f"versions of {args.model}, the oldest first")
    for name in ("", "step", "change", "classes", "hash", "made from"):
        table.add_column(name)
    for version in found:
        mark = "now" if version.current else "" if version.ancestor else "left aside"
        classes = f"{len(version.classes) - 1}: … {', '.join(version.classes[-3:])}"
        parent = (version.parent or "")[:12]
        cells = (mark, str(version.step), version.change, classes, version.hash[:12], parent)
        table.add_row(*cells)
    Terminal(wide=True).print(table)
    return 0


def roll_back(argv: Sequence[str]) -> int:
    """Bring an earlier version back."""
    parser = OneLineParser(
        prog="segrow rollback",
        description="Make another version the model again, byte for byte; the present one is kept. Of "
        "several of a step the newest that it came from is taken, else the newest that was left aside.",
        epilog="Example: segrow rollback models/animals --to-step 4",
    )
    parser.add_argument("model", metavar="MODEL", help="a model directory")
    parser.add_argument("--to-step", type=int, metavar="N", help="the step that version was saved after")
    parser.add_argument("--to-version", metavar="HASH", help="or the beginning of its hash (segrow lineage)")
    args = parser.parse_args(list(argv))
    if (args.to_step is None) == (args.to_version is None):
        raise UserError("expected --to-step N or --to-version HASH, one of them")
    version = rollback(_own(args.model), args.to_step, args.to_version)
    aside = "" if version.ancestor else ", which was left aside"
    known = len(version.classes) - 1
    _say(f"{args.model}: step {version.step} again, {count(known, 'class')} ({version.hash[:12]}{aside})")
    return 0


def rename(argv: Sequence[str]) -> int:
    """Give a class another name."""
    parser = OneLineParser(
        prog="segrow rename-class",
        description="Give a class of a model another name; the weights stay as they are.",
        epilog="Example: segrow rename-class models/animals cow cattle",
    )
    parser.add_argument("model", metavar="MODEL", help="a model directory")
    parser.add_argument("old", metavar="OLD", help="its name")
    parser.add_argument("new", metavar="NEW", help="the name it gets")
    args = parser.parse_args(list(argv))
    rename_class(_own(args.model), args.old, args.new)
    _say(f"{args.model}: {args.old} is called {args.new} now")
    return 0


def remove(argv: Sequence[str]) -> int:
    """Take a class out."""
    parser = OneLineParser(
        prog="segrow remove-class",
        description="Take a class out of a model. The logits of the others stay as they are, to the last "
        "bit; classes behind it move up by one index. segrow rollback brings it back.",
        epilog="Example: segrow remove-class models/animals cow",
    )
    parser.add_argument("model", metavar="MODEL", help="a model directory")
    parser.add_argument("name", metavar="NAME", help="the class")
    args = parser.parse_args(list(argv))
    remove_class(_own(args.model), args.name)
    _say(f"{args.model}: {args.name} is gone")
    return 0


def _model(name: str) -> Path:
    """A model directory; of a run every step belongs to its results, so it is left alone."""
    path = Path(name)
    if (path / "steps").is_dir() and not is_model(path):
        raise UserError(
            f"{path} is a run folder, whose steps stay as they were trained; give a model directory, such as "
            f"{path / 'grown'}"
        )
    return path


def _own(name: str) -> Path:
    """A model directory that may be changed."""
    path = _model(name)
    if run := step_of_run(path):
        raise UserError(
            f"{path} is a step of run {run}, which stays as it was trained; copy it, then change the copy"
        )
    if model := version_of(path):
        raise UserError(
            f"{path} is an earlier version of {model}, which its history keeps as it was; segrow rollback "
            f"{model} --to-version {path.name.partition('-')[2]} makes it the model again"
        )
    return path


def _say(line: str) -> None:
    Terminal().say(line)
