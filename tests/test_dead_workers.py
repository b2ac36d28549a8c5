"""A loader process that dies is one line of every command that reads images in processes."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from runs import build_tree, last_line, model, start
from torch.utils.data import get_worker_info
from trees import folder_tree

from segrow import cli
from segrow.data.loader import EvalImages, StepImages
from segrow.engine.features import _Views

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, photos of a new class, photos of an old one, and a run of one step."""
    top = tmp_path_factory.mktemp("top")
    build_tree(top / "voc")
    for name, classes in (("photos", ("background", "zebra")), ("check", ("background", "aeroplane"))):
        folder_tree(top / name, classes, train=[{1}] * 8, val=0, size=(40, 48))
    assert start(top / "voc", top / "run", "--steps", "1", "--train.epochs", "3") == 0
    return top


def dying(monkeypatch: pytest.MonkeyPatch, images: type) -> None:
    """What of these images is asked for in a process ends it, as the system does that lacks memory."""
    inner = images.__getitem__

    def item(self: object, index: object) -> object:
        if get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, index)

    monkeypatch.setattr(images, "__getitem__", item)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (StepImages, "train"),
        (EvalImages, "train"),
        (_Views, "train --steps 2"),
        (EvalImages, "eval"),
        (StepImages, "add"),
        (EvalImages, "add"),
    ],
    ids=["training", "evaluation", "kept features", "eval", "add", "gate"],
)
def test_it_is_one_line(
    top: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    images: type,
    words: str,
) -> None:
    command, *more = words.split()
    out = tmp_path / "run"
    if command != "train" or images is _Views:
        shutil.copytree(top / "run", out)
    dying(monkeypatch, images)
    if command == "train":
        given = ("--steps", "1", "--train.epochs", "3", "--train.workers", "1", *more)
        code = start(top / "voc", out, *given)
    elif command == "eval":
        code = cli.main(["eval", str(out), "--data.root", str(top / "voc"), "--workers", "1"])
    else:
        photos, check = str(top / "photos"), str(top / "check")
        given = ("--classes", "zebra", "--check", check, "--epochs", "1", "--workers", "1", "--device", "cpu")
        code = cli.main(["add", str(model(out, 0)), "--data", photos, "--out", str(tmp_path / "m"), *given])
    assert code == 2
    assert "loader process" in last_line(capsys.readouterr().err)
