"""Checkpoints of the SSUL reference code: equal outputs, and one line for what cannot be read."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_net
import torch
import torchvision
from PIL import Image
from reference_net import build, normalise, save, shake
from runs import only_line, results, snapshot, start
from torch import Tensor
from trees import voc_tree

from segrow import cli
from segrow.config import ModelConfig
from segrow.data.ade20k import default_names
from segrow.data.voc import NAMES
from segrow.errors import UserError
from segrow.losses import upsample
from segrow.methods.base import make_method
from segrow.model.reference import read_reference_checkpoint
from segrow.model.segmenter import Segmenter
from segrow.model.store import load_model
from segrow.scenario import divide_classes

torch.set_num_threads(1)

SMALL = {"weights": "none", "width": 16}


def pictures(side: int = 65) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(3))


def read(path: Path, steps: tuple[int, ...] = (2,), **options: Any) -> Segmenter:
    config = ModelConfig(**{"name": "deeplabv3_mobilenet", **SMALL, **options})
    return read_reference_checkpoint(path, config, steps)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after step 1 of a task 2-1, of the smallest network."""
    return save(build(steps=(2, 1)), tmp_path_factory.mktemp("small") / "small.pth")


# --- equal outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "steps", "unknown", "separable"),
    [
        ("deeplabv3_resnet50", 16, (3, 1, 1), True, False),
        ("deeplabv3_resnet101", 8, (3,), True, False),
        ("deeplabv3plus_resnet50", 8, (3, 2), False, False),
        ("deeplabv3plus_resnet50", 16, (3,), False, True),
        ("deeplabv3_mobilenet", 16, (2, 1), True, False),
        ("deeplabv3_mobilenet", 8, (1,), False, False),
        ("deeplabv3plus_mobilenet", 8, (2, 1, 1), True, True),
    ],
)
def test_outputs_equal_those_of_the_reference_network(
    tmp_path: Path, name: str, stride: int, steps: tuple[int, ...], unknown: bool, separable: bool
) -> None:
    net = build(name, stride, steps, unknown, separable)
    path = save(net, tmp_path / "checkpoint.pth", wrapped=stride == 8)
    model = read(path, steps, name=name, output_stride=stride, separable=separable).double()
    assert not model.training
    assert [g.stop - g.start for g in model.layout] == [1, *steps]
    assert [g.step for g in model.layout] == [0, *range(len(steps))]
    images = pictures()
    with torch.no_grad():
        expected = net.double()(normalise(images))
        out = model(images)
        logits = upsample(out.logits, (65, 65))
        aside = None if out.unknown is None else upsample(out.unknown, (65, 65))
        ours = logits if aside is None else torch.cat([aside, logits], 1)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert expected.std((0, 2, 3)).min() > 0.01  # every channel says something
        for loss_type in ("bce", "ce"):
            method = make_method(
                "ssul", {"unknown": "saliency" if unknown else "none", "loss_type": loss_type}
            )
            scores, wanted = method.scores(logits, aside), net.scores(normalise(images), f"{loss_type}_loss")
            torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)
            assert torch.equal(scores.argmax(1), wanted.argmax(1))


def test_every_tensor_arrives(small: Path) -> None:
    """Counters of norms too, which no output shows."""
    model = read(small, (2, 1))
    theirs = torch.load(small, weights_only=False)["model_state"]
    ours = model.state_dict()
    assert sorted(tuple(t.shape) for t in ours.values()) == sorted(tuple(t.shape) for t in theirs.values())
    assert sum(t.double().sum() for t in ours.values()) == pytest.approx(
        sum(t.double().sum() for t in theirs.values())
    )
    assert {int(t) for name, t in ours.items() if name.endswith("tracked")} == {7}


