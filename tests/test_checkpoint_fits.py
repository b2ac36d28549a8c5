"""A checkpoint whose checksum fits but not its content: named in one line, and the good one is used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import last_line, options, start, weights
from test_resume import Stopper

import segrow.engine.run as engine_run
from segrow import cli
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.resume import fits
from segrow.errors import UserError

PLOP = ("--method", "plop", "--steps", "2", "--model.width", "4", "--model.output_stride", "8")
BEST = ("--train.select", "best")
Check = Callable[[Checkpoint, str], None]


@pytest.fixture(scope="module")
def stopped(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Check]:
    """What step 1 stored after its first epoch, and what it asks of a checkpoint."""
    out = tmp_path_factory.mktemp("runs") / "run"
    checks: list[Check] = []

    def record(*args: Any) -> Check:
        checks.append(fits(*args))
        return checks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_run, "fits", record)
        Stopper(patch, Checkpoint, "save", 3, True)
        assert start(root, out, *PLOP, *BEST) == 130
    found = Checkpoint.load(out / "last.ckpt")
    assert found is not None
    assert (found.step, found.epoch) == (1, 1)
    checks[-1](found, "it")
    return found, checks[-1]


def changed(mapping: dict[Any, Any], key: Any, value: Any) -> dict[Any, Any]:
    return {**mapping, key: value}


def without(mapping: dict[Any, Any], key: Any) -> dict[Any, Any]:
    return {k: v for k, v in mapping.items() if k != key}


def momentum(c: Checkpoint, value: Any, key: Any = 0) -> Checkpoint:
    return replace(c, optimizer={"state": changed(c.optimizer["state"], key, value)})


def buffer(c: Checkpoint) -> torch.Tensor:
    found: torch.Tensor = c.optimizer["state"][0]["momentum_buffer"]
    return found


def weight(c: Checkpoint, value: Any) -> Checkpoint:
    return replace(c, model=changed(c.model, next(iter(c.model)), value))


def first(c: Checkpoint) -> torch.Tensor:
    found: torch.Tensor = next(iter(c.model.values()))
    return found


DAMAGED: dict[str, tuple[Callable[[Checkpoint], Checkpoint], str]] = {
    "momentum is text": (
        lambda c: momentum(c, {"momentum_buffer": "x"}),
        "0.momentum_buffer is a str, expected",
    ),
    "momentum is nothing": (
        lambda c: momentum(c, {"momentum_buffer": None}),
        "0.momentum_buffer is a NoneType",
    ),
    "momentum has another shape": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c).flatten()}),
        "0.momentum_buffer is (",
    ),
    "momentum has other numbers": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c).double()}),
        "of torch.float64, expected",
    ),
    "momentum is sparse": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c).to_sparse()}),
        "torch.sparse_coo, expected",
    ),
    "momentum is not finite": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c) * torch.nan}),
        "0.momentum_buffer is not finite",
    ),
    "momentum is no mapping": (lambda c: momentum(c, 7), "optimizer lacks 0.momentum_buffer"),
    "momentum of a weight is lost": (
        lambda c: replace(c, optimizer={"state": without(c.optimizer["state"], 0)}),
        "optimizer lacks 0.momentum_buffer",
    ),
    "momentum of no weight": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c)}, key=10**6),
        "optimizer has 1000000.momentum_buffer",
    ),
    "momentum by another name": (
        lambda c: momentum(without_first(c), {"momentum_buffer": buffer(c)}, key="0"),
        "optimizer lacks 0.momentum_buffer",
    ),
    "more than momentum": (
        lambda c: momentum(c, {"momentum_buffer": buffer(c), "step": 3}),
        "optimizer has 0.step",
    ),
    "a weight of another shape": (lambda c: weight(c, first(c)[None]), "expected ("),
    "a weight of other numbers": (lambda c: weight(c, first(c).bool()), "of torch.bool, expected"),
    "a weight that is not finite": (lambda c: weight(c, first(c) * torch.inf), "is not finite"),
    "a weight is lost": (lambda c: replace(c, model=without(c.model, next(iter(c.model)))), "model lacks "),
    "a weight too many": (
        lambda c: replace(c, model=changed(c.model, "more", first(c))),
        "model has more, which the network lacks",
    ),
    "no thresholds": (lambda c: replace(c, method={}), "method plop has 0 entropy thresholds, expected 3"),
    "thresholds of other classes": (
        lambda c: replace(c, method={"thresholds": torch.zeros(7)}),
        "method plop has 7 entropy thresholds, expected 3",
    ),
    "a threshold that is not finite": (
        lambda c: replace(c, method={"thresholds": torch.full((3,), torch.nan)}),
        "method plop has an entropy threshold that is not finite",
    ),
    "a threshold of another kind": (
        lambda c: replace(c, method={"thresholds": torch.zeros(3, dtype=torch.bool)}),
        "one threshold per class, got (3,) of torch.bool; delete",
    ),
    "another method's state": (
        lambda c: replace(c, method={"bias": torch.zeros(3)}),
        "method plop has no state bias",
    ),
    "after more epochs": (lambda c: replace(c, epoch=3), "is after epoch 3 of 2, "),
    "after no epoch": (lambda c: replace(c, epoch=0), "is after epoch 0 of 2, "),
    "less than no time": (lambda c: replace(c, seconds=-1.0), "is after epoch 1 of 2, -1.0 s"),
    "another precision": (lambda c: replace(c, precision="evil"), "was trained in precision 'evil'"),
    "a scaler of text": (lambda c: replace(c, scaler={"scale": "x"}), "scaler: scale holds"),
    "a scaler of 0": (
        lambda c: replace(c, scaler={"scale": 0.0}),
        "scaler holds a number that is not above 0",
    ),
    "nothing selected": (lambda c: replace(c, selected={}), "lacks weights chosen so far"),
    "selected too late": (
        lambda c: replace(c, selected={**c.selected, "update": 10**6, "score": 0.5}),
        "selected holds update 1000000 of",
    ),
    "selected without a score": (
        lambda c: replace(c, selected={**c.selected, "update": 1, "score": None}),
        "selected holds update 1 of",
    ),
    "selected weights of another network": (
        lambda c: replace(c, selected={**c.selected, "weights": {"a": torch.zeros(1)}}),
        "selected lacks ",
    ),
}


def without_first(c: Checkpoint) -> Checkpoint:
    return replace(c, optimizer={"state": without(c.optimizer["state"], 0)})


@pytest.mark.parametrize("how", DAMAGED)
def test_what_another_step_or_hand_wrote(stopped: tuple[Checkpoint, Check], how: str) -> None:
    found, check = stopped
    damage, says = DAMAGED[how]
    with pytest.raises(UserError) as error:
        check(damage(found), "checkpoint run/last.ckpt")
    assert says in str(error.value)
    assert str(error.value).startswith("checkpoint run/last.ckpt")
    assert str(error.value).endswith("; delete it to start the step again")
    assert "\n" not in str(error.value)
    check(found, "it")  # nothing of the damaged one has stayed


def test_the_one_before_is_used(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the run ends with the weights of one that nothing happened to."""
    few = ("--method", "finetune", "--steps", "1", "--train.epochs", "3", "--model.width", "4")
    out, last = tmp_path / "run", tmp_path / "run" / "last.ckpt"
    assert start(root, tmp_path / "whole", *few) == 0
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 2, True)
        assert start(root, out, *few) == 130
    found = Checkpoint.load(last)
    assert found is not None
    momentum(found, {"momentum_buffer": "x"}).save(last)  # its checksum fits
    capsys.readouterr()
    assert start(root, out, *few) == 0
    said = capsys.readouterr().err
    assert "optimizer: 0.momentum_buffer is a str, expected " in said
    assert "; going on from before.ckpt, after epoch 1" in said
    assert weights(out) == weights(tmp_path / "whole")


def test_one_line_where_there_is_none_before(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = options(root, tmp_path / "run", "--steps", "1", "--model.width", "4")
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 1, True)
        assert cli.main(command) == 130
    found = Checkpoint.load(tmp_path / "run" / "last.ckpt")
    assert found is not None
    weight(found, first(found)[None]).save(tmp_path / "run" / "last.ckpt")
    capsys.readouterr()
    assert cli.main(command) == 2
    assert last_line(capsys.readouterr().err).endswith("; delete it to start the step again")
