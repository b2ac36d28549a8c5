"""Colours that stand for classes, as a file beside the masks states them: RGB masks become class numbers.

labelmap.txt         # label:color_rgb:parts:actions      CVAT, Datumaro
                     crack:250,50,83::                    or crack:#fa3253 in any of these files
label_colors.txt     250 50 83  crack                     CamVid; colors.txt, colours.txt, palette.txt alike
class_dict.csv       name,r,g,b
classes.txt          crack: 250,50,83                     of a folder of one's own, in every line
"""

import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    """A file that states colours, the colour of each name, and notes on the names."""

    path: Path
    colours: dict[str, Rgb]
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
        wrong = next(line for line in lines if _is_content(line) and parse_colours([line]) is None)
        raise UserError(
            f"{path} has the line {wrong[:60]!r}; expected a name and a colour, as crack:250,50,83::"
        )
    colours = _unique(path, named)
    notes = name_notes(str(path), [name for name, _ in named])
    return Stated(path, colours, (*notes, *_background_notes(path, colours)))


def parse_colours(lines: Sequence[str]) -> list[tuple[str, Rgb]] | None:
    """Name and colour of every line; None when a line holds none. Comments and a heading are left out."""
    found: list[tuple[str, Rgb]] = []
    for number, line in enumerate(lines):
        if not _is_content(line) or (number == 0 and re.fullmatch(r"\W*name\W+r\W+g\W+b\W*", line.lower())):
            continue
        line = _HEX.sub(lambda match: ",".join(map(str, bytes.fromhex(match[1]))), line)
        if match := _NAME_FIRST.fullmatch(line.strip()):
            name, *numbers = match.groups()
        elif match := _COLOUR_FIRST.fullmatch(line.strip()):
            *numbers, name = match.groups()
        else:
            return None
        red, green, blue = (int(number) for number in numbers)
        if max(red, green, blue) > 255:
            return None
        found.append((name.strip("\"' "), (red, green, blue)))
    return found or None


def _background_notes(path: Path, colours: Mapping[str, Rgb]) -> Iterator[str]:
    """What is taken for background where a file does not say it."""
    if BACKGROUND in colours:
        return
    black = next((name for name, colour in colours.items() if colour == (0, 0, 0)), None)
    if black is None:
        yield f"{path} names no background, so its colour is 0,0,0"
    else:
        yield f'{path} names no background and gives 0,0,0 to "{black}", so no pixel is background'


def _is_content(line: str) -> bool:
    start = line.strip()
    return bool(start) and (not start.startswith("#") or _HEX.match(start) is not None)


def _unique(path: Path, named: Sequence[tuple[str, Rgb]]) -> dict[str, Rgb]:
    colours: dict[str, Rgb] = {}
    of: dict[Rgb, str] = {}
    for written, colour in named:
        name = plain_name(written)
        name = BACKGROUND if is_background(name) else name
        if name in colours:
            raise UserError(f'{path} has "{name}" twice; every class needs its own name')
        if colour in of:
            raise UserError(
                f'{path} gives "{of[colour]}" and "{name}" the colour {_shown(colour)}; they must differ'
            )
        colours[name], of[colour] = colour, name
    return colours


def colour_table(
    path: Path,
    colours: Mapping[str, Rgb],
    class_names: Sequence[str],
    ignored: Collection[str],
    ignore_id: int,
    numbered: bool,
) -> ColourTable:
    """The table of a data set.

    Args:
        path: What states the colours.
        colours: By name.
        class_names: By mask value, background first.
        ignored: Names that count nowhere.
        ignore_id: Their mask value.
        numbered: Whether a list of classes says the values, not the order of the colours.

    Raises:
        UserError: A name that is no class.
    """
    numbers = {name: value for value, name in enumerate(class_names)} | dict.fromkeys(ignored, ignore_id)
    if unknown := [name for name in colours if name not in numbers]:
        raise UserError(
            f'{path} gives a colour to "{unknown[0]}", which is not a class; the classes are '
            f"{', '.join(class_names[1:21])}"
        )
    full = {**colours}
    if BACKGROUND not in full and (0, 0, 0) not in full.values():
        full[BACKGROUND] = (0, 0, 0)
    values = tuple(numbers[name] for name in full)
    in_order = numbered or all(value in (line, ignore_id) for line, value in enumerate(values))
    return ColourTable(path.name, tuple(full.values()), values, tuple(full), in_order=in_order)


def classes_of(
    colours: Mapping[str, Rgb], ignore: Collection[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names by mask value, background first, and the names that count nowhere."""
    ignored = not_counted(colours, ignore)
    return (BACKGROUND, *(n for n in colours if n != BACKGROUND and n not in ignored)), tuple(ignored)
