"""`segrow predict`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from ..data.taken import readings, scaled_apart, taken_notes
from ..devices import choose_device
from ..precision import PrecisionWarning
from ..predict import load
from ..predict_files import Prediction, find_images, predict_files
from ..terminal import Terminal
from ..wording import count
from .notes import say_notes
from .parser import OneLineParser


def main(argv: Sequence[str]) -> int:
    """Write label maps and overlays; 1 when images had to be skipped."""
    parser = OneLineParser(
        prog="segrow predict",
        description="Label maps (PNG whose pixel value is the class index, with a palette) and overlays. "
        "Sub-folders are kept, hidden files left out; what cannot be read is skipped and listed at the end "
        "(exit code 1). Results that are there already are replaced.",
        epilog='Example: segrow predict runs/ssul photos/ "more/**/*.jpg" --out predictions',
    )
    parser.add_argument(
        "model", metavar="MODEL|RUN", help="a model directory, or a run folder (its last step)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders or patterns")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--no-overlay", dest="overlay", action="store_false", help="no overlays")
    parser.add_argument(
        "--unknown",
        action="store_true",
        help="also maps of what the model was perhaps never taught (grey, 255 = surely)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="for large images: they keep their size and are labelled in overlapping tiles of this side",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "32", "bf16"),
        default="auto",
        help="bf16: faster where the processor computes in it, but where classes are close a pixel can get "
        "another one; auto (default): bf16 there, else 32",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    args = parser.parse_args(list(argv))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # the line below says it
        predictor = load(
            args.model,
            device=choose_device(args.device, "--device"),
            precision=args.precision,
            tile=args.tile,
            allow_code=args.allow_code,
        )
    if predictor.precision.line:
        Terminal(stderr=True).say(predictor.precision.line)
    jobs, notes = find_images(args.images, Path(args.out))
    say_notes(notes)
    console = Terminal()
    skipped: list[Prediction] = []
    done: list[Prediction] = []
    results = predict_files(predictor, jobs, Path(args.out), args.overlay, args.unknown)
    for item in track(results, "predict", len(jobs), console=Terminal(stderr=True)):
        if item.labels is None:
            skipped.append(item)
            continue
        done.append(item)
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in item.shares.items())
        console.say(f"{item.labels}: {shares}")
    taken, names = [item.taken for item in done], [str(item.image) for item in done]
    say_notes(taken_notes(taken, names, "read"))
    if apart := scaled_apart(readings(taken, names)):
        say_notes([apart])
    if skipped:
        console.say(
            f"{len(skipped)} of {count(len(jobs), 'image')} {'was' if len(skipped) == 1 else 'were'} skipped:"
        )
        for item in skipped:
            console.say(f"  {item.problem}")
    return 1 if skipped else 0
