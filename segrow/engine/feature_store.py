"""Where the kept views of a frozen trunk stand: rows of bytes, in a memory or in a mapped file.

store = FeatureStore(budget_in_bytes)                # of a run
missing = store.prepare(views, layout, trunk, machine)
store.write(view, parts, mask, saliency); store.read(store.gather(views))
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
        device: In whose memory they stand without a file.

    Attributes:
        layout: Of a row; None before anything was kept.
    """

    def __init__(self, budget: int, file: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.budget = budget
        self.file = file
        self.device = device
        self.layout: Layout | None = None
        self._trunk = ""
        self._rows = torch.empty((0, 0), dtype=torch.uint8)
        self._where: dict[View, int] = {}

    def prepare(self, views: Sequence[View], layout: Layout, trunk: str, machine: Machine) -> list[View]:
        """Make room for exactly these views; returns those that have to be computed.

        Args:
            trunk: Identifies the trunk; with another one nothing of what is there is used.

        Raises:
            UserError: When there is no room on the disk, or in the GPU's memory.
        """
        old_rows, old = self._rows, self._where
        usable = self.layout == layout and self._trunk == trunk
        taken = [view for view in views if usable and view in old]
        if old_rows.nbytes + len(views) * layout.row > self.budget or not taken:
            # both at once would be too much: all is computed again
            taken = []
            old_rows = self._rows = torch.empty((0, 0), dtype=torch.uint8)
        self.layout, self._trunk = layout, trunk
        self._where = {view: row for row, view in enumerate(views)}
        self._rows = self._allocate(len(views), layout.row, machine)
        if machine.fabric.is_global_zero or self.file is None:
            for view in taken:
                self._rows[self._where[view]] = old_rows[old[view]]
        machine.fabric.barrier()
        there = set(taken)
        return [view for view in views if view not in there]

    def _allocate(self, rows: int, size: int, machine: Machine) -> Tensor:
        if self.file is None:
            try:
                return torch.empty((rows, size), dtype=torch.uint8, device=self.device)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"the features of {rows} views need {rows * size / GIB:.1f} GiB of the GPU's memory, "
                    "which has less; use --train.feature_store ram"
                ) from None
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
        return torch.from_numpy(mapped)

    def write(
        self, view: View, parts: Sequence[Tensor], mask: np.ndarray, saliency: np.ndarray | None
    ) -> None:
        """Keep a view: maps C h w, raw ids H W, saliency H W."""
        layout, row = self._of(view)
        *maps, ids, salient, _ = layout.spans()
        for span, part in zip(maps, parts, strict=True):
            values = part.permute(1, 2, 0).to(row.device, torch.bfloat16).contiguous()
            row[span] = values.view(torch.uint8).flatten()
        row[ids] = torch.from_numpy(np.ascontiguousarray(mask, layout.mask).view(np.uint8).ravel())
        if saliency is not None:
            row[salient] = torch.from_numpy(np.packbits(saliency))
        self._seal(row)

    def write_verdict(self, view: View, verdict: Tensor) -> None:
        """Keep what the step's teacher says of a view, int16 H W; replaces that of an earlier one."""
        layout, row = self._of(view)
        values = (verdict.to(row.device) - LOWEST).to(_TYPES[str(layout.verdict)]).contiguous()
        row[layout.spans()[-1]] = values.view(torch.uint8).flatten()
        self._seal(row)

    def _seal(self, row: Tensor) -> None:
        """Write the checksum of a row in a file: the sum of its words, which costs next to nothing."""
        if self.file is not None:
            whole: Bytes = row.numpy()
            whole[-ALIGN : 8 - ALIGN] = _sums(whole[None, :-ALIGN]).view(np.uint8)

    def _of(self, view: View) -> tuple[Layout, Tensor]:
        return self._layout(), self._rows[self._where[view]]

    def gather(self, views: Sequence[View]) -> Tensor:
        """The rows of some views as they are kept, uint8 B n, to be read by `maps`, `masks` and `read`.

        Raises:
            UserError: Naming the first image whose row was changed on the disk.
        """
        where = torch.tensor([self._where[view] for view in views], device=self._rows.device)
        block = self._rows.index_select(0, where)
        if self.file is None:
            return block
        rows: Bytes = block.numpy()
        stored = np.ascontiguousarray(rows[:, -ALIGN : 8 - ALIGN]).view(np.uint64).ravel()
        wrong = np.flatnonzero(stored != _sums(rows[:, :-ALIGN]))
        if len(wrong):
            raise UserError(
                f"features of {views[wrong[0]].image} were changed on the disk ({self.file.parent}); "
                "the same command continues from the last finished epoch"
            )
        return block[:, :-ALIGN]

    def maps(self, block: Tensor) -> tuple[Tensor, ...]:
        """The trunk's maps in some rows, bfloat16 B C h w (channels last)."""
        layout = self._layout()
        fields = zip(layout.spans(), layout.parts, strict=False)
        return tuple(
            _typed(block, span, "bfloat16").view(len(block), *shape).permute(0, 3, 1, 2)
            for span, shape in fields
        )

    def masks(self, block: Tensor) -> Tensor:
        """The raw ids in some rows, uint8 or, of 16 bits, int32: B H W."""
        layout = self._layout()
        mask = _typed(block, layout.spans()[-3], layout.mask)
        return (mask if layout.mask == "uint8" else mask.int() & 0xFFFF).view(-1, *layout.crop)

    def read(self, block: Tensor) -> "Rows":
        """Everything in some rows, on the device where they are."""
        layout = self._layout()
        *_, salient, judged = layout.spans()
        saliency = verdict = None
        if layout.saliency:
            saliency = _bits(block[:, salient])[:, : math.prod(layout.crop)].view(-1, *layout.crop)
        if layout.verdict:
            verdict = (_typed(block, judged, layout.verdict).short() + LOWEST).view(-1, *layout.crop)
        return Rows(self.maps(block), self.masks(block), saliency, verdict)

    def _layout(self) -> Layout:
        if self.layout is None:
            raise RuntimeError("nothing has been prepared")
        return self.layout


_TYPES = {"bfloat16": torch.bfloat16, "uint8": torch.uint8, "uint16": torch.int16, "int16": torch.int16}


def _typed(block: Tensor, span: slice, kind: str) -> Tensor:
    """A field of some rows as numbers, B n."""
    return block[:, span].contiguous().view(_TYPES[kind])


def _bits(packed: Tensor) -> Tensor:
    """What `np.packbits` made bytes of: B n -> bool B 8n."""
    if packed.is_cuda:
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
        return (packed.unsqueeze(2) >> places & 1).bool().flatten(1)
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1).view(np.bool_))


def _sums(rows: Bytes) -> NDArray[np.uint64]:
    """The sum of the 64-bit words of each row."""
    return np.asarray(rows.view(np.uint64).sum(axis=1, dtype=np.uint64))


def _exclusively(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o666)


class Rows(NamedTuple):
    """What was read of some views.

    Attributes:
        parts: The trunk's maps, bfloat16 B C h w.
        mask: B H W raw ids, uint8 or int32.
        saliency: bool B H W, or None.
        verdict: int16 B H W, or None.
    """

    parts: tuple[Tensor, ...]
    mask: Tensor
    saliency: Tensor | None
    verdict: Tensor | None
