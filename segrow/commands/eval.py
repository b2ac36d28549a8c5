"""`segrow eval`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ..data import open_dataset
from ..engine.checkpoint import write_json
from ..errors import UserError
from ..evaluate import eval_loader, evaluate
from ..protocol import definition, summarise
from ..report.tables import percent
from ..scenario import build_scenario
from ..stored import find_model, load_with_method
from .parser import OneLineParser


@dataclass(frozen=True)
class EvalOptions:
    """On what a model is evaluated, and how.

    Attributes:
        name: Data set; None: the one it was trained on.
        root: Folder of the data set.
        scenes: Number of training scenes; only for digits.
        split: train or val.
        batch_size: Images of one batch, when they are cropped.
        workers: Loader processes.
        allow_code: Import a method from outside segrow.
        crop: Side of the centre crop in pixels, None for whole images, or as the model's run evaluated.
        device: auto, cpu or cuda.
    """

    name: str | None = None
    root: str | None = None
    scenes: int = 1200
    split: Literal["train", "val"] = "val"
    batch_size: int = 16
    workers: int = 2
    allow_code: bool = False
    crop: int | Literal["stored"] | None = "stored"
    device: Literal["auto", "cpu", "cuda"] = "auto"


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
    parser.add_argument("--data.scenes", dest="scenes", type=int, default=1200, help="only for digits")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument(
        "--definition", default="ssul", help="how to count (segrow results --help lists them)"
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    parser.add_argument("--out", help="also write the confusion matrix to this JSON file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(list(argv))
    definition(args.definition)
    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise UserError(f"--out {args.out}: its folder does not exist; make it first")
    options = EvalOptions(
        args.name, args.root, args.scenes, args.split, args.batch_size, args.workers, args.allow_code
    )
    results = evaluate_model(find_model(Path(args.model)), options, progress=not args.json)
    summary = summarise(results, args.definition)
    if args.out:
        write_json(Path(args.out), results)
    if args.json:
        print(json.dumps(summary))
        return 0
    heading = f"{args.model} on {args.split}, definition {args.definition}: {summary['rules']}"
    table = Table(title=escape(heading))
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    last = summary["steps"][-1]
    for name, value in last["per_class"].items():
        table.add_row(escape(name), percent(value))
    for part in ("old", "new", "all"):
        table.add_row(f"mean, {part}", percent(last[part]))
    console = Console()
    console.print(table)
    for remark in summary["remarks"]:
        console.print(remark, markup=False)
    return 0


def evaluate_model(folder: Path, options: EvalOptions, progress: bool) -> dict[str, Any]:
    """A model's matrices in the form of results.json, with one step.

    Raises:
        UserError: When there is no model or data, or they do not fit.
    """
    model, meta, method = load_with_method(folder, options.allow_code)
    origin, protocol = meta["scenario"], meta["protocol"]
    data = open_dataset(options.name or origin["data"], options.root, options.scenes)
    presence = data.presence(options.split, progress)
    # its own data go on calling a renamed class what it was learnt by
    learnt_as = meta.get("learnt_as", {}) if data.name == origin["data"] else {}
    theirs = [learnt_as.get(name, name) for name in origin["classes"][1:]]
    known = model.n_classes
    common = [name for name in theirs if name in data.class_names]
    unlabelled = [
        name
        for name, learnt in zip(origin["classes"][1:known], theirs, strict=False)
        if learnt not in data.class_names
    ]
    raw = [data.class_names.index(name) for name in theirs[: known - 1] if name in data.class_names]
    if not raw:
        raise UserError(
            f"{data.root} knows none of the model's classes ({', '.join(theirs[: known - 1])}); "
            f"its own are {', '.join(data.class_names[1:])}"
        )
    if not presence.present[:, raw].any():
        raise UserError(f"no {options.split} image of {data.root} shows a class that the model knows")
    scenario = build_scenario(
        data.name, data.class_names, data.ignore_id, presence, "offline", "overlap", tuple(common)
    )
    with_known = frozenset(i for i, row in zip(presence.ids, presence.present, strict=True) if row[raw].any())
    table = scenario.eval_table()
    # the model's own numbers; what the data do not label has no true pixel
    numbers = np.array([0, *(1 + theirs.index(name) for name in common)], dtype=table.dtype)
    table = np.where(table > 0, numbers[table.clip(0)], table)
    stored = protocol["crop"] if protocol["crop_val"] else None
    crop = stored if options.crop == "stored" else options.crop
    loader = eval_loader(data, options.split, presence.ids, table, crop, options.batch_size, options.workers)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--train.device cuda, but torch sees no GPU; use --train.device cpu")
    gpu = options.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    matrices = evaluate(
        model.to(device),
        method.scores,
        loader,
        1 + len(theirs),
        with_known,
        device,
        track=lambda batches: track(batches, "evaluation", len(loader), disable=not progress),
    )
    record = {"step": meta["step"], "known": known}
    return {
        "format": 1,
        "data": data.name,
        "classes": list(origin["classes"]),
        "base_known": meta["class_steps"].count(0),
        "model": str(folder),
        "split": options.split,
        "n_images": len(presence.ids),
        "unlabelled": unlabelled,
        "remarks": [_remark(unlabelled)] if unlabelled else [],
        "steps": [{**record, "matrix": matrices.all.tolist(), "matrix_known": matrices.known.tolist()}],
    }


def _remark(unlabelled: Sequence[str]) -> str:
    names = ", ".join(unlabelled)
    return f"not labelled in these data, so n/a: {names}; pixels predicted as such are mistakes all the same"
