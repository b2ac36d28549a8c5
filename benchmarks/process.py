"""Measurements in processes of their own, whose memory is their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from segrow.errors import UserError

ROOT = Path(__file__).parents[1]


def spawned(what: str, module: str, *words: object) -> Any:
    """What `python -m MODULE WORD...` prints last, which is JSON.

    Args:
        what: Names the measurement when it fails.

    Raises:
        UserError: When it fails, with what it said last.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(f"{what} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])
