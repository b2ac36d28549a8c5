"""The SSUL reference code's options as options of `segrow train`: everything that code fixes is said out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..config import RunConfig, TrainConfig
from ..recipes import flatten, references
from .seed_options import Seed

if TYPE_CHECKING:  # it loads torch, which --help need not wait for
    from ..methods.base import Method

DATASETS = {"voc": "voc", "ade": "ade20k"}
LOSSES = {"bce_loss": "bce", "ce_loss": "ce", "focal_loss": "focal"}
STEP0 = (0.01, 0.001)
"""Rates of (decoder and heads, backbone) that the reference code has wherever it does not freeze."""

REFERENCE_THRESHOLD = 0.7  # of the pseudo-labels that choose exemplars there, whatever --pseudo_thresh says


TYPED = {
    "--data.root": "--data_root",
    "--data.name": "--dataset",
    "--model.name": "--model",
    "--model.output_stride": "--output_stride",
    "--memory.size": "--mem_size",
    "--method.threshold": "--pseudo_thresh",
    "--seed": "--random_seed",
    "--train.epochs": "--train_epoch",
    "--train.batch_size": "--batch_size",
    "--train.val_batch_size": "--val_batch_size",
    "--train.crop": "--crop_size",
    "--train.lr": "--lr",
    "--train.weight_decay": "--weight_decay",
    "--train.step_size": "--step_size",
    "--train.log_every": "--print_interval",
    "--train.devices": "--gpu_id",
}
"""Options of segrow that stand for one of the reference code: so an error can name what was typed."""


@dataclass(frozen=True)
class Place:
    """Where a run computes.

    Attributes:
        device: cuda or cpu.
        count: Number of processes, one a device.
        visible: Value for CUDA_VISIBLE_DEVICES.
        why: Why on the CPU.
    """

    device: Literal["cuda", "cpu"]
    count: int
    visible: str
    why: str = "no GPU here"

    def describe(self) -> str:
        """One line for a person."""
        processes = f", {self.count} processes" if self.count > 1 else ""
        if self.device == "cuda":
            return f"on GPU {self.visible}{processes}"
        return f"{self.why}: on the CPU{processes}"


@dataclass(frozen=True)
class Base:
    """The base step that `--ckpt` stands for.

    Attributes:
        folder: A model directory or run, for `--base`.
        source: The reference code's file that is imported into `folder` first, if it is one.
    """

    folder: Path
    source: Path | None


def default_folder(seed: Seed) -> Path:
    """checkpoints/MODEL_DATASET_TASK_SETTING, beside the reference code's own files."""
    return Path("checkpoints") / f"{seed.model}_{seed.dataset}_{seed.task}_{seed.setting}"


def folder(seed: Seed) -> Path:
    """The run's folder."""
    return Path(seed.out) if seed.out else default_folder(seed)


def translate(seed: Seed, place: Place, base: Base | None = None) -> list[str]:
    """Words behind `segrow train`; an option of segrow that stood beside takes the place of ours.

    Args:
        seed: The reference code's options.
        place: Where it will run.
        base: The base step that is taken over.
    """
    values = _data_and_network(seed) | _method(seed) | _schedule(seed, place) | _views(seed)
    # its MobileNetV2 pads in its own way, on which the weights in its files depend
    imported = base is not None and base.source is not None
    mobilenet = seed.model.endswith("mobilenet") and seed.segrow("--model.name") is None
    values["--model.reference_padding"] = _word(mobilenet and (seed.reference or imported))
    values |= {"--seed": str(seed.random_seed), "--out": str(folder(seed))}
    if base is not None:
        values["--base"] = str(base.folder)
    beside = {word.partition("=")[0] for word in seed.rest}
    switched = _switched(seed)
    words = [
        word for name, value in values.items() if name not in beside | switched for word in (name, value)
    ]
    return [*words, *(["--reference"] if seed.reference else []), *seed.rest]


