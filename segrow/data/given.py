"""Images that somebody gives: whatever annotated folder it is, and chosen files of any data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

from ..errors import UserError
from .base import SegDataset, Split
from .listing import Unfit, list_files

EXPECTED = (
    "expected classes.txt with images/ and masks/, JPEGImages/ with SegmentationClass/, or a COCO .json file"
)
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
CLASS_FILES = ("classes.txt", "class_names.txt")


class Files(NamedTuple):
    """Of one image; the saliency map need not exist."""

    image: Path
    mask: Path
    saliency: Path


@final
class GivenDataset(SegDataset):
    """Chosen training images, wherever their files are.

    Args:
        root: What errors call the data set.
        class_names: Names by raw id, background first.
        ignore_id: 255 or 65535.
        files: By image id.
        known_values: Number of classes that the files of masks were made for, where classes were added.
    """

    name = "given"

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        ignore_id: int,
        files: Mapping[str, Files],
        known_values: int | None = None,
    ) -> None:
        self.root, self.class_names, self.ignore_id = root, class_names, ignore_id
        self.known_values = known_values
        self._files = dict(files)

    def ids(self, split: Split) -> tuple[str, ...]:
        """In the order they were given; there are no validation images."""
        return tuple(self._files) if split == "train" else ()

    def image_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].image

    def mask_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].mask

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """As given."""
        return self._files[image_id].saliency


@final
class PaletteDataset(SegDataset):
    """A folder of VOC's kind without lists, as annotation tools write it; all images that have a mask.

    JPEGImages/*                 anything PIL opens
    SegmentationClass/*.png      palette or grey, the same names
    classes.txt                  optional (class_names.txt too): line i names value i; else VOC's 20 classes
    saliency_map/*.png           optional

    Args:
        root: The folder.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: No mask, a mask without an image, or class names that cannot be read.
    """

    name = "palette"

    def __init__(self, root: Path, exclude: frozenset[str] = frozenset()) -> None:
        from .folder import read_classes
        from .voc import NAMES

        self.root = root
        named = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
        self.class_names, self.notes = read_classes(named) if named else (NAMES, ())
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{root} has JPEGImages but no folder {MASK_FOLDERS[0]} with masks; add it")
        self._images, self._masks = list_files(root / "JPEGImages", "image"), list_files(folder, "mask")
        self._maps = list_files(root / "saliency_map", "saliency map")
        self.excluded = tuple(f"train/{i}" for i in self._masks.files if f"train/{i}" in exclude)
        self._masks = self._masks.without("train", exclude)
        images, masks = self._images.files, self._masks.files
        if alone := sorted(masks.keys() - images.keys()):
            says = {f"train/{i}": f"mask {self._masks.path(i)} has no image" for i in alone}
            expected = root / "JPEGImages" / f"{alone[0]}.jpg"
            raise Unfit(f"{says[f'train/{alone[0]}']}, expected {expected}", says)
        if not masks:
            raise UserError(f"{folder} holds no mask (.png); expected one for every image to learn from")
        self.notes += (*self._images.notes(), *self._masks.notes(), *self._maps.notes())
        if unmasked := sorted(images.keys() - masks.keys()):
            self.notes += (
                f"{root}: {len(unmasked)} of {len(images)} images have no mask in {folder.name} and are left "
                f"out (first {images[unmasked[0]]})",
            )

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted file names without suffix; there are no validation images."""
        return tuple(self._masks.files) if split == "train" else ()

    def image_path(self, split: Split, image_id: str) -> Path:
        """JPEGImages/ID.*"""
        return self._images.path(image_id)

    def mask_path(self, split: Split, image_id: str) -> Path:
        """SegmentationClass/ID.*"""
        return self._masks.path(image_id)

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency_map/ID.png"""
        return self._maps.or_expected(image_id)


def open_given(root: Path, option: str, exclude: frozenset[str] = frozenset()) -> SegDataset:
    """Whatever annotated images are in `root`.

    Args:
        root: A folder of one's own (`data/folder.py`), a folder of VOC's kind, with lists or without, or a
            COCO file or the folder it is in.
        option: The option that named it, for errors.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: Nothing there that is known, or something that is broken.
    """
    root = root.expanduser()
    if not root.exists():
        raise UserError(f"{option} {root} is not there; {EXPECTED}")
    if root.is_dir() and (root / "classes.txt").is_file() and (root / "images").is_dir():
        from .folder import FolderDataset

        return FolderDataset(root, exclude=exclude)
    if (root / "JPEGImages").is_dir():
        from .voc import LISTS, MASKS, VocDataset

        listed = any((root / name / "val.txt").is_file() for name in LISTS)
        named = any((root / name).is_file() for name in CLASS_FILES)
        if listed and not named and (root / MASKS).is_dir():
            return VocDataset(root, exclude)
        return PaletteDataset(root, exclude)
    from .coco import CocoDataset, find_files

    if not find_files(root)[0]:
        raise UserError(f"{option} {root} holds no annotated images; {EXPECTED}")
    return CocoDataset(root, exclude=exclude)
