"""The one place that writes files: whole or not at all, and one writer per folder at a time.

    write_atomic(path, content)                              # bytes
    with new_file(path) as file: torch.save(state, file)     # a stream
    with new_folder(place) as folder: ...; appear(folder, place)
    with locked(folder, "segrow train"): ...                 # the second caller is told who writes there

What is not finished has a name that nobody can foresee, `.segrow-0123456789abcdef.tmp`, and is opened
exclusively: a link that somebody put there is not followed. Its writer holds a lock on it. What a killed
writer left is held by nobody, and the next writer removes it (`tidy`).
"""

import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EINVAL, ENOTSUP
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .resources import machine_refuses, named

_UNFINISHED = re.compile(r"\.segrow-[0-9a-f]{16}\.tmp")
_LOCK = re.compile(r"\..*\.lock")
_SIGNATURE = {"what", "process", "host", "since"}  # what a lock says, and nothing else does
_SIGNED_BYTES = 4096
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_BINARY = getattr(os, "O_BINARY", 0)  # only Windows has it
_OLD = 24 * 3600  # seconds: what is unfinished for longer has no writer, where locks cannot tell

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> bool:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # behind the text, which others may then read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(descriptor: int) -> bool:
        """Lock an open file or folder; False when another process has it.

        The system lets go of it when the process ends, however it ends.

        Raises:
            OSError: The file system has no locks.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


# ---- files


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it; a reader, a kill or a full disk never leaves half of it.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    with new_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, as `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=1).encode())


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a new file, which takes the place of `path` when the block ends, and is on the disk then.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _new_descriptor(path)
    try:
        with named(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # there an open file cannot be renamed
                file.close()
            os.replace(temporary, path)  # still held, so that nobody takes it for a dead writer's
        _sync(path.parent)
    finally:
        with suppress(OSError):  # it is gone when all went well
            temporary.unlink(missing_ok=True)


def _new_descriptor(path: Path) -> tuple[int, Path]:
    """A new empty file beside `path` that this process holds, with the permissions that the umask gives."""
    while True:
        temporary = _unforeseen(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except OSError as error:
            error.filename = str(path)  # nobody knows the other name
            raise
        if _held(descriptor):
            return descriptor, temporary
        os.close(descriptor)  # another process was about to remove it


def _unforeseen(folder: Path) -> Path:
    return folder / f".segrow-{secrets.token_hex(8)}.tmp"


def _held(descriptor: int) -> bool:
    """Hold what was just made; False when another process is removing it. True where there are no locks."""
    if sys.platform == "win32":
        return True
    try:
        return _take(descriptor) and os.fstat(descriptor).st_nlink > 0
    except OSError:
        return True


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (EACCES, EINVAL, ENOTSUP):  # folders that cannot be waited for
            raise


# ---- folders


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, to be filled and renamed; what is not renamed is removed at the end.

    Raises:
        OSError: It cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    tidy(place.parent)
    holder, temporary = _new_held_folder(place.parent)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if holder is not None:
            os.close(holder)


def _new_held_folder(parent: Path) -> tuple[int | None, Path]:
    while True:
        temporary = _unforeseen(parent)
        temporary.mkdir()
        if sys.platform == "win32":  # there folders cannot be opened
            return None, temporary
        with suppress(FileNotFoundError):  # another process was faster and removed it
            holder = os.open(temporary, os.O_RDONLY | _NO_LINK)
            if _held(holder):
                return holder, temporary
            os.close(holder)


def sync_folder(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync(Path(place))


def appear(folder: Path, place: Path) -> None:
    """Rename a complete folder to where nothing is, or an empty folder, for good.

    Raises:
        OSError: Something is there.
    """
    sync_folder(folder)
    os.rename(folder, place)
    _sync(place.parent)


def discard(folder: Path) -> None:
    """Remove a folder at once: a kill while it goes leaves nothing of it under its name.

    Raises:
        OSError: It cannot be removed.
    """
    dying = _unforeseen(folder.parent)
    os.rename(folder, dying)
    shutil.rmtree(dying, ignore_errors=True)  # the next writer finds what is left


def tidy(folder: Path) -> None:
    """Remove what killed writers left in a folder; what a living process holds stays."""
    try:
        entries = [entry for entry in os.scandir(folder) if _is_left(entry)]
    except OSError:  # not there, or not to be read: then nothing is to be done
        return
    for entry in entries:
        with suppress(OSError):
            _remove_dead(Path(entry.path))


def _is_left(entry: os.DirEntry[str]) -> bool:
    """Whether it has the name of something unfinished, or is a lock that has been signed."""
    if not _LOCK.fullmatch(entry.name):
        return _UNFINISHED.fullmatch(entry.name) is not None
    if not entry.is_file(follow_symlinks=False):
        return False
    with suppress(OSError), Path(entry.path).open("rb") as file:
        return _signer(file.read(_SIGNED_BYTES + 1)) is not None
    return False


def _signer(text: bytes) -> dict[str, Any] | None:
    """Who signed a lock; None where that is no text of a lock."""
    try:
        about = json.loads(text) if len(text) <= _SIGNED_BYTES else None
    except (ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and about.keys() == _SIGNATURE else None


def _remove_dead(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):  # no writer makes one
        path.unlink()
        return
    descriptor = None
    try:
        if sys.platform == "win32":
            dead = time.time() - found.st_mtime > _OLD
        else:
            descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
            try:
                dead = _take(descriptor)
            except OSError:
                dead = time.time() - found.st_mtime > _OLD
        if dead and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif dead:
            path.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


# ---- one writer at a time

_mine: dict[Path, int] = {}  # folders that this process writes in -> the thread that does
_open: set[int] = set()  # descriptors of their locks


def _forget() -> None:
    """In a forked child: it writes nowhere, and must not keep the lock when its parent is killed."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()
    _mine.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Write in a folder alone; what killed writers left in it, and beside it, is removed first.

    The lock is a hidden file beside the folder, `.NAME.lock`, so it outlives an exchange of the folder; where
    nothing can be written there, it stands in the folder. It is removed at the end. After a kill it may stay,
    but holds nobody up: the system has let go of it. In the block the same thread may lock the folder again.

    Args:
        directory: The folder; need not exist.
        what: Who writes, such as "segrow train", for those who come second.

    Raises:
        UserError: Another process, or thread, writes there; or no lock can be put there.
        OSError: The disk is full, or too many files are open.
    """
    place = Path(os.path.realpath(directory))
    if _mine.get(place) == threading.get_ident():
        yield
        return
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(place)
        descriptor = _acquire(lock, directory)
    except OSError as error:
        if machine_refuses(error):  # a full disk, too many open files: another place would not help
            error.filename = str(directory)
            raise
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        way = ": a part of that path is a file" if in_the_way else ", or allow writing there"
        raise UserError(
            f"{directory} cannot be written ({error.strerror}); choose another place{way}"
        ) from None
    try:
        _mine[place] = threading.get_ident()
        if descriptor is not None:
            _open.add(descriptor)
            _sign(descriptor, what)
        tidy(place.parent)
        for folder, _, _ in os.walk(place):
            tidy(Path(folder))
        yield
    finally:
        _mine.pop(place, None)
        if descriptor is not None:
            _release(lock, descriptor)
        with suppress(OSError):  # as it was, when nothing came of it
            for folder_made in made:
                folder_made.rmdir()


def _lock_file(place: Path) -> Path:
    """Where the lock of a folder stands."""
    if not place.name or (place.is_dir() and not os.access(place.parent, os.W_OK)):
        return place / ".lock"
    return place.with_name(f".{place.name}.lock")


def _acquire(lock: Path, directory: Path) -> int | None:
    """The descriptor of a lock that is now ours; None where the file system has no locks."""
    while True:
        descriptor = _open_lock(lock)
        try:
            if not _take(descriptor):
                raise UserError(
                    f"{directory} is being written by {_holder(descriptor)}; wait until it ends, or stop it"
                )
            if _is(lock, descriptor):
                return descriptor
        except OSError as error:
            warnings.warn(
                f"the file system of {directory} has no locks ({error.strerror}); see to it that no other "
                "command writes there",
                stacklevel=4,
            )
            os.close(descriptor)
            return None
        except UserError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it: take the new one


def _is(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open_lock(lock: Path) -> int:
    """A lock's file, made if need be; never somebody's other file, nor what a link leads to."""
    ours = not lock.is_symlink()
    if ours:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | _NO_LINK | _BINARY, 0o666)
        except PermissionError:  # that of another user, who was killed or writes
            descriptor = os.open(lock, os.O_RDONLY | _NO_LINK | _BINARY)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            text = os.read(descriptor, _SIGNED_BYTES + 1)
            if not text or _signer(text) is not None:
                return descriptor
        os.close(descriptor)
    raise UserError(f"{lock} is not a lock of segrow, but is where one has to be; move it elsewhere")


def _sign(descriptor: int, what: str) -> None:
    """Write into a lock who holds it, as far as the disk has room."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    about = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(about).encode())


def _holder(descriptor: int) -> str:
    """Who holds a lock, as it says itself."""
    with suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        if about := _signer(os.read(descriptor, _SIGNED_BYTES + 1)):
            return f"{about['what']} (process {about['process']} on {about['host']}, since {about['since']})"
    return "another process"


def _release(lock: Path, descriptor: int) -> None:
    _open.discard(descriptor)
    if sys.platform == "win32":  # there an open file cannot be removed
        os.close(descriptor)
    with suppress(OSError):
        lock.unlink()
    if sys.platform != "win32":
        os.close(descriptor)
