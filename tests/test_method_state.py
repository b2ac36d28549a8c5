"""Whoever reads a model reads its method with its state: the same label maps everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import STEPS, last_line, matrices, model, only_line, results, start
from safetensors.torch import load_file
from trees import folder_tree

import segrow
from segrow import cli
from segrow.engine.run import Run
from segrow.model.store import load_model, save_model
from segrow.report.gallery import image_iou
from segrow.stored import METHOD_STATE

OUTSIDE = ("--method", "outside.recalling", "--train.crop_val", "false")
SIZE = (40, 48)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *OUTSIDE) == 0
    return out


def photo(root: Path, image_id: str) -> np.ndarray:
    return np.array(Image.open(root / "JPEGImages" / f"{image_id}.jpg").convert("RGB"))


def validation(root: Path) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()


def label_map(folder: Path, pixels: np.ndarray, with_state: bool = True) -> np.ndarray:
    """By hand: logits, upsampled, corrected, arg max."""
    network, _ = load_model(folder)
    bias = load_file(folder / METHOD_STATE)["bias"] if with_state else 0.0
    with torch.no_grad():
        out = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        logits = F.interpolate(out.logits, size=pixels.shape[:2], mode="bilinear", align_corners=False)
        found: np.ndarray = (logits - bias).argmax(1)[0].numpy()
    return found


def matrix(folder: Path, root: Path, known: int, with_state: bool = True) -> list[list[int]]:
    """Counted from the masks; VOC's ids 1 to 4 are class indices here."""
    counts = np.zeros((5, known), int)
    for image_id in validation(root):
        mask = np.array(Image.open(root / "SegmentationClassAug" / f"{image_id}.png"))
        found = label_map(folder, photo(root, image_id), with_state)
        np.add.at(counts, (mask[mask != 255], found[mask != 255]), 1)
    counted: list[list[int]] = counts.tolist()
    return counted


def close(a: Any, b: Any) -> bool:
    """Two best scores may be equal up to rounding in a pixel or two."""
    return int(np.abs(np.subtract(a, b)).sum()) <= 4


def test_without_its_state_the_method_reads_otherwise(root: Path, whole: Path) -> None:
    """Else nothing below would show anything."""
    for step in range(STEPS):
        folder = model(whole, step)
        a, b = (np.array(matrix(folder, root, 3 + step, state)) for state in (True, False))
        assert np.abs(a - b).sum() > 0.1 * a.sum()


