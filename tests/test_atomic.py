"""Files and folders appear whole or not at all; one writer per folder."""

import errno
import os
import signal
import threading
from pathlib import Path

import pytest
from locks import child, locked_elsewhere

from segrow import atomic
from segrow.atomic import appear, discard, locked, new_file, new_folder, tidy, write_atomic
from segrow.errors import UserError

TOKEN = "0123456789abcdef"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    assert path.read_bytes() == b"old"
    written: list[bytes] = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        assert path.read_bytes() == b"old"  # until the new one is complete
        written.append(Path(source).read_bytes())
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_atomic(path, b"new")
    assert written == [b"new"]
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_a_stop_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise error

    def write() -> None:
        with new_file(path) as file:
            file.write(b"half")
            if call == "write":
                raise error

    if call != "write":
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write()
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the content, then the folder's names


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one under the very name that the unfinished file gets."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".segrow-{TOKEN}.tmp").symlink_to(victim)
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda n: TOKEN)
    with pytest.raises(FileExistsError):
        write_atomic(folder / "file", b"new")
    assert victim.read_bytes() == b"mine"
    monkeypatch.undo()
    (folder / "file").symlink_to(victim)  # the name itself: the link is replaced, not what it leads to
    write_atomic(folder / "file", b"new")
    assert victim.read_bytes() == b"mine"
    assert (folder / "file").read_bytes() == b"new"


def test_names_cannot_be_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).name), replace(a, b)))
    for _ in range(3):
        write_atomic(tmp_path / "file", b"")
    assert len(set(seen)) == 3
    assert all(atomic._UNFINISHED.fullmatch(name) for name in seen)


# --- what killed writers left -------------------------------------------------------------------------------


def killed_file(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def killed_folder(place: Path) -> None:
    with new_folder(place) as folder:
        (folder / "half").write_bytes(b"")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    assert child(lambda: killed_folder(tmp_path / "folder")) == -signal.SIGKILL
    assert child(lambda: killed_file(tmp_path / "file")) == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    (tmp_path / ".segrow-mine.tmp").write_bytes(b"")  # not one of ours
    tidy(tmp_path)
    assert names(tmp_path) == [".segrow-mine.tmp"]


def test_what_a_living_writer_holds_stays(tmp_path: Path) -> None:
    with new_file(tmp_path / "file") as file, new_folder(tmp_path / "folder") as folder:
        file.write(b"whole")
        assert child(lambda: tidy(tmp_path)) == 0
        tidy(tmp_path)
        appear(folder, tmp_path / "folder")
    assert names(tmp_path) == ["file", "folder"]


def test_a_link_with_such_a_name_goes_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"mine")
    (tmp_path / f".segrow-{TOKEN}.tmp").symlink_to(tmp_path / "victim")
    tidy(tmp_path)
    assert names(tmp_path) == ["victim"]
    assert names(tmp_path / "victim") == ["file"]


def test_without_locks_only_what_is_old_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic, "_take", none)
    write_atomic(tmp_path / "file", b"whole")
    young, old = (tmp_path / f".segrow-{letter * 16}.tmp" for letter in "ab")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    tidy(tmp_path)
    assert names(tmp_path) == [young.name, "file"]


def test_a_folder_is_discarded_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    discard(tmp_path / "folder")
    assert names(tmp_path) == []


# --- one writer ---------------------------------------------------------------------------------------------


def test_the_second_is_told_who_writes(tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path / "run", "segrow train") as pid:
        with pytest.raises(UserError) as caught, locked(tmp_path / "run", "segrow add"):
            pass
        line = str(caught.value)
        assert line.startswith(f"{tmp_path / 'run'} is being written by segrow train (process {pid} on ")
        assert ", since 20" in line
        assert line.endswith("; wait until it ends, or stop it")
        with pytest.raises(UserError):  # and again: looking does not lose who it is
            locked(tmp_path / "run", "segrow add").__enter__()
    with locked(tmp_path / "run", "segrow add"):  # it was killed: the lock it left holds nobody up
        pass
    assert names(tmp_path) == []


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "model", "segrow add"):
        assert names(tmp_path / "a" / "b") == [".model.lock"]
    assert names(tmp_path) == []
    with locked(tmp_path / "a" / "model", "segrow add"):
        write_atomic(tmp_path / "a" / "model" / "file", b"")
    assert names(tmp_path / "a") == ["model"]


def test_a_lock_outlives_an_exchange_of_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    with locked(place, "segrow add"):
        with new_folder(place) as new:
            os.rename(place, tmp_path / "old")
            appear(new, place)
        assert child(lambda: locked(place, "segrow rollback").__enter__()) == 1


def test_the_same_thread_may_lock_again_and_another_may_not(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")  # the same folder by another name
    (tmp_path / "run").mkdir()
    refused: list[UserError] = []

    def other() -> None:
        try:
            with locked(tmp_path / "run", "segrow test"):
                pass
        except UserError as error:
            refused.append(error)

    with locked(tmp_path / "run", "segrow train"), locked(tmp_path / "link", "segrow train"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    other()
    assert len(refused) == 1


def test_a_child_of_a_killed_writer_holds_nobody_up(tmp_path: Path) -> None:
    """As loader workers, which may live a moment longer."""
    told, tell = os.pipe()

    def parent() -> None:
        with locked(tmp_path / "run", "segrow train"):
            pid = os.fork()
            if not pid:
                os.write(tell, os.getpid().to_bytes(4, "big"))
                signal.pause()
            signal.pause()

    pid = os.fork()
    if not pid:
        parent()
    worker = int.from_bytes(os.read(told, 4), "big")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        with locked(tmp_path / "run", "segrow train"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["link", "hard link", "text", "fifo"])
def test_somebodys_file_is_never_taken_for_a_lock(tmp_path: Path, kind: str) -> None:
    victim, lock = tmp_path / "victim", tmp_path / ".run.lock"
    victim.write_bytes(b"{mine}")
    if kind == "link":
        lock.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, lock)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.write_bytes(b"mine")
    with (
        pytest.raises(UserError, match=r"\.run\.lock is not a lock of segrow"),
        locked(tmp_path / "run", "x"),
    ):
        pass
    assert victim.read_bytes() == b"{mine}"
    assert os.path.lexists(lock)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic, "_take", none)
    with (
        pytest.warns(UserWarning, match=r"has no locks \(No locks available\); see to it"),
        locked(tmp_path / "run", "segrow train"),
    ):
        write_atomic(tmp_path / "run" / "file", b"")
    assert names(tmp_path / "run") == ["file"]


def test_a_place_that_takes_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written \(File exists\); choose another place"):
        locked(tmp_path / "file" / "run", "segrow train").__enter__()


def test_where_only_the_folder_itself_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder that is mounted into a container."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    with locked(tmp_path / "run", "segrow train"):
        assert names(tmp_path / "run") == [".lock"]
        assert child(lambda: locked(tmp_path / "run", "segrow train").__enter__()) == 1
    assert names(tmp_path / "run") == []
