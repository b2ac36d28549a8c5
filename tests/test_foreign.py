"""A DeepLab trained elsewhere as a model directory: the same logits, and every tensor accounted for."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from runs import only_line
from steps import shake
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, deeplabv3_resnet50
from trees import folder_tree

from segrow import cli
from segrow.commands import add
from segrow.errors import UserError
from segrow.grow import Outcome, Plan
from segrow.grow.adopt import adopt
from segrow.grow.gate import Verdicts
from segrow.model.foreign import read_foreign
from segrow.model.fused import fuse
from segrow.model.store import load_model

NAMES = ["cat", "dog", "bird"]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Random weights, and an auxiliary classifier."""
    torch.manual_seed(0)
    return stirred(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True))


def stirred(net: nn.Module) -> nn.Module:
    """With norms that do something."""
    shake(net)
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


BUILT: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], dict[str, Any]]] = {
    "v3": (smp.DeepLabV3, {"encoder_name": "resnet18"}, {}),
    "v3, stride 16": (
        smp.DeepLabV3,
        {"encoder_name": "resnet18", "encoder_output_stride": 16, "decoder_atrous_rates": (6, 12, 18)},
        {"output_stride": 16, "rates": (6, 12, 18)},
    ),
    "v3+": (smp.DeepLabV3Plus, {"encoder_name": "resnet50", "decoder_channels": 64}, {}),
    "v3+, stride 8": (
        smp.DeepLabV3Plus,
        {"encoder_name": "resnet34", "encoder_output_stride": 8},
        {"output_stride": 8},
    ),
    "v3+ of timm": (
        smp.DeepLabV3Plus,
        {"encoder_name": "tu-mobilenetv2_100"},
        {"arch": "deeplabv3plus_mobilenetv2_100"},
    ),
    "v3 of timm": (smp.DeepLabV3, {"encoder_name": "tu-resnet18"}, {"arch": "deeplabv3_resnet18"}),
}


@pytest.mark.parametrize("kind", BUILT)
def test_logits_are_those_of_segmentation_models_pytorch(kind: str, tmp_path: Path) -> None:
    build, options, form = BUILT[kind]
    torch.manual_seed(0)
    net = stirred(build(encoder_weights=None, classes=4, **options))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    assert adopt(tmp_path / "net.pth", NAMES, tmp_path / "model", **form) == 3
    model, _ = load_model(tmp_path / "model")
    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found = model(images).logits
        inside = net.decoder(net.encoder(model.normalise(images)))  # type: ignore[operator]
        expected = net.segmentation_head[0](inside)  # type: ignore[index]
        spread = float(expected.std())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * spread)
        fused = fuse(model)(images).logits
        torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-3 * spread)


def test_logits_are_those_of_torchvisions_mobilenet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = stirred(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    adopt(tmp_path / "net.pth", NAMES, tmp_path / "model")
    model, _ = load_model(tmp_path / "model")
    images = torch.randint(0, 256, (2, 3, 97, 65), dtype=torch.uint8)
    with torch.inference_mode():
        expected = logits(net, images.float())
        spread = float(expected.std())
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4 * spread)


def test_the_weights_do_not_tell_the_stride(tmp_path: Path) -> None:
    """Which is why it can be given: the same file is another network."""
    net = stirred(smp.DeepLabV3("resnet18", encoder_weights=None, classes=4))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    one, other = (read_foreign(tmp_path / "net.pth", NAMES, output_stride=stride) for stride in (8, 16))
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert one(image).logits.shape[2:] == (8, 8)
    assert other(image).logits.shape[2:] == (4, 4)


def older(state: dict[str, Any]) -> dict[str, Any]:
    """As smp named the parts of a decoder before 0.4."""
    names = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    for new, old in names.items():
        state = {old + n.removeprefix(new) if n.startswith(new) else n: v for n, v in state.items()}
    return state


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    """As smp's examples for Lightning store it: the net in `model`, the normalisation beside it."""
    inside = {f"model.{name}": value for name, value in state.items()}
    return {
        "epoch": 1,
        "state_dict": {"std": torch.ones(1, 3, 1, 1), "mean": torch.ones(1, 3, 1, 1), **inside},
    }


