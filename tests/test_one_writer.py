"""A second command that writes into a folder is told who writes there, and changes nothing."""

from pathlib import Path

import pytest
from locks import locked_elsewhere
from runs import build_tree, only_line, snapshot, start

from segrow import cli
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import save_model

NAMES = ["background", "cat", "dog"]
META = {
    "step": 0,
    "class_names": NAMES,
    "scenario": {"data": "voc", "task": "2-1", "setting": "overlap", "classes": NAMES},
    "method": {"name": "finetune", "fields": {}},
    "protocol": {"crop_val": False, "crop": 64},
}


def network() -> Segmenter:
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
    return build_segmenter(config, 2, False, lambda line: None)


@pytest.mark.parametrize(
    "words",
    [
        ["rename-class", "MODEL", "cat", "tiger"],
        ["remove-class", "MODEL", "cat"],
        ["rollback", "MODEL", "--to-step", "0"],
    ],
    ids=lambda words: words[0],
)
def test_a_model_directory(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "models" / "animals"
    save_model(network(), model, META)
    assert cli.main(["rename-class", str(model), "dog", "wolf"]) == 0
    before = snapshot(model)
    capsys.readouterr()
    with locked_elsewhere(model, "segrow add") as pid:
        assert cli.main([word.replace("MODEL", str(model)) for word in words]) == 2
        line = only_line(capsys.readouterr().err)
        assert f"{model} is being written by segrow add (process {pid} on " in line
        with pytest.raises(UserError, match="is being written by segrow add"):
            save_model(network(), model, META)
    assert snapshot(model) == before
    assert cli.main([word.replace("MODEL", str(model)) for word in words]) == 0  # it was killed


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    with locked_elsewhere(tmp_path / "run", "segrow train"):
        assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 2
        assert "is being written by segrow train (process " in only_line(capsys.readouterr().err)
        assert not (tmp_path / "run").exists()
    assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 0
