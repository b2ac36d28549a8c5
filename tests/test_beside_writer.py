"""A reader beside a writer: whatever it reads is of one version, and none of it is damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exchanges import exchanged_at

from segrow.config import ModelConfig
from segrow.memory import Exemplar, to_json
from segrow.methods.base import Method
from segrow.model.lineage import check_history, succeed, versions
from segrow.model.record import is_model, read_record
from segrow.model.segmenter import build_segmenter
from segrow.model.steady import steadily
from segrow.model.store import save_model
from segrow.stored import find_model, load_memory, load_stored

CLASSES = ("background", "cat", "dog")


def _version(folder: Path, names: tuple[str, ...], value: float) -> None:
    """A model of two versions; names, weights, memory and the method's state are all its own."""
    torch.manual_seed(0)
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
    model = build_segmenter(config, 2, False, lambda line: None)
    meta = {
        "step": 0,
        "class_names": list(names),
        "scenario": {"data": "folder", "task": "2-1", "setting": "overlap", "classes": list(names)},
        "method": {"name": "plop", "fields": {}},
        "protocol": {"crop_val": False, "crop": 64},
    }
    for k in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value + k)
        extra = {
            "memory.json": to_json([Exemplar(f"{value}-{k}", 0, (1,))]),
            "method.safetensors": safetensors.torch.save({"thresholds": torch.full((3,), value + k)}),
        }
        if k:
            succeed(model, folder, {**meta, "change": str(value)}, extra, folder, read_record(folder))
        else:
            save_model(model, folder, meta, extra)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `animals` and, in a folder beside it, another version of it."""
    place = tmp_path_factory.mktemp("models")
    _version(place / "animals", CLASSES, 0.25)
    _version(place / "elsewhere" / "animals", ("background", "tiger", "dog"), 0.5)
    return place


def _state(method: Method) -> Any:
    return {name: value.tolist() for name, value in method.state_dict().items()}


def _all(folder: Path) -> object:
    stored = load_stored(folder, allow_code=False)
    weights = {round(v, 3) for p in stored.model.parameters() for v in p.detach().flatten().tolist()}
    return stored.meta["class_names"], weights, stored.memory(), _state(stored.method)


def _two(folder: Path) -> object:
    return read_record(folder)["hashes"], load_memory(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "all": _all,
    "record": lambda folder: read_record(folder)["class_names"],
    "memory": load_memory,
    "two in one read": lambda folder: steadily(folder, _two),
    "versions": lambda folder: [(v.hash, v.classes, v.folder.name) for v in versions(folder)],
    "history": check_history,
    "is there": lambda folder: (is_model(folder), find_model(folder)),
}


@pytest.mark.parametrize(
    ("name", "last"),
    [
        *((name, 12 if name == "all" else None) for name in READERS),
        pytest.param("all", None, marks=pytest.mark.slow),
    ],
)
def test_every_touch_of_every_reader(place: Path, name: str, last: int | None) -> None:
    """The model is exchanged at each touch of its files in turn, at once and in parts."""
    read, model, other = READERS[name], place / "animals", place / "elsewhere" / "animals"
    with exchanged_at(model, other, 10**6, False) as quiet:
        before = read(model)
    with exchanged_at(model, other, 0, False):
        after = read(model)
    assert before != after or name in ("history", "is there")
    seen = []
    first = max(0, quiet.touches - last) if last else 0  # the weights are read last
    for at in range(first, quiet.touches, 3 if last else 1):
        for apart in (False,) if last else (False, True):
            with exchanged_at(model, other, at, apart):
                seen.append(read(model))
            assert seen[-1] in (before, after), (at, apart)
    assert after in seen
