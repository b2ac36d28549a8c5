"""Features of a frozen trunk, kept: a few views of each of a step's images go through the trunk once.

    store = FeatureStore(budget_in_bytes)              # of a run
    features = keep_features(store, ...)               # of a step; None where the trunk runs every iteration
    features.build(); for loaded in features.batches(draws): ...

Kept of a view is what neither a step nor a teacher changes: the trunk's maps before they are joined
(bfloat16), the raw ids of the mask, the saliency. Tables of labels, and the leak guard with them, are applied
to what is read; the teacher's verdict is written anew in every step. An image that comes again in a later
step, or as an exemplar, finds its views there.
"""

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..batch import Batch
from ..data.loader import Draw, EpochPlan, Loaded, RawView, StepImages, worker_count
from ..errors import UserError
from ..methods.base import Method, StepContext
from .cost import Stopwatch
from .machine import Machine
from .val_features import GIB, trunk_hash

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
        if machine.fabric.is_global_zero:
            try:
                with self.file.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, rows * size)
            except OSError as error:
                self.file.unlink(missing_ok=True)
                raise UserError(
                    f"the features of {rows} views need {rows * size / GIB:.1f} GiB in {self.file.parent} "
                    f"({error.strerror}); make room, or use --train.feature_views 0"
                ) from None
        machine.fabric.barrier()
        mapped = np.memmap(self.file, np.uint8, "r+", shape=(rows, size))
        machine.fabric.barrier()
        if machine.fabric.is_global_zero:
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

    def write_verdict(self, view: View, verdict: Tensor) -> None:
        """Keep what the step's teacher says of a view, int16 H W; replaces that of an earlier one."""
        layout, row = self._of(view)
        values = (verdict.cpu().numpy() - LOWEST).astype(layout.verdict)
        row[layout.spans()[-1]] = values.view(np.uint8).ravel()

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
        return np.asarray(self._rows[[self._where[view] for view in views]])

    def _maps(self, block: Bytes) -> tuple[Tensor, ...]:
        layout = self._layout()
        whole = torch.from_numpy(block)
        found = []
        for span, shape in zip(layout.spans(), layout.parts, strict=False):
            maps = whole[:, span].contiguous().view(torch.bfloat16).view(len(block), *shape)
            found.append(maps.permute(0, 3, 1, 2))
        return tuple(found)


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


