"""Files of tensors that lie: about their size, or that they are files."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from segrow.errors import UserError
from segrow.model.state_dicts import read_file
from segrow.tensor_files import check_tensors, parse_safetensors, read_safetensors


def line_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_file(path, "weights file")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put_safetensors(path: Path, header: object, length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(8))
    return path


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 50]}}, None),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "X70", "shape": [2], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, None),
        ([], None),
        ({}, 1 << 62),
        ({}, 0),
    ],
)
def test_a_header_of_safetensors_that_lies(tmp_path: Path, header: object, length: int | None) -> None:
    path = put_safetensors(tmp_path / "net.safetensors", header, length)
    assert f"cannot read weights file {path} (" in line_of(path)
    assert line_of(path).endswith("; copy it again")
    with pytest.raises(UserError, match=r"cannot read state \("):
        parse_safetensors(path.read_bytes(), "state")


def test_a_pipe_is_no_file_of_tensors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="is a pipe, expected a file"):
        read_safetensors(tmp_path / "net.safetensors", "weights")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 18)}, tmp_path / "honest.pth")
    assert read_file(tmp_path / "honest.pth", "weights file")["a"] is not None
    with (
        zipfile.ZipFile(tmp_path / "honest.pth") as honest,
        zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in honest.namelist():
            packed.writestr(name, honest.read(name))
    assert (tmp_path / "net.pth").stat().st_size < 20_000
    assert "is compressed, which it should not be" in line_of(tmp_path / "net.pth")


def test_a_tensor_that_would_fill_the_memory_when_copied(tmp_path: Path) -> None:
    torch.save({"a": [torch.zeros(1).expand(1 << 16, 1 << 16)]}, tmp_path / "net.pth")
    assert "has a tensor (65536, 65536) that repeats fewer numbers and would need 16383 MiB" in line_of(
        tmp_path / "net.pth"
    )
    torch.save({"a": torch.zeros(1).expand(1 << 10)}, tmp_path / "small.pth")
    assert read_file(tmp_path / "small.pth", "weights file")["a"].shape == (1024,)  # type: ignore[attr-defined]


def test_what_holds_itself_is_looked_through_once() -> None:
    content: dict[str, object] = {"a": torch.zeros(2)}
    content["b"] = [content, content]
    check_tensors(content, "checkpoint")
