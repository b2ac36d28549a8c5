"""Every value of a model.json replaced by others, hashes computed anew, and the commands that go on from it.

python tests/sweep_record.py FOLDER             # all of them, some minutes; a line per fault
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runs import build_tree, options

from segrow import cli
from segrow.model.record import hashes_of

DATA, RUN, MODEL = "VOC2012", "run", "model"
MORE = (
    *("--memory.size", "6", "--train.epochs", "1", "--method", "plop", "--model.output_stride", "8"),
    *("--train.precision", "32"),
)
"""With a memory, and a method that has a state."""
COMMANDS: dict[str, list[str]] = {
    "rename-class": ["rename-class", MODEL, "bicycle", "tandem"],
    "remove-class": ["remove-class", MODEL, "bicycle"],
    "rollback": ["rollback", MODEL, "--to-step", "0"],
    "rollback to the damaged one": ["rollback", MODEL, "--to-step", "0"],
    "train, continued": options(Path(DATA), Path(RUN), *MORE, "--steps", "2"),
    "train, to be evaluated": options(Path(DATA), Path(RUN), *MORE, "--steps", "1"),
}
GONE = object()
VALUES: list[Any] = [
    *(GONE, None, True, -1, 0, 1, 7, 1 << 40, 1.5, 1e300, float("nan"), "", "x", "../../x", "[/red]\x1b"),
    *([], {}, [None], ["x"], [[]], {"x": 1}, [1, 2], "cat" * 3000),
]
Path_ = tuple[str | int, ...]


def build(place: Path) -> None:
    """A run with one step, and a copy of its model with a history, in a folder that is the working one."""
    build_tree(place / DATA)
    assert cli.main(options(Path(DATA), Path(RUN), *MORE, "--steps", "1")) == 0
    shutil.copytree(f"{RUN}/steps/00/model", MODEL)
    assert cli.main(["rename-class", MODEL, "bicycle", "bike"]) == 0
    assert cli.main(["rename-class", MODEL, "bike", "bicycle"]) == 0


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where values stand in a record; of a list the first and the last. The hashes are computed anew."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            if at or key != "hashes":
                yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for k in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[k], (*at, k))


def put(record: dict[str, Any], at: Path_, value: Any) -> None:
    """Another value there, or none."""
    inner: Any = record
    for key in at[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value


def damage(folder: Path, at: Path_, value: Any) -> None:
    """Change the model.json of a directory; it fits its hashes."""
    path = folder / "model.json"
    record = json.loads(path.read_text())
    put(record, at, value)
    record["hashes"] = hashes_of(record, record["hashes"]["files"])
    path.unlink()  # a link to that of another try
    path.write_text(json.dumps(record))


def folder_of(command: str) -> Path:
    """Whose model.json a command is swept with."""
    if command.startswith("train"):
        return Path(RUN) / "steps/00/model"
    if command.endswith("damaged one"):
        return max((Path(MODEL) / "history").iterdir())
    return Path(MODEL)


def tried(command: str) -> str:
    """What is wrong with how a command ends; "" where it works or says in one line why not."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(COMMANDS[command])
    except BaseException:
        return f"traceback: {traceback.format_exc()[-1500:]}"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("segrow: ")]
    if code == 2 and len(lines) == 1 and "; " in lines[0] and "Traceback" not in said.getvalue():
        return ""
    return "" if code == 0 and not lines else f"exit code {code}: {said.getvalue()[-500:]!r}"


def sweep(
    place: Path, choose: Callable[[list[tuple[str, Path_, int]]], list[tuple[str, Path_, int]]]
) -> Iterator[tuple[str, str]]:
    """Try what is chosen of all (command, place, number of the value); what was tried, and the fault.

    Args:
        place: A folder that may be filled; the working directory.
    """
    if not Path("base").exists():
        Path("base").mkdir()
        with contextlib.chdir("base"), contextlib.redirect_stdout(io.StringIO()):
            build(Path())
    with contextlib.chdir("base"):
        cases = [
            (command, at, k)
            for command in COMMANDS
            for at in places(json.loads((folder_of(command) / "model.json").read_text()))
            for k in range(len(VALUES))
        ]
    for command, at, k in choose(cases):
        shutil.rmtree("lane", ignore_errors=True)
        shutil.copytree("base", "lane", copy_function=os.link, ignore=shutil.ignore_patterns(DATA))
        Path(f"lane/{DATA}").symlink_to(f"../base/{DATA}")
        with contextlib.chdir("lane"):
            if command == "train, to be evaluated":  # killed behind the training
                Path(RUN, "results.json").unlink()
            damage(folder_of(command), at, VALUES[k])
            shown = "gone" if VALUES[k] is GONE else repr(VALUES[k])[:40]
            yield f"{command}: {'.'.join(map(str, at))} = {shown}", tried(command)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", help="one of them alone")
    parser.add_argument("--tries", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    os.chdir(args.folder)

    def choose(cases: list[tuple[str, Path_, int]]) -> list[tuple[str, Path_, int]]:
        cases = [case for case in cases if args.command in (None, case[0])]
        return random.Random(args.seed).sample(cases, min(args.tries, len(cases)))

    n = lost = 0
    for what, fault in sweep(args.folder, choose):
        n, lost = n + 1, lost + bool(fault)
        if fault:
            print(f"{what}\n    {fault}", flush=True)
    print(f"{n} tried, {lost} lost", file=sys.stderr)


if __name__ == "__main__":
    main()
