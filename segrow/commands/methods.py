"""`segrow methods`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..errors import UserError, near
from ..methods.base import Method, method_class, method_names
from ..recipes import exceptions, flatten, losses, paper, published_settings, show, titles
from ..terminal import Terminal, stacked
from .options import option_help
from .parser import OneLineParser

PARTS = ("init", "freeze", "pseudo")
NO_PART = "-"


def main(argv: Sequence[str]) -> int:
    """List all methods, or show one."""
    parser = OneLineParser(
        prog="segrow methods",
        description="The methods: paper, what they are made of, hyper-parameters and published settings.",
        epilog="Example: segrow methods mib",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this method in full")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(list(argv))
    names = method_names()
    if args.name is not None and args.name not in names:
        raise UserError(f'no method "{args.name}"; there is {", ".join(names)}.{near(args.name, names)}')
    if args.name is not None:
        found = described(args.name)
        print(json.dumps(found) if args.json else "\n".join(_lines(found)))
        return 0
    everything = [described(name) for name in names]
    if args.json:
        print(json.dumps(everything))
    else:
        Terminal().print(_table(everything))
    return 0


def described(name: str) -> dict[str, Any]:
    """All about one method as plain values."""
    kind = method_class(name)
    fields = {f.name: f.default for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    docs = option_help(name)
    return {
        "name": name,
        "paper": paper(name),
        "about": " ".join((kind.__doc__ or "").split("Attributes:")[0].split()),
        "parts": {
            **{part: fields.get(part) for part in PARTS},
            "losses": losses(name),
            "memory": _memory(kind),
        },
        "hyper_parameters": [
            {"name": f"method.{key}", "default": value, "doc": docs[f"method.{key}"]}
            for key, value in fields.items()
        ],
        "published_settings": {data: dict(flatten(published_settings(name, data, ""))) for data in titles()},
        "exceptions": {
            data: {task: dict(flatten(options)) for task, options in tasks.items()}
            for data, tasks in exceptions(name).items()
        },
        "example": f"segrow train --method {name} --data.root VOCdevkit/VOC2012 --task 15-1",
    }


def _memory(kind: type[Method]) -> str:
    if kind.sees == "seen":
        return "none: it sees all images"
    return "in the paper" if kind.paper_memory else "possible, not in the paper"


def _table(methods: Sequence[dict[str, Any]]) -> Table:
    """The parts side by side; loss terms and papers, which are long, below."""
    table = Table(
        title="methods; segrow methods NAME shows one", title_justify="left", caption_justify="left"
    )
    for heading in ("method", *PARTS, "memory"):
        table.add_column(heading)
    lines = []
    for found in methods:
        parts = found["parts"]
        cells = [*(parts[part] or NO_PART for part in PARTS), parts["memory"]]
        table.add_row(found["name"], *cells)
        lines.append(f"{found['name']}: {parts['losses'] or NO_PART}. Paper: {found['paper'] or NO_PART}")
    table.caption = stacked(lines)
    return table


def _lines(found: dict[str, Any]) -> list[str]:
    parts = found["parts"]
    lines = [found["name"], f"  {found['about']}", "", f"paper       {found['paper'] or NO_PART}"]
    lines += [f"{part:<11} {parts[part] or NO_PART}" for part in (*PARTS, "losses", "memory")]
    lines += ["", "hyper-parameters and their defaults"]
    for item in found["hyper_parameters"]:
        lines += [f"  --{item['name']} {show(item['default'])}", f"      {item['doc']}"]
    usual = {item["name"]: item["default"] for item in found["hyper_parameters"]}
    voc, ade = found["published_settings"].values()
    lines += ["", "published settings: the defaults with --method " + found["name"]]
    if not voc and not ade:
        lines.append("  none of its own: those of segrow train --help")
    for key in dict.fromkeys([*voc, *ade]):
        here, there = (show(settings.get(key, usual.get(key, NO_PART))) for settings in (voc, ade))
        value = here if here == there else f"{here} (VOC and others), {there} (ADE)"
        lines.append(f"  --{key} {value}")
    for data, tasks in found["exceptions"].items():
        for task, options in tasks.items():
            flags = " ".join(f"--{key} {show(value)}" for key, value in options.items())
            lines.append(f"  {flags} ({titles()[data]} {task})")
    return [*lines, "", "example", f"  {found['example']}"]
