"""Updates on synthetic batches that are on the device already: what is left when nothing is loaded.

    rows = run(Case("resnet101", 32, 513), torch.device("cuda"), seed=1)

Ours and the reference loop train the same random network on the same batch: the base step, and an increment
of one class, whose trunk runs (exact) or whose features are kept. On a GPU the reference is in fp16, as its
code is.
"""

import copy
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.engine.cost import peak_memory, reset_peak_memory
from segrow.model.segmenter import Segmenter
from segrow.scenario import UNKNOWN

from .machine import has_bf16
from .ours import LABELS, Precision, Updates, random_network
from .reference import ReferenceStep
from .report import Row, less

Kind = Literal["base", "exact", "kept"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = 4  # before the increment, background not counted
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A network, its batches, and how often each variant is updated.

    Attributes:
        name: Of the backbone, short.
        batch: Images.
        crop: Side in pixels.
        updates: That are counted.
        warm: Updates before them.
        faster: Least gain in time, by kind, on a GPU; with one, ours may not need more memory either.
        width: Of the decoder.
    """

    name: str
    batch: int
    crop: int
    updates: int = 50
    warm: int = 5
    faster: Mapping[Kind, float] = field(default_factory=dict)
    width: int = 256


@dataclass(frozen=True)
class Cost:
    """Seconds an update, and the peak of the device's memory in bytes, networks included."""

    seconds: float
    peak: int


def run(case: Case, device: torch.device, seed: int, kinds: tuple[Kind, ...] = KINDS) -> list[Row]:
    """Time and, on a GPU, memory of ours beside the reference; a variant is gone before the next begins."""
    rows: list[Row] = []
    theirs: dict[str, Cost] = {}
    for kind in kinds:
        name = "base" if kind == "base" else "increment"
        if name not in theirs:
            theirs[name] = measure(partial(reference, case, kind, device, seed), case, device)
        for precision in precisions(device):
            ours = measure(partial(segrow, case, kind, precision, device, seed), case, device)
            rows += _rows(case, kind, precision, theirs[name], ours, device)
    return rows


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those worth a row: of a GPU the mixed ones, of a CPU float32 and what it computes in itself."""
    if device.type == "cuda":
        return ("16", "bf16")
    return ("32", "bf16") if has_bf16() else ("32",)


def _rows(
    case: Case, kind: Kind, precision: Precision, theirs: Cost, ours: Cost, device: torch.device
) -> list[Row]:
    name = LABELS[precision]
    what = {"base": "base step", "exact": "increment, exact", "kept": "increment, kept features"}[kind]
    what = f"{what}, {case.name}, batch {case.batch}, {case.crop} px, no loading"
    key = f"updates.{{}}.{case.name}-{kind}.{name}"
    on_gpu = device.type == "cuda"
    note = f"no loading: {case.updates} updates of one batch that is on the device, after {case.warm} others"
    target = case.faster.get(kind) if on_gpu else None
    rows = [less(key.format("time"), what, name, theirs.seconds, ours.seconds, "s", target, note)]
    if on_gpu:  # the peak of a process' resident set is not that of its networks alone
        peaks = (theirs.peak / MIB, ours.peak / MIB)
        least = None if target is None else 1.0
        rows.append(less(key.format("memory"), f"{what}: peak", name, *peaks, "MiB", least))
    return rows


def measure(make: Callable[[], Callable[[], Tensor]], case: Case, device: torch.device) -> Cost:
    """Build a variant and update it; nothing waits for the device but the two ends of the measurement."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak_memory(device)
    update = make()
    for _ in range(case.warm):
        update()
    wait(device)
    start = time.perf_counter()
    for _ in range(case.updates):
        update()
    wait(device)
    return Cost((time.perf_counter() - start) / case.updates, peak_memory(device))


def wait(device: torch.device) -> None:
    """Until the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def networks(case: Case, kind: Kind, seed: int) -> tuple[Segmenter, Segmenter | None, int]:
    """Student, teacher and step; on the CPU."""
    config = ModelConfig(name=f"deeplabv3_{case.name}", weights="none", width=case.width)
    model = random_network(config, CLASSES, [], seed)
    if kind == "base":
        return model, None, 0
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    model.grow(1, 1)
    return model, teacher, 1


def batch_of(case: Case, known: int, seed: int) -> Batch:
    """Random pixels; labels of the newest class and background in blocks of 16 pixels, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    cells = -(-case.crop // 16)
    coarse = torch.randint(-1, 2, (case.batch, cells, cells), generator=generator)
    labels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, : case.crop, : case.crop]
    shape = (case.batch, case.crop, case.crop)
    return Batch(
        # colours last in memory, as the loader makes them
        images=torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2),
        labels=(labels * torch.where(labels > 0, known - 1, 1)).short(),
        from_memory=torch.zeros(case.batch, dtype=torch.bool),
        aux={"saliency": torch.rand(shape, generator=generator) > 0.5},
    )


def segrow(
    case: Case, kind: Kind, precision: Precision, device: torch.device, seed: int
) -> Callable[[], Tensor]:
    """An update of ours."""
    model, teacher, step = networks(case, kind, seed)
    ours = Updates(model, teacher, step, precision, device)
    batch = batch_of(case, model.n_classes, seed).each(lambda part: part.to(device))
    if kind == "kept":
        batch = ours.keep(batch)
    return lambda: ours.update(batch.each(lambda part: part))  # a trunk's output is of one update


def reference(case: Case, kind: Kind, device: torch.device, seed: int) -> Callable[[], Tensor]:
    """An update of the reference loop; it normalises in its loader, so before."""
    model, teacher, _ = networks(case, kind, seed)
    batch = batch_of(case, model.n_classes, seed)
    images = model.normalise(batch.images).contiguous().to(device)
    labels = batch.labels.long().masked_fill((batch.labels == 0) & batch.aux["saliency"], UNKNOWN).to(device)
    step = ReferenceStep(
        model.to(device),
        None if teacher is None else teacher.to(device),
        total=10_000,
        amp=device.type == "cuda",
    )
    step.train_mode()
    return lambda: step.update(images, labels)