class _Views(Dataset[RawView | UserError]):
    """The views to be computed, read by worker processes."""

    def __init__(self, images: StepImages, views: Sequence[View], seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> RawView | UserError:
        view = self.views[index]
        try:
            return self.images.raw(view.image, view.rng(self.seed))
        except UserError as error:  # torch would bury its line in a worker's traceback
            return error


def _as_they_are(items: list[RawView | UserError]) -> list[RawView | UserError]:
    return items


@final
class StepFeatures:
    """The kept views of one step.

    Args:
        store: Of the run.
        machine: Devices, precision, options.
        method: Says what the teacher's verdict is.
        ctx: The step.
        images: Training views, which are read once.
        counts: Number of views of an image of the step, and of an exemplar.
        layout: Of the store's rows.

    Attributes:
        seconds: Spent on building so far.
    """

    def __init__(
        self,
        store: FeatureStore,
        machine: Machine,
        method: Method,
        ctx: StepContext,
        images: StepImages,
        counts: tuple[int, int],
        layout: Layout,
    ) -> None:
        self._store, self._machine, self._method, self._ctx = store, machine, method, ctx
        self._images, self._counts, self._layout = images, counts, layout
        self._watch = Stopwatch()

    @property
    def seconds(self) -> float:
        return self._watch.seconds

    def record(self) -> dict[str, float]:
        """As results.json holds it."""
        views = _views(self._images, self._counts)
        return {
            "views": self._counts[0],
            "bytes": len(views) * self._layout.row,
            "seconds": self._watch.seconds,
        }

    def build(self) -> None:
        """Run the trunk over the views that are not there, and the teacher's heads over all.

        Raises:
            UserError: When an image cannot be read, or the disk is full.
        """
        with self._watch:
            fabric = self._machine.fabric
            views = _views(self._images, self._counts)
            trunk = trunk_hash(self._ctx.model)
            missing = self._store.prepare(views, self._layout, trunk, self._machine)
            self._ctx.model.eval()
            self._compute(missing[fabric.global_rank :: fabric.world_size])
            self._judge(views[fabric.global_rank :: fabric.world_size])
            fabric.barrier()

    @torch.no_grad()
    def _compute(self, views: Sequence[View]) -> None:
        fabric, train = self._machine.fabric, self._machine.train
        size = max(1, train.batch_size // fabric.world_size)
        loader: DataLoader[list[RawView | UserError]] = DataLoader(
            _Views(self._images, views, self._machine.seed),  # type: ignore[arg-type]
            batch_size=size,
            num_workers=worker_count(train.workers),
            collate_fn=_as_they_are,
            generator=torch.Generator(),  # else the pass would move the global random state
        )
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        chunks = self._machine.display.track(loader, "features", len(loader))
        for n, items in enumerate(chunks):
            good = [_checked(item) for item in items]
            # batches of one size: what is kept of a view does not depend on which others are missing
            padded = [*good, *[good[-1]] * (size - len(good))]
            pixels = torch.stack([item.image for item in padded]).to(fabric.device)
            with fabric.autocast():
                parts = self._ctx.encode(pixels.contiguous(memory_format=layout))
            for k, (view, item) in enumerate(zip(views[n * size : (n + 1) * size], good, strict=True)):
                self._store.write(view, [part[k] for part in parts], item.mask, item.saliency)

    @torch.no_grad()
    def _judge(self, views: Sequence[View]) -> None:
        """The teacher's verdict on all views, from the maps as they are kept."""
        teacher = self._ctx.teacher
        if teacher is None or not self._layout.verdict:
            return
        fabric, crop = self._machine.fabric, self._layout.crop
        size = max(1, self._machine.train.batch_size // fabric.world_size)
        for start in range(0, len(views), size):
            some = views[start : start + size]
            parts = tuple(part.to(fabric.device) for part in self._store.parts(some))
            with fabric.autocast():
                out = self._ctx.teach(_without_labels(parts))
            verdict = self._method.verdict(self._ctx, out, crop)
            if verdict is None:
                raise TypeError(f"method {self._method.name} gave a verdict before and none now")
            for view, row in zip(some, verdict.cpu(), strict=True):
                self._store.write_verdict(view, row)

    def batches(self, draws: Iterable[Sequence[Draw]]) -> Iterator[Loaded]:
        """The batches of these draws; the t-th time an image is drawn it shows view t modulo their number.

        Raises:
            LeakError: When labels show what the step may not see.
        """
        for batch in draws:
            ids = [self._images.image_id(draw) for draw in batch]
            rows = self._store.read(
                [View(i, d.turn % self._counts[d.from_memory]) for i, d in zip(ids, batch, strict=True)]
            )
            shown = [
                self._images.label(draw, mask, None if rows.saliency is None else rows.saliency[k])
                for k, (draw, mask) in enumerate(zip(batch, rows.mask, strict=True))
            ]
            aux = {name: torch.stack([maps[name] for _, maps in shown]) for name in shown[0][1]}
            yield (
                Batch(
                    images=torch.empty(len(batch), 3, 0, 0, dtype=torch.uint8),
                    labels=torch.stack([labels for labels, _ in shown]),
                    from_memory=torch.tensor([draw.from_memory for draw in batch]),
                    aux=aux,
                    parts=rows.parts,
                    verdict=rows.verdict,
                ),
                ids,
            )


def keep_features(
    store: FeatureStore,
    machine: Machine,
    method: Method,
    ctx: StepContext,
    images: StepImages,
    plan: EpochPlan,
    epochs: int,
) -> StepFeatures | None:
    """The cache of a step, not built yet; None where the trunk has to, or may as well, run every iteration.

    Says which of both it is, where the options leave it open.
    """
    views = machine.train.feature_views
    if not views or not ctx.step or not ctx.shares_trunk or not method.needs_features_only:
        return None
    own, replayed = plan.turns(epochs)
    counts = (min(views, own), min(views, replayed))
    rows = len(_views(images, counts))
    if rows >= epochs * plan.iterations * plan.batch_size:
        return None  # every view would be used once
    layout = _layout(ctx, method, images, machine)
    need = rows * layout.row
    what = f"step {ctx.step}  features of {rows} views ({views} an image), {need / GIB:.2g} GiB"
    if need > store.budget:
        machine.display.say(
            f"{what}: more than --train.feature_budget {store.budget / GIB:.3g}, so the trunk runs every "
            "iteration (exact mode); a larger budget, or --train.feature_store disk with one, avoids it"
        )
        return None
    machine.display.say(f"{what} of {store.budget / GIB:.3g}, are kept")
    return StepFeatures(store, machine, method, ctx, images, counts, layout)


def _views(images: StepImages, counts: tuple[int, int]) -> list[View]:
    """All views of a step, each once: of its images, then of the exemplars."""
    own = [View(image, k) for image in images.images for k in range(counts[0])]
    old = [View(exemplar.image, k) for exemplar in images.exemplars for k in range(counts[1])]
    return list(dict.fromkeys([*own, *old]))


@torch.no_grad()
def _layout(ctx: StepContext, method: Method, images: StepImages, machine: Machine) -> Layout:
    """What a row holds, found out with one empty image."""
    fabric, crop = machine.fabric, images.augmentation.crop
    ctx.model.eval()
    empty = torch.zeros(1, 3, crop, crop, dtype=torch.uint8, device=fabric.device)
    with fabric.autocast():
        parts = ctx.encode(empty)
        out = ctx.teach(_without_labels(tuple(part.bfloat16() for part in parts)))
    judged = method.verdict(ctx, out, (crop, crop)) is not None
    small = ctx.known_before - LOWEST <= 255
    return Layout(
        parts=tuple((part.shape[2], part.shape[3], part.shape[1]) for part in parts),
        crop=(crop, crop),
        mask="uint8" if images.data.ignore_id < 256 else "uint16",
        saliency="saliency" in images.aux,
        verdict=("uint8" if small else "int16") if judged else None,
    )


def _without_labels(parts: tuple[Tensor, ...]) -> Batch:
    """Kept maps as a batch that only a teacher looks at."""
    n = len(parts[0])
    nothing = torch.empty(n, 0, 0, dtype=torch.int64, device=parts[0].device)
    return Batch(
        images=torch.empty(n, 3, 0, 0, dtype=torch.uint8),
        labels=nothing,
        from_memory=torch.zeros(n, dtype=torch.bool),
        parts=parts,
    )


def _checked(item: RawView | UserError) -> RawView:
    if not isinstance(item, RawView):
        raise item
    return item
