"""Colours that stand for classes, as a file beside the masks states them: RGB masks become class numbers.

labelmap.txt         # label:color_rgb:parts:actions      CVAT, Datumaro
                     crack:250,50,83::                    or crack:#fa3253 in any of these files
label_colors.txt     250 50 83  crack                     CamVid; colors.txt, colours.txt, palette.txt alike
class_dict.csv       name,r,g,b
classes.txt          crack: 250,50,83                     of a folder of one's own, in every line

A line that begins with # and has no colour behind a name is a comment: "#1:250,50,83" is a class.
"""

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..class_lists import BACKGROUND, is_background, name_notes, not_counted, plain_name
from ..documents import read_text
from ..errors import UserError
from ..palette import voc_palette
from ..wording import count
from .files import Refused

FILES = ("labelmap.txt", "label_colors.txt", "colors.txt", "colours.txt", "palette.txt", "class_dict.csv")
VOC_BORDER = (224, 224, 192)
SMOOTHED = 8
"""Unknown colours from which on a mask is taken for smoothed or compressed, not for one with a class more."""

Rgb = tuple[int, int, int]
_NUMBER = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_NAME_FIRST = re.compile(rf"(.*?\S)\s*[:,;\s]\s*{_NUMBER}\s*(?::.*)?")
_NUMBERS_IN_NAME = re.compile(rf".*?\S\s*[:,;\s]\s*{_NUMBER}\s*:\s*{_NUMBER}\s*(?::.*)?")
_COLOUR_FIRST = re.compile(rf"{_NUMBER}[\s,;:]+(\S.*)")
_HEX = re.compile(r"(?<![^\s:,;\"'])#([0-9a-fA-F]{6})(?![^\s:,;\"'])")


