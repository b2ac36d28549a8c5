"""Five times SIGKILL, and the same weights as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import EVERY_EPOCH, STEPS, build_tree, log, matrices, options, weights

KILLS = 5
MORE = ("--memory.size", "6", "--train.workers", "1", "--train.epochs", "40", "--train.log_every", "1")


def _launch(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, EVERY_EPOCH, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _stamp(out: Path) -> tuple[float, int]:
    """Changes whenever the run gets further."""
    files = [out / "last.ckpt", out / "results.json", *out.glob("steps/*")]
    found = [f.stat().st_mtime for f in files if f.exists()]
    return max(found, default=0.0), len(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_five_kills_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(3)
    root = build_tree(tmp_path / "VOC2012").root
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _launch(options(root, whole, *MORE)).wait(timeout=300) == 0

    kills = 0
    while kills < KILLS:
        before = _stamp(killed)
        process = _launch(options(root, killed, *MORE))
        end = time.monotonic() + 120
        while _stamp(killed) == before and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(rng.random() * 1.5)  # anywhere in an epoch, a step's end, an evaluation
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == KILLS, f"the run was over after {kills} kills"
    assert _launch(options(root, killed, *MORE)).wait(timeout=300) == 0

    assert len(weights(whole)) == STEPS
    assert weights(killed) == weights(whole)
    assert matrices(killed) == matrices(whole)
    rows = [[(row["step"], row["epoch"], row["total"]) for row in log(out)] for out in (killed, whole)]
    assert rows[0] == rows[1]
