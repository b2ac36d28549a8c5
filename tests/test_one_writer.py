"""A second command that writes into a folder is told who writes there, and changes nothing."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from locks import locked_elsewhere
from PIL import Image
from runs import build_tree, last_line, only_line, snapshot, start
from trees import folder_tree

from segrow import cli
from segrow.atomic import new_file
from segrow.commands import import_ssul
from segrow.commands.pages import write_page
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.methods.base import make_method
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


def test_an_import_beside_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both write into one folder, which neither has made yet."""
    root, out = build_tree(tmp_path / "VOC2012").root, tmp_path / "new"
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)

    def read(*_: Any) -> Segmenter:
        return build_segmenter(config, 20, False, lambda line: None)

    monkeypatch.setattr(import_ssul, "read_reference_checkpoint", read)
    words = ["import-ssul", "any.pth", "--out", str(out), "--task", "offline", "--step", "0"]
    with locked_elsewhere(out, "segrow train") as pid:
        assert cli.main(words) == 2
        assert f"{out} is being written by segrow train (process {pid} on " in only_line(
            capsys.readouterr().err
        )
        assert not out.exists()
    with locked_elsewhere(out, "segrow import-ssul") as pid:
        assert start(root, out) == 2
        assert f"{out} is being written by segrow import-ssul (process {pid} on " in only_line(
            capsys.readouterr().err
        )
        assert not out.exists()
    assert cli.main(words) == 0
    before = snapshot(out)
    capsys.readouterr()
    assert start(root, out) == 2  # what the first has written is no run
    assert str(out) in only_line(capsys.readouterr().err)
    assert snapshot(out) == before


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    with locked_elsewhere(tmp_path / "run", "segrow train"):
        assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 2
        assert "is being written by segrow train (process " in only_line(capsys.readouterr().err)
        assert not (tmp_path / "run").exists()
    run = tmp_path / "run"
    assert start(root, run, "--train.epochs", "1", "--steps", "1") == 0
    capsys.readouterr()
    report = ["report", str(run), "--images", "0"]
    with locked_elsewhere(run, "segrow train"):  # a report only reads what stands whole
        before = snapshot(run)
        assert cli.main(report) == 0
        assert {name: snapshot(run)[name] for name in before} == before
        assert start(root, run, "--train.epochs", "1", "--steps", "1") == 2
        capsys.readouterr()
    with locked_elsewhere(run / "report_figures", "segrow report") as pid:
        holder = f"{run / 'report_figures'} is being written by segrow report (process {pid} on "
        assert cli.main(report) == 2
        assert holder in only_line(capsys.readouterr().err)
        said: list[str] = []
        write_page(run, make_method("finetune", {}), said.append)  # as train does after a step
        (line,) = said
        assert holder in line
        assert line.endswith(f"`segrow report {run}` tries again")


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


def test_two_predictions_into_one_folder(tmp_path: Path) -> None:
    """They share it: each file is whole by itself, and none is taken for that of a dead writer."""
    model, photos, out = tmp_path / "animals", tmp_path / "photos", tmp_path / "out"
    save_model(network(), model, META)
    photos.mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(photos / f"{k}.png")
    words = ["predict", str(model), str(photos), "--device", "cpu", "--out"]
    assert cli.main([*words, str(tmp_path / "alone")]) == 0
    children = []
    with new_file(out / "0.png") as slow:  # a third one is in the middle of a file
        slow.write(b"half")
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                os._exit(cli.main([*words, str(out)]))
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
        expected = {name: content for name, (_, content) in snapshot(tmp_path / "alone").items()}
        found = {name: content for name, (_, content) in snapshot(out).items() if not name.endswith(".tmp")}
        assert found == expected
    assert (out / "0.png").read_bytes() == b"half"
    assert sorted(snapshot(out)) == sorted(expected)
