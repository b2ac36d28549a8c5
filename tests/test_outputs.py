"""Standard output on a full disk is one line and exit code 2; without a reader a command goes on."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from runs import only_line
from test_one_writer import META, network
from test_report import results
from trees import folder_tree

from segrow import cli
from segrow.errors import UserError
from segrow.model.store import save_model

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
Capture = pytest.CaptureFixture[str]
COMMANDS = (
    "--help",
    "data check PHOTOS",
    "data check PHOTOS --json",
    "eval MODEL --data.name folder --data.root PHOTOS --workers 0",
    "lineage MODEL",
    "methods ssul",
    "predict MODEL PHOTOS/images/train --out OUT",
    "recipes --json",
    "recipes voc-15-1-mib",
    "rename-class MODEL cat tiger",
    "report --help",
    "results RUN",
    "results RUN --json",
    "results RUN --markdown --per_class",
    "scenario --data.name folder --data.root PHOTOS --task 1-1",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("outputs")
    save_model(network(), work / "model", META)
    folder_tree(work / "photos", ("background", "cat", "dog"), train=[{1}, {2}], val=2, size=(32, 32))
    (work / "run").mkdir()
    (work / "run/results.json").write_text(json.dumps(results(8)))
    return work


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(
    work: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    places = {"PHOTOS": work / "photos", "RUN": work / "run", "OUT": tmp_path / "out"}
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full, os.fdopen(write, "w") as unread:
        for name, stream in (("full", full), ("unread", unread)):
            places["MODEL"] = shutil.copytree(work / "model", tmp_path / name)
            words = [reduce(lambda w, p: w.replace(p, str(places[p])), places, w) for w in command.split()]
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stream)
                assert cli.main(words) == (2 if stream is full else 0)
            with suppress(OSError):  # what could not be written is tried again
                stream.close()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segrow: ")]
    [line] = said
    assert "standard output: No space left on device; what was written before is whole; make room" in line


@pytest.mark.parametrize(
    ("command", "code", "written"),
    [
        ("predict MODEL PHOTOS/images --out OUT", 1, ["train/train0000.png", "val/val0001.png"]),
        ("data check PHOTOS --fix-list OUT/bad", 1, ["bad"]),
        ("rename-class MODEL cat tiger", 0, ["../copy/history"]),
    ],
)
def test_results_do_not_depend_on_who_reads_along(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, written: list[str]
) -> None:
    photos = shutil.copytree(work / "photos", tmp_path / "photos")
    (photos / "images/val/val0000.png").write_bytes(b"none")
    (tmp_path / "out").mkdir()
    model = shutil.copytree(work / "model", tmp_path / "copy")
    places = {"PHOTOS": photos, "OUT": tmp_path / "out", "MODEL": model}
    words = [reduce(lambda w, p: w.replace(p, str(places[p])), places, w) for w in command.split()]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        monkeypatch.setattr(sys, "stderr", unread)
        assert cli.main(words) == code
        with suppress(OSError):
            unread.close()
    assert [name for name in written if not (tmp_path / "out" / name).exists()] == []


@pytest.mark.parametrize("refused", ["stdout", "both", "unread", "all unread"])
def test_the_process(refused: str) -> None:
    """Python itself writes once more at its end, with a traceback and exit code 120."""
    read, unread = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full:
        out: Any = unread if "unread" in refused else full
        err: Any = {"both": full, "all unread": unread}.get(refused, subprocess.PIPE)
        done = subprocess.run([sys.executable, "-m", "segrow"], stdout=out, stderr=err, text=True, timeout=60)
    os.close(unread)
    assert done.returncode == (0 if "unread" in refused else 2)
    assert "Traceback" not in (done.stderr or "")
    assert (done.stderr or "").count("\n") == (refused == "stdout")


def test_another_pipe_is_no_reader(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken() -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert cli.guarded(broken) == 2
    assert "Broken pipe" in only_line(capsys.readouterr().err)


def test_nobody_hears_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken() -> int:
        raise UserError("wrong")

    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert cli.guarded(mistaken) == 2
        with suppress(OSError):
            full.close()
