"""No name that stands in a file is imported, unless the user allows it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import model, start

import segrow
from segrow import cli
from segrow.errors import UserError
from segrow.model.record import hashes_of

CODE = "from pathlib import Path\nPath(__file__).with_suffix('.trace').write_text('it ran')\nclass X: pass\n"
EVIL = "evil_package.module"


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert start(root, out, "--train.epochs", "1", "--steps", "1") == 0
    return out


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module can be imported; the file is there once it was."""
    package = tmp_path / "modules" / "evil_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(package.parent))
    for name in ("evil_package", EVIL):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return package / "module.trace"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run whose model names the module as its method, with hashes that fit."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    path = model(copy, 0) / "model.json"
    record = json.loads(path.read_text())
    record["method"] = {"name": EVIL, "fields": {}}
    record["hashes"] = hashes_of(record, record["hashes"]["files"])
    path.write_text(json.dumps(record))
    return copy


def test_the_trace_is_left_by_an_import(trace: Path) -> None:
    __import__(EVIL)
    assert trace.exists()


@pytest.mark.parametrize(
    "words",
    [
        lambda run, root, out: ["eval", str(run), "--data.root", str(root)],
        lambda run, root, out: ["predict", str(run), str(root / "JPEGImages"), "--out", str(out)],
        lambda run, root, out: ["report", str(run), "--data.root", str(root), "--out", str(out / "x.html")],
        lambda run, root, out: ["add", str(model(run, 0)), "--data", str(root), "--classes", "bird"],
        lambda run, root, out: ["results", str(run)],
        lambda run, root, out: ["lineage", str(model(run, 0))],
    ],
    ids=["eval", "predict", "report", "add", "results", "lineage"],
)
def test_commands_that_read_a_model(
    run: Path, root: Path, tmp_path: Path, trace: Path, words: Callable[[Path, Path, Path], list[str]]
) -> None:
    cli.main(words(run, root, tmp_path / "out"))
    assert not trace.exists()


def test_python(run: Path, trace: Path) -> None:
    with pytest.raises(UserError, match="code outside segrow"):
        segrow.load(str(run))
    assert not trace.exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("base", ["run", "model"])
def test_a_base_step(run: Path, root: Path, tmp_path: Path, trace: Path, base: str) -> None:
    place = run if base == "run" else model(run, 0)
    start(root, tmp_path / "out", "--base", str(place), "--train.epochs", "1", "--report", "true")
    assert not trace.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_continued(run: Path, root: Path, trace: Path) -> None:
    """Its page reads the models of all steps."""
    start(root, run, "--train.epochs", "1", "--steps", "2", "--report", "true")
    assert not trace.exists()


@pytest.mark.parametrize("group", ["memory", "train", "model", "data"])
@pytest.mark.parametrize(
    "value",
    [
        f"{EVIL}.X",
        {"class_path": f"{EVIL}.X"},
        {"class_path": f"{EVIL}.X", "init_args": {}},
        {"__path__": f"{EVIL}.X"},
    ],
    ids=str,
)
def test_a_class_in_a_file_of_options(
    group: str, value: Any, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.yaml").write_text(json.dumps({group: value}))
    for command in (["train"], ["reproduce", "voc-15-1-ssul"]):
        assert cli.main([*command, "--config", str(tmp_path / "options.yaml")]) == 2
    assert not trace.exists()
    line = capsys.readouterr().err.splitlines()[0]
    assert "expected a mapping of options" in line or f"no option {group}." in line


@pytest.mark.parametrize(
    "text",
    [
        f"memory.class_path: {EVIL}.X",
        f"class_path: {EVIL}.X",
        "config: other.yaml",
        f"reference: {EVIL}.X",
        "train.lr: 0.1\ntrain: 3",
    ],
)
def test_other_keys_in_a_file_of_options(
    text: str, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.yaml").write_text(f"{text}\n")
    assert cli.main(["train", "--config", str(tmp_path / "options.yaml")]) == 2
    line = capsys.readouterr().err
    assert "no option" in line or "in two forms" in line
    assert not trace.exists()


@pytest.mark.parametrize("method", [EVIL, {"name": EVIL}, {"name": EVIL, "fields": {}}])
def test_a_method_in_a_file_of_options(
    method: Any, tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.yaml").write_text(json.dumps({"method": method, "allow_code": True}))
    words = ["train", "--config", str(tmp_path / "options.yaml")]
    assert cli.main(words) == 2  # a file does not allow itself
    assert "no option allow_code" in capsys.readouterr().err
    (tmp_path / "options.yaml").write_text(json.dumps({"method": method}))
    assert cli.main(words) == 2
    assert f"code outside segrow ({EVIL}); give --allow_code" in capsys.readouterr().err
    assert not trace.exists()
    assert cli.main([*words, "--allow_code"]) == 2
    assert "should hold exactly one Method, got 0" in capsys.readouterr().err
    assert trace.exists()
