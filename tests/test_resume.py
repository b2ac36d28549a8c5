"""A run that was stopped continues as if it had not been; a base step is shared; labels do not leak."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import (
    STEPS,
    last_line,
    log,
    matrices,
    model,
    only_line,
    record,
    results,
    snapshot,
    start,
    tensors,
    weights,
)

from segrow import cli
from segrow.data import loader
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.folder import META
from segrow.engine.run import Run
from segrow.engine.step import StepTrainer
from segrow.memory import Exemplar
from segrow.model.record import hashes_of
from segrow.model.store import load_model, save_model
from segrow.scenario import Scenario

MEMORY = ("--memory.size", "6", "--train.log_every", "1")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with a memory."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *MEMORY) == 0
    return out


class Stopper:
    """Presses Ctrl-C before or after the n-th call of a method of a class, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, n: int, after: bool) -> None:
        inner: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def wrapper(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == n and not after:
                raise KeyboardInterrupt
            result = inner(*args)
            if calls == n:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize(
    ("owner", "name", "n", "after"),
    [
        (Checkpoint, "save", 1, True),  # in the base step
        (Checkpoint, "save", 2, True),  # after its last epoch, before the model is saved
        (StepTrainer, "_update", 5, False),  # in the middle of an epoch
        (Run, "_evaluate_step", 1, False),  # the model is saved, its matrix is not
        (Checkpoint, "save", 3, True),  # in an increment, with exemplars
        (Run, "train_step", 3, False),  # between two steps
        (Checkpoint, "save", 5, False),  # an epoch is trained but not stored
    ],
)
def test_a_stopped_run_continues_as_if_it_had_not_been(
    root: Path, whole: Path, tmp_path: Path, owner: type, name: str, n: int, after: bool
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, owner, name, n, after)
        assert start(root, out, *MEMORY) == 130
    assert not (out / "results.json").exists() or len(results(out)["steps"]) < STEPS
    assert start(root, out, *MEMORY) == 0
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)
    keys = ("step", "epoch", "iteration", "lr", "total", "terms")
    assert [[row[k] for k in keys] for row in log(out)] == [[row[k] for k in keys] for row in log(whole)]


def test_random_new_heads_do_not_depend_on_what_ran_before(root: Path, tmp_path: Path) -> None:
    """Finetune has no weight transfer: its new heads are drawn when the step starts."""
    more = ("--method", "finetune", "--train.epochs", "1")
    assert start(root, tmp_path / "whole", *more) == 0
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Run, "train_step", 2, False)
        assert start(root, tmp_path / "run", *more) == 130
    torch.manual_seed(999)  # a new process would not go on with this one's random state
    assert start(root, tmp_path / "run", *more) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_continuing_does_not_train_again_what_is_done(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 3, True)  # one epoch of step 1 is stored
        assert start(root, out) == 130
    epochs: list[tuple[int, int]] = []
    inner = StepTrainer._epoch

    def spy(self: StepTrainer, epoch: int, *more: Any) -> dict[str, float]:
        epochs.append((self.ctx.step, epoch))
        return inner(self, epoch, *more)

    monkeypatch.setattr(StepTrainer, "_epoch", spy)
    assert start(root, out) == 0
    assert epochs == [(1, 1), (2, 0), (2, 1)]


def test_ctrl_c_is_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 1, True)
        assert start(root, tmp_path / "run") == 130
    assert "the same command continues" in last_line(capsys.readouterr().err)

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cli.COMMANDS, "predict", interrupted)
        assert cli.main(["predict"]) == 130
    assert last_line(capsys.readouterr().err) == "segrow: stopped"  # from the first image


