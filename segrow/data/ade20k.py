"""ADE20K's scene parsing benchmark (SceneParse150), as ADEChallengeData2016.zip unpacks.

ADEChallengeData2016/images/{training,validation}/*.jpg
                     annotations/{training,validation}/*.png      value 0 = background, 1..150 = class
                     objectInfo150.txt                            names (optional)
                     saliency_map/{training,validation}/*.png     or saliency_map/*.png; optional
"""

from pathlib import Path

from ..documents import read_text
from ..errors import UserError
from .base import SegDataset, Split, find_root
from .pairs import Pairs, match_pairs

# The first synonym of each class, in the order of the mask values 1 to 150.
NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base,
box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator,
grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge,
bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen
island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor,
bulletin board, shower, radiator, glass, clock, flag
"""
FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}
SALIENCY = "saliency_map"


class Ade20kDataset(SegDataset):
    """ADE20K: 150 classes and background (what none of them covers). Its masks have no ignored pixels.

    Args:
        root: ADEChallengeData2016 or a folder above it.
        exclude: Images that are left out, each as SPLIT/ID.

    Raises:
        UserError: A folder that is missing, an image without a mask or the reverse.
    """

    name = "ade20k"

    def __init__(self, root: str | Path, exclude: frozenset[str] = frozenset()) -> None:
        self.root = find_root(Path(root), "ADEChallengeData2016", ("images", "annotations"))
        self.class_names = ("background", *_names(self.root / "objectInfo150.txt"))
        self.ignore_id = 255
        self._pairs: dict[Split, Pairs] = {}
        for split, folder in FOLDERS.items():
            images, masks = self.root / "images" / folder, self.root / "annotations" / folder
            for needed in (images, masks):
                if not needed.is_dir():
                    raise UserError(
                        f"{needed} is not a folder; ADE20K has images and annotations of {folder}"
                    )
            maps = self.root / SALIENCY / folder
            pairs = match_pairs(split, images, masks, maps if maps.is_dir() else maps.parent, exclude)
            self.excluded += pairs.excluded
            if not pairs.ids:
                raise UserError(f"{images} holds no image")
            self._pairs[split] = pairs
            self.notes = tuple(dict.fromkeys((*self.notes, *pairs.notes())))

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted file names without suffix."""
        return self._pairs[split].ids

    def image_path(self, split: Split, image_id: str) -> Path:
        """images/{training,validation}/ID.*"""
        return self._pairs[split].images.path(image_id)

    def mask_path(self, split: Split, image_id: str) -> Path:
        """annotations/{training,validation}/ID.*"""
        return self._pairs[split].masks.path(image_id)

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency_map/{training,validation}/ID.png, or saliency_map/ID.png without such folders."""
        return self._pairs[split].maps.or_expected(image_id)


def default_names() -> tuple[str, ...]:
    """Names of the 150 classes without the data set at hand."""
    return tuple(" ".join(name.split()) for name in NAMES.split(","))


def _names(info: Path) -> tuple[str, ...]:
    """The first synonym of every class, from objectInfo150.txt (tab-separated, name last) if there."""
    if not info.is_file():
        return default_names()
    rows = [line.split("\t") for line in read_text(info, "class list").splitlines()[1:] if line.strip()]
    numbers = [row[0].strip() for row in rows]
    if numbers != [str(number) for number in range(1, 151)]:
        raise UserError(f"{info} does not number its classes from 1 to 150; restore it or remove it")
    names: list[str] = []
    for row in rows:
        # a first synonym that an earlier class has already gives way to the next one
        synonyms = [name.strip() for name in row[-1].split(",")]
        names.append(
            next((name for name in synonyms if name not in names), f"{synonyms[0]} {row[0].strip()}")
        )
    return tuple(names)
