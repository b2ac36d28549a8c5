"""`segrow recipes`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..errors import UserError, near
from ..recipes import (
    NOT_PUBLISHED,
    Cell,
    about,
    cell,
    cells,
    deviations,
    files,
    flatten,
    notes,
    paper,
    read_recipe,
    recipe_names,
    references,
    rows,
    show,
    titles,
)
from ..terminal import Terminal, stacked
from .parser import OneLineParser


def main(argv: Sequence[str]) -> int:
    """List all recipes, or show one."""
    parser = OneLineParser(
        prog="segrow recipes",
        description="Runs with a name: all cells of the published tables, and measured experiments.",
        epilog="Example: segrow recipes voc-15-1-ssul-m",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this recipe in full")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(list(argv))
    if args.name is not None and args.name not in recipe_names():
        hint = near(args.name, recipe_names())
        raise UserError(f'no recipe "{args.name}"; `segrow recipes` lists all {len(recipe_names())}.{hint}')
    if args.json:
        print(json.dumps(_listed() if args.name is None else described(args.name)))
    elif args.name is None:
        _print_all(Terminal())
    else:
        _print_one(args.name)
    return 0


def _listed() -> list[dict[str, Any]]:
    """Name and published number of every recipe."""
    tables = [dataclasses.asdict(found) for found in cells()]
    return [*tables, *({"name": name, "published": None, "about": about(name)} for name in files())]


def described(name: str) -> dict[str, Any]:
    """All about one recipe as plain values."""
    found = cell(name)
    options = read_recipe(name)
    if found is None:
        command = f"segrow train --recipe {name} --data.root DIR"
        return {"name": name, "about": about(name), "published": None, "options": options, "command": command}
    key = (found.row, found.data, found.task, "memory" in options)
    return {
        **dataclasses.asdict(found),
        "paper": paper(found.row),
        "options": options,
        "deviations": deviations(*key),
        "reference": [dataclasses.asdict(reference) for reference in references(*key)],
        "notes": notes(*key),
        "command": f"segrow reproduce {name} --data.root DIR",
    }


def _print_all(console: Terminal) -> None:
    title = "published mIoU in %, all classes after the last step; recipe = {voc|ade}-TASK-METHOD[-disjoint]"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for row in rows():
        table.add_column(row, justify="right")
    published = [found for found in cells() if found.setting == "overlap"]
    for data in titles():
        tasks = list(dict.fromkeys(found.task for found in published if found.data == data))
        for task in tasks:
            line = [found for found in published if (found.data, found.task) == (data, task)]
            prefix = line[0].name.removesuffix(f"-{line[0].row}")
            table.add_row(prefix, *map(_published, line), end_section=task == tasks[-1])
    sources: dict[str, list[str]] = {}
    for found in published:
        sources.setdefault(f"definition {found.definition}: {found.source}", []).append(found.row)
    lines = [f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in sources.items()]
    lines.append(f"all of them also with -disjoint: {NOT_PUBLISHED}")
    table.caption = stacked(lines)
    console.print(table)
    console.say("segrow recipes NAME shows one; segrow reproduce NAME --data.root DIR trains it")
    for name in files():
        console.say(f"{name}: {about(name)} (segrow train --recipe {name})")


def _published(found: Cell) -> str:
    return NOT_PUBLISHED if found.published is None else f"{found.published:.2f}"


def _print_one(name: str) -> None:
    found, values = cell(name), described(name)
    lines = [name, ""]
    if found is None:
        lines += [values["about"], ""]
    else:
        lines += [
            f"paper       {values['paper']}",
            f"published   {_published(found)}" + ("" if found.published is None else f" ({found.source})"),
            f"definition  {found.definition} (all classes after the last step, in %)",
            "",
        ]
    lines += ["settings", *(f"  {flag}" for flag in _flags(values["options"]))]
    if found is not None:
        lines += ["", "deviations", *(f"  {says}" for says in values["deviations"])]
        lines += [f"  {item['otherwise']} (--reference)" for item in values["reference"] if item["otherwise"]]
        lines += ["", "--reference sets"]
        for item in values["reference"]:
            flags = " ".join(f"--{key} {show(value)}" for key, value in flatten(item["set"]))
            lines.append(f"  {flags}: {item['says']}")
        if not values["reference"]:
            lines.append("  nothing")
        if values["notes"]:
            lines += ["", "to compare", *(f"  {says}" for says in values["notes"])]
    lines += ["", "command", f"  {values['command']}"]
    print("\n".join(lines))


def _flags(options: dict[str, Any]) -> list[str]:
    """Options as flags; the method's own first name is --method."""
    flags = []
    for key, value in flatten(options):
        pinned = (key, value) == ("train.precision", "16")
        also = " (on a CPU, which cannot train with it: auto)" if pinned else ""
        flags.append(f"--{'method' if key == 'method.name' else key} {show(value)}{also}")
    return flags
