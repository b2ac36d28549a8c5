"""`train.select best`: which weights a step ends with, against a plain restatement; nothing else moves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import (
    NAMES,
    STEPS,
    last_line,
    log,
    matrices,
    model,
    only_line,
    results,
    start,
    tensors,
    weights,
)
from steps import tiny
from test_resume import Stopper
from torch.nn.functional import interpolate

from segrow import cli
from segrow.engine import run as engine_run
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.select import Selection, interval, new_classes_score
from segrow.engine.step import StepTrainer
from segrow.methods.base import make_method
from segrow.model.segmenter import Segmenter
from segrow.model.store import load_model
from segrow.scenario import Step

Tensors = dict[str, torch.Tensor]
States = dict[tuple[int, int], Tensors]

BEST = ("--train.select", "best")
# whole images one by one, so that the restatement below meets the same batches
SAME = ("--train.batch_size", "2", "--train.crop_val", "false", "--train.log_every", "1")
# 306, 204 and 102 updates, so the last weights are no candidate; in step 0 the best one is in the middle
LONG = (*SAME, "--seed", "3", "--train.step0_epochs", "51", "--train.epochs", "34", "--memory.size", "4")
UPDATES = (306, 204, 102)
SHORT = (*SAME, "--train.epochs", "2")


def _copied(network: torch.nn.Module) -> Tensors:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _recording(patch: pytest.MonkeyPatch, states: States) -> None:
    """Keep what every step starts with (update 0) and its weights after every hundredth update."""
    fit: Callable[[StepTrainer], float] = StepTrainer.fit
    update: Callable[..., Any] = StepTrainer._update
    done: dict[int, int] = {}

    def spy_fit(self: StepTrainer) -> float:
        states[self.ctx.step, 0] = _copied(self.ctx.model)
        return fit(self)

    def spy_update(self: StepTrainer, batch: object) -> Any:
        terms = update(self, batch)
        step = self.ctx.step
        done[step] = done.get(step, 0) + 1
        if done[step] % 100 == 0:
            states[step, done[step]] = _copied(self.ctx.model)
        return terms

    patch.setattr(StepTrainer, "fit", spy_fit)
    patch.setattr(StepTrainer, "_update", spy_update)


@pytest.fixture(scope="module")
def recorded(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, States, str]:
    """A run that selects, all its candidates, and what it said."""
    out, states = tmp_path_factory.mktemp("runs") / "best", States()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        _recording(patch, states)
        patch.setattr(engine_run.Display, "say", lambda self, line: said.append(line))
        assert start(root, out, *LONG, *BEST) == 0
    return out, states, "\n".join(said)


@pytest.fixture(scope="module")
def last(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, States]:
    """The base step of the same run with the default, and what it passes through."""
    out, states = tmp_path_factory.mktemp("runs") / "last", States()
    with pytest.MonkeyPatch.context() as patch:
        _recording(patch, states)
        patch.setattr(engine_run, "Selection", lambda *a: pytest.fail("the default selects"))
        assert start(root, out, *LONG, "--steps", "1") == 0
    return out, states


# --- the choice, restated ---------------------------------------------------------------------------------


def _images_with(root: Path, classes: set[int]) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Validation images whose mask shows one of the raw ids (which are the class indices here)."""
    found = []
    for name in (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
        mask = np.asarray(Image.open(root / "SegmentationClassAug" / f"{name}.png"))
        if classes & set(np.unique(mask).tolist()):
            pixels = np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB"))
            found.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], mask))
    return found


@torch.no_grad()
def _prediction(network: Segmenter, image: torch.Tensor) -> np.ndarray:
    """SSUL's: sigmoid, unknown added to background, arg max."""
    out = network(image)
    assert out.unknown is not None
    size = image.shape[-2:]
    p = interpolate(out.logits, size, mode="bilinear", align_corners=False).sigmoid()
    p[:, :1] += interpolate(out.unknown, size, mode="bilinear", align_corners=False).sigmoid()
    return p[0].argmax(0).numpy()


