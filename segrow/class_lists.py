r"""Class names as text: lists of them on a command line, and one name.

    cat,dog                      two names, separated by commas
    door\, double door,wall      a comma within a name stands behind a backslash
    ["door, double door"]        or the list is written as JSON

Names are compared in Unicode's composed form (NFC): "é" is one character or two, depending on where it was
written, and looks the same.
"""

import json
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from .errors import UserError, near

BACKGROUND = "background"
MOST_CLASSES = 65534
"""Besides background: of 16 bits, 0 and the value that counts nowhere are taken."""
NOT_COUNTED = frozenset({"ignore", "ignored", "ignoreregion", "void", "unlabeled", "unlabelled", "dontcare"})
"""Names of what must not count in annotations of others, in small letters without spaces and signs."""

LIST_HELP = r"cat,dog (a comma within a name is written \,)"
_HOW = r'write a comma within a name as "\," ("door\, double door"), or the list as JSON'


def plain_name(name: str) -> str:
    """A class name as it is compared and kept: composed Unicode, with nothing around it that is not seen."""
    name = unicodedata.normalize("NFC", name)
    seen = [at for at, letter in enumerate(name) if letter != " " and not _is_unseen(letter)]
    return name[seen[0] : seen[-1] + 1] if seen else ""


def typed_name(text: str, where: str) -> str:
    """`plain_name` of a name that somebody typed or pasted, who can type it anew.

    Args:
        text: The name; spaces, tabs and line ends around it are left out.
        where: The option, for errors.

    Raises:
        UserError: It has other characters around it that are not seen.
    """
    name = plain_name(text)
    if (full := unicodedata.normalize("NFC", text).strip(string.whitespace)) != name:
        raise UserError(
            f'{where} has a character that is not seen beside "{name}" ("{escaped(full)}"); type the name '
            "anew"
        )
    return name


def has_unseen(name: str) -> bool:
    """Whether a name has a character in it that shows nothing, and is not the usual space."""
    return any(map(_is_unseen, name))


_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # nothing to see, but called letters


def _is_unseen(letter: str) -> bool:
    """Whether a character shows nothing: control characters, all spaces but the usual one, joiners, marks."""
    return letter != " " and (letter.isspace() or _shows_nothing(letter))


def _shows_nothing(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf") or letter in _BLANK


def escaped(name: str) -> str:
    """A name with what is not seen in it written out."""
    return "".join(ascii(letter)[1:-1] if _is_unseen(letter) else letter for letter in name)


def name_notes(where: str, written: Iterable[str]) -> tuple[str, ...]:
    """Notes on names that are not what they look like: `unseen_notes` and `alike_notes`.

    Args:
        where: What lists them.
        written: The names as they stand there.
    """
    written = list(written)
    return unseen_notes(where, written) + alike_notes(where, map(plain_name, written))


def unseen_notes(where: str, written: Iterable[str]) -> tuple[str, ...]:
    """Notes on characters that are not seen, around names or in them; see `name_notes`."""
    notes: list[str] = []
    written = [unicodedata.normalize("NFC", name).strip(string.whitespace) for name in written]
    names = [plain_name(name) for name in written]
    if around := [full for full, name in zip(written, names, strict=True) if full != name]:
        notes.append(
            f'{where}: characters that are not seen, around names, are left out ("{escaped(around[0])}")'
        )
    if within := [name for name in names if has_unseen(name)]:
        notes.append(
            f'{where}: "{escaped(within[0])}" has a character in it that is not seen; it belongs '
            "to the name, so write that anew where it is not meant"
        )
    return tuple(notes)


_ADDED = re.compile(r"(\W*\d+\W*|[.,:;]+|e?s)$")
"""What tools add to a name that is there twice, what is left of a sentence, and the plural."""


def alike_notes(where: str, names: Iterable[str]) -> tuple[str, ...]:
    """Notes on names that differ in capitals, spaces, dashes, underscores or their ending alone."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(_likeness(name), []).append(name)
    pairs = [(first, name) for first, *others in alike.values() for name in others]
    for key, (name, *_) in alike.items():
        shorter = {_ADDED.sub("", key), key.removesuffix("s")} - {key}
        pairs += [(alike[stem][0], name) for stem in sorted(shorter) if stem in alike]
    return tuple(
        f'{where}: "{escaped(one)}" and "{escaped(other)}" are two classes, though the names are '
        "nearly the same; name them alike where one is meant"
        for one, other in pairs
    )


def _likeness(name: str) -> str:
    """What names have in common that differ in capitals, spaces, dashes or underscores alone."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in plain if letter not in " -_" and not _is_unseen(letter)) or name


def split_names(text: str, option: str) -> list[str]:
    """The names of a list; an empty text holds none.

    Args:
        text: See the top of this file.
        option: The option it is of, for errors.

    Raises:
        UserError: A name that is empty, or as `typed_name`.
    """
    text = text.strip(string.whitespace)
    if not text:
        return []
    names = _from_json(text)
    if names is None:
        bracketed = re.fullmatch(r"\[([^\[\]]*,[^\[\]]*)\]", text)  # [cat,dog]: YAML's way
        inside = bracketed[1] if bracketed else text
        names = [part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", inside)]
    names = [typed_name(name, option) for name in names]
    if not all(names):
        raise UserError(f"{option} {text} has an empty name in it; expected names such as cat,dog")
    return names


def one_name(text: str, known: Sequence[str] = ()) -> str:
    """A name that stands alone, where a comma needs no backslash but may have one.

    Raises:
        UserError: As `typed_name`.
    """
    name = typed_name(text, "the name")
    return name if name in known else name.replace(r"\,", ",")


def name_hint(name: str, names: Iterable[str]) -> str:
    """What an error about a name that is none of `names` ends with: the nearest, how a comma is written, or
    what of it is not seen."""
    names = list(names)
    if has_unseen(name):
        seen = "".join(" " if letter.isspace() else letter for letter in name if not _shows_nothing(letter))
        return f' "{escaped(name)}" has a character in it that is not seen; type it anew.{near(seen, names)}'
    with_comma = [other for other in names if name in [part.strip() for part in other.split(",")]]
    if "," not in name and with_comma:
        return f' Did you mean "{with_comma[0]}"? On the command line {_HOW}.'
    return near(name, names)


def _from_json(text: str) -> list[str] | None:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if good else None


def is_background(name: str) -> bool:
    """Whether a tool calls so what no class covers: Background, _background_, __background__."""
    return name.strip("_ ").casefold() == BACKGROUND


def not_counted(names: Iterable[str], ignore: Collection[str] | None) -> list[str]:
    """Those of the names whose pixels count nowhere.

    Args:
        names: Of classes or categories.
        ignore: Which the user names; None: those that are called so (NOT_COUNTED).
    """
    if ignore is not None:
        return [name for name in names if name in ignore]
    return [name for name in names if "".join(filter(str.isalnum, name.casefold())) in NOT_COUNTED]
