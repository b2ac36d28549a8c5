"""Annotations of COCO's kind (polygons and RLE) as masks; needs the extra [coco].

instances.json               {"images": [...], "annotations": [...], "categories": [...]}
the images                   as `file_name` says, beside the file, in images/ there, or in the folder above

Mask values are 1, 2, … in the order of the category ids; the categories' names are the classes. Where objects
overlap the smaller one is on top. Masks are drawn once and kept in the user's cache.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from ..atomic import appear, new_folder
from ..errors import UserError
from ..terminal import Terminal
from .base import SegDataset, Split
from .files import upright_size
from .index import cache_folder

_NEEDED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "categories": {"id": int, "name": str},
    "annotations": {},
}
_SUBFOLDERS = ("", "images", "train", "../images", "..", "../train")


@final
class CocoDataset(SegDataset):
    """The images of one COCO file; all are training images.

    Args:
        path: The file.

    Raises:
        UserError: A file that is no such thing, an image that is missing, an object without outline, or
            pycocotools not installed.
    """

    name = "coco"

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path.parent
        content = _read(path)
        categories = sorted(content["categories"], key=lambda c: int(c["id"]))
        self.class_names = ("background", *(str(c["name"]) for c in categories))
        twice = [name for name, n in Counter(self.class_names).items() if n > 1]
        if twice:
            raise UserError(f'{path} has two categories "{twice[0]}"; every class needs its own name')
        self.ignore_id = 255 if len(self.class_names) <= 255 else 65535
        self._values = {int(c["id"]): k for k, c in enumerate(categories, start=1)}
        self._images = _find_images(path, content["images"])
        by_image: dict[int, list[Mapping[str, Any]]] = {int(i["id"]): [] for i in content["images"]}
        for annotation in content["annotations"]:
            self._check(annotation, by_image)
            by_image[int(annotation["image_id"])].append(annotation)
        key = hashlib.sha256(f"{path.resolve()}\n".encode() + path.read_bytes()).hexdigest()[:16]
        self._folder = cache_folder() / "coco" / key
        self._draw(content["images"], by_image)

    def ids(self, split: Split) -> tuple[str, ...]:
        """Sorted names of the image files without suffix; there are no validation images."""
        return tuple(self._images) if split == "train" else ()

    def image_path(self, split: Split, image_id: str) -> Path:
        """Where it was found."""
        return self._images[image_id]

    def mask_path(self, split: Split, image_id: str) -> Path:
        """In the cache."""
        return self._folder / f"{image_id}.png"

    def saliency_path(self, split: Split, image_id: str) -> Path:
        """saliency/ID.png beside the file."""
        return self.root / "saliency" / f"{image_id}.png"

    def _check(self, annotation: Mapping[str, Any], by_image: Mapping[int, object]) -> None:
        """What an annotation refers to is there, and it has an outline."""
        name = f"{self.path}: annotation {annotation.get('id')}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image, int) or isinstance(image, bool) or image not in by_image:
            raise UserError(f"{name} is of image {image}, which the file does not list")
        if not isinstance(category, int) or category not in self._values:
            raise UserError(f"{name} has category {category!r}, which the file lacks")
        outline = annotation.get("segmentation")
        if isinstance(outline, dict):
            _check_runs(name, outline)
            return
        polygons = outline if isinstance(outline, list) else []
        if not all(isinstance(polygon, list) for polygon in polygons):
            raise UserError(
                f"{name} has a polygon that is no list; expected a list of them: [[x1, y1, …], …]"
            )
        if not all(_is_number(value) for polygon in polygons for value in polygon):
            raise UserError(f"{name} has a polygon with something else than numbers of pixels in it")
        if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise UserError(
                f"{name} (image {image}) has an empty polygon; expected three corners "
                "(x1, y1, x2, y2, x3, y3) or more; remove that annotation or draw it again"
            )

    def _draw(
        self, images: Sequence[Mapping[str, Any]], by_image: Mapping[int, list[Mapping[str, Any]]]
    ) -> None:
        """All masks into the cache, in a folder that appears when it is complete."""
        if self._folder.is_dir():
            return
        with new_folder(self._folder) as temporary:
            self._draw_into(temporary, images, by_image)
            try:
                appear(temporary, self._folder)
            except OSError:
                if not self._folder.is_dir():  # else another process was faster
                    raise

    def _draw_into(
        self,
        folder: Path,
        images: Sequence[Mapping[str, Any]],
        by_image: Mapping[int, list[Mapping[str, Any]]],
    ) -> None:
        masks = _pycocotools()
        console = Terminal(stderr=True)
        for entry in track(images, "drawing masks", console=console, disable=not console.is_terminal):
            stem = Path(str(entry["file_name"])).stem
            size = upright_size(self._images[stem])
            told = (entry.get("height", size[0]), entry.get("width", size[1]))
            if size != told:
                raise UserError(
                    f"image {self._images[stem]} is {size[1]}x{size[0]} pixels (width x height), in "
                    f"{self.path} {told[1]!r}x{told[0]!r}; they must be equal"
                )
            drawn = self._mask(by_image[int(entry["id"])], size, masks)
            Image.fromarray(drawn).save(folder / f"{stem}.png")

    def _mask(
        self, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], masks: Any
    ) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Objects on background, the largest first."""
        height, width = size
        shapes = []
        for annotation in annotations:
            outline, name = annotation["segmentation"], f"{self.path}: annotation {annotation.get('id')}"
            if isinstance(outline, list):
                runs = masks.merge(masks.frPyObjects(outline, height, width))
            elif tuple(outline["size"]) != size:
                raise UserError(
                    f"{name} is {outline['size'][1]}x{outline['size'][0]} pixels (width x height), its image "
                    f"{width}x{height}; they must be equal"
                )
            else:
                runs = masks.frPyObjects({"size": list(size), "counts": _lengths(outline["counts"])}, *size)
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of numpy, inside
                shape = np.asarray(masks.decode(runs), dtype=bool)
            if not shape.any():
                kind = "polygon" if isinstance(outline, list) else "RLE"
                raise UserError(
                    f"{name} (image {annotation['image_id']}) has an empty {kind}: no pixel of the image is "
                    "in it; remove that annotation or draw it again"
                )
            shapes.append((shape, self._values[int(annotation["category_id"])]))
        drawn = np.zeros(size, np.uint8 if self.ignore_id < 256 else np.uint16)
        for shape, value in sorted(shapes, key=lambda item: -int(item[0].sum())):
            drawn[shape] = value
        return drawn


