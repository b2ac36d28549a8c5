"""What is wrong with a tree of annotated images, all of it, and what it holds: `segrow data check`.

Every image, mask and saliency map is decoded, as training would; a broken one is noted and the next one read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, final

import numpy as np

from ..errors import UserError
from .base import SegDataset, Split
from .examine import Counts, Files, Found, Kind, Salient, examine_chunk
from .index import Presence, check_annotated, check_readings, unlearnt_notes
from .palettes import Entries, Palettes, check_palettes, owned, palettes
from .parallel import in_chunks
from .taken import Readings, readings, taken_notes
from .unfit import Unfit

SPLITS: tuple[Split, ...] = ("train", "val")


class Problem(NamedTuple):
    """Something that training would stop at, or learn wrongly from.

    Attributes:
        image: SPLIT/ID; "" for what is wrong with all of them.
        kind: pair (image or mask alone), image, mask (cannot be read), size (they differ), value (no class),
            copy (of a training image), saliency.
        text: A sentence.
    """

    image: str
    kind: Kind
    text: str

    @property
    def leave_out(self) -> bool:
        """Whether the image is better left out; a saliency map can be made again."""
        return self.kind != "saliency" and bool(self.image)


@dataclass
class OfSplit:
    """What a split holds.

    Attributes:
        ids: Its images, those without a problem alone.
        rows: Raw ids and pixels of each of them.
        images: Number of all.
        forms: How many masks are stored in which way.
        outside: Pixels, and images, of each value that is no class.
        empty: Images whose mask shows no class: background only, ignored only, or both.
        saliency: How many maps are there, missing, empty or broken.
    """

    ids: list[str] = field(default_factory=list)
    rows: list[tuple[Counts, Counts]] = field(default_factory=list)
    images: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    outside: dict[int, tuple[int, int]] = field(default_factory=dict)
    empty: dict[str, list[str]] = field(default_factory=dict)
    saliency: Counter[Salient] = field(default_factory=Counter)

    def add(self, image_id: str, found: Found) -> None:
        """One more image."""
        self.images += 1
        self.forms[found.form or "unreadable"] += 1
        self.saliency[found.saliency] += 1
        for value, pixels in found.outside.items():
            before = self.outside.get(value, (0, 0))
            self.outside[value] = (before[0] + pixels, before[1] + 1)
        if found.unusable:
            return
        self.ids.append(image_id)
        self.rows.append((found.shown, found.pixels))
        if not (found.shown > 0).any():
            kinds = ["background"] * bool(len(found.shown)) + ["ignored"] * bool(found.ignored)
            self.empty.setdefault(" and ".join(kinds), []).append(image_id)

    def presence(self, n_raw: int) -> Presence:
        """Which classes each image without a problem shows."""
        present = np.zeros((len(self.ids), n_raw), dtype=np.bool_)
        for row, (shown, _) in enumerate(self.rows):
            present[row, shown] = True
        return Presence(tuple(self.ids), present)

    def per_class(self, n_raw: int, ids: frozenset[str] | None = None) -> tuple[Counts, Counts]:
        """Images and pixels of each raw id.

        Args:
            n_raw: Number of classes.
            ids: Of these images; None: of all without a problem.
        """
        images, pixels = np.zeros(n_raw, np.int64), np.zeros(n_raw, np.int64)
        for image_id, (shown, counts) in zip(self.ids, self.rows, strict=True):
            if ids is None or image_id in ids:
                images[shown] += 1
                pixels[shown] += counts
        return images, pixels


@final
@dataclass
class Report:
    """All about a tree.

    Attributes:
        data: The data set without what cannot be opened; None when nothing is left.
        splits: What each split holds.
        problems: All of them.
        notes: What is no problem but should be known, a sentence each.
    """

    data: SegDataset | None
    splits: dict[Split, OfSplit]
    problems: list[Problem]
    notes: list[str]

    def leave_out(self) -> list[tuple[str, str]]:
        """Images that are better left out, each once, and why."""
        why: dict[str, list[str]] = defaultdict(list)
        for problem in self.problems:
            if problem.leave_out:
                why[problem.image].append(problem.text)
        return [(image, "; ".join(texts)) for image, texts in why.items()]


def _refused(check: Callable[[], None]) -> list[Problem]:
    """What a check of all masks raises, as a problem."""
    try:
        check()
    except UserError as error:
        return [Problem("", "value", str(error))]
    return []


def check_tree(open_data: Callable[[frozenset[str]], SegDataset], progress: bool) -> Report:
    """Reads all of a data set.

    Args:
        open_data: Opens it without some images, each SPLIT/ID.
        progress: Show a bar on stderr.

    Raises:
        UserError: It cannot be opened at all.
    """
    data, problems, said = _open_rest(open_data)
    splits = {split: OfSplit() for split in SPLITS}
    if data is None:
        return Report(None, splits, problems, said)
    contents: dict[bytes, list[tuple[Split, str]]] = defaultdict(list)
    notes: list[str] = []
    ways: list[Readings] = []
    used: list[Palettes] = []
    for split in SPLITS:
        ids = data.ids(split)
        files = [
            Files(
                *map(str, (data.image_path(split, i), data.mask_path(split, i), data.saliency_path(split, i)))
            )
            for i in ids
        ]
        read = partial(examine_chunk, values=data.values())
        found = (each for chunk in in_chunks(read, files, f"checking {split}", progress) for each in chunk)
        flags = np.zeros(len(ids), np.int64)
        entries: list[Entries] = []
        for row, (image_id, each) in enumerate(zip(ids, found, strict=True)):
            splits[split].add(image_id, each)
            problems += [Problem(f"{split}/{image_id}", kind, text) for kind, text in each.problems]
            flags[row] = each.taken
            entries.append(each.entries)
            if each.content and not each.unusable:
                contents[each.content].append((split, image_id))
        notes += taken_notes(flags, ids, split, data.drawn)
        present = splits[split].presence(len(data.class_names)).present
        names = [f"{split}/{i}" for i in ids]
        ways.append(readings(flags, names))
        used.append(palettes(owned(entries, range(len(ids))), names))
        if len(present) == len(ids):  # what cannot be used may show classes
            notes += unlearnt_notes(split, ids, data.values(), present, flags)
            problems += _refused(partial(check_annotated, data.root, split, data.values(), present, flags))
    problems += _refused(partial(check_readings, data.root, ways))
    problems += _refused(partial(check_palettes, data.root, used))
    copies, said = _copies(contents)
    return Report(data, splits, problems + copies, [*data.notes, *notes, *said])


def _open_rest(
    open_data: Callable[[frozenset[str]], SegDataset],
) -> tuple[SegDataset | None, list[Problem], list[str]]:
    """The data set without the images that keep it from being opened, these, and notes if nothing is left."""
    unfit: dict[str, str] = {}
    notes: dict[str, None] = {}
    while True:
        try:
            data = open_data(frozenset(unfit))
            for split in SPLITS:
                for image_id in data.ids(split)[:1]:
                    data.mask_path(split, image_id)  # where masks are drawn, all are drawn here
        except Unfit as error:
            if not error.each.keys() - unfit.keys():
                raise
            unfit |= error.each
            notes |= dict.fromkeys(error.notes)
        except UserError as error:
            if not unfit:
                raise
            return None, [*_unfit(unfit), Problem("", "pair", f"without these: {error}")], [*notes]
        else:
            return data, _unfit(unfit), []


def _unfit(unfit: dict[str, str]) -> list[Problem]:
    return [Problem(image, "pair", text) for image, text in unfit.items()]


def _copies(contents: dict[bytes, list[tuple[Split, str]]]) -> tuple[list[Problem], list[str]]:
    """Training images that show the pixels of another image; a note on validation images that do."""
    problems, doubled = [], []
    for group in contents.values():
        first = min(group, key=lambda each: each[0] != "val")  # validation images are kept
        for split, image_id in group:
            if split == "train" and (split, image_id) != first:
                what = "a validation image" if first[0] == "val" else "a training image"
                text = f"shows the same pixels as {'/'.join(first)}, {what}"
                problems.append(Problem(f"train/{image_id}", "copy", text))
            elif (split, image_id) != first:
                doubled.append(f"{image_id} = {first[1]}")
    if not doubled:
        return problems, []
    some = ", ".join(doubled[:3]) + (", …" if len(doubled) > 3 else "")
    return problems, [f"{len(doubled)} validation images show the same pixels as others ({some})"]
