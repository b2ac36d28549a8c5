"""The command line: help, order of the sources of options, what every command prints and writes.

`python tests/test_cli.py` writes the frozen list of options again.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from runs import NAMES, last_line, matrices, model, only_line, options, results, start

from segrow import __version__, cli
from segrow.commands import options as run_options
from segrow.commands.parser import OneLineParser
from segrow.errors import UserError
from segrow.methods.base import method_names

SURFACE = Path(__file__).with_name("cli_surface.txt")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    assert start(root, out, "--train.epochs", "1") == 0
    return out


# --- help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Example: segrow {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_of_segrow_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "Example:" in out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and "segrow" not in line]
    assert listed == list(cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"segrow {__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_help_is_instant(flag: str) -> None:
    """Processor time of a whole process, which a busy machine does not change; and torch stays out."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys; from segrow import cli; cli.main([{flag!r}]); print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "segrow" in done.stdout
    assert not {"'torch'", "'numpy'", "'timm'", "'rich'"} & set(done.stdout.strip("[]").split(", "))
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_python_m_segrow() -> None:
    done = subprocess.run([sys.executable, "-m", "segrow", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"segrow {__version__}\n")


# --- the frozen list of options ---------------------------------------------------------------------------


class _Stop(Exception):
    pass


def _names(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and "-h" not in action.option_strings:
            yield from action.option_strings or [str(action.metavar)]


def _parser_of(words: list[str]) -> OneLineParser:
    found: list[OneLineParser] = []

    def capture(self: OneLineParser, args: object) -> None:
        found.append(self)
        raise _Stop

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_Stop):
        patch.setattr(OneLineParser, "parse_args", capture)
        cli.main(words)
    return found[0]


def surface() -> str:
    """Every option of every command, one a line."""
    lines = []
    for command in cli.COMMANDS:
        if command == "train":
            for method in method_names():
                parser = run_options._parser(method, "", "train")
                lines += [f"train ({method}) {name}" for name in _names(parser)]
            continue
        if command == "reproduce":  # takes all of train's but these
            only = [name for name in _names(run_options._parser("ssul", "", command)) if "." not in name]
            lines += [f"{command} {name}" for name in ["NAME", *only]]
            continue
        for words in [["data", "check"], ["data", "saliency"]] if command == "data" else [[command]]:
            lines += [f"{' '.join(words)} {name}" for name in _names(_parser_of(words))]
    return "".join(f"{line}\n" for line in sorted(set(lines)))


def test_options_are_those_of_the_frozen_list() -> None:
    """A changed name breaks scripts: if it is meant, write the list again (see the top of this file)."""
    assert surface() == SURFACE.read_text()


# --- where options come from ------------------------------------------------------------------------------


def test_flags_over_config_over_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 3, batch_size: 4}\nmethod: {name: ssul, threshold: 0.5}\n")
    recipe = ["--recipe", "animals-4-1-ssul"]
    first = run_options.parse_run(recipe, "train", "", "")
    assert (first.config.train.epochs, first.config.train.batch_size, first.config.train.crop) == (8, 16, 193)
    assert first.config.task == "4-1"
    second = run_options.parse_run([*recipe, "--config", str(file)], "train", "", "")
    assert (second.config.train.epochs, second.config.train.batch_size) == (3, 4)
    assert second.config.train.crop == 193
    assert second.method.fields()["threshold"] == 0.5
    flags = ["--train.epochs", "2", "--method.threshold=0.25", *recipe, "--config", str(file)]
    third = run_options.parse_run(flags, "train", "", "")
    assert (third.config.train.epochs, third.config.train.batch_size, third.config.train.crop) == (2, 4, 193)
    assert third.method.fields()["threshold"] == 0.25


