"""Processes that a launcher started, and --train.devices: one number, or one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only
from runs import LIMIT_S, build_tree, options, start, weights

from segrow.engine.setup import check_started
from segrow.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
EARLIER = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
NAMES = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "devices", "line"),
    [
        (
            TORCHRUN,
            1,
            "torchrun started 2 processes, and --train.devices is 1; give --train.devices 2, "
            "or leave torchrun out",
        ),
        (
            TORCHRUN,
            4,
            "torchrun started 2 processes, and --train.devices is 4; give --train.devices 2, or torchrun "
            "--nproc_per_node 4",
        ),
        (
            SLURM,
            2,
            "SLURM started 1 process, and --train.devices is 2; give --train.devices 1, or srun --ntasks 2",
        ),
        (
            EARLIER,
            1,
            "an earlier call in this program started 2 processes, and --train.devices is 1; give "
            "--train.devices 2, or a program of its own",
        ),
    ],
)
def test_another_number_is_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, line: str
) -> None:
    given(monkeypatch, environment)
    with pytest.raises(UserError) as error:
        check_started(devices)
    assert str(error.value) == line
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(SystemExit) as ended:  # the first process has said it
        check_started(devices)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, 1),
        ({}, 2),
        (TORCHRUN, 2),
        (SLURM, 1),
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, 2),  # an interactive job starts processes itself
        (EARLIER, 2),
        ({"WORLD_SIZE": "8"}, 1),  # somebody's own variable
    ],
)
def test_the_same_number(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int) -> None:
    given(monkeypatch, environment)
    check_started(devices)


def test_it_is_found_before_the_folder_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tree(tmp_path / "data")
    given(monkeypatch, TORCHRUN)
    assert start(tmp_path / "data", tmp_path / "run") == 2
    assert "torchrun started 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys
from segrow.cli import main
for out in sys.argv[1:3]:
    assert main([*sys.argv[3:], "--out", out]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [True, False])
def test_two_runs_on_two_processes_in_one_program(tmp_path: Path, torchrun: bool) -> None:
    """The second one uses the processes of the first; under torchrun too."""
    build_tree(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    more = ("--steps", "1", "--train.epochs", "1", "--train.devices", "2", "--train.precision", "32")
    words = options(tmp_path / "data", tmp_path / "unused", *more)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if torchrun else []
    command = [sys.executable, *launcher, "script.py", "one", "two", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
