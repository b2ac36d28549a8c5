"""Whole runs on tiny data: what they write, what may not move, and what the seed decides."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import (
    NAMES,
    STEPS,
    build_tree,
    last_line,
    log,
    matrices,
    model,
    only_line,
    options,
    record,
    results,
    start,
    tensors,
    weights,
    without_ignored,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segrow import cli
from segrow.engine.step import StepTrainer
from segrow.model.store import load_model

MEMORY = ("--memory.size", "6", "--train.log_every", "1")


@pytest.fixture(scope="module")
def ssul(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SSUL-M."""
    out = tmp_path_factory.mktemp("runs") / "ssul"
    assert start(root, out, *MEMORY) == 0
    return out


# --- what a run writes ----------------------------------------------------------------------------------


def test_files_of_a_run(ssul: Path) -> None:
    assert {f.name for f in ssul.iterdir()} >= {"config.yaml", "results.json", "log.csv", "tensorboard"}
    for step in range(STEPS):
        files = {f.name for f in model(ssul, step).iterdir()}
        assert files == {"model.json", "model.safetensors", "memory.json"}
    assert not [f for f in ssul.rglob("*") if f.name.endswith(".tmp")]


def test_results_of_every_step(ssul: Path) -> None:
    found = results(ssul)
    assert found["classes"] == ["background", *NAMES]
    assert [s["classes"] for s in found["steps"]] == [list(NAMES[:2]), [NAMES[2]], [NAMES[3]]]
    for k, step in enumerate(found["steps"]):
        known = 3 + k
        assert step["step"] == k
        assert step["known"] == known
        for name in ("matrix", "matrix_known"):
            assert len(step[name]) == len(NAMES) + 1
            assert all(len(row) == known for row in step[name])
        # 8 images, centre crop 32 x 32 of 40 x 48 resized: the border row is all that may be ignored
        pixels = sum(map(sum, step["matrix"]))
        assert 8 * 32 * 30 <= pixels <= 8 * 32 * 32
        assert step["n_images"] == 8
        assert 0 < step["n_images_known"] <= 8
        assert step["exemplars"] == (6 if k else 0)


def test_cost_of_every_step(ssul: Path) -> None:
    costs = [step["cost"] for step in results(ssul)["steps"]]
    for k, cost in enumerate(costs):
        assert cost["train_s"] > 0
        assert cost["eval_s"] > 0
        assert cost["peak_memory_bytes"] > 1e6
        stored = sum(v.numel() for n, v in tensors(ssul, k).items() if not n.endswith(_BUFFERS))
        assert cost["parameters"] == stored
        assert cost["stored_bytes"] > (model(ssul, k) / "model.safetensors").stat().st_size
        assert cost["iterations"] == 2 * (results(ssul)["steps"][k]["images"] // 4)
    assert costs[0]["trainable"] == costs[0]["parameters"]
    assert costs[1]["trainable"] < costs[1]["parameters"] / 3  # trunk and old heads are frozen


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def test_log_and_tensorboard_say_the_same(ssul: Path) -> None:
    rows = log(ssul)
    for step in range(STEPS):
        events = EventAccumulator(str(ssul / "tensorboard" / f"step_{step:02d}")).Reload()
        ours = [row for row in rows if row["step"] == str(step)]
        curve = events.Scalars("loss/total")
        assert [e.step for e in curve] == list(range(len(ours)))
        torch.testing.assert_close(
            torch.tensor([e.value for e in curve]),
            torch.tensor([float(row["total"]) for row in ours]),
            atol=1e-5,
            rtol=1e-5,
        )
        assert all(row["terms"].startswith("bce=") for row in ours)


def test_memory_is_passed_on(ssul: Path) -> None:
    stored = [results(ssul)["steps"][k]["exemplars"] for k in range(STEPS)]
    assert stored == [0, 6, 6]
    assert b"classes" in (model(ssul, 1) / "memory.json").read_bytes()
    assert record(ssul, 1)["parent"] == record(ssul, 0)["hashes"]["model"]


# --- what may not move ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2])
def test_frozen_tensors_do_not_move_a_bit(ssul: Path, step: int) -> None:
    before, after = tensors(ssul, step - 1), tensors(ssul, step)
    old_heads = [f"heads.{k}." for k in range(1, step + 1)]
    frozen = [n for n in before if n.startswith("trunk.") or any(n.startswith(h) for h in old_heads)]
    statistics = [n for n in before if n.endswith(_BUFFERS)]
    assert len(frozen) > 50
    assert len(statistics) > 10
    for name in {*frozen, *statistics}:
        assert torch.equal(before[name], after[name]), name
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert any(n.startswith("unknown.") for n in moved)
    assert all(n.startswith(("heads.0.", "unknown.")) for n in moved)


@pytest.mark.parametrize("step", [1, 2])
def test_old_foreground_outputs_do_not_move_a_bit(ssul: Path, step: int) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    with torch.inference_mode():
        before = load_model(model(ssul, step - 1))[0](images)
        after = load_model(model(ssul, step))[0](images)
    assert torch.equal(before.logits[:, 1:], after.logits[:, 1 : before.logits.shape[1]])
    assert before.unknown is not None
    assert after.unknown is not None
    assert not torch.equal(before.unknown, after.unknown)


def test_finetune_moves_everything(root: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", "--method", "finetune", "--task", "3-1") == 0
    before, after = tensors(tmp_path / "run", 0), tensors(tmp_path / "run", 1)
    for part in ("trunk.backbone.", "trunk.decoder.", "heads.0.", "heads.1."):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part))


