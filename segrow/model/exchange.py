"""A model directory is replaced whole: the new one is complete before it takes the place of the old one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic import appear, discard, locked, new_folder, sync_folder
from ..errors import UserError
from .record import RECORD, WEIGHTS, is_waiting, read_record, waiting_place


@contextmanager
def exchanged(directory: Path, what: str = "segrow") -> Iterator[Path]:
    """A new folder beside `directory` to write files into, which then takes its place.

    What no model wrote and the new folder does not hold is kept. A kill at any moment leaves the old
    directory or the new one, which every reader finds (`record.standing`); the next writer tidies up.

    Args:
        what: Who writes, for those who come second.

    Raises:
        UserError: When `directory` is something else than a model directory, or another process writes it.
    """
    directory = Path(directory).resolve()
    with locked(directory, what):
        settle(directory)
        if directory.exists() and not replaceable(directory):
            raise UserError(
                f"{directory} exists and is not a model directory; give another place for the model"
            )
        try:
            with new_folder(directory) as temporary:
                yield temporary
                sync_folder(temporary)
                if directory.exists():
                    os.rename(directory, waiting_place(directory))
                appear(temporary, directory)
        finally:
            settle(directory)


def replaceable(directory: Path) -> bool:
    """Whether a model may take the place of what is there: a model, or an empty folder."""
    return directory.is_dir() and ((directory / RECORD).is_file() or not any(directory.iterdir()))


def settle(directory: Path) -> None:
    """End an exchange: without a new directory the old one stands again, else only its foreign files stay.

    For writers, who hold the lock.
    """
    directory = Path(directory).resolve()
    waiting = waiting_place(directory)
    if not is_waiting(waiting):
        return
    if not directory.exists():
        os.rename(waiting, directory)
        return
    ours = _written(waiting)
    for entry in waiting.iterdir():
        if entry.name not in ours and not (directory / entry.name).exists():
            os.rename(entry, directory / entry.name)
    discard(waiting)


def _written(directory: Path) -> set[str]:
    """Names of the files that the writer of a model made."""
    try:
        return {RECORD, *read_record(directory)["hashes"]["files"]}
    except (UserError, OSError):
        return {RECORD, WEIGHTS}
