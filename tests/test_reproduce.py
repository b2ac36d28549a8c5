"""segrow reproduce: the whole path of every recipe, shortened; what is printed; remarks in results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import NAMES, build_tree, only_line, results, start

from segrow import cli
from segrow.commands import reproduce
from segrow.commands.options import parse_run
from segrow.data import open_dataset
from segrow.data.tiny import compose
from segrow.protocol import summarise
from segrow.recipes import Cell, cell, cells
from segrow.scenario import build_scenario

QUICK = "quick: a shortened run on a tiny network, not comparable with any published number"
# one of every method and data set, both settings
SAMPLE = (
    "voc-15-1-mib",
    "voc-10-1-plop-disjoint",
    "voc-2-2-ssul-disjoint",
    "voc-19-1-ssul-m",
    "ade-100-5-mib-disjoint",
    "ade-100-10-plop",
    "ade-100-10-ssul",
    "ade-100-5-ssul-m-disjoint",
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trees")
    return {layout: compose(root / layout, layout) for layout in ("voc", "ade20k")}


def quick(name: str, out: Path, *more: str) -> int:
    return cli.main(["reproduce", name, "--quick", "--out", str(out), "--train.device", "cpu", *more])


# --- every recipe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [pytest.param(c, marks=[] if c.name in SAMPLE else [pytest.mark.slow], id=c.name) for c in cells()],
)
def test_quick_runs_the_path_of_every_recipe(
    found: Cell, trees: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert quick(found.name, out, "--data.root", str(trees[found.data]), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    stored, config = results(out), yaml.safe_load((out / "config.yaml").read_text())
    assert (stored["data"], stored["task"], stored["setting"]) == (found.data, found.task, found.setting)
    assert stored["method"] == config["method"]["name"] == found.method
    assert len(stored["steps"]) == printed["steps"] == 2
    base, increment = map(int, found.task.split("-"))
    assert [len(step["classes"]) for step in stored["steps"]] == [base, increment]
    assert [step["exemplars"] for step in stored["steps"]] == [0, 8 if found.row == "ssul-m" else 0]
    # it is the recipe that ran, but for what --quick shortens
    whole = parse_run([], "reproduce", "", "", found.name).config.train
    for key in ("lr", "step0_lr", "policy", "lr_floor", "crop_mode", "select", "padding", "void"):
        assert config["train"][key] == getattr(whole, key)
    # counted as its paper does, and never set against the published number
    summary = summarise(stored, "ssul" if found.row.startswith("ssul") else "plop")
    assert printed["definition"] == summary["definition"]
    assert printed["measured"] == pytest.approx(100 * summary["steps"][-1]["all"], abs=1e-9)
    assert (printed["published"], printed["difference"], printed["comparable"]) == (
        found.published,
        None,
        False,
    )
    assert stored["remarks"] == printed["remarks"]
    assert stored["remarks"][0] == QUICK


def test_the_sample_covers_every_method_data_set_and_setting() -> None:
    chosen = [found for found in cells() if found.name in SAMPLE]
    assert len(chosen) == len(SAMPLE) == 8
    assert len({(found.row, found.data) for found in chosen}) == 8
    assert {(found.data, found.setting) for found in chosen} == {
        (data, setting) for data in ("voc", "ade20k") for setting in ("overlap", "disjoint")
    }


# --- what is printed ---------------------------------------------------------------------------------------


def test_quick_composes_its_data_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "voc-2-1-mib", "--quick", "--train.device", "cpu"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "(not comparable)" in out
    assert "9.88" in out
    assert f"- {QUICK}" in out
    assert "- batch normalisation and ReLU instead of" in out
    assert "- published: PLOP's re-run" in out
    assert f"run folder: {Path('runs/voc-2-1-mib-quick/run')}" in out
    assert {f.name for f in Path("runs/voc-2-1-mib-quick").iterdir()} == {"data", "run"}
    assert cli.main(words) == 0
    assert capsys.readouterr().err.count("done before") == 2
    # and wherever else the result is shown
    for more in ([], ["--markdown"]):
        assert cli.main(["results", "runs/voc-2-1-mib-quick/run", *more]) == 0
        assert QUICK in " ".join(capsys.readouterr().out.split())
    assert cli.main(["results", "runs/voc-2-1-mib-quick/run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"][0] == QUICK


def test_reference_is_said_and_done(
    trees: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert quick("voc-15-5-ssul-m", out, "--data.root", str(trees["voc"]), "--reference") == 0
    printed = capsys.readouterr().out
    for flag in ("--memory.labels seen", "--memory.unshifted true", "--train.padding background"):
        assert f"--reference: {flag}: " in printed
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["memory"] == {"size": 8, "labels": "seen", "unshifted": True}
    assert (config["train"]["padding"], config["train"]["select"]) == ("background", "best")
    said = results(out)["remarks"]
    assert "exemplar labels are not shifted for the unknown channel, as in SSUL's code" in said
    assert not [line for line in said if line.startswith(("exemplar labels are right", "padding is ignored"))]


def summary_of(kept: int, steps: int = 2) -> Any:
    """Two steps on three classes; 100 - kept of 100 pixels of class 1 are lost in the second."""
    first, second = np.diag([100, 100, 0])[:, :2], np.diag([100, kept, 100])
    second[1, 0] = 100 - kept
    stored = [
        {"step": i, "known": 2 + i, "matrix": m.tolist(), "matrix_known": m.tolist()}
        for i, m in enumerate((first, second))
    ]
    names = ["background", "cat", "dog"]
    value = {"format": 1, "data": "voc", "task": "1-1", "classes": names, "steps": stored[:steps]}
    return summarise({**value, "remarks": ["one remark"]}, "ssul")


def test_measured_stands_beside_published_with_the_difference() -> None:
    found = cell("voc-15-1-ssul")
    assert found is not None
    values = reproduce.compared(found, summary_of(50), True)
    measured = 100 * (100 / 150 + 0.5 + 1) / 3
    assert values["measured"] == pytest.approx(measured, abs=1e-9)
    assert values["difference"] == pytest.approx(measured - 67.61, abs=1e-9)
    assert values["source"] == found.source
    assert values["remarks"] == ["one remark"]
    unpublished = cell("voc-2-2-ssul")
    assert unpublished is not None
    values = reproduce.compared(unpublished, summary_of(50), True)
    assert (values["published"], values["difference"], values["source"]) == (None, None, None)


def test_the_table_shows_the_sign_or_says_why_there_is_none() -> None:
    from rich.console import Console

    def shown(name: str, comparable: bool) -> str:
        found = cell(name)
        assert found is not None
        console = Console(width=120)
        with console.capture() as capture:
            console.print(reproduce.comparison(found, summary_of(50), comparable))
        return capture.get()

    assert "67.61 │    72.22 │      +4.61" in shown("voc-15-1-ssul", True)
    assert "none published" in shown("voc-15-1-ssul-disjoint", True)
    assert "comparable" not in shown("voc-15-1-ssul", True)
    assert "67.61 │    72.22 │ not comparable" in shown("voc-15-1-ssul", False)


def test_a_changed_option_is_named_beside_the_number(trees: dict[str, Path]) -> None:
    found = cell("voc-15-1-ssul-m")
    assert found is not None

    def said(*words: str) -> list[str]:
        options = parse_run([*words, "--train.device", "cpu"], "reproduce", "", "", found.name)
        return list(reproduce.comments(found, options, quick=False))

    usual = [line for line in said() if line.startswith("settings differ")]
    assert usual == ["settings differ from the published ones: train.precision auto instead of 16"]
    changed = said(
        "--train.clip", "1", "--method.threshold", "0.5", "--data.root", "D", "--train.workers", "7"
    )
    line = next(line for line in changed if line.startswith("settings differ"))
    assert "train.clip 1 instead of 0" in line
    assert "method.threshold 0.5 instead of 0.7" in line
    assert "root" not in line
    assert "workers" not in line
    assert "the paper's batch is 32, run.sh of its code has 16" in changed
    reference = [line for line in said("--reference") if line.startswith("settings differ")]
    assert reference == usual


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_stops_early_is_not_compared(
    trees: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.name", "deeplabv3_test_resnet", "--model.weights", "none", "--model.width", "8"]
    words += ["--train.epochs", "1", "--train.batch_size", "4", "--train.crop", "64", "--train.workers", "0"]
    words += ["--train.device", "cpu", "--data.root", str(trees["voc"]), "--out", str(tmp_path / "run")]
    assert cli.main(["reproduce", "voc-19-1-mib", *words, "--steps", "1"]) == 0
    assert (tmp_path / "run" / "report.html").exists()
    words += ["--report", "false"]
    out = capsys.readouterr().out
    assert "1 of 2 steps is done: not comparable yet" in out
    assert "(not comparable)" in out
    assert cli.main(["reproduce", "voc-19-1-mib", *words]) == 0
    out = capsys.readouterr().out
    assert "not comparable" not in out
    assert "train.epochs 1 instead of 30" in out
    table = next(line for line in out.splitlines() if line.startswith("│ all"))
    published, measured, difference = (cell.strip() for cell in table.split("│")[2:5])
    assert published == "69.15"
    assert float(difference) == pytest.approx(float(measured) - 69.15, abs=0.011)
    stored = summarise(results(tmp_path / "run"), "plop")["steps"][-1]["all"]
    assert stored is not None
    assert measured == f"{100 * stored:.2f}"


# --- remarks of other runs ---------------------------------------------------------------------------------


def test_a_memory_that_no_paper_has_is_a_remark(tmp_path: Path) -> None:
    """The engine says it, so the Python API has it too."""
    from segrow.config import DataConfig, MemoryConfig, ModelConfig, RunConfig, TrainConfig
    from segrow.engine.run import train
    from segrow.methods.base import make_method

    root = build_tree(tmp_path / "VOC2012").root
    config = RunConfig(
        task="2-1",
        steps=1,
        data=DataConfig(root=str(root), classes=NAMES),
        model=ModelConfig(name="deeplabv3_test_resnet", weights="none", width=8, head="linear"),
        memory=MemoryConfig(size=6),
        train=TrainConfig(epochs=1, batch_size=4, crop=32, workers=0, device="cpu"),
    )
    mib = train(config, make_method("mib", {}), tmp_path / "mib")
    sentence = "a memory of 6 images, which method mib was published without"
    assert mib["remarks"] == results(tmp_path / "mib")["remarks"] == [sentence]
    again = train(config, make_method("mib", {}), tmp_path / "given", remarks=("mine",))
    assert again["remarks"] == ["mine", sentence]


def test_train_names_the_deviations_below_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    words = ["--train.epochs", "1", "--steps", "1", "--method", "lwf", "--memory.size", "6", "--reference"]
    assert start(root, tmp_path / "run", *words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--reference: --train.void background: " in out
    assert "run: batch normalisation and ReLU instead of synchronised in-place ABN" in out
    assert "run: a memory of 6 images, which method lwf was published without" in out
    assert "run: settings differ from the published ones: model.name deeplabv3_test_resnet instead of" in out
    said = results(tmp_path / "run")["remarks"]
    assert (
        "pixels of VOC's border are trained as background, as in MiB's own code (PLOP's, whose re-run MiB's "
        "published row is, ignores them)" in said
    )


def test_a_remark_that_runs_share_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from segrow.report.tables import notes

    lines = notes([("a", summary_of(50)), ("b", summary_of(20))])
    assert [line for line in lines if "one remark" in line] == ["a, b: one remark"]


# --- the tiny data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["voc", "ade20k"])
def test_every_step_of_every_task_has_images(data: str, trees: dict[str, Path]) -> None:
    found = open_dataset(data, str(trees[data]))
    presence = found.presence("train")
    names = found.class_names
    for chosen in (c for c in cells() if c.data == data and c.row == "mib"):
        scenario = build_scenario(data, names, found.ignore_id, presence, chosen.task, chosen.setting)
        assert min(len(step.images) for step in scenario.steps) >= reproduce.BATCH
    assert found.presence("val").present.all(0).sum() <= 1  # background
    assert found.presence("val").present[:, 1:].any(0).all()


def test_the_tiny_voc_has_ignored_outlines_and_saliency(trees: dict[str, Path]) -> None:
    found = open_dataset("voc", str(trees["voc"]))
    found.require_saliency()
    image = found.ids("train")[0]
    mask, saliency = found.mask("train", image), found.saliency("train", image)
    assert (mask == 255).any()
    assert (saliency[(mask > 0) & (mask < 255)] == 1).all()
    assert ((saliency == 1) & (mask == 0)).any()  # something unknown
    assert (saliency == 0).any()
    assert found.image("train", image).shape == (*mask.shape, 3)


def test_composing_again_changes_nothing(tmp_path: Path) -> None:
    compose(tmp_path / "a", "voc")
    files = {
        f.relative_to(tmp_path / "a"): f.read_bytes() for f in (tmp_path / "a").rglob("*") if f.is_file()
    }
    compose(tmp_path / "a", "voc")
    (tmp_path / ".segrow-0123456789abcdef.tmp").mkdir()  # one that was cut off
    compose(tmp_path / "b", "voc")
    assert files == {
        f.relative_to(tmp_path / "b"): f.read_bytes() for f in (tmp_path / "b").rglob("*") if f.is_file()
    }
    assert {f.name for f in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(ValueError, match='layout "coco", expected voc or ade20k'):
        compose(tmp_path / "c", "coco")


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected the name of a recipe first, got nothing; `segrow recipes` lists them"),
        (["--quick"], "expected the name of a recipe first, got --quick"),
        (
            ["voc-15-1-sul"],
            'no recipe "voc-15-1-sul"; `segrow recipes` lists all. Did you mean "voc-15-1-ssul"?',
        ),
        (["animals-4-1-ssul"], "has no published number; use segrow train --recipe animals-4-1-ssul"),
        (["voc-15-1-ssul"], "needs its folder; add --data.root DIR"),
        (
            ["voc-15-1-ssul", "--method", "mib"],
            "--method: the recipe voc-15-1-ssul says it; use another recipe",
        ),
        (["voc-15-1-ssul", "--recipe=voc-15-1-mib"], "--recipe: the recipe voc-15-1-ssul says it"),
        (
            ["voc-15-1-ssul", "--task", "15-5"],
            "recipe voc-15-1-ssul, but task 15-5 instead of 15-1; use another",
        ),
        (["voc-15-1-ssul", "--setting", "disjoint"], "but setting disjoint instead of overlap"),
        (["voc-15-1-ssul", "--data.name", "folder"], "but data.name folder instead of voc"),
        (["voc-15-1-ssul", "--train.lrr", "3"], 'Did you mean "--train.lr"?'),
        (["voc-15-1-ssul", "--quik"], 'Did you mean "--quick"?'),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *words]) == 2
    shown = capsys.readouterr()
    assert expected in only_line(shown.err)
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert quick("voc-15-1-mib", tmp_path / "file") == 2
    assert "cannot be made (" in only_line(capsys.readouterr().err)


def test_a_refused_quick_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused after its data were composed: crops that local POD cannot cut."""
    out = tmp_path / "quick"
    words = ["reproduce", "voc-15-1-plop", "--quick", "--train.crop", "32", "--out", str(out)]
    assert cli.main(words) == 2
    assert "use --train.crop 64 or more" in capsys.readouterr().err
    assert not out.exists()