def test_a_complete_run_is_only_printed(
    root: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(whole)
    monkeypatch.setattr(StepTrainer, "fit", lambda self: pytest.fail("trained again"))
    assert start(root, whole, *MEMORY) == 0
    assert "mIoU" in capsys.readouterr().out
    assert snapshot(whole) == before


def test_another_configuration_is_refused(
    root: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(whole)
    assert start(root, whole, *MEMORY, "--train.lr", "0.02", "--method.threshold", "0.5") == 2
    line = only_line(capsys.readouterr().err)
    assert "method.threshold: 0.7 there, 0.5 here; train.lr: 0.01 there, 0.02 here" in line
    assert "use another --out" in line
    assert snapshot(whole) == before


def test_what_does_not_change_the_result_may_change(root: Path, whole: Path) -> None:
    assert start(root, whole, *MEMORY, "--train.workers", "1", "--train.log_every", "3") == 0


def test_a_folder_of_something_else_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert start(root, tmp_path) == 2
    assert f"{tmp_path} is there and is not a run folder" in only_line(capsys.readouterr().err)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def _stopped_in_step_1(root: Path, out: Path, *more: str) -> None:
    """A run whose base step is done and whose step 1 is to come."""
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Run, "train_step", 2, False)
        assert start(root, out, *MEMORY, *more) == 130


def test_a_damaged_checkpoint_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _stopped_in_step_1(root, tmp_path / "run")
    last, before = (tmp_path / "run" / name for name in ("last.ckpt", "before.ckpt"))
    last.write_bytes(last.read_bytes()[:1000])
    before.unlink()
    assert start(root, tmp_path / "run", *MEMORY) == 2
    line = last_line(capsys.readouterr().err)
    assert "last.ckpt was changed or cut off after it was written" in line
    assert "delete it to start the step again" in line


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _stopped_in_step_1(root, tmp_path / "run")
    (tmp_path / "run" / "last.ckpt").write_bytes(b"damaged")
    assert start(root, tmp_path / "run", *MEMORY) == 0
    said = capsys.readouterr().err
    assert "last.ckpt was changed or cut off after it was written; step 1 begins again" in said
    assert weights(tmp_path / "run") == weights(whole)


def test_a_missing_teacher_is_an_error(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _stopped_in_step_1(root, tmp_path / "run")
    model(tmp_path / "run", 0).rename(tmp_path / "elsewhere")
    assert start(root, tmp_path / "run", *MEMORY) == 2
    assert "no model in" in last_line(capsys.readouterr().err)
    assert not model(tmp_path / "run", 1).exists()


# --- a shared base step -----------------------------------------------------------------------------------


def test_runs_share_a_base_step(root: Path, whole: Path, tmp_path: Path) -> None:
    for name, more in (
        ("ssul", ()),
        ("memory", MEMORY[:2]),
        ("finetune", ("--method", "finetune")),
    ):
        out = tmp_path / name
        assert start(root, out, *more, "--base", str(whole), "--train.epochs", "1") == 0
        ours, theirs = results(out)["steps"][0], results(whole)["steps"][0]
        assert ours == {**theirs, "from_base": str(whole)}
        assert [s["from_base"] for s in results(out)["steps"][1:]] == [None, None]
        base, copied = tensors(whole, 0), tensors(out, 0)
        assert base.keys() == copied.keys()
        assert all((base[n] == copied[n]).all() for n in base)
    assert json.loads((model(tmp_path / "ssul", 0) / "memory.json").read_text())["exemplars"] == []
    kept = [(model(out, 0) / "memory.json").read_bytes() for out in (whole, tmp_path / "memory")]
    assert kept[0] == kept[1]


def test_a_run_from_its_own_base_equals_the_whole_run(root: Path, whole: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", *MEMORY, "--base", str(whole)) == 0
    assert weights(tmp_path / "run") == weights(whole)
    assert matrices(tmp_path / "run") == matrices(whole)


def test_a_method_of_its_own_base_is_named_in_the_model(root: Path, whole: Path, tmp_path: Path) -> None:
    """The record of the shared step says who trained it; later steps say who trained them."""
    more = ("--method", "finetune", "--train.epochs", "1")
    assert start(root, tmp_path / "run", *more, "--base", str(whole)) == 0
    assert record(tmp_path / "run", 0)["method"]["name"] == "ssul"
    assert record(tmp_path / "run", 1)["method"]["name"] == "finetune"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--model.width", "16"), "model.width: 8 there, 16 here"),
        (("--data.classes", "boat,bicycle,bird,aeroplane"), "classes: "),
        (("--train.crop", "48"), "'crop': 48"),
        (("--setting", "disjoint"), "base step: 2 classes"),
        (("--task", "3-1"), "base step: 2 classes"),
    ],
)
def test_a_base_that_does_not_fit(
    root: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    expected: str,
) -> None:
    assert start(root, tmp_path / "run", *more, "--train.batch_size", "2", "--base", str(whole)) == 2
    line = only_line(capsys.readouterr().err)
    assert f"the base step of {whole} cannot be shared: " in line
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_base_without_an_unknown_head(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(root, tmp_path / "base", "--method", "finetune", "--train.epochs", "1") == 0
    capsys.readouterr()
    assert start(root, tmp_path / "run", "--base", str(tmp_path / "base")) == 2
    assert "unknown head: none there, method ssul needs one" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_no_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", "--base", str(tmp_path / "nothing")) == 2
    assert "nothing is not there; give a run folder, or a model" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_base_that_was_trained_in_another_way_is_named(root: Path, whole: Path, tmp_path: Path) -> None:
    """Also after the run was continued without it."""
    out = tmp_path / "run"
    other = ("--base", str(whole), "--method", "finetune", "--model.head", "conv", "--train.flip", "0.25")
    assert start(root, out, *other, "--steps", "1") == 0
    assert start(root, out, *other, "--steps", "2") == 0
    shared = [line for line in results(out)["remarks"] if "base step" in line]
    assert shared == [
        f"the base step is shared with {whole.name}, method ssul, train.flip: 0.5 there, 0.25 here"
    ]
    longer = ("--base", str(whole), "--memory.size", "6", "--train.epochs", "3", "--steps", "1")
    assert start(root, tmp_path / "longer", *longer) == 0
    assert results(tmp_path / "longer")["remarks"][-1].endswith("epochs of the base step: 2 there, 3 here")
    same = tmp_path / "same"
    assert start(root, same, "--base", str(whole), "--memory.size", "6", "--steps", "1") == 0
    assert results(same)["remarks"][-1].endswith(f"{whole.name}, trained as this run's own would be")


# --- a model directory as base ----------------------------------------------------------------------------


def test_a_model_directory_stands_for_the_base_step(root: Path, whole: Path, tmp_path: Path) -> None:
    """As the whole run would be shared, but evaluated here; exemplars too."""
    copied = tmp_path / "models" / "base"
    shutil.copytree(model(whole, 0), copied)
    (copied / "memory.json").unlink()
    _forget_memory(copied)
    assert start(root, tmp_path / "run", *MEMORY, "--base", str(copied)) == 0
    ours, theirs = results(tmp_path / "run")["steps"], results(whole)["steps"]
    assert ours[0]["from_base"] == str(copied)
    assert ours[1]["from_base"] is None
    assert matrices(tmp_path / "run") == matrices(whole)
    assert weights(tmp_path / "run") == weights(whole)
    skip = ("from_base", "cost")
    assert {k: v for k, v in ours[0].items() if k not in skip} == {
        k: v for k, v in theirs[0].items() if k not in skip
    }


def _forget_memory(directory: Path) -> None:
    """Write it again as a writer without exemplars does."""
    meta = json.loads((directory / "model.json").read_text())
    files = meta["hashes"]["files"]
    del files["memory.json"]
    meta["hashes"] = hashes_of(meta, files)
    (directory / "model.json").write_text(json.dumps(meta))


def test_a_model_of_another_method_is_read_as_its_own_reads_it(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    """At the base step finetune's arg max over logits would be another prediction than ssul's scores."""
    more = ("--method", "finetune", "--train.epochs", "1", "--base", str(model(whole, 0)))
    assert start(root, tmp_path / "run", *more) == 0
    assert matrices(tmp_path / "run")[0] == matrices(whole)[0]
    assert record(tmp_path / "run", 0)["method"]["name"] == "ssul"
    assert record(tmp_path / "run", 1)["method"]["name"] == "finetune"


def test_a_run_from_a_model_directory_is_continued(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(model(whole, 0), base)
    more = ("--train.epochs", "1", "--base", str(base))
    assert start(root, out, *more) == 0
    complete = weights(out), matrices(out)
    # killed between the copy and its evaluation: nothing is in the results yet
    (out / "results.json").unlink()
    shutil.rmtree(out / "steps" / "01")
    shutil.rmtree(out / "steps" / "02")
    assert start(root, out, *more) == 0
    assert (weights(out), matrices(out)) == complete
    assert results(out)["steps"][0]["from_base"] == str(base)
    # once it is in the results, the base is no longer needed
    shutil.rmtree(base)
    shutil.rmtree(out / "steps" / "02")
    kept = results(out)
    kept["steps"] = kept["steps"][:2]
    (out / "results.json").write_text(json.dumps(kept))
    capsys.readouterr()
    assert start(root, out, *more) == 0
    assert "step 0  done before" in capsys.readouterr().err
    assert (weights(out), matrices(out)) == complete


def test_weights_of_the_backbone_are_no_difference(root: Path, whole: Path, tmp_path: Path) -> None:
    more = ("--train.epochs", "1", "--model.weights", "timm", "--base", str(model(whole, 0)))
    assert start(root, tmp_path / "run", *more) == 0


@pytest.mark.parametrize(
    ("step", "more", "expected"),
    [
        (1, (), "step: 1 there, 0 here"),
        (0, ("--model.width", "16"), "model.width: 8 there, 16 here"),
        (0, ("--data.classes", "boat,bicycle,bird,aeroplane"), "classes: background, aeroplane, bicycle"),
        (0, ("--task", "3-1"), "background, aeroplane, bicycle, bird here"),
    ],
)  # fmt: skip
def test_a_model_directory_that_does_not_fit(
    root: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: int,
    more: tuple[str, ...],
    expected: str,
) -> None:
    base = model(whole, step)
    assert start(root, tmp_path / "run", *more, "--train.batch_size", "2", "--base", str(base)) == 2
    line = only_line(capsys.readouterr().err)
    assert f"the base step of {base} cannot be shared: " in line
    assert expected in line
    assert not (tmp_path / "run").exists()


def test_a_model_directory_of_a_method_that_cannot_be_imported(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("elsewhere.mine", "code outside segrow"), ("sul", 'no method "sul"')):
        network, meta = load_model(model(whole, 0))
        ours = {key: meta[key] for key in META} | {"method": {"name": name, "fields": {}}}
        save_model(network, tmp_path / name, ours)
        assert start(root, tmp_path / "run", "--base", str(tmp_path / name)) == 2
        assert expected in only_line(capsys.readouterr().err)
        assert not (tmp_path / "run").exists()


def test_a_model_directory_that_does_not_say_enough(
    root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, meta = load_model(model(whole, 0))
    save_model(network, tmp_path / "bare", {"class_names": meta["class_names"]})
    assert start(root, tmp_path / "run", "--base", str(tmp_path / "bare")) == 2
    assert "model.json lacks step, scenario, method" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


# --- labels that may not be seen --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_future_class_in_the_labels_stops_the_run(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workers: str,
) -> None:
    def leaky(self: Scenario, step: int, sees: str = "new") -> np.ndarray:
        return self.table([*self.steps[step].indices, 4])

    monkeypatch.setattr(Scenario, "train_table", leaky)
    assert start(root, tmp_path / "run", "--train.workers", workers) == 1
    line = last_line(capsys.readouterr().err)
    assert line.startswith("segrow: label leak: image 2007_")
    assert "shows classes [4] at step 0, which may see [1, 2] only" in line
    assert not (tmp_path / "run" / "steps").exists()


def test_an_exemplar_that_shows_too_much_stops_the_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(scenario: Scenario, exemplar: Exemplar, step: int, labels: str) -> np.ndarray:
        return scenario.eval_table()

    monkeypatch.setattr(loader, "exemplar_table", leaky)
    assert start(root, tmp_path / "run", *MEMORY) == 1
    line = last_line(capsys.readouterr().err)
    assert line.startswith("segrow: label leak: image 2007_")
    assert "at step 1, which may see [1, 2] only" in line
    assert not model(tmp_path / "run", 1).exists()


def _grant(folder: Path, seal: bool) -> None:
    """Let the first exemplar show class 3, which step 1 has yet to teach; `seal` renews the hashes."""
    stored = json.loads((folder / "memory.json").read_text())
    stored["exemplars"][0]["classes"] = [1, 2, 3]
    content = json.dumps(stored).encode()
    if not seal:
        (folder / "memory.json").write_bytes(content)
        return
    network, meta = load_model(folder)
    kept = ("step", "class_names", "scenario", "method", "protocol", "training", "parent")
    save_model(network, folder, {key: meta[key] for key in kept}, {"memory.json": content})


def test_a_changed_memory_is_noticed(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _stopped_in_step_1(root, tmp_path / "run")
    _grant(model(tmp_path / "run", 0), seal=False)
    assert start(root, tmp_path / "run", *MEMORY) == 2
    assert "memory.json was changed" in last_line(capsys.readouterr().err)


def test_a_memory_that_grants_too_much_stops_the_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _stopped_in_step_1(root, tmp_path / "run")
    _grant(model(tmp_path / "run", 0), seal=True)
    assert start(root, tmp_path / "run", *MEMORY) == 1
    line = last_line(capsys.readouterr().err)
    assert line.startswith("segrow: label leak: exemplar 2007_")
    assert "may show classes [1, 2] at step 1, but the memory grants it [1, 2, 3]" in line
    assert not model(tmp_path / "run", 1).exists()
