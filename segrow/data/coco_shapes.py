"""Outlines of COCO's kind (polygons, run lengths) as masks, in bounded time and memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Outline = Sequence[Sequence[float]] | Mapping[str, Any]
LONGEST = 1_000_000
"""Most pixels that the edges of an object may run through; pycocotools holds 100 bytes of each."""
_COARSE = 1e6  # a coordinate beyond is no pixel of any image
_DIGITS = 13  # of a compressed run length: 65 bits


def check_outline(outline: object, where: str) -> tuple[Outline | None, int]:
    """An outline that can be drawn, and how many of its polygons cannot.

    Args:
        outline: Of an annotation, its `segmentation`.
        where: The annotation, for errors.

    Returns:
        None for none at all: no polygon of three corners, no run length.

    Raises:
        UserError: It is damaged: something else than numbers, or runs that do not fill their size.
    """
    if isinstance(outline, Mapping):
        if not outline or outline.get("counts") in ([], ""):
            return None, 0
        _check_runs(outline, where)
        return outline, 0
    if outline is None:
        return None, 0
    if not isinstance(outline, list):
        raise UserError(f"{where} has {str(outline)[:40]!r} for an outline; expected polygons or an RLE")
    if outline and all(_is_number(value) for value in outline):
        outline = [outline]  # one polygon without the list around it, as VIA writes it
    outline = [_without_pairs(polygon) for polygon in outline]
    if len(outline) == 1 and isinstance(outline[0], Mapping):
        raise UserError(f"{where} has its RLE within a list; expected it without the brackets around it")
    if not all(isinstance(polygon, list) for polygon in outline):
        raise UserError(
            f"{where} has a polygon that is not a list; expected a list of them: [[x1, y1, …], …]"
        )
    if not all(_is_number(value) for polygon in outline for value in polygon):
        raise UserError(f"{where} has a polygon with something else than numbers of pixels in it")
    good = [polygon for polygon in outline if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return good or None, len(outline) - len(good)


def _without_pairs(polygon: Any) -> Any:
    """A polygon whose corners are lists of their own, [[x, y], …], as the flat list that COCO has."""
    if isinstance(polygon, list) and polygon and all(isinstance(c, list) and len(c) == 2 for c in polygon):
        return [value for corner in polygon for value in corner]
    return polygon


class Drawn(NamedTuple):
    """Objects as a mask.

    Attributes:
        mask: H x W.
        empty: How many have no pixel of the image in them.
        covered: Value, value on top of it and name for errors of each that no pixel shows, for objects of
            other values are on it.
    """

    mask: NDArray[Any]
    empty: int
    covered: list[tuple[int, int, str]]


def draw_shapes(
    shapes: Sequence[tuple[Outline, int, str]], size: tuple[int, int], masks: Any, dtype: type
) -> Drawn:
    """Objects on background, the largest first, so that small ones are on top; of equal ones the later is.

    Args:
        shapes: Outline, mask value and name for errors of each.
        size: Height and width of the image.
        masks: The module pycocotools.mask.
        dtype: Of the mask.

    Raises:
        UserError: An outline that is too long, or run lengths of another size.
    """
    encoded = [_encoded(outline, size, masks, where) for outline, _, where in shapes]
    areas = [0 if runs is None else int(masks.area(runs)) for runs in encoded]
    columns: NDArray[Any] = np.zeros(size[::-1], dtype)  # runs go down the columns
    flat = columns.reshape(-1)
    for index in sorted(range(len(areas)), key=lambda k: -areas[k]):
        if areas[index]:  # a run at a time: of a small object in a large image that is little
            for start, stop in _runs(encoded[index]):
                flat[start:stop] = shapes[index][1]
    covered = []
    for (_, value, where), area, runs in zip(shapes, areas, encoded, strict=True):
        # of an object that is seen, the first run nearly always shows it
        if area and not any((flat[start:stop] == value).any() for start, stop in _runs(runs)):
            covered.append((value, int(flat[next(start for start, _ in _runs(runs))]), where))
    return Drawn(np.ascontiguousarray(columns.T), areas.count(0), covered)


def _runs(encoded: Any) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of an object's pixels, of those that have any."""
    ends = np.cumsum(run_lengths(encoded["counts"].decode())).tolist()
    return ((start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=False) if stop > start)


