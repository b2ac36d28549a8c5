"""Training in two processes that a launcher started: twice in one program, and with a mistake anywhere."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import LAUNCHERS, run_pair
from runs import build_tree, options, weights

from segrow import cli
from segrow.engine import group, run
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.run import Run
from segrow.engine.step import StepTrainer
from segrow.engine.validate import Validation
from segrow.errors import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]
TWO = ("--steps", "1", "--train.epochs", "1", "--train.devices", "2", "--train.precision", "32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("voc")).root


def rank() -> int:
    place = group.find_place()
    assert place is not None
    return place.rank


@pytest.mark.parametrize("by", LAUNCHERS)
def test_two_runs_in_one_program(root: Path, tmp_path: Path, by: str) -> None:
    """And an evaluation by the first process alone after them."""

    def body() -> int:
        codes = [cli.main(options(root, tmp_path / name, *TWO)) for name in ("one", "two")]
        if rank() == 0:
            codes.append(
                cli.main(["eval", str(tmp_path / "two"), "--data.root", str(root), "--device", "cpu"])
            )
        return max(codes)

    done = run_pair(body, by, tmp_path)
    assert done.codes == [0, 0], done.said
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def mistake(*arguments: Any, **named: Any) -> None:
    raise UserError("a mistake")


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")


def out_of_memory(*arguments: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")


@pytest.mark.parametrize(
    ("owner", "name", "fault", "line", "who"),
    [
        (run, "prepare", mistake, "a mistake", 0),  # before they are connected
        (run, "prepare", mistake, "a mistake", 1),
        (Run, "begin", mistake, "a mistake", 1),
        (
            StepTrainer,
            "_update",
            out_of_memory,
            "out of memory on the GPU (512 MiB more were asked",
            0,
        ),
        (
            StepTrainer,
            "_update",
            out_of_memory,
            "out of memory on the GPU (512 MiB more were asked",
            1,
        ),
        (Checkpoint, "save", full, "last.ckpt: No space left on device; what was written before is whole", 0),
        (Validation, "matrices", mistake, "a mistake", 0),
        (Validation, "matrices", mistake, "a mistake", 1),
    ],
)
def test_a_mistake_of_one(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    fault: Callable[..., None],
    line: str,
    who: int,
) -> None:
    """Everywhere: all stop within seconds with one line."""
    whole = getattr(owner, name)

    def faulty(*arguments: Any, **named: Any) -> Any:
        return fault(*arguments) if rank() == who else whole(*arguments, **named)

    monkeypatch.setattr(owner, name, faulty)
    by = LAUNCHERS[who]
    done = run_pair(lambda: cli.main(options(root, tmp_path / "run", *TWO)), by, tmp_path)
    lines = [each for text in done.said for each in text.splitlines() if each.startswith("segrow: ")]
    assert len(lines) == 1, done.said
    assert lines[0].startswith(f"segrow: {line}")
    assert "Traceback" not in "".join(done.said)
    assert done.codes == [2, 2]
