"""`--steps N`: a run that stops after N steps, and goes on."""

import shutil
from pathlib import Path

import pytest
from runs import (
    STEPS,
    log,
    matrices,
    model,
    only_line,
    results,
    snapshot,
    start,
    weights,
)
from test_resume import Stopper

from segrow import cli
from segrow.engine.run import Run
from segrow.engine.step import StepTrainer

MEMORY = ("--memory.size", "6", "--train.log_every", "1")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all steps with exemplars, without `--steps`."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *MEMORY) == 0
    return out


@pytest.fixture(scope="module")
def base(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped after the base step."""
    out = tmp_path_factory.mktemp("runs") / "base"
    assert start(root, out, *MEMORY, "--steps", "1") == 0
    return out


def test_a_run_of_one_step_is_the_base_step_of_the_whole(whole: Path, base: Path) -> None:
    assert weights(base) == weights(whole)[:1]  # the exemplars that step 1 needs among them
    assert matrices(base) == matrices(whole)[:1]
    assert b'"image"' in (model(base, 0) / "memory.json").read_bytes()


@pytest.mark.parametrize("calls", [["2", None], ["2", "9"], [None], ["3", "1"]], ids=str)
def test_more_steps_continue_to_the_same_end(
    root: Path, whole: Path, base: Path, tmp_path: Path, calls: list[str | None]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(base, out)
    for steps in calls:
        assert start(root, out, *MEMORY, *(("--steps", steps) if steps else ())) == 0
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)
    keys = ("step", "epoch", "iteration", "lr", "total")
    assert [[row[k] for k in keys] for row in log(out)] == [[row[k] for k in keys] for row in log(whole)]


def test_more_steps_than_there_are_is_all_of_them(root: Path, whole: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", *MEMORY, "--steps", str(STEPS + 5)) == 0
    assert weights(tmp_path / "run") == weights(whole)


def test_what_is_left_is_said(
    root: Path, whole: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(base)
    assert start(root, base, *MEMORY, "--steps", "1") == 0
    assert "1 of 3 steps done, as --steps 1 asked; the same command with more" in capsys.readouterr().err
    assert snapshot(base) == before
    assert start(root, whole, *MEMORY, "--steps", "1") == 0
    assert "--steps" not in capsys.readouterr().err


def test_an_unfinished_run_is_counted_and_printed(
    root: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["results", str(base), "--per_class", "--cost", "--markdown"]) == 0
    assert "| 0 | base |" in capsys.readouterr().out
    assert cli.main(["results", str(base)]) == 0
    assert cli.main(["eval", str(base), "--data.root", str(root), "--workers", "0"]) == 0


def test_a_run_stopped_inside_its_last_wanted_step_continues_with_more(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, StepTrainer, "_update", 2, True)
        assert start(root, out, *MEMORY, "--steps", "1") == 130
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Run, "_evaluate_step", 1, False)
        assert start(root, out, *MEMORY, "--steps", "2") == 130
    assert start(root, out, *MEMORY) == 0
    assert weights(out) == weights(whole)


def test_a_base_run_is_shared(root: Path, whole: Path, base: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", *MEMORY, "--base", str(base), "--steps", "2") == 0
    assert weights(tmp_path / "run") == weights(whole)[:2]
    assert [s["from_base"] for s in results(tmp_path / "run")["steps"]] == [str(base), None]


def test_the_configuration_does_not_say_how_far_a_call_goes(
    root: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a run started with another's config.yaml would stop where that one's first call stopped."""
    assert "\nsteps:" not in (base / "config.yaml").read_text()
    assert cli.main(["train", "--steps", "2", "--print_config"]) == 0
    assert "\nsteps: 2\n" in capsys.readouterr().out


def test_only_the_wanted_steps_must_fill_a_batch(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ("--train.batch_size", "10", "--train.epochs", "1")
    assert start(root, out, *more, "--steps", "1") == 0  # 13 images; the last step has 7
    capsys.readouterr()
    before = snapshot(out)
    assert start(root, out, *more) == 2
    line = only_line(capsys.readouterr().err)
    assert "images, fewer than the batch size 10" in line
    assert snapshot(out) == before
