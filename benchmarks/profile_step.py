"""Where an update of the base step spends its time on a CPU, without loading: random images and labels.

    python -m benchmarks.profile_step                                   CPU seconds of each variant
    python -m benchmarks.profile_step --model deeplabv3_resnet101 --batch 2 --crop 257
    python -m benchmarks.profile_step --operators bf16                  torch's profiler over one update

Variants: the reference loop; ours in float32 and bfloat16; the same without `model/kernels.py` (plain). CPU
time, the fastest of some rounds in turn: other work on the machine disturbs it less than the wall clock.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from segrow.config import ModelConfig
from segrow.engine.step import Objective
from segrow.methods.base import StepContext
from segrow.methods.ssul import Ssul
from segrow.model.kernels import accelerate
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.scenario import UNKNOWN

from .machine import has_bf16
from .reference import ReferenceStep
from .timing import alternate

CLASSES = 4


def network(name: str) -> Segmenter:
    """With random weights."""
    torch.manual_seed(0)
    return build_segmenter(ModelConfig(name=name, weights="none"), CLASSES, True, lambda line: None)


class Update:
    """One update of ours, as engine/step.py makes it, on the same batch again and again."""

    def __init__(self, model: Segmenter, batch: dict[str, torch.Tensor], bf16: bool, plain: bool) -> None:
        model.to(memory_format=torch.channels_last)
        if not plain:
            accelerate(model)
        method = Ssul()
        ctx = StepContext(0, model, None, model.n_classes, 1)
        method.begin_step(ctx)
        self.objective = Objective(method, ctx).train()
        self.optimizer = torch.optim.SGD(
            method.parameter_groups(ctx, 0.01, 0.001),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            fused=not plain,
        )
        self.batch, self.bf16 = batch, bf16

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            losses = self.objective(self.batch)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        self.optimizer.step()
        self.optimizer.zero_grad()


def variants(name: str, batch: int, crop: int) -> dict[str, Callable[[], object]]:
    """The reference's update and ours, by name."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (batch, crop, crop, 3), dtype=torch.uint8, generator=generator)
    images = pixels.permute(0, 3, 1, 2)
    coarse = torch.randint(-1, CLASSES + 1, (batch, crop // 16 + 1, crop // 16 + 1), generator=generator)
    labels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :crop, :crop].contiguous()
    salient = torch.rand(batch, crop, crop, generator=generator) > 0.5
    ours = {
        "images": images,
        "labels": labels,
        "from_memory": torch.zeros(batch, dtype=torch.bool),
        "aux.saliency": salient,
    }
    model = network(name)
    step = ReferenceStep(model, None, total=10_000)
    step.train_mode()
    shifted = labels.masked_fill((labels == 0) & salient, UNKNOWN)
    out: dict[str, Callable[[], object]] = {
        "reference": partial(step.update, model.normalise(images).contiguous(), shifted)
    }
    for kind, plain in (("", False), (" plain", True)):
        for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
            out[precision + kind] = Update(network(name), ours, precision == "bf16", plain)
    return out


def seconds(update: Callable[[], object]) -> float:
    """CPU time of all threads."""
    start = time.process_time()
    update()
    return time.process_time() - start


def main() -> None:
    """Print the table, or torch's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description=__doc__)
    parser.add_argument("--model", default="deeplabv3_mobilenet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=193)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--operators", metavar="VARIANT", help='a variant\'s operators, as "bf16 plain"')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    updates = variants(arguments.model, arguments.batch, arguments.crop)
    if arguments.operators:
        if arguments.operators not in updates:
            parser.error(f"--operators {arguments.operators}: expected one of {', '.join(updates)}")
        update = updates[arguments.operators]
        update()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            update()
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        return
    for update in updates.values():
        update()
    spent = alternate(
        {name: partial(seconds, update) for name, update in updates.items()},
        arguments.rounds,
        lambda line: None,
        "",
    )
    for name, each in spent.items():
        print(f"{name:12s} {min(each):7.3f} s   {min(spent['reference']) / min(each):.2f}x")


if __name__ == "__main__":
    main()
