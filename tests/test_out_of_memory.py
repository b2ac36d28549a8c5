"""Too little memory: one line that says what was asked for, and what may fit."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import last_line, model, results, start
from trees import folder_tree

from segrow import cli, resources
from segrow.config import TrainConfig
from segrow.engine import exemplars, validate
from segrow.engine.fitting import Gauge, evaluation_advice, training_advice
from segrow.errors import LeakError, MachineError, NonFiniteLossError
from segrow.predict import Predictor

Capture = pytest.CaptureFixture[str]
CUDA = "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 4.00 GiB"
HUGE = 1 << 50


def on_a_gpu(*words: Any, **options: Any) -> None:
    raise torch.OutOfMemoryError(CUDA)


def on_the_host(*words: Any, **options: Any) -> None:
    torch.empty(HUGE)


def in_numpy(*words: Any, **options: Any) -> None:
    np.empty(HUGE)


FAULTS = pytest.mark.parametrize("fault", [on_a_gpu, on_the_host, in_numpy])


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert start(root, out, "--steps", "1", "--train.epochs", "1", "--task", "2-2") == 0
    return out


# --- what it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError(CUDA), 512 << 20),
        (RuntimeError("CUDA error: out of memory"), 0),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 0),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."), 99),
        (RuntimeError("std::bad_alloc"), 0),
        (MemoryError(), 0),
        (MemoryError("Unable to allocate 2.50 GiB for an array"), 5 << 29),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 0),
    ],
)
def test_it_is_recognised(error: Exception, asked: int) -> None:
    assert resources.lacks_memory(error)
    assert resources.refused_bytes(error) == asked


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        LeakError("image out of memory shows classes [4]"),
        NonFiniteLossError("images: out of memory"),
    ],
)
def test_nothing_else_is(error: Exception) -> None:
    assert not resources.lacks_memory(error)
    with pytest.raises(type(error)), resources.enough_memory(lambda error: "no"):
        raise error


@FAULTS
def test_the_real_ones(fault: Callable[[], None]) -> None:
    with (
        pytest.raises(MachineError, match=r"^out of memory.*: less$"),
        resources.enough_memory(lambda e: "less"),
    ):
        fault()


# --- what may fit -----------------------------------------------------------------------------------------


class _Known(Gauge):  # type: ignore[misc]
    """A gauge on a machine whose numbers are given."""

    def __init__(self, *states: tuple[int, int]) -> None:
        self.states = list(states)
        super().__init__(torch.device("cpu"))

    def _state(self) -> tuple[int, int]:
        return self.states.pop(0)


def test_how_many_images_would_have_fitted() -> None:
    """1 GiB was in use before, 3 of 4 GiB when 2 more were refused: 4 were needed, 3 were there."""
    refused = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    gib = 1 << 30
    assert _Known((gib, 4 * gib), (3 * gib, 4 * gib)).largest(16, refused) == 12
    assert _Known((gib, 4 * gib), (3 * gib, 4 * gib)).largest(2, refused) == 1
    assert _Known((gib, 8 * gib), (3 * gib, 8 * gib)).largest(16, refused) is None  # there was room: not that
    assert _Known((0, 0), (0, 0)).largest(16, refused) is None  # the system does not say


def test_a_real_gauge() -> None:
    held = torch.ones(1 << 22)
    assert Gauge(torch.device("cpu")).largest(8, RuntimeError("tried to allocate 1 bytes")) is None
    assert Gauge(torch.device("cpu")).largest(8, RuntimeError(f"tried to allocate {HUGE} bytes")) == 0
    assert held.numel()


def advice(found: int | None, **options: Any) -> str:
    train = TrainConfig(crop=64, **options)
    gauge = _Known((0, 0))
    gauge.largest = lambda images, error: found  # type: ignore[method-assign]
    return training_advice(train, gauge, RuntimeError())


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (
            11,
            {"batch_size": 32},
            "32 images of 64 x 64 pixels at a time (--train.batch_size 32, --train.crop 64, "
            "--train.accumulate 1, --train.precision 32), of which at most 11 fit; try --train.accumulate 4 "
            "(the same batch, 8 images at a time), --train.batch_size 11 or less, a smaller --train.crop or "
            "--train.precision bf16",
        ),
        (None, {"batch_size": 32}, "try --train.accumulate 2 (the same batch, 16 images at a time), "),
        (9, {"batch_size": 32, "accumulate": 2}, "try --train.accumulate 4 (the same batch, 8 images"),
        (9, {"batch_size": 32, "accumulate": 2}, "--train.batch_size 18 or less"),
        (3, {"batch_size": 16, "devices": 2}, "try --train.accumulate 4 (the same batch, 2 images"),
        (0, {"batch_size": 4}, "of which not one fits; try a smaller --train.crop or --train.precision bf16"),
        (1, {"batch_size": 4}, "at most 1 fit; try a smaller --train.crop or --train.precision bf16"),
        (3, {"batch_size": 7}, "at most 3 fit; try --train.batch_size 3 or less, a smaller --train.crop"),
        (2, {"batch_size": 4, "precision": "bf16"}, "--train.batch_size 2 or less or a smaller --train.crop"),
    ],
)
def test_what_to_try(found: int | None, options: dict[str, Any], expected: str) -> None:
    assert expected in advice(found, **{"precision": "32", **options})


def test_what_to_try_in_evaluation() -> None:
    train = TrainConfig(crop=64, val_batch_size=16)
    assert "try --train.val_batch_size 8 or less" in evaluation_advice(
        train, Gauge(torch.device("cpu")), RuntimeError()
    )
    whole = TrainConfig(crop=64, crop_val=False)
    assert "--train.crop_val true" in evaluation_advice(whole, Gauge(torch.device("cpu")), RuntimeError())


# --- every command ----------------------------------------------------------------------------------------


@FAULTS
def test_train(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    """With nothing trained the folder takes another batch size."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", fault)
        assert start(root, tmp_path / "run") == 2
    line = last_line(capsys.readouterr().err)
    for option in ("--train.batch_size 4", "--train.crop 32", "--train.accumulate 1", "--train.precision"):
        assert option in line
    assert start(root, tmp_path / "run", "--train.batch_size", "2", "--steps", "1") == 0


