"""Too few open files: the line says so, and no file is called damaged for it."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import last_line, model, start, weights

from segrow import cli
from segrow.data.files import decode_image, read_image
from segrow.data.workers import Sharing
from segrow.documents import read_text
from segrow.engine.checkpoint import Checkpoint
from segrow.errors import UserError
from segrow.model.state_dicts import read_torch_file
from segrow.resources import machine_refuses

Capture = pytest.CaptureFixture[str]
MANY = "Too many open files; allow more (ulimit -n 4096), or use fewer workers"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    yield
    Sharing.works = True


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(root, out) == 0
    return out


def refuse(patch: pytest.MonkeyPatch, ending: str, number: int = errno.EMFILE) -> None:
    """No more file of such a name can be opened by this process."""
    inner: Callable[..., int] = os.open

    def opening(path: Any, *words: Any, **more: Any) -> int:
        if str(path).endswith(ending):
            raise OSError(number, os.strerror(number), str(path))
        return inner(path, *words, **more)

    patch.setattr(os, "open", opening)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_it_is_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Neither where it is opened first, nor where PIL opens it."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("a\n")
    refuse(monkeypatch, "a.png", number)
    refuse(monkeypatch, ".txt", number)
    with pytest.raises(OSError, match=r"a\.png") as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.errno == number
    with pytest.raises(OSError, match=r"list\.txt"):
        read_text(tmp_path / "list.txt", "list")

    def opening(*words: Any, **more: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", opening)
    with pytest.raises(OSError, match=r"b\.png"):
        decode_image(tmp_path / "b.png")


def test_a_file_to_blame_still_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(tmp_path / "a.png")
    assert not machine_refuses(OSError("image file is truncated"))
    assert not machine_refuses(OSError(errno.EIO, "Input/output error"))


def test_train(root: Path, whole: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, ".jpg")
        assert start(root, out) == 2
    line = last_line(capsys.readouterr().err)
    assert f".jpg: {MANY}; the same command then continues" in line
    assert start(root, out) == 0
    assert weights(out) == weights(whole)


def test_predict(whole: Path, root: Path, tmp_path: Path, capsys: Capture) -> None:
    """The next image would fare no better, so none is left out."""
    words = ["predict", str(model(whole, 0)), str(root / "JPEGImages"), "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, ".jpg")
        assert cli.main(words) == 2
    assert f"{MANY}; then give the command again" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("where", ["open", "torch"])
def test_a_good_checkpoint_is_not_given_up(
    root: Path, whole: Path, tmp_path: Path, capsys: Capture, where: str
) -> None:
    """The one before it would be taken, and the epoch between them lost."""
    out = tmp_path / "run"
    inner = Checkpoint.save

    def save(self: Checkpoint, *words: Any) -> None:
        inner(self, *words)
        if self.step == 1 and self.epoch == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        assert start(root, out) == 2
    before = {path.name: path.read_bytes() for path in out.glob("*.ckpt*")}
    assert len(before) == 2

    def no_memory(*words: Any, **more: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes.")

    with pytest.MonkeyPatch.context() as patch:
        if where == "open":
            refuse(patch, "last.ckpt")
        else:
            patch.setattr(torch, "load", no_memory)
        assert start(root, out) == 2
    reason = "Too many open files" if where == "open" else "out of memory"
    assert reason in last_line(capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in out.glob("*.ckpt*")} == before
    assert start(root, out) == 0
    assert weights(out) == weights(whole)


def test_weights_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "net.pth")

    def no_memory(*words: Any, **more: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes.")

    monkeypatch.setattr(torch, "load", no_memory)
    with pytest.raises(RuntimeError, match="allocate"):
        read_torch_file(tmp_path / "net.pth", "weights file")
