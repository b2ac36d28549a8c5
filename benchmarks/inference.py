"""Inference: milliseconds against the number of steps, fused and unfused; the arg max at full resolution.

ResNet-101 with random weights whose norms fit its activations, one image of 513 pixels, SSUL's heads: of
1 step those of background, 2 classes and unknown, of every further step one with a class. Fused is what
`segrow predict` runs.
"""

import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segrow.argmax import arg_max
from segrow.config import ModelConfig
from segrow.engine.cost import peak_memory, reset_peak_memory
from segrow.losses import upsample
from segrow.methods.ssul import Ssul
from segrow.model.fused import fuse
from segrow.model.segmenter import Segmenter, SegOutput

from .machine import has_bf16
from .ours import random_network
from .process import spawned
from .report import Options, Row, less
from .timing import alternate, timed

STEPS = (1, 5, 10, 19)
LAST = STEPS[-1]
SIDE = 513
MAP = 33  # of the logits at output stride 16
BACKBONE = "resnet101"
CPU = torch.device("cpu")
NOTE = "inference: the reference is the unfused network, in the same run"
Network = Callable[[Tensor], SegOutput]


@torch.inference_mode()
def run(options: Options) -> list[Row]:
    """Networks, then the arg max."""
    return [*networks(options), *arg_maxes(options)]


# --- networks ---------------------------------------------------------------------------------------------


def networks(options: Options) -> list[Row]:
    """Time of every number of steps; growth from the first to the last; agreement of the label maps."""
    config = ModelConfig(name=f"deeplabv3_{BACKBONE}", weights="none")
    whole = shaken(random_network(config, 2, [1] * (LAST - 1), options.seed), options.seed)
    images = photo(options.seed)
    variants: dict[str, Network] = {}
    for n in STEPS:
        plain = first_steps(whole, n)
        variants[f"unfused {n}"], variants[f"fused {n}"] = plain, fuse(plain)
    if has_bf16():
        variants[f"bf16 {LAST}"] = fuse(whole).bfloat16()
    maps = {
        name: label_map(network, images) for name, network in variants.items() if name.endswith(f" {LAST}")
    }
    calls = {name: partial(timed, partial(network, images)) for name, network in variants.items()}
    found = alternate(calls, options.rounds or (7 if options.full else 2), options.say, "inference")
    # the least is what other processes disturbed least
    return [*times({name: 1000 * min(values) for name, values in found.items()}), *agreement(maps)]


def times(best: Mapping[str, float]) -> list[Row]:
    """Rows of milliseconds by "variant steps"."""
    what = f"inference, {BACKBONE}, {SIDE} px, heads of"
    rows = []
    for name, value in best.items():
        variant, _, n = name.partition(" ")
        if variant != "unfused":
            key = f"inference.steps.{n if variant == 'fused' else variant}"
            ours = {"fused": "fused", "bf16": "fused bf16"}[variant]
            rows.append(
                less(key, f"{what} {_steps(int(n))}", ours, best[f"unfused {n}"], value, "ms", note=NOTE)
            )
    for variant, target in (("fused", 1.5), ("unfused", None)):
        one, many = best[f"{variant} {STEPS[0]}"], best[f"{variant} {LAST}"]
        measure = f"the same, {_steps(LAST)} over {_steps(STEPS[0])}"
        key = f"inference.growth.{variant}"
        rows.append(Row(key, measure, variant, one, many, "ms", many / one, target, "at most"))
    return rows


def agreement(maps: Mapping[str, Tensor]) -> list[Row]:
    """Pixels with the class that the unfused network gives them."""
    truth = maps[f"unfused {LAST}"]
    there = torch.bincount(truth.flatten()).count_nonzero()
    note = (
        "pixels with the same class: of the unfused network in float32; random weights, an image in which "
        f"{there} classes are predicted"
    )
    rows = []
    for variant, target in (("fused", 99.99), ("bf16", None)):
        if f"{variant} {LAST}" in maps:
            same = 100 * (maps[f"{variant} {LAST}"] == truth).double().mean().item()
            key, measure = f"inference.same.{variant}", f"pixels with the same class, heads of {_steps(LAST)}"
            rows.append(Row(key, measure, variant, None, same, "%", same, target, of="%", note=note))
    return rows


def _steps(n: int) -> str:
    return f"{n} step{'s' if n > 1 else ''}"


