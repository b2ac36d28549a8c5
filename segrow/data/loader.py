"""From image ids to batches: what each draw shows, decided by seed alone, and read by worker processes.

Every random number of a batch derives from (seed, step, epoch, iteration, position), so a resumed run, and
one with other workers or more devices, draws the same global batches. Where views are kept (engine.features)
the view is that of (seed, image, turn) instead.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..batch import Batch
from ..errors import LeakError, UserError
from ..memory import Exemplar, exemplar_table, unshift
from ..scenario import Scenario
from .augment import Augmentation, centre_view, cut_image, cut_map, whole_view
from .base import SegDataset, Split
from .workers import shared, survive


@dataclass(frozen=True)
class Draw:
    """One position of a batch: an image of the step, or an exemplar, and the seed of its view.

    Attributes:
        turn: How often this image, or exemplar, was drawn before in the step.
    """

    index: int
    from_memory: bool
    seed: tuple[int, ...]
    turn: int = 0


@dataclass(frozen=True)
class EpochPlan:
    """The global batches of a step.

    With a memory, floor(B/2) random positions of every batch are exemplars. The step's own images fill the
    other positions in turn from one endless sequence of permutations, so none is lost (in the reference code
    the replaced images are lost for that epoch) and an epoch has as many updates with memory as without.
    """

    n_images: int
    n_exemplars: int
    batch_size: int
    seed: int
    step: int

    @property
    def iterations(self) -> int:
        """Updates of an epoch; the rest of the images comes in another epoch (drop_last)."""
        return self.n_images // self.batch_size

    @property
    def replayed(self) -> int:
        """Positions of a batch that are exemplars."""
        return self.batch_size // 2 if self.n_exemplars else 0

    def turns(self, epochs: int) -> tuple[int, int]:
        """How often an image of the step, and an exemplar, is drawn at most in so many epochs."""
        updates = epochs * self.iterations
        if not self.n_exemplars:
            return epochs, 0
        own = self.batch_size - self.replayed
        return -(-updates * own // self.n_images), -(-updates * self.replayed // self.n_exemplars)

    def batches(self, epoch: int) -> Iterator[list[Draw]]:
        """The batches of one epoch."""
        replayed = self.replayed
        own = self.batch_size - replayed
        for iteration in range(self.iterations):
            key = (self.seed, self.step, epoch, iteration)
            if replayed:
                first = (epoch * self.iterations + iteration) * own
                images = [self._image(first + k, self.n_images, 1) for k in range(own)]
                start = (epoch * self.iterations + iteration) * replayed
                exemplars = [self._image(start + k, self.n_exemplars, 2) for k in range(replayed)]
                order = np.random.default_rng([*key, self.batch_size]).permutation(self.batch_size)
                mixed = [(*i, False) for i in images] + [(*i, True) for i in exemplars]
                drawn = [mixed[k] for k in order]
            else:
                base = epoch * self.n_images + iteration * self.batch_size
                drawn = [(*self._image(base + k, self.n_images, 1), False) for k in range(self.batch_size)]
            yield [Draw(i, m, (*key, position), turn) for position, (i, turn, m) in enumerate(drawn)]

    def _image(self, position: int, length: int, stream: int) -> tuple[int, int]:
        """Element of the endless sequence of permutations of range(length), and how often it came before."""
        turn, offset = divmod(position, length)
        return int(self._permutation(turn, length, stream)[offset]), turn

    def _permutation(self, turn: int, length: int, stream: int) -> np.ndarray:
        key = (self.seed, self.step, turn, length, stream)
        if key not in _PERMUTATIONS:
            if len(_PERMUTATIONS) > 8:
                _PERMUTATIONS.clear()
            _PERMUTATIONS[key] = np.random.default_rng(key).permutation(length)
        return _PERMUTATIONS[key]


_PERMUTATIONS: dict[tuple[int, ...], np.ndarray] = {}


class ShardedBatches:
    """Batch sampler of one process: its share of every global batch of some epochs, one behind the other.

    So loader processes go on to the next epoch while the last batches of this one are trained.
    """

    def __init__(self, plan: EpochPlan, epochs: range, rank: int, world: int) -> None:
        self.plan = plan
        self.epochs = epochs
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return len(self.epochs) * self.plan.iterations

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in self.epochs:
            for batch in self.plan.batches(epoch):
                yield batch[self.rank :: self.world]


@dataclass(frozen=True)
class Item:
    """One image as a worker hands it on: uint8 3 H W, int16 H W labels, extra maps."""

    image: Tensor
    labels: Tensor
    from_memory: bool
    aux: dict[str, Tensor]
    image_id: str


def guard(labels: np.ndarray, visible: frozenset[int], image_id: str, step: int) -> None:
    """The leak guard: what is in the labels is within what may be seen.

    Args:
        labels: int16 H W class indices.
        visible: Class indices that may be seen; background and IGNORE always may.

    Raises:
        LeakError: Naming the image and the classes.
    """
    permitted = visible | {0, -1}
    # deleting the permitted bytes is many times faster than np.unique; labels start at UNKNOWN = -2
    narrow = labels.size and labels.min() >= -2 and labels.max() < 254
    if narrow and not (labels + 2).astype(np.uint8).tobytes().translate(
        None, bytes(c + 2 for c in permitted if c < 254)
    ):
        return
    leaked = set(np.unique(labels).tolist()) - permitted
    if leaked:
        raise LeakError(
            f"image {image_id} shows classes {sorted(leaked)} at step {step}, "
            f"which may see {sorted(visible)} only"
        )


class StepImages(Dataset[Item | UserError | LeakError]):
    """Training views of a step's images and of the exemplars."""

    def __init__(
        self,
        data: SegDataset,
        scenario: Scenario,
        step: int,
        sees: str,
        exemplars: Sequence[Exemplar],
        *,
        exemplar_labels: str,
        unshifted: bool,
        aux: Sequence[str],
        augmentation: Augmentation,
        void: str,
    ) -> None:
        self.data = data
        self.step = step
        self.images = scenario.images(step, "seen" if sees == "seen" else "new")
        self.table = scenario.train_table(step, "seen" if sees == "seen" else "new")
        seen = range(1, scenario.known(step))
        self.visible = frozenset(seen if sees == "seen" else scenario.steps[step].indices)
        self.exemplars = tuple(exemplars)
        self.exemplar_tables = [exemplar_table(scenario, e, step, exemplar_labels) for e in exemplars]
        self.exemplar_visible = [
            frozenset(e.classes if exemplar_labels == "known" else seen) for e in exemplars
        ]
        self.unshifted = unshifted
        self.aux = tuple(aux)
        self.augmentation = augmentation
        self.void = void
        # raw id of padding: 0 is background in every data set
        self.pad_id = data.ignore_id if augmentation.padding == "ignore" else 0

    def plain(self, rank: int, world: int) -> "EvalImages":
        """One process' share of the step's own images: centre views, nothing random, guarded labels."""
        table = self.table.copy()
        if self.void == "background":
            table[self.data.ignore_id] = 0  # a centre view has no padding, which would have this id too
        share, crop = self.images[rank::world], self.augmentation.crop
        return EvalImages(self.data, "train", share, table, crop, (self.visible, self.step))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Item | UserError | LeakError:
        try:
            return self._item(draw)
        except (UserError, LeakError) as error:  # torch would bury its line in a worker's traceback
            return error

    def _item(self, draw: Draw) -> Item:
        image_id = self.image_id(draw)
        raw = self.raw(image_id, np.random.default_rng(draw.seed))
        labels, aux = self.label(draw, raw.mask, raw.saliency)
        return Item(raw.image, labels, draw.from_memory, aux, image_id)

    def image_id(self, draw: Draw) -> str:
        """Of the image that a draw shows."""
        return self.exemplars[draw.index].image if draw.from_memory else self.images[draw.index]

    def raw(self, image_id: str, rng: np.random.Generator) -> "RawView":
        """A random view of a training image, before any table of labels.

        Raises:
            UserError: When a file cannot be read, or image and mask differ in size.
        """
        image = self.data.picture("train", image_id)
        mask = self.data.mask("train", image_id)
        size = image.height, image.width
        if size != mask.shape:
            raise UserError(f"image {image_id} is {size}, its mask {mask.shape}; they must be equal")
        view = self.augmentation.view(mask.shape, rng)
        if self.void == "background":
            mask = np.where(mask == self.data.ignore_id, mask.dtype.type(0), mask)
        saliency = None
        if "saliency" in self.aux:
            salient = self.data.saliency("train", image_id, mask.shape)
            saliency = cut_map(salient, view, 0).view(np.bool_)
        pixels = torch.from_numpy(cut_image(image, view, self.augmentation.colour)).permute(2, 0, 1)
        return RawView(pixels, cut_map(mask, view, self.pad_id), saliency)

    def label(
        self, draw: Draw, mask: np.ndarray, saliency: np.ndarray | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a view shows in this step: int16 H W labels and the extra maps.

        Args:
            mask: H W raw ids.
            saliency: bool H W; None when the method asks for none.

        Raises:
            LeakError: When the labels show what the step, or the exemplar, may not see.
        """
        table, visible = self._table(draw)
        labels = table.take(mask, mode="clip")
        guard(labels, visible, self.image_id(draw), self.step)
        aux = {}
        if saliency is not None:
            aux["saliency"] = torch.from_numpy(saliency)
        if "everything" in self.aux:
            aux["everything"] = torch.ones(labels.shape, dtype=torch.bool)
        if self.says_unknown(draw):
            labels = unshift(labels)
            # class 1, now 0, stays background
            aux = {name: torch.zeros_like(value) for name, value in aux.items()}
        return torch.from_numpy(labels), aux

    def _table(self, draw: Draw) -> tuple[np.ndarray, frozenset[int]]:
        """What makes labels of raw ids in a draw, and which class indices they may show."""
        if draw.from_memory:
            return self.exemplar_tables[draw.index], self.exemplar_visible[draw.index]
        return self.table, self.visible

    def says_unknown(self, draw: Draw) -> bool:
        """Whether the labels of a draw say already what is unknown, so that no extra map does."""
        return draw.from_memory and self.unshifted

    def shown_table(self, draw: Draw) -> Tensor:
        """Raw id -> label of a draw, int16; `label` with it, without the leak guard."""
        table, _ = self._table(draw)
        return torch.from_numpy(unshift(table) if self.says_unknown(draw) else table)


@dataclass(frozen=True)
class RawView:
    """One view of one image before any table of labels: what no step changes.

    Attributes:
        image: uint8 3 H W.
        mask: H W raw ids.
        saliency: bool H W, or None.
    """

    image: Tensor
    mask: np.ndarray
    saliency: np.ndarray | None


class EvalImages(Dataset[Item | UserError | LeakError]):
    """Whole or centre-cropped images with the labels of a lookup table.

    Args:
        guarded: Which class indices the labels may show, and in which step; None = all (evaluation).
        pixels: Else only the masks are read, and images are empty: 3 x 0 x 0.
    """

    def __init__(
        self,
        data: SegDataset,
        split: Split,
        images: Sequence[str],
        table: np.ndarray,
        crop: int | None,
        guarded: tuple[frozenset[int], int] | None = None,
        pixels: bool = True,
    ) -> None:
        self.data = data
        self.split: Split = split
        self.images = tuple(images)
        self.table = table
        self.crop = crop
        self.guarded = guarded
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item | UserError | LeakError:
        try:
            return self._item(self.images[index])
        except (UserError, LeakError) as error:
            return error

    def _item(self, image_id: str) -> Item:
        mask = self.data.mask(self.split, image_id)
        view = centre_view(mask.shape, self.crop) if self.crop else whole_view(mask.shape)
        labels = self.table.take(cut_map(mask, view, self.data.ignore_id), mode="clip")
        if self.guarded:
            visible, step = self.guarded
            guard(labels, visible, image_id, step)
        pixels = torch.empty(3, 0, 0, dtype=torch.uint8)
        if self.pixels:
            image = self.data.picture(self.split, image_id)
            pixels = torch.from_numpy(cut_image(image, view, (0, 0, 0))).permute(2, 0, 1)
        return Item(pixels, torch.from_numpy(labels), False, {}, image_id)


Loaded = tuple[Batch, list[str]]


def collate(items: Sequence[Item | UserError | LeakError]) -> Loaded | UserError | LeakError:
    """Stack items; the first error of a batch goes through as it is."""
    good: list[Item] = []
    for item in items:
        if not isinstance(item, Item):
            return item
        good.append(item)
    # default_collate stacks straight into memory that a worker shares with the main process; images are
    # stacked as PIL has them, colours last, which is the layout `channels_last` asks for
    batch = Batch(
        images=default_collate([i.image.permute(1, 2, 0) for i in good]).permute(0, 3, 1, 2),
        labels=default_collate([i.labels for i in good]),
        from_memory=shared(torch.tensor([i.from_memory for i in good])),
        aux={name: default_collate([i.aux[name] for i in good]) for name in good[0].aux},
    )
    return batch, [i.image_id for i in good]


def iterate(loader: DataLoader[Loaded | UserError | LeakError]) -> Generator[Loaded, None, None]:
    """The batches of a loader.

    Raises:
        UserError: An image or mask that cannot be read, or a loader process that was killed.
        LeakError: Labels that may not be seen.
    """
    for loaded in survive(loader):
        if isinstance(loaded, Exception):
            raise loaded
        yield loaded


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """Move a batch; labels become int64 there."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    moved = batch.each(lambda tensor: tensor.to(device, non_blocking=True))
    images = moved.images.contiguous(memory_format=layout)
    return replace(moved, images=images, labels=moved.labels.long())
