"""Steps on top of steps: whatever was done to a model before, `segrow add` goes on, or says why not."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import only_line, snapshot
from trees import folder_tree

from segrow import cli
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.grow import AddOptions, carry_out, plan_addition
from segrow.model.segmenter import build_segmenter
from segrow.model.store import save_model

NAMES = ("background", "cat", "dog", "zebra", "okapi", "yak")
META: dict[str, Any] = {
    "step": 0,
    "class_names": list(NAMES[:3]),
    "scenario": {"data": "folder", "task": "2-1", "setting": "overlap", "classes": list(NAMES[:3])},
    "method": {"name": "ssul", "fields": {"unknown": "none"}},
    "protocol": {"crop_val": False, "crop": 32},
    "training": {"train_s": None, "exemplars": 0},
    "parent": None,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shown = [{1}, {2}, {3}, {4}, {5}] * 2
    return folder_tree(tmp_path_factory.mktemp("photos") / "photos", NAMES, train=shown, val=0).root


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "animals"
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
    save_model(build_segmenter(config, 2, False, lambda line: None), folder, META)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "animals"))


def add(model: Path, data: Path, classes: str, *more: str) -> int:
    fast = ("--workers", "0", "--device", "cpu", "--epochs", "1", "--saliency", "none")
    return cli.main(["add", str(model), "--data", str(data), "--classes", classes, *fast, *more])


def classes(model: Path) -> dict[str, int]:
    """The step in which each class was learnt."""
    record = json.loads((model / "model.json").read_text())
    return dict(zip(record["class_names"][1:], record["class_steps"][1:], strict=True))


@pytest.mark.slow
def test_a_long_chain(model: Path, photos: Path, tmp_path: Path) -> None:
    """Each class has the step it was learnt in last, and every earlier version comes back byte for byte."""
    first = snapshot(model)
    assert add(model, photos, "zebra") == 0
    assert cli.main(["remove-class", str(model), "zebra"]) == 0
    assert add(model, photos, "zebra,okapi") == 0  # removed, so it may be learnt again
    assert classes(model) == {"cat": 0, "dog": 0, "zebra": 2, "okapi": 2}
    assert cli.main(["remove-class", str(model), "cat"]) == 0
    assert cli.main(["remove-class", str(model), "dog"]) == 0  # nothing is left of step 0
    assert cli.main(["rollback", str(model), "--to-step", "1"]) == 0
    assert classes(model) == {"cat": 0, "dog": 0}  # the newest of step 1 is that without zebra
    assert cli.main(["rename-class", str(model), "cat", "tiger"]) == 0
    assert add(model, photos, "cat", "--dry-run") == 2  # it is the tiger
    assert add(model, photos, "yak") == 0
    assert classes(model) == {"tiger": 0, "dog": 0, "yak": 2}
    assert (
        cli.main(["predict", str(model), str(photos / "images/train"), "--out", str(tmp_path / "seen")]) == 0
    )
    assert cli.main(["rollback", str(model), "--to-step", "0"]) == 0
    there = {name: kept for name, (_, kept) in snapshot(model).items() if not name.startswith("history/")}
    assert there == {name: kept for name, (_, kept) in first.items()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["animals", "seen"]


BEFORE = {
    "add": ["add", "--data", "PHOTOS", "--classes", "okapi"],
    "rename": ["rename-class", "cat", "tiger"],
    "remove": ["remove-class", "dog"],
    "rollback": ["rollback", "--to-step", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(BEFORE, 2)), ids="-".join)
def test_add_after_every_order_of_changes(
    model: Path, photos: Path, order: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(model, photos, "yak") == 0
    expected = {"cat": 0, "dog": 0, "yak": 1}
    for change in order:
        if change == "add":
            assert add(model, photos, "okapi") == 0
            expected["okapi"] = max(json.loads((model / "model.json").read_text())["step"], 1)
        else:
            command, *words = BEFORE[change]
            assert cli.main([command, str(model), *words]) == 0
        if change == "rename":
            expected = {("tiger" if name == "cat" else name): step for name, step in expected.items()}
        elif change == "remove":
            del expected["dog"]
        elif change == "rollback":
            expected = {"cat": 0, "dog": 0}
    assert classes(model) == expected
    assert add(model, photos, "zebra") == 0
    record = json.loads((model / "model.json").read_text())
    assert classes(model) == expected | {"zebra": record["step"]}
    assert record["method"]["fields"]["gives_way"][-1] == len(record["class_names"]) - 1
    assert [p.name for p in model.parent.iterdir()] == ["animals"]
    capsys.readouterr()
    assert add(model, photos, "zebra") == 2
    assert "zebra" in only_line(capsys.readouterr().err)


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """As far as `add` looks at one."""
    shutil.copytree(saved, tmp_path / "run/steps/00/model")
    (tmp_path / "run/config.yaml").touch()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("animals/inner", "is inside the model"),
        ("animals/history", "is inside the model"),
        ("animals/history/001-0123456789ab", "is inside the model"),
        ("run/steps/01/model", "is among the steps of run"),
        ("run/steps/00/model/history", "is inside the model"),
    ],
)
def test_a_model_does_not_go_into_another(
    model: Path, run: Path, photos: Path, place: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There the next version would copy it as its own past, or a run take it for its next step."""
    before = sorted(model.parent.rglob("*"))
    out = ("--out", str(model.parent / place))
    words = ["--model", "deeplabv3_resnet50", "--dataset", "voc", "--task", "15-1", "--step", "0"]
    for call in (
        ["add", str(model), "--data", str(photos), "--classes", "zebra", *out],
        ["add", "--from", "weights.pth", "--names", "cat,dog", *out],
        ["import-ssul", "weights.pth", *words, *out],
    ):
        assert cli.main(call) == 2
        assert expected in only_line(capsys.readouterr().err)
    assert sorted(model.parent.rglob("*")) == before


def test_a_model_that_was_written_meanwhile_is_not_replaced(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """Two calls with one --out: both have planned before the first takes the lock."""
    options = AddOptions(out=tmp_path / "new", workers=0, device="cpu", epochs=1, saliency="none")
    plans = [plan_addition(model, photos, [name], options) for name in ("zebra", "okapi")]
    assert carry_out(plans[0], quiet=True).passed
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="was written while the step was planned; give another --out"):
        carry_out(plans[1], quiet=True)
    assert snapshot(tmp_path) == before
