"""The versions of a model: back to any of them byte for byte; classes renamed, removed; kills; refusals."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from runs import only_line, snapshot
from torch import Tensor

from segrow import cli
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.memory import Exemplar, from_json, to_json
from segrow.model.lineage import remove_class, rename_class, rollback, succeed, versions
from segrow.model.record import check_files, read_record
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

NAMES = ["background", "cat", "dog", "bird", "cow", "sheep"]
STEPS = [2, 2, 1]  # classes of the steps
MEMORY = (Exemplar("a", 1, (1, 3)), Exemplar("b", 1, (3,)), Exemplar("c", 0, (1, 2, 4)))


def network(steps: int, form: str = "conv") -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3_test_resnet",
        weights="none",
        width=8,
        rates=(1, 2),
        head=form,  # type: ignore[arg-type]
    )
    model = build_segmenter(config, STEPS[0], form == "conv", lambda line: None)
    for step in range(1, steps):
        model.grow(STEPS[step], step)
    return model.eval()


def meta(steps: int) -> dict[str, Any]:
    return {
        "step": steps - 1,
        "class_names": NAMES[: 1 + sum(STEPS[:steps])],
        "scenario": {"data": "voc", "task": "2-2", "setting": "overlap", "classes": NAMES},
        "method": {"name": "ssul", "fields": {}},
        "protocol": {"crop_val": True, "crop": 33},
        "training": {},
        "parent": None,
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of three steps, two of them in its history."""
    folder = tmp_path / "model"
    save_model(network(1), folder, meta(1), {"memory.json": to_json(())})
    succeed(network(2), folder, meta(2), {"memory.json": to_json(MEMORY)}, folder, read_record(folder))
    state = {"thresholds": torch.arange(5.0)}
    extra = {"memory.json": to_json(MEMORY), "method.safetensors": safetensors.torch.save(state)}
    succeed(network(3), folder, meta(3), extra, folder, read_record(folder))
    return folder


def own_files(folder: Path) -> dict[str, bytes]:
    """Of the model as it is, without its history."""
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file()}


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, 65, 49), dtype=torch.uint8, generator=generator)


# --- versions -----------------------------------------------------------------------------------------------


def test_every_version_is_listed(model: Path) -> None:
    found = versions(model)
    assert [v.step for v in found] == [0, 1, 2]
    assert [len(v.classes) for v in found] == [3, 5, 6]
    assert [v.parent for v in found] == [None, found[0].hash, found[1].hash]
    assert [v.current for v in found] == [False, False, True]
    assert all(v.ancestor for v in found)
    assert {f.name for f in model.iterdir() if f.is_dir()} == {"history"}


@pytest.mark.parametrize("step", [0, 1])
def test_rollback_brings_the_same_bytes_back(tmp_path: Path, model: Path, step: int) -> None:
    save_model(network(1), tmp_path / "other", meta(1), {"memory.json": to_json(())})
    if step:
        other = tmp_path / "other"
        succeed(network(2), other, meta(2), {"memory.json": to_json(MEMORY)}, other, read_record(other))
    latest = own_files(model)
    rollback(model, step)
    assert own_files(model) == own_files(tmp_path / "other")
    assert len(load_model(model)[1]["class_names"]) == 1 + sum(STEPS[: step + 1])
    assert [v.current for v in versions(model)].count(True) == 1
    # and forward again: what was left aside is still there
    assert any(not v.ancestor for v in versions(model))
    rollback(model, 2)
    assert own_files(model) == latest
    assert len(versions(model)) == 3


def test_a_new_step_after_a_rollback(model: Path) -> None:
    rollback(model, 0)
    succeed(network(2), model, {**meta(2), "change": "another"}, {}, model, read_record(model))
    found = versions(model)
    assert [(v.step, v.ancestor) for v in found] == [(0, True), (1, False), (2, False), (1, True)]
    assert rollback(model, 0).step == 0


