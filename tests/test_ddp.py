"""Two processes on the CPU do what one does with the same global batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import STEPS, build_tree, log, matrices, model, options, results, run_processes, start, tensors

from segrow.engine import select

SAME = (
    "--memory.size",
    "6",
    "--model.dropout",
    "0",
    "--train.log_every",
    "1",
    "--train.epochs",
    "1",
    "--train.precision",
    "32",
)
DOUBLE = Path(__file__).parent / "double.py"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["ssul", "plop", "mib", "ilt"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    """In float64, to nine digits: in float32 rounding grows with every update, and hides what is wrong.

    After eight epochs of a base step a running variance differs by 0.1 in float32 and by 1e-13 in float64.
    """
    root = build_tree(tmp_path / "VOC2012").root
    one, two = tmp_path / "one", tmp_path / "two"
    crop = ("--train.crop", "64") if method == "plop" else ()  # its pools need four pixels
    more = ("--method", method, *SAME, *crop)
    done = run_processes(options(root, two, *more, "--train.devices", "2"), (str(DOUBLE),))
    assert done.returncode == 0, done.stderr
    alone = run_processes(options(root, one, *more), (str(DOUBLE),))
    assert alone.returncode == 0, alone.stderr
    assert done.stdout.count("run folder: ") == 1  # one process speaks
    assert done.stderr.count("step 1  learns bird") == 1
    for step in range(STEPS):
        a, b = tensors(one, step), tensors(two, step)
        assert a.keys() == b.keys()
        assert a["trunk.decoder.aspp.project.0.weight"].dtype == torch.float64
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        states = [(two / f"state-{step}-{rank}").read_text() for rank in (0, 1)]
        assert states[0] == states[1]  # nobody sends running statistics around
        kept = [(model(out, step) / "memory.json").read_bytes() for out in (one, two)]
        assert kept[0] == kept[1]
    assert matrices(one) == matrices(two)
    assert [s["exemplars"] for s in results(two)["steps"]] == [0, 6, 6]
    totals = [[float(row["total"]) for row in log(out)] for out in (one, two)]
    assert totals[0] == pytest.approx(totals[1], abs=2e-6, rel=1e-7)  # float32 in the log, six digits


def _only_one_shows(root: Path, raw: int) -> None:
    """Take a class out of all validation masks but the first that shows it."""
    paths = [root / "SegmentationClassAug" / f"{name}.png" for name in _validation_names(root)]
    shown = [path for path in paths if (np.asarray(Image.open(path)) == raw).any()]
    assert len(shown) > 1
    for path in shown[1:]:
        mask = np.array(Image.open(path))
        mask[mask == raw] = 0
        Image.fromarray(mask).save(path)


def _validation_names(root: Path) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_select_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a step with a single validation image to choose by, which leaves one process without any."""
    root = build_tree(tmp_path / "VOC2012").root
    _only_one_shows(root, 3)
    one, two = tmp_path / "one", tmp_path / "two"
    long = ("--train.step0_epochs", "7", "--train.epochs", "4", "--steps", "2")  # 21 and 12 updates
    more = (*SAME[:-2], *long, "--train.select", "best")
    monkeypatch.setattr(select, "LEAST_INTERVAL", 10)
    program = tmp_path / "often.py"
    program.write_text(
        "import sys\nfrom segrow import cli\nfrom segrow.engine import select\n"
        "select.LEAST_INTERVAL = 10\nsys.exit(cli.main())\n"
    )
    done = run_processes(options(root, two, *more, "--train.devices", "2"), (str(program),))
    assert done.returncode == 0, done.stderr
    assert start(root, one, *more) == 0
    for ours, theirs in zip(results(one)["steps"], results(two)["steps"], strict=True):
        assert ours["selected"]["update"] == theirs["selected"]["update"]
        assert ours["selected"]["score"] == pytest.approx(theirs["selected"]["score"], abs=0.05)
    # of the base step, the score was taken on the images that `matrix_known` counts: over both processes
    whole = np.array(results(two)["steps"][0]["matrix_known"])
    matrix = whole[:3].copy()
    matrix[0] += whole[3:].sum(0)  # later classes are background there
    iou = [matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]) for c in range(3)]
    assert results(two)["steps"][0]["selected"]["score"] == pytest.approx(np.mean(iou), abs=1e-12)
    assert done.stderr.count("step 0  keeps the weights after update ") == 1  # one process speaks


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("fault", "rank", "code", "line"),
    [
        ("oom", "1", 2, "out of memory"),
        ("kill", "1", 1, "another process of this run has ended"),
        ("image", "1", 2, "cannot be decoded"),
        ("full", "0", 2, "No space left on device; what was written before is whole"),
    ],
)
def test_one_process_fails_and_the_other_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, rank: str, code: int, line: str
) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    monkeypatch.setenv("FAIL", fault)
    monkeypatch.setenv("FAIL_RANK", rank)
    words = options(root, tmp_path / "run", "--train.devices", "2")
    done = run_processes(words, (str(Path(__file__).parent / "failing.py"),))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("segrow: ")]
    assert len(said) == 1
    assert line in said[0]
