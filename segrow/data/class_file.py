"""classes.txt: line i (from 0) names mask value i; line 0 is background, whatever it is called.

background          what a list in another language has around every name is left out, and said:
cat                 "cat",     - cat     1: cat     cat,1
traffic light       a number is left out where those of all lines are the lines' own
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..class_lists import BACKGROUND, MOST_CLASSES, NOT_COUNTED, is_background, name_notes, plain_name
from ..documents import read_text
from ..errors import UserError
from ..wording import are, count
from .colours import FILES as COLOUR_FILES
from .colours import parse_colours

NO_CLASS = frozenset({"background", "bg", "void", "unlabeled", "unlabelled", "unlabel", "unknown", "ignore"})
NO_CLASS |= {"other", "others", "none", "nothing", "null", "empty", "clutter", "misc", "rest", "outofroi", ""}

_NAMES_ELSEWHERE = frozenset(COLOUR_FILES) | {"class_names.txt", "labels.txt", "classes.csv"}
_NAMES_ELSEWHERE |= {"classes.names", "obj.names"}  # as YOLO's tools call it

_LINES = ", one a line, background first"
_ONE_A_LINE = "expected one name per line, background first"


class Classes(NamedTuple):
    """What a `classes.txt` says: names by mask value, and notes on what was decided."""

    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_classes(path: Path) -> Classes:
    """Class names of a `classes.txt`; whatever line 0 calls it, class 0 is "background".

    Raises:
        UserError: No such file, another form than one name per line, fewer than two or more than 65535 names,
            numbers that are not those of the lines, an empty line, a comment, a name twice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; it names the classes{named_elsewhere(path) or _LINES}")
    lines = class_lines(path)
    filled = sum(map(bool, lines))
    _check_form(path, lines)
    remarks: tuple[str, ...] = ()
    if named := parse_colours(lines):
        if n := filled - len(named):
            remarks = (f"{path}: {count(n, 'line')} without a colour {are(n)} left out",)
        lines = [name for name, _ in named]
    lines, dressed, quoted = _without_signs(path, lines)
    numbered: tuple[str, ...] = ()
    if not quoted:
        lines, numbered = _without_numbers(path, lines)
        if numbered:
            lines, dressed, quoted = _without_signs(path, lines)
    if not quoted:
        bare, held = _without_quotes(path, lines)
        told = _check_names(path, lines, bare, named is not None)
        lines, dressed = bare, (*(dressed if numbered or dressed else told), *held)
    names = ("background", *map(plain_name, lines[1:]))
    if len(names) < 2 or len(names) > MOST_CLASSES + 1:
        raise UserError(
            f"{path} has {count(filled, 'line')}; expected background and 1 to {MOST_CLASSES} classes, one "
            "a line"
        )
    said = _line_0(path, plain_name(lines[0]), names)
    where: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path} has nothing in line {number}; line i (from 0) names mask value i")
        if name in where:
            raise UserError(
                f'{path} has "{name}" in lines {where[name]} and {number}; every class needs its own name'
            )
        where[name] = number
    return Classes(names, (*remarks, *dressed, *numbered, *name_notes(str(path), lines[1:]), *said))


def named_elsewhere(path: Path) -> str:
    """What to do for a missing class list, where a file beside it has the names; else nothing."""
    beside = sorted(file.name for file in path.parent.glob("*") if file.is_file())
    if alike := next((name for name in beside if name.lower() == path.name), None):
        return f"; {alike} is there: rename it to {path.name}"
    if names := next((name for name in beside if name.lower() in _NAMES_ELSEWHERE), None):
        return f"; {names} is there: write its names into {path.name}, background first, one a line"
    return ""


def class_lines(path: Path) -> list[str]:
    """The lines of the file but for empty ones, and DOS's mark (Ctrl-Z), at its end.

    Separators that are not seen end no line.
    """
    return re.split(r"\r\n?|\n", read_text(path, "class list").rstrip("\r\n \t\x1a"))