def _mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]], scored: list[int], known: int) -> float:
    """Mean IoU over all images, pixel sets counted one class at a time; 0 for a class without a pixel."""
    values = []
    for c in scored:
        both = either = there = 0
        for truth, predicted in pairs:
            counted = truth != 255
            truth = np.where(truth < known, truth, np.where(counted, 0, truth))  # later classes: background
            both += int(((truth == c) & (predicted == c) & counted).sum())
            either += int((((truth == c) | (predicted == c)) & counted).sum())
            there += int((truth == c).sum())
        values.append(both / either if there else 0.0)
    return float(np.mean(values))


def _restated(root: Path, out: Path, states: States, step: int) -> dict[int, float]:
    """The score of every candidate of a step."""
    taught = [{1, 2}, {3}, {4}][step]
    images = _images_with(root, taught)
    network, _ = load_model(model(out, step))
    network.eval()
    scores = {}
    for (of, update), state in sorted(states.items()):
        if of == step and update:
            network.load_state_dict(state)
            pairs = [(mask, _prediction(network, image)) for image, mask in images]
            scores[update] = _mean_iou(pairs, sorted(taught | ({0} if step == 0 else set())), 3 + step)
    return scores


def test_a_step_ends_with_the_best_of_its_candidates(root: Path, recorded: tuple[Path, States, str]) -> None:
    out, states, said = recorded
    for step, n in enumerate(UPDATES):
        scores = _restated(root, out, states, step)
        assert list(scores) == list(range(100, n + 1, 100))
        best = max(scores, key=lambda update: (scores[update], -update))
        chosen = results(out)["steps"][step]["selected"]
        assert chosen["update"] == best
        assert chosen["score"] == pytest.approx(scores[best], abs=1e-12)
        assert results(out)["steps"][step]["cost"]["iterations"] == n
        stored = tensors(out, step)
        for name, value in states[step, best].items():
            assert torch.equal(stored[name], value), name
        line = f"step {step}  keeps the weights after update {best} of {n}: mean IoU of what it teaches "
        assert f"{line}{100 * scores[best]:.1f} %" in said


def test_the_next_step_starts_from_the_chosen_weights(recorded: tuple[Path, States, str]) -> None:
    out, states, _ = recorded
    for step in range(1, STEPS):
        before, start_of = tensors(out, step - 1), states[step, 0]
        assert all(torch.equal(value, start_of[name]) for name, value in before.items())


