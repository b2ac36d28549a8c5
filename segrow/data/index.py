"""The presence index: which raw ids each mask shows, read once and kept in the user's cache.

    $SEGROW_CACHE/presence/NAME-SPLIT-KEY.npz        (default ~/.cache/segrow)

Every pair of image and mask is checked while it is read. Afterwards only pairs whose size or time of
modification changed are read again.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import new_file, tidy
from ..errors import UserError
from ..wording import count, verb
from .cache import cache_folder, read_arrays, say_damaged, say_unkept
from .files import UNTURNED, examine_image, turned_as, white
from .masks import Values, decode_mask, stretched
from .palettes import INDEX_MEANT, Entries, Owned, Palettes, index_chosen, owned, palettes, renumbered
from .parallel import in_chunks
from .taken import Readings, Taken, joined, readings, scaled_apart, taken_notes

FORMAT = 5
_WHAT = "the index of the masks"

Pair = tuple[str, str]  # image file, mask file
Bits = NDArray[np.bool_]
Stamps = NDArray[np.int64]
Flags = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Presence:
    """Which classes each image shows.

    Attributes:
        ids: Image ids in the order of the data set.
        present: bool, images x raw ids: whether the mask shows the raw id.
        notes: How files were taken that do not say plainly what their numbers mean, a sentence per kind.
        readings: What `check_readings` compares with other splits.
        palettes: What `check_palettes` does.
    """

    ids: tuple[str, ...]
    present: Bits
    notes: tuple[str, ...] = ()
    readings: Readings = field(default_factory=dict)
    palettes: Palettes = field(default_factory=dict)


def index(
    name: str,
    root: Path,
    split: str,
    ids: Sequence[str],
    pairs: Sequence[Pair],
    values: Values,
    progress: bool,
) -> Presence:
    """The presence of all pairs, from the cache as far as nothing changed.

    Args:
        name: Name of the data set.
        root: Its folder.
        split: train or val.
        ids: Image ids.
        pairs: Image and mask file of each id.
        values: Legal mask values.
        progress: Show a bar on stderr.

    Raises:
        UserError: The first pair, in order, that is missing, cannot be read, has values that are not a class
            or an image and a mask of different size.
    """
    place = os.fsencode(root.resolve())  # a path need not be UTF-8
    key = hashlib.sha256(place + f"\n{split}".encode()).hexdigest()[:16]
    path = cache_folder() / "presence" / f"{name}-{split}-{key}.npz"
    stamps = _stamp(pairs)
    present = np.zeros((len(ids), values.n_raw), dtype=np.bool_)
    taken = np.zeros(len(ids), dtype=np.int64)
    valid, entries = _recall(path, ids, stamps, values, present, taken)
    if todo := np.flatnonzero(~valid).tolist():
        read = partial(_read_chunk, values=values)
        try:
            done = 0
            for bits, flags, used in in_chunks(
                read, [pairs[i] for i in todo], f"{name} {split} masks", progress
            ):
                rows = todo[done : done + len(bits)]
                present[rows], taken[rows] = bits, flags
                entries = np.concatenate([entries, owned(used, rows)])
                valid[rows] = True
                done += len(bits)
        finally:  # what was read before a broken file need not be read again
            good = [i for i, ok in zip(ids, valid, strict=True) if ok]
            kept = renumbered(entries, np.where(valid, np.cumsum(valid) - 1, -1))
            _store(path, good, stamps[valid], values, present[valid], taken[valid], kept)
    check_annotated(root, split, values, present, taken)
    names = [f"{split}/{i}" for i in ids]
    notes = (
        *taken_notes(taken, ids, split, values.drawn),
        *unlearnt_notes(split, ids, values, present, taken),
    )
    return Presence(tuple(ids), present, notes, readings(taken, names), palettes(entries, names))


def check_readings(root: Path, splits: Iterable[Readings]) -> None:
    """Refuses a data set whose files were not all read in one way, each by what it alone shows.

    Of masks: the grey of a palette is the value in some, the index in others (greys of few classes can be
    class numbers by chance). Of images: another value is white.
    """
    found = joined(splits)
    if Taken.GREYS in found and Taken.INDEX in found:
        (by_grey, first), (by_index, other) = found[Taken.GREYS], found[Taken.INDEX]
        raise UserError(
            f"masks of {root} have palettes of greys that differ: in {by_grey} all greys are class "
            f"numbers (first {first}), in {by_index} not (first {other}), so a class "
            "may be the index or the grey; save all masks as grey PNG whose values are class numbers; "
            f"{INDEX_MEANT}"
        )
    if Taken.NUMBERS in found and Taken.GREY_COLOURS in found:
        (by_number, first), (by_colour, other) = found[Taken.NUMBERS], found[Taken.GREY_COLOURS]
        raise UserError(
            f"masks of {root} are of two kinds: {by_number} hold class numbers (first {first}), and "
            f"{by_colour} greys that are stated as colours (first {other}), so a value may be a class or a "
            "colour; save all masks in the colours, or all as numbers and without the list of colours"
        )
    if apart := scaled_apart(found):
        raise UserError(f"{root}: {apart}")


def unlearnt_notes(
    split: str, ids: Sequence[str], values: Values, present: Bits, taken: Flags
) -> tuple[str, ...]:
    """A note where no mask shows background, or they write it as the ignored value, so that none is learnt.

    A few such masks are usual: those that one object fills.
    """
    ignoring = (taken & Taken.IGNORED) > 0
    hits = np.flatnonzero(ignoring & ~present[:, 0] & present[:, 1:].any(axis=1))
    if split == "train" and len(ids) and not len(hits) and not present[:, 0].any():
        return (
            f"train: none of {count(len(ids), 'mask')} shows 0, so nothing is learnt as background; value i "
            "is the class of line i, from 0: number the masks so",
        )
    if not len(hits) or 2 * len(hits) < ignoring.sum():
        return ()
    what = f"{values.ignore_id}{' or an ignored class' if values.ignored else ''}"
    return (
        f"{split}: {len(hits)} of {count(len(ids), 'mask')} {verb(len(hits), 'show')} classes and {what} but "
        f'no 0 (first {ids[hits[0]]}); {values.ignore_id} means "ignore", so none of it is learnt as '
        "background: where it is background, write 0",
    )


def check_annotated(root: Path, split: str, values: Values, present: Bits, taken: Flags) -> None:
    """Refuses a split in which no mask shows a class, for the class was written as the ignored value."""
    if (taken & Taken.ONLY_IGNORED).any() and not present[:, 1:].any():
        if values.drawn:
            raise UserError(
                f'all annotations of {root} ({split}) are marked "ignore", so nothing is annotated; --ignore '
                "none (segrow train: --data.ignore none) makes them their categories'"
            )
        raise UserError(
            f"the masks of {root} ({split}) hold 0 and {values.ignore_id} only, and {values.ignore_id} means "
            '"ignore", so nothing is annotated; write the class as 1'
        )


def check_pair(pair: Pair, values: Values) -> tuple[Bits, Taken, Entries]:
    """Reads a pair and checks it.

    Returns:
        bool [n_raw]: which raw ids the mask shows; how the two files were taken; what the mask uses of its
        palette.

    Raises:
        UserError: See `index`.
    """
    image, mask_file = Path(pair[0]), Path(pair[1])
    mask, taken, entries = decode_mask(mask_file, values)
    size, of_image = examine_image(image)
    if mask.shape != size:
        hint = UNTURNED if turned_as(image, mask.shape) == "unturned" else ""
        raise UserError(
            f"image {image} is {size[1]}x{size[0]} pixels (width x height, upright), "
            f"its mask {mask_file} {mask.shape[1]}x{mask.shape[0]}; they must be equal{hint}"
        )
    shown = np.zeros(256 if values.ignore_id < 256 else 65536, dtype=np.bool_)
    shown[mask.ravel()] = True
    ignored = bool(shown[values.ignore_id])
    shown[values.ignore_id] = False
    if shown[values.n_raw :].any():
        wrong = (values.n_raw + np.flatnonzero(shown[values.n_raw :])).tolist()
        more = (
            f" (and {', '.join(map(str, wrong[1:4]))}{' …' if len(wrong) > 4 else ''})" if wrong[1:] else ""
        )
        hint = stretched([*np.flatnonzero(shown).tolist(), *[values.ignore_id] * ignored], values.n_raw)
        raise UserError(
            f"mask {mask_file} has value {wrong[0]}{more}, but the data set has the classes 0 (background) "
            f"to {values.n_raw - 1} and {values.ignore_id} for pixels to ignore; where the list of classes "
            "lacks background (its first line, value 0) or a class, add the line, else correct the mask"
            f"{hint}"
        )
    if ignored:
        taken |= Taken.IGNORED if shown[1:].any() else Taken.IGNORED | Taken.ONLY_IGNORED
    return shown[: values.n_raw], taken | of_image, entries


def _stamp(pairs: Sequence[Pair]) -> Stamps:
    """Size and time of modification of image and mask: int64 n x 4."""
    stamps = np.empty((len(pairs), 4), dtype=np.int64)
    for row, (image, mask) in enumerate(pairs):
        for column, (file, what) in enumerate(((image, "image"), (mask, "mask"))):
            try:
                status = os.stat(file)
            except OSError as error:
                pair = "its mask" if what == "image" else "its image"
                other = mask if what == "image" else image
                raise UserError(f"{what} {file}: {error.strerror} ({pair} would be {other})") from None
            stamps[row, 2 * column : 2 * column + 2] = status.st_size, status.st_mtime_ns
    return stamps


def _head(values: Values) -> list[int]:
    """What an index was made for."""
    colours = 0 if values.colours is None else values.colours.key
    return [FORMAT, white(), index_chosen(), values.n_raw, values.ignore_id, colours, *values.ignored]


def _recall(
    path: Path, ids: Sequence[str], stamps: Stamps, values: Values, present: Bits, taken: Flags
) -> tuple[Bits, Owned]:
    """Fills `present` and `taken` from the cache; returns which rows are still right, and their entries."""
    valid, none = np.zeros(len(ids), dtype=np.bool_), np.zeros(0, np.int64)
    stored = read_arrays(path, _WHAT)
    if not stored:
        return valid, none
    try:
        if stored["head"].tolist() != _head(values):
            return valid, none
        old_ids, old_stamps, old_taken = stored["ids"].tolist(), stored["stamps"], stored["taken"]
        old = np.unpackbits(stored["present"], axis=1, count=values.n_raw).astype(np.bool_)
        n, entries = len(old_ids), stored["entries"].astype(np.int64, casting="safe")
        whole = (old_stamps.shape, old_taken.shape, old.shape) == ((n, 4), (n,), (n, values.n_raw))
        whole = whole and entries.ndim == 1 and bool(((entries >= 0) & (entries >> 32 < n)).all())
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        say_damaged(_WHAT, path)
        return valid, none
    if old_ids == list(ids):
        rows = np.arange(len(ids))
    else:
        where = {image: row for row, image in enumerate(old_ids)}
        rows = np.array([where.get(image, -1) for image in ids], dtype=np.int64)
    known = rows >= 0
    valid[known] = (old_stamps[rows[known]] == stamps[known]).all(axis=1)
    present[valid], taken[valid] = old[rows[valid]], old_taken[rows[valid]]
    now = np.full(n, -1)
    now[rows[valid]] = np.flatnonzero(valid)
    return valid, renumbered(entries, now)


def _store(
    path: Path,
    ids: Sequence[str],
    stamps: Stamps,
    values: Values,
    present: Bits,
    taken: Flags,
    entries: Owned,
) -> None:
    try:
        tidy(path.parent)
        with new_file(path) as file:
            np.savez(
                file,
                head=np.array(_head(values)),
                ids=np.array(ids, dtype=np.str_),
                stamps=stamps,
                present=np.packbits(present, axis=1),
                taken=taken,
                entries=entries,
            )
    except OSError as error:
        say_unkept(_WHAT, path.parent, error)


def _read_chunk(pairs: Sequence[Pair], values: Values) -> tuple[Bits, Flags, list[Entries]]:
    bits, flags, entries = zip(*(check_pair(pair, values) for pair in pairs), strict=True)
    return np.stack(bits), np.array(flags, np.int64), list(entries)
