"""Files as training scripts leave them: the same tensors out of any wrapping, and nothing of them is run."""

import argparse
import datetime
import pathlib
import subprocess
import tarfile
import types
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segrow.errors import UserError
from segrow.model.state_dicts import find_network, read_file

STATE = {"conv.weight": torch.arange(6.0), "out.weight": torch.ones(2)}
MARKS = [["out.weight", "conv.weight"]]


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    said: list[str] = []
    return find_network(path, read_file(path, "weights file"), MARKS, said.append), said


def saved(tmp_path: Path, content: object, name: str = "w.pth", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[n], t) for n, t in STATE.items())


class AttributeDict(dict):  # type: ignore[type-arg]
    """As configurations of other packages are: a mapping of a class of their own."""

    __module__ = "addict.addict"


WRAPPED: list[object] = [
    STATE,
    {"state_dict": STATE, "epoch": 3},
    {"model": STATE, "args": argparse.Namespace(lr=0.01, out=pathlib.PurePosixPath("x"))},
    {"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(1)}}}},
    {"model_state": STATE, "best_score": np.float64(0.5)},
    {"net": prefixed("module."), "when": datetime.datetime(2024, 1, 1)},
    {"network": {"weights": prefixed("_orig_mod.module.")}},
    {"anything": prefixed("model.net."), "counts": defaultdict(int, {"a": 1})},
    {"ema": STATE},
    {"state_dict": STATE, "hyper_parameters": types.SimpleNamespace(a=[1], b=int)},
]


@pytest.mark.parametrize("content", WRAPPED)
@pytest.mark.parametrize(
    "name", ["w.pth", "w.pt", "last.ckpt", "best.pth.tar", "pytorch_model.bin", "weights"]
)
def test_the_same_tensors_each_time(tmp_path: Path, content: object, name: str) -> None:
    found, said = read(saved(tmp_path, content, name))
    assert same(found)
    assert said == []


@pytest.mark.parametrize("name", ["w.safetensors", "pytorch_model.bin", "w.pth"])
def test_safetensors_of_any_name(tmp_path: Path, name: str) -> None:
    save_file(prefixed("module."), tmp_path / name, metadata={"format": "pt", "by": "somebody"})
    assert same(read(tmp_path / name)[0])


def test_torch_under_the_name_of_safetensors(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = saved(tmp_path, STATE, "w.safetensors", _use_new_zipfile_serialization=zipped)
        assert same(read(path)[0])


def test_a_length_of_safetensors_that_looks_like_another_file(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = (
        (0x12_0108).to_bytes(8, "little") + content[8 : 8 + length].ljust(0x12_0108) + content[8 + length :]
    )
    (tmp_path / "w").write_bytes(padded)
    assert same(read(tmp_path / "w")[0])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("w.onnx", "is called as a file of ONNX and is none of PyTorch; save torch.save"),
        ("w.PB", "is called as a file of TensorFlow and is none of PyTorch; save torch.save"),
        ("w.safetensors", "cannot read weights file"),
        ("w.pth", "copy it again"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"nothing at all, nothing at all")
    with pytest.raises(UserError, match=says):
        read(tmp_path / name)


def test_the_older_format_of_torch(tmp_path: Path) -> None:
    assert same(read(saved(tmp_path, {"model": STATE}, _use_new_zipfile_serialization=False))[0])


def test_a_mapping_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("addict.addict")
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    AttributeDict.__qualname__ = "AttributeDict"
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "addict", types.ModuleType("addict"))
        patch.setitem(__import__("sys").modules, "addict.addict", module)
        path = saved(tmp_path, {"cfg": AttributeDict(lr=0.1, inner=AttributeDict(a=1)), "state_dict": STATE})
    assert same(read(path)[0])  # although no such package is there


def test_a_loss_beside_the_network_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}})
    found, said = read(path)
    assert same(found)
    assert said == [f"{path}: left out beside the network: criterion.weight"]


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE, "model_ema": prefixed("module.", {n: t + 1 for n, t in STATE.items()})},
        {"state_dict": STATE, "state_dict_ema": {n: t + 1 for n, t in STATE.items()}},
        {**STATE, **prefixed("ema.", {n: t + 1 for n, t in STATE.items()})},
        {**prefixed("model."), **prefixed("model_ema.module.", {n: t + 1 for n, t in STATE.items()})},
    ],
)
def test_of_trained_and_averaged_weights_it_is_said_which_are_taken(tmp_path: Path, content: object) -> None:
    found, said = read(saved(tmp_path, content))
    assert same(found)
    assert len(said) == 1
    assert "which are taken, and their average (" in said[0]
    assert "which is not; save that alone to use it" in said[0]