def test_only_a_run_that_selects_says_so(
    recorded: tuple[Path, States, str], last: tuple[Path, States], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "chosen on the validation images"
    assert any(said in remark for remark in results(recorded[0])["remarks"])
    assert not any(said in remark for remark in results(last[0])["remarks"])
    for step in (*results(last[0])["steps"], *results(recorded[0])["steps"]):
        assert "selected" not in step["cost"]
    assert "selected" not in results(last[0])["steps"][0]
    for out in (recorded[0], last[0]):
        assert cli.main(["results", str(out), "--cost", "--per_class"]) == 0
    assert cli.main(["results", str(recorded[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]


# --- the rest of the training does not notice ---------------------------------------------------------------


def test_the_looks_leave_the_training_as_it_is(
    recorded: tuple[Path, States, str], last: tuple[Path, States]
) -> None:
    """The base step of both runs passes through the same weights, dropout and running statistics included."""
    ours, theirs = recorded[1], last[1]
    for update in range(0, 301, 100):
        for name, value in theirs[0, update].items():
            assert torch.equal(ours[0, update][name], value), (update, name)
    losses = [[row["total"] for row in log(out) if row["step"] == "0"] for out in (recorded[0], last[0])]
    assert len(losses[0]) == 306
    assert losses[0] == losses[1]


def test_a_look_restores_mode_and_random_state() -> None:
    network = tiny().train()
    network.freeze(network.trunk)
    modes = [module.training for module in network.modules()]

    def judge() -> float:
        network.eval()
        torch.rand(7)
        return 0.5

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Selection(network, judge, 100, None).look(100)
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in network.modules()] == modes
    assert len(set(modes)) == 2


# --- steps that are too short -------------------------------------------------------------------------------


def test_a_step_with_fewer_than_100_updates_keeps_its_initial_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, states = tmp_path / "run", States()
    with pytest.MonkeyPatch.context() as patch:
        _recording(patch, states)
        assert start(root, out, *SHORT, *BEST) == 0
    said = capsys.readouterr().err
    for step, n in enumerate((12, 12, 6)):
        stored = tensors(out, step)
        assert stored.keys() == states[step, 0].keys()
        assert all(torch.equal(stored[name], value) for name, value in states[step, 0].items())
        assert results(out)["steps"][step]["selected"] == {"update": 0, "score": None}
        assert f"step {step}  warning: it keeps the weights it started with, untrained: {n} updates" in said
    # SSUL's weight transfer is part of what a step starts with
    before, after = tensors(out, 0), tensors(out, 1)
    assert torch.equal(after["heads.2.out.weight"], before["unknown.out.weight"])


@pytest.mark.parametrize(
    ("updates", "looks"), [(1, 100), (9999, 100), (10099, 100), (10100, 101), (25050, 250)]
)
def test_updates_between_two_candidates(updates: int, looks: int) -> None:
    assert interval(updates) == looks


@given(scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=8), rest=st.integers(0, 99))
def test_the_first_of_equal_candidates_stays(scores: list[float], rest: int) -> None:
    class Weight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(torch.tensor(-1.0))

    weight, given_scores = Weight(), iter(scores)
    chooser = Selection(weight, lambda: next(given_scores), 100 * len(scores) + rest, None)  # type: ignore[arg-type]
    for update in range(1, 100 * len(scores) + rest + 1):
        weight.value.data.fill_(update)
        chooser.look(update)
    assert next(given_scores, None) is None  # every candidate was scored, and nothing else
    chooser.finish()
    best = scores.index(max(scores)) if scores else None
    assert weight.value.item() == (-1 if best is None else 100 * (best + 1))
    assert chooser.record() == {
        "update": 0 if best is None else 100 * (best + 1),
        "score": None if best is None else scores[best],
    }


@given(data=st.data(), step=st.integers(0, 2))
def test_the_score_counts_as_ssuls_code_does(data: st.DataObject, step: int) -> None:
    known = 3 + step
    pixel = st.tuples(st.integers(0, 4), st.integers(0, known - 1))
    pairs = data.draw(st.lists(pixel, min_size=1, max_size=40))
    matrix = np.zeros((5, known), np.int64)
    for truth, predicted in pairs:
        matrix[truth, predicted] += 1
    taught = [Step(0, NAMES[:2], 1, ()), Step(1, NAMES[2:3], 3, ()), Step(2, NAMES[3:], 4, ())][step]
    truth, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    scored = [[0, 1, 2], [3], [4]][step]
    expected = _mean_iou([(truth, predicted)], scored, known)
    assert new_classes_score(matrix, taught) == pytest.approx(expected, abs=1e-12)


# --- stopped and continued ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "n", "after"),
    [
        # before the first candidate: the initial weights are still the best
        pytest.param(Checkpoint, "save", 10, True, id="early", marks=pytest.mark.slow),
        # one was found and not stored: 200, in epoch 34
        pytest.param(StepTrainer, "_update", 202, False, id="found"),
        # the best is behind, in an earlier epoch
        pytest.param(Checkpoint, "save", 45, True, id="behind", marks=pytest.mark.slow),
        # all is trained, the model not yet saved
        pytest.param(Checkpoint, "save", 51, True, id="end", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_makes_the_same_choice(
    root: Path,
    recorded: tuple[Path, States, str],
    tmp_path: Path,
    owner: type,
    name: str,
    n: int,
    after: bool,
) -> None:
    out, base_step = tmp_path / "run", (*LONG, *BEST, "--steps", "1")
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, owner, name, n, after)
        assert start(root, out, *base_step) == 130
    assert start(root, out, *base_step) == 0
    assert weights(out) == weights(recorded[0])[:1]
    assert matrices(out) == matrices(recorded[0])[:1]
    assert results(out)["steps"][0]["selected"] == results(recorded[0])["steps"][0]["selected"]


def test_an_increment_that_was_stopped_makes_the_same_choice(
    root: Path, recorded: tuple[Path, States, str], tmp_path: Path
) -> None:
    out, two_steps = tmp_path / "run", (*LONG, *BEST, "--base", str(recorded[0]), "--steps", "2")
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, StepTrainer, "_update", 150, True)
        assert start(root, out, *two_steps) == 130
    assert start(root, out, *two_steps) == 0
    assert weights(out) == weights(recorded[0])[:2]
    assert results(out)["steps"][1]["selected"] == results(recorded[0])["steps"][1]["selected"]


def test_a_checkpoint_holds_the_best_so_far_and_unpickles_nothing(
    root: Path, recorded: tuple[Path, States, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Stopper(patch, Checkpoint, "save", 34, True)  # 204 updates: two candidates
        assert start(root, out, *LONG, *BEST) == 130
    stored = torch.load(out / "last.ckpt", weights_only=True)
    assert stored["epoch"] == 34
    selected, states = stored["selected"], recorded[1]
    assert selected["update"] in (100, 200)
    assert isinstance(selected["score"], float)
    best = states[0, selected["update"]]
    assert best.keys() == selected["weights"].keys()
    assert all(torch.equal(value, best[name]) for name, value in selected["weights"].items())


def test_a_run_is_not_continued_with_another_selection(
    root: Path, recorded: tuple[Path, States, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(root, recorded[0], *LONG) == 2
    assert "train.select: best there, last here" in only_line(capsys.readouterr().err)


# --- what cannot be chosen by -------------------------------------------------------------------------------


def _without_val_class(root: Path, folder: Path, raw: int) -> Path:
    """The tree, whose validation masks show a class nowhere."""
    data = folder / "VOC2012"
    shutil.copytree(root, data)
    for name in (data / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
        path = data / "SegmentationClassAug" / f"{name}.png"
        mask = np.array(Image.open(path))
        mask[mask == raw] = 0
        Image.fromarray(mask).save(path)
    return data


def test_a_step_without_validation_images_to_choose_by(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _without_val_class(root, tmp_path, 4)
    assert start(data, tmp_path / "run", *SHORT, *BEST) == 2
    line = only_line(capsys.readouterr().err)
    assert "--train.select best has nothing to choose by in step 2: no validation image shows boat" in line
    assert "use --train.select last" in line
    assert not (tmp_path / "run").exists()
    assert start(data, tmp_path / "run", *SHORT, *BEST, "--steps", "2") == 0  # the others have some
    assert start(data, tmp_path / "last", *SHORT, "--train.epochs", "1") == 0


def test_an_unknown_selection(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", "--train.select", "bst") == 2
    line = last_line(capsys.readouterr().err)
    assert 'Did you mean "best"' in line
    assert not (tmp_path / "run").exists()


def test_the_selected_model_is_read_like_any_other(
    root: Path, recorded: tuple[Path, States, str], tmp_path: Path
) -> None:
    """Also as the base step of another run, which says which weights it has."""
    out = tmp_path / "run"
    assert start(root, out, *SHORT, "--base", str(recorded[0]), "--steps", "2") == 0
    base, increment = results(out)["steps"]
    assert base["selected"] == results(recorded[0])["steps"][0]["selected"]
    assert "selected" not in increment
    network, meta = load_model(model(recorded[0], 2))
    method = make_method(meta["method"]["name"], meta["method"]["fields"])
    assert network.n_classes == 5
    assert method.name == "ssul"
