"""The file that a step is continued from."""

import os
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..atomic import new_file
from ..documents import check_archive, open_file
from ..errors import UserError
from ..resources import machine_refuses
from ..shapes import Shape, expect
from ..tensor_files import check_tensors

_TENSORS = {str: Tensor}
_COUNT = range(1 << 31)
_CHOICE: Shape = {"update": _COUNT, "score": (float, None), "weights": _TENSORS}
_SHAPE: Shape = {
    "step": range(1 << 16),
    "epoch": _COUNT,
    "model": _TENSORS,
    "optimizer": {"state": dict},
    "scaler": dict,
    "method": _TENSORS,
    "seconds": float,
    "selected?": dict,
    "precision?": str,
}
AGAIN = "delete it to start the step again"


@dataclass(frozen=True)
class Checkpoint:
    """Where a step stands after an epoch.

    No random state is stored: every epoch seeds itself from (seed, step, epoch).

    Attributes:
        step: The step in progress.
        epoch: Epochs done.
        model: State dict of the network, without a frozen trunk.
        optimizer: State dict of the optimizer.
        scaler: State of the loss scaler; only fp16 has one.
        method: State of the method.
        seconds: Training time so far.
        selected: State of the choice among the step's weights; empty where it ends with its last ones.
        precision: What the step was trained in so far (`precision.continued`); empty in older files.
    """

    step: int
    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    method: dict[str, Any]
    seconds: float
    selected: dict[str, Any] = field(default_factory=dict)
    precision: str = ""

    def save(self, path: Path, before: Path | None = None) -> None:
        """Write atomically, with a checksum.

        Args:
            before: Where the file that is there goes.
        """
        with new_file(path) as file:
            summed = _Summed(file)
            try:
                torch.save(vars(self), cast("IO[bytes]", summed))
            except RuntimeError as error:
                if isinstance(
                    error.__context__, OSError
                ):  # torch ends its file all the same: too short, it says
                    raise error.__context__ from None
                raise
            summed.end()
            os.fsync(file.fileno())  # a full disk is met before anything moves
            if before is not None and path.exists():
                os.replace(path, before)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """Read without unpickling code; None when there is no checkpoint.

        Raises:
            UserError: When the file is not a checkpoint.
        """
        if not path.exists():
            return None
        check_archive(path, "checkpoint")
        _check_sum(path)
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            if machine_refuses(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} is not a checkpoint of segrow ({reason}); {AGAIN}") from None
        check_tensors(stored, f"checkpoint {path}")
        expect(stored, _SHAPE, f"checkpoint {path}", AGAIN)
        if stored.get("selected"):
            expect(stored["selected"], _CHOICE, f"checkpoint {path}", AGAIN)
        return cls(**{name: value for name, value in stored.items() if name in cls.__dataclass_fields__})

    def apart(self) -> "Checkpoint":
        """A copy in the host's memory, which training does not change."""
        return Checkpoint(**tree_map(_copied, vars(self)))


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


SECONDS = 60.0
"""As old may be what a kill loses, where epochs are shorter."""


@final
class Saver:
    """Writes the checkpoints of a step, of fast epochs not each: the last one is then held in memory.

    Args:
        path: The file.
        before: Where the file that is there goes.
        now: A clock that counts seconds.
    """

    def __init__(self, path: Path, before: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path, self._before, self._now = path, before, now
        self._saved = self._kept = now()
        self._held: Checkpoint | None = None

    def keep(self, checkpoint: Checkpoint) -> None:
        """After an epoch: write it, unless one more epoch of this length may pass before."""
        now = self._now()
        epoch, self._kept = now - self._kept, now
        if now - self._saved + epoch < SECONDS:
            self._held = checkpoint.apart()
            return
        checkpoint.save(self._path, self._before)
        self._held = None  # not before: who stops the writing loses one short epoch
        self._saved = self._kept = self._now()

    def finish(self) -> None:
        """When the step ends, or stops before its end: write what is held."""
        held, self._held = self._held, None
        if held:
            held.save(self._path, self._before)


_MARK = b"segrow crc32 "
_TRAILER = 2 + len(_MARK) + 8  # bytes: a zip file's length of its comment, and the comment


class _Summed:
    """A stream that ends as a zip file whose comment is the CRC-32 of all before it.

    The sums that are in the file anyway cover its tensors, but not where they begin and how long they are.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sum = file, 0

    def write(self, content: bytes) -> int:
        self._sum = zlib.crc32(content, self._sum)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def end(self) -> None:
        comment = _MARK + f"{self._sum:08x}".encode()
        self._file.seek(-2, os.SEEK_END)  # the length of the comment, which torch.save leaves 0
        self._file.write(len(comment).to_bytes(2, "little") + comment)
        self._file.flush()


def _check_sum(path: Path) -> None:
    """Compare the checksum; of an earlier segrow's file those that torch wrote.

    Raises:
        UserError: It differs, or the file was cut off.
    """
    with open_file(path, "checkpoint") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TRAILER, 0))
        trailer = file.read()
        file.seek(0)
        if trailer[2:].startswith(_MARK):
            found = zlib.crc32(bytes(2), _sum_of(file, size - _TRAILER))
            wrong = trailer[2:] != _MARK + f"{found:08x}".encode()
        else:
            wrong = _is_torn(file)
    if wrong:
        raise UserError(f"{path} was changed or cut off after it was written; {AGAIN}")


def _sum_of(file: IO[bytes], size: int) -> int:
    found = 0
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        found, size = zlib.crc32(block, found), size - len(block)
    return found


def _is_torn(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except Exception:  # zipfile raises half a dozen kinds for a damaged file
        return True


def last_good(
    last: Path,
    before: Path,
    step: int,
    say: Callable[[str], None],
    check: Callable[[Checkpoint, str], None] = lambda found, where: None,
) -> tuple[Checkpoint | None, bool]:
    """Where to go on with a step: from the last checkpoint, or the one before where it is lost or damaged.

    Args:
        last: The newer file.
        before: The older one.
        step: The step in progress; a checkpoint of another one is of no use.
        say: Gets a line when it is not the last one.
        check: Refuses (UserError) a checkpoint of this step, with its name for errors, that does not fit it.

    Returns:
        The checkpoint; None to begin the step. And whether the older file was taken.

    Raises:
        UserError: The last one is damaged, and there is no good one before it. The line names all that must
            be deleted.
    """
    try:
        found = _checked(last, step, check)
        problem = f"{last} is missing"
    except UserError as error:
        found, problem = None, _reason(error)
        if not before.exists():
            raise UserError(f"{problem}; {AGAIN}") from None
    older = found is None and before.exists()
    if older:
        try:
            found = _checked(before, step, check)
        except UserError as error:
            if not last.exists():
                raise UserError(f"{_reason(error)}; {AGAIN}") from None
            raise UserError(
                f"{problem}, and {_reason(error)}; delete {last.name} and {before.name} to start the step "
                "again"
            ) from None
    of_this_step = found if found and found.step == step else None
    if older and of_this_step:
        say(f"{problem}; going on from {before.name}, after epoch {of_this_step.epoch}")
    elif older:
        say(f"{problem}; step {step} begins again")
    return of_this_step, older


def _reason(error: UserError) -> str:
    """What is wrong, without what its line says to do: a step's own file is made by the step alone."""
    return str(error).rpartition("; ")[0] or str(error)


def _checked(path: Path, step: int, check: Callable[[Checkpoint, str], None]) -> Checkpoint | None:
    found = Checkpoint.load(path)
    if found and found.step == step:
        check(found, f"checkpoint {path}")
    return found
