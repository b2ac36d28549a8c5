"""A model directory is replaced whole: the new one is complete before it takes the place of the old one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic import appear, discard, locked, new_folder, sync_folder, tidy
from ..errors import UserError
from ..resources import named
from .record import RECORD, WEIGHTS, is_model, read_record
from .steady import is_waiting, waiting_place


@contextmanager
def exchanged(directory: Path, what: str = "segrow") -> Iterator[Path]:
    """A new folder beside `directory` to write files into, which then takes its place.

    What no model wrote and the new folder does not hold is kept. A kill at any moment leaves the old
    directory or the new one, which every reader finds (`steady.steadily`); the next writer tidies up.

    Args:
        what: Who writes, for those who come second.

    Raises:
        UserError: When `directory` is something else than a model directory, or another process writes it.
    """
    directory = Path(directory).resolve()
    with named(directory), locked(directory, what):
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


def check_apart(place: Path) -> None:
    """A model of its own may stand there: not in another model's folder, nor among the steps of a run.

    Raises:
        UserError: Naming the other one.
    """
    here = place.resolve()
    for above in here.parents:
        if is_model(above):
            raise UserError(f"{place} is inside the model {above}; give another place, such as one beside it")
        if above.name == "steps" and (above.parent / "config.yaml").is_file():
            raise UserError(
                f"{place} is among the steps of run {above.parent}, which stay as they were trained; give "
                "another place"
            )


def settle(directory: Path) -> None:
    """End what a killed writer began, for writers, who hold the lock.

    Without a new directory the old one stands again, else only its foreign files stay. What was trained on
    top of another model than the one that stands is removed.
    """
    directory = Path(directory).resolve()
    waiting = waiting_place(directory)
    if is_waiting(waiting) and not directory.exists():
        os.rename(waiting, directory)
    elif is_waiting(waiting):
        ours = _written(waiting)
        for entry in waiting.iterdir():
            if entry.name not in ours and not (directory / entry.name).exists():
                os.rename(entry, directory / entry.name)
        discard(waiting)
    for work in _stale_work(directory):
        discard(work)


def put_right(directory: Path, what: str) -> None:
    """As `settle`, for who does not write yet: nothing is locked where no killed writer left anything.

    Raises:
        UserError: Another process writes there, or nothing can be written.
    """
    directory = Path(directory).resolve()
    tidy(directory.parent)
    if is_waiting(waiting_place(directory)) or _stale_work(directory):
        with locked(directory, what):
            settle(directory)


def work_place(directory: Path, model: str, call: str) -> Path:
    """Where one more step for `directory` is trained: a hidden neighbour.

    Args:
        directory: Where the new model goes.
        model: Hash of the model that the step is trained on.
        call: Tells one call from another, 12 hexadecimal digits.
    """
    return directory.with_name(f".{directory.name}.add-{model[:12]}-{call}")


def work_places(directory: Path) -> list[Path]:
    """All such places of a directory; those of an earlier segrow are named without the model."""
    name = re.compile(rf"\.{re.escape(directory.name)}\.add-(?:[0-9a-f]{{12}}-)?[0-9a-f]{{12}}")
    if not directory.parent.is_dir():
        return []
    return [place for place in directory.parent.iterdir() if name.fullmatch(place.name)]


def _stale_work(directory: Path) -> list[Path]:
    """Where a step was trained that can no longer come of it: another model stands now."""
    places = work_places(directory)
    try:
        model = read_record(directory)["hashes"]["model"][:12] if places else ""
    except UserError:  # none stands: that of a new place is to come
        return []
    return [place for place in places if f".add-{model}-" not in place.name]


def _written(directory: Path) -> set[str]:
    """Names of the files that the writer of a model made."""
    try:
        return {RECORD, *read_record(directory)["hashes"]["files"]}
    except (UserError, OSError):
        return {RECORD, WEIGHTS}