def test_a_config_file_of_hyper_parameters_alone(tmp_path: Path) -> None:
    """Values of a file are typed like flags, and not one is lost."""
    file = tmp_path / "mine.yaml"
    file.write_text("method: {threshold: 0.5, unknown: none, pseudo: none}\n")
    found = run_options.parse_run(["--config", str(file)], "train", "", "").method.fields()
    assert (found["threshold"], found["unknown"], found["pseudo"]) == (0.5, "none", "none")
    file.write_text("method: {name: finetune, loss_type: bce}\n")
    assert run_options.parse_run(["--config", str(file)], "train", "", "").method.fields() == {
        "loss_type": "bce"
    }
    file.write_text("method: {unknown: maybe}\n")
    with pytest.raises(UserError, match="maybe"):
        run_options.parse_run(["--config", str(file)], "train", "", "")


def test_another_method_than_the_recipes_drops_its_settings() -> None:
    chosen = run_options.parse_run(["--recipe", "animals-4-1-ssul", "--method", "finetune"], "train", "", "")
    assert chosen.method.name == "finetune"
    assert chosen.config.train.crop == 193


def test_a_runs_own_config_reproduces_it(root: Path, run: Path) -> None:
    argv = options(root, run, "--train.epochs", "1")[1:]
    given = run_options.parse_run(argv, "train", "", "")
    again = run_options.parse_run(["--config", str(run / "config.yaml")], "train", "", "")
    assert again.config == given.config
    assert again.method == given.method
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["method"]["name"] == "ssul"
    assert stored["segrow"] == __version__


def test_a_runs_own_config_finds_the_run_complete(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(run / "config.yaml"), "--out", str(run), "--report", "false"]
    assert cli.main(["train", *words]) == 0
    assert "done before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--data.classes", "cat,dog"],
        ["--data.classes=cat,dog"],
        ["--data.classes", "[cat,dog]"],
        ["--data.classes=[cat, dog]"],
        ['--data.classes=["cat","dog"]'],
        ["--data.classes", "cat, dog"],
    ],
)
def test_lists_with_and_without_brackets(words: list[str]) -> None:
    assert run_options.parse_run(words, "train", "", "").config.data.classes == ("cat", "dog")


