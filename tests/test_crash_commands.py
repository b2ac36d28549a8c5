"""Kills of the commands that write something else than one model: add, import-ssul, report, predict, lists.

As in `test_crash.py`: all points are slow, a few are tried always.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import crash_points, in_child, litter
from matplotlib.figure import Figure
from PIL import Image
from runs import build_tree, start
from test_crash import both, models, state
from trees import folder_tree

from segrow import cli
from segrow.commands import import_ssul
from segrow.config import ModelConfig
from segrow.data.exclude import read_exclusion
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model
from segrow.report import export
from segrow.report.demo_page import write_page

__all__ = ["models"]  # a fixture
CLASSES = ("background", "lion", "dog", "zebra")


def pictures(folder: Path) -> list[str]:
    """Names of the pictures below a folder; every one can be read."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    for path in found:
        with Image.open(path) as picture:
            picture.load()
    return [str(path.relative_to(folder)) for path in found]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- add ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "photos", CLASSES, train=[{3}] * 4, val=0, size=(32, 32)).root


def adding(model: Path, photos: Path, *more: str) -> Callable[[], int]:
    images = ["--data", str(photos), "--classes", "zebra"]
    fast = ["--epochs", "1", "--batch-size", "2", "--views", "1", "--crop", "32"]
    return lambda: cli.main(["add", str(model), *images, *fast, "--workers", "0", "--device", "cpu", *more])


@both
def test_add(models: Path, photos: Path, every: bool) -> None:
    model = models / "animals"
    command = adding(model, photos)
    old, seen = state(model), set()
    for point in crash_points(command, models, every):
        found = state(model)
        seen.add(found == old)
        assert in_child(command) == (0 if found == old else 2), point  # it knows zebra already
        assert litter(models) == [], point
        assert load_model(model)[1]["class_names"] == ["background", "lion", "dog", "zebra"]
        assert state(model)[:-1] == old
        assert (model / "notes.txt").read_text() == "mine"
    assert len(seen) == 2


@both
def test_add_to_another_place(models: Path, photos: Path, every: bool) -> None:
    out = models / "new"
    command = adding(models / "animals", photos, "--out", str(out))
    old = state(models / "animals")
    for point in crash_points(command, models, every, since=0.5):
        there = out.exists()
        if there:
            assert len(state(out)) == len(old) + 1
        assert in_child(command) == (2 if there else 0), point
        assert litter(models) == [], point
        assert len(state(out)) == len(old) + 1
        assert state(models / "animals") == old


@both
def test_add_that_is_rejected(models: Path, photos: Path, every: bool) -> None:
    model, rejected = models / "animals", models / "rejected" / "animals-step-01"
    command = adding(model, photos, "--min-new", "100")
    old = state(model)
    for point in crash_points(command, models, every, since=0.5):
        assert state(model) == old
        if rejected.exists():
            load_model(rejected)
        assert in_child(command) == 3, point
        assert litter(models) == [], point
        assert load_model(rejected)[1]["class_names"][-1] == "zebra"
        assert state(model) == old


# --- other writers of a model -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("place", ["animals", "new"])
def test_import_ssul(models: Path, monkeypatch: pytest.MonkeyPatch, place: str, every: bool) -> None:
    out = models / place

    def read(*_: Any) -> Segmenter:
        config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
        return build_segmenter(config, 20, False, lambda line: None)

    monkeypatch.setattr(import_ssul, "read_reference_checkpoint", read)
    command = ["import-ssul", "any.pth", "--out", str(out), "--task", "offline", "--step", "0"]
    old = state(models / "animals")
    for point in crash_points(lambda: cli.main(command), models, every):
        if place == "new":
            assert state(models / "animals") == old
            assert not out.exists() or len(state(out)) == 1
        else:
            assert len(load_model(out)[1]["class_names"]) == (3 if state(out) == old else 21)
        assert in_child(lambda: cli.main(command)) == 0, point
        assert litter(models) == [], point
        assert len(load_model(out)[1]["class_names"]) == 21
        assert (models / "animals" / "notes.txt").read_text() == "mine"


