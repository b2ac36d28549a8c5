"""`make gpu`: what is missed is missed, and the script runs where there is no GPU."""

import json
import math
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_parity, gpu_step, updates
from benchmarks.pieces import Piece, Setting, at_least, at_most, holds
from benchmarks.report import Row
from segrow.methods.base import method_names
from segrow.methods.finetune import Finetune

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(CPU, small=True, root=None, work=tmp_path)


def piece(name: str, value: float, seconds: float = 0.0) -> Piece:
    return Piece(name, seconds, lambda: [at_most(f"a.{name}", name, "32", value, 1e-3)])


def test_expectations() -> None:
    assert at_most("k", "m", "32", 1e-4, 1e-3).met
    assert at_least("k", "m", "32", 1.0, 0.999).met
    assert holds("k", "m", "32", True).met
    missed = [
        at_most("k", "m", "32", 2e-3, 1e-3),
        at_most("k", "m", "32", math.nan, 1e-3),
        at_least("k", "m", "32", 0.9, 0.999),
        at_least("k", "m", "32", math.nan, 0.999),
        holds("k", "m", "32", False),
    ]
    assert [row.met for row in missed] == [False] * 5
    assert gpu.missed_by(missed[0]) == "m (32): 0.002, expected at most 0.001"


def test_what_was_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A difference, an error, and what there was no time for; the rest is done all the same."""

    def breaks() -> list[Row]:
        raise RuntimeError("CUDA error: no kernel\nmore of it")

    def leaves() -> list[Row]:
        raise SystemExit(2)

    large = Setting(CPU, small=False, root=None, work=tmp_path)
    said: list[str] = []
    pieces = [
        piece("good", 0),
        Piece("broken", 0, breaks),
        Piece("left", 0, leaves),
        piece("long", 0, 99),
        piece("bad", 1),
    ]
    rows, missed = gpu.worked(pieces, gpu.Clock(60), large, said.append)
    assert [row.measure for row in rows] == ["good", "bad"]
    assert missed == [
        "broken: RuntimeError: CUDA error: no kernel",
        "left: SystemExit: 2",
        "long: skipped, 60 s are left and it may take 99",
        "bad (32): 1, expected at most 0.001",
    ]
    assert said == ["good", "broken", "left", "bad"]
    assert "Traceback" in capsys.readouterr().err
    assert gpu.worked([piece("late", 0)], gpu.Clock(-1), large, said.append)[1][0].startswith("late: skipped")


def test_what_takes_too_long_is_ended(setting: Setting) -> None:
    def takes_long() -> list[Row]:
        time.sleep(20)
        return []

    pieces = [Piece("long", 0, takes_long), piece("late", 0)]
    start = time.monotonic()
    rows, missed = gpu.worked(pieces, gpu.Clock(0.2), setting, lambda line: None)
    assert time.monotonic() - start < 10
    assert rows == []
    assert missed[0] == "long: OutOfTimeError: ended, for the time is over"
    assert missed[1].startswith("late: skipped, ")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def answer(monkeypatch: pytest.MonkeyPatch, out: Path, pieces: list[Piece], *words: str) -> int:
    class Section:
        @staticmethod
        def pieces(setting: Setting) -> list[Piece]:
            return pieces

    monkeypatch.setattr(gpu, "SECTIONS", {"parity": Section})
    return gpu.main(["--device", "cpu", "--small", "--out", str(out), *words])


def test_the_exit_code_is_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert answer(monkeypatch, out, [piece("good", 0)]) == 0
    assert json.loads(out.read_text())["missed"] == []
    assert answer(monkeypatch, out, [piece("good", 0), piece("bad", 1)]) == 1
    stored = json.loads(out.read_text())
    assert stored["missed"] == ["bad (32): 1, expected at most 0.001"]
    assert [row["met"] for row in stored["rows"]] == [True, False]
    assert {"cpu", "gpu"} <= stored["machine"].keys()
    assert answer(monkeypatch, out, [piece("late", 0)], "--minutes", "1e-9") == 1
    shown = capsys.readouterr()
    assert "missed: late: skipped" in shown.err
    assert "1 figures" in shown.err
    assert "segrow on a GPU" in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "--device cuda, but torch sees no GPU; use --device cpu"),
        (["--device", "tpu"], "--device is tpu, expected auto"),
        (["--only", "speed"], 'no section "speed"; expected some of parity,step,runs'),
        (["--minutes", "0"], "--minutes is 0, expected more than 0"),
        (["--out", "nowhere/gpu.json"], "--out nowhere/gpu.json: its folder does not exist; make it first"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([*(["--device", "cpu"] if "--device" not in words else []), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.gpu: ")
    assert said in line


def test_everything_fits_into_the_time(tmp_path: Path) -> None:
    """With every piece that a GPU has."""
    on_gpu = Setting(torch.device("cuda"), small=False, root=None, work=tmp_path)
    pieces = [piece for section in gpu.SECTIONS.values() for piece in section.pieces(on_gpu)]
    assert sum(piece.seconds for piece in pieces) <= 60 * gpu.MINUTES
    names = {piece.name for piece in pieces}
    assert {f"parity of {name}" for name in method_names()} <= names
    assert {"waiting for the device", "animals 4-1 in 16, clip", "a run of the CPU goes on"} <= names


# --- parity -----------------------------------------------------------------------------------------------


def test_every_method_and_kind_of_step_is_compared() -> None:
    cases = gpu_parity.all_cases()
    assert {case.method for case in cases} == set(method_names())
    for name in method_names():
        assert {"base", "increment", "memory"} <= {case.kind for case in gpu_parity.all_cases(name)}
    assert {case.method for case in cases if case.kind == "kept"} == {"mib", "plop", "ssul"}


def test_a_wrong_loss_is_missed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on both sides is met; on the second one a thousandth off is not."""
    rows = gpu_parity.rows(setting, "finetune")
    assert [(row.variant, row.target, row.met) for row in rows] == [
        ("32", 1e-5, True),
        ("32", 1e-3, True),
        ("bf16", 0.1, True),
        ("bf16", 0.8, True),
    ]
    loss, calls = Finetune.loss, []

    def off(*words: Any) -> dict[str, Tensor]:
        calls.append(1)
        return {name: value * (1 + 2e-3 * (len(calls) == 2)) for name, value in loss(*words).items()}

    monkeypatch.setattr(Finetune, "loss", off)
    rows = gpu_parity.rows(setting, "finetune")
    assert [row.met for row in rows if row.variant == "32"] == [False, False]
    assert all(row.met for row in rows if row.variant == "bf16")