def shaken(model: Segmenter, seed: int) -> Segmenter:
    """Norms of many scales and logits that spread, as in a trained network."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.mul_(torch.rand(len(module.weight), generator=g) + 0.5)
            module.bias.data.add_(torch.randn(len(module.bias), generator=g) * 0.2)
    out = model(photo(seed + 1))
    for head, group in zip(model.heads, model.layout, strict=True):
        logits, last = out.logits[:, group.start : group.stop], head.get_submodule("out")
        scale = 3 / logits.std((0, 2, 3))
        if isinstance(last, nn.Conv2d) and last.bias is not None:
            last.weight.data.mul_(scale.view(-1, 1, 1, 1))
            last.bias.data.sub_(logits.mean((0, 2, 3))).mul_(scale)
    return model


def photo(seed: int, n: int = 1) -> Tensor:
    """uint8 n 3 H W with smooth regions."""
    coarse = torch.rand(n, 3, 20, 20, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255).byte()
    return smooth.contiguous(memory_format=torch.channels_last)


def first_steps(model: Segmenter, n: int) -> Segmenter:
    """The network as it was after its first n steps; the trunk is the model's own."""
    early = copy.copy(model)
    early._modules = dict(model._modules)
    kept = [k for k, group in enumerate(model.layout) if group.step < n]
    early.layout = tuple(model.layout[k] for k in kept)
    early.heads = nn.ModuleList([model.heads[k] for k in kept])
    return early


def label_map(network: Network, images: Tensor) -> Tensor:
    """What `segrow predict` would write for images of this size."""
    out = network(images)
    return arg_max(out.logits, out.unknown, (SIDE, SIDE), Ssul().scores)


# --- arg max ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Milliseconds an image, and what the process grew by at most, in MiB."""

    time: float
    memory: float


def arg_maxes(options: Options) -> list[Row]:
    """In bands of rows, beside scores of the whole batch at full resolution."""
    rows = []
    for classes in (21, 151):
        batch = 16 if options.full or classes == 21 else 4
        options.say(f"inference: arg max of {classes} classes")
        bands, whole = spawn(classes, batch, options.rounds or (5 if options.full else 2), options.seed)
        key, what = f"inference.argmax.{classes}", f"arg max, {classes} classes, batch {batch}, {SIDE} px"
        rows += [
            less(f"{key}.time", f"{what}, an image", "in bands", whole.time, bands.time, "ms"),
            less(f"{key}.memory", f"{what}, memory", "in bands", whole.memory, bands.memory, "MiB"),
        ]
    return rows


def whole_arg_max(logits: Tensor, unknown: Tensor) -> Tensor:
    """Scores B C H W, then their arg max."""
    size = (SIDE, SIDE)
    return Ssul().scores(upsample(logits, size), upsample(unknown, size)).argmax(1)


def spawn(classes: int, batch: int, rounds: int, seed: int) -> tuple[Spent, Spent]:
    """In bands and whole, measured in a new process: what this one has freed would hide their memory."""
    words = (classes, batch, rounds, seed, torch.get_num_threads())
    bands, whole = (Spent(**spent) for spent in spawned("arg max", "benchmarks.inference", *words))
    return bands, whole


@torch.inference_mode()
def child(classes: int, batch: int, rounds: int, seed: int, threads: int) -> list[Spent]:
    """In bands and whole, in turn; memory is that of the first round, bands before whole."""
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, MAP, MAP, generator=g) * 3
    unknown = torch.randn(batch, 1, MAP, MAP, generator=g) * 3
    arg_max(logits[:1], unknown[:1], (MAP, MAP), Ssul().scores)  # what torch sets up at its first use
    works = {
        "bands": partial(spend, partial(arg_max, logits, unknown, (SIDE, SIDE), Ssul().scores), batch),
        "whole": partial(spend, partial(whole_arg_max, logits, unknown), batch),
    }
    found = alternate(works, rounds, lambda line: None, "")
    return [Spent(min(s.time for s in found[name]), found[name][0].memory) for name in works]


def spend(work: Callable[[], Tensor], batch: int) -> Spent:
    """One call on a batch."""
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    seconds = timed(work)
    return Spent(1000 * seconds / batch, (peak_memory(CPU) - before) / 2**20)


if __name__ == "__main__":
    print(json.dumps([asdict(spent) for spent in child(*map(int, sys.argv[1:]))]))
