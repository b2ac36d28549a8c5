"""What teaching one class from N images gives: `segrow add` with its defaults, on parts of VOC 2012.

python -m benchmarks.teach --data.root VOC2012 --weights mobilenetv2_100.safetensors
python -m benchmarks.teach --data.root VOC2012 --weights mobilenetv2_100.safetensors --images 50 --seeds 1
python -m benchmarks.teach --data.root VOC2012 --weights none --quick      whether it runs, in a minute

A base model learns person, chair, cat and dog; horses stand undrawn in some of its images, as what is learnt
later does in most data sets (with --unseen there is none). Then horse is taught from N other images whose
masks show horse alone, as somebody would draw them who has nothing but a model. The N images of a seed are
the first N of one order, so those of a smaller N are among them. Horse is measured on the
validation images that show it and as many that do not; the old classes on the images of the gate, which are
validation images that show one of them and no horse. No training has seen either.

The base run stays in --out and is used again; what is measured is measured anew, with a cold cache.
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from segrow.config import DataConfig, ModelConfig, RunConfig, RunPaths, TrainConfig
from segrow.data.base import Split
from segrow.data.lists import LISTS
from segrow.data.voc import IMAGES, MASKS, NAMES, SALIENCY, TRAIN_LISTS, VocDataset
from segrow.engine.run import train
from segrow.errors import UserError
from segrow.grow import AddOptions, carry_out, plan_addition
from segrow.methods.ssul import Ssul
from segrow.model.record import read_record

from .machine import describe, versions

BASE = ("person", "chair", "cat", "dog")
NEW = "horse"
COUNTS = (10, 20, 50, 100, 200)
SEED = 1
"""Of the base run, and of the validation images without the new class."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        crop: Side of the training crops of the base step.
        batch: Its batch size.
        epochs: Its epochs.
        images: Most images of each part of the data; None = all.
        add_epochs: Of the added step; None = the default of `segrow add`.
    """

    crop: int = 193
    batch: int = 16
    epochs: int = 8
    images: int | None = None
    add_epochs: int | None = None


FULL, QUICK = Size(), Size(crop=65, batch=4, epochs=1, images=24, add_epochs=2)


@dataclass(frozen=True)
class Parts:
    """Image ids by use.

    Attributes:
        train: Of the base step.
        check: Of the old classes, for the gate.
        pool: To draw the new class's images from.
        test: The new class is measured on.
    """

    train: tuple[str, ...]
    check: tuple[str, ...]
    pool: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One call of `segrow add`.

    Attributes:
        images: How many it learnt from.
        seed: Of the draw and of the call.
        new: IoU of the new class in points.
        seconds: Of the whole call, with index and gate.
        train_s: Of the training alone.
        change: IoU after - before of each old class, background too, in points.
        passed: Whether the gate let it through.
        reasons: Why not.
    """

    images: int
    seed: int
    new: float
    seconds: float
    train_s: float
    change: dict[str, float]
    passed: bool
    reasons: list[str]


@dataclass(frozen=True)
class Row:
    """All seeds of one number of images.

    Attributes:
        images: How many.
        new: Mean IoU of the new class in points.
        spread: Sample standard deviation; NaN of one seed.
        seconds: Mean seconds of a call.
        train_s: Mean seconds of its training.
        change: Mean change over old classes (background apart) and seeds, in points.
        worst: The class that lost most in one seed, and its change.
        background: Mean change of background.
        passed: How often the gate passed.
        seeds: How often of.
    """

    images: int
    new: float
    spread: float
    seconds: float
    train_s: float
    change: float
    worst: tuple[str, float]
    background: float
    passed: int
    seeds: int


# --- data ---------------------------------------------------------------------------------------------------


