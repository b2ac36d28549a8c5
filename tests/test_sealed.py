"""Records of a run tell whether they were changed after segrow wrote them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import build_tree, last_line, start

from segrow import cli
from segrow.errors import UserError
from segrow.sealed import read_sealed_json, read_sealed_yaml, write_sealed_json, write_sealed_yaml

VALUES = {"steps": [{"miou": 0.1 + 0.2, "matrix": [[1, 2], [3, 4]]}], "task": "15-1", "ü": None, "on": True}


def read(path: Path) -> Any:
    return (read_sealed_json if path.suffix == ".json" else read_sealed_yaml)(path, "record")


def written(folder: Path, name: str) -> Path:
    (write_sealed_json if name.endswith(".json") else write_sealed_yaml)(folder / name, VALUES)
    return folder / name


both = pytest.mark.parametrize("name", ["a.json", "a.yaml"])


@both
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path, name)) == VALUES


@both
def test_every_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    """Or it is none of the content: a space of JSON, or the mark that there is a sum."""
    path = written(tmp_path, name)
    content = path.read_bytes()
    missed = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        try:
            found = read(path)
        except UserError:
            continue
        missed += 1
        assert {key: found.get(key) for key in VALUES} == VALUES
    assert missed < len(content) / 3


@both
def test_a_change_of_the_users_own(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    path.write_text(path.read_text().replace("15-1", "10-1"))
    with pytest.raises(UserError, match=r"was changed after it was written; .* take the checksum out of it"):
        read(path)
    lines = [line for line in path.read_text().splitlines() if "checksum" not in line]
    path.write_text(re.sub(r",\s*}\s*$", "\n}", "\n".join(lines)))
    assert read(path) == {**VALUES, "task": "10-1"}


@both
def test_a_record_of_an_earlier_segrow_has_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(VALUES) if name.endswith(".json") else yaml.safe_dump(VALUES))
    assert read(path) == VALUES


def test_line_ends_of_another_system_change_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "a.yaml")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path) == VALUES


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("results.json", lambda text: re.sub(r'"known": \d', '"known": 2', text)),
        ("config.yaml", lambda text: text.replace("seed: 1", "seed: 2")),
    ],
)
def test_a_run(
    tmp_path: Path, file: str, edit: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 0
    path = tmp_path / "run" / file
    assert "checksum" in path.read_text().splitlines()[-2 if file == "results.json" else -1]
    text = edit(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    commands = {
        "results.json": [
            ["results", str(tmp_path / "run")],
            ["report", str(tmp_path / "run"), "--images", "0"],
        ],
        "config.yaml": [["report", str(tmp_path / "run"), "--images", "0"]],
    }
    capsys.readouterr()
    for command in commands[file]:
        assert cli.main(command) == 2
        assert f"{file} was changed after it was written" in last_line(capsys.readouterr().err)
    assert start(root, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 2
    assert f"{file} was changed after it was written" in last_line(capsys.readouterr().err)
