"""Data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, near
from .exclude import NOTHING, Exclusion

if TYPE_CHECKING:
    from .base import SegDataset

NAMES = ("voc", "ade20k", "folder", "digits")


def open_dataset(
    name: str,
    root: str | None,
    scenes: int = 1200,
    hold_out: bool = True,
    exclude: Exclusion = NOTHING,
    ignore: Sequence[str] | None = None,
) -> SegDataset:
    """The data set called `name` in the folder `root`.

    Args:
        name: voc, ade20k, folder or digits.
        root: Its folder; only digits does without one.
        scenes: Number of training scenes; only for digits.
        ignore: Categories of a folder in COCO's or CVAT's layout that count nowhere (`given.py`).
        hold_out: Of a folder without validation images take a fifth as such.
        exclude: Images to leave out; of digits none can be.

    Raises:
        UserError: An unknown name, a folder that is missing or does not hold the data set, or an image to
            leave out that is not there.
    """
    if ignore and name != "folder":
        raise UserError(
            f"--data.ignore names categories of a folder in COCO's or CVAT's layout (--data.name folder), "
            f"not of {name}; leave it out"
        )
    data = open_without(name, root, scenes, hold_out, exclude.images, ignore)
    if exclude.images:
        exclude.check(data.excluded)
        data.notes += (exclude.note(),)
    return data


def open_without(
    name: str,
    root: str | None,
    scenes: int,
    hold_out: bool,
    exclude: frozenset[str],
    ignore: Sequence[str] | None,
) -> SegDataset:
    """The same without some images, each SPLIT/ID, of which there need not be all."""
    # Imported by need: digits alone wants scikit-learn, and the command line should start fast.
    if name == "digits":
        from .digits import open_digits

        return open_digits(root, scenes)
    if name not in NAMES:
        raise UserError(f'unknown data set "{name}", expected {", ".join(NAMES)}.{near(name, NAMES)}')
    if not root:
        raise UserError(f"data set {name} needs its folder; add --data.root DIR")
    if name == "voc":
        from .voc import VocDataset

        return VocDataset(root, exclude)
    if name == "ade20k":
        from .ade20k import Ade20kDataset

        return Ade20kDataset(root, exclude)
    from .folder import FolderDataset
    from .given import find_given
    from .other_formats import recognise

    place = Path(root).expanduser()
    found = find_given(place, hold_out, ignore, exclude) if place.exists() else None
    own = (place / "images").is_dir() and (place / "masks").is_dir()
    if found is None and not own and place.exists() and (said := recognise(place)):
        raise UserError(f"--data.root {root} holds {said}")
    return (
        FolderDataset(root, hold_out, exclude, ignore) if found is None else found
    )  # which says what is missing
