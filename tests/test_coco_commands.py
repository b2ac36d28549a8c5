"""train, eval, scenario and add on COCO files; an option says what counts nowhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import only_line, start

from segrow import cli
from segrow.data import open_dataset
from segrow.errors import UserError
from segrow.grow import AddOptions, plan_addition

pytest.importorskip("pycocotools.mask", reason='needs pip install "segrow[coco]"')

SIZE = (40, 48)
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "ignore": (90, 90, 90)}


def coco_file(path: Path, folder: Path, names: list[str], n: int) -> None:
    """n images with a square of each class, and a corner to ignore."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    for k in range(n):
        image = np.random.default_rng(k).integers(90, 150, (*SIZE, 3)).astype(np.uint8)
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]})
        for c, name in enumerate(names, start=1):
            x = 14 * c - 12
            image[5:25, x : x + 12] = COLOURS[name]
            corners = [x, 5, x + 12, 5, x + 12, 25, x, 25]
            content["annotations"].append(
                {"id": 10 * k + c, "image_id": k, "category_id": c, "segmentation": [corners]}
            )
        Image.fromarray(image).save(folder / f"{k}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("coco")
    for split, n in (("train", 8), ("val", 4)):
        folder = place / "images" / split
        coco_file(place / f"annotations/instances_{split}.json", folder, list(COLOURS), n)
    return place


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "coco"
    words = ("--data.name", "folder", "--data.classes", "red", "--task", "offline", "--method", "finetune")
    more = ("--train.epochs", "1", "--train.crop_val", "false")
    assert start(root, out, *words, *more) == 0
    return out


def test_train_and_eval(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["classes"] == ["background", "red"]
    assert any('pixels of "ignore" (8 annotations) count nowhere' in str(r) for r in results["remarks"])
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--data.root", str(root), "--workers", "0", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["steps"][0]["per_class"].keys() == {"background", "red"}
    matrix = np.array(results["steps"][0]["matrix"])
    assert int(matrix.sum()) == 4 * (SIZE[0] * SIZE[1] - 12 * 20)  # what is ignored is not counted


def test_add_from_the_file_of_one_split(run: Path, root: Path) -> None:
    plan = plan_addition(run, root / "annotations/instances_train.json", ["blue"], AddOptions())
    assert len(plan.new.ids) == 8
    assert any('pixels of "ignore"' in note for note in plan.notes)
    plan = plan_addition(run, root, ["ignore"], AddOptions(ignore=("none",)))
    assert plan.classes == ("ignore",)
    plan = plan_addition(run, root, ["blue"], AddOptions(ignore=("red", "ignore")))
    assert any('pixels of "red" (8 annotations) count nowhere; as --ignore says' in n for n in plan.notes)


@pytest.mark.parametrize("command", ["scenario", "train", "eval"])
def test_every_command_takes_the_option(
    command: str, run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "scenario": ["scenario", "--data.name", "folder", "--task", "offline"],
        "train": ["train", "--data.name", "folder", "--task", "offline", "--out", str(run.parent / "no")],
        "eval": ["eval", str(run), "--workers", "0"],
    }[command]
    assert cli.main([*words, "--data.root", str(root), "--data.ignore", "snow"]) == 2
    assert 'has no category "snow" to ignore; its categories are blue, ignore, red' in only_line(
        capsys.readouterr().err
    )


def test_add_says_it_too(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["add", str(run), "--data", str(root), "--classes", "blue", "--dry-run"]
    assert cli.main([*words, "--ignore", "ignore"]) == 0
    assert "learns blue from 8 images" in capsys.readouterr().out
    assert cli.main([*words, "--ignore", "snow"]) == 2
    assert 'has no category "snow" to ignore' in only_line(capsys.readouterr().err)


def test_where_it_has_nothing_to_act_on() -> None:
    with pytest.raises(UserError, match=r"names categories of a folder .* not of voc; leave it out"):
        open_dataset("voc", "x", ignore=("a",))


def test_a_single_file_holds_a_fifth_out(tmp_path: Path) -> None:
    coco_file(tmp_path / "a.json", tmp_path / "images", ["red"], 10)
    data = open_dataset("folder", str(tmp_path))
    assert (len(data.ids("train")), len(data.ids("val"))) == (8, 2)
    assert not set(data.ids("train")) & set(data.ids("val"))
    assert "so 2 of 10 images are held out, chosen by their names" in data.notes[-1]
    for split in ("train", "val"):
        assert data.presence(split, progress=False).present.all()  # type: ignore[arg-type]


def cvat(root: Path) -> Path:
    """RGB masks of one class and of what must not count."""
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    for k in range(4):
        image = np.random.default_rng(k).integers(90, 150, (*SIZE, 3)).astype(np.uint8)
        mask = np.zeros((*SIZE, 3), np.uint8)
        image[5:25, 20:32], mask[5:25, 20:32], mask[:4] = COLOURS["blue"], (9, 8, 7), (255, 255, 255)
        Image.fromarray(image).save(root / f"JPEGImages/{k}.png")
        Image.fromarray(mask).save(root / f"SegmentationClass/{k}.png")
    (root / "labelmap.txt").write_text("background:0,0,0::\nblue:9,8,7::\nignore:255,255,255::\n")
    return root


def test_a_step_on_stated_colours(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = cvat(tmp_path / "cvat")
    words = ["add", str(run), "--data", str(root), "--classes", "blue", "--out", str(tmp_path / "grown")]
    small = ["--epochs", "1", "--views", "1", "--crop", "32", "--workers", "0", "--device", "cpu"]
    assert cli.main([*words, *small, "--saliency", "none"]) == 0, capsys.readouterr().err
    assert "ignore count nowhere" in capsys.readouterr().out
    assert (
        cli.main(
            [
                "eval",
                str(tmp_path / "grown"),
                "--data.root",
                str(root),
                "--data.name",
                "folder",
                "--workers",
                "0",
            ]
        )
        == 0
    )
