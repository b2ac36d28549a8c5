"""Images read and written beside the network: the same files, results and errors, in the same order."""

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from steps import tiny

from segrow import predict_files as module
from segrow.methods.ssul import Ssul
from segrow.predict import Predictor
from segrow.predict_files import Job, Prediction, find_images, predict_files


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny().float(), Ssul().scores, ["background", "cat", "dog"])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Six images; the third is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (40 + k, 48, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    (folder / "2.png").write_bytes(b"no image")
    return find_images([str(folder)]).jobs


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def beside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "THREADED", ("cpu",))


def found(results: Iterator[Prediction], out: Path) -> list[Prediction]:
    """Their places below the folder of results."""
    return [
        replace(
            done,
            labels=done.labels and done.labels.relative_to(out),
            overlay=done.overlay and done.overlay.relative_to(out),
        )
        for done in results
    ]


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("large", [0, 1 << 24])
def test_the_same_files_and_results(
    predictor: Predictor, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """A large image is read and written while nothing else is held."""
    one, two = tmp_path / "one", tmp_path / "two"
    plain = found(predict_files(predictor, jobs, one, True, True), one)
    readers: set[str] = set()
    decode = module.decode_image

    def read(path: Path) -> Any:
        readers.add(threading.current_thread().name)
        return decode(path)

    beside(monkeypatch)
    monkeypatch.setattr(module, "LARGE", large)
    monkeypatch.setattr(module, "decode_image", read)
    assert found(predict_files(predictor, jobs, two, True, True), two) == plain
    assert [done.labels is None for done in plain] == [False, False, True, False, False, False]
    assert written(two) == written(one)
    assert len(written(one)) == 15
    assert readers == ({"MainThread", "ahead"} if large else {"MainThread"})  # what is no image is read again


@pytest.mark.parametrize("threads", [False, True])
def test_a_full_disk_ends_it(
    predictor: Predictor, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    """After the results before it, and nothing is written after it."""
    write = module.write_prediction

    def full(labels: Any, path: Path, palette: Any) -> None:
        if path.name == "3.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(labels, path, palette)

    if threads:
        beside(monkeypatch)
    monkeypatch.setattr(module, "write_prediction", full)
    results = predict_files(predictor, jobs, tmp_path, overlays=False)
    assert [next(results).image.name for _ in range(3)] == ["0.png", "1.png", "2.png"]
    with pytest.raises(OSError, match="No space left"):
        next(results)
    assert set(written(tmp_path)) == {"0.png", "1.png"}


def test_a_loop_that_is_left_early(
    predictor: Predictor, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch)
    results = predict_files(predictor, jobs, tmp_path, overlays=False)
    assert next(results).labels == tmp_path / "0.png"
    results.close()  # type: ignore[attr-defined]
    assert set(written(tmp_path)) <= {"0.png", "1.png"}


def test_few_images_are_held(
    predictor: Predictor, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits, one before the network, one that is written."""
    held, most = 0, 0
    read, write = module._Maker.read, module._Maker.write

    def reading(self: Any, work: Any) -> Any:
        nonlocal held, most
        if work.pixels is None and not work.problem:
            held += 1
            most = max(most, held)
        return read(self, work)

    def writing(self: Any, work: Any) -> Prediction:
        nonlocal held
        done = write(self, work)
        held -= 1
        return done

    beside(monkeypatch)
    monkeypatch.setattr(module._Maker, "read", reading)
    monkeypatch.setattr(module._Maker, "write", writing)
    good = [job for job in jobs if job.place.name != "2.png"]
    assert len(list(predict_files(predictor, good, tmp_path, overlays=False))) == 5
    assert most <= 3
    assert held == 0
