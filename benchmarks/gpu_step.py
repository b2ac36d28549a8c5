"""The training step alone on a device: whether it waits for the device, its time and its memory."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from segrow.batch import Batch
from segrow.engine.step import StepTrainer

from . import updates
from .ours import Precision
from .pieces import Piece, Setting, at_most
from .report import Row

SIGN = "synchronizing CUDA operation"  # in torch's warning
ALLOWED: Mapping[Precision, int] = {"32": 0, "bf16": 0, "16": 1}
"""Times that an update may wait, by precision."""

LARGE = updates.Case(
    "resnet101", 32, 513, updates=20, warm=5, faster={"base": 2.5, "exact": 2.0, "kept": 10.0}
)
TYPICAL = updates.Case("mobilenet", 4, 129)  # for what does not depend on sizes
SMALL = updates.Case("test_resnet", 2, 33, updates=1, warm=1, width=8)


def pieces(setting: Setting) -> list[Piece]:
    """Waiting, which there is on a GPU alone; then time and memory beside the reference loop."""
    kinds, size = updates.KINDS, SMALL if setting.small else LARGE
    made = [Piece("waiting for the device", 30, partial(waits, setting))] if setting.on_gpu else []
    work = {kind: partial(updates.run, size, setting.device, setting.seed, (kind,)) for kind in kinds}
    return made + [Piece(f"time and memory of {kind}", 40, work[kind]) for kind in kinds]


def waits(setting: Setting) -> list[Row]:
    """How often an update of each kind waits for the device; in fp16 the loss scaler does so once."""
    rows = []
    for kind in updates.KINDS:
        for precision in ALLOWED:
            update = updates.segrow(
                SMALL if setting.small else TYPICAL, kind, precision, setting.device, setting.seed
            )
            rows.append(row_of(f"waiting.{kind}", kind, precision, [synchronisations(update)]))
    return rows


def row_of(key: str, what: str, precision: Precision, found: Sequence[Counter[str]]) -> Row:
    """How often the worst of some updates waits; the note names the places."""
    worst = max(found, key=Counter.total)
    where = ", ".join(f"{place} {n} times" for place, n in worst.most_common(5))
    measure = f"{what}: times an update waits for the device"
    row = at_most(f"{key}.{precision}", measure, precision, worst.total(), ALLOWED[precision])
    return replace(row, note=f"{what}, {precision}: waits in {where}" if where else "")


def synchronisations(update: Callable[[], object]) -> Counter[str]:
    """Places in which a third update waits for a GPU, and how often."""
    update()
    update()  # what is found once a step has been
    torch.cuda.synchronize()
    with watching() as found:
        update()
    return found


@contextmanager
def watching() -> Iterator[Counter[str]]:
    """Places in which what is done within waits for a GPU; filled at the end."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found.update(f"{Path(w.filename).name}:{w.lineno}" for w in said if SIGN in str(w.message))


@contextmanager
def watched_updates(on_gpu: bool) -> Iterator[list[Counter[str]]]:
    """What each update of the runs within waits for, but for the first two of a step; nothing on a CPU."""
    found: list[Counter[str]] = []
    seen: Counter[StepTrainer] = Counter()
    plain = StepTrainer._update

    def update(trainer: StepTrainer, batch: Batch) -> dict[str, Tensor]:
        seen[trainer] += 1
        if seen[trainer] <= 2:
            return plain(trainer, batch)
        with watching() as waited:
            terms = plain(trainer, batch)
        found.append(waited)
        return terms

    with mock.patch.object(StepTrainer, "_update", update) if on_gpu else nullcontext():
        yield found
