"""`segrow scenario`."""

import json
from collections.abc import Sequence

from rich.table import Table

from ..class_lists import LIST_HELP, split_names
from ..data import open_dataset
from ..data.exclude import read_exclusion
from ..errors import UserError
from ..scenario import Scenario, build_scenario, unseen_notes
from ..terminal import Terminal
from .notes import say_notes
from .parser import OneLineParser


def main(argv: Sequence[str]) -> int:
    """Print classes and images of every step."""
    parser = OneLineParser(
        prog="segrow scenario",
        description="Which classes each step of a task teaches, and which training images it has.",
        epilog="Example: segrow scenario --data.root VOC2012 --task 15-1 --setting overlap --json",
    )
    parser.add_argument("--data.name", dest="name", default="voc", help="voc, ade20k, folder or digits")
    parser.add_argument("--data.root", dest="root", help="folder of the data set")
    parser.add_argument("--data.classes", dest="classes", help=f"class names in learning order: {LIST_HELP}")
    parser.add_argument("--data.order_seed", dest="order_seed", type=int, help="shuffle the class order")
    parser.add_argument("--data.ignore", dest="ignore", help="categories that count nowhere, or none")
    parser.add_argument("--data.scenes", dest="scenes", type=int, default=1200, help="only for digits")
    parser.add_argument("--data.exclude", dest="exclude", metavar="FILE", help="images to leave out")
    parser.add_argument("--task", default="15-1", help="BASE-INCREMENT, 15-1_b (SSUL's orders) or offline")
    parser.add_argument("--setting", default="overlap", help="overlap, disjoint or partitioned")
    parser.add_argument("--seed", type=int, default=1, help="of the partitioned setting")
    parser.add_argument("--json", action="store_true", help="print JSON with all image ids")
    args = parser.parse_args(list(argv))
    if args.order_seed is not None and args.order_seed < 0:
        raise UserError(f"--data.order_seed is {args.order_seed}, expected 0 or more")
    ignore = None if args.ignore is None else split_names(args.ignore, "--data.ignore")
    exclude = read_exclusion(args.exclude)
    data = open_dataset(args.name, args.root, args.scenes, exclude=exclude, ignore=ignore)
    presence = data.presence("train", progress=not args.json)
    classes = split_names(args.classes, "--data.classes") if args.classes else None
    scenario = build_scenario(
        args.name,
        data.class_names,
        data.ignore_id,
        presence,
        args.task,
        args.setting,
        classes,
        args.order_seed,
        args.seed,
        ignored=data.ignored,
    )
    say_notes((*data.notes, *unseen_notes(scenario, presence)))
    if args.json:
        steps = [{"index": s.index, "classes": s.classes, "images": s.images} for s in scenario.steps]
        print(json.dumps({"steps": steps}))
    else:
        Terminal().print(_table(scenario))
    return 0


def _table(scenario: Scenario) -> Table:
    table = Table(title=f"{scenario.data} {scenario.task} {scenario.setting}")
    table.add_column("step", justify="right")
    table.add_column("classes")
    table.add_column("training images", justify="right")
    for step in scenario.steps:
        table.add_row(str(step.index), ", ".join(step.classes), str(len(step.images)))
    return table
