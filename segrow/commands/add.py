"""`segrow add`."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from ..class_lists import LIST_HELP, split_names
from ..errors import UserError
from ..grow import AddOptions, Outcome, Plan, carry_out, plan_addition
from ..grow.adopt import adopt
from ..grow.gate import ENOUGH, FEW, Verdicts
from ..grow.options import AUTO, REMBG
from ..grow.plan import rejected_folder
from ..model.exchange import check_apart, put_right
from ..terminal import Terminal
from ..wording import count
from .parser import WORKERS_HELP, OneLineParser

TEXT = ("class", "verdict", "taken for")
REJECTED = 3
"""Exit code when the gate does not let the new model through."""


def main(argv: Sequence[str]) -> int:
    """Plan, train, judge; 0 when the new model stands, 3 when it was rejected."""
    args = _parser().parse_args(list(argv))
    if args.origin is not None:
        return _from_elsewhere(args)
    if args.names or args.arch or args.output_stride or args.rates:
        raise UserError(
            "--names, --arch, --output-stride, --rates describe the file of --from; give it or leave them out"
        )
    if args.model is None or args.data is None:
        raise UserError("the following arguments are required: MODEL|RUN (or --from FILE), --data, --classes")
    return _grow(Path(args.model), args)


def _from_elsewhere(args: argparse.Namespace) -> int:
    """Convert a state dict, and teach it further where new classes are given."""
    if args.model is not None:
        raise UserError(f"got MODEL {args.model} and --from {args.origin}; give one of them")
    if not args.names or not args.out:
        raise UserError("--from FILE needs --names a,b,c (its classes by channel) and --out DIR")
    if args.data is None and args.classes:
        raise UserError("--classes needs --data with images of them; leave it out to convert the file alone")
    out = Path(args.out)
    put_right(out, "segrow add")
    if out.exists():
        raise UserError(f"--out {out} is there already; give another place")
    check_apart(out)
    with tempfile.TemporaryDirectory() as folder:
        alone = args.data is None and not args.dry_run
        model = out if alone else Path(folder) / out.name
        form = (args.arch, args.output_stride, _rates(args.rates))
        note = Terminal(stderr=args.json, wide=True).say
        names = split_names(args.names, "--names")
        known = adopt(Path(args.origin), names, model, *form, report=lambda line: note(f"note: {line}"))
        if args.data is not None:
            return _teach_converted(model, args)
    verb = "would be" if args.dry_run else "is"
    if args.json:
        print(json.dumps({"model": str(out), "classes": known, "written": not args.dry_run}))
        return 0
    Terminal().say(f"{out} {verb} a model of {count(known, 'class')}, from {args.origin}")
    return 0


def _teach_converted(model: Path, args: argparse.Namespace) -> int:
    """One more step on a converted file; what is said is said of the file, for `model` will be gone."""
    known = split_names(args.names, "--names")
    for name in split_names(args.classes, "--classes"):
        if name in known:
            raise UserError(
                f'{args.origin} knows "{name}" already (--names); leave it out of --classes, or give its '
                "channel another name"
            )

    def say(line: str) -> str:
        return line.replace(str(model), args.origin)

    try:
        return _grow(model, args, say)
    except UserError as error:
        raise UserError(say(str(error))) from None


def _rates(value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise UserError(f"--rates should be whole numbers such as 12,24,36, got {value}") from None


def _grow(model: Path, args: argparse.Namespace, say: Callable[[str], str] = str) -> int:
    """One more step on a model directory; every line goes through `say`."""
    options = AddOptions(
        out=_path(args.out),
        check=_path(args.check),
        exemplars=_path(args.exemplars),
        saliency=args.saliency,
        ignore=None if args.ignore is None else tuple(split_names(args.ignore, "--ignore")),
        max_drop=args.max_drop,
        min_new=args.min_new,
        epochs=args.epochs,
        batch_size=args.batch_size,
        views=args.views,
        lr=args.lr,
        crop=args.crop,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        allow_code=args.allow_code,
        strict=args.strict,
    )
    plan = plan_addition(model, Path(args.data), split_names(args.classes, "--classes"), options)
    console = Terminal(stderr=args.json, wide=True)
    lines = [say(line) for line in describe(plan)]
    for line in lines:
        console.say(line)
    if args.dry_run:
        if args.json:
            print(json.dumps({"plan": lines}))
        return 0
    outcome = carry_out(plan)
    if args.json:
        print(
            json.dumps({"passed": outcome.passed, "model": str(outcome.model), **outcome.verdicts.as_json()})
        )
    else:
        show(outcome, console, say)
    return 0 if outcome.passed else REJECTED


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="segrow add",
        description="Teach a model new classes from a folder of annotated images, without the old data. "
        "The masks need only show the new classes. With --check the new model must not have forgotten the "
        "old ones: else it goes to rejected/ beside the model, which stays as it is (exit code 3).",
        epilog="Example: segrow add models/animals --data photos --classes zebra,okapi --check old_photos",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL|RUN", help="a model directory, or a run folder (its last step)"
    )
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="FILE",
        help="instead: a state dict of DeepLabV3 or V3+ of torchvision or segmentation_models_pytorch",
    )
    parser.add_argument("--names", help=f"its classes in the order of its channels: {LIST_HELP}")
    parser.add_argument(
        "--arch", help="its network, such as deeplabv3plus_resnet50 (default: what its names show)"
    )
    parser.add_argument(
        "--output-stride", type=int, choices=(8, 16), help="it was built with (default: as its library does)"
    )
    parser.add_argument("--rates", help="dilations of its ASPP (default: 12,24,36)")
    parser.add_argument(
        "--data",
        help="folder with classes.txt, images/, masks/; or JPEGImages/, SegmentationClass/; or a COCO .json",
    )
    parser.add_argument("--classes", default="", help=f"the new classes: {LIST_HELP}")
    parser.add_argument(
        "--ignore",
        metavar="NAMES",
        help="categories whose pixels count nowhere, or none (default: those called ignore, void, "
        "unlabeled, don't care)",
    )
    parser.add_argument(
        "--out", help="the new model's directory (default: MODEL itself; of a run, RUN/grown)"
    )
    parser.add_argument("--check", help="annotated images of old classes, for the gate")
    parser.add_argument(
        "--exemplars",
        help="data set of the model's memory: replay it; without --check a fifth is for the gate",
    )
    parser.add_argument(
        "--saliency",
        default=AUTO,
        help="ONNX file or rembg model: make saliency maps where there are none (default: auto, "
        f"rembg's {REMBG} where rembg is installed; none: no maps)",
    )
    parser.add_argument(
        "--max-drop", type=float, default=1.0, help="points of IoU that an old class may lose (default 1)"
    )
    parser.add_argument(
        "--min-new", type=float, help="points of IoU that new classes must reach on held-out images"
    )
    parser.add_argument("--epochs", type=int, help="default: enough for 300 updates")
    parser.add_argument("--batch-size", type=int, help="default: 8, or all images when they are fewer")
    parser.add_argument("--views", type=int, default=4, help="random views kept of every image (default 4)")
    parser.add_argument("--lr", type=float, help="default: as the model's method was published")
    parser.add_argument(
        "--crop", type=int, help="pixels of training crops (default: as the model was trained)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="for scripts: stop where an image is learnt from twice, or measured on, too; and reject a model "
        "with a class that is unsure or few (too few images)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would happen and write nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def describe(plan: Plan) -> list[str]:
    """What a plan will do, a line each."""
    train, known, method = plan.config.train, len(plan.meta["class_names"]), plan.meta["method"]["name"]
    rows = [
        f"{plan.folder}: {count(known - 1, 'class')} after step {plan.step - 1}, method {method}",
        f"step {plan.step} learns {', '.join(plan.classes)} from {count(len(plan.new.ids), 'image')} of "
        f"{plan.new.data.root}",
        f"{count(train.epochs, 'epoch')} in batches of {train.batch_size} = "
        f"{count(plan.updates, 'update')}, crops of {train.crop} px, "
        f"{count(train.feature_views, 'view')} per image, lr {train.lr:g}",
        "saliency: "
        + {
            "folder": "maps of the folder",
            "made": f"maps made with {plan.maker.model if plan.maker else ''}",
            "none": "no maps",
        }[plan.salient],
    ]
    if plan.exemplars:
        rows.append(f"replays {count(len(plan.exemplars), 'exemplar')}")
    if plan.check is not None:
        rows.append(
            f"gate: {count(len(plan.check.ids), 'image')} of {plan.check.data.root}, an old class may "
            f"drop by {plan.options.max_drop:g} points"
        )
    elif plan.judged:
        rows.append(
            f"gate: {count(len(plan.judged), 'exemplar')}, an old class may drop "
            f"by {plan.options.max_drop:g} points"
        )
    if plan.held is not None:
        least = plan.options.min_new
        wanted = "measured" if least is None else f"must reach {least:g} points"
        shown = ", ".join(plan.held.ids[:4]) + (" …" if len(plan.held.ids) > 4 else "")
        rows.append(f"held out: {count(len(plan.held.ids), 'image')} ({shown}); new classes {wanted} there")
    rows += [f"note: {note}" for note in plan.notes]
    rows.append(
        f"will be written to {plan.target}, its parent under history/; if rejected, "
        f"to {rejected_folder(plan.target, plan.step)}"
    )
    return rows


def show(outcome: Outcome, console: Terminal, say: Callable[[str], str] = str) -> None:
    """The gate's table and what came of it; every line goes through `say`."""
    if outcome.verdicts.old or outcome.verdicts.new:
        console.print(_table(outcome.verdicts))
    verdicts: list[tuple[str, str]] = [(c.name, c.verdict) for c in outcome.verdicts.old]
    verdicts += [(c.name, c.verdict) for c in outcome.verdicts.new]
    few = [name for name, verdict in verdicts if verdict == "few"]
    unsure = [name for name, verdict in verdicts if verdict == "unsure"]
    lines = []
    if few:
        lines.append(f"too few images to judge (fewer than {FEW} show it): {', '.join(few)}")
    if unsure:
        lines.append(f"too few images to be sure (fewer than {ENOUGH} show it): {', '.join(unsure)}")
    if outcome.passed and outcome.verdicts.old and all(c.verdict == "few" for c in outcome.verdicts.old):
        lines.append("no old class could be judged: the gate has let the model through unseen")
    if outcome.passed:
        lines.append(f"{outcome.model}: the new model, {count(len(outcome.plan.names) - 1, 'class')}")
    else:
        lines.append(f"rejected: {'; '.join(outcome.verdicts.reasons)}")
        lines.append(f"{outcome.plan.folder} is unchanged; the new model is in {outcome.model}")
    for line in lines:
        console.say(say(line))


def _table(verdicts: Verdicts) -> Table:
    table = Table(title="IoU in points before and after, with a 90 % interval")
    for name in ("class", "images", "before", "after", "drop", "interval", "verdict", "taken for"):
        table.add_column(name, justify="left" if name in TEXT else "right", no_wrap=name not in TEXT)
    rows: list[list[str]] = []
    for old in verdicts.old:
        values = [_points(value) for value in (old.before, old.after, old.drop)]
        rows.append([old.name, str(old.images), *values, _between(old.interval), old.verdict])
        rows[-1].append(_share(old.confused))
    for new in verdicts.new:
        values = ["", _points(new.iou), ""]
        rows.append([f"{new.name} (new)", str(new.images), *values, _between(new.interval), new.verdict])
        rows[-1].append(_share(new.confused))
    for row in rows:
        table.add_row(*row)
    return table


def _points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:z.1f}"


def _between(interval: tuple[float, float]) -> str:
    return "n/a" if math.isnan(interval[0]) else f"{interval[0]:z.1f}..{interval[1]:z.1f}"


def _share(confused: tuple[str, float] | None) -> str:
    return "" if confused is None or confused[1] < 0.001 else f"{confused[0]} {100 * confused[1]:.1f} %"
