"""YAML as plain values: mappings with names as keys, lists, text, numbers, true, false and null.

No aliases (so no bombs), no tags (so no sets or objects), and nothing that two readers of YAML take for two
values, such as dates.
"""

import re
from collections.abc import Iterator
from typing import Any, NoReturn, final

import yaml

from .errors import UserError

try:
    from yaml import CSafeLoader as _Events  # thirty times as fast; both give the same events
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as _Events  # type: ignore[assignment]

DEPTH = 64
"""Most levels of lists and mappings in each other; what segrow reads has fewer than ten."""
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
# with a dot: PyYAML writes the text 1e5 without quotes; an option that wants a number takes it from the text
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None}
for _word, _value in (("null", None), ("true", True), ("false", False)):
    _WORDS |= dict.fromkeys((_word, _word.title(), _word.upper()), _value)
# what YAML 1.1 (PyYAML) and YAML 1.2 take for different values
_TWO_READINGS = (
    (re.compile(r"(?:yes|no|on|off)", re.IGNORECASE), "true or false"),
    (re.compile(r"[-+]?0[0-9][0-9_]*|[-+]?0[0-7]*_[0-7_]*|[-+]?0o[0-7]+"), "an octal number"),
    (re.compile(r"[-+]?0b[01_]+"), "a binary number"),
    (re.compile(r"[-+]?0x[0-9a-fA-F_]+"), "a hexadecimal number"),
    (re.compile(r"[-+]?[0-9]+_[0-9_.eE+-]*"), "a number"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"), "a number to base 60"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t]+[0-9]{1,2}:[0-9]{2}:[0-9]{2}.*)?"), "a date"),
)


def plain_value(text: str, where: str, fix: str) -> Any:
    """The value of a YAML text.

    Args:
        where: The file, for errors.
        fix: What to do about a damaged one.

    Raises:
        UserError: For all that is said above, and for what is no YAML.
    """
    try:
        return _YamlValue(text, where).value
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where} is not YAML ({error.problem or error.context}{line}); {fix}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML ({' '.join(str(error).split())}); {fix}") from None


@final
class _YamlValue:
    """Plain values from the events of the parser, without PyYAML's composer, which follows aliases."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_Events)
        self.value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "begins a second document; expected one")
                self.value = self._node(next(self._events), 0)

    def _node(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"has an alias (*{event.anchor}), which is not read; write the value itself")
        self._check_tag(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth == DEPTH:
            self._refuse(event, f"is nested more than {DEPTH} levels deep; flatten it")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(depth)
        return self._mapping(depth)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse(event, "has a list, mapping or alias for a key; write a name")
            self._check_tag(event)
            key = self._text(event)
            if key == "<<" and event.implicit[0]:
                self._refuse(event, "has a merge key (<<), which is not read; write the values themselves")
            if key in found:
                self._refuse(event, f'has "{key}" twice; keep one of them')
            found[key] = self._node(next(self._events), depth + 1)
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = self._text(event)
        if not event.implicit[0]:  # in quotes, or a block
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) > 300:
                self._refuse(event, f"has a number of {len(text)} digits; write a smaller one")
            return int(text)
        for pattern, reading in _TWO_READINGS:
            if pattern.fullmatch(text):
                self._refuse(
                    event,
                    f"has {text[:40]}, which is {reading} to some readers of YAML and something else to "
                    f'others; write that value plainly, or "{text[:40]}" in quotes for the text',
                )
        if _FLOAT.fullmatch(text):
            return float(text)
        if special := _SPECIAL.fullmatch(text):
            return float(special[1] + special[2].lower())
        return text

    def _text(self, event: yaml.ScalarEvent) -> str:
        text: str = event.value
        if not text.isprintable() and any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in text):
            self._refuse(event, "has an escape that is not a character; write the character itself")
        return text

    def _check_tag(self, event: yaml.Event) -> None:
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            self._refuse(event, f"has a tag ({tag}), which is not read; write a plain value")

    def _refuse(self, event: yaml.Event, why: str) -> NoReturn:
        mark: Any = event.start_mark
        raise UserError(f"{self._where}: line {mark.line + 1} {why}")
