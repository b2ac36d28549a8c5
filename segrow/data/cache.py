"""What is kept between calls in the user's cache: $SEGROW_CACHE, or ~/.cache/segrow.

Whatever stands there can be made again: what is damaged is, and a line says so.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..documents import check_archive
from ..resources import NO_ROOM, error_number, machine_refuses
from ..terminal import Terminal


def cache_folder() -> Path:
    """$SEGROW_CACHE, or ~/.cache/segrow."""
    chosen = os.environ.get("SEGROW_CACHE")
    try:
        return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "segrow"
    except RuntimeError:  # a user without a home, as containers have
        return Path(os.devnull) / "segrow"  # which cannot be written, and is said then


def say(line: str) -> None:
    """A note about the cache, once for all processes of a run."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        Terminal(stderr=True).say(f"note: {line}")


def say_damaged(what: str, path: Path) -> None:
    """A note that something is made again."""
    say(f"{what} {path} is damaged; it is made again")


def say_unkept(what: str, folder: Path, error: OSError) -> None:
    """A note that something cannot be kept, which stops nothing."""
    full = error_number(error) in NO_ROOM
    advice = "with room" if full else "that can be written"
    say(
        f"{what} cannot be kept in {folder} ({error.strerror}) and will be made again next time; "
        f"{'make room, or ' * full}set SEGROW_CACHE to a folder {advice}"
    )


def read_arrays(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; none where there is no file, or none that is whole: then a line says so.

    Its zip format holds a checksum of every array.

    Args:
        what: What the file is, for the line.

    Raises:
        OSError: The machine lacks something, such as open files: the file may be good.
    """
    if not path.exists():
        return {}
    try:
        check_archive(path, what)
        with open(path, "rb") as file, np.load(file) as stored:
            return dict(stored)
    except Exception as error:  # zipfile and numpy raise half a dozen kinds for a damaged file
        if machine_refuses(error):
            raise
        if not isinstance(error, OSError):  # a folder that cannot be used is said when it is written
            say_damaged(what, path)
        return {}
