"""What a method measures before a step trains: the plain pass, its sums, and when it is asked to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
from outside.counting import Counting
from PIL import Image
from runs import STEPS, build_tree, last_line, matrices, model, options, run_processes, start, weights
from safetensors.torch import load_file
from trees import Tree

from segrow.engine.checkpoint import Checkpoint
from segrow.engine.run import Run
from segrow.engine.step import StepTrainer
from segrow.methods.base import StepContext
from segrow.scenario import IGNORE, Scenario

COUNTING = ("--method", "outside.counting")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return build_tree(tmp_path_factory.mktemp("data") / "VOC2012")


@pytest.fixture(scope="module")
def root(tree: Tree) -> Path:
    return tree.root


@pytest.fixture(autouse=True)
def forget(whole: Path) -> None:
    """Only what the test itself ran is recorded."""
    Counting.calls.clear()
    Counting.scanned.clear()


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out, *COUNTING) == 0
    return out


def counts(out: Path, step: int) -> list[float]:
    found: list[float] = load_file(model(out, step) / "method.safetensors")["counts"].tolist()
    return found


def centre_labels(root: Path, image_id: str, shown: dict[int, int]) -> np.ndarray:
    """Masks are 40 x 48: the short side becomes 32, the centre 32 x 32 of 32 x 38 is cropped."""
    mask = np.asarray(Image.open(root / "SegmentationClassAug" / f"{image_id}.png"))
    raw = naive.view_map(mask, (32, 38), 0, 3, (32, 32), False, 255)
    meaning = {value: shown.get(value, 0) for value in range(21)} | {255: IGNORE}
    return np.vectorize(meaning.__getitem__)(raw)


# --- the pass ---------------------------------------------------------------------------------------------


def test_the_pass_shows_the_steps_own_images_in_order(tree: Tree, root: Path, tmp_path: Path) -> None:
    more = ("--memory.size", "6", "--train.epochs", "1", "--train.flip", "1")
    assert start(root, tmp_path / "run", *COUNTING, *more) == 0
    assert len(Counting.scanned) == STEPS
    for step, batches in enumerate(Counting.scanned):
        shown = [{1: 1, 2: 2}, {3: 3}, {4: 4}][step]
        ids = [image_id for image_id in tree.ids("train") if tree.shown["train"][image_id] & shown.keys()]
        sizes = [len(batch.images) for batch in batches]
        assert sizes == [4] * (len(ids) // 4) + ([len(ids) % 4] if len(ids) % 4 else [])
        labels = torch.cat([batch.labels for batch in batches]).numpy()
        expected = np.stack([centre_labels(root, image_id, shown) for image_id in ids])
        assert labels.dtype == np.int64
        assert (labels == expected).all()
        assert set(np.unique(labels)) == {IGNORE, 0, *shown.values()}
        colours = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
        first = np.asarray(Image.open(root / "JPEGImages" / f"{ids[0]}.jpg").convert("RGB"))
        wanted = naive.view_image(first, (32, 38), 0, 3, (32, 32), False, (0, 0, 0))
        assert np.abs(colours[0] - wanted).max() <= 1.01
        assert not any(batch.from_memory.any() for batch in batches)
        assert all(batch.aux == {} for batch in batches)


def test_every_pass_is_the_same_and_changes_nothing(root: Path, whole: Path, tmp_path: Path) -> None:
    """Were random state or the network touched, the weights would differ."""
    out = tmp_path / "run"
    assert start(root, out, *COUNTING, "--method.passes", "2") == 0
    for batches in Counting.scanned:
        half = len(batches) // 2
        assert half > 1
        for a, b in zip(batches[:half], batches[half:], strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
    for step in range(STEPS):
        assert counts(out, step) == [2 * value for value in counts(whole, step)]
    assert [w for w, _ in weights(out)] == [w for w, _ in weights(whole)]  # twice the counts, same quotient


def test_loader_processes_change_no_count(root: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(root, out, *COUNTING, "--train.workers", "1", "--task", "3-1", "--train.epochs", "1") == 0
    assert counts(out, 1)[4] == counts(whole, 2)[4]  # class 4 is taught by the last step of both


def test_the_pass_is_guarded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(self: Scenario, step: int, sees: str = "new") -> np.ndarray:
        return self.table([*self.steps[step].indices, 4])

    monkeypatch.setattr(Scenario, "train_table", leaky)
    assert start(root, tmp_path / "run", *COUNTING) == 1
    line = last_line(capsys.readouterr().err)
    assert "shows classes [4] at step 0, which may see [1, 2] only" in line
    assert Counting.calls == ["begin 0", "gather 0"]  # it failed there, not in training


def test_a_context_without_images_says_so() -> None:
    ctx = StepContext(0, torch.nn.Identity(), None, 3, 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"built without `scan`"):
        ctx.scan()


def test_the_sum_of_one_process_is_the_value_itself() -> None:
    ctx = StepContext(0, torch.nn.Identity(), None, 3, 1)  # type: ignore[arg-type]
    values = torch.tensor([1.0, -2.0])
    assert torch.equal(ctx.sum(values), torch.tensor([1.0, -2.0]))


# --- when it is asked -------------------------------------------------------------------------------------


def test_every_step_gathers_once_when_all_is_ready(root: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", *COUNTING, "--train.epochs", "1") == 0
    # what the previous step's model directory holds is read again: a continued run starts from the same;
    # and the method that evaluates a step reads it too
    assert Counting.calls == [
        "begin 0",
        "gather 0",
        "load",
        *(c for s in (1, 2) for c in (*_step(s), "load")),
    ]


def _step(step: int) -> list[str]:
    return ["load", f"begin {step}", f"gather {step}"]


def stop(owner: type, name: str, n: int, root: Path, out: Path) -> None:
    """Ctrl-C after the n-th call of a method."""
    inner: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapper(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        result = inner(*args)
        if calls == n:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapper)
        assert start(root, out, *COUNTING) == 130
    Counting.calls.clear()


@pytest.mark.parametrize(
    ("owner", "name", "n", "calls"),
    [
        (Checkpoint, "save", 1, ["begin 0", "load"]),
        (Checkpoint, "save", 3, ["load", "begin 1", "load"]),
        (StepTrainer, "_update", 1, ["begin 0", "gather 0"]),  # no epoch was finished
        (Run, "_evaluate_step", 1, _step(1)),
    ],
)
def test_a_continued_step_gets_its_state_back(
    root: Path, whole: Path, tmp_path: Path, owner: type, name: str, n: int, calls: list[str]
) -> None:
    out = tmp_path / "run"
    stop(owner, name, n, root, out)
    assert start(root, out, *COUNTING) == 0
    assert Counting.calls[: len(calls)] == calls
    assert weights(out) == weights(whole)
    assert matrices(out) == matrices(whole)
    assert [counts(out, s) for s in range(STEPS)] == [counts(whole, s) for s in range(STEPS)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_count_what_one_does(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base step's counts are of labels alone; the teacher's of step 1 differ by float rounding only."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    out = tmp_path / "run"
    more = (*COUNTING, "--train.devices", "2", "--model.dropout", "0")
    done = run_processes(options(root, out, *more))
    assert done.returncode == 0, done.stderr
    for step in range(STEPS):
        assert counts(out, step)[:-1] == counts(whole, step)[:-1]
        assert step == 0 or counts(out, step)[-1] > 0
