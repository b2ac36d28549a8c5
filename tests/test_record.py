"""model.json covers itself, and no name in it leads out of its folder."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from segrow import cli
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.memory import to_json
from segrow.model.lineage import rename_class, versions
from segrow.model.record import check_files, hashes_of, model_files, read_record, sha256
from segrow.model.segmenter import build_segmenter
from segrow.model.store import load_model, save_model

META = {
    "step": 0,
    "class_names": ["background", "cat", "dog"],
    "scenario": {"data": "voc", "task": "2-1", "setting": "overlap", "classes": ["background", "cat", "dog"]},
    "method": {"name": "finetune", "fields": {}},
    "protocol": {"crop_val": False, "crop": 64},
    "training": {},
    "parent": None,
}
OUT_OF_THE_FOLDER = ("../x", "/tmp/x", "a/b", "..", ".", "", "C:x", "a\\b", "..\\x")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = build_segmenter(
        ModelConfig(name="deeplabv3_mobilenetv2_100", weights="none", width=4), 2, False, lambda line: None
    )
    state = {"seen": network.mean.flatten()}
    files = {"memory.json": to_json(()), "method.safetensors": safetensors.torch.save(state)}
    save_model(network, tmp_path / "models" / "animals", META, files)
    return tmp_path / "models" / "animals"


def change(folder: Path, edit: Callable[[dict[str, Any]], object], seal: bool) -> None:
    """Edit a model.json; `seal` computes its hashes again, as an attacker would."""
    record = json.loads((folder / "model.json").read_text())
    edit(record)
    if seal:
        record["hashes"] = hashes_of(record, record["hashes"]["files"])
    (folder / "model.json").write_text(json.dumps(record))


def readers(folder: Path) -> list[Callable[[], object]]:
    return [
        lambda: load_model(folder),
        lambda: read_record(folder),
        lambda: model_files(folder),
        lambda: versions(folder),
        lambda: rename_class(folder, "cat", "tiger"),
    ]


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUT_OF_THE_FOLDER)
def test_a_name_that_leads_elsewhere_is_refused_by_every_reader(model: Path, name: str) -> None:
    change(model, lambda r: r["hashes"]["files"].update({name: sha256(b"evil")}), seal=True)
    for read in readers(model):
        with pytest.raises(UserError, match="expected names of files beside it"):
            read()


@pytest.mark.parametrize("name", OUT_OF_THE_FOLDER)
def test_rollback_writes_nowhere_else(model: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rename_class(model, "cat", "tiger")
    (version,) = (v.folder for v in versions(model) if not v.current)
    (model.parent / "x").write_bytes(b"mine")
    source = model / "history" / "x"  # where ../x of the version leads to
    source.write_bytes(b"evil")
    change(version, lambda r: r["hashes"]["files"].update({name: sha256(b"evil")}), seal=True)
    before = sorted(model.parent.rglob("*"))
    assert cli.main(["rollback", str(model), "--to-step", "0"]) == 2
    assert "expected names of files beside it; do not use this model" in capsys.readouterr().err
    assert (model.parent / "x").read_bytes() == b"mine"
    assert sorted(model.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["model.safetensors", "memory.json", "method.safetensors"])
def test_a_link_is_not_taken_for_a_file_of_the_model(model: Path, name: str, tmp_path: Path) -> None:
    shutil.move(model / name, tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    for read in (readers(model)[0], readers(model)[2]):
        with pytest.raises(UserError, match="is a link, expected the file itself"):
            read()


def test_a_version_that_is_a_link_is_refused(model: Path, tmp_path: Path) -> None:
    rename_class(model, "cat", "tiger")
    (version,) = (v.folder for v in versions(model) if not v.current)
    shutil.move(version, tmp_path / "elsewhere")
    version.symlink_to(tmp_path / "elsewhere")
    for read in (lambda: versions(model), lambda: rename_class(model, "tiger", "cat")):
        with pytest.raises(UserError, match="is a link, expected the folder of a version"):
            read()


# --- hashes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["config", "weights", "model", "record"])
def test_every_hash_is_covered(model: Path, key: str) -> None:
    change(model, lambda r: r["hashes"].update({key: sha256(b"other")}), seal=False)
    with pytest.raises(UserError, match="was changed after it was written"):
        read_record(model)


@pytest.mark.parametrize("name", ["memory.json", "method.safetensors"])
@pytest.mark.parametrize("gone", [True, False])
def test_the_list_of_files_is_covered(model: Path, name: str, gone: bool) -> None:
    """Else a file could go, or be exchanged, with its entry."""

    def edit(record: dict[str, Any]) -> None:
        files = record["hashes"]["files"]
        files.pop(name) if gone else files.update({name: sha256(b"other")})

    change(model, edit, seal=False)
    with pytest.raises(UserError, match="was changed after it was written"):
        read_record(model)


def test_every_byte_of_the_record_is_covered(model: Path) -> None:
    """A flipped bit is noticed, or is none of the content (such as a space)."""
    path = model / "model.json"
    content, value = path.read_bytes(), json.loads(path.read_bytes())
    print(f"{len(range(0, len(content), 7))} bits tried")
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(UserError):
            assert read_record(model) == value


def test_a_model_of_an_earlier_segrow_has_no_hash_of_its_record(model: Path) -> None:
    """It is read; what can be computed again of its hashes is compared."""
    change(model, lambda r: r["hashes"].pop("record"), seal=False)
    record = load_model(model)[1]
    check_files(record, model)
    rename_class(model, "cat", "tiger")
    assert "record" in read_record(model)["hashes"]
    change(model, lambda r: (r["hashes"].pop("record"), r["hashes"].update({"model": "0"})), seal=False)
    with pytest.raises(UserError, match="was changed after it was written"):
        read_record(model)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda r: r.update({"class_names": "cat"}), "class_names holds"),
        (lambda r: r["model"]["config"].update({"width": "x"}), "model.config.width holds"),
        (lambda r: r.update({"method": {"name": 3, "fields": {}}}), "method.name holds 3"),
        (lambda r: r["model"].pop("layout"), "lacks layout"),
        (lambda r: r.update({"learnt_as": {"a": 1}}), "learnt_as.a holds 1"),
    ],
)
def test_a_record_of_another_structure_is_one_line(
    model: Path, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    change(model, edit, seal=True)
    with pytest.raises(UserError) as caught:
        load_model(model)
    assert expected in str(caught.value)
    assert str(caught.value).endswith("; copy it again")
