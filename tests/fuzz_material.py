"""What the fuzzer damages: a small folder of each kind that segrow reads, and the commands that read it.

`build(place)` writes all of it, once; all paths in it and in the commands are relative to that folder.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_files
import safetensors.torch
import torch
from PIL import Image
from runs import build_tree, options
from trees import folder_tree

from segrow import cli
from segrow.engine.checkpoint import Checkpoint
from segrow.model.store import load_model

DATA = Path("VOC2012")
MEMORY = ("--memory.size", "6", "--train.epochs", "1", "--train.log_every", "1", "--model.output_stride", "8")
RUN = options(DATA, Path("run"), *MEMORY, "--method", "plop")
PART = options(DATA, Path("part"), *MEMORY, "--train.epochs", "2", "--method", "plop", "--steps", "1")
LEARN = options(DATA, Path("new"), *MEMORY, "--steps", "1", "--train.epochs", "1")
ADD = ["--data", "photos", "--classes", "zebra", "--device", "cpu", "--workers", "0", "--saliency", "none"]
NAMES = ("background", "aeroplane", "bicycle", "bird", "boat", "zebra", "okapi")
EVIL = "import pathlib\npathlib.Path('RAN').touch()\n"
"""A module in the working directory: who imports it leaves a trace."""


@dataclass(frozen=True)
class Target:
    """Files of one kind.

    Attributes:
        kind: Its name in the table of results.
        files: Pattern of the files, relative to the material.
        commands: Arguments of the commands that read them.
        weight: How often it is chosen, relative to the others.
        hashed: The files are covered by the checksums of a model directory.
    """

    kind: str
    files: str
    commands: tuple[tuple[str, ...], ...]
    weight: int
    hashed: bool = False


def _c(*lines: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in lines)


EVAL = "eval model --data.root VOC2012 --workers 0"
MODEL = _c(
    EVAL,
    "lineage model",
    "predict model VOC2012/JPEGImages/2008_000000.jpg --out seen",
    "rename-class model aeroplane plane",
    "remove-class model bird",
    "rollback model --to-step 2",
    f"add model {' '.join(ADD)} --exemplars VOC2012 --dry-run",
    "train --base model --out new",
)
REPORT = _c("report run --images 0 --out page.html")  # as long as ten others
READ_RUN = (*_c(*["results run run"] * 6), *[tuple(RUN)] * 4, *REPORT)
READ_CONFIG = (*[tuple(RUN)] * 6, *[(*LEARN, "--method", "plop", "--base", "run")] * 3, *REPORT)
DRAW = _c("report run --images 4 --out page.html")
TRAINED = (tuple(LEARN),)
SCENARIO = _c("scenario --data.root VOC2012 --data.classes aeroplane,bicycle,bird,boat --task 2-1")
PHOTOS = _c(
    f"add model {' '.join(ADD)} --dry-run",
    "scenario --data.name folder --data.root photos --task 3-1",
    "eval model --data.name folder --data.root photos --split train --workers 0",
)
TARGETS = (
    Target("model.json", "model/model.json", MODEL, 9, hashed=True),
    Target("model.safetensors", "model/model.safetensors", MODEL[:5], 6, hashed=True),
    Target("memory.json", "model/memory.json", MODEL, 5, hashed=True),
    Target("method.safetensors", "model/method.safetensors", MODEL[:5], 4, hashed=True),
    Target("history", "model/history/*/*", _c("lineage model", "rollback model --to-step 2"), 5),
    Target("results.json", "run/results.json", READ_RUN, 7),
    Target("config.yaml", "run/config.yaml", READ_CONFIG, 6),
    Target("log.csv", "part/log.csv", (tuple(PART),), 3),
    Target("last.ckpt", "part/last*", (tuple(PART),), 4),
    Target("steps of a run", "run/steps/*/model/*", (*_c("predict run photos --out seen"), tuple(RUN)), 4),
    Target("pictures", "run/pictures/**/*.json", DRAW, 1),
    Target("classes.txt", "photos/classes.txt", PHOTOS, 6),
    Target("lists", "VOC2012/ImageSets/Segmentation/*.txt", SCENARIO, 5),
    Target("masks", "VOC2012/SegmentationClassAug/2008*.png", (*_c(EVAL), *SCENARIO), 6),
    Target("images", "VOC2012/JPEGImages/2008*.jpg", (*_c(EVAL), MODEL[2]), 6),
    Target("masks of photos", "photos/masks/train/*.png", PHOTOS, 4),
    Target("saliency maps", "VOC2012/saliency_map/2007*.png", TRAINED, 2),
    Target(
        "COCO", "coco/instances.json", _c(f"add model {' '.join(ADD).replace('photos', 'coco')} --dry-run"), 7
    ),
    Target("presence index", "cache/**/*.npz", SCENARIO, 4),
    Target("backbone.pth", "backbone.pth", ((*LEARN, "--model.weights", "file:backbone.pth"),), 3),
    Target(
        "backbone.safetensors",
        "backbone.safetensors",
        ((*LEARN, "--model.weights", "file:backbone.safetensors"),),
        3,
    ),
    Target(
        "checkpoint of SSUL",
        "theirs.pth",
        _c("import-ssul theirs.pth --out new --model deeplabv3_resnet50 --dataset voc --task 15-1 --step 0"),
        3,
    ),
    Target(
        "checkpoint of others", "theirs.pth", _c("add --from theirs.pth --names cat,dog,bird --out new"), 3
    ),
    Target("saliency network", "net.onnx", _c("data saliency photos --model net.onnx"), 3),
    Target("--config", "options.yaml", ((*LEARN, "--config", "options.yaml"),), 4),
    Target(
        "--config, printed",
        "options.yaml",
        _c("train --config options.yaml --print_config"),
        8,
    ),
    Target("whole trees", "*/**/*", (*MODEL, *READ_RUN, *SCENARIO, *PHOTOS, tuple(PART)), 20),
)


def build(place: Path) -> None:
    """Write everything into the present working directory `place`."""
    torch.manual_seed(0)
    build_tree(DATA)
    folder_tree(Path("photos"), NAMES, train=[{5}, {6}, {5, 6}, {5, 1}], val=0, size=(40, 48))
    _coco(Path("coco"))
    (place / "evil").mkdir()
    (place / "evil/__init__.py").write_text(EVIL)
    (place / "evil/method.py").write_text(EVIL)
    assert cli.main(RUN) == 0
    assert cli.main([*DRAW[0]]) == 0
    shutil.copytree("run/steps/02/model", "model")
    assert cli.main(["rename-class", "model", "boat", "ship"]) == 0
    assert cli.main(["rename-class", "model", "ship", "boat"]) == 0
    _stopped()
    network, _ = load_model(Path("model"))
    backbone = {k.removeprefix("trunk.backbone.body."): v for k, v in network.state_dict().items()}
    torch.save({"state_dict": backbone, "epoch": 3, "args": {"lr": 0.1}}, "backbone.pth")
    safetensors.torch.save_file(
        {k: v.contiguous().clone() for k, v in backbone.items()}, "backbone.safetensors"
    )
    torch.save(
        {"model_state": {f"module.{k}": v for k, v in backbone.items()}, "best_score": 0.5}, "theirs.pth"
    )
    Path("net.onnx").write_bytes(onnx_files.network())
    Path("options.yaml").write_text(
        "task: 2-1\nsetting: overlap\nseed: 3\n"
        "data: {name: voc, root: VOC2012, classes: [aeroplane, bicycle, bird, boat]}\n"
        "model: {name: deeplabv3_test_resnet, weights: none, width: 8, rates: [1, 2, 3]}\n"
        "train: {epochs: 1, lr: 0.02, scale: [0.5, 2.0], batch_size: 4, crop: 32, workers: 0, device: cpu}\n"
        "memory: {size: 6}\nmethod: {name: ssul, threshold: 0.6}\n"
    )


def _stopped() -> None:
    """A run that was stopped after the first epoch of its base step."""
    save = Checkpoint.save

    def once(self: Checkpoint, path: Path, before: Path | None = None) -> None:
        save(self, path, before)
        raise KeyboardInterrupt

    Checkpoint.save = once  # type: ignore[method-assign]
    assert cli.main(PART) == 130
    Checkpoint.save = save  # type: ignore[method-assign]


def _coco(root: Path) -> None:
    """Two images with polygons and one with runs of pixels."""
    (root / "images").mkdir(parents=True)
    for k in (1, 2, 3):
        Image.fromarray(np.full((40, 48, 3), 40 * k, np.uint8)).save(root / f"images/{k}.jpg")
    outline = [2.0, 2.0, 30.0, 2.0, 30.0, 30.0, 2.0, 30.0]
    annotations = [
        {
            "id": k,
            "image_id": k,
            "category_id": k % 2 + 1,
            "segmentation": [outline],
            "iscrowd": 0,
            "area": 784.0,
        }
        for k in (1, 2)
    ]
    runs = {"size": [40, 48], "counts": [100, 200, 40 * 48 - 300]}
    annotations.append({"id": 3, "image_id": 3, "category_id": 2, "segmentation": runs, "iscrowd": 1})
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 40, "width": 48} for k in (1, 2, 3)],
        "categories": [{"id": 1, "name": "okapi"}, {"id": 2, "name": "zebra"}],
        "annotations": annotations,
    }
    (root / "instances.json").write_text(json.dumps(content))
