"""Peak memory of a late step: ADE20K 100-5, its last step, with 145 known classes before and 150 after it.

ResNet-101 with random weights, batch 2, crops of 513 pixels; the peak of a process' resident set. The
reference gets synthetic batches (so none of its memory is a loader's), ours run whole: index, loader, step.
The data have five images, so hardly any of ours is the cache. What that adds is a matter of options: K views
of N images, a mebibyte each at this size, within --train.feature_budget or in a file.
"""

from dataclasses import replace

import torch

from segrow.config import RunConfig
from segrow.data.tiny import compose
from segrow.methods.ssul import Ssul

from .child import Result, Work, configuration, spawn
from .machine import has_bf16
from .ours import random_network, save_before
from .report import Options, Row, less

STEP, NEW, KNOWN = 10, 5, 150
MIB = 2**20
TARGETS = {"exact fp32": None, "cached fp32": 4.0, "cached bf16": 4.0}


def run(options: Options) -> list[Row]:
    """Reference, exact, cached; each in a process of its own."""
    root = compose(options.work / "memory" / "ADEChallengeData2016", "ade20k")
    work = options.work / "memory"
    shared = Work(
        variant="exact",
        data="ade20k",
        root=str(root),
        task="100-5",
        step=STEP,
        new=NEW,
        before=str(work / "before"),
        out=str(work / "out"),
        threads=torch.get_num_threads(),
        backbone="resnet101",
        batch=2,
        crop=513,
        epochs=2,  # else every view would be used once, and none be kept
    )
    config: RunConfig = configuration(shared)
    network = random_network(config.model, 100, [NEW] * (STEP - 1), options.seed)
    save_before(network, config, Ssul(unknown="background"), STEP - 1, work / "before")
    del network
    found: dict[str, Result] = {}
    targets = {name: target for name, target in TARGETS.items() if has_bf16() or "bf16" not in name}
    variants = {
        "reference": replace(shared, variant="reference"),
        "exact fp32": shared,
        "cached fp32": replace(shared, variant="cached"),
        "cached bf16": replace(shared, variant="cached", precision="bf16"),
    }
    for name in ("reference", *targets):
        options.say(f"memory: {name}")
        found[name] = spawn(variants[name])
    rows = []
    note = "memory: one view of five images is kept; each is 1 MiB, in memory or in a file, as asked for"
    for name, target in targets.items():
        what = f"peak memory, {KNOWN} classes, resnet101, batch 2, 513 px"
        theirs, ours = found["reference"], found[name]
        key = f"memory.{{}}.{name.replace(' ', '-')}"
        rows.append(
            less(key.format("peak"), what, name, theirs.peak / MIB, ours.peak / MIB, "MiB", target, note)
        )
        above = f"{what}, above the imports"
        net, mine = ((result.peak - result.before) / MIB for result in (theirs, ours))
        rows.append(less(key.format("above-imports"), above, name, net, mine, "MiB"))
    return rows
