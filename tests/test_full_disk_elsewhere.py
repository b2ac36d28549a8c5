"""A full disk where caches, a report, pictures, maps and lists are written, and where a lock has to stand."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from full_disk import Full
from runs import build_tree, last_line, only_line, snapshot, start
from safetensors import SafetensorError
from test_cache import drawn, images, masks
from test_crash_commands import quick_figures
from test_one_writer import META, network
from trees import folder_tree

from segrow import cli
from segrow.atomic import locked
from segrow.commands import data as data_commands
from segrow.commands import import_ssul
from segrow.config import ModelConfig
from segrow.data import coco
from segrow.errors import UserError
from segrow.model.segmenter import build_segmenter
from segrow.model.store import save_model

__all__ = ["quick_figures"]  # a fixture
Capture = pytest.CaptureFixture[str]
CATS = ("background", "cat", "dog")
MAKE_ROOM = (
    "No space left on device; what was written before is whole; make room; then give the command again"
)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", [masks, images, drawn])
def test_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, kind: Callable[[Path], Any]
) -> None:
    """One line; all goes on, and is kept once there is room."""
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    read, what = kind(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        if kind is drawn:  # its masks; they are drawn into the system's folder for temporary files, then
            patch.setattr(coco, "appear", full)
        else:
            Full(patch, 0)
        found = read()
    line = only_line(capsys.readouterr().err)
    assert f"note: {what} cannot be kept in {tmp_path}/cache/" in line
    assert "(No space left on device)" in line
    assert "make room, or set SEGROW_CACHE to a folder with room" in line
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert read() == found
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, a model, photos of which one is damaged."""
    work = tmp_path_factory.mktemp("work")
    fast = ("--steps", "1", "--method", "finetune", "--train.epochs", "1", "--model.width", "4")
    assert start(build_tree(work / "VOC2012").root, work / "run", *fast) == 0
    save_model(network(), work / "model", META)
    photos = folder_tree(work / "photos", CATS, train=[{1}, {2}, {1}], val=0).root
    (image, *_) = sorted((photos / "images/train").iterdir())
    image.write_bytes(b"damaged")
    return work


class _Maker:
    """In the place of a network."""

    def __init__(self, model: str) -> None:
        self.model = model

    def map(self, image: Path) -> Any:
        return np.ones((64, 64), dtype=np.bool_)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in snapshot(folder).items()}


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("command", "code", "place"),
    [
        ("report RUN --images 1 --out OUT/page.html", 0, "OUT RUN/pictures"),
        ("predict MODEL PHOTOS/images/train --out OUT --unknown", 1, "OUT"),
        ("data check PHOTOS --fix-list OUT/list.txt", 1, "OUT"),
        ("eval MODEL --data.name folder --data.root FRUIT --workers 0 --out OUT/m.json", 0, "OUT"),
        ("data saliency FRUIT --model any --again", 0, "FRUIT/saliency"),
    ],
    ids=lambda value: " ".join(value.split()[:2]) if isinstance(value, str) else str(value),
)
def test_a_command(
    work: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    code: int,
    place: str,
) -> None:
    """At the first byte, in the middle, at the last byte; on an empty disk, and over earlier results."""
    monkeypatch.setattr(data_commands, "SaliencyMaker", _Maker)
    (tmp_path / "out").mkdir()
    places = {
        "OUT": tmp_path / "out",
        "FRUIT": folder_tree(tmp_path / "fruit", CATS, train=[{1}], val=2).root,
    }
    places |= {"RUN": work / "run", "MODEL": work / "model", "PHOTOS": work / "photos"}

    def filled(text: str) -> list[str]:
        return [re.sub("[A-Z]{3,}", lambda name: str(places[name[0]]), word) for word in text.split()]

    def found() -> dict[str, bytes]:
        return {f"{k}/{n}": c for k, at in enumerate(filled(place)) for n, c in contents(Path(at)).items()}

    def clear() -> None:
        for at in map(Path, filled(place)[1:]):  # pictures that are there already are not drawn again
            shutil.rmtree(at)

    def refused(room: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, room)
            capsys.readouterr()
            assert cli.main(filled(command)) == 2
        line = last_line(capsys.readouterr().err)
        assert line.endswith(f": {MAKE_ROOM}")
        named = Path(line.removeprefix("segrow: ").removesuffix(f": {MAKE_ROOM}"))
        assert any(named.is_relative_to(at) for at in filled(place)), line

    refused(0)
    assert cli.main(filled(command)) == code  # and the cache is kept
    clear()
    with pytest.MonkeyPatch.context() as patch:
        full = Full(patch, 1 << 40)
        assert cli.main(filled(command)) == code
        needed = (1 << 40) - full.room
    whole = found()
    assert whole
    for room in (needed // 2, needed - 1):
        clear()
        refused(room)
        assert found().items() <= whole.items()
        assert not [name for name in found() if ".segrow-" in name]
        assert cli.main(filled(command)) == code
        assert found() == whole


def test_import_ssul(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=4)
    read = build_segmenter(config, 20, False, lambda line: None)
    monkeypatch.setattr(import_ssul, "read_reference_checkpoint", lambda *_: read)
    words = ["import-ssul", "any.pth", "--out", str(tmp_path / "new"), "--task", "offline", "--step", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert cli.main(words) == 2
    line = only_line(capsys.readouterr().err)
    assert line == f"segrow: {tmp_path}/new: {MAKE_ROOM}"
    assert not list(tmp_path.iterdir())
    assert cli.main(words) == 0


@pytest.mark.parametrize("where", ["model.json", "model.safetensors"])
def test_rename_class(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, where: str
) -> None:
    model = shutil.copytree(work / "model", tmp_path / "model")
    before = contents(tmp_path)

    def no_room(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    words = ["rename-class", str(model), "cat", "tiger"]
    with pytest.MonkeyPatch.context() as patch:
        if where == "model.json":
            patch.setattr(Path, "write_bytes", full)
        else:
            patch.setattr(safetensors.torch, "save_file", no_room)
        assert cli.main(words) == 2
    assert only_line(capsys.readouterr().err) == f"segrow: {model}: {MAKE_ROOM}"
    assert contents(tmp_path) == before
    assert cli.main(words) == 0


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (
            errno.EACCES,
            UserError,
            r"run cannot be written \(.*\); choose another place, or allow writing there",
        ),
        (
            errno.EROFS,
            UserError,
            r"run cannot be written \(.*\); choose another place, or allow writing there",
        ),
        (errno.ENOSPC, OSError, "make room; then give the command again"),
        (errno.EMFILE, OSError, r"allow more \(ulimit -n 4096\)"),
    ],
)
def test_why_there_can_be_no_lock(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    number: int,
    kind: type[Exception],
    advice: str,
) -> None:
    """Another place helps where it may not be written, but not where the disk is full."""
    inner: Callable[..., int] = os.open

    def refuse(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & os.O_RDWR:
            raise OSError(number, os.strerror(number), str(path))
        return inner(path, flags, *words, **more)

    def command() -> int:
        with locked(tmp_path / "run", "segrow test"):
            return 0

    monkeypatch.setattr("segrow.atomic.os.open", refuse)
    if number == errno.EACCES:  # then the lock of another user is looked for
        monkeypatch.setattr("segrow.atomic._open_lock", lambda lock: refuse(lock, os.O_RDWR))
    assert cli.guarded(command) == 2
    line = only_line(capsys.readouterr().err)
    assert re.search(advice, line)
    assert f"segrow: {tmp_path}/run" in line
    assert ("choose another place" in line) is (kind is UserError)
