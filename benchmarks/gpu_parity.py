"""Losses and gradients of every method on a device against those on the CPU in float32.

The tolerances were chosen on a CPU. Of float32 against float64 the worst loss was off by 8e-7 and the worst
gradient by 2e-5 of its norm, so 1e-5 and 1e-3 (without TF32) leave room for another order of sums. Those of
mixed precision are three times what autocast makes of the same cases there, where the worst loss was off by
0.7 % in fp16 and 3 % in bf16, the worst gradient by 8 and 27 %.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.data.loader import to_device
from segrow.engine.step import Objective, chunks
from segrow.methods.base import Method, StepContext, make_method, method_names
from segrow.model.segmenter import Head, Segmenter, build_segmenter
from segrow.precision import true_float32

from .ours import CPU, Precision, settle_norms
from .pieces import Piece, Setting, at_most
from .report import Row

Kind = Literal["base", "increment", "memory", "kept"]
Options = dict[str, object]
VARIANTS: dict[str, list[Options]] = {
    "finetune": [{"loss_type": "bce"}],
    "plop": [{"median": "reference"}, {"freeze": "trunk", "pod": 0.0}],
    "mib": [{"freeze": "trunk"}, {"pseudo": "threshold"}],
    "ssul": [
        {"loss_type": "ce"},
        {"loss_type": "focal"},
        {"unknown": "none", "init": "random"},
        {"unknown": "background"},
        {"freeze": "none", "bn_freeze": False},
        {"gives_way": (3,)},
    ],
}
"""By method: what leads through other lines of its loss, or another trunk."""

TOLERANCES: Mapping[Precision, tuple[float, float]] = {
    "32": (1e-5, 1e-3),
    "16": (0.02, 0.25),
    "bf16": (0.1, 0.8),
}
"""Relative differences of the loss and of the gradient (of its norm)."""

DTYPES: Mapping[Precision, torch.dtype] = {
    "32": torch.float32,
    "16": torch.float16,
    "bf16": torch.bfloat16,
}
SCALE = 1024.0  # of the loss, so that gradients in fp16 do not vanish; a power of two changes no digit
BASE, SIDE, IMAGES = 2, 97, 4


class Case(NamedTuple):
    """A method with options in a kind of step.

    Kinds: base; increment; memory: one whose batch has exemplars, in step 2; kept: from kept features.
    """

    method: str
    options: Options
    kind: Kind


def all_cases(*names: str) -> list[Case]:
    """Every method (of these), variant and kind of step that it has."""
    found = []
    for name in names or method_names():
        for options in ({}, *VARIANTS.get(name, [])):
            method = make_method(name, options)
            keeps = method.freezes_trunk and method.needs_features_only
            found += [Case(name, options, kind) for kind in get_args(Kind) if keeps or kind != "kept"]
    return found


def pieces(setting: Setting) -> list[Piece]:
    """A piece a method."""
    return [Piece(f"parity of {name}", 15, partial(rows, setting, name)) for name in method_names()]


def rows(setting: Setting, name: str) -> list[Row]:
    """The worst of a method's cases, in each precision."""
    every: dict[tuple[Precision, str], list[float]] = defaultdict(list)
    for case in all_cases(name)[1:2] if setting.small else all_cases(name):
        expected = update(case, CPU, "32")
        for precision in ("32", "bf16", "16"):
            if precision == "16" and not setting.on_gpu:
                continue
            found = update(case, setting.device, precision)
            for what, value in differences(found, expected).items():
                every[precision, what].append(value)
    made = []
    for (precision, what), values in every.items():
        bound = TOLERANCES[precision][what == "gradient"]
        key = f"parity.{name}-{what}.{precision}"
        made.append(at_most(key, f"{name}: {what}, difference to the CPU", precision, worst(values), bound))
    return made


def worst(values: Sequence[float]) -> float:
    """The largest, or nan if one is."""
    return max(values, key=lambda value: (math.isnan(value), value))


