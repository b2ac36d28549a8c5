"""The training step alone on a device: whether it waits for the device, its time and its memory."""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import updates
from .ours import LABELS, Precision
from .pieces import Piece, Setting, at_most
from .report import Row

SIGN = "synchronizing CUDA operation"  # in torch's warning
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
    allowed: dict[Precision, int] = {"32": 0, "bf16": 0, "16": 1}
    for kind in updates.KINDS:
        for precision, bound in allowed.items():
            update = updates.segrow(
                SMALL if setting.small else TYPICAL, kind, precision, setting.device, setting.seed
            )
            found = synchronisations(update)
            where = ", ".join(f"{place} {n} times" for place, n in found.most_common(5))
            key = f"waiting.{kind}.{LABELS[precision]}"
            row = at_most(
                key, f"{kind}: times an update waits for the device", precision, found.total(), bound
            )
            rows.append(Row(**{**vars(row), "note": f"{key}: {where}" if where else ""}))
    return rows


def synchronisations(update: Any) -> Counter[str]:
    """Places in which a third update waits for a GPU, and how often."""
    update()
    update()  # what is found once a step has been
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in said if SIGN in str(w.message))
