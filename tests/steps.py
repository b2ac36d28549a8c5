"""A small network taken through the steps of a run, as the engine does it, without an engine.

model = tiny(); ctx = next_step(method, model, n_new=2, step=1); method.loss(ctx, make_batch(ctx.known))
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.methods.base import Method, StepContext
from segrow.model.segmenter import Head, Segmenter, build_segmenter
from segrow.scenario import IGNORE

torch.set_num_threads(1)
N_BASE = 2
SIDE = 48  # three pixels of features: a 3x3 convolution meets borders and a middle


def quiet(line: str) -> None:
    """Drop the report."""


def tiny(unknown: bool = True, **options: object) -> Segmenter:
    """A small network in float64 whose norms and logits are not those of a fresh one."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3_resnet10t",
        weights="none",
        width=8,
        rates=(1, 2, 3),
        **options,  # type: ignore[arg-type]
    )
    model = build_segmenter(config, N_BASE, unknown, quiet).double()
    shake(model)
    return model


def shake(model: nn.Module, spread: float = 1.0) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, Head):
            nn.init.normal_(module.out.weight, 0, spread)
            assert module.out.bias is not None
            nn.init.normal_(module.out.bias, 0, spread)


@torch.no_grad()
def spread(model: Segmenter, image: Tensor) -> None:
    """As in a trained network: norms of many scales, and every class wins somewhere in an image 1 3 H W."""
    shake(model)
    model.eval()
    out = model(image)
    heads = [
        (head, out.logits[:, g.start : g.stop]) for head, g in zip(model.heads, model.layout, strict=True)
    ]
    for head, logits in [*heads, *([] if model.unknown is None else [(model.unknown, out.unknown)])]:
        scale = 3 / logits.std((0, 2, 3))
        head.out.weight *= scale.view(-1, 1, 1, 1)  # type: ignore[union-attr, operator]
        bias = (head.out.bias - logits.mean((0, 2, 3))) * scale  # type: ignore[union-attr, operator]
        head.out.bias.copy_(bias)  # type: ignore[union-attr, operator]


def make_batch(known: int, seed: int = 0, side: int = SIDE, n: int = 2) -> Batch:
    """Random images; labels in blocks: background more often than any class, and ignored pixels."""
    rng = np.random.default_rng(seed)
    values = [IGNORE, 0, 0, 0, *range(1, known)]
    labels = np.kron(rng.choice(values, (n, side // 4, side // 4)), np.ones((4, 4), np.int64))
    saliency = rng.random(labels.shape) < 0.5
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8)),
        labels=torch.from_numpy(labels),
        from_memory=torch.from_numpy(rng.random(n) < 0.5),
        aux={
            "saliency": torch.from_numpy(saliency),
            "everything": torch.ones(labels.shape, dtype=torch.bool),
        },
    )


def first_step(method: Method, model: Segmenter) -> StepContext:
    ctx = StepContext(0, model, None, known=N_BASE + 1, known_before=1)
    method.begin_step(ctx)
    return ctx


def next_step(
    method: Method, model: Segmenter, n_new: int, step: int, images: Sequence[Batch] | None = None
) -> StepContext:
    """As the engine does it: copy the teacher, grow, begin, gather.

    Args:
        images: What `ctx.scan` shows; default: one batch with labels of the new classes alone.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    before = model.n_classes
    model.grow(n_new, step)
    shake(model.heads[-1])
    if images is None:
        images = [hide_old(make_batch(model.n_classes, seed=step + 100), before)]
    ctx = StepContext(step, model, teacher, model.n_classes, before, lambda: iter(images))
    method.begin_step(ctx)
    method.gather(ctx)
    return ctx


def hide_old(batch: Batch, known_before: int) -> Batch:
    """As a step's own images are annotated: old classes are background."""
    batch.labels[(batch.labels > 0) & (batch.labels < known_before)] = 0
    return batch
