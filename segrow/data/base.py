"""What a data set is: ids, three paths an id, names of the classes. Reading and indexing are shared."""

import abc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..wording import have
from .colours import ColourTable
from .files import open_image, read_image, read_saliency, upright_size
from .index import Presence, check_readings, index
from .listing import refuse_backslashes
from .masks import Values, read_mask
from .palettes import Palettes, check_palettes
from .taken import Readings

__all__ = ["Presence", "SegDataset", "Split", "find_root"]

Split = Literal["train", "val"]


class SegDataset(abc.ABC):
    """Images with a mask each, in two splits.

    Attributes:
        name: Name of the data set, as `--data.name` takes it.
        root: Its folder.
        class_names: Names by raw id; the first is background.
        ignore_id: Raw value of pixels that count nowhere: 255, or 65535 where masks are 16 bit.
        known_values: Number of classes that the mask files were made for, where classes were added to theirs.
        colours: Which colours of RGB masks stand for which values, where that is stated.
        ignored: Raw ids of classes whose pixels count nowhere; no mask that is read shows them.
        drawn: Whether masks are drawn from outlines.
        notes: What was left out, or decided where the files do not say it, a sentence each. `presence` adds
            those on the masks and images that it reads. Who opens a data set shows them.
        excluded: Images that were there and are left out because somebody asked for it, each as SPLIT/ID.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    ignore_id: int
    known_values: int | None = None
    colours: ColourTable | None = None
    ignored: tuple[int, ...] = ()
    drawn: bool = False
    notes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    _readings: Mapping[str, Readings] = MappingProxyType({})  # of the splits that `presence` has read
    _palettes: Mapping[str, Palettes] = MappingProxyType({})

    @abc.abstractmethod
    def ids(self, split: Split) -> tuple[str, ...]:
        """Image ids of a split, in a fixed order."""

    @abc.abstractmethod
    def image_path(self, split: Split, image_id: str) -> Path:
        """File of the image."""

    @abc.abstractmethod
    def mask_path(self, split: Split, image_id: str) -> Path:
        """File of the mask."""

    @abc.abstractmethod
    def saliency_path(self, split: Split, image_id: str) -> Path:
        """File of the saliency map, which need not exist."""

    @final
    def image_paths(self, split: Split, ids: Iterable[str]) -> dict[str, Path]:
        """Files of some images by id."""
        return {image_id: self.image_path(split, image_id) for image_id in ids}

    @final
    def image(self, split: Split, image_id: str) -> NDArray[np.uint8]:
        """The image: uint8 H x W x 3, RGB, upright.

        Raises:
            UserError: A file that is missing or cannot be decoded.
        """
        return read_image(self.image_path(split, image_id))

    @final
    def picture(self, split: Split, image_id: str) -> Image.Image:
        """The same for those who resize it with PIL: an RGB image, upright, decoded.

        Raises:
            UserError: A file that is missing or cannot be decoded.
        """
        return open_image(self.image_path(split, image_id))

    @final
    def mask(self, split: Split, image_id: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The mask: raw ids, H x W, uint8 (uint16 where the ignore id is 65535).

        Raises:
            UserError: A file that is missing, cannot be decoded or is no mask.
        """
        return read_mask(self.mask_path(split, image_id), self.values())

    @final
    def values(self) -> Values:
        """Legal values of its masks."""
        known = self.known_values or len(self.class_names)
        return Values(known, self.ignore_id, self.colours, self.ignored, self.drawn)

    @final
    def saliency(self, split: Split, image_id: str, size: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
        """The saliency map: uint8 H x W, 1 = salient.

        Args:
            size: Height and width of the mask, where they are known; else its file says them.

        Raises:
            UserError: A file that is missing, cannot be decoded or has another size than the mask.
        """
        path = self.saliency_path(split, image_id)
        saliency = read_saliency(path)
        size = size or upright_size(self.mask_path(split, image_id), "mask")
        if saliency.shape != size:
            raise UserError(
                f"saliency map {path} is {saliency.shape[1]}x{saliency.shape[0]} pixels (width x height), "
                f"the image and its mask {size[1]}x{size[0]}; they must be equal"
            )
        return saliency

    @final
    def require_saliency(self) -> None:
        """Checks that every training image has a saliency map.

        Raises:
            UserError: The first that is missing, and what the choices are.
        """
        ids = self.ids("train")
        files = [str(self.saliency_path("train", image_id)) for image_id in ids]
        there: set[str] = set()
        for folder in {os.path.dirname(file) for file in files}:
            if os.path.isdir(folder):
                there |= {entry.path for entry in os.scandir(folder)}
        missing = [file for file in files if file not in there]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(files)} training images {have(len(missing))} no saliency map, "
                f"first {missing[0]}; add the maps (PNG, not 0 = salient), or do without them: "
                "--method.unknown background (all background counts as unknown) or --method.unknown none"
            )

    @final
    def presence(self, split: Split, progress: bool = True) -> Presence:
        """Which classes each image of a split shows; checks every image and mask while it reads them.

        Args:
            split: train or val.
            progress: Show a bar on stderr while masks are read.

        Raises:
            UserError: The first file that is missing, cannot be decoded, has values that are not a class, or
                an image and a mask of different size.
        """
        ids = self.ids(split)
        pairs = [(str(self.image_path(split, i)), str(self.mask_path(split, i))) for i in ids]
        found = index(self.name, self.root, split, ids, pairs, self.values(), progress)
        self.notes = tuple(dict.fromkeys((*self.notes, *found.notes)))
        self._readings = {**self._readings, split: found.readings}
        self._palettes = {**self._palettes, split: found.palettes}
        check_readings(self.root, self._readings.values())
        check_palettes(self.root, self._palettes.values())
        return found


def find_root(root: Path, name: str, needed: tuple[str, ...]) -> Path:
    """The folder of a data set: `root` itself, or the nearest one called `name`, at most three levels below.

    Args:
        root: What the user gave.
        name: Name of the folder as the data set is distributed.
        needed: Folders it must hold.

    Raises:
        UserError: Nothing there, more than one there, or a needed folder missing.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"--data.root {root} is not a folder; expected {name} with {', '.join(needed)} in it")
    refuse_backslashes(root)
    found = root
    if root.name != name and not any((root / folder).is_dir() for folder in needed):
        levels = (sorted(root.glob(pattern)) for pattern in (name, f"*/{name}", f"*/*/{name}"))
        below = next((level for level in levels if level), [])
        if len(below) > 1:
            raise UserError(
                f"--data.root {root} holds {name} {len(below)} times; choose one, such as {below[0]}"
            )
        found = below[0] if below else root
    for folder in needed:
        if not (found / folder).is_dir():
            raise UserError(
                f"{found} has no folder {folder}; --data.root should be {name} with {', '.join(needed)} in it"
            )
    return found
