"""A DeepLabV3 of torchvision as a model directory: the same logits, and every tensor accounted for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from runs import only_line
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, deeplabv3_resnet50
from trees import folder_tree

from segrow import cli
from segrow.adopt import adopt
from segrow.errors import UserError
from segrow.model.foreign import read_foreign
from segrow.model.store import load_model

NAMES = ["cat", "dog", "bird"]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Random weights, norms that do something, and an auxiliary classifier."""
    torch.manual_seed(0)
    net: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture
def file(theirs: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(theirs.state_dict(), path)
    return path


def logits(net: nn.Module, images: Tensor) -> Tensor:
    """torchvision's, before it upsamples them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    features = net.backbone((images / 255 - mean) / std)["out"]  # type: ignore[operator]
    found: Tensor = net.classifier(features)  # type: ignore[operator]
    return found


def test_logits_are_those_of_torchvision(theirs: nn.Module, file: Path, tmp_path: Path) -> None:
    assert adopt(file, NAMES, tmp_path / "model") == 3
    model, meta = load_model(tmp_path / "model")
    assert meta["class_names"] == ["background", *NAMES]
    images = torch.randint(0, 256, (2, 3, 97, 65), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = logits(theirs, images.float()), model(images).logits
        spread = float(expected.std())
        assert spread > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * spread)
        whole = theirs(
            (images.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        )["out"]
        ours = F.interpolate(found, size=(97, 65), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4 * spread)


def checkpoint(state: dict[str, Any], path: Path) -> None:
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}, path)


def parallel(state: dict[str, Any], path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in state.items()}, path)


def safe(state: dict[str, Any], path: Path) -> None:
    safetensors.torch.save_file(state, path)


@pytest.mark.parametrize(
    ("write", "name"), [(checkpoint, "a.pth"), (parallel, "a.pt"), (safe, "a.safetensors")]
)
def test_the_ways_it_may_be_stored(
    theirs: nn.Module, tmp_path: Path, write: Callable[[dict[str, Any], Path], None], name: str
) -> None:
    state = theirs.state_dict()
    write(state, tmp_path / name)
    model = read_foreign(tmp_path / name, ["__background__", *NAMES], "deeplabv3_resnet50")
    assert torch.equal(model.state_dict()["heads.1.out.weight"], state["classifier.4.weight"][1:])


class Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def broken(theirs: nn.Module, path: Path, what: str) -> None:
    state = dict(theirs.state_dict())
    if what == "code":
        state["x"] = Code()  # type: ignore[assignment]
    elif what == "lacks":
        del state["backbone.layer1.0.conv1.weight"]
    elif what == "more":
        state["backbone.layer9.weight"] = torch.ones(1)
    elif what == "shape":
        state["classifier.1.weight"] = torch.ones(8, 256, 3, 3)
    elif what == "nan":
        state["classifier.1.weight"] = torch.full((256, 256, 3, 3), torch.nan)
    elif what == "head":
        state = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("code", "which could run code and is not read"),
        ("lacks", "does not fit DeepLabV3: it lacks backbone.layer1.0.conv1.weight"),
        ("more", "it also has backbone.layer9.weight"),
        ("shape", "classifier.1.weight is (8, 256, 3, 3), expected one for (256, 256, 3, 3)"),
        ("nan", "holds no weights in classifier.1.weight"),
        ("head", "holds no DeepLabV3 of torchvision: expected names such as classifier.4.weight"),
    ],
)
def test_a_file_that_does_not_fit(
    theirs: nn.Module, tmp_path: Path, what: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(theirs, tmp_path / "net.pth", what)
    out = tmp_path / "model"
    words = ["add", "--from", str(tmp_path / "net.pth"), "--names", ",".join(NAMES), "--out", str(out)]
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert expected in only_line(shown.err)
    assert shown.out == ""
    assert not out.exists()


def test_a_network_that_cannot_be_had_exactly(tmp_path: Path) -> None:
    net = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="is no ResNet-50 or ResNet-101"):
        read_foreign(tmp_path / "net.pth", NAMES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--names", "cat,dog"], "has 4 channels, got 2 names besides background; expected --names with 3"),
        (["--names", "cat,dog,cat"], '--names holds "cat" twice'),
        (["--names", "cat,dog,bird", "--arch", "deeplabv3_resnet101"], "holds deeplabv3_resnet50, not"),
        ([], "--from FILE needs --names a,b,c (its classes by channel) and --out DIR"),
        (["--names", "cat,dog,bird", "--classes", "zebra"], "--classes needs --data"),
        (["MODEL", "--names", "cat,dog,bird"], "got MODEL MODEL and --from"),
    ],
)
def test_options_that_do_not_fit(
    file: Path, tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert cli.main(["add", "--from", str(file), "--out", str(out), *words]) == 2
    assert expected in only_line(capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.slow
def test_it_is_taught_further(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_tree(tmp_path / "data", ("background", "zebra"), train=3, val=0, size=(33, 33)).root
    out = tmp_path / "model"
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(out)]
    more = ["--data", str(data), "--classes", "zebra", "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    small = ["--crop", "33", "--device", "cpu"]
    assert cli.main([*words, *more, *small, "--dry-run"]) == 0
    assert not out.exists()
    assert cli.main([*words, *more, *small]) == 0
    model, meta = load_model(out)
    assert meta["class_names"] == ["background", *NAMES, "zebra"]
    assert meta["method"]["name"] == "ssul"
    assert model.layout[-1].step == 1
    capsys.readouterr()
    assert cli.main(["rollback", str(out), "--to-step", "0"]) == 0
    before = torch.load(file, weights_only=True)["classifier.4.weight"]
    assert torch.equal(load_model(out)[0].state_dict()["heads.1.out.weight"], before[1:])


def test_conversion_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(out)]
    assert cli.main([*words, "--dry-run"]) == 0
    assert not out.exists()
    assert cli.main(words) == 0
    assert "is a model of 3 classes" in " ".join(capsys.readouterr().out.split())
    assert cli.main(words) == 2
    assert "is there already" in only_line(capsys.readouterr().err)