def _encoded(outline: Outline, size: tuple[int, int], masks: Any, where: str) -> Any:
    """Run lengths of pycocotools; None when nothing of it is in the image."""
    height, width = size
    if isinstance(outline, Mapping):
        told = outline["size"]
        if tuple(told) != size:
            raise UserError(
                f"{where} is {told[1]}x{told[0]} pixels (width x height), its image {width}x{height}; they "
                "must be equal"
            )
        return masks.frPyObjects({"size": list(size), "counts": run_lengths(outline["counts"])}, *size)
    inside = [clipped(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), size) for polygon in outline]
    inside = [polygon for polygon in inside if len(polygon) >= 3]
    length = sum(float(np.abs(np.diff(p, axis=0, append=p[:1])).max(axis=1).sum()) for p in inside)
    if length > LONGEST:
        corners = sum(len(polygon) for polygon in inside)
        raise UserError(
            f"{where} has {corners} corners and an outline of {length:.3g} pixels, expected at most "
            f"{LONGEST:.0e}; draw it simpler, or export it as RLE"
        )
    return masks.merge(masks.frPyObjects([p.ravel().tolist() for p in inside], *size)) if inside else None


def clipped(polygon: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """A polygon cut to a frame around the image: pycocotools holds every pixel of its edges. n x 2 (x, y).

    The same pixels of the image are in it, but for rounding where an edge was cut. The frame is so wide that
    ordinary polygons, which cross the border by a little, stay as they are.
    """
    for axis, side in ((0, size[1]), (1, size[0])):
        for sign, bound in ((1.0, -float(side) - 16), (-1.0, -2.0 * side - 16)):
            # distance into the half plane, negative outside
            depth = sign * polygon[:, axis] - bound
            if not len(polygon) or (depth >= 0).all():
                continue
            after, depth_after = np.roll(polygon, -1, axis=0), np.roll(depth, -1)
            crosses = (depth >= 0) != (depth_after >= 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                at = polygon + (depth / (depth - depth_after))[:, None] * (after - polygon)
            at[:, axis] = sign * bound
            keep = np.stack((depth >= 0, crosses), axis=1)
            polygon = np.stack((polygon, at), axis=1)[keep]
    return polygon


def _is_number(value: object) -> bool:
    """A coordinate that may be meant: neither text nor NaN, nor far outside of any image."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _COARSE


def _check_runs(outline: Mapping[str, Any], where: str) -> None:
    """An RLE has a size, and runs that fill it."""
    counts, size = outline.get("counts"), outline.get("size")
    if not counts or not isinstance(size, list) or len(size) != 2:
        raise UserError(f"{where} has an RLE without counts or size; expected both, or a polygon")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{where} has an RLE of size {size}; expected [height, width] in pixels")
    lengths = run_lengths(counts)
    if not all(type(length) is int and length >= 0 for length in lengths) or not lengths:
        raise UserError(f"{where} has an RLE whose counts are not lengths of runs; export it again")
    if sum(lengths) != size[0] * size[1]:
        raise UserError(
            f"{where} has an RLE of {sum(lengths)} pixels, expected {size[1]}x{size[0]} (width x height) = "
            f"{size[0] * size[1]}; export it again"
        )


def run_lengths(counts: object) -> list[Any]:
    """Lengths of the runs, of a compressed RLE too; empty when it is none.

    There each is written in digits of five bits, the lowest first, a sixth bit says that more follow; from
    the fourth on it is the difference to the last but one.
    """
    if not isinstance(counts, str):
        return counts if isinstance(counts, list) else []
    lengths: list[int] = []
    value = shift = 0
    for digit in (ord(letter) - 48 for letter in counts):
        if not 0 <= digit < 64 or shift > 5 * _DIGITS:
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
