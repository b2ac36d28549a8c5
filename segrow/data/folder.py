"""A data set of one's own.

classes.txt                  line i (from 0) names mask value i; line 0 is background
images/{train,val}/*         anything PIL opens
masks/{train,val}/*.png      palette or grey, the same names; 16 bit for more than 254 classes
saliency/{train,val}/*.png   optional

Without train and val, images/*, masks/*.png and saliency/*.png are all training images.
"""

from pathlib import Path

from ..class_lists import plain_name
from ..documents import read_text
from ..errors import UserError
from .base import IMAGE_SUFFIXES, SegDataset, Split, list_stems, match_pairs


class FolderDataset(SegDataset):
    """The folder layout. `images/val` may be absent: then there are no validation images.

    Raises:
        UserError: A folder or `classes.txt` that is missing, names that are missing or doubled, an image
            without a mask or the reverse.
    """

    name = "folder"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(
                f"--data.root {self.root} is no folder; expected classes.txt, images and masks in it"
            )
        self.class_names = read_classes(self.root / "classes.txt")
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        self._images: dict[Split, dict[str, str]] = {"train": {}, "val": {}}
        self._masks: dict[Split, dict[str, str]] = {"train": {}, "val": {}}
        splits: tuple[Split, ...] = ("train", "val")
        self._flat = not any((self.root / "images" / split).is_dir() for split in splits)
        if self._flat:
            inside = self.root / "images"
            self._flat = inside.is_dir() and bool(list_stems(inside, IMAGE_SUFFIXES))
        for split in splits[:1] if self._flat else splits:
            images, masks = self._folder("images", split), self._folder("masks", split)
            if split == "val" and not images.exists() and not masks.exists():
                continue
            for folder in (images, masks):
                if not folder.is_dir():
                    raise UserError(
                        f"{folder} is no folder; images/{split} and masks/{split} are expected together"
                    )
            self._images[split], self._masks[split] = match_pairs(images, masks)
        if not self._images["train"]:
            raise UserError(f"{self.root / 'images' / 'train'} holds no image")

    def _folder(self, kind: str, split: str) -> Path:
        return self.root / kind if self._flat else self.root / kind / split

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted file names without suffix."""
        return tuple(self._images[split])

    def image_path(self, split: Split, image_id: str) -> Path:
        """images/SPLIT/ID.*"""
        return self._folder("images", split) / self._images[split][image_id]

    def mask_path(self, split: Split, image_id: str) -> Path:
        """masks/SPLIT/ID.png"""
        return self._folder("masks", split) / self._masks[split][image_id]

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency/SPLIT/ID.png"""
        return self._folder("saliency", split) / f"{image_id}.png"


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names of a `classes.txt`; whatever line 0 calls it, class 0 is "background".

    Raises:
        UserError: No such file, fewer than two or more than 65535 names, an empty line, a name twice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it names the classes, one a line, background first")
    lines = read_text(path, "class list").rstrip().splitlines()
    names = ("background", *map(plain_name, lines[1:]))
    if len(names) < 2 or len(names) > 65535:
        raise UserError(
            f"{path} has {len(lines)} lines; expected background and 1 to 65534 classes, one a line"
        )
    where: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path} has nothing in line {number}; line i (from 0) names mask value i")
        if name in where:
            raise UserError(
                f'{path} has "{name}" in lines {where[name]} and {number}; every class needs its own name'
            )
        where[name] = number
    return names
