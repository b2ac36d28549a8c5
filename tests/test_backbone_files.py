"""Weights of a backbone out of files of other training scripts: --model.weights file:PATH."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segrow.errors import UserError
from segrow.model.backbones import Backbone
from segrow.model.weights import load_backbone_weights, parse_weights

NAME = "test_resnet"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return Backbone(NAME, 16).net.state_dict()


def load(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    backbone, said = Backbone(NAME, 16), []  # type: ignore[var-annotated]
    load_backbone_weights(backbone, parse_weights(f"file:{path}", NAME), said.append)
    return backbone.net.state_dict(), said


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.encoder.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "anything"])
@pytest.mark.parametrize("name", ["w.pth", "last.ckpt"])
def test_any_wrapping(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, key: str | None, name: str
) -> None:
    inside: Any = {prefix + name: value for name, value in state.items()}
    torch.save(inside if key is None else {key: inside, "epoch": 1}, tmp_path / name)
    found, said = load(tmp_path / name)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert said == [f"backbone {NAME}: {len(state)} of {len(state)} tensors from {tmp_path / name}"]


def test_what_stands_beside_the_backbone_is_said(tmp_path: Path, state: dict[str, Tensor]) -> None:
    inside = {f"backbone.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {**inside, "head.weight": torch.ones(2)}}, tmp_path / "w.ckpt")
    found, said = load(tmp_path / "w.ckpt")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert said[0] == f"{tmp_path / 'w.ckpt'}: left out beside the network: head.weight"


def test_query_and_key_encoders(tmp_path: Path, state: dict[str, Tensor]) -> None:
    both = {f"{kind}.{name}": value for kind in ("encoder_q", "encoder_k") for name, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"holds 2 networks, state_dict\.encoder_q and state_dict\.encoder_k; save"
    ):
        load(tmp_path / "w.pth")


def test_another_backbone_says_what_it_lacks(tmp_path: Path, state: dict[str, Tensor]) -> None:
    less = {name: value for name, value in state.items() if "layer2" not in name}
    torch.save({"state_dict": less}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"does not fit backbone {NAME}: it lacks "):
        load(tmp_path / "w.pth")