def test_a_teacher_is_called_a_teacher(tmp_path: Path) -> None:
    other = {n: t + 1 for n, t in STATE.items()}
    path = saved(tmp_path, {"student": STATE, "teacher": other})
    found, said = read(path)
    assert same(found)
    assert said == [
        f"{path} holds the trained weights (student), which are taken, and a teacher (teacher), which is "
        "not; save that alone to use it"
    ]
    path = saved(tmp_path, {"net": STATE, "ema": other, "old": prefixed("teacher.module.", other)})
    assert read(path)[1] == [
        f"{path} holds the trained weights (net), which are taken, and their average (ema) and a teacher "
        "(old.teacher.module), which are not; save one alone to use it"
    ]


@pytest.mark.parametrize(
    "content",
    [{"generator": STATE, "discriminator": STATE}, {**prefixed("encoder_q."), **prefixed("encoder_k.")}],
)
def test_two_networks_are_one_too_many(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match=r"holds 2 networks, .* and .*; save a file with one of them alone"):
        read(saved(tmp_path, content))


# --- what is refused, by name -------------------------------------------------------------------------------


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return subprocess.call, (["mkdir", str(self.folder)],)


def test_code_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": STATE, "x": Trap(tmp_path / "trapped")})
    with pytest.raises(
        UserError, match=r"holds (subprocess|commands)\.call, which could run code and is not read"
    ) as caught:
        read(path)
    assert 'save torch.save(model.state_dict(), "weights.pth") where the model is' in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_a_whole_module_is_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds torch\.nn\.modules\.linear\.Linear, which could run code"
    ) as caught:
        read(saved(tmp_path, nn.Linear(2, 2)))
    assert "torch.save(model.state_dict()" in str(caught.value)


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a list, expected names and tensors"):
        read(saved(tmp_path, [torch.ones(1)]))
    with pytest.raises(UserError, match="holds a whole object, not names and tensors"):
        read(saved(tmp_path, argparse.Namespace(a=1)))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner/weights.pth", b"x")


def exported(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive_format", b"pt2")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(__file__, "weights.pth")


def beginning(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (script, "is TorchScript, a program and not weights; save torch.save(model.state_dict()"),
        (exported, "is a program of torch.export and not weights"),
        (zipped, "is a zip archive; unpack it and give the file with the weights"),
        (lambda path: np.savez(open(path, "wb"), a=np.ones(2)), "holds arrays of numpy, not PyTorch"),  # noqa: SIM115
        (lambda path: np.save(open(path, "wb"), np.ones(2)), "is one array of numpy, not PyTorch"),  # noqa: SIM115
        (tarred, "is compressed with gzip; unpack it first"),
        (beginning(b"version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
        (beginning(b"<!DOCTYPE html>"), "is a web page or XML, not weights; download the file itself"),
        (beginning(b"\x89HDF\r\n\x1a\n"), "is HDF5 (Keras or MATLAB), not PyTorch"),
        (beginning(b"GGUF"), "is GGUF, not PyTorch"),
        (beginning(b"\x08\x07\x12\x07pytorch"), "is ONNX, a program and not weights; save torch.save(model."),
        (beginning(b"\x1c\0\0\0TFL3"), "is TensorFlow Lite, not PyTorch; save"),
        (
            beginning(b'{"metadata": {}, "weight_map": {}}'),
            "is JSON, such as an index of weights in several files",
        ),
        (beginning(b" [\n"), "is JSON"),
        (beginning(b"\xfd7zXZ\0"), "is compressed with xz; unpack it first"),
        (beginning(b"\x28\xb5\x2f\xfd"), "is compressed with zstd; unpack it first"),
        (beginning(b"nothing at all"), "cannot read weights file"),
        (beginning(b""), "cannot read weights file"),
        (lambda path: path.mkdir(), "is a folder; give the file with the weights in it"),
        (lambda path: None, "no weights file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, write: Callable[[Path], object], expected: str) -> None:
    write(tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "w.pth")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