def _switched(seed: Seed) -> set[str]:
    """Options that segrow's own `--reference` sets here, which saying them would overrule."""
    if not seed.reference:
        return set()
    chosen = references("ssul", DATASETS[seed.dataset], seed.task, seed.mem_size > 0)
    options = {f"--{key}" for reference in chosen for key, _ in flatten(reference.set)}
    # without an unknown channel there is no shift that could be left out
    return options if seed.unknown else options - {"--memory.unshifted"}


def _data_and_network(seed: Seed) -> dict[str, str]:
    return {
        "--data.name": DATASETS[seed.dataset],
        "--data.root": seed.data_root,
        "--task": seed.task,
        "--setting": seed.setting,
        "--model.name": seed.model,
        "--model.weights": "timm",
        "--model.output_stride": str(seed.output_stride),
        "--model.width": "256",
        "--model.head": "conv",
        "--model.separable": _word(seed.separable_conv and seed.plus),
        "--model.dropout": "0.1",
        "--model.norm_momentum": "0.01",
        "--memory.size": "0" if seed.task == "offline" else str(seed.mem_size),
        "--memory.labels": "known",
        "--memory.unshifted": "false",
    }


def _method(seed: Seed) -> dict[str, str]:
    unknown = {"voc": "saliency", "ade": "background"}[seed.dataset] if seed.unknown else "none"
    return {
        "--method": "ssul",
        "--method.unknown": unknown,
        "--method.init": "unknown" if seed.w_transfer and seed.unknown else "random",
        "--method.freeze": "old_heads" if seed.freeze else "none",
        "--method.bn_freeze": _word(seed.bn_freeze),
        "--method.pseudo": "threshold" if seed.pseudo else "none",
        "--method.threshold": repr(seed.pseudo_thresh),
        "--method.loss_type": LOSSES[seed.loss_type],
        # without an unknown head the reference has background in the frozen head of the base classes
        "--method.background_lr": "0.0001" if seed.unknown else "0",
    }