@pytest.mark.parametrize("stored", [older, lightning])
def test_the_ways_smp_stores_it(tmp_path: Path, stored: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    state = smp.DeepLabV3("resnet18", encoder_weights=None, classes=4).state_dict()
    torch.save(stored(state), tmp_path / "net.pth")
    model = read_foreign(tmp_path / "net.pth", NAMES)
    assert torch.equal(model.state_dict()["heads.0.body.0.weight"], state["decoder.conv.weight"])
    assert torch.equal(model.state_dict()["heads.1.out.weight"], state["segmentation_head.0.weight"][1:])


SMALL = {"encoder_weights": None, "classes": 4}


@pytest.mark.parametrize(
    ("build", "options", "form", "expected"),
    [
        (
            smp.DeepLabV3,
            {"encoder_name": "tu-resnet18"},
            {},
            "does not hold; give --arch deeplabv3_NAME with",
        ),
        (
            smp.DeepLabV3,
            {"encoder_name": "tu-resnet18"},
            {"arch": "deeplabv3plus_resnet18"},
            "holds a deeplabv3, not deeplabv3plus_resnet18",
        ),
        (
            smp.DeepLabV3,
            {"encoder_name": "tu-resnet18"},
            {"arch": "deeplabv3_resnet34"},
            "does not fit deeplabv3_resnet34: it lacks encoder.model.layer1.2.conv1.weight",
        ),
        (
            smp.DeepLabV3,
            {"encoder_name": "mobilenet_v2"},
            {},
            "has a backbone that is not known; expected resn",
        ),
        (
            smp.DeepLabV3,
            {"encoder_name": "resnet18", "decoder_aspp_separable": True},
            {},
            "has separable convolutions in its ASPP; expected smp's default",
        ),
        (
            smp.DeepLabV3Plus,
            {"encoder_name": "resnet18", "decoder_aspp_separable": False},
            {},
            "has plain convolutions in its ASPP; expected smp's default",
        ),
        (
            smp.Unet,
            {"encoder_name": "resnet18"},
            {},
            "holds no DeepLab of torchvision or segm",
        ),
        (
            smp.DeepLabV3,
            {"encoder_name": "resnet18"},
            {"arch": "deeplabv3_resnet34"},
            "holds deeplabv3_resnet18, not deeplabv3_resnet34",
        ),
    ],
)
def test_an_smp_file_that_does_not_fit(
    build: Callable[..., nn.Module],
    options: dict[str, Any],
    form: dict[str, Any],
    expected: str,
    tmp_path: Path,
) -> None:
    torch.save(build(**SMALL, **options).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        read_foreign(tmp_path / "net.pth", NAMES, **form)
    assert expected in str(caught.value)


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
        ("lacks", "does not fit deeplabv3_resnet50: it lacks backbone.layer1.0.conv1.weight"),
        ("more", "it also has backbone.layer9.weight"),
        ("shape", "classifier.1.weight is (8, 256, 3, 3), expected one for (256, 256, 3, 3)"),
        ("nan", "holds no weights in classifier.1.weight"),
        ("head", "holds no DeepLab of torchvision or segmentation_models_pytorch: expected names such as"),
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
    assert not out.exists()
    assert all(line.startswith("note: ") for line in shown.out.splitlines())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--names", "cat,dog"], "has 4 channels, got 2 names besides background; expected --names with 3"),
        (["--names", "cat,dog,cat"], '--names holds "cat" twice'),
        (["--names", "cat,dog,bird", "--arch", "deeplabv3_resnet101"], "holds deeplabv3_resnet50, not"),
        (["--names", "cat,dog,bird", "--rates", "6,x"], "--rates should be whole numbers such as 12,24,36"),
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
def test_a_v3plus_of_smp_is_taught_further(tmp_path: Path) -> None:
    torch.save(smp.DeepLabV3Plus("resnet18", **SMALL).state_dict(), tmp_path / "net.pth")
    data = folder_tree(tmp_path / "data", ("background", "zebra"), train=3, val=0, size=(33, 33)).root
    words = ["add", "--from", str(tmp_path / "net.pth"), "--names", ",".join(NAMES), "--data", str(data)]
    more = ["--classes", "zebra", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert cli.main([*words, *more, "--crop", "33", "--out", str(tmp_path / "model")]) == 0
    model, meta = load_model(tmp_path / "model")
    assert meta["class_names"] == ["background", *NAMES, "zebra"]
    assert model.n_classes == 5


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


def test_what_is_said_is_said_of_the_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of the folder that it is converted in, which is gone afterwards."""
    (tmp_path / "hidden").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "hidden"))
    data = folder_tree(tmp_path / "data", ("background", "cat", "zebra"), train=[{1, 2}] * 3, val=0).root
    out = tmp_path / "model"
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(out), "--data", str(data)]

    def said(*more: str) -> tuple[int, str]:
        code = cli.main([*words, *more, "--device", "cpu", "--dry-run"])
        shown = capsys.readouterr()
        text = " ".join((shown.out + shown.err).split())
        assert "hidden" not in text
        return code, text

    code, text = said("--classes", "zebra")
    assert code == 0
    assert f"{file}: 3 classes after step 0, method finetune" in text
    code, text = said("--classes", "cat")
    assert code == 2
    assert f'{file} knows "cat" already (--names); leave it out of --classes' in text
    code, text = said("--classes", "zebra", "--exemplars", str(data))
    assert code == 2
    assert f"{file} has no exemplars; leave --exemplars out" in text


def test_a_rejected_model_is_told_of_the_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rejected(plan: Plan) -> Outcome:
        return Outcome(False, tmp_path / "rejected", Verdicts(), plan)

    monkeypatch.setattr(add, "carry_out", rejected)
    data = folder_tree(tmp_path / "data", ("background", "zebra"), train=3, val=0).root
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(tmp_path / "model")]
    assert cli.main([*words, "--data", str(data), "--classes", "zebra", "--device", "cpu"]) == 3
    assert f"{file} is unchanged; the new model is in" in " ".join(capsys.readouterr().out.split())


def test_a_timm_encoder_has_its_own_normalisation(tmp_path: Path) -> None:
    net = smp.DeepLabV3("tu-tf_efficientnet_lite0", encoder_weights=None, classes=4)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = read_foreign(tmp_path / "net.pth", NAMES, "deeplabv3_tf_efficientnet_lite0")
    assert model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert model.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_a_classifier_beside_the_segmentation_does_not_matter(tmp_path: Path) -> None:
    net = smp.DeepLabV3("resnet18", encoder_weights=None, classes=4, aux_params={"classes": 7})
    state = net.state_dict()
    assert any(name.startswith("classification_head.") for name in state)
    torch.save(state, tmp_path / "net.pth")
    model = read_foreign(tmp_path / "net.pth", NAMES)
    assert torch.equal(model.state_dict()["heads.1.out.weight"], state["segmentation_head.0.weight"][1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_numbers_become_float32_and_it_is_said(tmp_path: Path, dtype: torch.dtype) -> None:
    net = smp.DeepLabV3("resnet18", **SMALL)
    said: list[str] = []
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    model = read_foreign(tmp_path / "net.pth", NAMES, report=said.append)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert said == [f"{tmp_path / 'net.pth'}: numbers of {dtype} are taken as float32"]


@pytest.mark.parametrize("own", ["meta", "dataset_meta in meta", "top"])
def test_the_list_of_classes_in_a_checkpoint_is_compared(tmp_path: Path, own: str) -> None:
    """A swapped --names would give every class the other's name."""
    first, second = [name for name in NAMES if name != "background"][:2]
    rest = [name for name in NAMES if name not in ("background", first, second)]
    path, said = tmp_path / "net.pth", list[str]()
    state = {"state_dict": smp.DeepLabV3("resnet18", **SMALL).state_dict()}

    def store(names: list[str]) -> None:
        kept: dict[str, Any] = {
            "meta": {"meta": {"CLASSES": tuple(names)}},
            "dataset_meta in meta": {"meta": {"dataset_meta": {"classes": names}}},
            "top": {"class_names": names},
        }[own]
        torch.save(kept | state, path)

    store(["background", first, second, *rest])
    read_foreign(path, NAMES, report=said.append)
    assert said == []
    store(["background", second, first, *rest])
    with pytest.raises(
        UserError, match=f"lists its classes as {second}, {first}.*give them in the order of the"
    ):
        read_foreign(path, NAMES, report=said.append)
    store(["background", "thing", second, *rest])
    read_foreign(path, NAMES, report=said.append)
    assert len(said) == 1
    assert "lists its classes as thing, " in said[0]


def test_conversion_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(out)]
    assert cli.main([*words, "--dry-run"]) == 0
    assert not out.exists()
    assert cli.main(words) == 0
    assert "is a model of 3 classes" in " ".join(capsys.readouterr().out.split())
    assert cli.main(words) == 2
    assert "is there already" in only_line(capsys.readouterr().err)


def test_the_normalisation_that_a_file_holds_is_used(tmp_path: Path) -> None:
    state = {"model." + n: v for n, v in smp.DeepLabV3("resnet18", **SMALL).state_dict().items()}
    own = {"mean": torch.full((1, 3, 1, 1), 0.4), "std": torch.full((1, 3, 1, 1), 0.2)}
    torch.save({"state_dict": state | own}, tmp_path / "net.ckpt")
    model = read_foreign(tmp_path / "net.ckpt", NAMES)
    assert model.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    torch.save({**state, "mean": torch.ones(4)}, tmp_path / "net.ckpt")
    with pytest.raises(UserError, match="mean and std have 4 and 0 numbers, expected three each; mend both"):
        read_foreign(tmp_path / "net.ckpt", NAMES)
    torch.save(
        {**state, "mean": torch.full((3,), 123.7), "std": torch.full((3,), 58.0)}, tmp_path / "net.ckpt"
    )
    with pytest.raises(UserError, match="expected a mean from 0 to 1 and a std from"):
        read_foreign(tmp_path / "net.ckpt", NAMES)


def test_what_is_left_out_is_said(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"model." + n: v for n, v in torch.load(file).items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(4)}}, file)
    words = ["add", "--from", str(file), "--names", ",".join(NAMES), "--out", str(tmp_path / "model")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert f"note: {file}: left out beside the network: criterion.weight" in out
    assert f"note: {file}: left out, for the output does not depend on it: aux_classifier.0.weight" in out
