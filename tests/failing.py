"""`FAIL=oom FAIL_RANK=1 python failing.py ARGUMENTS`: segrow; one process fails in its third update."""

import os
import signal
import sys
from typing import Any

import torch

from segrow import cli
from segrow.engine.step import StepTrainer

update = StepTrainer._update
calls = 0


def failing(self: StepTrainer, batch: Any) -> dict[str, torch.Tensor]:
    global calls
    calls += 1
    if calls == 3 and os.environ.get("LOCAL_RANK", "0") == os.environ["FAIL_RANK"]:
        if os.environ["FAIL"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")
    return update(self, batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    StepTrainer._update = failing  # type: ignore[method-assign]
    sys.exit(cli.main())
