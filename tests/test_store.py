"""The model directory: same outputs after reading, damage noticed, never half of it visible."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.model import store
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


def grown(form: str = "conv", unknown: bool = True) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3plus_test_resnet",
        weights="none",
        width=8,
        rates=(1, 2),
        head=form,  # type: ignore[arg-type]
    )
    model = build_segmenter(config, 2, unknown, lambda line: None)
    model.grow(2, step=1)
    model.train()
    model(pictures())  # running statistics of its own
    return model.to(memory_format=torch.channels_last)  # as it is loaded: else the last bits differ


def pictures() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, 33, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


META: dict[str, Any] = {
    "class_names": ["background", "cat", "dog", "bird", "cow"],
    "method": {"name": "ssul", "fields": {"threshold": 0.7, "scale": (0.5, 2.0)}},
    "parent": None,
}


class _Drawn(TorchFunctionMode):
    """Counts the tensors that are filled with random numbers."""

    def __init__(self) -> None:
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (Tensor.normal_, Tensor.uniform_)
        return func(*args, **(kwargs or {}))


def test_reading_draws_no_random_weights(tmp_path: Path) -> None:
    with _Drawn() as building:
        model = grown()
    save_model(model, tmp_path / "model", META)
    with _Drawn() as reading:
        load_model(tmp_path / "model")
    assert (building.count > 0, reading.count) == (True, 0)


@pytest.mark.parametrize("numbers", [1, 5000])
def test_weights_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    """However few that is: one tensor at least."""
    model = grown().eval()
    save_model(model, tmp_path / "model", META)
    monkeypatch.setattr(store, "_AT_ONCE", numbers)
    loaded, _ = load_model(tmp_path / "model")
    assert torch.equal(model(pictures()).logits, loaded(pictures()).logits)


@pytest.mark.parametrize(("form", "unknown"), [("conv", True), ("linear", False)])
def test_a_model_read_back_says_the_same(tmp_path: Path, form: str, unknown: bool) -> None:
    model = grown(form, unknown)
    save_model(model, tmp_path / "a" / "model", META)
    random = torch.get_rng_state()
    loaded, record = load_model(tmp_path / "a" / "model")
    assert torch.equal(torch.get_rng_state(), random)
    assert not loaded.training
    model.eval()
    first, second = model(pictures()), loaded(pictures())
    assert torch.equal(first.logits, second.logits)
    assert (second.unknown is not None) == unknown
    assert loaded.layout == model.layout
    assert loaded.config == model.config
    assert record["class_names"] == META["class_names"]
    assert record["class_steps"] == [0, 0, 0, 1, 1]
    assert record["method"]["fields"]["scale"] == [0.5, 2.0]
    assert record["input"]["mean"] == [0.5, 0.5, 0.5]
    assert record["format"] == 1
    loaded.grow(1, step=2)  # can be taught further


def test_double_precision_survives(tmp_path: Path) -> None:
    model = grown().double().eval()
    save_model(model, tmp_path / "model", META)
    assert torch.equal(load_model(tmp_path / "model")[0](pictures()).logits, model(pictures()).logits)


def test_buffers_that_are_computed_are_there_too(tmp_path: Path) -> None:
    """Kernels of a blur, say: part of the network, not of its state dict."""
    torch.manual_seed(0)
    config = ModelConfig(name="deeplabv3_resnetblur18", weights="none", width=8)
    model = build_segmenter(config, 4, True, lambda line: None).eval().to(memory_format=torch.channels_last)
    assert set(dict(model.named_buffers())) - set(model.state_dict())
    save_model(model, tmp_path / "model", META)
    loaded, _ = load_model(tmp_path / "model")
    assert torch.equal(loaded(pictures()).logits, model(pictures()).logits)


def test_the_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    save_model(grown(), tmp_path / "model", META, {"memory.json": b"{}"})
    record = json.loads((tmp_path / "model/model.json").read_text())
    weights = hashlib.sha256((tmp_path / "model/model.safetensors").read_bytes()).hexdigest()
    assert record["hashes"]["weights"] == record["hashes"]["files"]["model.safetensors"] == weights
    assert record["hashes"]["files"]["memory.json"] == hashlib.sha256(b"{}").hexdigest()
    rest = {key: value for key, value in record.items() if key != "hashes"}
    config = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    assert record["hashes"]["config"] == config
    assert record["hashes"]["model"] == hashlib.sha256((config + weights).encode()).hexdigest()
    save_model(grown(), tmp_path / "again", META)
    again = json.loads((tmp_path / "again/model.json").read_text())
    assert again["hashes"]["model"] == record["hashes"]["model"]


def test_damage_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def attempt(name: str, content: bytes | None) -> str:
        save_model(grown(), folder, META, {"memory.json": b"[1]"})
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    save_model(grown(), folder, META)
    weights = (folder / "model.safetensors").read_bytes()
    record = (folder / "model.json").read_text()
    flipped = bytearray(weights)
    flipped[-5] ^= 1
    assert "changed or cut off" in attempt("model.safetensors", bytes(flipped))
    assert "file not fully covered); copy it again" in attempt("model.safetensors", weights[:-100])
    assert "is missing" in attempt("model.safetensors", None)
    assert "changed or cut off" in attempt("memory.json", b"[2]")
    assert "is missing" in attempt("memory.json", None)
    assert "changed after it was written" in attempt("model.json", record.replace("dog", "cow").encode())
    assert "is not JSON" in attempt("model.json", record[:200].encode())
    newer = record.replace('"format": 1', '"format": 2')
    assert "has format 2" in attempt("model.json", newer.encode())
    assert "update segrow" in attempt("model.json", newer.encode())
    assert "expected a format version" in attempt("model.json", b"[]")
    assert "expected a format version" in attempt("model.json", b"{}")
    assert "no model in" in attempt("model.json", None)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model in .*absent: expected a folder with model\.json"):
        load_model(tmp_path / "absent")


def test_another_timm_is_named(tmp_path: Path) -> None:
    """Names in the file that this network lacks, though every hash is right."""
    model = grown()
    model.trunk.register_buffer("spare", torch.ones(1))
    save_model(model, tmp_path / "model", META)
    with pytest.raises(UserError, match="do not fit deeplabv3plus_test_resnet of timm"):
        load_model(tmp_path / "model")


def test_replacing_keeps_foreign_files_and_drops_old_ones(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(grown(), folder, META, {"method.safetensors": b"1", "memory.json": b"[]"})
    (folder / "notes.txt").write_text("mine")
    (folder / "history").mkdir()
    (folder / "history/x").write_text("old")
    save_model(grown(), folder, META | {"parent": "abc"}, {"memory.json": b"[2]"})
    assert {p.name for p in folder.iterdir()} == {
        "history",
        "memory.json",
        "model.json",
        "model.safetensors",
        "notes.txt",
    }
    assert (folder / "history/x").read_text() == "old"
    assert load_model(folder)[1]["parent"] == "abc"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(UserError, match="not a model directory"):
            save_model(grown(), tmp_path / name, META)
    assert (tmp_path / "photos/cat.jpg").exists()
    (tmp_path / "empty").mkdir()
    save_model(grown(), tmp_path / "empty", META)
    load_model(tmp_path / "empty")


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("exists", [False, True])
def test_half_a_model_is_never_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, exists: bool
) -> None:
    """Stop the writer at its n-th fsync or rename: what can be read is the old model, the new one or none."""
    folder = tmp_path / "model"
    if exists:
        save_model(grown(), folder, META | {"parent": "old"})
        (folder / "notes.txt").write_text("mine")
    calls = 0

    class Killed(BaseException):
        pass

    def counted(real: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Killed
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(os, "rename", counted(os.rename))
        try:
            save_model(grown(), folder, META | {"parent": "new"}, {"memory.json": b"[]"})
            finished = True
        except Killed:
            finished = False
    try:
        seen = load_model(folder)[1]["parent"]
    except UserError:
        seen = None
    if finished:
        assert seen == "new"
    else:
        assert seen in (("old", "new") if exists else (None,))
    save_model(grown(), folder, META | {"parent": "next"})
    assert load_model(folder)[1]["parent"] == "next"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (folder / "notes.txt").exists() == exists


def test_what_a_caller_may_not_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 2 classes, the model has 5"):
        save_model(grown(), tmp_path / "m", {"class_names": ["background", "cat"]})
    with pytest.raises(ValueError, match="may not set hashes"):
        save_model(grown(), tmp_path / "m", META | {"hashes": {}})
    for name in ("model.json", "../x"):
        with pytest.raises(ValueError, match="not a name for a further file"):
            save_model(grown(), tmp_path / "m", META, {name: b""})
    assert list(tmp_path.iterdir()) == []
