"""Two processes on the CPU do what one does with the same global batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import STEPS, build_tree, log, matrices, model, options, results, run_processes, start, tensors

SAME = ("--memory.size", "6", "--model.dropout", "0", "--train.log_every", "1", "--train.epochs", "1")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    one, two = tmp_path / "one", tmp_path / "two"
    done = run_processes(options(root, two, *SAME, "--train.devices", "2"))
    assert done.returncode == 0, done.stderr
    assert start(root, one, *SAME) == 0
    assert done.stdout.count("run folder: ") == 1  # one process speaks
    assert done.stderr.count("step 1  learns bird") == 1
    for step in range(STEPS):
        a, b = tensors(one, step), tensors(two, step)
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(
                b[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
        kept = [(model(out, step) / "memory.json").read_bytes() for out in (one, two)]
        assert kept[0] == kept[1]
    for ours, theirs in zip(matrices(one), matrices(two), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert np.sum(x) == np.sum(y)
            assert np.abs(np.subtract(x, y)).sum() <= 0.005 * np.sum(x)
    assert [s["exemplars"] for s in results(two)["steps"]] == [0, 6, 6]
    totals = [[float(row["total"]) for row in log(out)] for out in (one, two)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