def test_lists_of_numbers() -> None:
    words = ["--model.rates", "2,4,6", "--train.scale=0.5,1.5"]
    config = run_options.parse_run(words, "train", "", "").config
    assert config.model.rates == (2, 4, 6)
    assert config.train.scale == (0.5, 1.5)


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "animals-4-1-ssul", "--method.threshold", "0.6", "--train.lr", "0.03"]
    assert cli.main(["train", *words, "--print_config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert run_options.parse_run(["--config", str(file)], "train", "", "") == run_options.parse_run(
        words, "train", "", ""
    )


def test_the_default_folder_names_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = options(root, tmp_path, "--train.epochs", "1", "--memory.size", "4", "--seed", "7")
    where = argv.index("--out")
    assert cli.main(argv[:where] + argv[where + 2 :]) == 0
    assert (tmp_path / "runs" / "voc_2-1_overlap_ssul-m4_7" / "results.json").exists()


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["trian"],
            'no command "trian"; there is demo, train, scenario, results, report, eval, predict, add, '
            "lineage, rollback, rename-class, remove-class, data, recipes, reproduce, methods, import-ssul. "
            'Did you mean "train"?',
        ),
        (
            ["train", "--method", "sul"],
            'no method "sul"; there is finetune, ilt, joint, lwf, mib, plop, ssul. Did you mean "ssul"?',
        ),
        (["train", "--recipe", "animals-4-1-sul"], 'Did you mean "animals-4-1-ssul"?'),
        (["train", "--trian.lr", "3"], 'Did you mean "--train.lr"?'),
        (["train", "--train.lrr", "3"], 'Did you mean "--train.lr"?'),
        (["train", "--train.lr", "x"], "--train.lr is x, expected a number"),
        (
            ["train", "--train.policy", "pol"],
            'pol, expected poly, warm_poly or step. Did you mean "poly"?',
        ),
        (
            ["train", "--setting", "overlapp"],
            'disjoint or partitioned. Did you mean "overlap"?',
        ),
        (
            ["train", "--method.thresold", "1"],
            "no option --method.thresold; method ssul has --method.init",
        ),
        (["train", "--method.thresold=1"], 'Did you mean "--method.threshold"?'),
        (["train", "--method", "joint", "--method.threshold", "1"], "method joint has --method.loss_type."),
        (["train", "--method.threshold", "x"], "--method.threshold is x, expected a number"),
        (["train", "--method.unknown", "salience"], 'Did you mean "saliency"?'),
        (["train", "--train.scale", "1,2,3"], "2 elements"),
        (["train", "--train.scale", "1,x"], "expected floats separated by commas, got 1,x"),
        (
            ["train", "--config", "nowhere.yaml"],
            "--config nowhere.yaml is missing; check the path",
        ),
        (["train", "--train.lr"], "--train.lr: expected one argument"),
        (["train", "--recipe"], "--recipe: expected one argument"),
        (["train", "stray"], "unrecognized arguments: stray"),
        (["scenario", "--tsk", "15-1"], 'Did you mean "--task"?'),
        (["results", "nowhere"], "nowhere has no results.json"),
        (["results", "nowhere", "--definition", "sul"], "ssul"),
        (["results"], "required: RUN"),
        (["eval", "nowhere"], "nowhere holds no model"),
        (["predict", "nowhere", "x.jpg", "--out", "y"], "nowhere holds no model"),
        (["predict", "nowhere", "x.jpg"], "required: --out"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    shown = capsys.readouterr()
    assert expected in only_line(shown.err)
    assert shown.err.startswith("segrow: ")
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {lrr: 3}", 'no option train.lrr. Did you mean "train.lr"?'),
        ("trian: {lr: 3}", 'no option trian. Did you mean "train"?'),
        ("method: {name: ssul, thresold: 3}", 'Did you mean "--method.threshold"?'),
        ("method: sul", 'Did you mean "ssul"?'),
        ("- 3", "mine.yaml holds a list of 1, expected a mapping; correct it"),
        ("method: [ssul]", "method holds a list of 1, expected text or a mapping"),
        ("method: {name: [ssul]}", "method.name holds a list of 1, expected text"),
        (f"train: {{epochs: {list(range(1000))}}}", "--train.epochs is [0, 1, 2,"),
        ("a: [", "is not YAML (did not find expected node content, line "),
    ],
)
def test_a_mistake_in_a_config_file(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        run_options.parse_run(["--config", str(tmp_path / "mine.yaml")], "train", "", "")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


# --- what a program may read --------------------------------------------------------------------------------


def test_scenario_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "scenario",
        "--data.root",
        str(root),
        "--data.classes",
        ",".join(NAMES),
        "--task",
        "2-1",
        "--json",
    ]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["steps"]
    assert [list(step) for step in found["steps"]] == [["index", "classes", "images"]] * 3
    assert [step["index"] for step in found["steps"]] == [0, 1, 2]
    assert [step["classes"] for step in found["steps"]] == [list(NAMES[:2]), [NAMES[2]], [NAMES[3]]]
    assert all(image.startswith("2007_") for step in found["steps"] for image in step["images"])


def test_scenario_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scenario", "--data.root", str(root), "--data.classes", ",".join(NAMES), "--task", "2-1"]
    assert cli.main(words) == 0
    assert "aeroplane, bicycle" in capsys.readouterr().out


