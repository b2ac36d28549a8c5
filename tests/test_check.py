"""`segrow data check`: everything that is wrong with a tree, and what it holds."""

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import last_line, only_line, results
from trees import Tree, ade_tree, folder_tree, save_mask, voc_tree

from segrow import cli
from segrow.data import parallel
from segrow.data.examine import Files, examine
from segrow.data.exclude import read_exclusion
from segrow.data.masks import Values
from segrow.errors import UserError

Capture = pytest.CaptureFixture[str]
SIZE = (40, 48)
SHORT = ("--train.epochs", "1", "--train.batch_size", "2", "--train.crop", "32", "--train.workers", "0")
NETWORK = ("--model.name", "deeplabv3_test_resnet", "--model.weights", "none", "--model.width", "8")


def tree_of(kind: str, root: Path) -> tuple[Tree, Callable[[str, str, str], Path]]:
    """A tree, and the path of an image, mask or saliency map of it."""
    four = [{k % 4 + 1} for k in range(20)]
    if kind == "voc":
        tree = voc_tree(root / "VOC2012", train=four, val=four[:5], size=SIZE)
        names = {"image": "JPEGImages/{1}.jpg", "mask": "SegmentationClassAug/{1}.png"}
        names["saliency"] = "saliency_map/{1}.png"
    elif kind == "ade20k":
        tree = ade_tree(root / "ADEChallengeData2016", train=four, val=four[:5], size=SIZE)
        names = {"image": "images/{0}/{1}.jpg", "mask": "annotations/{0}/{1}.png", "saliency": ""}
    else:
        classes = ("background", "a", "b", "c", "d")
        tree = folder_tree(root / "folder", classes, four, four[:5], size=SIZE, saliency=True)
        names = {"image": "images/{0}/{1}.png", "mask": "masks/{0}/{1}.png"}
        names["saliency"] = "saliency/{0}/{1}.png"

    def path(what: str, split: str, image_id: str) -> Path:
        folder = {"train": "training", "val": "validation"}[split] if kind == "ade20k" else split
        return tree.root / names[what].format(folder, image_id)

    return tree, path