def test_train_goes_on_with_smaller_parts(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained stays; the results say which epochs were computed how."""
    inner, calls = torch.optim.SGD.step, 0

    def later(*words: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(*words, **options) if calls <= 4 else on_a_gpu()

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", later)
        assert start(root, tmp_path / "run", "--train.epochs", "3", "--steps", "1") == 2
    capsys.readouterr()
    again = ("--train.epochs", "3", "--steps", "1", "--train.accumulate", "2")
    assert start(root, tmp_path / "run", *again) == 0
    said = "from epoch 2 of step 0 on with train.accumulate 2 instead of 1"
    assert said in " ".join(capsys.readouterr().err.split())
    found = results(tmp_path / "run")
    assert said in found["remarks"]
    assert found["changes"] == [{"step": 0, "epoch": 1, "options": {"train.accumulate": [1, 2]}}]


@pytest.mark.parametrize("owner", [validate, exemplars])
def test_evaluation_and_the_choice_of_exemplars(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, owner: Any
) -> None:
    more = ("--train.epochs", "1", "--memory.size", "4", "--steps", "2")
    name = "evaluate" if owner is validate else "eval_loader"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, on_the_host)
        assert start(root, tmp_path / "run", *more) == 2
    line = last_line(capsys.readouterr().err)
    assert "16 images of 32 x 32 pixels at a time; try --train.val_batch_size" in line
    assert start(root, tmp_path / "run", *more, "--train.val_batch_size", "2") == 0


@FAULTS
def test_eval(
    root: Path, run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    monkeypatch.setattr("segrow.commands.eval.evaluate", fault)
    assert cli.main(["eval", str(run), "--data.root", str(root), "--workers", "0"]) == 2
    assert "16 images at a time; try --batch_size 8" in last_line(capsys.readouterr().err)


@FAULTS
@pytest.mark.parametrize(
    ("more", "expected"), [((), "--tile 1024"), (("--tile", "128"), "a smaller --tile than 128")]
)
def test_predict_skips_what_is_too_large(
    run: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    more: tuple[str, ...],
    expected: str,
) -> None:
    for name, side in (("large", 90), ("small", 40)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    inner = Predictor._run
    monkeypatch.setattr(Predictor, "_run", lambda self, p: fault() if max(p.shape) > 80 else inner(self, p))
    monkeypatch.setattr(Predictor, "_view", lambda self, shape: segrow_view(shape))
    files = [str(tmp_path / f"{name}.png") for name in ("large", "small")]
    assert cli.main(["predict", str(run), *files, "--out", str(tmp_path / "out"), *more]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 images was skipped" in out
    assert "out of memory" in out
    assert expected in out
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["small.png"]


def segrow_view(shape: tuple[int, int]) -> Any:
    """The whole image at its own size."""
    from segrow.data.augment import whole_view

    return whole_view(shape)


def test_report(
    root: Path, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no option for that, so the line speaks of the machine."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    monkeypatch.setattr(Predictor, "__call__", on_the_host)
    assert (
        cli.main(["report", str(copy), "--data.root", str(root), "--out", str(tmp_path / "page.html")]) == 2
    )
    assert "out of memory" in last_line(capsys.readouterr().err)


@FAULTS
@pytest.mark.parametrize("where", ["torch.optim.SGD.step", "segrow.grow.step.image_matrices"])
def test_add(
    run: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    where: str,
) -> None:
    """In its own words; and what was trained before stays for the same call."""
    names = ("background", "zebra", "aeroplane")
    photos = folder_tree(tmp_path / "photos", names, train=[{1}] * 8, val=0, size=(40, 48)).root
    check = folder_tree(tmp_path / "check", names, train=[{2}] * 4, val=0, size=(40, 48)).root
    animals = Path(shutil.copytree(model(run, 0), tmp_path / "animals"))
    words = ["add", str(animals), "--data", str(photos), "--classes", "zebra", "--check", str(check)]
    words += ["--workers", "0", "--device", "cpu", "--epochs", "1", "--max-drop", "100"]
    with monkeypatch.context() as patch:
        patch.setattr(where, fault)
        assert cli.main(words) == 2
    line = last_line(capsys.readouterr().err)
    assert "8 images of 32 x 32 pixels at a time (--batch-size 8, --crop 32)" in line
    expected = "try --batch-size 4 or less or a smaller --crop"
    if fault is on_the_host:  # torch says how much was asked for
        expected = "of which not one fits; try a smaller --crop"
    assert expected in line
    assert "--train" not in line
    assert cli.main(words) == 0
    assert not list(tmp_path.glob(".animals*"))