# --- pictures and pages -------------------------------------------------------------------------------------


@both
def test_predict(models: Path, tmp_path: Path, every: bool) -> None:
    photos, work = tmp_path / "photos", tmp_path / "work"
    (photos / "more").mkdir(parents=True)
    for place in ("a.png", "more/b.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photos / place)
    work.mkdir()
    command = ["predict", str(models / "animals"), str(photos), "--out", str(work / "out"), "--unknown"]
    expected = ["a.png", "a_overlay.jpg", "a_unknown.png"]
    expected += [f"more/{name.replace('a', 'b', 1)}" for name in expected]
    for point in crash_points(lambda: cli.main(command), work, every):
        assert set(pictures(work / "out")) <= set(expected), point
        assert in_child(lambda: cli.main(command)) == 0, point
        assert pictures(work / "out") == expected, point
        assert litter(work) == [], point


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer figures, and matplotlib draws nothing: what is tried is when files are written."""

    def save(self: Figure, buffer: Any, **_: Any) -> None:
        Image.new("RGB", (2, 2)).save(buffer, "PNG")

    for several in ("_lines", "_iou", "_confusions"):
        monkeypatch.setattr(export, several, lambda *_: None)
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda self: None)
    monkeypatch.setattr(Figure, "savefig", save)


@both
@pytest.mark.usefixtures("quick_figures")
def test_report(tmp_path: Path, every: bool) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    runs = tmp_path / "runs"
    fast = ("--steps", "1", "--method", "finetune", "--train.epochs", "1", "--model.width", "4")
    assert start(root, runs / "run", *fast) == 0
    command = ["report", str(runs / "run"), "--images", "1"]
    shutil.copytree(runs, tmp_path / "whole")
    assert in_child(lambda: cli.main(["report", str(tmp_path / "whole/run"), "--images", "1"])) == 0
    whole = contents(tmp_path / "whole")
    for point in crash_points(lambda: cli.main(command), runs, every, since=0.0 if every else 0.8):
        pictures(runs)
        page = runs / "run" / "report.html"
        assert not page.exists() or page.read_text().endswith("</html>")
        for path in runs.rglob("pictures/**/*.json"):
            json.loads(path.read_text())
        assert in_child(lambda: cli.main(command)) == 0, point
        assert litter(runs) == [], point
        assert contents(runs).keys() == whole.keys(), point
        assert contents(runs)["run/report.html"] == whole["run/report.html"], point


@both
def test_the_page_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    from test_report import results, two

    work = tmp_path / "work"
    page = work / "demo" / "index.html"
    work.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "curves.png")
    stored = {"finetune": results(0, "finetune"), "ssul": results(8)}

    def write(title: str) -> None:
        write_page(page, title, two(), stored, {"mIoU": tmp_path / "curves.png"}, "segrow demo")

    write("old")
    old = page.read_bytes()
    write("new")
    new = page.read_bytes()
    write("old")
    for point in crash_points(lambda: write("new"), work, every):
        assert page.read_bytes() in (old, new), point
        assert in_child(lambda: write("new")) == 0, point
        assert page.read_bytes() == new, point


# --- lists and caches ---------------------------------------------------------------------------------------


@both
def test_the_list_of_data_check(tmp_path: Path, every: bool) -> None:
    root = folder_tree(tmp_path / "photos", CLASSES, train=[{1}, {2}, {3}], val=0, size=(16, 16)).root
    (image, *_) = sorted((root / "images/train").iterdir())
    image.write_bytes(b"damaged")
    work = tmp_path / "work"
    work.mkdir()
    fixes = work / "bad.txt"
    fixes.write_text("train/of_an_earlier_call\n")
    command = ["data", "check", str(root), "--fix-list", str(fixes)]
    old, new = {"train/of_an_earlier_call"}, {f"train/{image.stem}"}
    for point in crash_points(lambda: cli.main(command), work, every):
        assert read_exclusion(str(fixes)).images in (old, new), point
        assert in_child(lambda: cli.main(command)) == 1, point
        assert read_exclusion(str(fixes)).images == new, point
        assert litter(work) == [], point
