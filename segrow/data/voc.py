"""PASCAL VOC 2012 with the augmented masks, in the layout that SSUL expects.

VOC2012/JPEGImages/*.jpg
        SegmentationClassAug/*.png           palette PNG, value = VOC id, 255 = ignore
        ImageSets/Segmentation/{train_aug,val}.txt
        saliency_map/*.png                   for SSUL
"""

from pathlib import Path

from ..errors import UserError
from ..wording import are, count
from .base import SegDataset, Split, find_root
from .colours import voc_colours
from .listing import list_files, refuse_twins
from .lists import LISTS, read_list
from .pairs import by_name

NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
IMAGES, MASKS, OWN_MASKS, SALIENCY = "JPEGImages", "SegmentationClassAug", "SegmentationClass", "saliency_map"
TRAIN_LISTS = ("train_aug.txt", "trainaug.txt")
OWN_TRAIN_LISTS = ("train.txt",)


class VocDataset(SegDataset):
    """VOC 2012: 20 classes.

    Training ids are those of train_aug.txt or trainaug.txt; without either, every mask that is not in
    val.txt. Without SegmentationClassAug they are VOC's own, of SegmentationClass and train.txt, with a note.

    Args:
        root: VOC2012 or a folder above it, such as VOCdevkit.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        Unfit: Several files of one image.
        UserError: A folder or list that is missing.
    """

    name = "voc"

    def __init__(self, root: str | Path, exclude: frozenset[str] = frozenset()) -> None:
        self.root = find_root(Path(root), "VOC2012", (IMAGES,))
        own = not (self.root / MASKS).is_dir() and (self.root / OWN_MASKS).is_dir()
        if not own and not (self.root / MASKS).is_dir():
            raise UserError(
                f"{self.root} has no folder {MASKS}; --data.root should be VOC2012 with {IMAGES}, {MASKS} "
                "in it"
            )
        self.class_names = NAMES
        self.ignore_id = 255
        folder = next((self.root / name for name in LISTS if (self.root / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{self.root} has no folder {LISTS[0]}, which holds val.txt and train_aug.txt")
        self._images, self._masks = (
            list_files(self.root / IMAGES, "image"),
            list_files(self.root / (OWN_MASKS if own else MASKS), "mask"),
        )
        self._maps, by_names = by_name(self._images, list_files(self.root / SALIENCY, "saliency map"))
        self.notes += by_names
        there = self._masks.files.keys() | self._images.files.keys()
        val, said = read_list(folder / "val.txt", there)
        names = OWN_TRAIN_LISTS if own else TRAIN_LISTS
        train_list = next((folder / name for name in names if (folder / name).is_file()), None)
        if train_list:
            listed_for_train, more = read_list(train_list, there)
            train, said = tuple(listed_for_train), (*more, *said)
        else:
            held_out = set(val)
            train = tuple(i for i in self._masks.files if i not in held_out)
            if not train:
                raise UserError(
                    f"{self._masks.folder} holds no training mask (none that is not in {folder / 'val.txt'})"
                )
        listed: dict[Split, tuple[str, ...]] = {"train": train, "val": tuple(val)}
        self._ids = {
            split: tuple(i for i in ids if f"{split}/{i}" not in exclude) for split, ids in listed.items()
        }
        for split, used in self._ids.items():
            refuse_twins(split, used, (self._images, self._masks, self._maps))
        self.excluded = tuple(
            f"{split}/{i}" for split, ids in listed.items() for i in ids if f"{split}/{i}" in exclude
        )
        self.colours = voc_colours(NAMES)
        self.notes += (*said, *self._images.notes(), *self._masks.notes(), *self._maps.notes())
        every = {*train, *val}
        if left := [i for i in self._masks.files if i not in every]:
            lists = f"neither {train_list and train_list.name} nor val.txt"
            some = f"{count(len(left), 'mask')} {are(len(left))} in {lists}"
            self.notes += (f"{folder}: {some} and left out (first {left[0]})",)
        if own:
            self.notes += (
                f"{self.root} has no {MASKS}: trained are the {len(train)} masks of {OWN_MASKS} "
                f"({train_list.name if train_list else 'all but val.txt'}); published results have 10,582",
            )

    def ids(self, split: Split) -> tuple[str, ...]:
        """Ids in the order of the list."""
        return self._ids[split]

    def image_path(self, split: Split, image_id: str) -> Path:
        """JPEGImages/ID.jpg"""
        return self._images.or_expected(image_id)

    def mask_path(self, split: Split, image_id: str) -> Path:
        """SegmentationClassAug/ID.png"""
        return self._masks.or_expected(image_id)

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency_map/ID.png"""
        return self._maps.or_expected(image_id)
