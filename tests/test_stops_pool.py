"""Ctrl-C in a terminal reaches the processes that read images too; the command ends all the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import no_signal_ignored


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("later", [0.0, 0.5])
def test_a_signal_to_all_processes_ends_a_pool(tmp_path: Path, number: int, code: int, later: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    for kind, image in (("images", Image.fromarray(pixels)), ("masks", Image.fromarray(pixels[..., 0] % 2))):
        (tmp_path / kind).mkdir()
        image.save(tmp_path / kind / "0.png")
        for k in range(1, 600):
            os.link(tmp_path / kind / "0.png", tmp_path / kind / f"{k}.png")
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    command = [sys.executable, "-m", "segrow", "data", "check", str(tmp_path)]
    env = {**os.environ, "SEGROW_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=no_signal_ignored,
    ) as run:
        try:
            end = time.monotonic() + 120
            while not children(run.pid) and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(later)
            os.killpg(run.pid, number)
            said = run.communicate(timeout=30)[1]
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == code, said
    assert said.count("segrow: stopped") == 1
    assert "Traceback" not in said
