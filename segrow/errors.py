"""The ways a run ends early: a mistake the user can mend, a label that must not be seen, a lost loss."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake its user can mend: one line saying what was got, what was expected, what to do.

    The command line prints the line and exits with code 2, without a traceback.
    """


class LeakError(RuntimeError):
    """A label map shows a class that this step (or this exemplar) may not see."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; names every term and the images of the batch."""


def near(word: str, options: Iterable[str]) -> str:
    """A hint to append to an error: ` Did you mean "sheep"?`, or nothing when no option is near."""
    match = difflib.get_close_matches(word.lower(), list(options), n=1, cutoff=0.6)
    return f' Did you mean "{match[0]}"?' if match else ""
