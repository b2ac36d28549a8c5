"""`segrow data check`."""

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from ..class_lists import LIST_HELP, split_names
from ..data import NAMES, open_without
from ..data.base import SegDataset
from ..data.check import SPLITS, OfSplit, Report, check_tree
from ..data.exclude import Exclusion, check_replaceable, read_exclusion, write_exclusion
from ..data.given import open_given
from ..errors import UserError
from ..scenario import Scenario, build_scenario
from ..terminal import Terminal
from ..wording import count
from .parser import OneLineParser

PROBLEMS = 1
"""Exit code when something is wrong with the data."""
_SHOWN = 20  # problems of a kind that are printed; --json and --fix-list hold all


def check(argv: Sequence[str]) -> int:
    """Read a whole tree; 1 when something is wrong with it."""
    args = _parser().parse_args(list(argv))
    if args.order_seed is not None and args.order_seed < 0:
        raise UserError(f"--data.order_seed is {args.order_seed}, expected 0 or more")
    if args.fix_list:
        check_replaceable(Path(args.fix_list))
    exclusion = read_exclusion(args.exclude)
    ignore = None if args.ignore is None else split_names(args.ignore, "--data.ignore")
    report = check_tree(_opener(args.folder, args.name, exclusion, ignore), progress=not args.json)
    scenario = _scenario(report, args) if args.task else None
    if args.fix_list:
        _write_list(Path(args.fix_list), report, exclusion)
    if args.json:
        print(json.dumps(as_json(report, scenario)))
    else:
        _show(Terminal(), args.folder, report, scenario, args.fix_list)
    return PROBLEMS if report.problems else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="segrow data check",
        description="Read every image, mask and saliency map of a folder and list all that is wrong: images "
        "or masks alone, files that cannot be decoded, sizes that differ, values that are not a class, "
        "images that are there twice. Also what it holds: how masks are stored, images and pixels of each "
        "class. Exit code 0: nothing is wrong, 1: something is, 2: a mistake in the call.",
        epilog="Example: segrow data check photos --fix-list bad.txt, then "
        "segrow train --data.name folder --data.root photos --data.exclude bad.txt",
    )
    parser.add_argument("folder", metavar="DIR", help="a data folder, as segrow add and segrow train take it")
    names = [name for name in NAMES if name != "digits"]  # which are composed, so nothing can be wrong
    kinds = f"its kind: {', '.join(names)} (default: what it looks like)"
    parser.add_argument("--data.name", dest="name", choices=names, metavar="NAME", help=kinds)
    parser.add_argument("--data.exclude", dest="exclude", metavar="FILE", help="images to leave out already")
    parser.add_argument(
        "--fix-list", metavar="FILE", help="write the images to leave out, for segrow train --data.exclude"
    )
    parser.add_argument("--task", help="also what each step of a task would train on: BASE-INCREMENT")
    parser.add_argument("--setting", default="overlap", help="overlap, disjoint or partitioned")
    parser.add_argument("--data.ignore", dest="ignore", help="categories that count nowhere, or none")
    parser.add_argument("--data.classes", dest="classes", help=f"class names in learning order: {LIST_HELP}")
    parser.add_argument("--data.order_seed", dest="order_seed", type=int, help="shuffle the class order")
    parser.add_argument("--seed", type=int, default=1, help="of the partitioned setting")
    parser.add_argument("--json", action="store_true", help="print JSON, with every problem")
    return parser


def _opener(
    folder: str, name: str | None, exclusion: Exclusion, ignore: Sequence[str] | None
) -> Callable[[frozenset[str]], SegDataset]:
    """Opens the data set of a folder without some images; validation images are those it says."""

    def open_data(without: frozenset[str]) -> SegDataset:
        images = exclusion.images | without
        if name is not None:
            data = open_without(name, folder, 0, hold_out=False, exclude=images, ignore=ignore)
        elif (Path(folder) / "annotations" / "training").is_dir():
            data = open_without("ade20k", folder, 0, hold_out=False, exclude=images, ignore=ignore)
        else:
            data = open_given(Path(folder), "DIR", images, ignore)
        exclusion.check(data.excluded)
        return data

    return open_data


def _scenario(report: Report, args: Any) -> Scenario | None:
    if report.data is None:
        return None
    data = report.data
    classes = split_names(args.classes, "--data.classes") if args.classes else None
    present = report.splits["train"].presence(len(data.class_names))
    task = (args.task, args.setting, classes, args.order_seed, args.seed)
    return build_scenario(data.name, data.class_names, data.ignore_id, present, *task, ignored=data.ignored)


def _write_list(path: Path, report: Report, exclusion: Exclusion) -> None:
    """Those that were left out already are left out again."""
    before = [(image, "left out already") for image in sorted(exclusion.images)]
    write_exclusion(path, [*before, *report.leave_out()])


