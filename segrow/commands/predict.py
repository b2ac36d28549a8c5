"""`segrow predict`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ..errors import UserError
from ..predict import Predictor, predict_files
from ..stored import find_model, load_with_method
from .parser import OneLineParser

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def main(argv: Sequence[str]) -> int:
    """Write label maps and overlays."""
    parser = OneLineParser(
        prog="segrow predict",
        description="Label maps (PNG whose pixel value is the class index, with a palette) and overlays.",
        epilog="Example: segrow predict runs/ssul photos/ --out predictions",
    )
    parser.add_argument(
        "model", metavar="MODEL|RUN", help="a model directory, or a run folder (its last step)"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--no-overlay", dest="overlay", action="store_false", help="label maps only")
    parser.add_argument(
        "--precision",
        choices=("32", "bf16"),
        default="32",
        help="bf16: faster where the processor has it; where classes are close a pixel can get another one",
    )
    parser.add_argument("--allow_code", action="store_true", help="import a method from outside segrow")
    args = parser.parse_args(list(argv))
    model, meta, method = load_with_method(find_model(Path(args.model)), args.allow_code)
    crop = meta["protocol"]["crop"] if meta["protocol"]["crop_val"] else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names, precision = meta["class_names"], args.precision
    predictor = Predictor(model, method.scores, names, crop=crop, device=device, precision=precision)
    done = predict_files(predictor, _files(args.images), Path(args.out), args.overlay, progress=True)
    console = Console()
    for item in done:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in item.shares.items())
        console.print(f"{item.labels}: {shares}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _files(names: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, names):
        inside = (
            sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        files += inside
    return files
