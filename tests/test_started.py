"""Processes that a launcher started, and --train.devices: one number, or one line."""

from pathlib import Path

import pytest
from runs import build_tree, options, run_processes, start, weights

from segrow.engine.setup import check_started
from segrow.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
EARLIER = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
NAMES = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", *TORCHRUN, *SLURM)


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
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
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


TWICE = """
import sys
from segrow import cli
words, out = sys.argv[1:], sys.argv[1:].index("--out") + 1
codes = [cli.main([*words[:out], words[out] + name, *words[out + 1 :]]) for name in "ab"]
sys.exit(max(codes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("torch.distributed.run", "--standalone", "--nproc_per_node", "2"), ()])
def test_two_runs_of_one_program(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    """Under torchrun, and where the first run starts the second process."""
    build_tree(tmp_path / "data")
    more = ("--steps", "1", "--train.epochs", "1", "--train.devices", "2")
    words = options(tmp_path / "data", tmp_path / "run", *more, "--train.precision", "32")
    (tmp_path / "twice.py").write_text(TWICE)
    program = (*(("-m", *launcher) if launcher else ()), str(tmp_path / "twice.py"))
    done = run_processes(words, program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("run folder: ") == 2
    assert weights(tmp_path / "runa") == weights(tmp_path / "runb")