@dataclass(frozen=True)
class ColourTable:
    """Which colour is which mask value.

    Attributes:
        source: What states it, for errors.
        colours: The colours.
        values: The mask value of each.
        names: What each is called.
        of_palettes: Whether the colours of a palette count; else its index does.
        remedy: What to do about a colour that it lacks.
        in_order: Whether a mask of numbers can be meant: the value of a class is the number of its line.
    """

    source: str
    colours: tuple[Rgb, ...]
    values: tuple[int, ...]
    names: tuple[str, ...]
    of_palettes: bool = True
    remedy: str = "add it there"
    in_order: bool = True

    @property
    def key(self) -> int:
        """Tells tables apart."""
        return zlib.crc32(repr((self.colours, self.values, self.of_palettes, self.in_order)).encode())

    def to_ids(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Mask values of an RGB image, H x W x 3.

        Raises:
            Refused: It shows a colour that the table lacks.
        """
        codes = _codes(rgb)
        known = _codes(np.array(self.colours, np.uint8))
        order = np.argsort(known)
        at = np.searchsorted(known[order], codes).clip(0, len(known) - 1)
        found = order[at]
        wrong = known[found] != codes
        if wrong.any():
            raise Refused(self._unknown(rgb[wrong]))
        ids: NDArray[np.uint16] = np.array(self.values, np.uint16)[found]
        return ids

    def _unknown(self, pixels: NDArray[np.uint8]) -> str:
        shown, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        most = shown[counts.argmax()].tolist()
        distance = np.square(np.array(self.colours, np.int64) - most).sum(axis=1)
        nearest = int(distance.argmin())
        near = f'nearest is "{self.names[nearest]}" ({_shown(self.colours[nearest])})'
        if len(shown) > SMOOTHED:
            return (
                f"has {len(shown)} colours in {len(pixels)} pixels that {self.source} lacks, such as "
                f"{_shown(most)} ({near}): it was smoothed or compressed; save masks as PNG without either"
            )
        return (
            f"has colour {_shown(most)} in {count(int(counts.max()), 'pixel')}, which {self.source} "
            f"lacks ({near}); {self.remedy}, or correct the mask"
        )


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    wide = rgb.astype(np.int32)
    codes: NDArray[np.int32] = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return codes


def _shown(colour: Sequence[int]) -> str:
    return ",".join(map(str, colour))


def voc_colours(names: Sequence[str]) -> ColourTable:
    """VOC's own colours, for masks of its classes that were saved as RGB."""
    palette = np.asarray(voc_palette(len(names))).reshape(-1, 3)
    colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    values = (*range(len(names)), 255)
    where = "state the classes and their colours in a labelmap.txt beside the masks' folder"
    return ColourTable(
        "VOC's palette", (*colours, VOC_BORDER), values, (*names, "ignored border"), False, where
    )


class Stated(NamedTuple):
    """A file that states colours, the name of each colour, and notes on the names."""

    path: Path
    names: dict[Rgb, str]
    notes: tuple[str, ...]


def stated_colours(root: Path) -> Stated | None:
    """What a file in a folder says of colours; None without one.

    Raises:
        UserError: A line of it is no name with a colour.
    """
    path = next((root / name for name in FILES if (root / name).is_file()), None)
    if path is None:
        return None
    lines = read_text(path, "list of colours").splitlines()
    named = parse_colours(lines)
    if named is None:
        wrong = next((line for line in lines if _is_content(line) and not _named_colour(line)), None)
        got = "holds no colour" if wrong is None else f"has the line {wrong[:60]!r}"
        raise UserError(f"{path} {got}; expected a name and a colour, as crack:250,50,83::")
    written = [name for name, _ in named]
    plain = [BACKGROUND if is_background(name) else name for name in map(plain_name, written)]
    names = name_by_colour(path, zip(plain, (colour for _, colour in named), strict=True))
    notes = (*sign_notes(path, written), *name_notes(str(path), dict.fromkeys(written)))
    return Stated(path, names, (*notes, *_doubled(path, plain), *_background_notes(path, names)))


def parse_colours(lines: Sequence[str]) -> list[tuple[str, Rgb]] | None:
    """Name and colour of every line; None when a line holds none. Comments and a heading are left out."""
    found: list[tuple[str, Rgb]] = []
    for number, line in enumerate(lines):
        if not _is_content(line) or (number == 0 and re.fullmatch(r"\W*name\W+r\W+g\W+b\W*", line.lower())):
            continue
        if (named := _named_colour(line)) is None:
            return None
        found.append(named)
    return found or None


def _named_colour(line: str) -> tuple[str, Rgb] | None:
    """Name and colour of a line; None where it holds none."""
    line = line.strip()
    if not _NAME_FIRST.fullmatch(line) and (found := [*_HEX.finditer(line)]):
        start, end = found[-1].span()  # before it stands a name, which may look alike
        line = line[:start] + _shown(bytes.fromhex(found[-1][1])) + line[end:]
    if _NUMBERS_IN_NAME.fullmatch(line):  # one of both belongs to a name
        return None
    if match := _NAME_FIRST.fullmatch(line):
        name, *numbers = match.groups()
    elif match := _COLOUR_FIRST.fullmatch(line):
        *numbers, name = match.groups()
    else:
        return None
    red, green, blue = (int(number) for number in numbers)
    return None if max(red, green, blue) > 255 else (name.strip("\"' "), (red, green, blue))


def sign_notes(path: Path, names: Iterable[str]) -> Iterator[str]:
    """A note on names that begin as a comment does."""
    if signed := [name for name in names if name.startswith("#")]:
        yield (
            f'{path}: "{signed[0]}" has a colour, so it is taken as a class; a comment begins with # and has '
            "no colour"
        )


def _doubled(path: Path, names: Sequence[str]) -> Iterator[str]:
    """Notes on classes of several colours."""
    for name, n in Counter(names).items():
        if n > 1:
            yield f'{path} gives {n} colours to "{name}", which is one class'


def _background_notes(path: Path, names: Mapping[Rgb, str]) -> Iterator[str]:
    """What is taken for background where a file does not say it."""
    if BACKGROUND in names.values():
        return
    black = names.get((0, 0, 0))
    if black is None:
        yield f"{path} names no background, so its colour is 0,0,0"
    else:
        yield f'{path} names no background and gives 0,0,0 to "{black}", so no pixel is background'


def _is_content(line: str) -> bool:
    start = line.strip()
    if not start.startswith("#"):
        return bool(start)
    return _HEX.match(start) is not None or _named_colour(start) is not None


def name_by_colour(path: Path, named: Iterable[tuple[str, Rgb]]) -> dict[Rgb, str]:
    """The name of each colour; several colours may have one name.

    Raises:
        UserError: One colour is there twice.
    """
    names: dict[Rgb, str] = {}
    for name, colour in named:
        if names.get(colour) == name:
            raise UserError(
                f'{path} gives "{name}" the colour {_shown(colour)} twice; remove one of the lines'
            )
        if colour in names:
            raise UserError(
                f'{path} gives "{names[colour]}" and "{name}" the colour {_shown(colour)}; they must differ'
            )
        names[colour] = name
    return names


def colour_table(
    path: Path,
    names: Mapping[Rgb, str],
    class_names: Sequence[str],
    ignored: Collection[str],
    ignore_id: int,
    numbered: bool,
) -> ColourTable:
    """The table of a data set.

    Args:
        path: What states the colours.
        names: By colour.
        class_names: By mask value, background first.
        ignored: Names that count nowhere.
        ignore_id: Their mask value.
        numbered: Whether a list of classes says the values, not the order of the colours.

    Raises:
        UserError: A name that is no class.
    """
    numbers = {name: value for value, name in enumerate(class_names)} | dict.fromkeys(ignored, ignore_id)
    if unknown := [name for name in names.values() if name not in numbers]:
        raise UserError(
            f'{path} gives a colour to "{unknown[0]}", which is not a class; the classes are '
            f"{', '.join(class_names[1:21])}"
        )
    full = {**names}
    if BACKGROUND not in full.values() and (0, 0, 0) not in full:
        full[0, 0, 0] = BACKGROUND
    values = tuple(numbers[name] for name in full.values())
    in_order = numbered or all(value in (line, ignore_id) for line, value in enumerate(values))
    return ColourTable(path.name, tuple(full), values, tuple(full.values()), in_order=in_order)


def classes_of(
    stated: Iterable[str], ignore: Collection[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names by mask value, background first, and the names that count nowhere."""
    names = dict.fromkeys(stated)
    ignored = not_counted(names, ignore)
    return (BACKGROUND, *(n for n in names if n != BACKGROUND and n not in ignored)), tuple(ignored)
