"""`segrow report`."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..protocol import DEFINITIONS, definition
from ..terminal import Terminal
from .parser import OneLineParser

POOL = 64  # as report.gallery, which would import torch for --help


def main(argv: Sequence[str]) -> int:
    """Write one self-contained page about one or more runs."""
    parser = OneLineParser(
        prog="segrow report",
        description="One self-contained HTML page about runs: tables, curves, confusion, pictures of every "
        "step, cost. Its figures also as PNG, SVG and CSV in a folder beside it. Runs that differ in nothing "
        "but seed and class order are averaged.",
        epilog="Example: segrow report runs/ssul runs/mib --out compare.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", help="the .html file (default: report.html, in the folder of a single run)")
    parser.add_argument("--definition", default="ssul", help=f"how to count: {', '.join(DEFINITIONS)}")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="folder of the data set, if it has moved"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=POOL,
        metavar="N",
        help=f"choose the pictures among N validation images (default: {POOL}); 0: no pictures",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    args = parser.parse_args(list(argv))
    definition(args.definition)
    if args.images < 0:
        raise UserError(f"--images should be 0 or more, got {args.images}")
    folders = [Path(run) for run in args.runs]
    out = Path(args.out) if args.out else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} should be an .html file; its figures go into a folder beside it")
    from ..devices import choose_device
    from ..report.page import write_report

    figures = write_report(
        folders,
        out,
        args.definition,
        root=args.root,
        pool=args.images,
        allow_code=args.allow_code,
        device=choose_device(args.device, "--device"),
        say=Terminal(stderr=True).say,
    )
    console = Terminal()
    console.say(f"{out}")
    console.say(f"figures: {figures}")
    return 0