def test_counters_may_be_missing(tmp_path: Path, small: Path) -> None:
    content = torch.load(small, weights_only=False)
    state = {k: v for k, v in content["model_state"].items() if not k.endswith("num_batches_tracked")}
    torch.save({"model_state": state}, tmp_path / "old.pth")
    with torch.no_grad():
        assert torch.equal(
            read(tmp_path / "old.pth", (2, 1))(pictures()).logits, read(small, (2, 1))(pictures()).logits
        )


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_])
def test_numpy_scalars_are_read_under_old_and_new_names(
    tmp_path: Path, small: Path, core: str, kind: type[np.generic]
) -> None:
    state = torch.load(small, weights_only=False)["model_state"]
    torch.save({"model_state": state, "best_score": kind(1)}, tmp_path / "new.pth")
    changed = _rewrite(tmp_path / "new.pth", tmp_path / "named.pth", lambda pickle: _rename(pickle, core))
    assert changed == (core != np.float64(0).__reduce__()[0].__module__.split(".")[1])
    read(tmp_path / "named.pth", (2, 1))


def _rename(pickled: bytes, core: str) -> bytes:
    for name in (b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"):
        pickled = pickled.replace(name, f"numpy.{core}.multiarray\n".encode())
    return pickled


def _rewrite(source: Path, target: Path, change: Any) -> bool:
    """Change the pickle inside a file of torch.save; returns whether it did."""
    changed = False
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry.endswith("data.pkl"):
                assert b"multiarray" in content
                changed = change(content) != content
                content = change(content)
            new.writestr(entry, content)
    return changed


def test_reading_leaves_global_state_alone(small: Path) -> None:
    before = torch.get_rng_state()
    read(small, (2, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.dtype not in torch.serialization.get_safe_globals()


# --- what is refused --------------------------------------------------------------------------------------


def refused(path: Path, steps: tuple[int, ...] = (2, 1), **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, steps, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_checkpoints_of_another_layout(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    line = refused(written(tmp_path / "tv.pth", resnet))
    assert "expected names such as classifier.head.0.3.weight, got conv1.weight, bn1.weight" in line
    assert "--model.weights file:PATH" in line
    mib = {"module.body.mod1.conv1.weight": torch.ones(1), "module.head.map_convs.0.weight": torch.ones(1)}
    line = refused(written(tmp_path / "mib.pth", {"model_state": mib, "epoch": 3}))
    assert "expected names such as classifier.head.0.3.weight, got module.body.mod1.conv1.weight" in line
    assert "got model_state" in refused(written(tmp_path / "empty.pth", {"model_state": {"a": 1}}))
    assert "holds a list" in refused(written(tmp_path / "list.pth", [torch.ones(1)]))
    assert "no checkpoint" in refused(tmp_path / "absent.pth")
    assert "no checkpoint" in refused(tmp_path)


def test_truncated_checkpoints(tmp_path: Path, small: Path) -> None:
    whole = small.read_bytes()
    legacy = tmp_path / "legacy.pth"
    torch.save({"model_state": {"a": torch.ones(99)}}, legacy, _use_new_zipfile_serialization=False)
    for content in (whole, legacy.read_bytes()):
        for part in (0, 1, 7, 100, 500, len(content) // 2, len(content) - 10):
            (tmp_path / "cut.pth").write_bytes(content[:part])
            line = refused(tmp_path / "cut.pth")
            assert "cannot read checkpoint" in line
            assert "copy it again" in line
            assert "weights_only" not in line  # torch's text advises to run the file's code
    (tmp_path / "text.pth").write_text("<html>Not found</html>")
    assert "is a web page or XML, not weights" in refused(tmp_path / "text.pth")


class Trap:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class NumpyTrap(Trap):
    def __reduce__(self) -> tuple[Any, ...]:
        return np.fromfile, (str(self.folder),)


@pytest.mark.parametrize(("trap", "name"), [(Trap, "posix.mkdir"), (NumpyTrap, "numpy.fromfile")])
def test_code_in_a_checkpoint_is_named_and_not_run(
    tmp_path: Path, small: Path, trap: type[Trap], name: str
) -> None:
    content = torch.load(small, weights_only=False)
    content["best_score"] = trap(tmp_path / "trapped")
    line = refused(written(tmp_path / "trap.pth", content))
    assert f"holds {name}, which could run code" in line
    assert not (tmp_path / "trapped").exists()


def test_numpy_objects_are_no_scalars(tmp_path: Path, small: Path) -> None:
    content = torch.load(small, weights_only=False)
    content["best_score"] = np.array([{}], dtype=object)
    assert "could run code" in refused(written(tmp_path / "objects.pth", content))


@pytest.mark.parametrize(
    ("net", "options", "expected"),
    [
        ({"separable": True}, {}, "deeplabv3_mobilenet; use --model deeplabv3_mobilenet --separable_conv"),
        ({}, {"name": "deeplabv3plus_mobilenet"}, "use --model deeplabv3_mobilenet"),
        ({}, {"name": "deeplabv3_resnet50"}, "use --model deeplabv3_mobilenet"),
        ({"model": "deeplabv3_resnet50"}, {"name": "deeplabv3_resnet101"}, "use --model deeplabv3_resnet50"),
        ({"model": "deeplabv3plus_resnet50"}, {}, "use --model deeplabv3plus_resnet50"),
        ({}, {"width": 8}, "aspp.convs.0.0.weight is (16, 320, 1, 1), expected one for (8, 320, 1, 1)"),
    ],
)  # fmt: skip
def test_another_network(tmp_path: Path, net: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    path = save(build(**net), tmp_path / "other.pth")
    assert expected in refused(path, (2,), **options)


def test_missing_and_surplus_tensors(tmp_path: Path, small: Path) -> None:
    state = torch.load(small, weights_only=False)["model_state"]
    lost = {k: v for k, v in state.items() if k != "classifier.head.2.1.running_var"}
    line = refused(written(tmp_path / "lost.pth", {"model_state": lost}))
    assert "it lacks classifier.head.2.1.running_var" in line
    more = state | {"backbone.fc.weight": torch.ones(1)}
    line = refused(written(tmp_path / "more.pth", {"model_state": more}))
    assert "it also has backbone.fc.weight" in line
    flat = state | {"classifier.head.1.0.weight": torch.tensor(1.0)}
    line = refused(written(tmp_path / "flat.pth", {"model_state": flat}))
    assert "classifier.head.1.0.weight is (), expected one for (16, 16, 3, 3)" in line


@pytest.mark.parametrize(
    ("have", "unknown", "want", "expected"),
    [
        ((2, 1), True, (2,), "2 + 1 foreground classes (step 1), expected 2 (step 0); its heads fit --task"),
        ((3,), False, (2, 1), "3 foreground classes (step 0), expected 2 + 1 (step 1); its heads fit --step"),
        ((3, 2, 2), True, (3, 1, 1), "its heads fit --task 3-2 --step 2"),
        ((3, 2, 1), False, (3, 1), "no task adds such different numbers of classes"),
    ],
)  # fmt: skip
def test_heads_of_another_task_or_step(
    tmp_path: Path, have: tuple[int, ...], unknown: bool, want: tuple[int, ...], expected: str
) -> None:
    path = save(build(steps=have, unknown=unknown), tmp_path / "heads.pth")
    assert expected in refused(path, want)


def test_heads_that_no_step_has(tmp_path: Path, small: Path) -> None:
    state = torch.load(small, weights_only=False)["model_state"]
    state["classifier.head.1.3.weight"] = torch.ones(4, 16, 1, 1)
    line = refused(written(tmp_path / "odd.pth", {"model_state": state}))
    assert "heads of 1 + 4 + 2 + 1 channels, which no step" in line


def test_a_network_that_the_reference_has_not(small: Path) -> None:
    with pytest.raises(ValueError, match="has no deeplabv3_test_resnet"):
        read(small, name="deeplabv3_test_resnet")
    with pytest.raises(ValueError, match="with linear heads"):
        read(small, head="linear")


def test_reference_padding_is_mobilenets_alone(small: Path) -> None:
    """Same tensors, another function: without it the outputs are others."""
    imported = read(small, (2, 1))
    assert imported.config.reference_padding
    config = ModelConfig("deeplabv3_mobilenet", "none", width=16)
    usual = Segmenter(config, imported.layout, True, (0.5,) * 3, (0.5,) * 3).eval()
    usual.load_state_dict(imported.state_dict())
    with torch.no_grad():
        theirs, ours = imported(pictures()).logits, usual(pictures()).logits
    assert (ours.shape[-1], theirs.shape[-1]) == (5, 4)  # an unpadded first convolution: 65 -> 32
    with pytest.raises(UserError, match="is for deeplabv3_mobilenet only, not for resnet10t"):
        Segmenter(ModelConfig("deeplabv3_resnet10t", reference_padding=True), (), False, (0,) * 3, (1,) * 3)


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the reference's width, after step 2 of VOC 18-1."""
    return save(build(steps=(18, 1, 1), width=256), tmp_path_factory.mktemp("full") / "step_2.pth")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = tuple(range(1, 21))
    tree = voc_tree(
        tmp_path_factory.mktemp("data") / "VOC2012", train=60, val=4, size=(40, 48), classes=classes
    )
    return tree.root


def imported(path: Path, out: Path, *more: str) -> int:
    given = ("--task", "18-1", "--step", "2", "--model", "deeplabv3_mobilenet", "--out", str(out))
    return cli.main(["import-ssul", str(path), *given, *more])


def test_an_imported_model_predicts_and_is_evaluated(
    full: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "ssul"
    assert imported(full, out, "--no_crop_val") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{out}: deeplabv3_mobilenet, 21 classes after step 2 of 18-1, with unknown head, from {full}"
    )
    assert "give segrow train --model.reference_padding true" in lines[1]
    assert len(lines) == 2
    record = json.loads((out / "model.json").read_text())
    assert record["class_names"] == list(NAMES)
    assert record["step"] == 2
    assert record["protocol"] == {"crop_val": False, "crop": 513}
    assert record["method"]["name"] == "ssul"
    assert (record["method"]["fields"]["unknown"], record["method"]["fields"]["loss_type"]) == (
        "saliency",
        "bce",
    )

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = [
        "predict",
        str(out),
        str(tmp_path / "photo.png"),
        "--out",
        str(tmp_path / "labels"),
        "--no-overlay",
    ]
    assert cli.main(done) == 0
    labels = np.array(Image.open(next((tmp_path / "labels").glob("*.png"))))
    net = build(steps=(18, 1, 1), width=256)
    with torch.no_grad():
        scores = net.double().scores(normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    best = scores.topk(2, dim=1).values[0]
    clear = (best[0] - best[1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    assert (labels == scores.argmax(1)[0].numpy())[clear].all()
    assert len(np.unique(labels)) > 2

    capsys.readouterr()
    assert cli.main(["eval", str(out), "--data.root", str(root), "--workers", "0", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["steps"][-1]["per_class"]) == 21


def test_tasks_with_an_order_name_their_classes_in_it(tmp_path: Path) -> None:
    path = save(build(steps=(15, 1), width=256), tmp_path / "b.pth")
    assert imported(path, tmp_path / "b", "--task", "15-1_b", "--step", "1", "--loss_type", "ce_loss") == 0
    _, record = load_model(tmp_path / "b")
    # SSUL's order b, by VOC id: 12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11, then 17, 3, 6, 18, 10
    assert record["class_names"][1:4] == ["dog", "chair", "tvmonitor"]
    assert record["class_names"][15:] == ["diningtable", "sheep"]
    assert record["scenario"]["classes"][-4:] == ["bird", "bus", "sofa", "cow"]
    assert record["method"]["fields"]["loss_type"] == "ce"
    assert record["protocol"] == {"crop_val": True, "crop": 513}


def test_ade_without_unknown_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(
        build("deeplabv3plus_mobilenet", steps=(100, 50), unknown=False, width=256), tmp_path / "a.pth"
    )
    more = ("--dataset", "ade", "--task", "100-50", "--step", "1", "--model", "deeplabv3plus_mobilenet")
    assert imported(path, tmp_path / "a", *more, "--setting", "disjoint") == 0
    assert "no unknown head" in capsys.readouterr().out
    model, record = load_model(tmp_path / "a")
    assert model.n_classes == 151
    assert record["class_names"] == ["background", *default_names()]
    assert record["scenario"]["data"] == "ade20k"
    assert record["scenario"]["setting"] == "disjoint"
    assert record["method"]["fields"]["unknown"] == "none"
    assert default_names()[:3] == ("wall", "building", "sky")


def test_separable_is_ignored_by_v3_as_in_the_reference(full: Path, tmp_path: Path) -> None:
    assert imported(full, tmp_path / "model", "--separable_conv") == 0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--task", "15-1"), "fit --task 18-1 --step 2"),
        (("--step", "1"), "fit --task 18-1 --step 2"),
        (("--step", "3"), "task 18-1 has steps 0 to 2, got --step 3"),
        (("--task", "18-3"), "does not add up"),
        (("--dataset", "ade", "--task", "100-50", "--step", "1"), "fit --task 18-1 --step 2"),
        (("--model", "deeplabv3_resnet101"), "use --model deeplabv3_mobilenet"),
        (("--model", "deeplabv3_mobilnet"), "argument --model: invalid choice"),
        (("--crop_size", "0"), "--crop_size should be at least 1, got 0"),
        (("--taks", "18-1"), 'Did you mean "--task"?'),
    ],
)
def test_options_that_do_not_fit_write_nothing(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], expected: str
) -> None:
    assert imported(full, tmp_path / "folder" / "model", *more) == 2
    captured = capsys.readouterr()
    assert expected in only_line(captured.err)
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_left_alone(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    assert imported(full, tmp_path) == 2
    assert "exists and is not a model directory" in only_line(capsys.readouterr().err)
    assert imported(full, tmp_path / "notes.txt" / "model") == 2
    assert "model cannot be written (" in only_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == before


def test_values_that_only_code_can_give(full: Path, tmp_path: Path) -> None:
    from segrow.commands.import_ssul import import_checkpoint

    given: dict[str, Any] = {
        "model": "deeplabv3_mobilenet", "dataset": "voc", "task": "18-1", "step": 2, "setting": "overlap",
        "output_stride": 16, "separable": False, "crop": None, "loss_type": "bce_loss",
    }  # fmt: skip
    for wrong, hint in (
        ({"loss_type": "bse_loss"}, "bce_loss"),
        ({"model": "deeplabv3_resnet100"}, "deeplabv3_"),
    ):
        with pytest.raises(UserError, match=f'is not possible; choose .* Did you mean "{hint}'):
            import_checkpoint(full, tmp_path / "model", **given | wrong)
    assert not (tmp_path / "model").exists()


def test_dividing_classes_needs_no_data() -> None:
    raw, sizes = divide_classes("voc", NAMES, "15-1")
    assert (raw, sizes) == (list(range(1, 21)), [15, 1, 1, 1, 1, 1])
    assert divide_classes("ade20k", ("background", *default_names()), "100-10")[1] == [
        100,
        10,
        10,
        10,
        10,
        10,
    ]
    assert divide_classes("voc", NAMES, "offline")[1] == [20]


def test_training_goes_on_from_an_imported_base(root: Path, tmp_path: Path) -> None:
    net = build(steps=(18,), width=256)
    path = save(net, tmp_path / "step_0.pth")
    assert imported(path, tmp_path / "base", "--step", "0") == 0
    more = ("--task", "18-1", "--data.classes", ",".join(NAMES[1:]), "--model.name", "deeplabv3_mobilenet")
    more += ("--model.width", "256", "--model.reference_padding", "true")
    more += ("--train.epochs", "1", "--base", str(tmp_path / "base"))
    out = tmp_path / "run"
    assert start(root, out, *more, "--train.batch_size", "2", "--memory.size", "4") == 0
    steps = results(out)["steps"]
    assert [s["known"] for s in steps] == [19, 20, 21]
    assert [s["from_base"] for s in steps] == [str(tmp_path / "base"), None, None]
    base, _ = load_model(tmp_path / "base")
    last, _ = load_model(out / "steps" / "02" / "model")
    kept = base.trunk.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in last.trunk.state_dict().items())
    assert torch.equal(base.heads[1].out.weight, last.heads[1].out.weight)
    assert not torch.equal(base.heads[0].out.bias, last.heads[0].out.bias)


def test_the_restatement_imports_nothing_of_segrow() -> None:
    assert "segrow" not in {name.split(".")[0] for name in vars(reference_net)}
    text = Path(reference_net.__file__).read_text()
    assert not [line for line in text.splitlines() if line.startswith(("import segrow", "from segrow"))]
    assert shake.__module__ == "reference_net"