# --- what the seed decides ------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_weights(root: Path, ssul: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "again", *MEMORY) == 0
    assert weights(tmp_path / "again") == weights(ssul)
    assert matrices(tmp_path / "again") == matrices(ssul)


def test_loader_processes_change_nothing(root: Path, ssul: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "workers", *MEMORY, "--train.workers", "2") == 0
    assert weights(tmp_path / "workers") == weights(ssul)


def test_another_seed_gives_other_weights(root: Path, ssul: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "seed", *MEMORY, "--seed", "2", "--train.epochs", "1") == 0
    assert not {w for w, _ in weights(tmp_path / "seed")} & {w for w, _ in weights(ssul)}


def test_epochs_draw_differently(ssul: Path) -> None:
    """Were every epoch the same draw, a frozen learning rate would show the same first loss."""
    rows = [row for row in log(ssul) if row["step"] == "0" and row["iteration"] == "0"]
    assert len({row["total"] for row in rows}) == 2


# --- how it trains ----------------------------------------------------------------------------------------


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """With frozen normalisation and the same number of counted pixels in both halves."""
    tree = build_tree(tmp_path / "VOC2012")
    without_ignored(tree.root)
    same = ("--task", "2-2", "--model.dropout", "0", "--train.scale", "1,1")
    assert start(tree.root, tmp_path / "base", *same, "--train.epochs", "1") == 0
    for name, parts in (("one", "1"), ("two", "2")):
        more = ("--base", str(tmp_path / "base"), "--train.accumulate", parts)
        assert start(tree.root, tmp_path / name, *same, *more) == 0
    one, two = tensors(tmp_path / "one", 1), tensors(tmp_path / "two", 1)
    moved = [n for n, v in tensors(tmp_path / "base", 1).items() if not torch.equal(v, one[n])]
    assert moved
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_bf16_trains(root: Path, tmp_path: Path) -> None:
    assert start(root, tmp_path / "run", "--train.precision", "bf16", "--train.epochs", "1") == 0
    for step in range(STEPS):
        found = tensors(tmp_path / "run", step)
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in found.values() if v.ndim)


def test_clipping_bounds_the_first_update(root: Path, tmp_path: Path) -> None:
    """One update from rest: the weights move by lr x (clipped gradient + decay), times (1 + momentum)."""
    same = (
        "--task",
        "offline",
        "--train.batch_size",
        "24",
        "--train.epochs",
        "1",
        "--train.weight_decay",
        "0",
    )
    rates = ("--train.step0_lr", "1", "--train.step0_backbone_lr", "1", "--train.momentum", "0")
    for name, clip in (("small", "1e-3"), ("smaller", "1e-4")):
        assert start(root, tmp_path / name, *same, *rates, "--train.clip", clip) == 0
    a, b = tensors(tmp_path / "small", 0), tensors(tmp_path / "smaller", 0)
    parameters = [n for n in a if not n.endswith(_BUFFERS)]
    difference = torch.cat([(a[n] - b[n]).flatten() for n in parameters]).double().norm().item()
    assert difference == pytest.approx(9e-4, rel=0.02)  # the same direction, lengths 1e-3 and 1e-4


def _record_rates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[float]]]:
    """(step, learning rate of every group) at every update."""
    seen: list[tuple[int, list[float]]] = []
    update: Callable[..., object] = StepTrainer._update

    def spy(self: StepTrainer, batch: object) -> object:
        seen.append((self.ctx.step, [float(g["lr"]) for g in self.optimizer.param_groups]))
        return update(self, batch)

    monkeypatch.setattr(StepTrainer, "_update", spy)
    return seen


def _poly(i: int, n: int) -> float:
    return float((1 - i / n) ** 0.9)


