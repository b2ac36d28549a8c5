"""A second command that writes into a folder is told who writes there, and changes nothing."""

from pathlib import Path

import pytest
from locks import locked_elsewhere
from runs import build_tree, last_line, only_line, snapshot, start
from trees import folder_tree

from segrow import cli
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.model import exchange
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

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


def test_other_commands_on_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two different commands the second is told of the first; a reader reads the old state meanwhile."""
    model = tmp_path / "animals"
    save_model(network(), model, META)
    photos = folder_tree(tmp_path / "photos", ("background", "cat", "dog"), train=[{1}], val=1).root
    before = snapshot(model)
    writers = {
        "segrow train": ["rename-class", str(model), "cat", "tiger"],
        "segrow rename-class": ["add", str(model), "--data", str(photos), "--classes", "dog=hound"],
    }
    for other, words in writers.items():
        with locked_elsewhere(model, other):
            assert cli.main(words) == 2, words
            if words[0] == "rename-class":
                assert f"is being written by {other} (process " in only_line(capsys.readouterr().err)
            words = [
                "eval",
                str(model),
                "--data.name",
                "folder",
                "--data.root",
                str(photos),
                "--workers",
                "0",
            ]
            assert cli.main(words) == 0
            assert cli.main(["lineage", str(model)]) == 0
        capsys.readouterr()
    with locked_elsewhere(photos, "segrow data saliency"):
        (tmp_path / "net.onnx").write_bytes(b"")
        assert cli.main(["data", "saliency", str(photos), "--model", str(tmp_path / "net.onnx")]) == 2
        assert "is being written by segrow data saliency (process " in last_line(capsys.readouterr().err)
    assert snapshot(model) == before


def test_a_reader_in_the_middle_of_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the two renames, by a living writer: every reader has the old model, and ends nothing."""
    model = tmp_path / "animals"
    save_model(network(), model, META)
    inner, seen = exchange.appear, []

    def appear(folder: Path, place: Path) -> None:
        if place == model:
            assert not model.exists()
            seen.append(load_model(model)[1]["class_names"])
            assert cli.main(["lineage", str(model)]) == 0
        inner(folder, place)

    monkeypatch.setattr(exchange, "appear", appear)
    assert cli.main(["rename-class", str(model), "cat", "tiger"]) == 0
    assert seen == [NAMES]
    assert load_model(model)[1]["class_names"] == ["background", "tiger", "dog"]
