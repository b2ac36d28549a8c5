"""Features of a frozen trunk, kept: a few views of each of a step's images go through the trunk once.

    store = FeatureStore(budget_in_bytes)              # of a run
    features = keep_features(store, ...)               # of a step; None where the trunk runs every iteration
    features.build(); for loaded in features.batches(draws): ...

Kept of a view is what neither a step nor a teacher changes: the trunk's maps before they are joined
(bfloat16), the raw ids of the mask, the saliency. Tables of labels are applied to what is read, after the
leak guard has seen every view once in a step; the teacher's verdict is written anew in every step. An image
that comes again in a later step, or as an exemplar, finds its views there.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..ahead import ahead
from ..batch import Batch
from ..data.loader import Draw, EpochPlan, Loaded, RawView, StepImages
from ..data.workers import shared, survive
from ..errors import UserError
from ..methods.base import Method, StepContext
from ..processes import loader_processes
from ..wording import are, count
from .cost import Stopwatch
from .feature_store import LOWEST, FeatureStore, Layout, View
from .machine import Machine
from .val_features import GIB, trunk_hash

AHEAD = 2
"""Batches that wait for a GPU."""
THREADED = ("cuda",)
"""Where a thread gathers rows; on a CPU it would take the cores from the training."""


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
    for item in items:
        if isinstance(item, RawView):
            shared(item.image)
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
        """As results.json holds it; the seconds are those of this start, if the step was resumed."""
        views = _views(self._images, self._counts)
        return {
            "views": self._counts[0],
            "exemplar_views": self._counts[1],
            "bytes": len(views) * self._layout.row,
            "seconds": self._watch.seconds,
        }

    def build(self) -> None:
        """Run the trunk over the views that are not there, and the teacher's heads over all.

        Raises:
            UserError: When an image cannot be read, or the disk is full.
            LeakError: When an image's masks show what the step may not see.
        """
        with self._watch:
            fabric = self._machine.fabric
            views = _views(self._images, self._counts)
            trunk = trunk_hash(self._ctx.model)
            missing = self._store.prepare(views, self._layout, trunk, self._machine)
            self._ctx.model.eval()
            self._compute(missing[fabric.global_rank :: fabric.world_size])
            fabric.barrier()  # what follows reads rows that another process computed
            self._guard()
            self._judge(views[fabric.global_rank :: fabric.world_size])
            fabric.barrier()

    @torch.no_grad()
    def _compute(self, views: Sequence[View]) -> None:
        fabric, train = self._machine.fabric, self._machine.train
        size = max(1, train.batch_size // fabric.world_size)
        loader: DataLoader[list[RawView | UserError]] = DataLoader(
            _Views(self._images, views, self._machine.seed),  # type: ignore[arg-type]
            batch_size=size,
            **loader_processes(train.workers, fabric.device.type),
            collate_fn=_as_they_are,
            generator=torch.Generator(),  # else the pass would move the global random state
        )
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        chunks = self._machine.display.track(survive(loader), "features", len(loader))
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
            parts = self._store.maps(self._store.gather(some).to(fabric.device))
            with fabric.autocast():
                out = self._ctx.teach(_without_labels(parts))
            verdict = self._method.verdict(self._ctx, out, crop)
            if verdict is None:
                raise TypeError(f"method {self._method.name} gave a verdict before and none now")
            for view, row in zip(some, verdict, strict=True):
                self._store.write_verdict(view, row)

    def _guard(self) -> None:
        """Each image, and each exemplar, shows in all its views what it may; once a step, for rows stay.

        Raises:
            LeakError: One does not.
        """
        fabric, images = self._machine.fabric, self._images
        own = [Draw(k, False, ()) for k in range(len(images))]
        old = [Draw(k, True, ()) for k in range(len(images.exemplars))]
        for draw in [*own, *old][fabric.global_rank :: fabric.world_size]:
            image = images.image_id(draw)
            rows = self._store.gather([View(image, k) for k in range(self._counts[draw.from_memory])])
            for mask in self._store.masks(rows).cpu().numpy():
                images.label(draw, mask, None)

    def batches(self, draws: Iterable[Sequence[Draw]]) -> Generator[Loaded, None, None]:
        """The batches of these draws; in its turn t (`Draw.turn`) an image shows view t modulo their number.

        For a GPU a thread gathers rows ahead; what they hold is read where the training is.

        Raises:
            UserError: When a row was changed on the disk.
        """
        rows = self._gathered(draws)
        device = self._machine.fabric.device
        with closing(ahead(rows, AHEAD) if device.type in THREADED else rows) as gathered:
            for batch, block, tables in gathered:
                yield self._read(batch, *(t.to(device, non_blocking=True) for t in (block, tables)))

    def _gathered(
        self, draws: Iterable[Sequence[Draw]]
    ) -> Generator[tuple[Sequence[Draw], Tensor, Tensor], None, None]:
        """Draws, their rows, and their tables of labels B n."""
        for batch in draws:
            views = [
                View(self._images.image_id(draw), draw.turn % self._counts[draw.from_memory])
                for draw in batch
            ]
            found = self._store.gather(views), torch.stack([self._images.shown_table(d) for d in batch])
            if self._machine.fabric.device.type == "cuda":
                # one block: with gaps, as rows of a file without their checksums, it is not copied beside
                rows = found[0] if found[0].is_cuda else found[0].contiguous().pin_memory()
                found = rows, found[1].pin_memory()
            yield batch, *found

    def _read(self, draws: Sequence[Draw], block: Tensor, tables: Tensor) -> Loaded:
        rows = self._store.read(block)
        silent = torch.tensor([self._images.says_unknown(draw) for draw in draws])[:, None, None]
        labels = _looked_up(tables, rows.mask)
        aux = {} if rows.saliency is None else {"saliency": rows.saliency}
        if "everything" in self._images.aux:
            aux["everything"] = torch.ones_like(labels, dtype=torch.bool)
        if silent.any():
            aux = {name: value & ~silent.to(value.device) for name, value in aux.items()}
        batch = Batch(
            images=torch.empty(len(draws), 3, 0, 0, dtype=torch.uint8),
            labels=labels,
            from_memory=torch.tensor([draw.from_memory for draw in draws]),
            aux=aux,
            parts=rows.parts,
            verdict=rows.verdict,
        )
        return batch, [self._images.image_id(draw) for draw in draws]


def _looked_up(tables: Tensor, masks: Tensor) -> Tensor:
    """Labels B H W, int16: of each mask the values of its table B n."""
    if masks.is_cuda:
        return tables.gather(1, masks.flatten(1).long()).view_as(masks)
    pairs = zip(tables.numpy(), masks.numpy(), strict=True)  # a third of the time of torch's own there
    return torch.from_numpy(np.stack([table.take(mask) for table, mask in pairs]))


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

    Where method and options allow a cache it is said which of both it is, and why.
    """
    views = machine.train.feature_views
    if not views or not ctx.step or not ctx.shares_trunk or not method.needs_features_only:
        return None
    own, replayed = plan.turns(epochs)
    counts = (min(views, own), min(views, replayed))
    rows = len(_views(images, counts))
    if rows >= (shown := epochs * plan.iterations * plan.batch_size):
        machine.display.say(
            f"step {ctx.step}  keeps no features: {count(rows, 'view')} would be kept, and {shown} "
            f"{are(shown)} shown in {count(epochs, 'epoch')}; the trunk runs every iteration (exact mode)"
        )
        return None
    layout = _layout(ctx, method, images, machine)
    need = rows * layout.row
    each = f"{counts[0]} per image" + (f", {counts[1]} per exemplar" if counts[1] else "")
    what = f"step {ctx.step}  features of {count(rows, 'view')} ({each}), {need / GIB:.2g} GiB"
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
