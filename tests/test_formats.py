"""How weights stand in memory, and when cuDNN tries its kernels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import start
from torch import nn

from segrow import evaluate
from segrow.config import RunPaths
from segrow.engine import select
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.step import StepTrainer, _restore
from segrow.model.store import load_model

BEST = ("--train.select", "best", "--train.step0_epochs", "2", "--train.epochs", "1", "--steps", "2")


def formats(module: nn.Module) -> set[torch.memory_format]:
    """Of the 3x3 convolutions."""
    found = [p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    last, plain = torch.channels_last, torch.contiguous_format
    return {last if p.is_contiguous(memory_format=last) else plain for p in found}


@pytest.mark.parametrize("last", [True, False])
def test_every_step_trains_in_the_format_of_its_images(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """Weights of step 1 and later come from a file. Kernels are tried in training, not in between."""
    seen: dict[str, set[Any]] = {"format": set(), "training": set(), "evaluation": set()}
    update, confusion = StepTrainer._update, evaluate.confusion

    def look(self: StepTrainer, batch: Any) -> Any:
        assert self.ctx.teacher is None or formats(self.ctx.teacher) == formats(self.ctx.model)
        seen["format"] |= formats(self.ctx.model)
        seen["training"].add(torch.backends.cudnn.benchmark)
        return update(self, batch)

    def count(*words: Any) -> Any:
        seen["evaluation"].add(torch.backends.cudnn.benchmark)
        return confusion(*words)

    monkeypatch.setattr(select, "LEAST_INTERVAL", 2)  # evaluates within the training
    monkeypatch.setattr(StepTrainer, "_update", look)
    monkeypatch.setattr(evaluate, "confusion", count)
    assert start(root, tmp_path / "run", *BEST, "--train.channels_last", str(last).lower()) == 0
    expected = torch.channels_last if last else torch.contiguous_format
    assert seen == {"format": {expected}, "training": {True}, "evaluation": {False}}
    assert not torch.backends.cudnn.benchmark
    assert formats(load_model(RunPaths(tmp_path / "run").model(1))[0]) == {torch.channels_last}


def test_momentum_of_another_format_continues() -> None:
    """As earlier files have it: the optimizer goes through weights and momentum as they lie in memory."""
    net = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    net.weight.grad = torch.zeros_like(net.weight)
    momentum = torch.randn(4, 3, 3, 3)
    resume = Checkpoint(1, 1, {}, {"state": {0: {"momentum_buffer": momentum}}}, {}, {}, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.5, fused=True)
    before = net.weight.detach().clone()
    _restore(resume, net, optimizer, None)  # type: ignore[arg-type]
    optimizer.step()
    torch.testing.assert_close(net.weight, before - 0.5 * momentum)