def test_a_loss_that_is_not_finite_is_missed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([(1.0, torch.ones(2)), (math.nan, torch.ones(2)), (1.0, torch.ones(2))])
    monkeypatch.setattr(gpu_parity, "update", lambda *words: next(found))
    rows = gpu_parity.rows(setting, "finetune")
    assert [row.met for row in rows] == [False, True, True, True]
    for values in ([1.0, math.nan, 2.0], [math.nan, 1.0], [1.0, math.nan]):
        assert math.isnan(gpu_parity.worst(values))
    assert gpu_parity.worst([1.0, 3.0, 2.0]) == 3


# --- the step ---------------------------------------------------------------------------------------------


def test_what_waits_for_the_device_is_counted(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *words: None)

    def update() -> Tensor:
        if modes == ["warn"]:
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation (somewhere)", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
        return torch.zeros(())

    found = gpu_step.synchronisations(update)
    assert modes == ["warn", "default"]
    assert found.total() == 2
    assert next(iter(found)).startswith("test_bench_gpu.py:")
    modes.clear()
    monkeypatch.setattr(updates, "segrow", lambda *words: update)
    monkeypatch.setattr(gpu_step, "synchronisations", lambda update: found)
    rows = gpu_step.waits(setting)
    assert len(rows) == 9
    assert all(row.met is False for row in rows)
    assert "test_bench_gpu.py" in rows[0].note


def test_updates_of_a_run_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first two of a step, in which things are found once."""
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)

    class Trainer:
        def _update(self, batch: int) -> int:
            for _ in range(batch):
                warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            return batch

    monkeypatch.setattr(gpu_step, "StepTrainer", Trainer)
    monkeypatch.setattr(warnings, "showwarning", lambda *words, **more: None)
    with gpu_step.watched_updates(on_gpu=True) as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trainer in (Trainer(), Trainer()):
            assert [trainer._update(n) for n in (9, 9, 0, 2)] == [9, 9, 0, 2]
    assert [waited.total() for waited in found] == [0, 2, 0, 2]
    row = gpu_step.row_of("runs.x.waits", "a run", "bf16", found)
    assert (row.met, row.ratio) == (False, 2)
    assert "test_bench_gpu.py" in row.note
    assert gpu_step.row_of("k", "a run", "16", found[:1]).met
    with gpu_step.watched_updates(on_gpu=False) as found:
        Trainer()._update(0)
    assert found == []


# --- all of it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    code = gpu.main(["--device", "cpu", "--small", "--out", str(out)])
    stored = json.loads(out.read_text())
    assert (code, stored["missed"]) == (0, [])
    found = {row["key"].partition(".")[0] for row in stored["rows"]}
    assert found == {"parity", "updates", "runs", "bands"}
    assert "nothing here is about a GPU" in capsys.readouterr().err