def test_results_and_eval(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in range(STEPS):
        expected = matrix(model(whole, step), root, 3 + step)
        assert close(results(whole)["steps"][step]["matrix"], expected)
        out = tmp_path / f"{step}.json"
        words = ["eval", str(model(whole, step)), "--data.root", str(root), "--workers", "0"]
        assert cli.main([*words, "--out", str(out)]) == 2
        assert "--allow_code" in only_line(capsys.readouterr().err)
        assert cli.main([*words, "--out", str(out), "--allow_code"]) == 0
        assert close(json.loads(out.read_text())["steps"][0]["matrix"], expected)
        capsys.readouterr()


def test_predict_and_load(root: Path, whole: Path, tmp_path: Path) -> None:
    """Also in tiles, on the fused network."""
    folder, image_id = model(whole, 2), validation(root)[0]
    pixels = photo(root, image_id)
    expected = label_map(folder, pixels)
    predictor = segrow.load(whole, device="cpu", allow_code=True)
    assert close(predictor.labels(pixels), expected)
    assert (predictor(pixels).probability.argmax(0) == predictor.labels(pixels)).all()
    file = tmp_path / "photo.png"
    Image.fromarray(pixels).save(file)
    padded = np.pad(pixels, [(0, 8), (0, 0), (0, 0)], "edge")  # to multiples of 16, as tiles are
    for k, more in enumerate(((), ("--tile", "64"))):
        out = tmp_path / f"out{k}"
        assert cli.main(["predict", str(whole), str(file), "--out", str(out), "--allow_code", *more]) == 0
        found = np.array(Image.open(out / "photo.png"))
        assert close(found, label_map(folder, padded)[: len(pixels)] if more else expected)


@pytest.mark.usefixtures("undrawn")
def test_report(root: Path, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    words = ["report", str(run), "--data.root", str(root), "--out", str(tmp_path / "page.html")]
    assert cli.main([*words, "--allow_code"]) == 0
    ids = json.loads((run / "pictures" / "pool.json").read_text())["images"]
    for step in range(STEPS):
        values = json.loads((run / "pictures" / f"step_{step:02d}" / "scores.json").read_text())["scores"]
        for image_id, value in zip(ids, values, strict=True):
            mask = np.array(Image.open(root / "SegmentationClassAug" / f"{image_id}.png")).astype(np.int16)
            truth = np.where(mask == 255, -1, mask)
            seen = label_map(model(run, step), photo(root, image_id)).astype(np.uint8)
            assert value == pytest.approx(image_iou(truth, seen, 3 + step), abs=0.01)


@pytest.mark.parametrize("step", [0, 2])
def test_a_kill_between_model_and_evaluation(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    inner = Run._evaluate_step

    def stop(self: Run, k: int) -> None:
        if k == step:
            raise KeyboardInterrupt
        inner(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_evaluate_step", stop)
        assert start(root, tmp_path / "run", *OUTSIDE) == 130
    assert start(root, tmp_path / "run", *OUTSIDE) == 0
    assert matrices(tmp_path / "run") == matrices(whole)


@pytest.mark.parametrize("what", ["run", "model"])
def test_a_shared_base_step(root: Path, whole: Path, tmp_path: Path, what: str) -> None:
    """Its state comes with it: the first increment starts from the same."""
    base = whole if what == "run" else model(whole, 0)
    out = tmp_path / "run"
    assert start(root, out, *OUTSIDE, "--base", str(base)) == 0
    assert (model(out, 0) / METHOD_STATE).read_bytes() == (model(whole, 0) / METHOD_STATE).read_bytes()
    assert matrices(out) == matrices(whole)


def test_a_base_step_of_another_method_is_read_with_its_own(root: Path, whole: Path, tmp_path: Path) -> None:
    """And the run's method, which knows nothing of that state, starts with none."""
    out = tmp_path / "run"
    assert start(root, out, *OUTSIDE[2:], "--method", "finetune", "--base", str(whole), "--steps", "2") == 0
    assert matrices(out)[0] == matrices(whole)[0]
    assert not (model(out, 1) / METHOD_STATE).exists()


def test_the_gate_reads_both_models_with_their_states(root: Path, whole: Path, tmp_path: Path) -> None:
    names = ("background", "aeroplane", "bicycle", "zebra")
    photos = folder_tree(tmp_path / "photos", names, train=[{3}] * 8, val=[{3}] * 2, size=SIZE).root
    check = folder_tree(tmp_path / "check", names[:3], train=[{1}, {2}, {1, 2}] * 4, val=0, size=SIZE).root
    animals = Path(shutil.copytree(model(whole, 0), tmp_path / "animals"))
    with pytest.raises(segrow.errors.UserError, match="--allow_code"):
        segrow.add_classes(animals, photos, ["zebra"])
    options: dict[str, Any] = {"workers": 0, "device": "cpu", "epochs": 3, "allow_code": True}
    outcome = segrow.add_classes(
        animals, photos, ["zebra"], check=check, max_drop=100.0, quiet=True, **options
    )
    assert outcome.passed
    assert load_file(animals / METHOD_STATE)["bias"].shape[1] == 4
    for folder, known in ((model(whole, 0), 3), (animals, 4)):
        counts = np.zeros((3, known))
        for file in sorted((check / "images/train").iterdir()):
            mask = np.array(Image.open(check / "masks/train" / f"{file.stem}.png"))
            found = label_map(folder, np.array(Image.open(file).convert("RGB")))
            np.add.at(counts, (mask[mask != 255], found[mask != 255]), 1)
        for k, old in enumerate(outcome.verdicts.old):
            iou = 100 * counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k])
            assert (old.before if known == 3 else old.after) == pytest.approx(iou, abs=0.5)


def test_a_damaged_state_is_one_line(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its hash has been made anew."""
    network, meta = load_model(model(whole, 0))
    ours = {
        k: meta[k] for k in ("class_names", "step", "scenario", "method", "protocol", "training", "parent")
    }
    save_model(network, tmp_path / "model", ours, {METHOD_STATE: b"\x08" + bytes(20)})
    words = ["eval", str(tmp_path / "model"), "--data.root", str(root), "--allow_code"]
    assert cli.main(words) == 2
    assert "cannot read state of a method" in last_line(capsys.readouterr().err)