def test_results_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", str(run), "--definition", "ssul", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"steps", "forgetting", "average"} <= set(found)
    for k, step in enumerate(found["steps"]):
        assert {"step", "old", "new", "all", "harmonic", "per_class"} <= set(step)
        assert list(step["per_class"]) == ["background", *NAMES[: 2 + k]]
        assert 0 <= step["all"] <= 1
    assert cli.main(["results", str(run), str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [found, found]


def test_eval_equals_the_run(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eval.json"
    words = ["--data.root", str(root), "--workers", "0", "--json", "--out", str(file)]
    assert cli.main(["eval", str(run), *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    step = json.loads(file.read_text())["steps"][0]
    assert (step["matrix"], step["matrix_known"]) == matrices(run)[-1]
    assert cli.main(["results", str(run), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["steps"][-1]
    assert {k: printed["steps"][0][k] for k in ("old", "new", "all", "per_class")} == {
        k: own[k] for k in ("old", "new", "all", "per_class")
    }


def test_eval_of_an_earlier_step(root: Path, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    words = ["--data.root", str(root), "--workers", "0", "--batch_size", "3", "--out", str(file)]
    assert cli.main(["eval", str(model(run, 1)), *words]) == 0
    step = json.loads(file.read_text())["steps"][0]
    assert (step["step"], step["known"]) == (1, 4)
    assert step["matrix"] == results(run)["steps"][1]["matrix"]


def test_eval_of_a_model_with_renamed_classes(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two have exchanged names, one has another: the data set still calls them what they were learnt by."""
    copy = Path(shutil.copytree(model(run, len(results(run)["steps"]) - 1), tmp_path / "model"))
    first, second, third = NAMES[:3]
    for old, new in ((first, "x"), (second, first), ("x", second), (third, "th[/b]ird")):
        assert cli.main(["rename-class", str(copy), old, new]) == 0
    file = tmp_path / "eval.json"
    words = ["--data.root", str(root), "--workers", "0", "--out", str(file)]
    capsys.readouterr()
    assert cli.main(["eval", str(copy), *words]) == 0
    assert "th[/b]ird" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["classes"][1:4] == [second, first, "th[/b]ird"]
    assert found["steps"][0]["matrix"] == results(run)["steps"][-1]["matrix"]


def test_predict_writes_maps_and_overlays(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((root / "JPEGImages").glob("2008_*.jpg"))[:2]
    assert cli.main(["predict", str(run), *map(str, images), "--out", str(tmp_path / "out")]) == 0
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        name for image in images for name in (f"{image.stem}.png", f"{image.stem}_overlay.jpg")
    }
    for image in images:
        labels = Image.open(tmp_path / "out" / f"{image.stem}.png")
        assert labels.mode == "P"
        assert labels.size == (48, 40) == Image.open(tmp_path / "out" / f"{image.stem}_overlay.jpg").size
        assert np.asarray(labels).max() < 5
        assert labels.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        assert image.stem in capsys.readouterr().out or image != images[0]


def test_predict_of_a_folder_without_overlays(root: Path, run: Path, tmp_path: Path) -> None:
    words = [str(root / "JPEGImages"), "--out", str(tmp_path / "out"), "--no-overlay"]
    assert cli.main(["predict", str(model(run, 0)), *words]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 32


def test_predict_skips_and_lists_what_it_cannot_read(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    good = next((root / "JPEGImages").glob("2008_*.jpg"))
    (folder / "good.jpg").write_bytes(good.read_bytes())
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:200])
    words = [str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--unknown", "--tile", "64"]
    assert cli.main(["predict", str(run), *words]) == 1
    found = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.*"))
    assert found == ["deep/good.png", "deep/good_overlay.jpg", "deep/good_unknown.png"]
    said = capsys.readouterr().out
    assert "1 of 2 images was skipped:" in said
    assert "cut.jpg cannot be decoded" in said


def test_predict_in_bf16(root: Path, run: Path, tmp_path: Path) -> None:
    image = next((root / "JPEGImages").glob("2008_*.jpg"))
    assert cli.main(["predict", str(run), str(image), "--out", str(tmp_path), "--precision", "bf16"]) == 0
    assert (tmp_path / f"{image.stem}.png").exists()


def test_predict_of_a_missing_image(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(run), str(tmp_path / "no.jpg"), "--out", str(tmp_path / "out")]) == 2
    assert "no.jpg" in last_line(capsys.readouterr().err)


if __name__ == "__main__":
    SURFACE.write_text(surface())
    print(f"wrote {SURFACE}", file=sys.stderr)


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m segrow recipes | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", [*cli.COMMANDS, "main.py", "eval.py"])
def test_what_no_file_can_hold_is_refused_before_any_work(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {"main.py": cli.seed_main, "eval.py": cli.seed_eval}
    for typed, expected in ((os.fsdecode(b"a\xffb"), "b is not UTF-8"), (f"a{chr(0)}b", "b holds a NUL")):
        code = programs[command]([typed]) if command in programs else cli.main([command, typed])
        assert code == 2
        assert expected in only_line(capsys.readouterr().err)
