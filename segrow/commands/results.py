"""`segrow results`."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..protocol import DEFINITIONS, definition, summarise
from ..report.tables import (
    COST_COLUMNS,
    as_markdown,
    cost_rows,
    per_class_rows,
    plain_markdown,
    plain_table,
    results_table,
)
from ..terminal import Terminal
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
    parser.add_argument("--cost", action="store_true", help="also what every step cost")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for documents")
    parser.add_argument("--json", action="store_true", help="print JSON (of one run: an object; else a list)")
    args = parser.parse_args(list(argv))
    definition(args.definition)
    from ..engine.folder import read_results

    runs = [(Path(run).name, read_results(Path(run))) for run in args.runs]
    summaries = [(name, summarise(results, args.definition)) for name, results in runs]
    if args.json:
        values = [summary for _, summary in summaries]
        print(json.dumps(values[0] if len(values) == 1 else values))
        return 0
    more: list[tuple[str, Sequence[str], list[list[str]]]] = []
    if args.per_class:
        title = f"IoU in % after the last step, definition {args.definition}"
        more.append((title, *per_class_rows(summaries)))
    if args.cost:
        more.append(("cost of each step", COST_COLUMNS, cost_rows(runs)))
    if args.markdown:
        print("\n".join([as_markdown(summaries), *(plain_markdown(h, rows) + "\n" for _, h, rows in more)]))
        return 0
    console = Terminal()
    console.print(results_table(summaries))
    for title, header, lines in more:
        console.print(plain_table(title, header, lines))
    return 0
