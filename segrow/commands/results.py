"""`segrow results`."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..protocol import DEFINITIONS, definition, summarise
from ..report.tables import as_markdown, per_class_markdown, per_class_table, results_table
from .parser import OneLineParser


def main(argv: Sequence[str]) -> int:
    """Print the mIoU of runs under one definition."""
    parser = OneLineParser(
        prog="segrow results",
        description="mIoU of old, new and all classes after every step, from the stored confusion matrices.",
        epilog="Example: segrow results runs/ssul runs/finetune --definition foreground",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--definition", default="ssul", help=f"how to count: {', '.join(DEFINITIONS)}")
    parser.add_argument("--per_class", action="store_true", help="also the IoU of every class, last step")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for documents")
    parser.add_argument("--json", action="store_true", help="print JSON (of one run: an object; else a list)")
    args = parser.parse_args(list(argv))
    definition(args.definition)
    from ..engine.setup import read_results

    summaries = [(Path(run).name, summarise(read_results(Path(run)), args.definition)) for run in args.runs]
    if args.json:
        values = [summary for _, summary in summaries]
        print(json.dumps(values[0] if len(values) == 1 else values))
        return 0
    if args.markdown:
        print(as_markdown(summaries))
        if args.per_class:
            print(per_class_markdown(summaries))
        return 0
    console = Console()
    console.print(results_table(summaries))
    if args.per_class:
        console.print(per_class_table(summaries))
    return 0
