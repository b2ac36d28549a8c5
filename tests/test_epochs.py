"""The epochs of a step are one stream of batches, in the order of their draws."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import start

from segrow.data.loader import Draw, EpochPlan, Loaded
from segrow.engine.step import StepTrainer


def test_the_stream_of_a_step(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a stop in the middle of it. Loader processes go on where an epoch ends, and end with it."""
    epoch, draws, shown = StepTrainer._epoch, EpochPlan.batches, []
    events: list[tuple[str, int]] = []
    stop = True

    def drawn(self: EpochPlan, number: int) -> Iterator[list[Draw]]:
        events.append(("drawn", number))
        yield from draws(self, number)

    def watched(self: StepTrainer, number: int, batches: Iterator[Loaded], *rest: object) -> object:
        expected = [[self.images.image_id(draw) for draw in batch] for batch in draws(self.plan, number)]
        ids: list[list[str]] = []

        def passing() -> Iterator[Loaded]:
            for loaded in batches:
                ids.append(loaded[1])
                yield loaded
                if stop and number == 1:
                    raise KeyboardInterrupt

        terms = epoch(self, number, passing(), *rest)  # type: ignore[arg-type]
        events.append(("trained", number))
        shown.append(number)
        assert ids == expected
        return terms

    monkeypatch.setattr(EpochPlan, "batches", drawn)
    monkeypatch.setattr(StepTrainer, "_epoch", watched)
    words = ("--method", "finetune", "--steps", "1", "--train.epochs", "3", "--train.workers", "1")
    assert start(root, tmp_path / "run", *words) == 130
    assert not multiprocessing.active_children()
    assert events.index(("drawn", 1)) < events.index(("trained", 0))
    stop = False
    assert start(root, tmp_path / "run", *words) == 0
    assert shown == [0, 1, 2]
