"""A model.json that fits its checksums and contradicts itself is one line of every command that reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import only_line

from segrow import cli
from segrow.config import ModelConfig
from segrow.model.lineage import rename_class, versions
from segrow.model.record import hashes_of
from segrow.model.segmenter import build_segmenter
from segrow.model.store import save_model

NAMES = ["background", "cat", "dog"]
META: dict[str, Any] = {
    "step": 0,
    "class_names": NAMES,
    "scenario": {"data": "voc", "task": "2-1", "setting": "overlap", "classes": NAMES},
    "method": {"name": "ssul", "fields": {"unknown": "none"}},
    "protocol": {"crop_val": False, "crop": 64},
    "views": {"crop_mode": "scale", "scale": [0.5, 2.0], "flip": 0.5},
    "training": {"train_s": None, "exemplars": 0},
    "parent": None,
}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "animals"
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
    save_model(build_segmenter(config, 2, False, lambda line: None), folder, META)
    rename_class(folder, "cat", "tiger")
    return folder


@pytest.fixture
def change(saved: Path) -> Any:
    """Edits model.json and hashes it again; as it was in the end."""
    path = saved / "model.json"
    before = path.read_bytes()

    def apply(edit: Edit, folder: Path = saved) -> Path:
        record = json.loads((folder / "model.json").read_text())
        edit(record)
        record["hashes"] = hashes_of(record, record["hashes"]["files"])
        (folder / "model.json").write_text(json.dumps(record))
        return saved

    yield apply
    path.write_bytes(before)


COMMANDS: list[list[str]] = [
    ["lineage", "MODEL"],
    ["rename-class", "MODEL", "tiger", "lion"],
    ["remove-class", "MODEL", "dog"],
    ["rollback", "MODEL", "--to-step", "0"],
    ["eval", "MODEL"],
    ["predict", "MODEL", "MODEL", "--out", "OUT"],
    ["add", "MODEL", "--data", "MODEL", "--classes", "zebra"],
]


def refusals(folder: Path, capsys: pytest.CaptureFixture[str], few: int | None = None) -> list[str]:
    """The line of each command; nothing is written."""
    before = sorted(folder.parent.rglob("*"))
    place = {"MODEL": str(folder), "OUT": str(folder.parent / "out")}
    lines = []
    for words in COMMANDS[:few]:
        assert cli.main([place.get(word, word) for word in words]) == 2, words
        lines.append(only_line(capsys.readouterr().err))
    assert sorted(folder.parent.rglob("*")) == before
    return lines


@pytest.mark.parametrize("key", ["step", "scenario", "method", "protocol"])
def test_a_record_that_says_too_little(change: Any, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = change(lambda r: r.pop(key))
    for line in refusals(folder, capsys):
        assert f"lacks {key}; give a model that segrow train, add or import made" in line


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda r: r.update(step=65535), "step holds 65535, expected a whole number from 0 to 65534"),
        (lambda r: r.update(class_steps=[0, 0, 1]), "class_steps are not those of its layout and step"),
        (
            lambda r: (r["model"]["layout"][1].update(step=7), r.update(class_steps=[0, 7, 7])),
            "class_steps are not those of its layout and step",
        ),
        (
            lambda r: (r["model"]["layout"][0].update(step=1), r.update(class_steps=[1, 0, 0], step=1)),
            "class_steps are not those of its layout and step",
        ),
        (lambda r: r["scenario"].update(classes=["background", "x", "y"]), "begins with other classes"),
        (lambda r: r["scenario"].update(classes=[]), "begins with other classes"),
        (lambda r: r.update(learnt_as={"zebra": "cat"}), "learnt_as names zebra, which is not a class"),
        (lambda r: r.update(learnt_as={"background": "cat"}), "learnt_as names background"),
        (
            lambda r: r["protocol"].update(crop=50_000),
            "crop holds 50000, expected a whole number from 1 to 4096",
        ),
        (lambda r: r["views"].update(scale=[0.5]), "views are not a scale LOW, HIGH and a flip from 0 to 1"),
        (lambda r: r["views"].update(scale=[2.0, 0.5]), "views are not a scale LOW, HIGH"),
        (lambda r: r["views"].update(scale=[1, 1e9]), "views are not a scale LOW, HIGH"),
        (lambda r: r["views"].update(flip=-1), "views are not a scale LOW, HIGH"),
        (
            lambda r: r["views"].update(crop_mode="../x"),
            'views.crop_mode holds "../x", expected area or scale',
        ),
        (lambda r: r.update(views={}), "views lacks crop_mode"),
        (
            lambda r: r["training"].update(exemplars="x"),
            'training.exemplars holds "x", expected a whole number',
        ),
        (lambda r: r["training"].update(train_s=[]), "training.train_s holds a list of 0"),
    ],
)
def test_a_record_that_contradicts_itself(
    change: Any, edit: Edit, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in refusals(change(edit), capsys, 2):
        assert expected in line
        assert line.endswith("; copy it again")


def test_indices_of_a_method_are_numbers(change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = change(lambda r: r["method"]["fields"].update(gives_way=["x"]))
    assert cli.main(["remove-class", str(folder), "dog"]) == 2
    line = only_line(capsys.readouterr().err)
    assert 'method: gives_way[0] holds "x", expected a whole number from 0 to 65535; copy it again' in line


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda r: r["method"]["fields"].update(threshold=-3), "method.threshold is -3"),
        (lambda r: r["model"]["config"].update(dropout=7), "dropout is 7, expected a probability below 1"),
        (lambda r: r["model"]["config"].update(output_stride=3), "output stride 3 is not possible"),
        (lambda r: r.update(format=[]), "is not a model of segrow: expected a format version in it"),
    ],
)
def test_a_number_that_no_option_may_have_is_said_of_the_file(
    change: Any, saved: Path, edit: Edit, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(edit)
    assert cli.main(["predict", str(saved), str(saved), "--out", str(saved.parent / "out")]) == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith(f"segrow: {saved / 'model.json'}")
    assert expected in line
    assert line.endswith(("; copy it again", "; copy the model again"))


def test_a_version_that_says_too_little(change: Any, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (version,) = (v.folder for v in versions(saved) if not v.current)
    before = (version / "model.json").read_bytes()
    (version / "model.json").unlink()  # it may be linked to
    (version / "model.json").write_bytes(before)
    change(lambda r: r.pop("step"), version)
    for words in (["lineage", str(saved)], ["rollback", str(saved), "--to-step", "0"]):
        assert cli.main(words) == 2
        assert f"{version / 'model.json'} lacks step" in only_line(capsys.readouterr().err)
    (version / "model.json").write_bytes(before)


def test_a_line_is_not_as_long_as_a_name(change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A name of a million letters; its beginning and what to do are said."""

    def edit(record: dict[str, Any]) -> None:
        for names in (record["class_names"], record["scenario"]["classes"]):
            names[2] = "a" * 10**6

    assert cli.main(["remove-class", str(change(edit)), "dog"]) == 2
    line = only_line(capsys.readouterr().err)
    assert len(line) < 4200
    assert "it knows tiger, aaa" in line
    assert line.endswith("a.")
