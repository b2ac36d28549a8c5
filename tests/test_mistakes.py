"""Mistakes around a run's folder, its data and its files: one line, exit code 2, nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from runs import last_line, only_line, start
from trees import folder_tree, voc_tree

from segrow import cli
from segrow.data.files import read_saliency


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch a step."""
    out = tmp_path_factory.mktemp("done") / "run"
    assert start(root, out, "--train.epochs", "1") == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    line = only_line(capsys.readouterr().err)
    assert code == 2, line
    for word in words:
        assert word in line


@pytest.mark.parametrize("method", ["finetune", "joint", "ssul"])
def test_printed_configuration_trains_the_same_method(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--method", method, "--method.loss_type", "bce", "--print_config"]
    assert cli.main(argv) == 0
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["method"]["name"] == method
    (tmp_path / "c.yaml").write_text(first)
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == first


def test_resume_on_changed_data_is_refused(
    root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = "ImageSets/Segmentation"
    for name, what in (("train_aug.txt", "step 0: other training images"), ("val.txt", "evaluation:")):
        data, out = tmp_path / name / "VOC2012", tmp_path / name / "run"
        shutil.copytree(root, data)
        shutil.copytree(done, out)
        ids = (data / lists / name).read_text().split()
        (data / lists / name).write_text("\n".join(ids[1:]))
        for mask in (data / "SegmentationClassAug").glob(f"{ids[0]}.png"):
            mask.unlink()  # else a note says that it is in no list
        refused(capsys, start(data, out, "--train.epochs", "1"), "the data have changed", what)


def test_another_base_is_another_configuration(
    root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    refused(capsys, start(root, out, "--train.epochs", "1", "--base", str(done)), "base: None there", "here")


def test_memory_for_joint_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = start(root, tmp_path / "run", "--method", "joint", "--memory.size", "6")
    refused(capsys, code, "--memory.size 6", "joint", "sees all images")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "why"), [("results.json", "{", "is not JSON"), ("config.yaml", "a: [", "is not YAML")]
)
def test_damaged_files_of_a_run(
    name: str,
    content: str,
    why: str,
    root: Path,
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    (out / name).write_text(content)
    refused(capsys, start(root, out, "--train.epochs", "1"), name, why, "train again")


def test_out_below_a_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert start(root, tmp_path / "file" / "run") == 2
    line = last_line(capsys.readouterr().err)
    assert "cannot be written (File exists); choose another place: a part of that path is a file" in line


def test_a_kill_during_the_first_write_leaves_a_usable_folder(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml.tmp").write_text("half")
    assert start(root, out, "--train.epochs", "1") == 0


def test_values_of_a_method(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, start(root, tmp_path / "a", "--method.threshold", "7"), "threshold is 7.0", "0 to 1")
    refused(capsys, start(root, tmp_path / "b", "--method.background_lr", "-1"), "background_lr is -1.0")


def test_options_of_the_small_commands(
    root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["scenario", "--data.root", str(root), "--data.order_seed", "-3"])
    refused(capsys, code, "order_seed is -3")
    out = str(tmp_path / "none" / "x.json")
    refused(capsys, cli.main(["eval", str(done), "--data.root", str(root), "--out", out]), "does not exist")


def test_evaluation_where_there_is_nothing_to_see(
    root: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = voc_tree(tmp_path / "VOC2012", train=4, val=4, classes=(9, 10)).root
    code = cli.main(["eval", str(done), "--data.root", str(blank), "--json"])
    refused(capsys, code, "no val image of", "shows a class that the model knows")
    fruit = folder_tree(tmp_path / "fruit").root
    code = cli.main(["eval", str(done), "--data.name", "folder", "--data.root", str(fruit), "--json"])
    refused(capsys, code, "knows none of the model's classes", "aeroplane", "apple")


def test_a_cut_off_image_is_found_before_anything_is_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "VOC2012"
    shutil.copytree(root, data)
    image = sorted((data / "JPEGImages").iterdir())[-1]
    image.write_bytes(image.read_bytes()[: image.stat().st_size * 2 // 3])
    refused(capsys, start(data, tmp_path / "run"), image.name)
    assert not (tmp_path / "run").exists()


def test_alpha_is_not_saliency(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[1, 2, :3] = 9
    Image.fromarray(pixels).save(tmp_path / "s.png")
    assert read_saliency(tmp_path / "s.png").sum() == 1


def test_results_show_the_cost(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", str(done), "--cost", "--per_class", "--markdown"]) == 0
    text = capsys.readouterr().out
    steps = json.loads((done / "results.json").read_text())["steps"]
    assert "trainable / all (M)" in text
    for step in steps:
        assert (
            f"| {step['step']} | {step['images']} + {step['exemplars']} | {step['cost']['iterations']} |"
            in text
        )