def _schedule(seed: Seed, place: Place) -> dict[str, str]:
    heads, backbone = STEP0
    amp = "16" if place.device == "cuda" else "auto"
    return {
        "--train.epochs": str(seed.train_epoch),
        "--train.batch_size": str(seed.batch_size),
        "--train.lr": repr(seed.lr if seed.freeze else heads),
        "--train.backbone_lr": repr(backbone),
        "--train.step0_lr": repr(heads),
        "--train.step0_backbone_lr": repr(backbone),
        "--train.policy": seed.lr_policy,
        "--train.step_size": str(seed.step_size),
        "--train.lr_floor": "1.0e-06",
        "--train.momentum": "0.9",
        "--train.weight_decay": repr(seed.weight_decay),
        "--train.clip": "0",
        "--train.precision": amp if seed.amp else "32",
        "--train.device": place.device,
        "--train.devices": str(place.count),
        "--train.workers": str(max(1, 4 // place.count)),  # four in all, as there
        "--train.log_every": str(seed.print_interval),
    }


def _views(seed: Seed) -> dict[str, str]:
    return {
        "--train.crop": str(seed.crop_size),
        "--train.crop_mode": "scale",
        "--train.scale": "0.5,2.0",
        "--train.flip": "0.5",
        "--train.padding": "ignore",
        "--train.void": "ignore",
        "--train.feature_views": "0",
        "--train.select": "last",
        "--train.crop_val": _word(seed.crop_val),
        "--train.val_batch_size": str(seed.val_batch_size),
    }


def _word(value: bool) -> str:
    return "true" if value else "false"


def remarks(seed: Seed) -> list[str]:
    """One line for each option that has no effect, or another one than in the reference code."""
    given, lines = seed.given, []
    offline = seed.task == "offline"
    never = {
        "num_classes": "follows from the task",
        "curr_itrs": "the reference code never read it; a stopped run goes on by itself",
        "val_interval": "the reference code put max(100, updates / 100) in its place; "
        "segrow evaluates at the end of every step",
        "curr_step": "the reference code trained all steps whatever it said; a stopped run goes on by itself",
    }
    lines += [f"--{name} has no effect: {why}" for name, why in never.items() if name in given]
    useless = {
        "separable_conv": (not seed.plus, "the reference code has it for deeplabv3plus models only"),
        "val_batch_size": (not seed.crop_val, "without --crop_val whole images are evaluated one by one"),
        "step_size": (seed.lr_policy != "step", f"--lr_policy is {seed.lr_policy}, not step"),
        "pseudo_thresh": (not seed.pseudo, "there are no pseudo-labels without --pseudo"),
        "w_transfer": (not seed.unknown, "there is no unknown head to start from without --unknown"),
        "lr": (not seed.freeze, "without --freeze the reference code trains all at 0.001 and 0.01"),
    }
    single = "task offline has one step, and this acts from the second on"
    useless |= {
        name: (True, single)
        for name in ("mem_size", "freeze", "bn_freeze", "w_transfer", "pseudo", "pseudo_thresh", "lr")
        if offline
    }
    lines += [
        f"--{name} has no effect: {why}" for name, (idle, why) in useless.items() if idle and name in given
    ]
    return lines + _differences(seed)


def _differences(seed: Seed) -> list[str]:
    """Where the same option does something else here."""
    lines = []
    later = seed.task != "offline"
    if seed.ckpt is not None:
        lines.append(
            "--ckpt is taken for the trained base step; the reference code stopped with an error, "
            "or loaded its own file of the previous step"
        )
    if "print_interval" in seed.given:
        lines.append(
            "--print_interval is heeded here; the reference code printed every 10 updates in any case"
        )
    if seed.loss_type == "focal_loss":
        lines.append(
            "--loss_type focal_loss has gamma 2 here; the reference code left gamma at 0, which is "
            "cross-entropy (ce_loss)"
        )
    if seed.model.endswith("mobilenet") and seed.ckpt is None and seed.segrow("--model.weights") is None:
        lines.append(
            "the backbone starts from timm's MobileNetV2 weights, which are not torchvision's; "
            "those load with --model.weights file:PATH"
        )
    if not seed.unknown:
        lines.append(
            f"background has a head of its own here{' (frozen)' if seed.freeze else ''}; without --unknown "
            "the reference code has one head for it and the base classes"
        )
    if later and seed.mem_size > 0 and (not seed.pseudo or seed.pseudo_thresh != REFERENCE_THRESHOLD):
        rule = f"at {seed.pseudo_thresh:g}" if seed.pseudo else "not at all"
        lines.append(
            f"exemplars are chosen with pseudo-labels {rule}, as in training; the reference code has "
            f"{REFERENCE_THRESHOLD} there whatever is said"
        )
    if seed.reference and not seed.unknown and later and seed.mem_size > 0:
        lines.append("--reference: without --unknown there is no shift of exemplar labels to leave out")
    return lines


def rates(config: RunConfig, method: "Method") -> list[str]:
    """What each learning rate of a run is, in lines for a person."""
    train, fields = config.train, method.fields()
    lines = [
        f"learning rate, step 0: backbone {train.step0_backbone_lr:g}, decoder and heads {train.step0_lr:g}"
        " (fixed, as in the reference code; --lr does not act here)"
    ]
    if config.task != "offline":
        backbone = train.lr / 10 if train.backbone_lr is None else train.backbone_lr
        if fields["freeze"] == "old_heads":
            slow = train.lr * fields["background_lr"]
            unknown = "" if fields["unknown"] == "none" else " and unknown head"
            background = f", background head {slow:g}" if slow else ""
            lines.append(
                f"learning rate, later steps: new head{unknown} {train.lr:g}{background}; the rest is frozen"
            )
        else:
            lines.append(
                f"learning rate, later steps: backbone {backbone:g}, decoder and heads {train.lr:g}"
                " (without --freeze, whatever --lr says)"
            )
    return [*lines, f"learning rate, in a step: {_policy(train)}"]


def _policy(train: TrainConfig) -> str:
    if train.policy == "step":
        return f"a tenth every {train.step_size} updates"
    if train.policy == "warm_poly":
        return "warm_poly, a linear rise over the first tenth, then falling to 0 with power 0.9"
    return f"poly, falling with power 0.9 to no less than {train.lr_floor:g}"
