"""Ctrl-C in a terminal, and `timeout`, reach the loader processes of a training run too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import EVERY_EPOCH, build_tree, last_line, no_signal_ignored, options

from segrow import cli
from segrow.engine.step import StepTrainer
from segrow.errors import UserError


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    root, out = build_tree(tmp_path / "VOC2012").root, tmp_path / "run"
    more = ("--train.workers", "2", "--steps", "1", "--method", "finetune", "--train.precision", "32")
    words = options(root, out, *more, "--train.epochs", "400")
    with subprocess.Popen(
        [sys.executable, EVERY_EPOCH, *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=no_signal_ignored,
    ) as run:
        try:
            end = time.monotonic() + 120
            while not ((out / "last.ckpt").exists() and len(_children(run.pid)) >= 2):
                assert time.monotonic() < end
                assert run.poll() is None
                time.sleep(0.02)
            os.killpg(run.pid, number)
            said = run.communicate(timeout=60)[1]
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == code, said
    assert "the same command continues from the last finished epoch" in last_line(said)
    assert said.count("stopped") == 1

    def begin(self: StepTrainer) -> None:
        assert self.first > 0
        raise UserError("it goes on")

    monkeypatch.setattr(StepTrainer, "fit", begin)
    assert cli.main(words) == 2
    assert "it goes on" in capsys.readouterr().err
