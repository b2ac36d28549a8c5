"""The ways a run ends early: a mistake the user can mend, a label that must not be seen, a lost loss."""

import difflib
import re
from collections.abc import Iterable

# what moves the cursor, breaks a line, turns the direction of reading, or is no character at all
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UserError(ValueError):
    """A mistake its user can mend: one line saying what was got, what was expected, what to do.

    The command line prints the line and exits with code 2, without a traceback.
    """


class MachineError(UserError):
    """The machine has refused something (memory, a process); the same call can go on where it stood."""


class LeakError(RuntimeError):
    """A label map shows a class that this step (or this exemplar) may not see."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; names every term and the images of the batch."""


def near(word: str, options: Iterable[str]) -> str:
    """A hint to append to an error: ` Did you mean "sheep"?`, or nothing when no option is near."""
    match = difflib.get_close_matches(word.lower(), list(options), n=1, cutoff=0.6)
    return f' Did you mean "{match[0]}"?' if match else ""


def shown(text: str) -> str:
    r"""A text as one line for terminals and pages: control characters escaped, `\x1b` for ESC.

    Escaped are C0, DEL and C1, line and paragraph separators, marks of direction and lone surrogates (bytes
    of a file name that are no UTF-8). All others stay as they are, a backslash too.
    """
    return _UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)
