"""Damage files and run the commands that read them, thousands of times: one warm process that forks.

python tests/fuzz_run.py FOLDER --tries 3000 --seed 1           # a line of JSON at the end
python tests/fuzz_run.py FOLDER --seed 1 --only 1234 --keep     # one try again; what it said

Every try is a function of (seed, number). It holds when the command ends by itself within the limits, with
exit code 0, 1, 2 or 3, says one line that begins with "segrow:" when it fails and no traceback, runs no code
that a file names, and writes into no file that was there (it makes a new one and exchanges it).
"""

import argparse
import collections
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SEGROW_CACHE"] = "cache"
os.environ["COLUMNS"] = "200"

import fuzz_damage as damage
import fuzz_material as material
import torch
from matplotlib.figure import Figure
from PIL import Image

import segrow
from segrow import cli

CPU_S, WALL_S = 10, 60  # a busy machine lengthens the second
MEMORY_KIB = 512 << 10
LANES = 2
Case = tuple[material.Target, Path, tuple[str, ...], str]


@dataclass
class Try:
    """One child at work."""

    number: int
    lane: Path
    what: str
    kind: str
    command: str
    pid: int
    begun: float


def warm() -> None:
    """Import once, before the forks, what the commands import: it took half of a try's time."""
    for module in pkgutil.walk_packages(segrow.__path__, "segrow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("attrs", "docstring_parser", "pycocotools.mask", "jinja2", "matplotlib.pyplot"):
        importlib.import_module(name)
    Image.init()  # PIL's readers
    for figure in ("savefig", "draw_without_rendering"):  # drawing reads no file
        setattr(Figure, figure, _drawn)
    torch.set_num_threads(1)
    gc.freeze()  # else a child's first collection copies all of it


def _drawn(_: Figure, file: Any = None, **options: Any) -> None:
    if file is not None:
        Image.new("RGB", (2, 2)).save(file, "PNG")


def draw(rng: random.Random, place: Path) -> Case:
    """Which file is damaged how, and which command reads it; the damage is done."""
    target = rng.choices(material.TARGETS, [t.weight for t in material.TARGETS])[0]
    found = sorted(p for p in place.glob(target.files) if not p.is_symlink())
    if target.kind != "whole trees":
        found = [p for p in found if p.is_file()]
    path = rng.choice(found)
    command = rng.choice(target.commands)
    how = _damage(rng, target, path)
    return target, path, command, how


def _damage(rng: random.Random, target: material.Target, path: Path) -> str:
    if path.is_dir():
        damage.replace_folder(rng, path)
        return "folder"
    inner = {
        ".json": damage.change_json,
        ".yaml": damage.change_yaml,
        ".safetensors": damage.change_safetensors,
        ".ckpt": damage.change_torch,
        ".pth": damage.change_torch,
        ".npz": damage.change_npz,
    }.get(path.suffix)
    damage.apart(path)
    share = rng.random()
    if share < 0.12 or target.kind == "whole trees":
        damage.replace(rng, path)
        return "replaced"
    if share < 0.2:
        content = damage.other_text(rng, bytearray(path.read_bytes()))
        how = "text"
    elif share < 0.6 and inner is not None:
        inner(rng, path)
        how = "values"
        content = bytearray(path.read_bytes())
    elif share < 0.6 and path.suffix == ".png":
        content = damage.png_header(rng, bytearray(path.read_bytes()))
        how = "header"
    else:
        change = rng.choice(damage.BYTES)
        content = change(rng, bytearray(path.read_bytes()))
        how = change.__name__
    path.write_bytes(content)
    if (path.parent / "model.json").exists() and rng.random() < (0.9 if how == "values" else 0.5):
        damage.apart(path.parent / "model.json")
        damage.hash_again(path.parent)
        how += ", hashed"
    return how


def prepare(base: Path, lane: Path) -> None:
    """The material again: links to its files, since neither the damage nor a command writes into one."""
    shutil.rmtree(lane, ignore_errors=True)
    shutil.copytree(base, lane, symlinks=True, copy_function=os.link)


def digest(base: Path) -> str:
    """Of all files of the material."""
    found = hashlib.sha256()
    for path in sorted(p for p in base.rglob("*") if p.is_file()):
        found.update(f"{path}\n".encode() + path.read_bytes())
    return found.hexdigest()


def child(lane: Path, command: tuple[str, ...]) -> None:
    """The command in this (forked) process, which ends with it."""
    code = 70
    try:
        (lane / "start").write_text(str(resident()))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        room = 2 << 30  # a hole in the memory shall not harm the machine
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
        os.chdir(lane)
        sys.path.insert(0, "")
        handle = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
        os.dup2(os.open("shown", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        try:
            code = cli.main(list(command))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def fault(lane: Path, status: int, usage: Any) -> str | None:
    """What is wrong with how a try ended."""
    said = (lane / "said").read_text(errors="replace") if (lane / "said").exists() else ""
    if (lane / "RAN").exists():
        return "code was run"
    if "Traceback" in said:
        return "traceback: " + said.strip().splitlines()[-1][:160]
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)} after {usage.ru_utime + usage.ru_stime:.1f} s"
    code = os.WEXITSTATUS(status)
    lines = [line for line in said.splitlines() if line.startswith("segrow:")]
    if code not in (0, 1, 2, 3):
        return f"exit code {code}: {said[-200:]}"
    if code == 1 and " skipped:" in (lane / "shown").read_text(errors="replace"):
        lines = lines or ["segrow: predict lists what it left out"]
    if code in (1, 2) and len(lines) != 1:
        return f"exit code {code} with {len(lines)} lines: {said[-200:]!r}"
    if code == 2 and ";" not in lines[0] and len(lines[0]) < 30:
        return f"a line that says too little: {lines[0]}"
    if grown(lane, usage) > MEMORY_KIB:
        return f"{grown(lane, usage) >> 10} MiB of memory"
    return None


def grown(lane: Path, usage: Any) -> int:
    """KiB that the child needed above its start; the libraries that it touched count too."""
    return int(usage.ru_maxrss) - int((lane / "start").read_text())


def resident() -> int:
    """KiB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (resource.getpagesize() >> 10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no try after that")
    parser.add_argument("--lanes", type=int, default=LANES, help="children at a time")
    args = parser.parse_args()
    work: Path = args.folder.resolve()
    base = work / "base"
    warm()
    if not base.exists():
        in_child(lambda: make(base))
    for number in range(args.lanes):  # the index of a lane's masks belongs to its path
        lane, kept = work / f"lane{number}", work / f"base{number}"
        if not kept.exists():
            prepare(base, lane)
            in_child(lambda lane=lane: index(lane))
            shutil.copytree(lane, kept, symlinks=True)
    numbers = args.only if args.only is not None else range(args.tries)
    report = fuzz(work, numbers, args.seed, args.keep, args.lanes, time.monotonic() + args.seconds)
    print(json.dumps(report))


def in_child(call: Any) -> None:
    """So that this process stays without threads."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the material could not be made")


