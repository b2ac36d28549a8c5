"""After a loss that was not finite: the smaller rate that is advised continues the run, and is told of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import last_line, log, only_line, results, start, weights

from segrow import cli
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer
from segrow.report.runs import group_runs, read_runs

Capture = pytest.CaptureFixture[str]
ONE = ("--steps", "1", "--train.epochs", "4", "--train.log_every", "1")
FAST, SLOW = ("--train.step0_backbone_lr", "0.02"), ("--train.step0_backbone_lr", "0.002")
REMARK = "from epoch 3 of step 0 on with train.step0_backbone_lr 0.002 instead of 0.02"


def lose(patch: pytest.MonkeyPatch, update: int) -> None:
    """The loss is not finite from an update on; an epoch has three here."""
    inner, calls = StepTrainer._update, 0

    def wrapper(self: StepTrainer, batch: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        terms = inner(self, batch)
        return terms if calls < update else {name: value * float("nan") for name, value in terms.items()}

    patch.setattr(StepTrainer, "_update", wrapper)


@pytest.fixture
def lost(root: Path, tmp_path: Path, capsys: Capture) -> Path:
    """A run that has lost its loss in the third epoch of the base step."""
    out = tmp_path / "lost"
    with pytest.MonkeyPatch.context() as patch:
        per_epoch = 3
        lose(patch, 2 * per_epoch + 2)
        assert start(root, out, *ONE, *FAST) == 1
    rows = [row for row in log(out) if row["epoch"] == "0"]
    assert len(rows) == per_epoch
    line = last_line(capsys.readouterr().err)
    assert "the loss is not finite" in line
    assert "use a smaller learning rate" in line
    assert "the same command continues after the last good epoch" in line
    return out


def test_the_smaller_rate_continues(root: Path, lost: Path, capsys: Capture) -> None:
    before = Checkpoint.load(lost / "last.ckpt")
    assert before is not None
    assert before.epoch == 2
    assert start(root, lost, *ONE, *SLOW) == 0
    assert REMARK in " ".join(capsys.readouterr().err.split())
    rates = {int(row["epoch"]): float(row["lr"]) for row in log(lost)}
    assert sorted(rates) == [0, 1, 2, 3]
    assert rates[1] > 0.01 > 0.002 > rates[2]
    found = results(lost)
    assert found["changes"] == [
        {"step": 0, "epoch": 2, "options": {"train.step0_backbone_lr": [0.02, 0.002]}}
    ]
    assert REMARK in found["remarks"]
    assert yaml.safe_load((lost / "config.yaml").read_text())["train"]["step0_backbone_lr"] == 0.002
    assert cli.main(["results", str(lost)]) == 0
    assert REMARK in " ".join(capsys.readouterr().out.split())
    # what is done stays done, and says so again
    saved = (lost / "results.json").read_bytes()
    assert start(root, lost, *ONE, *SLOW) == 0
    assert (lost / "results.json").read_bytes() == saved
    # and nothing is left to train with another rate
    capsys.readouterr()
    assert start(root, lost, *ONE, *FAST) == 2
    assert "another configuration (train.step0_backbone_lr: 0.002 there, 0.02 here)" in only_line(
        capsys.readouterr().err
    )


def test_it_is_lost_again(root: Path, lost: Path) -> None:
    """Every change stands in the record; one that trained nothing too."""
    with pytest.MonkeyPatch.context() as patch:
        lose(patch, 1)
        assert start(root, lost, *ONE, *SLOW) == 1
    assert start(root, lost, *ONE, "--train.step0_backbone_lr", "0.001", "--train.clip", "1") == 0
    assert [change["options"] for change in results(lost)["changes"]] == [
        {"train.step0_backbone_lr": [0.02, 0.002]},
        {"train.clip": [0.0, 1.0], "train.step0_backbone_lr": [0.002, 0.001]},
    ]


def test_comparing_with_other_runs(root: Path, lost: Path, tmp_path: Path, capsys: Capture) -> None:
    """config.yaml says the same of both, but they are no repetition of one experiment."""
    assert start(root, lost, *ONE, *SLOW) == 0
    assert start(root, tmp_path / "plain", *ONE, *SLOW, "--seed", "2") == 0
    assert start(root, tmp_path / "again", *ONE, *SLOW, "--seed", "3") == 0
    groups = group_runs(read_runs([lost, tmp_path / "plain", tmp_path / "again"], "ssul"))
    assert [len(group.runs) for group in groups] == [1, 2]
    capsys.readouterr()
    assert cli.main(["results", str(lost), str(tmp_path / "plain"), "--json"]) == 0
    assert REMARK in json.dumps(json.loads(capsys.readouterr().out))
    assert start(root, tmp_path / "shared", "--train.epochs", "1", "--base", str(lost)) == 0
    assert any(REMARK in remark for remark in results(tmp_path / "shared")["remarks"])


def test_other_options_are_refused(root: Path, lost: Path, capsys: Capture) -> None:
    assert start(root, lost, *ONE, *SLOW, "--train.momentum", "0.5") == 2
    assert "another configuration" in only_line(capsys.readouterr().err)


def test_a_rate_is_refused_where_no_loss_was_lost(root: Path, tmp_path: Path, capsys: Capture) -> None:
    """Stopped by hand: another rate is rather another run."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "_check_weights", _stop_in_the_second_epoch)
        assert start(root, out, *ONE, *FAST) == 130
    capsys.readouterr()
    assert start(root, out, *ONE, *SLOW) == 2
    assert "another configuration (train.step0_backbone_lr" in only_line(capsys.readouterr().err)
    assert start(root, out, *ONE, *FAST) == 0


