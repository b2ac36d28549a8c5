"""How files were taken that do not say plainly what their numbers mean, and the sentences that tell it.

A file has flags (`Taken`); `taken_notes` sums the files of a split up, one sentence per flag.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..wording import are, count, have, verb


class Taken(enum.IntFlag):
    """What was decided for a file. The numbers stand in the cache of the index: append, never renumber."""

    PLAIN = 0
    # masks
    GREYS = 1 << 0
    INDEX = 1 << 1
    COLOURS = 1 << 2
    ALPHA = 1 << 3
    FLOAT_MASK = 1 << 4
    CLEAR_VALUE = 1 << 5
    ONLY_IGNORED = 1 << 6
    MOVED = 1 << 7
    IGNORED = 1 << 8
    NODATA = 1 << 9
    NUMBERS = 1 << 10
    GREY_COLOURS = 1 << 11
    CHOSEN = 1 << 12
    # images
    UNIT = 1 << 16
    FLOAT = 1 << 17
    NAN = 1 << 18
    EIGHT = 1 << 19
    TWELVE = 1 << 20
    DARK = 1 << 21
    FIRST = 1 << 22
    SEE_THROUGH = 1 << 23
    TURNED = 1 << 24
    SIXTEEN = 1 << 25
    STATED = 1 << 26
    BANDS = 1 << 27
    DIM = 1 << 28


SAYS: dict[Taken, tuple[str, str, str]] = {
    Taken.GREYS: (
        "mask",
        "have",
        "a palette of greys, and the grey is taken as the value, not the index; where the index is the class"
        ", save masks as grey",
    ),
    Taken.INDEX: (
        "mask",
        "have",
        "a palette of greys that are not classes, so the index is taken as the value",
    ),
    Taken.CHOSEN: ("mask", "have", "a palette, and the index is taken as the value, as SEGROW_PALETTE says"),
    Taken.COLOURS: ("mask", "have", "three equal colour channels, which are taken as grey"),
    Taken.ALPHA: ("mask", "have", "an alpha channel, which is opaque and left out"),
    Taken.FLOAT_MASK: ("mask", "hold", "floating-point numbers, all whole, which are taken as they are"),
    Taken.CLEAR_VALUE: ("mask", "show", "a value as transparent; it counts as any other value"),
    Taken.ONLY_IGNORED: (
        "mask",
        "hold",
        'only 0 and the value that means "ignore", so nothing is annotated there; where that value is a '
        "class, write it as 1",
    ),
    Taken.MOVED: (
        "mask",
        "have",
        "the colours of the classes at other indices of the palette, and the colours are taken; where the "
        "index is the class, save masks as grey",
    ),
    Taken.NUMBERS: (
        "mask",
        "hold",
        "numbers, not the colours that are stated, and the numbers count: i is the class of line i (from 0) "
        "of classes.txt, or without it of the lines with a colour",
    ),
    Taken.GREY_COLOURS: ("mask", "are", "grey, and the greys are taken for the colours that are stated"),
    Taken.NODATA: (
        "mask",
        "show",
        "a class or background as the value that their TIFF calls no data; it counts as any other value",
    ),
    Taken.UNIT: ("image", "hold", "floating-point numbers from 0 to 1, which are scaled to 0..255"),
    Taken.FLOAT: ("image", "hold", "floating-point numbers above 1, which are taken as 0..255"),
    Taken.NAN: ("image", "have", "pixels that are not a number, which are taken as black"),
    Taken.EIGHT: ("image", "have", "more than 8 bits per value but nothing above 255: taken as 8-bit"),
    Taken.TWELVE: ("image", "have", "more than 12 bits per value but nothing above 4095: taken as 12-bit"),
    Taken.STATED: ("image", "have", "more than 8 bits per value, with white where SEGROW_WHITE says"),
    Taken.DARK: (
        "image",
        "have",
        "16 bits per colour but nothing above 4095, which is seen nearly black; save such images with 8 bits",
    ),
    Taken.DIM: (
        "image",
        "have",
        "16 bits per value but nothing above 16383, which is seen nearly black; if that is white, set "
        "SEGROW_WHITE=16383 (of 13 bits 8191)",
    ),
    Taken.FIRST: ("image", "hold", "several pictures (frames or pages), of which the first is taken"),
    Taken.BANDS: ("image", "have", "more bands than colours, of which the first are taken"),
    Taken.SEE_THROUGH: (
        "image",
        "have",
        "transparent pixels; alpha is left out, and the colour under it counts",
    ),
    Taken.TURNED: (
        "image",
        "have",
        "an EXIF orientation, and the size does not tell whether the mask is turned by it, too; masks are "
        "taken as drawn on the upright image",
    ),
}
"""What a file is, what it does, and the rest of the sentence."""
_SCALES: tuple[dict[Taken, str], ...] = (
    {
        Taken.EIGHT: "as 8 bits (nothing above 255",
        Taken.TWELVE: "as 12 bits (nothing above 4095",
        Taken.SIXTEEN: "as 16 bits (up to 65535",
    },
    {Taken.UNIT: "as 0 to 1 (nothing above 1", Taken.FLOAT: "as 0 to 255 (some above 1"},
)
"""Readings that one look at a file chooses between, though files of one source have the same."""
_JUDGED = (
    Taken.GREYS,
    Taken.INDEX,
    Taken.NUMBERS,
    Taken.GREY_COLOURS,
    *(flag for scales in _SCALES for flag in scales),
)

Readings = Mapping[Taken, tuple[int, str]]
"""How many files were read in a way that others of their kind may contradict, and the name of the first."""


def readings(flags: ArrayLike, names: Sequence[str]) -> Readings:
    """Which such readings some files have.

    Args:
        flags: Those of each file: `Taken`, or as whole numbers.
        names: What to call each file.
    """
    rows = np.asarray(flags, np.int64)
    hits = {flag: np.flatnonzero(rows & flag) for flag in _JUDGED}
    return {flag: (len(found), names[found[0]]) for flag, found in hits.items() if len(found)}


def joined(parts: Iterable[Readings]) -> Readings:
    """The readings of several splits as one."""
    found: dict[Taken, tuple[int, str]] = {}
    for part in parts:
        for flag, (n, first) in part.items():
            before, name = found.get(flag, (0, first))
            found[flag] = before + n, name
    return found


def scaled_apart(found: Readings) -> str:
    """What an error or a note says of images that would be scaled differently; "" where all are alike."""
    for scales in _SCALES:
        apart = [f"{found[f][0]} {said}, first {found[f][1]})" for f, said in scales.items() if f in found]
        if len(apart) > 1:
            return (
                f"images with more than 8 bits per value are read in different ways: {', '.join(apart)}; set "
                "the environment variable SEGROW_WHITE to the value that is white in all of them, or save "
                "them with 8 bits"
            )
    return ""


def taken_notes(flags: ArrayLike, names: Sequence[str], where: str, drawn: bool = False) -> tuple[str, ...]:
    """A sentence for every flag that a file has.

    Args:
        flags: Those of each file: `Taken`, or as whole numbers.
        names: What to call each file.
        where: Begins the sentence: the split, such as "train".
        drawn: Whether masks are drawn from outlines, so that nobody can write a value otherwise.
    """
    rows, notes = np.asarray(flags, np.int64), []
    for flag, (what, does, rest) in SAYS.items():
        hits = np.flatnonzero(rows & flag)
        if n := len(hits):
            if drawn and flag is Taken.ONLY_IGNORED:
                rest = rest.partition(";")[0]
            did = {"have": have, "are": are}[does](n) if does in ("have", "are") else verb(n, does)
            notes.append(f"{where}: {n} of {count(len(rows), what)} {did} {rest} (first {names[hits[0]]})")
    return tuple(notes)
