"""The time left of a whole run: what is counted, and what is said of it."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from runs import build_tree, start

from segrow import demo
from segrow.demo import DemoSize
from segrow.engine.left import TimeLeft, Work, about
from segrow.engine.log import Display
from segrow.engine.step import StepTrainer
from segrow.engine.validate import Validation
from segrow.evaluate import Matrices

LINE = re.compile(r"epoch \d+/\d+ .*  \d+ s, (a few seconds|about \d+ (s|min)) left of the (run|demo)$")


class Clock:
    """Time goes by only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """An update takes 3 s, an evaluation 40 s."""
    clock, update, matrices = Clock(), StepTrainer._update, Validation.matrices

    def slow_update(self: StepTrainer, *args: object) -> object:
        clock.now += 3
        return update(self, *args)  # type: ignore[arg-type]

    def slow_matrices(self: Validation, *args: object, **more: object) -> object:
        clock.now += 40
        return matrices(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(StepTrainer, "_update", slow_update)
    monkeypatch.setattr(Validation, "matrices", slow_matrices)
    return clock


@pytest.fixture
def estimates(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Time, and what was then said to be left."""
    found: list[tuple[float, float]] = []
    words = TimeLeft.words

    def listen(self: TimeLeft, now: Work, rate: float) -> str:
        found.append((clock.now, self.estimate(now, rate)))
        return words(self, now, rate)

    monkeypatch.setattr(TimeLeft, "words", listen)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("voc")).root


# --- the estimate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["finetune", "joint", "ssul"])
def test_what_is_said_comes_true(
    root: Path,
    tmp_path: Path,
    clock: Clock,
    estimates: list[tuple[float, float]],
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    """All steps and evaluations are in it; once each kind was measured it is exact."""
    more = ("--method", method, "--train.feature_views", "0", "--train.step0_epochs", "4")
    assert start(root, tmp_path / "run", *more) == 0
    errors = [estimate - (clock.now - at) for at, estimate in estimates]
    # before the first evaluation that is a guess: a third of an update for every image
    first = next(k for k, (at, _) in enumerate(estimates) if at > estimates[0][0] and errors[k] == errors[-1])
    assert errors[-1] == pytest.approx(0)
    assert len(errors) - first >= 4
    assert max(abs(error) for error in errors[first:]) < 1e-6
    lines = [line for line in capsys.readouterr().err.splitlines() if " epoch " in line]
    assert lines
    assert all(LINE.search(line) for line in lines)
    assert lines[-1].endswith("s, about 40 s left of the run")  # the last evaluation


def test_steps_that_are_done_are_not_counted(
    root: Path, tmp_path: Path, clock: Clock, estimates: list[tuple[float, float]]
) -> None:
    out, more = tmp_path / "run", ("--method", "finetune")
    assert start(root, out, *more, "--steps", "2") == 0
    assert estimates[-1][1] == pytest.approx(40)  # --steps ends the run
    estimates.clear()
    assert start(root, out, *more) == 0
    assert len(estimates) > 1
    # nothing but the last step, whose evaluation was not measured by this process
    assert estimates[-1][1] < 40 == clock.now - estimates[-1][0]


def test_kept_views_are_part_of_it(
    root: Path, tmp_path: Path, estimates: list[tuple[float, float]], clock: Clock
) -> None:
    assert start(root, tmp_path / "run", "--method", "ssul", "--train.epochs", "6") == 0
    assert estimates[-1][1] == pytest.approx(clock.now - estimates[-1][0])


def test_the_demo_counts_all_its_runs(
    tmp_path: Path,
    clock: Clock,
    estimates: list[tuple[float, float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """finetune's increments and joint are part of the first run's estimates, too."""

    def evaluated(self: Validation, step: int, *args: object, **more: object) -> Matrices:
        clock.now += 40
        counts = np.ones((len(self.scenario.classes), self.scenario.known(step)), np.int64)
        return Matrices(counts, counts)

    monkeypatch.setattr(Validation, "matrices", evaluated)
    monkeypatch.setattr(demo, "_draw", lambda *args: {})
    size = DemoSize(scenes=40, base_epochs=1, epochs=1)
    demo.run_demo(tmp_path, 1, size, "segrow demo", print)
    assert estimates[-1][1] == pytest.approx(clock.now - estimates[-1][0])
    # once an evaluation was measured
    after = [k for k, (at, _) in enumerate(estimates) if at > estimates[0][0] + 40]
    errors = [estimates[k][1] - (clock.now - estimates[k][0]) for k in after]
    assert max(abs(error) for error in errors) < 1e-6
    assert "left of the demo" in capsys.readouterr().err
    estimates.clear()
    demo.run_demo(tmp_path, 1, size, "segrow demo", print)  # all is done
    assert not estimates


def test_unmeasured_work_is_taken_for_what_resembles_it() -> None:
    left = TimeLeft()
    left.ahead = [Work("evaluation", 30), Work("heads", 100), Work("page", 1)]
    left.later = [Work("trunk", 10)]
    assert left.estimate(Work("trunk", 5), 2.0) == pytest.approx(5 * 2 + 30 * 2 / 3 + 100 * 2 + 0 + 10 * 2)
    left.finished(Work("evaluation", 30), 15.0)
    left.finished(Work("page", 1), 7.0)
    assert left.estimate(Work("trunk", 5), 2.0) == pytest.approx(10 + 15 + 200 + 7 + 20)
    left.finished(Work("trunk", 100), 300.0)
    assert left.estimate(Work("heads", 50), 0.5) == pytest.approx(25 + 15 + 50 + 7 + 30)
    left.finished(Work("evaluation", 0), 1.0)  # tells nothing
    assert left.estimate(Work("heads", 0), 0.5) == pytest.approx(15 + 50 + 7 + 30)


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "a few seconds"),
        (9.9, "a few seconds"),
        (14, "about 10 s"),
        (89, "about 90 s"),
        (95, "about 2 min"),
        (3600, "about 60 min"),
        (2 * 3600 + 300, "about 2 h 5 min"),
        (30 * 3600, "about 30 h"),
    ],
)
def test_no_more_digits_than_an_estimate_has(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_the_bar_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal."""
    display = Display()
    bar = display.training("step 0", 10, 0)
    bar.show({"bce": 0.5}, "about 3 min left of the run")
    (task,) = display._progress.tasks
    row = display._progress.make_tasks_table([task])
    shown = [str(next(iter(column.cells))) for column in row.columns]
    assert shown[-1] == "about 3 min left of the run"
