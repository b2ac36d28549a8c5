"""A run folder that an earlier segrow began, or another number of processes, and that stopped in a step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import last_line, model, record, results, start, weights
from trees import folder_tree

from segrow import cli
from segrow.config import RunPaths
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.folder import read_config
from segrow.engine.step import StepTrainer
from segrow.model.record import hashes_of
from segrow.sealed import write_sealed_json, write_sealed_yaml

# all weights are those of the images and the seed; a method with a state, a memory, a frozen trunk
WORDS = ("--method", "ssul", "--method.unknown", "none", "--memory.size", "6", "--steps", "2")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *WORDS) == 0
    return out


@pytest.fixture(scope="module")
def half(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after the first epoch of step 1."""
    out, epoch = tmp_path_factory.mktemp("runs") / "half", StepTrainer._epoch

    def stop(self: StepTrainer, done: int, *rest: object) -> dict[str, float]:
        if self.ctx.step == 1 and done == 1:
            raise KeyboardInterrupt
        return epoch(self, done, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "_epoch", stop)
        assert start(root, out, *WORDS) == 130
    return out


def as_before(out: Path) -> None:
    """What segrow wrote before there were checksums, precision auto, and images to leave out."""
    paths = RunPaths(out)
    found = read_config(out)
    for name in ("ignore", "exclude"):
        del found["data"][name]
    paths.config.write_text(yaml.safe_dump(found, sort_keys=False))
    there = results(out)
    del there["excluded"], there["steps"][0]["cost"]["precision"]
    paths.results.write_text(json.dumps(there))
    meta = record(out, 0)
    del meta["training"]["precision"]
    meta["hashes"] = hashes_of(meta, meta["hashes"]["files"])
    del meta["hashes"]["record"]
    (model(out, 0) / "model.json").write_text(json.dumps(meta))
    stored = Checkpoint.load(paths.checkpoint)
    assert stored is not None
    torch.save({k: v for k, v in vars(stored).items() if k != "precision"}, paths.checkpoint)
    paths.checkpoint_before.unlink(missing_ok=True)


@pytest.fixture
def old(half: Path, tmp_path: Path) -> Path:
    out = Path(shutil.copytree(half, tmp_path / "old"))
    as_before(out)
    return out


def test_a_run_of_an_earlier_segrow_goes_on(old: Path, whole: Path, root: Path) -> None:
    """To the same weights as if it had been trained in one go."""
    assert start(root, old, *WORDS) == 0
    assert weights(old) == weights(whole)
    assert [step["matrix"] for step in results(old)["steps"]] == [
        step["matrix"] for step in results(whole)["steps"]
    ]


@pytest.mark.slow
def test_its_step_is_read(old: Path, whole: Path, root: Path, tmp_path: Path) -> None:
    """By eval, report, results and lineage; add and a further run take it as their base."""
    names = ("background", "aeroplane", "zebra")
    photos = folder_tree(tmp_path / "photos", names, train=[{2}] * 4, val=0, size=(40, 48)).root
    data = ("--data.root", str(root))
    for words in (
        ("eval", str(old), *data, "--workers", "0", "--out", str(tmp_path / "eval.json")),
        ("report", str(old), *data, "--out", str(tmp_path / "page.html")),
        ("results", str(old)),
        ("lineage", str(model(old, 0))),
        ("add", str(old), "--data", str(photos), "--classes", "zebra", "--epochs", "1", "--workers", "0"),
        ("lineage", str(old / "grown")),
    ):
        assert cli.main(list(words)) == 0, words
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["steps"][0]["matrix"] == results(whole)["steps"][0]["matrix"]
    assert start(root, tmp_path / "further", *WORDS, "--base", str(old), "--steps", "1") == 0


def test_it_goes_on_with_fewer_processes(
    half: Path, whole: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes do what one does; that their number changed is said, and stays in the results."""
    out = Path(shutil.copytree(half, tmp_path / "two"))
    found = read_config(out)
    found["train"]["devices"] = 2
    write_sealed_yaml(RunPaths(out).config, found)
    assert start(root, out, *WORDS) == 0
    said = "from epoch 2 of step 1 on with train.devices 1 instead of 2"
    assert said in capsys.readouterr().err
    assert results(out)["changes"] == [{"step": 1, "epoch": 1, "options": {"train.devices": [2, 1]}}]
    assert said in results(out)["remarks"]
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("key", ["data", "classes", "evaluation", "images", "images_hash"])
def test_results_that_say_too_little_to_share_the_base_step(
    whole: Path, root: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "there"))
    found = results(out)
    del (found if key in found else found["steps"][0])[key]
    write_sealed_json(RunPaths(out).results, found)
    assert start(root, tmp_path / "new", *WORDS, "--steps", "1", "--base", str(out)) == 2
    place = "" if key in results(whole) else ": steps[0]"
    assert f"results.json{place} lacks {key}; restore it" in last_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("key", ["data", "task", "setting", "method", "seed", "training"])
def test_a_run_whose_results_name_it_wrongly(
    whole: Path, root: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads them, not by the report alone."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    write_sealed_json(RunPaths(out).results, {**results(out), key: ["x"]})
    assert start(root, out, *WORDS) == 2
    assert f"results.json: {key} holds a list of 1, expected " in last_line(capsys.readouterr().err)
    assert cli.main(["results", str(out)]) == 2
    assert f"results.json: {key} holds a list of 1, expected " in last_line(capsys.readouterr().err)


def swapped(found: dict[str, Any]) -> None:
    for names in (found["class_names"], found["scenario"]["classes"]):
        names[1], names[2] = names[2], names[1]


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (swapped, "classes: background, bicycle, aeroplane there, background, aeroplane, bicycle here"),
        (lambda r: r.update(step=1), "step: 1 there, 0 here"),
        (
            lambda r: r["model"]["config"].update(norm_momentum=0.5),
            "model.norm_momentum: 0.5 there, 0.01 here",
        ),
        (lambda r: r.update(method={"name": "finetune", "fields": {}}), "method: finetune there, ssul here"),
        (lambda r: r.pop("training"), "model.json lacks training; restore it"),
        (lambda r: r["training"].pop("exemplars"), "training lacks exemplars; restore it"),
    ],
)
def test_a_step_that_another_run_stored_is_refused(
    half: Path,
    root: Path,
    tmp_path: Path,
    edit: Callable[[dict[str, Any]], object],
    expected: str,
    evaluated: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its weights fit; so it would be trained on, or evaluated, as if it were this run's."""
    out = Path(shutil.copytree(half, tmp_path / "run"))
    found = record(out, 0)
    edit(found)
    found["hashes"] = hashes_of(found, found["hashes"]["files"])
    (model(out, 0) / "model.json").write_text(json.dumps(found))
    if not evaluated:  # killed when it was stored
        RunPaths(out).results.unlink()
    assert start(root, out, *WORDS) == 2
    line = last_line(capsys.readouterr().err)
    assert expected in line
    assert str(model(out, 0)) in line