def differences(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> dict[str, float]:
    """Relative ones, of the loss and of the gradient's norm."""
    (loss, gradient), (loss_before, before) = found, expected
    return {
        "loss": abs(loss - loss_before) / abs(loss_before),
        "gradient": float((gradient - before).norm() / before.norm()),
    }


def network(method: Method, name: str) -> Segmenter:
    """On the CPU; its logits are spread, so that there are pseudo-labels."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3_test_resnet",
        weights="none",
        width=16,
        dropout=0.0,  # draws of a CPU and of a GPU differ
        head="conv" if name == "ssul" else "linear",
    )
    model = build_segmenter(config, BASE, method.unknown_head, lambda line: None)
    settle_norms(model)
    spread(model)
    return model


@torch.no_grad()
def spread(module: nn.Module) -> None:
    """Scores of heads that decide."""
    for head in module.modules():
        if isinstance(head, Head) and head.out.bias is not None:
            for values, width in ((head.out.weight, 0.7), (head.out.bias, 1.0)):
                values.copy_(width * torch.randn(values.shape))


def batch_of(known: int, before: int, aux: tuple[str, ...], exemplars: bool, seed: int = 1) -> Batch:
    """On the CPU: labels in blocks, of the step's classes; of exemplars, its second half, all known ones."""
    generator = torch.Generator().manual_seed(seed)
    cells = -(-SIDE // 8)
    shape = (IMAGES, cells, cells)
    own = torch.randint(before, known, shape, generator=generator)
    old = torch.randint(1, known, shape, generator=generator)
    from_memory = (torch.arange(IMAGES) >= IMAGES // 2) & exemplars
    classes = torch.where(from_memory[:, None, None], old, own)
    part = torch.rand(shape, generator=generator)  # 60 % background, 5 % ignored
    cell = torch.where(part < 0.6, 0, classes).masked_fill(part > 0.95, -1)
    labels = cell.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :SIDE, :SIDE]
    size = (IMAGES, SIDE, SIDE)
    maps = {
        "saliency": torch.rand(size, generator=generator) > 0.5,
        "everything": torch.ones(size, dtype=torch.bool),
    }
    return Batch(
        images=torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2),
        labels=labels.short(),
        from_memory=from_memory,
        aux={name: maps[name] for name in aux},
    )


def begin(case: Case, method: Method, device: torch.device) -> StepContext:
    """The step begins as in a run; the teacher and new heads are the same on every device."""
    model, teacher, step = network(method, case.method), None, {"base": 0, "memory": 2}.get(case.kind, 1)
    for earlier in range(1, step):
        model.grow(1, earlier)
        spread(model.heads[-1])
    if step:
        teacher = copy.deepcopy(model).eval().requires_grad_(False).to(device)
        model.grow(1, step)
        spread(model.heads[-1])
    before = 1 if teacher is None else teacher.n_classes
    model.to(device).to(memory_format=torch.channels_last)
    scanned = batch_of(model.n_classes, before, method.aux, exemplars=False, seed=2)
    ctx = StepContext(
        step, model, teacher, model.n_classes, before, lambda: iter([to_device(scanned, device, True)])
    )
    method.begin_step(ctx)
    ctx.share_frozen_trunk()
    ctx.fold_frozen_trunk()
    method.gather(ctx)
    return ctx


def update(case: Case, device: torch.device, precision: Precision) -> tuple[float, torch.Tensor]:
    """Loss and gradient (on the CPU, of all parameters that train) of one update."""
    with true_float32():
        method = make_method(case.method, case.options)
        ctx = begin(case, method, device)
        batch = batch_of(ctx.known, ctx.known_before, method.aux, case.kind == "memory")
        if case.kind == "kept":
            batch = kept(case, batch)
        objective = Objective(method, ctx).train()
        (tensors,) = chunks(to_device(batch, device, True), 1)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "32"):
            total = torch.stack(list(objective(tensors).values())).sum()
        torch.autograd.backward(total * SCALE)
        gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
        return float(total.detach()), (torch.cat(gradients).cpu().double() / SCALE)


@torch.no_grad()
def kept(case: Case, batch: Batch) -> Batch:
    """With features in the place of pixels; the CPU's, for rounding to bfloat16 makes differences large."""
    method = make_method(case.method, case.options)
    ctx = begin(case, method, CPU)
    parts = tuple(part.bfloat16() for part in ctx.encode(batch.images))
    seen = ctx.teach(replace(batch, parts=parts))
    verdict = method.verdict(ctx, seen, (SIDE, SIDE))
    return replace(batch, images=batch.images[:, :, :0, :0], parts=parts, verdict=verdict)
