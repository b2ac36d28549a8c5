"""One step of one variant in a process of its own, so that its peak memory is its own.

python -m benchmarks.child '{"variant": "exact", ...}'      prints {"seconds": ..., "peak": ...}
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.engine.cost import peak_memory, reset_peak_memory
from segrow.methods.ssul import Ssul

from .ours import Precision, student_and_teacher, train_step, with_views
from .process import spawned
from .reference import ReferenceStep

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """What a child does.

    Attributes:
        variant: reference (synthetic batches, no loader), exact or cached.
        data: Name of the data set.
        root: Its folder.
        task: The task.
        step: The step that is trained.
        new: Number of classes it teaches.
        before: The model directory that it starts from.
        out: Folder for our run; does not exist.
        backbone: Short name of the network.
        batch: Images of a batch.
        crop: Side of the crops in pixels.
        precision: Of ours.
        epochs: Of ours; the reference trains `iterations`.
        iterations: Of the reference.
        threads: Of torch.
    """

    variant: Literal["reference", "exact", "cached"]
    data: str
    root: str
    task: str
    step: int
    new: int
    before: str
    out: str
    backbone: str
    batch: int
    crop: int
    precision: Precision = "32"
    epochs: int = 1
    iterations: int = 2
    threads: int = 0


@dataclass(frozen=True)
class Result:
    """What a child found.

    Attributes:
        seconds: Of an iteration.
        peak: Of the process' resident set, in bytes.
        before: The resident set when only the imports are there, in bytes.
    """

    seconds: float
    peak: int
    before: int = 0


def configuration(work: Work) -> RunConfig:
    """The configuration of our run."""
    views = 1 if work.variant == "cached" else 0
    train = TrainConfig(epochs=work.epochs, batch_size=work.batch, crop=work.crop, device="cpu", workers=0)
    return RunConfig(
        task=work.task,
        data=DataConfig(name=work.data, root=work.root),
        model=ModelConfig(name=f"deeplabv3_{work.backbone}", weights="none"),
        train=with_views(train, views, work.precision),
    )


def measure(work: Work) -> Result:
    """Do the work in this process."""
    if work.threads:
        torch.set_num_threads(work.threads)
    reset_peak_memory(CPU)  # what the imports took for a moment
    before = peak_memory(CPU)
    if work.variant == "reference":
        seconds = _reference(work)
    else:
        method = Ssul(unknown="background")
        spent = train_step(configuration(work), method, work.step, Path(work.before), Path(work.out))
        seconds = spent.training / spent.iterations
    return Result(seconds, peak_memory(CPU), before)


def _reference(work: Work) -> float:
    """Seconds of the fastest iteration."""
    student, teacher = student_and_teacher(Path(work.before), work.new, work.step)
    step = ReferenceStep(student, teacher, total=work.iterations)
    step.train_mode()
    shape = (work.batch, work.crop, work.crop)
    seconds = []
    for _ in range(work.iterations):
        images = torch.randn(work.batch, 3, work.crop, work.crop)
        labels = torch.randint(-2, 1, shape)
        start = time.perf_counter()
        step.update(images, labels)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def spawn(work: Work) -> Result:
    """Do the work in a new process.

    Raises:
        UserError: When it fails, with what it said last.
    """
    return Result(**spawned(work.variant, "benchmarks.child", json.dumps(asdict(work))))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Work(**json.loads(sys.argv[1]))))))
