"""A folder without validation images: the same fifth is held out by every command, and said."""

import json
import shutil
from pathlib import Path

import pytest
from runs import options
from trees import Tree, folder_tree

from segrow.cli import main
from segrow.data import open_dataset
from segrow.data.folder import FolderDataset

FOLDER = ("--data.name", "folder", "--data.classes", "apple,pear,plum", "--method", "finetune")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    tree = folder_tree(tmp_path / "fruit", train=20, val=0, saliency=True, suffix="jpg")
    for kind, suffix in (("images", "jpg"), ("masks", "png"), ("saliency", "png")):
        (tree.root / kind / "train/deep").mkdir()
        for k in range(6):  # ids of sub-folders go through all that follows
            file = tree.root / kind / f"train/train{k:04d}.{suffix}"
            file.rename(file.parent / "deep" / file.name)
    return tree


def flat(tree: Tree) -> None:
    for kind in ("images", "masks"):
        (tree.root / kind / "train").rename(tree.root / "all")
        shutil.rmtree(tree.root / kind)
        (tree.root / "all").rename(tree.root / kind)
    shutil.rmtree(tree.root / "saliency")


@pytest.mark.parametrize("layout", ["split", "flat"])
def test_a_fifth_is_held_out_always_the_same(tree: Tree, layout: str) -> None:
    if layout == "flat":
        flat(tree)
    data = open_dataset("folder", str(tree.root))
    train, val = set(data.ids("train")), set(data.ids("val"))
    assert (len(train), len(val)) == (16, 4)
    assert not train & val
    assert any("/" in i for i in val)
    assert open_dataset("folder", str(tree.root)).ids("val") == data.ids("val")
    (note,) = data.notes
    assert "has no images/val, so 4 of 20 images are held out for validation" in note
    present = data.presence("val", progress=False)
    assert present.ids == data.ids("val")
    assert data.image("val", present.ids[0]).shape == (24, 32, 3)
    whole = FolderDataset(tree.root)  # as add takes it
    assert (len(whole.ids("train")), whole.ids("val"), whole.notes) == (20, (), ())


def test_an_image_that_is_added_moves_few_others(tree: Tree) -> None:
    before = set(open_dataset("folder", str(tree.root)).ids("val"))
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        folder = tree.root / kind / "train"
        shutil.copy(folder / f"train0010.{suffix}", folder / f"new.{suffix}")
    assert len(before & set(open_dataset("folder", str(tree.root)).ids("val"))) >= 3


def test_a_single_image_cannot_be_divided(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "one", train=1, val=0)
    assert open_dataset("folder", str(tree.root)).ids("val") == ()


@pytest.mark.usefixtures("undrawn")
def test_train_resume_scenario_report_and_eval_agree(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = tmp_path / "run", str(tree.root)
    command = options(tree.root, run, *FOLDER, "--task", "1-1", "--train.epochs", "1", "--memory.size", "6")
    assert main([*command, "--steps", "1"]) == 0
    assert main([*command, "--report", "true"]) == 0  # goes on, and draws pictures
    said = capsys.readouterr().err
    assert "4 of 20 images are held out" in said
    assert "step 0  done before" in said
    assert "no report" not in said
    results = json.loads((run / "results.json").read_text())
    assert any("4 of 20 images are held out" in remark for remark in results["remarks"])
    assert results["evaluation"]["images"] == 4
    stored = json.loads((run / "steps/02/model/memory.json").read_text())
    assert any("/" in e["image"] for e in (stored if isinstance(stored, list) else stored["exemplars"]))

    listing = ["scenario", "--data.name", "folder", "--data.root", root, "--task", "1-1", "--json"]
    assert main(listing) == 0
    shown = {i for step in json.loads(capsys.readouterr().out)["steps"] for i in step["images"]}
    assert len(shown) == 16

    file = tmp_path / "matrix.json"
    arguments = ["eval", str(run), "--data.root", root, "--workers", "0", "--out", str(file)]
    counted = {}
    for split in ("val", "train", "all"):
        assert main([*arguments, "--split", split]) == 0
        matrix = json.loads(file.read_text())
        counted[split] = matrix["n_images"]
        if split == "val":
            assert matrix["steps"][0]["matrix"] == results["steps"][-1]["matrix"]
    assert counted == {"val": 4, "train": 16, "all": 20}
    added = ["add", str(run), "--data", root, "--classes", "fig", "--exemplars", root, "--dry-run"]
    (tree.root / "classes.txt").write_text("background\napple\npear\nfig\n")
    capsys.readouterr()
    assert main(added) == 2  # exemplars of a class that the folder no longer has
    assert 'has no class "plum"' in capsys.readouterr().err


def test_all_is_for_folders_without_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = folder_tree(tmp_path / "fruit", suffix="jpg")
    command = options(tree.root, tmp_path / "run", *FOLDER, "--task", "offline", "--train.epochs", "1")
    assert main(command) == 0
    assert main(["eval", str(tmp_path / "run"), "--data.root", str(tree.root), "--split", "all"]) == 2
    assert "has validation images of its own; give --split val or train" in capsys.readouterr().err
