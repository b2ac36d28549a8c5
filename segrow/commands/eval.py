"""`segrow eval`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track
from rich.table import Table

from ..atomic import tidy, write_json
from ..class_lists import split_names
from ..data import open_dataset
from ..data.base import SegDataset, Split
from ..data.exclude import read_exclusion
from ..data.index import Presence
from ..devices import choose_device
from ..errors import UserError
from ..evaluate import eval_loader, evaluate
from ..processes import limit_threads
from ..protocol import definition, summarise
from ..report.tables import percent
from ..resources import enough_memory
from ..scenario import empty_table
from ..stored import data_names, find_model, load_with_method, origin_names
from ..terminal import Terminal
from ..wording import count
from .notes import say_notes
from .parser import WORKERS_HELP, OneLineParser


@dataclass(frozen=True)
class EvalOptions:
    """On what a model is evaluated, and how.

    Attributes:
        name: Data set; None: the one it was trained on.
        root: Folder of the data set.
        scenes: Number of training scenes; only for digits.
        split: train, val, or all: every image of a folder without validation images.
        batch_size: Images of one batch, when they are cropped.
        workers: Loader processes; None: 2, on a GPU as many as there are cores, at most 8.
        allow_code: Import a method from outside segrow.
        crop: Side of the centre crop in pixels, None for whole images, or as the model's run evaluated.
        device: cpu or cuda.
        ignore: Categories of a folder in COCO's or CVAT's layout that count nowhere.
        exclude: File that lists images to leave out.
    """

    name: str | None = None
    root: str | None = None
    scenes: int = 1200
    split: Literal["train", "val", "all"] = "val"
    batch_size: int = 16
    workers: int | None = None
    allow_code: bool = False
    crop: int | Literal["stored"] | None = "stored"
    device: Literal["cpu", "cuda"] = "cpu"
    ignore: tuple[str, ...] | None = None
    exclude: str | None = None


def main(argv: Sequence[str]) -> int:
    """Evaluate one model directory, or the last model of a run."""
    parser = OneLineParser(
        prog="segrow eval",
        description="Confusion matrix and IoU of a model on a split of a data set.",
        epilog="Example: segrow eval runs/ssul --data.root VOC2012 --definition foreground",
    )
    parser.add_argument(
        "model", metavar="MODEL|RUN", help="a model directory, or a run folder (its last step)"
    )
    parser.add_argument("--data.name", dest="name", help="default: the data set the model was trained on")
    parser.add_argument("--data.root", dest="root", help="folder of the data set")
    parser.add_argument("--data.ignore", dest="ignore", help="categories that count nowhere, or none")
    parser.add_argument("--data.exclude", dest="exclude", metavar="FILE", help="images to leave out")
    parser.add_argument("--data.scenes", dest="scenes", type=int, default=1200, help="only for digits")
    parser.add_argument(
        "--split", choices=("train", "val", "all"), default="val", help="all: of a folder without images/val"
    )
    parser.add_argument(
        "--definition", default="ssul", help="how to count (segrow results --help lists them)"
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    parser.add_argument("--out", help="also write the confusion matrix to this JSON file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(list(argv))
    definition(args.definition)
    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: its folder does not exist; make it first")
    options = EvalOptions(
        args.name,
        args.root,
        args.scenes,
        args.split,
        args.batch_size,
        args.workers,
        args.allow_code,
        device=choose_device(args.device, "--device"),
        ignore=None if args.ignore is None else tuple(split_names(args.ignore, "--data.ignore")),
        exclude=args.exclude,
    )
    results = evaluate_model(find_model(Path(args.model)), options, progress=not args.json)
    summary = summarise(results, args.definition)
    if args.out:
        tidy(Path(args.out).resolve().parent)
        write_json(Path(args.out), results)
    if args.json:
        print(json.dumps(summary))
        return 0
    heading = f"{args.model} on {args.split}, definition {summary['rules']}"
    table = Table()  # no title: it would be broken to the width of two columns
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    last = summary["steps"][-1]
    for name, value in last["per_class"].items():
        table.add_row(name, percent(value))
    for part in ("old", "new", "all"):
        table.add_row(f"mean, {part}", percent(last[part]))
    console = Terminal()
    console.say(heading)
    console.print(table)
    for remark in summary["remarks"]:
        console.say(remark)
    return 0


def evaluate_model(folder: Path, options: EvalOptions, progress: bool) -> dict[str, Any]:
    """A model's matrices in the form of results.json, with one step.

    Raises:
        UserError: When there is no model or data, or they do not fit.
    """
    device = torch.device(options.device)
    limit_threads()
    model, meta, method = load_with_method(folder, options.allow_code, device)
    origin, protocol = meta["scenario"], meta["protocol"]
    whole = options.split == "all"
    exclusion = read_exclusion(options.exclude)
    data = open_dataset(
        options.name or origin["data"],
        options.root,
        options.scenes,
        not whole,
        exclusion,
        options.ignore,
    )
    if whole and data.ids("val"):
        raise UserError(f"{data.root} has validation images of its own; give --split val or train, not all")
    split: Split = "train" if options.split == "all" else options.split
    presence = data.presence(split, progress)
    known = model.n_classes
    columns = _columns(meta, data)
    if not columns:
        raise UserError(
            f"{data.root} knows none of the model's classes ({_listed(meta['class_names'][1:])}); "
            f"its own are {_listed(data.class_names[1:])}"
        )
    shows = [bool(row.any()) for row in presence.present[:, list(columns)]]
    if not any(shows):
        raise UserError(f"no {options.split} image of {data.root} shows a class that the model knows")
    with_known = frozenset(i for i, there in zip(presence.ids, shows, strict=True) if there)
    names = list(origin["classes"])
    future = {
        data.class_names.index(name): known + k
        for k, name in enumerate(names[known:])
        if name in data.class_names
    }
    notes = (*data.notes, *_unknown(data, presence, [*columns, *future]))
    say_notes(notes)
    numbers = {**future, **columns}
    table = empty_table(data.ignore_id, len(data.class_names))
    table[list(numbers)] = list(numbers.values())
    unlabelled = [name for k, name in enumerate(names[:known]) if k and k not in columns.values()]
    stored = protocol["crop"] if protocol["crop_val"] else None
    crop = stored if options.crop == "stored" else options.crop
    loader = eval_loader(data, split, presence.ids, table, crop, options.batch_size, options.workers, device)
    fewer = "one image at a time; smaller images, or a machine with more memory, would do"
    if crop:
        half = max(1, options.batch_size // 2)
        fewer = f"{count(options.batch_size, 'image')} at a time; try --batch_size {half}"
    console = Terminal(stderr=True)
    shown = progress and console.is_terminal  # elsewhere it would leave a line
    with enough_memory(lambda error: fewer):
        matrices = evaluate(
            model.to(device),
            method.scores,
            loader,
            len(names),
            with_known,
            device,
            track=lambda batches: track(
                batches, "evaluation", len(loader), console=console, disable=not shown
            ),
        )
    record = {"step": meta["step"], "known": known}
    return {
        "format": 1,
        "data": data.name,
        "classes": names,
        "base_known": meta["class_steps"].count(0),
        "model": str(folder),
        "split": options.split,
        "n_images": len(presence.ids),
        "unlabelled": unlabelled,
        "remarks": [_remark(unlabelled)] * bool(unlabelled) + [exclusion.note()] * bool(exclusion.images),
        "notes": list(notes),
        "steps": [{**record, "matrix": matrices.all.tolist(), "matrix_known": matrices.known.tolist()}],
    }


def _columns(meta: Mapping[str, Any], data: SegDataset) -> dict[int, int]:
    """Which values of the masks are which known classes: raw id -> class index.

    The data that a model was trained on go on calling a renamed class what it was learnt by. They are known
    by their name or, since all folders have the same, by having all classes as they were learnt.
    """
    learnt, named = origin_names(meta, data.class_names), data_names(meta, data.class_names)
    origin, folders = meta["scenario"]["data"], ("folder", "coco", "palette")
    own = data.name == origin or (origin == "folder" and data.name in folders)
    if own and (data.name not in folders or len(learnt) == len(meta["class_names"]) - 1):
        rest = {raw: index for raw, index in named.items() if index not in learnt.values()}
        return {**rest, **learnt}
    return named


def _unknown(data: SegDataset, presence: Presence, known: Sequence[int]) -> list[str]:
    """A note on classes that the images show and the model does not know."""
    there = np.flatnonzero(presence.present.any(axis=0)).tolist()
    names = [data.class_names[value] for value in there if value and value not in known]
    if not names:
        return []
    return [f"{data.root}: the model does not know {_listed(names)}; their pixels count as background"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _remark(unlabelled: Sequence[str]) -> str:
    names = ", ".join(unlabelled)
    return f"not labelled in these data, so n/a: {names}; pixels predicted as such are mistakes all the same"
