"""Whatever a command was doing when it was killed: the old state or the new one is there, and can be read.

The next call then leaves nothing behind of the killed one. All points of all commands are slow; a few of each
are tried always.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from crash import crash_points, in_child, litter
from PIL import Image
from runs import build_tree, matrices, start, weights

from segrow import cli
from segrow.commands import data as data_command
from segrow.config import ModelConfig
from segrow.memory import to_json
from segrow.model.lineage import rename_class, versions
from segrow.model.segmenter import build_segmenter
from segrow.model.store import load_model, save_model
from segrow.stored import find_model, load_memory

NAMES = ["background", "cat", "dog"]
META = {
    "step": 0,
    "class_names": NAMES,
    "scenario": {"data": "voc", "task": "2-1", "setting": "overlap", "classes": NAMES},
    "method": {"name": "finetune", "fields": {}},
    "protocol": {"crop_val": False, "crop": 64},
    "training": {},
    "parent": None,
}


both = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"]
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the model `animals`, which has a history, and a file that no model wrote."""
    network = build_segmenter(
        ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4), 2, False, lambda line: None
    )
    folder = tmp_path / "models"
    save_model(network, folder / "animals", META, {"memory.json": to_json(())})
    rename_class(folder / "animals", "cat", "lion")
    (folder / "animals" / "notes.txt").write_text("mine")
    return folder


def state(model: Path) -> tuple[str, ...]:
    """What every reader finds; raises where one finds nothing."""
    found = find_model(model)
    _, record = load_model(found)
    load_memory(found)
    chain = versions(model)
    assert chain[-1].hash == record["hashes"]["model"]
    return tuple(version.hash for version in chain)


@both
@pytest.mark.parametrize(
    "words",
    [
        ["rename-class", "lion", "tiger"],
        ["remove-class", "dog"],
        ["rollback", "--to-step", "0"],
    ],
    ids=lambda words: words[0],
)
def test_a_model_directory(models: Path, words: list[str], every: bool) -> None:
    model = models / "animals"
    command = [words[0], str(model), *words[1:]]
    old = state(model)
    seen = set()
    for point in crash_points(lambda: cli.main(command), models, every):
        found = state(model)
        seen.add(found)
        if found == old:
            assert in_child(lambda: cli.main(command)) == 0, point
        else:
            assert in_child(lambda: cli.main(["rename-class", str(model), "no", "such"])) == 2, point
        assert litter(models) == [], point
        assert state(model) != old, point
        assert (model / "notes.txt").read_text() == "mine"
    assert len(seen) == 2  # some kills came before the exchange, some after it


def test_a_model_that_waits_beside_its_place_is_found(models: Path, tmp_path: Path) -> None:
    """Between the two renames; every reader, and the next writer."""
    model = models / "animals"
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(photo)
    model.rename(models / ".animals.replaced")
    assert cli.main(["lineage", str(model)]) == 0
    assert cli.main(["predict", str(model), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert litter(models) == [".animals.replaced"]  # readers change nothing
    assert cli.main(["rename-class", str(model), "lion", "tiger"]) == 0
    assert load_model(model)[1]["class_names"] == ["background", "tiger", "dog"]
    assert litter(models) == []


def test_a_planted_link_does_not_wait(models: Path, tmp_path: Path) -> None:
    """What it leads to is neither read nor moved into the model."""
    victim = tmp_path / "victim"
    shutil.copytree(models / "animals", victim)
    (models / ".animals.replaced").symlink_to(victim)
    before = sorted(victim.rglob("*"))
    cli.main(["rename-class", str(models / "animals"), "lion", "tiger"])
    assert sorted(victim.rglob("*")) == before
    assert load_model(victim)[1]["class_names"] == ["background", "lion", "dog"]


# --- other commands -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True], ids=["some", "all"])
def test_a_run(tmp_path: Path, every: bool) -> None:
    """One step of two epochs; after any kill the same command gives what an undisturbed one gives."""
    root = build_tree(tmp_path / "VOC2012").root
    more = ("--steps", "1", "--method", "finetune")
    assert start(root, tmp_path / "whole" / "run", *more) == 0
    runs = tmp_path / "runs"
    runs.mkdir()

    def train() -> int:
        return start(root, runs / "run", *more)

    for point in crash_points(train, runs, every):
        if (runs / "run" / "results.json").exists():
            assert in_child(lambda: cli.main(["results", str(runs / "run")])) == 0, point
        assert in_child(train) == 0, point
        assert weights(runs / "run") == weights(tmp_path / "whole" / "run"), point
        assert matrices(runs / "run") == matrices(tmp_path / "whole" / "run"), point
        assert litter(runs) == [], point


@both
def test_saliency_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool) -> None:
    root = build_tree(tmp_path / "data" / "VOC2012").root
    shutil.rmtree(root / "saliency_map", ignore_errors=True)
    few = sorted((root / "JPEGImages").iterdir())[:3]

    class Maker:
        def __init__(self, model: str) -> None:
            pass

        def map(self, image: Path) -> np.ndarray:
            with Image.open(image) as picture:
                return np.ones(picture.size[::-1], np.bool_)

    monkeypatch.setattr(data_command, "SaliencyMaker", Maker)
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    (photos / "masks").mkdir()
    for image in few:
        shutil.copy(image, photos / "images")
        shutil.copy(root / "SegmentationClassAug" / f"{image.stem}.png", photos / "masks")
    (photos / "classes.txt").write_text("\n".join(["background", *(f"class {k}" for k in range(1, 21))]))
    work = tmp_path / "work"
    work.mkdir()
    photos.rename(work / "photos")

    def make() -> int:
        return cli.main(["data", "saliency", str(work / "photos"), "--model", "any"])

    for point in crash_points(make, work, every):
        for path in work.rglob("saliency/*.png"):
            with Image.open(path) as picture:
                picture.load()
        assert in_child(make) == 0, point
        assert len(list(work.rglob("saliency/*.png"))) == 3, point
        assert litter(work) == [], point