def _check_form(path: Path, lines: Sequence[str]) -> None:
    """Refuses names in one line, and lists of a programming language."""
    text = "\n".join(lines).strip()
    brackets = text[:1] + text[-1:] in ("[]", "{}")
    if brackets and (len(lines) == 1 or re.match(r"[\[{]\s*[\"']", text)):
        raise UserError(f"{path} holds a list in brackets, such as JSON's; {_ONE_A_LINE}")
    if len(lines) > 1:
        return
    signs = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
    if sign := next((sign for sign in signs if sign in text.strip(f"{sign} ")), None):
        raise UserError(f"{path} has one line, with {signs[sign]} between the names; {_ONE_A_LINE}")


_SIGNED = re.compile(
    r"""\s*(?:-\s+(?P<item>\S.*)|(?P<mark>["'])(?P<quoted>.+)(?P=mark)\s*,?|(?P<last>\S.*),)\s*"""
)


def _without_signs(path: Path, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...], bool]:
    """Names without what a list in another language has around them, where every line has it.

    Returns:
        The names, a note, and whether every one was in quotes.
    """
    found = [_SIGNED.fullmatch(line) for line in lines]
    signed = [match for match in found if match]
    if not signed or len(signed) < len(lines):
        return list(lines), (), False
    names = [match["item"] or match["quoted"] or match["last"] for match in signed]
    note = f"{path}: the quotes, dashes or commas around the names are left out"
    return names, (note,), all(match["quoted"] for match in signed)


