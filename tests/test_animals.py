"""A short run on a part of VOC 2012 with ImageNet weights, where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from runs import last_line, record, results

from segrow import cli

VOC = SHARED / "data" / "VOC2012"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"
NAMES = ("person", "cat", "dog", "horse")
RAW = (15, 8, 12, 13)

pytestmark = pytest.mark.skipif(not (VOC.is_dir() and WEIGHTS.is_file()), reason="needs the VOC 2012 part")


def _part(root: Path, train: int, val: int) -> None:
    """A tree of links to some of the images: those that show one of the classes first come, first served."""
    root.mkdir()
    for folder in ("JPEGImages", "SegmentationClassAug", "saliency_map"):
        (root / folder).symlink_to(VOC / folder)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    theirs = sorted((VOC / "ImageSets").rglob("*.txt"))
    for wanted, n in (("train_aug", train), ("val", val)):
        ids = next(f for f in theirs if f.stem == wanted).read_text().split()
        chosen: list[str] = []
        for raw in RAW:  # the same number of each class
            shows = (i for i in ids if raw in np.unique(np.asarray(Image.open(_mask(i)))) and i not in chosen)
            chosen += [i for i, _ in zip(shows, range(n // len(RAW)), strict=False)]
        (lists / f"{wanted}.txt").write_text("".join(f"{i}\n" for i in sorted(chosen)))


def _mask(image_id: str) -> Path:
    return VOC / "SegmentationClassAug" / f"{image_id.split('/')[-1].removesuffix('.png')}.png"


def test_ssul_on_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "VOC2012", tmp_path / "run"
    _part(root, 60, 20)
    arguments = {
        "--recipe": "animals-4-1-ssul",
        "--data.root": str(root),
        "--data.classes": ",".join(NAMES),
        "--task": "2-1",
        "--memory.size": "8",
        "--model.weights": f"file:{WEIGHTS}",
        "--train.epochs": "1",
        "--train.batch_size": "8",
        "--train.crop": "65",
        "--train.workers": "0",
        "--train.device": "cpu",
        "--report": "false",
        "--out": str(out),
    }
    assert cli.main(["train", *(word for pair in arguments.items() for word in pair)]) == 0
    shown = capsys.readouterr()
    assert last_line(shown.err).startswith("step 2  epoch 1/1")
    assert "mobilenetv2_100.safetensors" in shown.err

    found = results(out)
    assert found["classes"] == ["background", *NAMES]
    assert [s["known"] for s in found["steps"]] == [3, 4, 5]
    for k, step in enumerate(found["steps"]):
        matrix = np.array(step["matrix"])
        assert matrix.shape == (5, 3 + k)
        # the truth holds every class, those of later steps too
        assert (matrix.sum(1) > 0).all()
        assert step["n_images"] == 20
    assert record(out, 2)["model"]["config"]["name"] == "deeplabv3_mobilenet"
    assert record(out, 2)["method"]["fields"]["unknown"] == "saliency"

    kept = json.loads((out / "steps" / "01" / "model" / "memory.json").read_text())["exemplars"]
    assert len(kept) == 8
    for exemplar in kept:
        assert exemplar["classes"] in ([1, 2], [3], [1, 2, 3])
