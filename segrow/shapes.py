"""What is expected of plain values (of JSON, YAML): one check instead of one at every use.

expect(value, {"steps": [{"step": range(1000), "classes": [str], "seconds?": float}]}, "results.json")
"""

import json
import math
from typing import Any

from .errors import UserError

_EXACT = 1 << 53  # whole numbers up to here are exact as a float too, which is how other languages read them

Shape = Any
"""What is expected of a value: a type (`float` takes whole numbers too, and only finite ones), None, a
`range` of whole numbers, a frozenset of words, a tuple of alternatives, `[shape]` for a list, `{str: shape}`
for any names, `{"key": shape, "key?": shape}` for a mapping with the first key and perhaps the second."""


def expect(value: Any, shape: Shape, where: str, fix: str = "restore it") -> None:
    """Refuse a value that is not of a shape.

    Args:
        value: Plain values, as the readers above give them.
        shape: See `Shape`.
        where: The file, for errors.
        fix: What to do about a damaged one.

    Raises:
        UserError: Naming the first place that differs, what it holds and what was expected.
    """
    if found := _mismatch(value, shape, ""):
        place, held, expected = found
        raise UserError(f"{where} holds {_shown(held)}{place and f' at {place}'}, expected {expected}; {fix}")


def _mismatch(value: Any, shape: Shape, place: str) -> tuple[str, Any, str] | None:
    """Place, value and expectation of the first difference; None when there is none."""
    if isinstance(shape, tuple):
        if any(_mismatch(value, each, place) is None for each in shape):
            return None
        # of several kinds of mapping or list the one meant is told by the kind of value
        same = [s for s in shape if isinstance(s, dict | list) and isinstance(value, type(s))]
        return _mismatch(value, same[0], place) if same else (place, value, _named(shape))
    if isinstance(shape, dict):
        return _mapping_mismatch(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return place, value, _named(shape)
        found = (_mismatch(item, shape[0], f"{place}[{k}]") for k, item in enumerate(value))
        return None if _all_plain(value, shape[0]) else next((f for f in found if f), None)
    return None if _fits(value, shape) else (place, value, _named(shape))


def _mapping_mismatch(value: Any, shape: dict[Any, Shape], place: str) -> tuple[str, Any, str] | None:
    if not isinstance(value, dict):
        return place, value, _named(shape)
    if str in shape:
        found = (_mismatch(item, shape[str], f"{place}.{key}".lstrip(".")) for key, item in value.items())
        return next((f for f in found if f), None)
    for name, each in shape.items():
        key = name.removesuffix("?")
        if key not in value:
            if key == name:
                return place, value, f'"{key}" in it'
        elif bad := _mismatch(value[key], each, f"{place}.{key}".lstrip(".")):
            return bad
    return None


def _all_plain(values: list[Any], shape: Shape) -> bool:
    """Whether many numbers fit, without looking at each: confusion matrices have millions."""
    if not values or not (shape in (int, float) or isinstance(shape, range)):
        return False
    if not {type(v) for v in values} <= ({int, float} if shape is float else {int}):
        return False
    return _fits(min(values), shape) and _fits(max(values), shape) and all(v == v for v in values)


def _fits(value: Any, shape: Shape) -> bool:
    if shape is None:
        return value is None
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if shape is int:
        return type(value) is int and abs(value) <= _EXACT
    if shape is float:
        return (type(value) is int and abs(value) <= _EXACT) or (
            type(value) is float and math.isfinite(value)
        )
    return isinstance(value, shape)


_NAMES: dict[Any, str] = {
    None: "null",
    int: f"a whole number up to {_EXACT}",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def _named(shape: Shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(_named(each) for each in shape))
    if isinstance(shape, range):
        return f"a whole number from {shape.start} to {shape.stop - 1}"
    if isinstance(shape, frozenset):
        return " or ".join(sorted(shape))
    if isinstance(shape, dict | list):
        return _NAMES[type(shape)]
    return _NAMES.get(shape, "something else")


def _shown(value: Any) -> str:
    """A value for an error, in its first characters."""
    if isinstance(value, dict | list):
        return f"{_NAMES[type(value)]} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        return "a whole number that is too large"
    return json.dumps(value, ensure_ascii=False)[:40]
