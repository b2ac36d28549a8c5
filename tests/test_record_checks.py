"""A model.json or last.ckpt that fits its checksums and makes no sense is one line, and needs no memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_store import META, grown
from torch import nn

from segrow.engine.checkpoint import Checkpoint
from segrow.errors import UserError
from segrow.methods.base import make_method
from segrow.model.record import hashes_of
from segrow.model.store import load_model, save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(grown(), tmp_path / "model", META)
    return tmp_path / "model"


def with_change(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """The error of a model whose record was changed and hashed again."""
    record = json.loads((folder / "model.json").read_text())
    change(record)
    record["hashes"] = hashes_of(record, record["hashes"]["files"])
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["model"]["config"].update(fields)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (config(width="x"), 'model.config.width holds "x", expected a whole number'),
        (config(width=10**5), "do not fit deeplabv3"),
        (config(width=-3), "model.json: model width is -3"),
        (config(output_stride=3), "model.json: "),
        (config(rates=[0.5]), "model.config.rates[0] holds 0.5"),
        (config(colour=3), "has colour of a network, which this segrow lacks; update segrow"),
        (lambda r: r["model"]["layout"].pop(), "does not name each of its"),
        (lambda r: r["model"]["layout"][0].pop("start"), "model.layout[0] lacks start"),
        (lambda r: r["model"]["layout"][1].update(start=0), "layout has classes 0 to"),
        (lambda r: r["model"]["layout"][-1].update(stop=60_000), "does not name each of its 60000 classes"),
        (lambda r: r["class_names"].__setitem__(1, r["class_names"][2]), "does not name each of its"),
        (lambda r: r["class_names"].__setitem__(1, ""), "does not name each of its"),
        (lambda r: r["class_names"].__setitem__(1, 7), "class_names[1] holds 7, expected text"),
        (lambda r: r["class_steps"].append(1), "does not name each of its"),
        (lambda r: r["input"].update(mean=[0.5]), "mean and std have 1 and 3 numbers, expected three each"),
        (lambda r: r["input"].update(mean=[1e308] * 3), "expected a mean from 0 to 1 and a std from 0.001"),
        (lambda r: r["input"].update(std=[0, 1, 1]), "expected a mean from 0 to 1 and a std from 0.001"),
        (lambda r: r["input"].update(std=[4e-7] * 3), "expected a mean from 0 to 1 and a std from 0.001"),
        (lambda r: r["input"].update(std=[float("nan"), 1, 1]), "input.std[0] holds NaN, expected a finite"),
    ],
)
def test_a_record_that_makes_no_sense(
    folder: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    assert expected in with_change(folder, change)


def test_a_file_of_a_model_that_is_far_too_large_is_not_read(folder: Path) -> None:
    save_model(grown(), folder, META, {"memory.json": b"{}"})
    with (folder / "memory.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="was changed or cut off"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"threshold": "x"}, 'threshold holds "x", expected a finite number'),
        ({"threshold": float("nan")}, "threshold holds NaN"),
        ({"gives_way": 3}, "gives_way holds 3, expected a list"),
        ({"loss_type": ["bce"]}, "loss_type holds a list of 1"),
    ],
)
def test_fields_of_a_method_of_another_kind(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        make_method("ssul", fields)
    assert expected in str(caught.value)


def stored(**change: Any) -> dict[str, Any]:
    net = nn.Conv2d(1, 1, 1)
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    good = Checkpoint(0, 1, dict(net.state_dict()), optimizer.state_dict(), {}, {}, 1.5)
    return {**vars(good), **change}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"step": "0"}, 'step holds "0", expected a whole number'),
        ({"epoch": -1}, "epoch holds -1"),
        ({"seconds": None}, "seconds holds null"),
        ({"model": {"weight": 3}}, "model.weight holds 3, expected a tensor"),
        ({"optimizer": {}}, "optimizer lacks state"),
        ({"method": [1]}, "method holds a list of 1, expected a mapping"),
        ({"selected": {"update": 1}}, "lacks score, weights"),
        ({"model": {"w": torch.zeros(1).expand(1 << 16, 1 << 16)}}, "repeats fewer numbers"),
    ],
)
def test_a_checkpoint_that_makes_no_sense(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    torch.save(stored(**change), tmp_path / "last.ckpt")
    with pytest.raises(UserError) as caught:
        Checkpoint.load(tmp_path / "last.ckpt")
    assert expected in str(caught.value)
    assert "delete it to start the step again" in str(caught.value) or "clone" in str(caught.value)