def check(root: Path, capsys: Capture, *more: str, code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["data", "check", str(root), "--json", *more]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    loaded: dict[str, Any] = json.loads(captured.out)
    return loaded


def found(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(problem["image"], problem["kind"]) for problem in report["problems"]}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def enlarge(path: Path) -> None:
    with Image.open(path) as image:
        larger = image.resize((SIZE[1] + 4, SIZE[0]), Image.Resampling.NEAREST)
    larger.save(path)


def other_value(path: Path) -> None:
    mask = np.array(Image.open(path))
    mask[:3, :5] = 201
    save_mask(mask, path)


def again(path: Path, other: Path) -> None:
    """The pixels of another image, in another kind of file when the suffix is another one."""
    with Image.open(other) as image:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
    path.write_bytes(buffer.getvalue())


def damage(kind: str, tree: Tree, path: Callable[[str, str, str], Path], seed: int) -> set[tuple[str, str]]:
    """Damage some images of a tree, each in another way; what a check must find."""
    rng = np.random.default_rng(seed)
    paired = kind != "voc"  # of a list every file has its own line
    chosen = [("train", tree.ids("train")[k]) for k in rng.permutation(20)[:8]]
    chosen += [("val", tree.ids("val")[k]) for k in rng.permutation(5)[:2]]
    free = next(i for i in tree.ids("val") if ("val", i) not in chosen)
    whole = next(i for i in tree.ids("train") if ("train", i) not in chosen)
    ways: list[tuple[Callable[[str, str], object], str]] = [
        (lambda s, i: again(path("image", s, i), path("image", "val", free)), "copy"),
        (lambda s, i: again(path("image", s, whole), path("image", s, i)), ""),
        (lambda s, i: cut(path("image", s, i)), "image"),
        (lambda s, i: path("image", s, i).write_bytes(b"no image"), "image"),
        (lambda s, i: path("image", s, i).unlink(), "pair" if paired else "image"),
        (lambda s, i: cut(path("mask", s, i)), "mask"),
        (lambda s, i: other_value(path("mask", s, i)), "value"),
        (lambda s, i: enlarge(path("mask", s, i)), "size"),
        (lambda s, i: path("mask", s, i).unlink(), "pair" if paired else "mask"),
        (lambda s, i: Image.new("RGB", SIZE[::-1], (9, 8, 7)).save(path("mask", s, i)), "mask"),
    ]
    expected = {(f"train/{max(whole, chosen[1][1])}", "copy")}
    for (split, image_id), (way, says) in zip(chosen, ways, strict=True):
        way(split, image_id)
        if says:
            expected.add((f"{split}/{image_id}", says))
    if kind != "ade20k":  # which has no saliency maps
        there = tree.ids("train")
        rest = [i for i in there if ("train", i) not in chosen and i != whole]
        cut(path("saliency", "train", rest[0]))
        Image.new("1", (5, 5), 1).save(path("saliency", "train", rest[1]))
        expected |= {(f"train/{i}", "saliency") for i in rest[:2]}
    return expected


@pytest.mark.parametrize("kind", ["voc", "ade20k", "folder"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_damaged_is_found_and_nothing_else(
    kind: str, seed: int, tmp_path: Path, capsys: Capture
) -> None:
    tree, path = tree_of(kind, tmp_path)
    assert check(tree.root, capsys, code=0)["problems"] == []
    expected = damage(kind, tree, path, seed)
    report = check(tree.root, capsys, "--fix-list", str(tmp_path / "bad.txt"), code=1)
    assert found(report) == expected
    assert len(report["problems"]) == len(expected)
    listed = read_exclusion(str(tmp_path / "bad.txt")).images
    assert listed == {image for image, problem in expected if problem != "saliency"}
    assert set(report["leave_out"]) == listed
    maps = {(image, problem) for image, problem in expected if problem == "saliency"}
    left = check(tree.root, capsys, "--data.exclude", str(tmp_path / "bad.txt"), code=1 if maps else 0)
    assert found(left) == maps


@pytest.mark.parametrize(("kind", "seed"), [("voc", 10), ("folder", 11)])
def test_train_runs_on_what_is_left(kind: str, seed: int, tmp_path: Path, capsys: Capture) -> None:
    tree, path = tree_of(kind, tmp_path)
    expected = damage(kind, tree, path, seed)
    classes = "aeroplane,bicycle,bird,boat" if kind == "voc" else "a,b,c,d"
    bad, out = str(tmp_path / "bad.txt"), tmp_path / "run"
    check(tree.root, capsys, "--fix-list", bad, code=1)
    words = ["train", "--data.name", kind, "--data.root", str(tree.root), "--data.classes", classes]
    words += ["--task", "2-2", "--method", "finetune", "--report", "false", "--train.device", "cpu"]
    words += [*NETWORK, *SHORT, "--out", str(out)]
    assert cli.main(words) == 2
    assert cli.main([*words, "--strict", "--data.exclude", bad]) == 0
    bad_ones = {image for image, problem in expected if problem != "saliency"}
    assert results(out)["training"]["images"] == 20 - sum(i.startswith("train/") for i in bad_ones)


def test_a_task_that_cannot_be_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    tree = folder_tree(tmp_path / "data", ("background", "a", "b"), [{1}, {2}], [{2}], size=(10, 12))
    assert cli.main(["data", "check", str(tree.root), "--task", "5-1"]) == 2
    assert "task 5-1 does not add up" in last_line(capsys.readouterr().err)


def test_numbers_of_classes_and_steps(tmp_path: Path, capsys: Capture) -> None:
    names = ("background", "a", "b", "c")
    tree = folder_tree(tmp_path / "data", names, [{1}, {1, 2}, {3}, {0}, {3}], [{2}], size=(10, 12))
    save_mask(np.full((10, 12), 255, np.uint8), tree.root / "masks/train/train0004.png")
    report = check(tree.root, capsys, "--task", "2-1", code=0)
    train = report["splits"]["train"]
    masks = [np.array(Image.open(path)) for path in sorted((tree.root / "masks/train").glob("*.png"))]
    for value, name in enumerate(names):
        row = train["per_class"][value]
        assert row["class"] == name
        assert row["images"] == sum((mask == value).any() for mask in masks)
        assert row["pixels"] == sum((mask == value).sum() for mask in masks)
    assert train["empty"] == {"background and ignored": ["train0003"], "ignored": ["train0004"]}
    assert any("hold only 0 and the value that means" in note for note in report["notes"])
    assert train["saliency"] == {"missing": 5}
    steps = report["steps"]
    assert [(step["images"], [c["class"] for c in step["classes"]]) for step in steps] == [
        (2, ["a", "b"]),
        (1, ["c"]),
    ]
    assert steps[0]["classes"][0]["pixels"] == train["per_class"][1]["pixels"]


def test_values_outside_are_counted_over_the_tree(tmp_path: Path, capsys: Capture) -> None:
    tree, path = tree_of("folder", tmp_path)
    for k in (2, 4):
        other_value(path("mask", "train", tree.ids("train")[k]))
    report = check(tree.root, capsys, code=1)
    assert report["splits"]["train"]["outside"] == [{"value": 201, "pixels": 30, "images": 2}]
    text = next(p["text"] for p in report["problems"])
    assert "has values that are not a class: 201 (15 pixels)" in text


def test_what_is_printed(tmp_path: Path, capsys: Capture) -> None:
    tree, path = tree_of("folder", tmp_path)
    assert cli.main(["data", "check", str(tree.root)]) == 0
    said = capsys.readouterr().out
    assert "train: 20 images, 20 usable; masks 20 PNG P; saliency maps 20 there" in said
    assert said.splitlines()[-1] == f"{tree.root}: nothing is wrong"
    for image_id in tree.ids("train"):
        cut(path("image", "train", image_id)) if image_id > "train0000" else None
    assert cli.main(["data", "check", str(tree.root), "--task", "4-0"]) == 2  # the task, not the data
    assert cli.main(["data", "check", str(tree.root), "--fix-list", str(tmp_path / "bad")]) == 1
    said = capsys.readouterr().out
    assert f"image: train/train0001: image {path('image', 'train', 'train0001')} cannot be decoded" in said
    assert said.splitlines()[-1] == (
        f"{tree.root}: 19 problems; {tmp_path / 'bad'} lists 19 images for segrow train --data.exclude"
    )


def test_nothing_left_is_a_report_not_a_crash(tmp_path: Path, capsys: Capture) -> None:
    tree, _ = tree_of("folder", tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(tree.root / "masks" / split)
        (tree.root / "masks" / split).mkdir()
    report = check(tree.root, capsys, code=1)
    assert len(report["problems"]) == 26
    assert len(report["leave_out"]) == 25
    assert "holds no image" in report["problems"][-1]["text"]
    assert cli.main(["data", "check", str(tree.root), "--task", "2-2"]) == 1


def test_masks_that_hold_only_the_ignored_value_are_wrong_together(tmp_path: Path, capsys: Capture) -> None:
    tree, path = tree_of("folder", tmp_path)
    for image_id in tree.ids("train"):
        save_mask(np.full(SIZE, 255, np.uint8), path("mask", "train", image_id))
    report = check(tree.root, capsys, code=1)
    assert "so nothing is annotated" in report["problems"][0]["text"]
    assert report["leave_out"] == []


def test_mistakes_in_the_call(tmp_path: Path, capsys: Capture) -> None:
    for words, says in (
        ([str(tmp_path / "none")], "is not there"),
        ([str(tmp_path)], "holds no annotated images"),
        ([str(tmp_path), "--data.name", "vok"], "Did you mean"),
        ([], "DIR"),
    ):
        assert cli.main(["data", "check", *words]) == 2
        assert says in last_line(capsys.readouterr().err)
    assert cli.main(["data", "chekc"]) == 2
    assert 'expected check or saliency. Did you mean "check"?' in last_line(capsys.readouterr().err)
    assert cli.main(["data"]) == 0
    assert "segrow data check DIR" in capsys.readouterr().out


def test_processes_find_the_same(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, path = tree_of("folder", tmp_path)
    expected = damage("folder", tree, path, 5)
    monkeypatch.setattr(parallel, "SERIAL", 1)
    monkeypatch.setattr(parallel, "CHUNK", 4)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert found(check(tree.root, capsys, code=1)) == expected


def test_images_of_a_coco_file(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for k in range(8):
        pixels = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]})
        box = [2, 2, 20, 2, 20, 20, 2, 20]
        annotations.append({"id": k, "image_id": k, "category_id": 1, "segmentation": [box]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert check(tmp_path, capsys, code=0)["splits"]["train"]["per_class"][1]["images"] == 8
    (tmp_path / "2.png").write_bytes(b"none")
    enlarge(tmp_path / "5.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "7.png")
    report = check(tmp_path, capsys, code=1)  # masks have been drawn
    assert found(report) == {("train/2", "image"), ("train/5", "size"), ("train/7", "copy")}
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))  # they have not
    report = check(tmp_path, capsys, "--fix-list", str(tmp_path / "bad"), code=1)
    assert found(report) == {("train/2", "pair"), ("train/5", "pair"), ("train/7", "copy")}
    assert check(tmp_path, capsys, "--data.exclude", str(tmp_path / "bad"), code=0)["problems"] == []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "AVIF", "BMP"])
def test_a_byte_anywhere_does_not_stop_it(form: str, tmp_path: Path) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(buffer, form)
    whole, path = buffer.getvalue(), str(tmp_path / "file")
    broken = 0
    for at in range(0, len(whole), max(1, len(whole) // 120)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            Path(path).write_bytes(content)
            found = examine(Files(path, path, path), Values(5, 255))
            broken += any(kind == "image" for kind, _ in found.problems)
    assert broken > 50


def test_a_process_that_is_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SERIAL", 1)
    monkeypatch.setattr(parallel, "CHUNK", 1)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with pytest.raises(UserError, match="a process that reads images was killed"):
        list(parallel.in_chunks(_die, [1, 2, 3], "reading", progress=False))


def _die(items: Sequence[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_list_never_replaces_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "classes.txt"
    other.write_text("background\ncat\n")
    for path, what in (
        (other, "is not a list of images to leave out; give another name"),
        (tmp_path, "is a folder"),
    ):
        assert cli.main(["data", "check", str(tmp_path), "--fix-list", str(path)]) == 2
        assert what in only_line(capsys.readouterr().err)
    assert other.read_text() == "background\ncat\n"
