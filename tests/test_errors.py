"""A mistake in the options or the data: one line, exit code 2, and no run folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import build_tree, last_line, only_line, start
from trees import folder_tree, voc_tree

from segrow import cli

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--data.root", "nowhere"], "--data.root nowhere is not a folder; expected VOC2012 with JPEGImages"),
        (["--data.root", "."], "has no folder JPEGImages"),
        (
            ["--data.name", "vok"],
            'unknown data set "vok", expected voc, ade20k, folder, digits. Did you mean "voc"?',
        ),
        (["--data.classes", "aeroplane,bird,bot"], 'unknown class "bot"'),
        (["--data.classes", "aeroplane,bird,bot"], 'Did you mean "boat"?'),
        (["--data.classes", "bird,boat,bird"], '--data.classes hold "bird" twice'),
        (["--data.classes", "background,boat"], "take it out of --data.classes"),
        (["--task", "2-3"], "task 2-3 does not add up: 2 + 1 x 3 = 5, but voc has 4 classes to learn"),
        (["--task", "2_1"], 'unknown task "2_1", expected BASE-INCREMENT such as 15-1'),
        (["--task", "0-1"], "both numbers must be at least 1"),
        (["--task", "15-1_z"], 'unknown class order "z"'),
        (
            ["--data.classes", "aeroplane,bicycle,bird,cat"],
            "step 2 (cat) has no image in the overlap setting",
        ),
        (
            ["--model.name", "deeplabv3_test_resnt"],
            'timm has no backbone "test_resnt". Did you mean "test_resnet"?',
        ),
        (["--model.name", "deeplab_test_resnet"], "expected deeplabv3_BACKBONE or deeplabv3plus_BACKBONE"),
        (["--model.name", "deeplabv3_vit_tiny_patch16_224"], "vit_tiny_patch16_224"),
        (
            ["--model.weights", "file:none.pth"],
            "no weights file none.pth; give an existing .safetensors or .pth",
        ),
        (["--model.weights", "imagenet"], "choose timm, timm:TAG, file:PATH, package:"),
        (["--model.output_stride", "4"], "use 8 or 16"),
        (["--memory.size", "25"], "--memory.size 25 is larger than the data (24 training images)"),
        (["--memory.size", "-1"], "--memory.size should be 0 or more, got -1"),
        (["--train.batch_size", "25"], "images, fewer than the batch size 25; use --train.batch_size"),
        (
            ["--train.batch_size", "5", "--train.accumulate", "2"],
            "should be a multiple of devices x accumulate = 2",
        ),
        (
            ["--train.batch_size", "4", "--train.accumulate", "4"],
            "leaves fewer than 2 images in a forward pass",
        ),
        (["--train.batch_size", "0"], "--train.batch_size should be at least 1, got 0"),
        (["--train.epochs", "0"], "--train.epochs should be at least 1, got 0"),
        (["--train.step0_epochs", "0"], "--train.step0_epochs should be at least 1, got 0"),
        (["--train.val_batch_size", "0"], "--train.val_batch_size should be at least 1, got 0"),
        *(
            (
                ["--train.device", name],
                f"--train.device is {name}, expected auto (a GPU if there",
            )
            for name in ("mps", "xpu", "nonsense", "CPU")
        ),
        (["--train.device", "cuda:7"], "CUDA_VISIBLE_DEVICES=7 chooses that GPU for cuda"),
        (["--train.devices", "0"], "--train.devices should be at least 1, got 0"),
        (["--train.lr", "-1"], "--train.lr should be 0 or more, got -1"),
        (["--train.lr", "nan"], "--train.lr is nan, expected a number"),
        (["--train.lr_floor", "-1"], "--train.lr_floor should be 0 or more, got -1"),
        (["--train.step_size", "0"], "--train.step_size should be at least 1, got 0"),
        (["--train.workers", "-1"], "--train.workers should be 0 or more, got -1"),
        (
            ["--steps", "0"],
            "--steps should be at least 1 (1 trains the base step alone), got 0; leave it out",
        ),
        (
            ["--steps", "-1"],
            "--steps should be at least 1 (1 trains the base step alone), got -1; leave it out",
        ),
        (["--steps", "some"], "--steps is some, expected a whole number or null"),
        (["--seed", "-1"], "--seed should be 0 or more, got -1"),
        (["--data.order_seed", "-1"], "--data.order_seed should be 0 or more, got -1"),
        (["--train.momentum", "1"], "--train.momentum should be from 0 to below 1, got 1"),
        (["--train.flip", "2"], "--train.flip should be a probability from 0 to 1, got 2"),
        (
            ["--train.scale", "2,1"],
            "--train.scale should be LOW,HIGH with 0 < LOW <= HIGH <= 100, got 2.0,1.0",
        ),
        (["--train.scale", "0,1"], "with 0 < LOW <= HIGH <= 100, got 0.0,1.0"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_options(
    root: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start(root, tmp_path / "run", *more) == 2
    assert expected in only_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_the_method_cannot_train(root: Path, tmp_path: Path, capsys: Capture) -> None:
    assert start(root, tmp_path / "run", "--model.head", "linear") == 2
    expected = "method ssul needs a background head of its own; use --model.head conv"
    assert expected in last_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_missing_root(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train"]) == 2
    assert "data set voc needs its folder; add --data.root DIR" in only_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_hub(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert start(root, tmp_path / "run", "--model.weights", "timm") == 2
    line = last_line(capsys.readouterr().err)
    for choice in ("cannot get timm's weights test_resnet", "file:PATH", "package:", "or none"):
        assert choice in line
    assert not (tmp_path / "run").exists()


# --- broken data ------------------------------------------------------------------------------------------

JPEG, MASK = "JPEGImages/2007_000003.jpg", "SegmentationClassAug/2007_000003.png"


def _other_size(root: Path) -> None:
    Image.new("RGB", (30, 40)).save(root / JPEG)


def _wrong_value(root: Path) -> None:
    Image.fromarray(np.full((40, 48), 77, np.uint8)).save(root / MASK)


def _colours(root: Path) -> None:
    Image.new("RGB", (48, 40), (1, 2, 3)).save(root / MASK)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / JPEG).unlink(), ("image", "2007_000003.jpg", "No such file")),
        (lambda root: (root / MASK).unlink(), ("mask", "2007_000003.png", "No such file")),
        (
            lambda root: (root / MASK).write_bytes(b"\x89PNG\r\n\x1a\nbroken"),
            ("2007_000003.png cannot be decoded",),
        ),
        (_other_size, ("2007_000003.jpg is 30x40 pixels", "48x40; they must be equal")),
        (_wrong_value, ("2007_000003.png has value 77", "0 (background) to 20 and 255")),
        (_colours, ("2007_000003.png has colour 1,2,3 in 1920 pixels, which VOC's palette lacks",)),
        (
            lambda root: (root / "saliency_map" / "2007_000003.png").unlink(),
            (
                "1 of 24 training images has no saliency map",
                "--method.unknown background",
                "--method.unknown none",
            ),
        ),
    ],
    ids=["image gone", "mask gone", "mask broken", "sizes", "value", "colour mask", "saliency"],
)
def test_damaged_voc(
    tmp_path: Path, capsys: Capture, damage: Callable[[Path], None], expected: tuple[str, ...]
) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    damage(root)
    assert start(root, tmp_path / "run") == 2
    line = only_line(capsys.readouterr().err)
    for part in expected:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_without_saliency_the_other_methods_train(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "VOC2012", 24, 8, size=(40, 48), classes=(1, 2, 3, 4), saliency=False).root
    assert start(root, tmp_path / "run", "--method.unknown", "none", "--train.epochs", "1") == 0


def test_an_image_that_cannot_be_decoded(tmp_path: Path, capsys: Capture) -> None:
    """The index decodes every image once, so a cut-off one stops the run before it begins."""
    root = build_tree(tmp_path / "VOC2012").root
    content = (root / JPEG).read_bytes()
    (root / JPEG).write_bytes(content[: len(content) // 2])
    assert start(root, tmp_path / "run", "--train.epochs", "8") == 2
    line = last_line(capsys.readouterr().err)
    assert line.startswith("segrow: ")
    assert "2007_000003.jpg cannot be decoded" in line
    assert not (tmp_path / "run").exists()


def test_an_image_without_mask_in_a_folder(tmp_path: Path, capsys: Capture) -> None:
    tree = folder_tree(tmp_path / "fruit")
    (tree.root / "masks" / "train" / "train0003.png").unlink()
    words = ["--data.name", "folder", "--data.classes", "apple,pear,plum", "--method", "finetune"]
    assert start(tree.root, tmp_path / "run", *words) == 2
    line = only_line(capsys.readouterr().err)
    assert "train0003.png has no mask, expected" in line
    assert not (tmp_path / "run").exists()


def test_a_mask_without_image_in_a_folder(tmp_path: Path, capsys: Capture) -> None:
    tree = folder_tree(tmp_path / "fruit")
    (tree.root / "images" / "train" / "train0003.png").unlink()
    words = ["--data.name", "folder", "--data.classes", "apple,pear,plum", "--method", "finetune"]
    assert start(tree.root, tmp_path / "run", *words) == 2
    assert "train0003.png has no image, expected" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_no_validation_images(tmp_path: Path, capsys: Capture) -> None:
    root = voc_tree(tmp_path / "VOC2012", 24, 0, size=(40, 48), classes=(1, 2, 3, 4)).root
    assert start(root, tmp_path / "run") == 2
    assert "val.txt lists no image" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