def parts_of(data: VocDataset, most: int | None = None, unseen: bool = False) -> Parts:
    """Who is what. No image of the pool is one of the base step.

    Args:
        data: VOC 2012 or a part of it.
        most: Keep at most so many of each; None = all.
        unseen: No image of the base step shows the new class; else half of those that do may be among them.
    """
    base, new = [NAMES.index(name) for name in BASE], NAMES.index(NEW)
    with_old: dict[str, list[str]] = {}
    old: tuple[str, ...] = ()
    shown: dict[str, list[str]] = {}
    others: list[str] = []
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        found = data.presence(split, progress=False)
        has_new, has_old = found.present[:, new], found.present[:, base].any(1)
        old = tuple(found.ids[k] for k in np.flatnonzero(has_old & ~has_new))
        with_old[split] = [found.ids[k] for k in np.flatnonzero(has_old)]
        shown[split] = [found.ids[k] for k in np.flatnonzero(has_new)]
        others = [found.ids[k] for k in np.flatnonzero(~has_new)]
    tested = shown["val"][:most]
    kept = set(draw(shown["train"], len(shown["train"]) // (1 if unseen else 2), SEED))
    pool = tuple(i for i in shown["train"] if i in kept)
    return Parts(
        tuple(i for i in with_old["train"] if i not in kept)[:most],
        old[:most],
        pool[:most],
        (*tested, *draw(others, len(tested), SEED)),
    )


def draw(ids: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """The first `count` of the ids in an order that the seed decides."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return tuple(ids[k] for k in order[:count])


def voc_part(data: VocDataset, root: Path, parts: Parts) -> Path:
    """A VOC folder of links that lists the images of the base step and of the gate."""
    for name in (IMAGES, MASKS, SALIENCY):
        if (data.root / name).is_dir():
            link(data.root / name, root / name)
    lists = root / LISTS[0]
    lists.mkdir(parents=True, exist_ok=True)
    for file, ids in ((TRAIN_LISTS[0], parts.train), ("val.txt", parts.check)):
        (lists / file).write_text("".join(f"{i}\n" for i in ids))
    return root


def photos(data: VocDataset, root: Path, train_ids: Sequence[str], test_ids: Sequence[str]) -> Path:
    """A folder of one's own, whose masks show the new class alone; what was void stays void."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text(f"background\n{NEW}\n")
    table = np.zeros(256, np.uint8)
    table[[NAMES.index(NEW), data.ignore_id]] = 1, 255
    parts: tuple[tuple[Split, Sequence[str]], ...] = (("train", train_ids), ("val", test_ids))
    for split, ids in parts:
        (root / "masks" / split).mkdir(parents=True)
        for i in ids:
            Image.fromarray(table[data.mask(split, i)]).save(root / "masks" / split / f"{i}.png")
            link(data.image_path(split, i), root / "images" / split / f"{i}.jpg")
            if data.saliency_path(split, i).is_file():
                link(data.saliency_path(split, i), root / "saliency" / split / f"{i}.png")
    return root


def link(target: Path, place: Path) -> None:
    """A symbolic link, in place of one that is there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve())


# --- what is measured ---------------------------------------------------------------------------------------


def train_base(root: Path, weights: str, out: Path, size: Size) -> dict[str, float]:
    """Train the base model, unless it is there; IoU of its classes on the gate's images in points."""
    config = RunConfig(
        task="offline",
        seed=SEED,
        data=DataConfig(name="voc", root=str(root), classes=BASE),
        model=ModelConfig(name="deeplabv3_mobilenet", weights=weights),
        train=TrainConfig(
            step0_lr=0.02,
            step0_backbone_lr=0.004,
            epochs=size.epochs,
            batch_size=size.batch,
            crop=size.crop,
            device="cpu",
        ),
    )
    method = Ssul() if (root / SALIENCY).is_dir() else Ssul(unknown="background")
    matrix = np.array(train(config, method, out)["steps"][0]["matrix"])
    known = np.diagonal(matrix[: len(BASE) + 1]).astype(np.float64)
    union = matrix.sum(1)[: len(known)] + matrix.sum(0)[: len(known)] - known
    with np.errstate(invalid="ignore"):
        ious = 100 * known / union
    return dict(zip(("background", *BASE), ious.tolist(), strict=True))


def measure(
    data: VocDataset, parts: Parts, base: Path, check: Path, work: Path, case: tuple[int, int], size: Size
) -> Case:
    """One call with the defaults, timed from an empty cache.

    Args:
        data: VOC 2012.
        parts: Who is what.
        base: The run of the base model.
        check: Images of the old classes.
        work: A folder that is made, and removed.
        case: Number of images and seed.
        size: How much.
    """
    count, seed = case
    shutil.rmtree(work, ignore_errors=True)
    folder = photos(data, work / "photos", draw(parts.pool, count, seed), parts.test)
    options = AddOptions(out=work / "model", check=check, epochs=size.add_epochs, seed=seed, device="cpu")
    with cache_in(work / "cache"):
        since = time.perf_counter()
        outcome = carry_out(plan_addition(base, folder, [NEW], options), quiet=True)
        seconds = time.perf_counter() - since
    verdicts = outcome.verdicts
    result = Case(
        count,
        seed,
        verdicts.new[0].iou,
        seconds,
        float(read_record(outcome.model)["training"]["train_s"]),
        {c.name: -c.drop for c in verdicts.old if not np.isnan(c.drop)},
        outcome.passed,
        verdicts.reasons,
    )
    shutil.rmtree(work)
    return result


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """What segrow keeps of a data set goes there."""
    before = os.environ.get("SEGROW_CACHE")
    os.environ["SEGROW_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SEGROW_CACHE"]
        else:
            os.environ["SEGROW_CACHE"] = before


# --- tables -------------------------------------------------------------------------------------------------


def rows_of(cases: Sequence[Case]) -> list[Row]:
    """A row for each number of images, the fewest first."""
    rows = []
    for count in sorted({case.images for case in cases}):
        same = [case for case in cases if case.images == count]
        news = [case.new for case in same]
        lost = [(name, value) for c in same for name, value in c.change.items() if name != "background"]
        rows.append(
            Row(
                count,
                float(np.mean(news)),
                float(np.std(news, ddof=1)) if len(news) > 1 else float("nan"),
                float(np.mean([case.seconds for case in same])),
                float(np.mean([case.train_s for case in same])),
                float(np.mean([value for _, value in lost])),
                min(lost, key=lambda pair: pair[1]),
                float(np.mean([case.change["background"] for case in same])),
                sum(case.passed for case in same),
                len(same),
            )
        )
    return rows


HEADINGS = (
    "images",
    f"{NEW} IoU",
    "seconds",
    "of them training",
    "old classes",
    "worst old class",
    "background",
    "gate passed",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is printed, below HEADINGS."""
    spread = "" if np.isnan(row.spread) else f" ± {row.spread:.1f}"
    name, worst = row.worst
    return (
        str(row.images),
        f"{row.new:.1f}{spread}",
        f"{row.seconds:.0f}",
        f"{row.train_s:.0f}",
        signed(row.change),
        f"{signed(worst)} ({name})",
        signed(row.background),
        f"{row.passed} of {row.seeds}",
    )


def signed(value: float) -> str:
    """Points with their sign; no minus in front of zero."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    out = Table(title=f"{NEW} from N images; old classes: change of IoU in points", title_justify="left")
    for name in HEADINGS:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*cells(row))
    return out


def markdown(rows: Sequence[Row]) -> str:
    """The same table."""
    lines = [HEADINGS, ("---:",) * len(HEADINGS), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(out: Path, cases: Sequence[Case], about: dict[str, Any]) -> None:
    """teach.json and teach.md."""
    rows = rows_of(cases)
    plain = [{**asdict(row), "spread": None if np.isnan(row.spread) else row.spread} for row in rows]
    content = {**about, "rows": plain, "cases": [asdict(case) for case in cases]}
    (out / "teach.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "teach.md").write_text(markdown(rows))


# --- the command --------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0, or 2 for a user's mistake."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    console = Console(stderr=True, highlight=False)
    try:
        run(arguments, shlex.join(["python", "-m", "benchmarks.teach", *words]), console)
    except UserError as error:
        console.print(f"benchmarks.teach: {error}", markup=False, soft_wrap=True)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m benchmarks.teach",
        description="What teaching a model one class from N images gives, and what it costs.",
    )
    out.add_argument(
        "--data.root", dest="root", type=Path, required=True, metavar="DIR", help="VOC 2012, or a part of it"
    )
    out.add_argument(
        "--weights", default="timm", help="of the backbone: a file, or as --model.weights of segrow train"
    )
    out.add_argument(
        "--out", type=Path, default=Path("teach"), metavar="DIR", help="the base run and the results"
    )
    out.add_argument("--unseen", action="store_true", help="the base has never seen the new class")
    out.add_argument("--images", type=numbers, default=COUNTS, metavar="N,...", help="how many to teach from")
    out.add_argument("--seeds", type=int, default=3, metavar="K", help="seeds 1 to K (default: 3)")
    out.add_argument("--threads", type=int, help="threads of torch (default: as torch chooses)")
    out.add_argument("--quick", action="store_true", help="tiny numbers: whether it runs, and no more")
    return out


def numbers(text: str) -> tuple[int, ...]:
    """10,20 -> (10, 20)."""
    return tuple(int(word) for word in text.split(","))


def run(arguments: argparse.Namespace, command: str, console: Console) -> None:
    """The base, every case, the tables."""
    size, seeds, counts = (QUICK, 1, [4]) if arguments.quick else (FULL, arguments.seeds, arguments.images)
    if min(counts) < 2 or seeds < 1:
        raise UserError("--images should be numbers from 2 up, --seeds 1 or more")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out / "quick" if arguments.quick else arguments.out
    weights = f"file:{arguments.weights}" if Path(arguments.weights).is_file() else arguments.weights
    with cache_in(out / "cache"):
        data = VocDataset(arguments.root)
        parts = parts_of(data, size.images, arguments.unseen)
        if max(counts) > len(parts.pool):
            raise UserError(f"--images {max(counts)}, but {len(parts.pool)} images show {NEW}; ask for fewer")
        check = voc_part(data, out / "data", parts)
        ious = train_base(check, weights, out / "base", size)
    shown = ", ".join(f"{name} {value:.1f}" for name, value in ious.items())
    console.print(f"base on {len(parts.check)} images, IoU in points: {shown}", soft_wrap=True)
    numbered = range(1, seeds + 1)
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "form": "quick" if arguments.quick else "full",
        "data": {name: len(ids) for name, ids in asdict(parts).items()},
        "seeds": list(numbered),
        "machine": describe(),
        "versions": versions(),
        "base": {
            "iou": ious,
            "weights": read_record(RunPaths(out / "base").model(0))["hashes"]["weights"],
            **asdict(size),
        },
    }
    cases: list[Case] = []
    for count in counts:
        for seed in numbered:
            cases.append(measure(data, parts, out / "base", check, out / "work", (count, seed), size))
            line = cells(rows_of(cases[-1:])[0])
            console.print(f"seed {seed}: {dict(zip(HEADINGS, line, strict=True))}", soft_wrap=True)
            write(out, cases, about)  # a kill loses one case
    Console(width=None if Console().is_terminal else 120).print(table(rows_of(cases)))
    console.print(f"written to {out / 'teach.json'} and {out / 'teach.md'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
