"""The notes of a data set on stderr: stdout is for results."""

from collections.abc import Iterable

from ..terminal import Terminal


def say_notes(notes: Iterable[str]) -> None:
    """A line per note, such as what of the user's files was left out."""
    console = Terminal(stderr=True)
    for note in notes:
        console.say(f"note: {note}")
