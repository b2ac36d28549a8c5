"""What is expected of plain values (of JSON, YAML): one check instead of one at every use.

expect(value, {"steps": [{"step": range(1000), "classes": [str], "seconds?": float}]}, "results.json")
"""

import json
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError

_EXACT = 1 << 53  # whole numbers up to here are exact as a float too, which is how other languages read them

Shape = Any
"""What is expected of a value: a type (`float` takes whole numbers too, and only finite ones), None, a
`range` of whole numbers, a frozenset of words, a tuple of alternatives, `[shape]` for a list, `{str: shape}`
for any names, `{"key": shape, "key?": shape}` for a mapping with the first key and perhaps the second."""


def expect(value: Any, shape: Shape, where: str, fix: str = "restore it") -> None:
    """Refuse a value that is not of a shape.

    Args:
        value: Plain values, as the readers of `documents.py` give them.
        shape: See `Shape`.
        where: The file, for errors.
        fix: What to do about a damaged one.

    Raises:
        UserError: Naming the first place that differs, what it holds and what was expected.
    """
    if found := _difference(value, shape, ""):
        place, what = found
        raise UserError(f"{where}{place and f': {place}'} {what}; {fix}")


Difference = tuple[str, str] | None
"""Where a value differs, such as `steps[1].cost`, and in what; None where it does not."""


def _difference(value: Any, shape: Shape, place: str) -> Difference:
    if isinstance(shape, tuple):
        if any(_difference(value, each, place) is None for each in shape):
            return None
        # of several kinds of mapping or list the one meant is told by the kind of value
        same = [s for s in shape if isinstance(s, dict | list) and isinstance(value, type(s))]
        return _difference(value, same[0], place) if same else (place, _holds(value, shape))
    if isinstance(shape, dict) and isinstance(value, dict):
        return _in_mapping(value, shape, place)
    if isinstance(shape, list) and isinstance(value, list):
        if _all_fit(value, shape[0]):
            return None
        found = (_difference(item, shape[0], f"{place}[{k}]") for k, item in enumerate(value))
        return next((f for f in found if f), None)
    return None if _fits(value, shape) else (place, _holds(value, shape))


def _in_mapping(value: dict[str, Any], shape: dict[Any, Shape], place: str) -> Difference:
    before = place and f"{place}."
    if str in shape:
        found = (_difference(item, shape[str], f"{before}{key[:40]}") for key, item in value.items())
        return next((f for f in found if f), None)
    if lacking := [name for name in shape if not name.endswith("?") and name not in value]:
        return place, f"lacks {', '.join(lacking)}"
    for name, each in shape.items():
        key = name.removesuffix("?")
        if key in value and (found_in := _difference(value[key], each, f"{before}{key}")):
            return found_in
    return None


def _all_fit(values: list[Any], shape: Shape) -> bool:
    """Whether many numbers fit, without looking at each: confusion matrices have millions."""
    if not values or not (shape in (int, float) or isinstance(shape, range)):
        return False
    if not {type(v) for v in values} <= ({int, float} if shape is float else {int}):
        return False
    # NaN is in no order
    return _fits(min(values), shape) and _fits(max(values), shape) and all(v == v for v in values)


def _fits(value: Any, shape: Shape) -> bool:
    if shape is None:
        return value is None
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, dict | list):
        return False  # of that kind it was looked into
    if shape is int:
        return type(value) is int and abs(value) <= _EXACT
    if shape is float:
        return _fits(value, int) or (type(value) is float and math.isfinite(value))
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


def _holds(value: Any, shape: Shape) -> str:
    return f"holds {_shown(value)}, expected {_named(shape)}"


def _named(shape: Shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(_named(each) for each in shape))
    if isinstance(shape, range):
        return f"a whole number from {shape.start} to {shape.stop - 1}"
    if isinstance(shape, frozenset):
        return " or ".join(sorted(shape))
    kind = type(shape) if isinstance(shape, dict | list) else shape
    return _NAMES[kind] if kind in _NAMES else f"a {kind.__name__.lower()}"


def _shown(value: Any) -> str:
    """A value for an error, in its first characters."""
    if isinstance(value, dict | list):
        return f"{_NAMES[type(value)]} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        return "a whole number that is too large"
    return json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)[:40]


def shape_of(kind: type) -> dict[str, Shape]:
    """The shape of a dataclass's fields as JSON or YAML stores them; each may be left out.

    Its fields are annotated with int, float, str, bool, None, `Literal` of words, tuples, unions of these.
    """
    return {f"{name}?": _annotated(hint) for name, hint in get_type_hints(kind).items()}


def _annotated(hint: Any) -> Shape:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return frozenset(inner)
    if origin in (Union, UnionType):
        return tuple(_annotated(each) for each in inner)
    if origin is tuple:
        return [_annotated(inner[0])]
    if hint is NoneType:
        return None
    return hint if hint in (int, float, str, bool) else object  # another package's: it checks that itself
