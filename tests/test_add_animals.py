"""The walk-through on real photographs: a base of two classes, a third from 40 images, and the gate."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from runs import snapshot

import segrow
from segrow import cli

VOC = SHARED / "data" / "VOC2012"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"
BASE = {"cat": 8, "dog": 12}
HORSE = 13

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (VOC.is_dir() and WEIGHTS.is_file()), reason="needs the VOC 2012 part"),
]


def mask_of(image_id: str) -> np.ndarray:
    return np.asarray(Image.open(VOC / "SegmentationClassAug" / f"{image_id}.png"))


def choose(split: str, raws: tuple[int, ...], each: int, without: tuple[int, ...] = ()) -> list[str]:
    """Ids that show one of the values, `each` of every one, and none of `without`."""
    lists = next(f for f in sorted((VOC / "ImageSets").rglob("*.txt")) if f.stem == split)
    ids = [line.split()[0].rpartition("/")[2].removesuffix(".jpg") for line in lists.read_text().splitlines()]
    shown = {i: set(np.unique(mask_of(i)).tolist()) for i in ids}
    chosen: list[str] = []
    for raw in raws:
        fitting = [i for i in ids if raw in shown[i] and not shown[i] & set(without) and i not in chosen]
        chosen += fitting[:each]
    return sorted(chosen)


def voc_part(root: Path, train: list[str], val: list[str]) -> Path:
    root.mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClassAug", "saliency_map"):
        (root / folder).symlink_to(VOC / folder)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train_aug", train), ("val", val)):
        (lists / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    return root


def photos(root: Path, ids: list[str], values: dict[int, int]) -> Path:
    """A folder of one's own: horse is value 1; `values` says which VOC ids are drawn as it."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "saliency").mkdir()
    (root / "classes.txt").write_text("background\nhorse\n")
    table = np.zeros(256, np.uint8)
    table[255] = 255
    for raw, value in values.items():
        table[raw] = value
    for i in ids:
        (root / "images" / f"{i}.jpg").symlink_to(VOC / "JPEGImages" / f"{i}.jpg")
        (root / "saliency" / f"{i}.png").symlink_to(VOC / "saliency_map" / f"{i}.png")
        Image.fromarray(table[mask_of(i)]).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained model of cat and dog, in a run folder."""
    folder = tmp_path_factory.mktemp("base")
    raws = tuple(BASE.values())
    train = choose("train_aug", raws, 180, without=(HORSE,))
    root = voc_part(folder / "VOC2012", train, choose("val", raws, 50))
    arguments = {
        "--data.root": str(root),
        "--data.classes": ",".join(BASE),
        "--task": "offline",
        "--model.name": "deeplabv3_mobilenet",
        "--model.weights": f"file:{WEIGHTS}",
        "--train.step0_epochs": "8",
        "--train.step0_lr": "0.02",
        "--train.step0_backbone_lr": "0.004",
        "--train.batch_size": "8",
        "--train.crop": "129",
        "--train.workers": "0",
        "--train.device": "cpu",
        "--report": "false",
        "--out": str(folder / "run"),
    }
    assert cli.main(["train", *(word for pair in arguments.items() for word in pair)]) == 0
    return folder


def precision_of(model: Path, ids: list[str]) -> float:
    """Of all pixels that the model calls horse, the share that is; images it learnt from are left out.

    The IoU says nothing here: the base has never seen a horse and takes up to four fifths of it for a dog, as
    the last digits of its training fall. Of what is left a ninth is horse, of what is called so 0.4 to 0.45.
    """
    predictor = segrow.load(model, device="cpu", precision="32")
    said = right = 0
    for i in sorted(set(ids) - set(choose("train_aug", (HORSE,), 40))):
        truth = mask_of(i)
        called = (predictor.labels(VOC / "JPEGImages" / f"{i}.jpg") == 1 + len(BASE)) & (truth != 255)
        said, right = said + int(called.sum()), right + int((called & (truth == HORSE)).sum())
    return right / max(said, 1)


def test_a_class_from_forty_images(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = base / "run", tmp_path / "model"
    data = photos(tmp_path / "photos", choose("train_aug", (HORSE,), 40), {HORSE: 1})
    words = [
        "--classes",
        "horse",
        "--check",
        str(base / "VOC2012"),
        "--device",
        "cpu",
    ]
    before = snapshot(run)
    capsys.readouterr()
    since = time.perf_counter()
    assert cli.main(["add", str(run), "--data", str(data), *words, "--out", str(out), "--json"]) == 0
    seconds = time.perf_counter() - since
    found = json.loads(capsys.readouterr().out)
    assert found["passes"]
    assert snapshot(run) == before
    drops = [c["drop"] for c in found["old"]]
    print(f"{seconds:.0f} s", found)
    assert [c["name"] for c in found["old"]] == ["background", *BASE]
    assert max(drops[1:]) <= 1  # the gate's default; background may lose more
    assert precision_of(out, choose("train_aug", (HORSE,), 65)) >= 0.25
    assert (
        cli.main(["predict", str(out), str(next((data / "images").iterdir())), "--out", str(tmp_path)]) == 0
    )


def test_wrong_masks_are_stopped_at_the_gate(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody drew everything but the horse."""
    out = tmp_path / "model"
    good = photos(tmp_path / "photos", choose("train_aug", (HORSE,), 8), {HORSE: 1})
    words = ["--classes", "horse", "--device", "cpu"]
    assert (
        cli.main(["add", str(base / "run"), "--data", str(good), *words, "--epochs", "1", "--out", str(out)])
        == 0
    )
    assert cli.main(["rollback", str(out), "--to-step", "0"]) == 0
    before = snapshot(out)
    drawn = {raw: 1 for raw in range(21) if raw != HORSE}
    wrong = photos(tmp_path / "wrong", choose("train_aug", (HORSE,), 40), drawn)
    capsys.readouterr()
    gate = ["--check", str(base / "VOC2012")]
    assert cli.main(["add", str(out), "--data", str(wrong), *words, *gate]) == 3
    shown = capsys.readouterr()
    assert "rejected: " in shown.out
    assert snapshot(out) == before
    assert (tmp_path / "rejected" / "model-step-01" / "model.json").exists()