def test_poly_rates_with_their_floor(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _record_rates(monkeypatch)
    rates = ("--train.step0_lr", "0.02", "--train.step0_backbone_lr", "2e-6", "--train.lr", "0.005")
    assert start(root, tmp_path / "run", *rates, "--train.log_every", "1", "--train.step0_epochs", "3") == 0
    n = len([s for s, _ in seen if s == 0])
    assert n == 3 * (results(tmp_path / "run")["steps"][0]["images"] // 4)
    expected = [[max(2e-6 * _poly(i, n), 1e-6), 0.02 * _poly(i, n)] for i in range(n)]
    assert min(backbone for backbone, _ in expected) == 1e-6
    assert [r for s, r in seen if s == 0] == [pytest.approx(e) for e in expected]
    for step in (1, 2):  # SSUL: the new head and the unknown head; the background head 1e-4 as fast
        n = len([s for s, _ in seen if s == step])
        expected = [[0.005 * _poly(i, n), 1e-6] for i in range(n)]
        assert [r for s, r in seen if s == step] == [pytest.approx(e) for e in expected]
    logged = [float(row["lr"]) for row in log(tmp_path / "run")]
    assert logged == [pytest.approx(r[0], rel=1e-5) for _, r in seen]


def test_step_rates_and_poly_without_floor(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _record_rates(monkeypatch)
    more = ("--method", "finetune", "--task", "3-1", "--train.epochs", "2")
    policy = ("--train.policy", "step", "--train.step_size", "3")
    assert start(root, tmp_path / "step", *more, *policy) == 0
    base = [r for s, r in seen if s == 0]
    assert base == [
        pytest.approx([0.001 * 0.1 ** (i // 3), 0.01 * 0.1 ** (i // 3)]) for i in range(len(base))
    ]
    assert len(base) > 6
    seen.clear()
    floor = ("--train.lr_floor", "0", "--train.step0_backbone_lr", "1e-7")
    assert start(root, tmp_path / "poly", *more, *floor) == 0
    base = [r for s, r in seen if s == 0]
    n = len(base)
    assert base == [pytest.approx([1e-7 * _poly(i, n), 0.01 * _poly(i, n)]) for i in range(n)]


def test_warm_poly_rates_and_backbone_rate_of_increments(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _record_rates(monkeypatch)
    more = ("--method", "finetune", "--task", "3-1", "--train.policy", "warm_poly", "--train.batch_size", "2")
    assert start(root, tmp_path / "run", *more, "--train.backbone_lr", "0.004", "--train.epochs", "3") == 0
    for step, rates in ((0, (0.001, 0.01)), (1, (0.004, 0.01))):
        ours = [r for s, r in seen if s == step]
        n = len(ours)
        warm = n // 10
        assert n >= 9
        factors = [_poly(i, n) * (0.001 + 0.999 * i / warm if i < warm else 1) for i in range(n)]
        assert ours == [pytest.approx([rate * f for rate in rates]) for f in factors]
    assert len([s for s, _ in seen if s == 0]) >= 20  # so that there is a warm-up at all


def test_backbone_rate_of_increments_defaults_to_a_tenth(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _record_rates(monkeypatch)
    more = ("--method", "finetune", "--task", "3-1", "--train.lr", "0.03", "--train.epochs", "1")
    assert start(root, tmp_path / "run", *more) == 0
    assert next(r for s, r in seen if s == 1) == pytest.approx([0.003, 0.03])


# --- how it stops -----------------------------------------------------------------------------------------


def test_fp16_on_a_cpu_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", "--train.precision", "16") == 2
    assert "precision 16 needs a GPU; on a CPU use --train.precision auto" in only_line(
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_lost_loss_stops_the_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = start(root, tmp_path / "run", "--train.step0_lr", "1e30", "--train.step0_epochs", "9")
    line = last_line(capsys.readouterr().err)
    assert code == 1
    assert line.startswith("segrow: the loss is not finite: bce = nan; images: ")
    assert line.count("2007_") == 4
    assert "smaller learning rate" in line
    assert not (tmp_path / "run" / "steps").exists()


def test_weights_lost_in_the_last_update_are_not_saved(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One update in all, at the largest rate of float32: its loss was finite, what it left is not."""
    out = tmp_path / "run"
    rates = ("--train.step0_lr", "3.4e38", "--train.step0_backbone_lr", "3.4e38")
    assert start(root, out, "--train.epochs", "1", "--train.batch_size", "7", *rates) == 1
    assert "is not finite after the last update of epoch 1 of step 0" in last_line(capsys.readouterr().err)
    assert not (out / "steps").exists()


def test_results_table_is_printed_at_the_end(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(root, tmp_path / "run", "--task", "offline", "--train.epochs", "1")) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert f"run folder: {tmp_path / 'run'}" in out


def test_log_columns(ssul: Path) -> None:
    with (ssul / "log.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == [
        "step",
        "epoch",
        "iteration",
        "lr",
        "iterations_per_second",
        "total",
        "terms",
        "checksum",
    ]
