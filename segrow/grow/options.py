"""How a step on somebody's own images is asked for."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..devices import choose_device
from ..errors import UserError

UPDATES = 300
"""Least number of updates: 20 to 200 images in a batch of 8 are few updates an epoch."""
BATCH = 8
CROP = 16
"""Least side of the training crops in pixels: one cell of the coarsest output stride."""
LARGEST_CROP = 4096
AUTO, NONE = "auto", "none"
REMBG = "u2netp"
"""A small model for salient objects (4 MB), which rembg fetches once."""


@dataclass(frozen=True)
class AddOptions:
    """How a step is added.

    Attributes:
        out: The new model's directory; None: it takes the place of the model (of a run: `RUN/grown`).
        check: Annotated images of old classes, for the gate.
        exemplars: Folder of the data set that the model's memory is of; None: the memory is not used.
        saliency: What makes saliency maps where there are none: an ONNX file, the name of a rembg model, auto
            (rembg's REMBG where rembg is installed, else nothing) or none.
        ignore: Names of categories in `data` that count nowhere; ("none",): none; None: those that are called
            so, such as "ignore" and "void".
        max_drop: Points of IoU that an old class may lose.
        min_new: Points of IoU that a new class must reach on held-out images; None: any will do.
        epochs: None: enough for UPDATES updates.
        batch_size: None: BATCH, or all images when they are fewer.
        views: Random views of an image that are kept.
        lr: Of the new heads; None: as the method was published.
        crop: Side of the training crops in pixels; None: as the model was trained.
        seed: Of everything random.
        workers: Loader processes; None: 2, on a GPU as many as there are cores, at most 8.
        device: auto, cpu or cuda.
        allow_code: Import a method from outside segrow.
        strict: Images that are learnt from twice, or learnt from and measured on, are a mistake, not a note;
            and a class that is unsure or few stops the new model, as one that fails.
    """

    out: Path | None = None
    check: Path | None = None
    exemplars: Path | None = None
    saliency: str = AUTO
    ignore: tuple[str, ...] | None = None
    max_drop: float = 1.0
    min_new: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    views: int = 4
    lr: float | None = None
    crop: int | None = None
    seed: int = 1
    workers: int | None = None
    device: str = "auto"
    allow_code: bool = False
    strict: bool = False


def check_options(options: AddOptions) -> None:
    """What can be said of them without model and images.

    Raises:
        UserError: For the first number out of its range, or a GPU that is not there.
    """
    for name, value in (("max-drop", options.max_drop), ("min-new", options.min_new)):
        if value is not None and not (_is_number(value) and 0 <= value <= 100):
            raise UserError(f"--{name} should be points of IoU from 0 to 100, got {value}")
    for name, number, least in (
        ("epochs", options.epochs, 1),
        ("views", options.views, 1),
        ("batch-size", options.batch_size, 2),
        ("crop", options.crop, CROP),
        ("workers", options.workers, 0),
        ("seed", options.seed, 0),
    ):
        if number is not None and not isinstance(number, int):
            raise UserError(f"--{name} should be a whole number, got {number}")
        if number is not None and number < least:
            reason = ", which batch normalisation needs" if name == "batch-size" else ""
            raise UserError(f"--{name} should be at least {least}{reason}, got {number}")
    if options.crop is not None and options.crop > LARGEST_CROP:
        raise UserError(f"--crop should be at most {LARGEST_CROP}, got {options.crop}")
    if options.lr is not None and not (_is_number(options.lr) and 0 < options.lr < math.inf):
        raise UserError(f"--lr should be a number above 0, got {options.lr}")
    if not isinstance(options.saliency, str):
        raise UserError(
            f"--saliency should be a file, the name of a model, auto or none, got {options.saliency}"
        )
    choose_device(options.device, "--device")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
