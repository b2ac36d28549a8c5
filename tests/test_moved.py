"""Runs that were moved together with the run that their base step is of."""

from pathlib import Path

import pytest
from runs import build_tree, only_line, snapshot, start

from segrow.engine.folder import read_config
from segrow.report.gallery import open_source
from segrow.report.runs import read_runs

SHORT = ("--train.epochs", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base run, and one that shares its base step and stopped there."""
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    root = build_tree(tmp_path / "data").root
    assert start(root, tmp_path / "old/x", *SHORT, "--method", "finetune", "--steps", "1") == 0
    assert (
        start(
            root,
            tmp_path / "old/y",
            *SHORT,
            "--method",
            "finetune",
            "--steps",
            "1",
            "--base",
            str(tmp_path / "old/x"),
        )
        == 0
    )
    return tmp_path


def go_on(place: Path, base: str, data: str = "data") -> int:
    words = (*SHORT, "--method", "finetune", "--base", str(place / base))
    return start(place / data, place / "new/y", *words)


def test_they_go_on_where_they_are_now(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "old").rename(place / "new")
    (place / "data").rename(place / "elsewhere")
    capsys.readouterr()
    assert go_on(place, "new/x", "elsewhere") == 0
    line = f"{place}/new/x holds the same base step, byte for byte, as {place}/old/x did: the run goes on"
    assert line in capsys.readouterr().err
    assert (place / "new/y/steps/02/model/model.json").is_file()


def test_another_base_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        start(place / "data", place / "z", *SHORT, "--method", "finetune", "--steps", "1", "--seed", "2") == 0
    )
    (place / "old").rename(place / "new")
    capsys.readouterr()
    assert go_on(place, "z") == 2
    assert f"holds a run of another configuration (base: {place}/old/x there, {place}/z here)" in only_line(
        capsys.readouterr().err
    )
    assert go_on(place, "gone") == 2
    assert "base: " in only_line(capsys.readouterr().err)


def test_a_report_opens_the_data_where_the_run_went_on(place: Path) -> None:
    run = place / "old/x"
    before = read_config(run)
    (place / "data").rename(place / "elsewhere")
    assert start(place / "elsewhere", run, *SHORT, "--method", "finetune", "--steps", "1") == 0
    after = read_config(run)  # which checks the checksum
    assert after == {**before, "data": {**before["data"], "root": str(place / "elsewhere")}}
    assert open_source(read_runs([run], "foreground")[0], None, 4).data.root == place / "elsewhere"
    written = snapshot(run)["config.yaml"]
    assert start(place / "elsewhere", run, *SHORT, "--method", "finetune", "--steps", "1") == 0
    assert snapshot(run)["config.yaml"] == written
