"""The names of classes that a checkpoint holds beside its weights, held against those that are given."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..class_lists import is_background, not_counted
from ..errors import UserError
from .state_dicts import listed

BACKGROUND = ("background", "__background__", "_background_")

_KEYS = frozenset(
    (
        *("classes", "class_names", "classnames", "class_list", "class_labels", "names", "labels"),
        *("label_names", "label_list", "categories", "class_to_idx", "class_to_index", "class_map"),
        *("idx_to_class", "index_to_class", "class_dict", "label2id", "id2label", "label_map"),
    )
)
"""What such a list is called, in small letters: of mmseg, torchvision, transformers, YOLO and others."""
_IGNORED = (-1, -100, 255, 65535)  # numbers that are no channel
_DEEPEST = 4  # levels of a checkpoint that are looked through


def compare_names(path: Path, names: Sequence[str], channels: int, content: object) -> list[str]:
    """Notes on the file's own names of its channels, where they are others.

    Args:
        path: The file.
        names: As given, one for each channel but perhaps background.
        channels: How many the weights have.
        content: What the file holds.

    Raises:
        UserError: The file says that its first channel is not background, or has a given name at another one.
    """
    given = [name for name in names if name not in BACKGROUND]
    notes = []
    for key, own in dict.fromkeys(_lists(content)):
        classes = own[1:] if is_background(own[0]) else own
        says = f"{path} lists its classes as {listed(classes)} ({key})"
        if len(own) == channels and not is_background(own[0]):
            if not not_counted(own[:1], None):
                raise UserError(
                    f'{says}, one for each channel, so the first is "{own[0]}"; segrow needs background '
                    "there: train the model with it, or, where the list is wrong, save the weights alone"
                )
            notes.append(f'{path}: its first channel is "{own[0]}" ({key}), which is taken as background')
            classes = own[1:]
        there = {_plain(name): k for k, name in enumerate(classes)}
        moved = [(name, k) for k, name in enumerate(given) if there.get(_plain(name), k) != k]
        if moved and len(classes) == len(given):
            name, k = moved[0]
            raise UserError(
                f"{says}, got --names {listed(given)}; give them in the order of the file, which is that of "
                f'its channels ("{name}" is in channel {there[_plain(name)] + 1} there, in {k + 1} here)'
            )
        if [_plain(name) for name in classes] != [_plain(name) for name in given]:
            called = f"here they are called {listed(given)}"
            notes.append(f"{path}: it lists its classes as {listed(classes)} ({key}); {called}")
    return notes


def _lists(content: object, depth: int = _DEEPEST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each list of names, by its key, in the order of the channels."""
    if not isinstance(content, Mapping) or not depth:
        return
    for key, value in content.items():
        if str(key).lower() in _KEYS and (own := _in_order(value)):
            yield str(key), own
        else:
            yield from _lists(value, depth - 1)


def _in_order(value: object) -> tuple[str, ...]:
    """Names as a list, or as a mapping from or to whole numbers that follow each other; else none."""
    if isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(name, str) for name in value) else ()
    if not isinstance(value, Mapping):
        return ()
    both = ((_number(a), b) for pair in value.items() for a, b in (pair, pair[::-1]))
    numbered = {
        n: name for n, name in both if n is not None and isinstance(name, str) and _number(name) is None
    }
    if len(numbered) != len(value):
        return ()
    order = sorted(numbered.keys() - set(_IGNORED))
    start = order[0] if order else -1
    return (
        tuple(numbered[n] for n in order) if start in (0, 1) and order[-1] == start + len(order) - 1 else ()
    )


def _number(value: object) -> int | None:
    """A whole number, which JSON writes as text where it is a key."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,6}", value) else None


def _plain(name: str) -> str:
    return name.strip().casefold()
