"""`segrow import-ssul`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..atomic import locked
from ..config import ModelConfig
from ..data.ade20k import default_names
from ..data.voc import NAMES
from ..engine.cost import parameter_counts
from ..errors import UserError, near
from ..methods.base import make_method
from ..model.exchange import check_apart
from ..model.reference import read_reference_checkpoint
from ..model.segmenter import Segmenter
from ..model.store import save_model
from ..resources import machine_refuses
from ..scenario import divide_classes
from ..terminal import Terminal
from ..wording import count
from .parser import OneLineParser

MODELS = tuple(
    f"{family}_{backbone}"
    for backbone in ("resnet50", "resnet101", "mobilenet")
    for family in ("deeplabv3", "deeplabv3plus")
)
DATASETS = {"voc": "voc", "ade": "ade20k"}  # the reference's name -> ours
LOSSES = ("bce_loss", "ce_loss", "focal_loss")
CROP = 513


def main(argv: Sequence[str]) -> int:
    """Turn one checkpoint into a model directory."""
    parser = OneLineParser(
        prog="segrow import-ssul",
        description="Turn a checkpoint of the SSUL reference code into a model directory with equal outputs, "
        "for segrow eval, segrow predict and segrow train --base. Options have the reference's names.",
        epilog="Example: segrow import-ssul checkpoints/deeplabv3_resnet101_voc_15-1_step_5_overlap.pth "
        "--task 15-1 --step 5 --out models/ssul-15-1",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="the .pth file")
    parser.add_argument("--out", required=True, help="the model directory to write")
    parser.add_argument("--task", required=True, help="15-1, 100-50, ...")
    parser.add_argument("--step", type=int, required=True, help="the step it was saved after; 0 = base")
    parser.add_argument("--model", choices=MODELS, default="deeplabv3_resnet101")
    parser.add_argument("--dataset", choices=DATASETS, default="voc")
    parser.add_argument("--setting", choices=("overlap", "disjoint"), default="overlap")
    parser.add_argument("--output_stride", type=int, choices=(8, 16), default=16)
    parser.add_argument("--separable_conv", action="store_true", help="only deeplabv3plus has them")
    parser.add_argument("--loss_type", choices=LOSSES, default="bce_loss", help="decides how logits are read")
    parser.add_argument("--crop_size", type=int, default=CROP, help="centre crop of the evaluation")
    parser.add_argument(
        "--no_crop_val", action="store_true", help="evaluate whole images (the reference without --crop_val)"
    )
    args = parser.parse_args(list(argv))
    import_checkpoint(
        Path(args.checkpoint),
        Path(args.out),
        model=args.model,
        dataset=args.dataset,
        task=args.task,
        step=args.step,
        setting=args.setting,
        output_stride=args.output_stride,
        separable=args.separable_conv,
        crop=None if args.no_crop_val else args.crop_size,
        loss_type=args.loss_type,
        report=Terminal().say,
    )
    return 0


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    model: str,
    dataset: str,
    task: str,
    step: int,
    setting: str,
    output_stride: int,
    separable: bool,
    crop: int | None,
    loss_type: str,
    report: Callable[[str], None] = print,
) -> None:
    """Write a model directory with the outputs of a checkpoint of the reference code.

    Whether there is an unknown head is read off the checkpoint.

    Args:
        path: The checkpoint.
        out: The model directory; a model that is there is replaced.
        model: One of MODELS.
        dataset: voc or ade.
        task: As in the reference: 15-1, 15-1_b, 100-50, offline.
        step: The step after which it was saved.
        setting: overlap or disjoint.
        output_stride: 8 or 16.
        separable: `--separable_conv`, which the reference ignores without deeplabv3plus, as here.
        crop: Side of the centre crop it is evaluated on, or None for whole images.
        loss_type: One of LOSSES.
        report: Gets one or two lines.

    Raises:
        UserError: For options that do not exist or do not fit the checkpoint; nothing is written then.
    """
    _check(model, dataset, loss_type, crop)
    check_apart(out)
    data, names = DATASETS[dataset], NAMES if dataset == "voc" else ("background", *default_names())
    raw, sizes = divide_classes(data, names, task)
    if not 0 <= step < len(sizes):
        raise UserError(f"task {task} has steps 0 to {len(sizes) - 1}, got --step {step}")
    plus = model.startswith("deeplabv3plus")
    config = ModelConfig(model, "none", output_stride, separable=separable and plus)
    network = read_reference_checkpoint(path, config, sizes[: step + 1], report)
    classes = ["background", *(names[i] for i in raw)]
    meta = {
        "step": step,
        "class_names": classes[: network.n_classes],
        "scenario": {"data": data, "task": task, "setting": setting, "classes": classes},
        "method": _method(network, data, loss_type),
        "protocol": {"crop_val": crop is not None, "crop": crop or CROP},
        "training": _training(network),
        "parent": None,
        "imported": path.name,
    }
    try:
        with locked(out, "segrow import-ssul"):
            save_model(network, out, meta)
    except OSError as error:
        if machine_refuses(error):  # such as a full disk
            raise
        raise UserError(f"{out} cannot be written ({error.strerror}); use another --out") from None
    report(
        f"{out}: {model}, {count(network.n_classes, 'class')} after step {step} of {task}, "
        f"{'no unknown head' if network.unknown is None else 'with unknown head'}, from {path}"
    )
    if network.config.reference_padding:
        report("it pads as the reference code; to train on, give segrow train --model.reference_padding true")


def _check(model: str, dataset: str, loss_type: str, crop: int | None) -> None:
    for option, value, choices in (
        ("--model", model, MODELS),
        ("--dataset", dataset, tuple(DATASETS)),
        ("--loss_type", loss_type, LOSSES),
    ):
        if value not in choices:
            listed = ", ".join(choices)
            raise UserError(f"{option} {value} is not possible; choose {listed}.{near(value, choices)}")
    if crop is not None and crop < 1:
        raise UserError(f"--crop_size should be at least 1, got {crop}")


def _method(network: Segmenter, data: str, loss_type: str) -> dict[str, Any]:
    """What says how logits become scores, and what a next step would be trained with."""
    salient = "saliency" if data == "voc" else "background"
    unknown = "none" if network.unknown is None else salient
    method = make_method("ssul", {"unknown": unknown, "loss_type": loss_type.removesuffix("_loss")})
    return {"name": method.name, "fields": method.fields()}


def _training(network: Segmenter) -> dict[str, Any]:
    """What its training cost is not in a checkpoint."""
    unknown = dict.fromkeys(("train_s", "iterations", "peak_memory_bytes", "trainable"))
    return {**unknown, "parameters": parameter_counts(network)[1], "exemplars": 0}
