"""A run that goes on with another device: its optimizer, a recipe's precision, the peak of memory."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import Precision
from runs import build_tree, results, start
from torch import nn

from segrow.commands import options as command_options
from segrow.config import RunPaths
from segrow.engine import run as engine
from segrow.engine import setup
from segrow.engine.checkpoint import Checkpoint
from segrow.engine.folder import read_config
from segrow.engine.step import _restore
from segrow.sealed import write_sealed_json, write_sealed_yaml

RECIPE = ("--recipe", "theirs", "--train.epochs", "1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tree(tmp_path_factory.mktemp("voc")).root


@pytest.fixture(scope="module")
def begun(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a GPU leaves it that trained step 0 in float16, of a recipe that asks for that."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert start(root, out, "--train.epochs", "1", "--steps", "1") == 0
    found = read_config(out)
    found["train"]["precision"] = "16"
    write_sealed_yaml(RunPaths(out).config, found)
    there = results(out)
    there["steps"][0]["cost"]["precision"] = "16"
    write_sealed_json(RunPaths(out).results, there)
    return out


@pytest.fixture(autouse=True)
def _recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_options, "read_recipe", lambda name: {"train": {"precision": "16"}})


def test_a_recipe_that_asks_for_16_goes_on_on_a_cpu(
    root: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one line, and the step says what it was trained in; then the finished run is read on a GPU."""
    out = Path(shutil.copytree(begun, tmp_path / "run"))
    assert start(root, out, *RECIPE, "--steps", "2") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "goes on in" in line]
    assert len(said) == 1
    assert said[0].startswith("the steps so far were trained in 16; this machine goes on in ")
    assert results(out)["changes"][0]["options"] == {"train.precision": ["16", "auto"]}
    assert [step["cost"]["precision"] for step in results(out)["steps"]] == ["16", "32"]
    with pytest.MonkeyPatch.context() as patch:  # a GPU, on which there is nothing left to train
        patch.setattr(command_options, "_on_gpu", lambda config: True)
        patch.setattr(setup, "make_precision", lambda name, device: Precision())
        assert read_config(out)["train"]["precision"] == "auto"
        assert start(root, out, *RECIPE, "--steps", "2") == 0
    assert "another configuration" not in capsys.readouterr().err


@pytest.mark.parametrize(("before", "now"), [(True, None), (None, True)], ids=["CPU to GPU", "GPU to CPU"])
def test_the_optimizer_is_fused_as_the_device_wants(before: bool | None, now: bool | None) -> None:
    """Not as the checkpoint's was: torch's own loading would take that over."""
    network = nn.Linear(3, 1)

    def optimizer(model: nn.Module, fused: bool | None) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)

    first = optimizer(network, before)
    network(torch.ones(2, 3)).sum().backward()
    first.step()
    stored = Checkpoint(0, 1, network.state_dict(), copy.deepcopy(first.state_dict()), {}, {}, 1.0)
    other = copy.deepcopy(network)
    second = optimizer(other, now)
    machine: Any = SimpleNamespace()
    _restore(stored, other, second, machine)
    assert [group["fused"] for group in second.param_groups] == [now]
    for model, each in ((network, first), (other, second)):
        each.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        each.step()
    assert torch.allclose(network.weight, other.weight)


def test_the_peak_of_memory_is_that_of_the_step(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured anew before each training that records it, `segrow add` too, which calls `train_step`."""
    calls: list[str] = []

    def reset(device: torch.device) -> None:
        calls.append("reset")

    def peak(device: torch.device) -> int:
        calls.append("peak")
        return 1

    inner = engine.Run.train_step

    def train_step(self: engine.Run, step: int) -> float:
        calls.append("begin")
        return inner(self, step)

    monkeypatch.setattr(engine, "reset_peak_memory", reset)
    monkeypatch.setattr(engine, "peak_memory", peak)
    monkeypatch.setattr(engine.Run, "train_step", train_step)
    assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "2") == 0
    assert calls == ["begin", "reset", "peak"] * 2
