"""`segrow data`: check a data folder, or make the saliency maps that it lacks."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from ..atomic import locked
from ..data.base import SegDataset, Split
from ..data.given import open_given
from ..data.saliency import SaliencyMaker, write_map
from ..errors import UserError, near
from ..inside import is_below
from ..resources import machine_refuses, named
from ..terminal import Terminal
from .data_check import check
from .notes import say_notes
from .parser import OneLineParser

USAGE = """\
usage: segrow data check DIR [options]
       segrow data saliency DIR --model FILE [options]

  check     everything that is wrong with a tree of images and masks, and what it holds
  saliency  a saliency map for every image that has none, where ssul looks for it

segrow data check --help says more. Example:
  segrow data check photos --fix-list bad.txt
"""


def main(argv: Sequence[str]) -> int:
    """Check a data folder, or make what it lacks."""
    actions = {"check": check, "saliency": make_saliency}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if argv[0] not in actions:
        raise UserError(f"segrow data {argv[0]}: expected check or saliency.{near(argv[0], actions)}")
    return actions[argv[0]](argv[1:])


def make_saliency(argv: Sequence[str]) -> int:
    """Make saliency maps."""
    parser = OneLineParser(
        prog="segrow data saliency",
        description="Write a saliency map for every image that has none, where ssul looks for it.",
        epilog="Example: segrow data saliency photos --model u2netp.onnx",
    )
    parser.add_argument("folder", metavar="DIR", help="a data folder, as segrow add and segrow train take it")
    parser.add_argument("--model", required=True, help="an ONNX file, or the name of a rembg model")
    parser.add_argument("--again", action="store_true", help="also replace the maps that are there")
    args = parser.parse_args(list(argv))
    data = open_given(Path(args.folder), "folder")
    say_notes(data.notes)
    with locked(data.root, "segrow data saliency"):
        made, there = make_maps(data, SaliencyMaker(args.model), args.again)
    line = f"{data.root}: {made} saliency maps written, {there} were there"
    Terminal().say(line)
    return 0


def make_maps(data: SegDataset, maker: SaliencyMaker, again: bool = False) -> tuple[int, int]:
    """Maps of all images; returns how many were written and how many were there.

    Raises:
        UserError: An image that cannot be read, or a place that cannot be written.
    """
    splits: tuple[Split, ...] = ("train", "val")
    if wrong := [i for split in splits for i in data.ids(split) if not is_below(i)]:
        raise UserError(f'{data.root} lists an image "{wrong[0]}", expected one below it; correct the list')
    pairs = [
        (data.image_path(split, i), data.saliency_path(split, i)) for split in splits for i in data.ids(split)
    ]
    missing = [pair for pair in pairs if again or not pair[1].is_file()]
    console = Terminal(stderr=True)
    for image, path in track(missing, "saliency", console=console, disable=not console.is_terminal):
        try:
            with named(path):
                write_map(maker.map(image), path)
        except OSError as error:
            if machine_refuses(error):  # such as a full disk
                raise
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make the folder writable"
            ) from None
    return len(missing), len(pairs) - len(missing)
