"""`segrow demo`."""

from collections.abc import Sequence
from pathlib import Path

from ..atomic import locked
from ..terminal import Terminal
from .parser import OneLineParser


def main(argv: Sequence[str]) -> int:
    """Run the demo; 1 when it does not show what it should."""
    parser = OneLineParser(
        prog="segrow demo",
        description="Learn handwritten digits step by step with finetune, ssul and joint (embedded data).",
        epilog="Example: segrow demo --out demo",
    )
    parser.add_argument(
        "--out", default="demo", help="folder for runs, pictures and the page (default: demo)"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(list(argv))
    from ..demo import SIZE, run_demo
    from ..report.tables import results_table

    console = Terminal()
    command = f"segrow demo --out {args.out} --seed {args.seed}"
    out = Path(args.out)
    with locked(out, "segrow demo"):
        demo = run_demo(out, args.seed, SIZE, command, lambda line: console.say(line, style="bold"))
    console.print(results_table(demo.summaries))
    console.say(f"pictures and curves: {demo.page}")
    for floor in demo.floors:
        mark, style = ("ok    ", "green") if floor.passed else ("MISSED", "bold red")
        console.say(f"{mark} {floor.text}", style=style)
    return 0 if all(floor.passed for floor in demo.floors) else 1
