"""Where the kept views of a frozen trunk stand: rows of bytes, in memory or in a mapped file.

store = FeatureStore(budget_in_bytes)                # of a run
missing = store.prepare(views, layout, trunk, machine)
store.write(view, parts, mask, saliency); store.read(views)
"""

import math
import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .machine import Machine
from .val_features import GIB

ALIGN = 64  # bytes: every field of a row can be read as any type
LOWEST = -2  # of a verdict; stored as value - LOWEST

Bytes = NDArray[np.uint8]


class View(NamedTuple):
    """A view by its number: the same in every step of a run."""

    image: str
    number: int

    def rng(self, seed: int) -> np.random.Generator:
        """Draws its place, its size and its flip."""
        return np.random.default_rng([seed, zlib.crc32(self.image.encode()), self.number])


@dataclass(frozen=True)
class Layout:
    """What a row holds: the fields one behind the other.

    Attributes:
        parts: Shapes h w C of the trunk's maps.
        crop: Height and width of the labels.
        mask: Type of the raw ids.
        saliency: Whether there is a saliency map, a bit a pixel.
        verdict: Type of the verdict; None = there is none.
    """

    parts: tuple[tuple[int, int, int], ...]
    crop: tuple[int, int]
    mask: str
    saliency: bool
    verdict: str | None

    def sizes(self) -> list[int]:
        """Bytes of the fields: parts, mask, saliency, verdict."""
        pixels = math.prod(self.crop)
        return [
            *(2 * math.prod(shape) for shape in self.parts),
            pixels * np.dtype(self.mask).itemsize,
            -(-pixels // 8) if self.saliency else 0,
            pixels * np.dtype(self.verdict).itemsize if self.verdict else 0,
        ]

    def spans(self) -> list[slice]:
        """Where in a row each field is."""
        spans, start = [], 0
        for size in self.sizes():
            spans.append(slice(start, start + size))
            start += -(-size // ALIGN) * ALIGN
        return spans

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return sum(-(-size // ALIGN) * ALIGN for size in self.sizes())


@final
class FeatureStore:
    """Rows of bytes, one a view, for as long as the trunk stays what it is.

    Args:
        budget: Most bytes to hold.
        file: Where the rows stand when not in memory: a file that all processes map, and that has no name any
            more once they do.

    Attributes:
        layout: Of a row; None before anything was kept.
    """

    def __init__(self, budget: int, file: Path | None = None) -> None:
        self.budget = budget
        self.file = file
        self.layout: Layout | None = None
        self._trunk = ""
        self._rows: Bytes = np.empty((0, 0), np.uint8)
        self._where: dict[View, int] = {}

    def prepare(self, views: Sequence[View], layout: Layout, trunk: str, machine: Machine) -> list[View]:
        """Make room for exactly these views; returns those that have to be computed.

        Args:
            trunk: Identifies the trunk; with another one nothing of what is there is used.

        Raises:
            UserError: When there is no room on the disk.
        """
        old_rows, old = self._rows, self._where
        usable = self.layout == layout and self._trunk == trunk
        taken = [view for view in views if usable and view in old]
        if old_rows.nbytes + len(views) * layout.row > self.budget or not taken:
            # both at once would be too much: all is computed again
            taken = []
            old_rows = self._rows = np.empty((0, 0), np.uint8)
        self.layout, self._trunk = layout, trunk
        self._where = {view: row for row, view in enumerate(views)}
        self._rows = self._allocate(len(views), layout.row, machine)
        if machine.fabric.is_global_zero or self.file is None:
            for view in taken:
                self._rows[self._where[view]] = old_rows[old[view]]
        machine.fabric.barrier()
        there = set(taken)
        return [view for view in views if view not in there]

    def _allocate(self, rows: int, size: int, machine: Machine) -> Bytes:
        if self.file is None:
            return np.empty((rows, size), np.uint8)
        size += ALIGN  # the checksum of a row
        if machine.fabric.is_global_zero:
            try:
                self.file.unlink(
                    missing_ok=True
                )  # of a process that was killed, or a link that was put there
                with open(self.file, "wb", opener=_exclusively) as file:
                    if sys.platform == "linux":  # a full disk is met now, not in the middle of a step
                        os.posix_fallocate(file.fileno(), 0, rows * size)
                    else:
                        file.truncate(rows * size)
            except OSError as error:
                self.file.unlink(missing_ok=True)
                raise UserError(
                    f"the features of {rows} views need {rows * size / GIB:.1f} GiB in {self.file.parent} "
                    f"({error.strerror}); make room, or continue with --train.feature_budget 0 "
                    "(exact mode)"
                ) from None
        machine.fabric.barrier()
        mapped = np.memmap(self.file, np.uint8, "r+", shape=(rows, size))
        machine.fabric.barrier()
        if machine.fabric.is_global_zero:
            with suppress(PermissionError):  # Windows keeps what is mapped; the next call removes it
                self.file.unlink()  # the mapping stays until the last process is gone, killed or not
        return mapped

    def write(
        self, view: View, parts: Sequence[Tensor], mask: np.ndarray, saliency: np.ndarray | None
    ) -> None:
        """Keep a view: maps C h w, raw ids H W, saliency H W."""
        layout, row = self._of(view)
        *maps, ids, salient, _ = layout.spans()
        for span, part in zip(maps, parts, strict=True):
            values = part.permute(1, 2, 0).to("cpu", torch.bfloat16).contiguous()
            row[span] = values.view(torch.uint8).flatten().numpy()
        row[ids] = np.ascontiguousarray(mask, layout.mask).view(np.uint8).ravel()
        if saliency is not None:
            row[salient] = np.packbits(saliency)
        self._seal(row)

    def write_verdict(self, view: View, verdict: Tensor) -> None:
        """Keep what the step's teacher says of a view, int16 H W; replaces that of an earlier one."""
        layout, row = self._of(view)
        values = (verdict.cpu().numpy() - LOWEST).astype(layout.verdict)
        row[layout.spans()[-1]] = values.view(np.uint8).ravel()
        self._seal(row)

    def _seal(self, row: Bytes) -> None:
        """Write the checksum of a row in a file: the sum of its words, which costs next to nothing."""
        if self.file is not None:
            row[-ALIGN : 8 - ALIGN] = _sums(row[None, :-ALIGN]).view(np.uint8)

    def _of(self, view: View) -> tuple[Layout, Bytes]:
        if self.layout is None:
            raise RuntimeError("nothing has been prepared")
        row: Bytes = self._rows[self._where[view]]
        return self.layout, row

    def parts(self, views: Sequence[View]) -> tuple[Tensor, ...]:
        """The trunk's maps of some views, bfloat16 B C h w (channels last)."""
        return self._maps(self._gather(views))

    def read(self, views: Sequence[View]) -> "Rows":
        """Everything of some views."""
        block = self._gather(views)
        layout = self._layout()
        *_, ids, salient, judged = layout.spans()
        n, crop = len(views), layout.crop
        mask = np.ascontiguousarray(block[:, ids]).view(layout.mask).reshape(n, *crop)
        saliency = verdict = None
        if layout.saliency:
            bits = np.unpackbits(block[:, salient], axis=1, count=math.prod(crop))
            saliency = bits.view(np.bool_).reshape(n, *crop)
        if layout.verdict:
            codes = np.ascontiguousarray(block[:, judged]).view(layout.verdict).reshape(n, *crop)
            verdict = torch.from_numpy(codes.astype(np.int16)) + LOWEST
        return Rows(self._maps(block), mask, saliency, verdict)

    def _layout(self) -> Layout:
        if self.layout is None:
            raise RuntimeError("nothing has been prepared")
        return self.layout

    def _gather(self, views: Sequence[View]) -> Bytes:
        block = np.asarray(self._rows[[self._where[view] for view in views]])
        if self.file is None:
            return block
        stored = np.ascontiguousarray(block[:, -ALIGN : 8 - ALIGN]).view(np.uint64).ravel()
        wrong = np.flatnonzero(stored != _sums(block[:, :-ALIGN]))
        if len(wrong):
            raise UserError(
                f"features of {views[wrong[0]].image} were changed on the disk ({self.file.parent}); "
                "the same command continues from the last finished epoch"
            )
        return block[:, :-ALIGN]

    def _maps(self, block: Bytes) -> tuple[Tensor, ...]:
        layout = self._layout()
        whole = torch.from_numpy(block)
        found = []
        for span, shape in zip(layout.spans(), layout.parts, strict=False):
            maps = whole[:, span].contiguous().view(torch.bfloat16).view(len(block), *shape)
            found.append(maps.permute(0, 3, 1, 2))
        return tuple(found)


def _sums(rows: Bytes) -> NDArray[np.uint64]:
    """The sum of the 64-bit words of each row."""
    return np.asarray(rows.view(np.uint64).sum(axis=1, dtype=np.uint64))


def _exclusively(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o666)


class Rows(NamedTuple):
    """What was read of some views.

    Attributes:
        parts: The trunk's maps, bfloat16 B C h w.
        mask: B H W raw ids.
        saliency: bool B H W, or None.
        verdict: int16 B H W, or None.
    """

    parts: tuple[Tensor, ...]
    mask: np.ndarray
    saliency: np.ndarray | None
    verdict: Tensor | None
