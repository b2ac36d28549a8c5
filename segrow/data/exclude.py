"""A list of images that a run leaves out: one per line, as `segrow data check --fix-list` writes it.

# mask masks/train/0007.png cannot be decoded (…)
train/0007
val/aachen/0012

A line is SPLIT/ID. Empty lines, and lines that begin with #, say nothing. An id with a line break or another
control character in it stands there as JSON, in quotation marks.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..atomic import tidy, write_atomic
from ..documents import read_text
from ..errors import UserError, shown
from ..wording import are, count

LIST_BYTES = 64 << 20
_SPLITS = ("train/", "val/")


@dataclass(frozen=True)
class Exclusion:
    """Images to leave out.

    Attributes:
        source: Where they are listed, for sentences.
        images: Each as SPLIT/ID.
    """

    source: str = "nothing"
    images: frozenset[str] = frozenset()

    def check(self, left_out: Iterable[str]) -> None:
        """Every image of the list was there.

        Args:
            left_out: What the data set has left out, each as SPLIT/ID.

        Raises:
            UserError: Naming the first that was not.
        """
        if unknown := sorted(self.images.difference(left_out)):
            more = f" ({len(unknown)} such lines)" if len(unknown) > 1 else ""
            raise UserError(
                f"{self.source} lists {unknown[0]}, which the data do not hold{more}; take the line out"
            )

    def note(self) -> str:
        """What is left out, with a hash of the ids."""
        n = len(self.images)
        return f"{count(n, 'image')} {are(n)} left out (--data.exclude, ids {self.hash})"

    @property
    def hash(self) -> str:
        """Identifies the ids, whatever the file is called and its lines say beside them."""
        text = "\n".join(sorted(self.images))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


NOTHING = Exclusion()


def read_exclusion(path: str | None) -> Exclusion:
    """The images of a list; none without a path.

    Raises:
        UserError: No such file, no UTF-8, or a line that is no SPLIT/ID.
    """
    if path is None:
        return NOTHING
    lines = read_text(Path(path).expanduser(), "--data.exclude", LIST_BYTES).split("\n")
    images = set()
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r")
        if not text.strip() or text.startswith("#"):
            continue
        images.add(_image(text, f"--data.exclude {path}, line {number}"))
    return Exclusion(f"--data.exclude {path}", frozenset(images))


def _image(text: str, where: str) -> str:
    if text.startswith('"'):
        try:
            text = str(json.loads(text))
        except (ValueError, RecursionError):
            raise UserError(f"{where}: {text[:60]} is not JSON; expected train/ID or val/ID") from None
    if not text.startswith(_SPLITS) or text in _SPLITS:
        raise UserError(f"{where} is {text[:60]}; expected lines of train/ID or val/ID")
    return text


def check_replaceable(path: Path) -> None:
    """Refuse to write a list where something else stands; to be asked before the work.

    Raises:
        UserError: The path is a folder, or a file that is no such list.
    """
    if path.is_dir():
        raise UserError(f"--fix-list {path} is a folder, expected a file; give a name within")
    if path.exists():
        try:
            read_exclusion(str(path))
        except UserError:
            raise UserError(
                f"--fix-list {path} is there and is not a list of images to leave out; give another name"
            ) from None


def write_exclusion(path: Path, images: Iterable[tuple[str, str]]) -> None:
    """Write a list.

    Args:
        path: The file.
        images: SPLIT/ID of each, and why it is left out.

    Raises:
        OSError: It cannot be written.
    """
    lines = [
        "# Images to leave out: segrow train --data.exclude FILE. Lines of images that should stay may go.",
        *(line for image, why in images for line in (f"# {shown(why)}", _line(image))),
    ]
    tidy(path.parent)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def _line(image: str) -> str:
    plain = shown(image) == image and image == image.strip()
    return image if plain else json.dumps(image)
