"""`FAIL=oom FAIL_RANK=1 python failing.py ARGUMENTS`: segrow; one process fails in its third update.

FAIL=full: at its first checkpoint, a disk without room. FAIL=image: it reads an image that was cut off.
"""

import errno
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from segrow import cli
from segrow.data.files import read_image
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer

update = StepTrainer._update
calls = 0


def failing(self: StepTrainer, batch: Any) -> dict[str, torch.Tensor]:
    global calls
    calls += 1
    fault = os.environ["FAIL"]
    if calls == 3 and mine() and fault != "full":
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "image":
            read_cut_off()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")
    return update(self, batch)


def mine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == os.environ["FAIL_RANK"]


def read_cut_off() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.new("RGB", (40, 48)).save(path)
        path.write_bytes(path.read_bytes()[:60])
        read_image(path)


def full(self: Checkpoint, *places: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(places[0]))


if __name__ == "__main__":
    if os.environ["FAIL"] == "full":
        Checkpoint.save = full  # type: ignore[method-assign]
    torch.set_num_threads(1)
    StepTrainer._update = failing  # type: ignore[method-assign]
    sys.exit(cli.main())