def test_of_two_versions_of_a_step_the_newest_ancestor_is_taken(model: Path) -> None:
    rename_class(model, "cow", "ox")
    rename_class(model, "ox", "cattle")
    assert [v.step for v in versions(model)] == [0, 1, 2, 2, 2]
    assert rollback(model, 2).classes[4] == "ox"


def test_history_is_linked_not_copied(model: Path) -> None:
    first = sorted((model / "history").iterdir())[0] / "model.safetensors"
    before = first.stat().st_ino
    rename_class(model, "cow", "ox")
    assert first.stat().st_ino == before


def test_history_without_links(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError("no links here")

    before = {v.hash for v in versions(model)}
    monkeypatch.setattr(os, "link", refuse)
    rename_class(model, "cow", "ox")
    assert {v.hash for v in versions(model)} > before


def test_foreign_files_stay(model: Path) -> None:
    (model / "notes.txt").write_text("mine")
    rename_class(model, "cow", "ox")
    rollback(model, 1)
    assert (model / "notes.txt").read_text() == "mine"


# --- classes ------------------------------------------------------------------------------------------------


def test_rename_changes_the_name_alone(model: Path) -> None:
    before = safetensors.torch.load_file(model / "model.safetensors")
    rename_class(model, "bird", "parrot")
    loaded, record = load_model(model)
    assert record["class_names"] == ["background", "cat", "dog", "parrot", "cow", "sheep"]
    assert record["scenario"]["classes"][: len(record["class_names"])] == record["class_names"]
    assert record["change"] == "rename bird to parrot"
    after = loaded.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert from_json((model / "memory.json").read_bytes()) == MEMORY


def test_a_name_may_hold_a_comma(model: Path) -> None:
    rename_class(model, "bird", "door, double door")
    assert load_model(model)[1]["class_names"][3] == "door, double door"
    rename_class(model, r"door\, double door", "cafe\u0301")  # as lists of names are written
    assert load_model(model)[1]["class_names"][3] == "caf\u00e9"
    with pytest.raises(UserError, match='has no class "gate"'):
        rename_class(model, "gate", "x")


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("form", ["conv", "linear"])
def test_remove_leaves_the_others_as_they_are(tmp_path: Path, name: str, form: str) -> None:
    """Their weights to the bit; their logits up to rounding: some processors choose how to convolve by the
    number of channels."""
    folder = tmp_path / "model"
    save_model(network(3, form), folder, meta(3))
    old, _ = load_model(folder)
    remove_class(folder, name)
    new, record = load_model(folder)
    gone = NAMES.index(name)
    kept = [k for k in range(len(NAMES)) if k != gone]
    assert record["class_names"] == [NAMES[k] for k in kept]
    assert new.n_classes == len(kept)
    assert record["class_steps"][0] == 0
    assert len(record["class_steps"]) == len(kept)
    rows = [torch.cat([head.out.weight for head in m.heads]) for m in (old, new)]
    assert torch.equal(rows[0][kept], rows[1])
    with torch.inference_mode():
        one, two = (m.double()(picture().double()) for m in (old, new))
    torch.testing.assert_close(one.logits[:, kept], two.logits, rtol=0, atol=1e-12)
    if one.unknown is not None:
        assert two.unknown is not None
        torch.testing.assert_close(one.unknown, two.unknown, rtol=0, atol=1e-12)
    new.grow(1, step=3)  # can be taught further


def test_remove_moves_exemplars_and_state_along(model: Path) -> None:
    remove_class(model, "bird")  # index 3
    assert from_json((model / "memory.json").read_bytes()) == (
        Exemplar("a", 1, (1,)),
        Exemplar("c", 0, (1, 2, 3)),
    )
    state = safetensors.torch.load_file(model / "method.safetensors")
    assert state["thresholds"].tolist() == [0, 1, 2, 4]
    rollback(model, 2)
    assert from_json((model / "memory.json").read_bytes()) == MEMORY
    assert load_model(model)[1]["class_names"] == NAMES


def test_a_name_that_is_gone_is_free_again(model: Path) -> None:
    rename_class(model, "bird", "parrot")
    rename_class(model, "cow", "cattle")
    assert load_model(model)[1]["learnt_as"] == {"parrot": "bird", "cattle": "cow"}
    remove_class(model, "parrot")
    assert load_model(model)[1]["learnt_as"] == {"cattle": "cow"}
    rename_class(model, "cattle", "ox")
    assert load_model(model)[1]["learnt_as"] == {"ox": "cow"}


def test_the_version_that_stands_is_named(model: Path) -> None:
    (current,) = (v for v in versions(model) if v.current)
    before = snapshot(model)
    with pytest.raises(UserError, match="is that version already; nothing was done"):
        rollback(model, version=current.hash[:8])
    assert snapshot(model) == before


def test_state_that_cannot_lose_a_class(model: Path) -> None:
    extra = {"method.safetensors": safetensors.torch.save({"prototypes": torch.ones(6, 2)})}
    succeed(network(3), model, meta(3), extra, model, read_record(model))
    before = snapshot(model)
    with pytest.raises(UserError, match="keeps prototypes with the model, which cannot lose a class"):
        remove_class(model, "cow")
    assert snapshot(model) == before


def test_any_version_by_its_hash(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename_class(model, "cow", "ox")
    remove_class(model, "ox")
    wanted = {v.change: v.hash for v in versions(model)}
    for change in ("rename cow to ox", "remove ox"):
        assert cli.main(["rollback", str(model), "--to-version", wanted[change][:12]]) == 0
        assert versions(model)[-1].change == change
    assert "which was left aside" in capsys.readouterr().out.replace("\n", " ")


# --- refusals change nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rollback", "MODEL", "--to-step", "7"], "has no earlier version of step 7; its history has 0, 1"),
        (
            ["rollback", "MODEL", "--to-step", "2"],
            "has no earlier version of step 2",
        ),  # that is the present one
        (["rollback", "MODEL", "--to-version", ""], 'versions whose hash begins with "", expected one'),
        (["rollback", "MODEL", "--to-version", "xyz"], 'has 0 versions whose hash begins with "xyz"'),
        (["rollback", "MODEL"], "expected --to-step N or --to-version HASH, one of them"),
        (["rename-class", "MODEL", "cwo", "ox"], 'has no class "cwo"; it knows cat, dog'),
        (["rename-class", "MODEL", "cwo", "ox"], 'Did you mean "cow"?'),
        (["rename-class", "MODEL", "background", "sky"], '"background" is what no class covers'),
        (["rename-class", "MODEL", "cow", "sheep"], 'has a class "sheep" already'),
        (["rename-class", "MODEL", "cow", "cow"], 'has a class "cow" already'),
        (["rename-class", "MODEL", "cow", " "], "cannot be the name of a class"),
        (["rename-class", "MODEL", "cow", "a\x1b[31mb"], '"a\\x1b[31mb" cannot be the name of a class'),
        (["remove-class", "MODEL", "background"], '"background" is what no class covers'),
        (["remove-class", "MODEL", "okapi"], 'has no class "okapi"'),
        (["lineage", "nowhere"], "no model in nowhere: expected a folder with model.json"),
        (["rollback", "nowhere", "--to-step", "1"], "no model in nowhere"),
        (["remove-class", "nowhere", "cow"], "no model in nowhere"),
    ],
)
def test_a_refused_change_changes_nothing(
    model: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(model.parent)
    assert cli.main([str(model) if word == "MODEL" else word for word in words]) == 2
    shown = capsys.readouterr()
    assert expected in only_line(shown.err)
    assert shown.out == ""
    assert snapshot(model.parent) == before


@pytest.mark.parametrize(
    "words",
    [
        ["remove-class", "MODEL", "cow"],
        ["rename-class", "MODEL", "cow", "ox"],
        ["rollback", "MODEL", "--to-step", "1"],
    ],
)
@pytest.mark.parametrize("what", ["model.safetensors", "history", "newer"])
def test_a_changed_file_stops_every_change(
    model: Path, words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "newer":
        record = model / "model.json"
        record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    else:
        folder = sorted((model / "history").iterdir())[1] if what == "history" else model
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(content))
    before = snapshot(model.parent)
    assert cli.main([str(model) if word == "MODEL" else word for word in words]) == 2
    line = only_line(capsys.readouterr().err)
    assert ("has format 2" if what == "newer" else "was changed or cut off") in line
    assert snapshot(model.parent) == before


def test_the_last_class_stays(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(network(1), folder, meta(1))
    remove_class(folder, "cat")
    with pytest.raises(UserError, match='"dog" is the only class'):
        remove_class(folder, "dog")


def test_a_run_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(network(1), tmp_path / "run/steps/00/model", meta(1))
    assert cli.main(["remove-class", str(tmp_path / "run"), "cat"]) == 2
    assert "is a run folder, whose steps stay as they were trained" in only_line(capsys.readouterr().err)


# --- kills --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def act(model: Path, change: str) -> None:
    if change == "rollback":
        rollback(model, 1)
    elif change == "rename":
        rename_class(model, "cow", "ox")
    else:
        remove_class(model, "cow")


@pytest.mark.parametrize("change", ["rollback", "rename", "remove"])
def test_a_kill_leaves_the_old_model_or_the_new_one(
    model: Path, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a link, copy, fsync, rename or removal: a whole version is there; the next change tidies."""
    calls, stop_at = 0, 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Killed
            return real(*args, **named)

        return call

    def attempt(folder: Path, at: int) -> bool:
        nonlocal calls, stop_at
        calls, stop_at = 0, at
        with monkeypatch.context() as patch:
            for name in ("link", "fsync", "rename"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(shutil, "copyfile", counted(shutil.copyfile))
            patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
            try:
                act(folder, change)
            except Killed:
                return False
        return True

    shutil.copytree(model, tmp_path / "counted")
    assert attempt(tmp_path / "counted", 0)
    total, new = calls, versions(tmp_path / "counted")[-1].hash
    shutil.rmtree(tmp_path / "counted")
    versions_before = {v.hash for v in versions(model)}
    seen = set()
    for at in [1, 4, total // 2, *range(total - 6, total + 1)]:
        folder = tmp_path / f"kill{at}" / "model"
        shutil.copytree(model, folder)
        assert not attempt(folder, at)
        found = load_model(folder)[1]["hashes"]["model"]
        seen.add(found)
        assert found in (versions(model)[-1].hash, new)
        rename_class(folder, "cat", "kitten")  # whatever is left over, the next change does not mind
        assert [f.name for f in folder.parent.iterdir()] == ["model"]
        assert versions_before <= {v.hash for v in versions(folder)}
        for version in versions(folder):
            check_files(read_record(version.folder), version.folder)
    assert seen == {versions(model)[-1].hash, new}


# --- what is printed ----------------------------------------------------------------------------------------


def test_lineage_prints_a_table_and_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rename-class", str(model), "cow", "ox"]) == 0
    assert "cow is called ox now" in capsys.readouterr().out
    assert cli.main(["rollback", str(model), "--to-step", "1"]) == 0
    assert "step 1 again, 4 classes" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["lineage", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["versions"]
    assert [(v["step"], v["change"], v["current"]) for v in found] == [
        (0, "step", False),
        (2, "step", False),
        (2, "rename cow to ox", False),
        (1, "step", True),
    ]
    assert cli.main(["lineage", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "now" in shown
    assert "left" in shown
    assert found[0]["hash"][:8] in shown
