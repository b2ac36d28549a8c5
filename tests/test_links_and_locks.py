"""Links in a model, files of a user's that look like a lock, a model that waits beside its place."""

import os
import shutil
from pathlib import Path

import pytest
from runs import build_tree, only_line, snapshot, start
from test_record import model

from segrow import cli
from segrow.atomic import locked, tidy
from segrow.errors import UserError
from segrow.model.lineage import rename_class, versions
from segrow.model.record import read_file_beside, read_record
from segrow.model.store import load_model
from segrow.stored import load_memory

__all__ = ["model"]  # a fixture


def _linked(path: Path, elsewhere: Path) -> None:
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def test_a_record_that_is_a_link_is_refused(model: Path, tmp_path: Path) -> None:
    rename_class(model, "cat", "tiger")
    _linked(model / "model.json", tmp_path / "mine")
    before = snapshot(tmp_path)
    for read in (load_model, read_record, versions, lambda m: rename_class(m, "tiger", "lion")):
        with pytest.raises(
            UserError, match=r"model\.json is a link, expected the file itself; copy the file"
        ):
            read(model)
    assert snapshot(tmp_path) == before


def test_a_version_whose_record_is_a_link_does_not_come_back(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_class(model, "cat", "tiger")
    (version,) = (v.folder for v in versions(model) if not v.current)
    _linked(version / "model.json", tmp_path / "mine")
    before = snapshot(tmp_path)
    assert cli.main(["rollback", str(model), "--to-version", version.name.partition("-")[2]]) == 2
    assert "model.json is a link, expected the file itself" in only_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == before


def test_a_history_that_is_a_link_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_class(model, "cat", "tiger")
    _linked(model / "history", tmp_path / "mine")
    before = snapshot(tmp_path)
    for words in (["lineage", str(model)], ["rename-class", str(model), "dog", "wolf"]):
        assert cli.main(words) == 2
        line = only_line(capsys.readouterr().err)
        assert "history is a link, expected the folder itself; move the folder to its place" in line
    assert snapshot(tmp_path) == before


def test_a_file_beside_a_model_that_was_changed(model: Path) -> None:
    """Read alone, without a look at the weights."""
    path = model / "memory.json"
    path.write_bytes(path.read_bytes() + b" ")
    for read in (load_memory, lambda folder: read_file_beside(folder, "memory.json")):
        with pytest.raises(UserError, match=r"memory\.json was changed or cut off after it was written"):
            read(model)


@pytest.mark.parametrize(
    "content",
    ['{"a": "mine"}', '{"what": "mine"}', "my notes", "[]", "{" * 5000, '{"what": 1' + " " * 5000 + "}"],
)
def test_a_file_of_the_users_is_not_taken_for_a_lock(tmp_path: Path, content: str) -> None:
    for name in (".animals.lock", ".other.lock"):
        (tmp_path / name).write_text(content)
    with (
        pytest.raises(UserError, match="is not a lock of segrow, but is where one has to be; move it"),
        locked(tmp_path / "animals", "segrow test"),
    ):
        pass
    tidy(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        ".animals.lock": content,
        ".other.lock": content,
    }


def test_a_base_that_waits_beside_its_place(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As every other reader, `train --base` finds it: what is said is what does not fit."""
    os.rename(model, model.with_name(f".{model.name}.replaced"))
    root, out = model.parent / "VOC2012", model.parent / "out"
    build_tree(root)
    assert start(root, out, "--base", str(model)) == 2
    assert f"the base step of {model} cannot be shared" in capsys.readouterr().err
