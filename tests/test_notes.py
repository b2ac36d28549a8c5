"""What is decided for the user's files is told in every command that reads them, a line per kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import options
from trees import Tree, folder_tree

from segrow.cli import main
from segrow.data.folder import FolderDataset

SAYS = "train: 1 of 12 masks has three equal colour channels, which are taken as grey (first train0000)"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A folder whose first mask was saved as RGB."""
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    tree = folder_tree(tmp_path / "fruit", suffix="jpg")
    file = tree.root / "masks/train/train0000.png"
    Image.fromarray(np.stack([np.array(Image.open(file))] * 3, axis=2)).save(file)
    return tree


def test_a_note_is_said_each_time_though_the_mask_is_read_once(tree: Tree) -> None:
    for _ in range(2):
        data = FolderDataset(tree.root)
        assert data.notes == ()
        present = data.presence("train", progress=False)
        assert data.notes == present.notes == (SAYS,)
        data.presence("val", progress=False)
        data.presence("train", progress=False)
        assert data.notes == (SAYS,)


def test_scenario_says_it_on_stderr(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tree.root)
    assert main(["scenario", "--data.name", "folder", "--data.root", root, "--task", "1-1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"note: {SAYS}\n"
    json.loads(out)


def test_train_eval_and_add_say_it(tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, root = tmp_path / "run", str(tree.root)
    folder = (
        "--data.name",
        "folder",
        "--data.classes",
        "apple,pear",
        "--task",
        "offline",
        "--method",
        "finetune",
    )
    for _ in range(2):  # the second call finds the run complete
        assert main(options(tree.root, run, *folder, "--train.epochs", "1")) == 0
        assert f"note: {SAYS}\n" in capsys.readouterr().err
        assert SAYS in json.loads((run / "results.json").read_text())["remarks"]
    file = tmp_path / "matrix.json"
    arguments = ["--data.root", root, "--split", "train", "--workers", "0", "--out", str(file)]
    assert main(["eval", str(run), *arguments]) == 0
    assert f"note: {SAYS}\n" in capsys.readouterr().err
    unknown = f"{root}: the model does not know plum; their pixels count as background"
    assert json.loads(file.read_text())["notes"] == [SAYS, unknown]
    assert main(["add", str(run), "--data", root, "--classes", "plum", "--dry-run"]) == 0
    assert f"note: {SAYS}\n" in capsys.readouterr().out


def test_an_error_stays_one_line(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["scenario", "--data.name", "folder", "--data.root", str(tree.root), "--data.classes", "fig"]
    assert main([*command, "--task", "offline"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
