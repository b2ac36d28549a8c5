"""Palettes of the masks of one data set: an index must be one colour in all of them, and a colour one index.

Tools that save a palette anew cut it to the colours that one mask shows, and then an index means another
class in every mask. Where the index is the value, that is found here, but for masks that are read as the
environment variable SEGROW_PALETTE=index says: then their colours count nowhere.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError, shown

Entries = tuple[int, ...]
"""What a mask uses of its palette, each as index << 24 | red << 16 | green << 8 | blue."""
Owned = NDArray[np.int64]
"""Such entries of several masks, each as number of the mask << 32 | entry."""
Palettes = Mapping[int, str]
"""The name of the first mask that has an entry, by entry."""
CHOICE = "SEGROW_PALETTE"
INDEX_MEANT = f"where the index is the class, set the environment variable {CHOICE}=index"
WAYS_OUT = (
    "state the colours of the classes in a labelmap.txt beside the masks' folder, or save all masks with one "
    f"palette, or as grey PNG whose values are class numbers; {INDEX_MEANT}"
)


def index_chosen() -> bool:
    """Whether $SEGROW_PALETTE says that the index of a palette is the class, whatever its colours are.

    Raises:
        UserError: The variable is something else.
    """
    chosen = os.environ.get(CHOICE)
    if chosen and chosen != "index":
        raise UserError(
            f"{CHOICE} is {shown(chosen[:40])}, expected index: the index of a palette is the class"
        )
    return bool(chosen)


def colour_codes(image: Image.Image) -> NDArray[np.int32]:
    """The colour of each index of a palette image, as red << 16 | green << 8 | blue."""
    palette = np.array(image.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    codes: NDArray[np.int32] = palette[:, 0] << 16 | palette[:, 1] << 8 | palette[:, 2]
    return codes


def used_indices(image: Image.Image) -> NDArray[np.int64]:
    """The indices that a palette image shows, rising."""
    return np.flatnonzero(image.histogram()[:256])


def entries(codes: NDArray[np.int32], used: NDArray[np.int64]) -> Entries:
    """Index and colour of what is used, where the colour says something.

    It says nothing where it stands there twice, as black does that fills a palette up, and where it is the
    index as grey.
    """
    used = used[used < len(codes)]
    shown = codes[used].astype(np.int64)
    once = (codes[:, None] == shown).sum(axis=0) == 1
    telling = once & ((used == 0) | (shown != used * 0x010101))
    return tuple((used << 24 | shown)[telling].tolist())


def owned(each: Iterable[Entries], masks: Iterable[int]) -> Owned:
    """Entries of several masks in one array.

    Args:
        each: Those of one mask each.
        masks: Their numbers.
    """
    pairs = zip(masks, each, strict=True)
    return np.array([mask << 32 | entry for mask, used in pairs for entry in used], np.int64)


def renumbered(of: Owned, numbers: NDArray[np.int64]) -> Owned:
    """The same with other numbers of the masks: `numbers` by the old ones, -1 where a mask is gone."""
    new = numbers[of >> 32]
    kept: Owned = (new << 32 | of & 0xFFFFFFFF)[new >= 0]
    return kept


def palettes(of: Owned, names: Sequence[str]) -> Palettes:
    """Which entries some masks have.

    Args:
        of: Their entries.
        names: What to call each mask.
    """
    of = np.sort(of)
    found, at = np.unique(of & 0xFFFFFFFF, return_index=True)  # the first of each
    masks = (of[at] >> 32).tolist()
    return {entry: names[mask] for entry, mask in zip(found.tolist(), masks, strict=True)}


def check_palettes(root: Path, splits: Iterable[Palettes]) -> None:
    """Refuses a data set in which one index has two colours, or one colour two indices.

    Raises:
        UserError: Naming two masks, and the ways out.
    """
    by_index: dict[int, tuple[int, str]] = {}
    by_colour: dict[int, tuple[int, str]] = {}
    for entry, name in (each for split in splits for each in split.items()):
        index, colour = entry >> 24, entry & 0xFFFFFF
        other, first = by_index.setdefault(index, (colour, name))
        if other != colour:
            said = f"index {index} is {rgb(other)} in {first} and {rgb(colour)} in {name}"
        else:
            other, first = by_colour.setdefault(colour, (index, name))
            said = f"{rgb(colour)} is index {other} in {first} and {index} in {name}"
            if other == index:
                continue
        raise UserError(
            f"masks of {root} have palettes that differ: {said}, so a class may be the index or the colour; "
            f"{WAYS_OUT}"
        )


def rgb(code: int) -> str:
    """`250,50,83`."""
    return ",".join(str(code >> shift & 0xFF) for shift in (16, 8, 0))
