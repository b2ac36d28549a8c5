"""How the SSUL reference loop loads images, re-stated: the yardstick of the loading figures.

Every image, label and saliency map is opened and resized *whole* through PIL, then padded, cropped and
flipped; the worker makes a normalised float32 image and int64 labels (METHODS 2, Augmentation and Reference
code). Nothing of segrow's loader is used, only its paths and lookup tables.

    images = ReferenceImages(data, step.images, scenario.train_table(1), crop=193, seed=1)
    image, labels = images[0]
"""

import random
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from segrow.data.base import SegDataset
from segrow.scenario import IGNORE, UNKNOWN

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
SCALE = (0.5, 2.0)
FLIP = 0.5
IGNORED = 255  # in an 8-bit label image
WORKERS = 4


class ReferenceImages(Dataset[tuple[Tensor, Tensor]]):
    """Training views as the reference code makes them.

    Args:
        data: Gives the paths of the "train" split.
        image_ids: Images of the step.
        table: Raw id -> class index, -1 = ignored; at most 255 classes.
        crop: Side of the crop in pixels.
        seed: Of scale, crop and flip; every worker draws a sequence of its own.
        saliency: Whether background that is salient becomes unknown; else all background does (ADE20K).
        scale: Range of the random resize.
        flip: Probability of a flip.
        normalisation: Mean and standard deviation of the three colours.
    """

    def __init__(
        self,
        data: SegDataset,
        image_ids: Sequence[str],
        table: NDArray[np.int16],
        crop: int,
        seed: int,
        saliency: bool = True,
        scale: tuple[float, float] = SCALE,
        flip: float = FLIP,
        normalisation: Normalisation = (MEAN, STD),
    ) -> None:
        self.scale, self.flip, self.normalisation = scale, flip, normalisation
        self.data, self.image_ids, self.crop, self.seed = data, tuple(image_ids), crop, seed
        self.table = byte_table(table)
        self.saliency = saliency
        self._random: random.Random | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """float32 3 H W, normalised; int64 H W: class index, -1 = ignored, -2 = unknown."""
        draw = self._draw()
        image_id = self.image_ids[index]
        image = Image.open(self.data.image_path("train", image_id)).convert("RGB")
        label = Image.fromarray(self.table[np.array(Image.open(self.data.mask_path("train", image_id)))])
        parts = [image, label]
        if self.saliency:
            parts.append(Image.open(self.data.saliency_path("train", image_id)).convert("L"))
        parts = self._crop(self._scale(parts, draw), draw)
        if draw.random() < self.flip:
            parts = [F.hflip(part) for part in parts]
        labels = as_labels(parts[1])
        if self.saliency:
            salient = torch.from_numpy(np.array(parts[2])) > 0
            labels = torch.where((labels == 0) & salient, UNKNOWN, labels)
        else:
            labels = torch.where(labels == 0, UNKNOWN, labels)
        return as_input(parts[0], self.normalisation), labels

    def _draw(self) -> random.Random:
        if self._random is None:
            worker = get_worker_info()
            self._random = random.Random(f"{self.seed}/{worker.seed if worker else 0}")
        return self._random

    def _scale(self, parts: list[Image.Image], draw: random.Random) -> list[Image.Image]:
        """Image bilinear, label and saliency nearest, each of them whole."""
        factor = draw.uniform(*self.scale)
        size = [max(1, int(side * factor)) for side in (parts[0].height, parts[0].width)]
        return [
            F.resize(part, size, InterpolationMode.NEAREST if k else InterpolationMode.BILINEAR)
            for k, part in enumerate(parts)
        ]

    def _crop(self, parts: list[Image.Image], draw: random.Random) -> list[Image.Image]:
        """All four sides padded by half of what the width, then the height lacks; black, label 0."""
        for axis in (0, 1):
            lack = self.crop - parts[0].size[axis]
            if lack > 0:
                parts = [F.pad(part, (1 + lack) // 2) for part in parts]
        width, height = parts[0].size
        top, left = draw.randint(0, height - self.crop), draw.randint(0, width - self.crop)
        return [F.crop(part, top, left, self.crop, self.crop) for part in parts]


class ReferenceValidation(Dataset[tuple[Tensor, Tensor]]):
    """Validation views of the reference code with `--crop_val`: short side resized, then the centre.

    Args:
        data: Gives the paths of the "val" split.
        image_ids: Images to evaluate.
        table: Raw id -> class index, -1 = ignored; at most 255 classes.
        crop: Side of the crop in pixels.
    """

    def __init__(
        self, data: SegDataset, image_ids: Sequence[str], table: NDArray[np.int16], crop: int
    ) -> None:
        self.data, self.image_ids, self.crop = data, tuple(image_ids), crop
        self.table = byte_table(table)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """float32 3 H W, normalised; int64 H W: class index, -1 = ignored."""
        image_id = self.image_ids[index]
        image = Image.open(self.data.image_path("val", image_id)).convert("RGB")
        label = Image.fromarray(self.table[np.array(Image.open(self.data.mask_path("val", image_id)))])
        views = [
            F.center_crop(F.resize(image, [self.crop], InterpolationMode.BILINEAR), [self.crop]),
            F.center_crop(F.resize(label, [self.crop], InterpolationMode.NEAREST), [self.crop]),
        ]
        return as_input(views[0]), as_labels(views[1])


def reference_loader(
    images: Dataset[tuple[Tensor, Tensor]], batch_size: int, train: bool, workers: int = WORKERS
) -> DataLoader[tuple[Tensor, Tensor]]:
    """torch's loader: shuffled and without the last partial batch in training, in order otherwise."""
    # the reference starts more workers than a small machine has cores, and torch warns of it at every epoch
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    return DataLoader(images, batch_size=batch_size, shuffle=train, drop_last=train, num_workers=workers)


def byte_table(table: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The lookup table as bytes, since PIL resizes 8-bit label images; ignored = 255.

    Raises:
        ValueError: A class index that does not fit.
    """
    if table.max() >= IGNORED:
        raise ValueError(f"class index {table.max()} does not fit into a label image of bytes")
    return np.where(table == IGNORE, IGNORED, table).astype(np.uint8)


def as_input(image: Image.Image, normalisation: Normalisation = (MEAN, STD)) -> Tensor:
    """float32 3 H W, normalised, made in the worker."""
    mean, std = normalisation
    normalised: Tensor = F.normalize(F.to_tensor(image), list(mean), list(std))
    return normalised


def as_labels(label: Image.Image) -> Tensor:
    """int64 H W, -1 = ignored."""
    labels = torch.from_numpy(np.array(label, dtype=np.int64))
    return torch.where(labels == IGNORED, IGNORE, labels)