def _is_number(value: object) -> bool:
    """A coordinate that may be meant: neither text nor NaN, nor far outside of any image."""
    return isinstance(value, int | float) and abs(value) < 1e6


def _check_runs(name: str, outline: Mapping[str, Any]) -> None:
    """An RLE has a size, and runs that fill it."""
    counts, size = outline.get("counts"), outline.get("size")
    if not counts or not isinstance(size, list) or len(size) != 2:
        raise UserError(f"{name} has an RLE without counts or size; expected both, or a polygon")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{name} has an RLE of size {size}; expected [height, width] in pixels")
    lengths = _lengths(counts)
    if not all(isinstance(length, int) and length >= 0 for length in lengths) or not lengths:
        raise UserError(f"{name} has an RLE whose counts are no lengths of runs; export it again")
    if sum(lengths) != size[0] * size[1]:
        raise UserError(
            f"{name} has an RLE of {sum(lengths)} pixels, expected {size[1]}x{size[0]} (width x height) = "
            f"{size[0] * size[1]}; export it again"
        )


def _lengths(counts: object) -> list[Any]:
    """Lengths of the runs, of a compressed RLE too; empty when it is none.

    There each is written in digits of five bits, the lowest first, a sixth bit says that more follow; from
    the fourth on it is the difference to the last but one.
    """
    if not isinstance(counts, str):
        return counts if isinstance(counts, list) else []
    lengths: list[int] = []
    value = shift = 0
    for digit in (ord(letter) - 48 for letter in counts):
        if not 0 <= digit < 64:
            return []
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return [] if shift else lengths


def find_json(root: Path) -> Path | None:
    """The COCO file that `root` is or holds, itself or in annotations/; None when there is none.

    Raises:
        UserError: More than one.
    """
    if root.is_file():
        return root if root.suffix == ".json" else None
    for folder in (root, root / "annotations"):
        found = sorted(folder.glob("*.json"))
        if len(found) > 1:
            raise UserError(f"{folder} holds {len(found)} .json files; give one, such as {found[0]}")
        if found:
            return found[0]
    return None


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} cannot be read as JSON; export the annotations again") from None
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError(f"{path} is no COCO file: expected lists {', '.join(parts)} in it")
    if not content["images"] or not content["categories"]:
        raise UserError(f"{path} lists no image or no category; export the annotations again")
    for part, needed in _NEEDED.items():
        _check_entries(f"{path}: {part}", content[part], needed)
    return content


def _check_entries(name: str, entries: Sequence[Any], needed: Mapping[str, type]) -> None:
    """Each is an object with what is needed; no id stands twice."""
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{name}[{k}] is no object ({str(entry)[:40]}); export the annotations again")
        for key, kind in needed.items():
            if not isinstance(entry.get(key), kind) or entry[key] == "":
                expected = "a whole number" if kind is int else "a text"
                raise UserError(f"{name}[{k}] has {key} {str(entry.get(key))[:40]}, expected {expected}")
    ids = Counter(entry["id"] for entry in entries if "id" in needed)
    if twice := [number for number, n in ids.items() if n > 1]:
        raise UserError(f"{name} has id {twice[0]} twice; every entry needs its own")


def _find_images(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The file of each image by its name without suffix, sorted."""
    found: dict[str, Path] = {}
    for entry in entries:
        name = str(entry["file_name"])
        places = [path.parent / folder / name for folder in _SUBFOLDERS]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise UserError(
                f"{path} lists image {name}, which is missing; expected it as {path.parent / name} or "
                f"{path.parent / 'images' / name}"
            )
        if file.stem in found:
            raise UserError(f"{path} lists {found[file.stem]} and {file}; their names must differ")
        found[file.stem] = file
    return dict(sorted(found.items()))


def _pycocotools() -> Any:
    try:
        import pycocotools.mask
    except ImportError:
        raise UserError('COCO files need pycocotools; run: pip install "segrow[coco]"') from None
    return pycocotools.mask