def _stop_in_the_second_epoch(self: StepTrainer, epochs_done: int) -> None:
    if epochs_done == 2:
        raise KeyboardInterrupt


def test_before_the_first_epoch_is_done_nothing_is_lost(root: Path, tmp_path: Path) -> None:
    """The folder starts anew, and is what a run with that rate would have been."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        lose(patch, 1)
        assert start(root, out, *ONE, *FAST) == 1
    assert start(root, out, *ONE, *SLOW) == 0
    assert start(root, tmp_path / "plain", *ONE, *SLOW) == 0
    assert weights(out) == weights(tmp_path / "plain")
    assert "changes" not in results(out)


@pytest.mark.parametrize("what", ["weight", "running_mean"])
def test_a_checkpoint_is_good(root: Path, tmp_path: Path, capsys: Capture, what: str) -> None:
    """The losses never see the last update of an epoch, and from such weights no rate would go on."""
    out, inner, calls = tmp_path / "run", StepTrainer._update, 0

    def spoil(self: StepTrainer, batch: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        terms = inner(self, batch)
        if calls == 6:
            state = self.ctx.model.state_dict()
            next(value for name, value in state.items() if name.endswith(what)).fill_(float("inf"))
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "_update", spoil)
        assert start(root, out, *ONE, *FAST) == 1
    line = last_line(capsys.readouterr().err)
    assert f"{what} is not finite after the last update of epoch 2 of step 0" in line
    kept = Checkpoint.load(out / "last.ckpt")
    assert kept is not None
    assert kept.epoch == 1
    assert start(root, out, *ONE, *SLOW) == 0


def test_a_real_divergence(root: Path, tmp_path: Path, capsys: Capture) -> None:
    """In a later step, with nothing injected."""
    out, more = tmp_path / "run", ("--train.epochs", "2", "--steps", "2", "--train.precision", "32")
    assert start(root, out, *more, "--train.lr", "1e30") == 1
    assert "not finite" in last_line(capsys.readouterr().err)
    assert start(root, out, *more, "--train.lr", "0.01") == 0
    assert results(out)["changes"] == [{"step": 1, "epoch": 0, "options": {"train.lr": [1e30, 0.01]}}]
    assert start(root, tmp_path / "plain", *more, "--train.lr", "0.01") == 0
    assert weights(out) == weights(tmp_path / "plain")


@pytest.mark.parametrize("content", ["[]", "{", '{"lost": 1, "changes": []}'])
def test_a_damaged_record(root: Path, lost: Path, capsys: Capture, content: str) -> None:
    (lost / "changes.json").write_text(content)
    assert start(root, lost, *ONE, *SLOW) == 2
    assert "changes.json" in only_line(capsys.readouterr().err)