def as_json(report: Report, scenario: Scenario | None) -> dict[str, Any]:
    """All of a report as plain values."""
    data = report.data
    names = data.class_names if data else ()
    return {
        "ok": not report.problems,
        "kind": data.name if data else None,
        "classes": list(names),
        "problems": [problem._asdict() for problem in report.problems],
        "leave_out": [image for image, _ in report.leave_out()],
        "notes": report.notes,
        "splits": {split: _split(of, names) for split, of in report.splits.items()},
        "steps": [
            {"step": step, "images": n, "classes": [dict(zip(_STEP, row, strict=True)) for row in rows]}
            for step, n, rows in _steps(report, scenario)
        ],
    }


_STEP = ("class", "images", "pixels")


def _split(of: OfSplit, names: Sequence[str]) -> dict[str, Any]:
    images, pixels = of.per_class(len(names))
    return {
        "images": of.images,
        "usable": len(of.ids),
        "masks": dict(of.forms),
        "per_class": [
            {"class": name, "images": int(n), "pixels": int(p)}
            for name, n, p in zip(names, images, pixels, strict=True)
        ],
        "outside": [
            {"value": value, "pixels": pixels, "images": images}
            for value, (pixels, images) in sorted(of.outside.items())
        ],
        "empty": of.empty,
        "saliency": dict(of.saliency),
    }


def _steps(report: Report, scenario: Scenario | None) -> list[tuple[int, int, list[tuple[str, int, int]]]]:
    """Index, images, and of each new class its images and pixels among these."""
    if scenario is None or report.data is None:
        return []
    steps = []
    for step in scenario.steps:
        images, pixels = report.splits["train"].per_class(
            len(report.data.class_names), frozenset(step.images)
        )
        numbers = [report.data.class_names.index(name) for name in step.classes]
        rows = [(report.data.class_names[n], int(images[n]), int(pixels[n])) for n in numbers]
        steps.append((step.index, len(step.images), rows))
    return steps


# ---- for the terminal


def _show(
    console: Terminal, folder: str, report: Report, scenario: Scenario | None, fix_list: str | None
) -> None:
    for split in SPLITS:
        of = report.splits[split]
        if of.images:
            console.say(f"{split}: {_summary(of)}")
    if report.data:
        console.print(_class_table(report))
    for step, n, rows in _steps(report, scenario):
        console.say(f"step {step}: {count(n, 'image')}")
        for name, images, pixels in rows:
            console.say(f"  {name}: {count(images, 'image')}, {count(pixels, 'pixel')}")
    for note in report.notes:
        console.say(f"note: {note}")
    ordered = sorted(report.problems, key=lambda problem: problem.kind)  # stable: within a kind as found
    for kind, group in groupby(ordered, key=lambda problem: problem.kind):
        problems = list(group)
        for problem in problems[:_SHOWN]:
            console.say(f"{kind}: {problem.image}: {problem.text}" if problem.image else problem.text)
        if len(problems) > _SHOWN:
            console.say(f"{kind}: and {len(problems) - _SHOWN} more (--json lists all)")
    console.say(_verdict(folder, report, fix_list))


def _summary(of: OfSplit) -> str:
    parts = [f"{count(of.images, 'image')}, {len(of.ids)} usable"]
    parts.append("masks " + ", ".join(f"{n} {form}" for form, n in of.forms.most_common()))
    parts += [f"{len(ids)} with {kind} only" for kind, ids in of.empty.items()]
    parts += [
        f"value {v} in {count(n, 'mask')} ({count(p, 'pixel')})" for v, (p, n) in sorted(of.outside.items())
    ]
    if of.saliency["there"] or of.saliency["broken"] or of.saliency["empty"]:
        counted = ", ".join(f"{n} {state}" for state, n in of.saliency.most_common())
        parts.append(f"saliency maps {counted}")
    else:
        parts.append("no saliency maps")
    return "; ".join(parts)


def _class_table(report: Report) -> Table:
    assert report.data is not None
    names = report.data.class_names
    counted = [(split, report.splits[split].per_class(len(names))) for split in SPLITS]
    table = Table(title="images that show each class, and its pixels")
    table.add_column("class", overflow="fold")
    for split, _ in counted:
        for what in ("images", "pixels"):
            table.add_column(f"{split} {what}", justify="right", no_wrap=True)
    for k, name in enumerate(names):
        table.add_row(name, *(str(values[k]) for _, pair in counted for values in pair))
    return table


def _verdict(folder: str, report: Report, fix_list: str | None) -> str:
    if not report.problems:
        return f"{folder}: nothing is wrong"
    out = len(report.leave_out())
    maps = any(problem.kind == "saliency" for problem in report.problems)
    advice = ["make saliency maps again with segrow data saliency"] if maps else []
    if out and fix_list:
        advice.insert(0, f"{fix_list} lists {count(out, 'image')} for segrow train --data.exclude")
    elif out:
        advice.insert(0, f"--fix-list FILE writes a list of {count(out, 'image')} to leave out")
    problems = count(len(report.problems), "problem")
    return "; ".join([f"{folder}: {problems}", *advice])
