"""`python double.py ARGUMENTS`: segrow with every number of training in float64.

Rounding then differs in the sixteenth digit, and what differs more between two runs is a mistake.
"""

import hashlib
import sys

import torch

from segrow import cli
from segrow.engine.run import Run
from segrow.engine.step import StepTrainer
from segrow.model.segmenter import Segmenter

build, fit = Run._base_model, StepTrainer.fit


def in_float64(run: Run) -> Segmenter:
    return build(run).double()


def and_tell(trainer: StepTrainer) -> float:
    """Train a step, and write what each process then has: `state-STEP-RANK`."""
    seconds, machine = fit(trainer), trainer.machine
    assert machine.fabric.world_size == 1 or not trainer.objective._forward_module.broadcast_buffers
    digest = hashlib.sha256()
    for value in trainer.ctx.model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    name = f"state-{trainer.ctx.step}-{machine.fabric.global_rank}"
    (machine.root / name).write_text(digest.hexdigest())
    return seconds


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    Run._base_model = in_float64  # type: ignore[method-assign]
    StepTrainer.fit = and_tell  # type: ignore[method-assign]
    sys.exit(cli.main())