def make(base: Path) -> None:
    base.mkdir(parents=True)
    os.chdir(base)
    sys.stdout = sys.stderr
    material.build(base)


def index(lane: Path) -> None:
    os.chdir(lane)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for target in material.TARGETS:
        if target.kind in ("presence index", "COCO"):
            assert cli.main(list(target.commands[0])) == 0


def fuzz(work: Path, numbers: Any, seed: int, keep: bool, lanes: int, end: float) -> dict[str, Any]:
    """Try all numbers, some at a time."""
    todo = collections.deque(numbers)
    free = collections.deque(range(lanes))
    busy: dict[int, tuple[Try, int]] = {}
    codes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults: list[str] = []
    slowest, largest = 0.0, 0
    before = [digest(work / f"base{slot}") for slot in free]
    seconds: collections.Counter[str] = collections.Counter()
    while todo or busy:
        if time.monotonic() > end:
            todo.clear()
        while todo and free:
            slot = free.popleft()
            one = launch(work, slot, todo.popleft(), seed)
            busy[one.pid] = one, slot
        pid, status, usage = wait(busy)
        one, slot = busy.pop(pid)
        bad = fault(one.lane, status, usage)
        slowest = max(slowest, usage.ru_utime + usage.ru_stime)
        largest = max(largest, grown(one.lane, usage) >> 10)
        seconds[f"{one.kind}: {one.command[:40]}"] += usage.ru_utime + usage.ru_stime
        codes[one.kind][f"exit {os.WEXITSTATUS(status)}" if bad is None else "lost"] += 1
        if bad is not None:
            faults.append(f"{one.number}: {one.what}: {bad}")
            print(faults[-1], file=sys.stderr, flush=True)
        if keep:
            said = one.lane / "said"
            text = said.read_text(errors="replace") if said.exists() else ""
            print(f"{one.number}: {one.what}\n{text}", file=sys.stderr)
        free.append(slot)
    return {
        "tried": sum(sum(count.values()) for count in codes.values()),
        "lost": len(faults),
        "written_into": before != [digest(work / f"base{slot}") for slot in range(lanes)],
        "faults": faults,
        "slowest_s": round(slowest, 2),
        "largest_mib": largest,
        "cpu_s": {what: round(value, 1) for what, value in seconds.most_common(12)},
        "kinds": {kind: dict(sorted(count.items())) for kind, count in codes.items()},
    }


def launch(work: Path, slot: int, number: int, seed: int) -> Try:
    lane = work / f"lane{slot}"
    rng = random.Random(f"{seed}/{number}")
    prepare(work / f"base{slot}", lane)
    target, path, command, how = draw(rng, lane)
    what = f"{path.relative_to(lane)} ({how}), {' '.join(command)[:60]}"
    pid = os.fork()
    if pid == 0:
        child(lane, command)
    return Try(number, lane, what, target.kind, " ".join(command), pid, time.monotonic())


def wait(busy: dict[int, tuple[Try, int]]) -> tuple[int, int, Any]:
    """The next child that ends; one that takes too long is killed."""
    while True:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid:
            return pid, status, usage
        for one, _ in busy.values():
            if time.monotonic() - one.begun > WALL_S:
                os.kill(one.pid, 9)
        time.sleep(0.003)


if __name__ == "__main__":
    main()