def _without_quotes(path: Path, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names without the quotes that only some of them have, and a note."""
    found = [_QUOTED.fullmatch(line) for line in lines]
    names = [match["name"] if match else line for match, line in zip(found, lines, strict=True)]
    held = [match["name"] for match in found if match]
    if not held:
        return names, ()
    note = (
        f"{path}: quotes around {count(len(held), 'name')} (first {held[0]}) are left out; all in them counts"
    )
    return names, (note,)


_QUOTED = re.compile(r"""\s*(?P<mark>["'])(?P<name>(?:(?!(?P=mark)).)+)(?P=mark)\s*""")
_BEFORE = re.compile(r"\s*(?P<number>\d+)(?P<sign>\s*[:;,=.)]\s*|\s+)(?P<name>\S.*)")
_AFTER = re.compile(r"(?P<name>.*?\S)(?P<sign>\s*[:;,=(#]\s*|\s+)(?P<number>\d+)\s*\)?\s*")
_CHOOSE = "put every name in quotes where the number belongs to it"


def _without_numbers(path: Path, lines: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names without the numbers before or behind them, where these are the lines' own; and a note.

    Numbers that tell names apart ("type 1", "type 2") belong to the names. Line 0, which is background, may
    be without.

    Raises:
        UserError: Every line has a number, but not its own: line i (from 0) names value i.
    """
    for side, pattern in (("in front of", _BEFORE), ("behind", _AFTER)):
        first, *found = (pattern.fullmatch(line) for line in lines)
        matches = [match for match in found if match]
        names = [match["name"] for match in matches]
        if not matches or len(matches) < len(found) or len(set(names)) < len(names):
            continue
        numbers = [int(match["number"]) for match in matches]
        if first:
            matches, names, numbers = (
                [first, *matches],
                [first["name"], *names],
                [int(first["number"]), *numbers],
            )
        elif numbers == [*range(len(numbers))] and len(numbers) > 1:
            raise UserError(
                f'{path} has the heading "{lines[0].strip()}" before its numbered names; remove that line'
            )
        start = 0 if first else 1
        wrong = next((k for k, number in enumerate(numbers) if number != k + start), None)
        plain = not first and all(map(_is_plain, matches))
        if plain and (wrong is not None or len(names) < 2):
            note = f'{path}: the numbers {side} the names ("{lines[1].strip()}") are taken as part of them'
            return list(lines), (note,)
        if wrong is not None:
            raise UserError(
                f'{path} has number {numbers[wrong]} ("{names[wrong].strip()}") in line {wrong + start}; '
                "line i (from 0) names mask value i, with background in line 0: sort the lines, or remove "
                f"the numbers; {_CHOOSE}"
            )
        return [*lines[:start], *names], (f"{path}: the numbers {side} the names are left out; {_CHOOSE}",)
    return list(lines), ()


def _is_plain(match: re.Match[str]) -> bool:
    """Whether a number may be part of a name: by a space, or as in `16:9 screen`, `1.5 inch`, `bolt 8,10`."""
    sign, number, name = match["sign"], match["number"], match["name"]
    before = match.start("number") < match.start("name")
    return not (sign.strip() or "\t" in sign) or (
        sign == sign.strip() and bool(number) and name[0 if before else -1].isdigit()
    )


_QUOTE = "put the name in quotes where that belongs to it"
_QUOTE_ALL = "put every name in quotes where that belongs to it"
_REMARKS = (
    (re.compile(r"\s*(?:#|//).*"), "is a comment; take it out, for line i (from 0) names mask value i"),
    (re.compile(r".*\s(?:#|//)\s+\S.*"), "has a remark behind the name; take it out"),
)
_NO_NAMES = (
    (re.compile(r"[^:]*\w:\s*"), "ends with a colon, as a heading does; take it out"),
    (
        re.compile(r"\s*(?!\d+:\d)\d+\s*[:=)]\s*\S.*"),
        "has a number that is not in all lines; write names alone",
    ),
)
_AS_THEY_ARE = re.compile(
    rf"{_SIGNED.pattern}|.*[,;\t|].*|\s*\d+\s+\S.*|\s*\d+:\d.*|(?:.*\s)?(?:[#]|//)(?:\s.*|$)|[#].*|//.*",
    re.VERBOSE,
)


def _check_names(path: Path, lines: Sequence[str], bare: Sequence[str], coloured: bool) -> tuple[str, ...]:
    """Refuses lines that are no names, and columns.

    What may be a comment or a remark is one where other lines lack it; where all have it, no name would be
    left, or it tells nothing apart.

    Args:
        path: The file, for errors.
        lines: Its names.
        bare: The same, without quotes that some have: these are not judged.
        coloured: Whether a colour stands behind each, so that none is a comment.

    Returns:
        A note on names with signs that other names lack.

    Raises:
        UserError: Such a line, with its number from 1.
    """
    forms = [*_NO_NAMES]
    for form in () if coloured else _REMARKS:
        in_all = len(lines) > 2 and all(map(form[0].fullmatch, lines[1:]))
        if not in_all or _letters(lines[0]) != BACKGROUND:
            forms.append(form)
    judged = {k: line for k, line in enumerate(lines) if line == bare[k]}
    for k, line in judged.items():
        if said := next((said for pattern, said in forms if pattern.fullmatch(line)), None):
            raise UserError(f'{path}: line {k + 1} ("{line.strip()}") {said}; {_QUOTE}')
    if len(judged) > 1 and any(all(sign in line.strip() for line in judged.values()) for sign in ",;\t|"):
        k, line = [*judged.items()][1]
        raise UserError(
            f'{path} has several columns (line {k + 1} is "{line.strip()}"); {_ONE_A_LINE}; {_QUOTE_ALL}'
        )
    odd = [line.strip() for k, line in judged.items() if k and _AS_THEY_ARE.fullmatch(line)]
    return (f"{path}: all of '{odd[0]}' is taken as the name",) if odd else ()


def _line_0(path: Path, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """A note where value 0 is called what sounds like a class.

    Raises:
        UserError: A list of labelme's, whose first line is no value of the masks; or background stands below.
    """
    plain = _letters(name)
    if plain == "ignore" and _letters(names[1]) == "background":
        raise UserError(
            f'{path} names "{name}" before "{names[1]}", as labelme does; line i (from 0) names mask value '
            "i, so remove its first line"
        )
    below = next((value for value, other in enumerate(names) if value and is_background(other)), None)
    if below and not is_background(name):
        raise UserError(
            f'{path} calls value 0 "{name}" and value {below} "{names[below]}", but value 0 is background; '
            "remove the first line where it is a heading, else number the masks so that background is 0"
        )
    if plain in NOT_COUNTED:
        return (
            f'{path} calls value 0 "{name}"; it is trained and counted as background, so write 255 where '
            "pixels must not count",
        )
    if plain in NO_CLASS:
        return ()
    return (f'{path} calls value 0 "{name}"; it is trained and counted as background',)


def _letters(name: str) -> str:
    """Letters and digits, small: `_background_` and `Background` are one name."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
