"""What a person reads in a terminal: names are printed as they are, never obeyed.

console = Terminal()
console.say(f"{folder}: done")        # one line, not broken, whatever the folder is called
console.print(table)                  # cells, headings and titles may hold names
"""

from collections.abc import Iterable
from typing import Any, final

from rich.console import Console
from rich.text import Text

from .errors import shown

_WIDTH = 110
_LEAST = 80  # of a file or a pipe, whatever $COLUMNS says: a narrow table leaves whole cells out


@final
class Terminal(Console):
    """A console that takes no text for markup, and shows control characters escaped.

    Every string that reaches it (a line, a cell, a title) stays one line; `stacked` is for texts of several.

    Args:
        stderr: Write to stderr.
        quiet: Write nothing.
        wide: Give a table at least 110 columns where there is no terminal, whose width would say more.
    """

    def __init__(self, stderr: bool = False, quiet: bool = False, wide: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = max(self.width, _WIDTH if wide else _LEAST)

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich calls this for every string, be it printed, a cell or a heading."""
        return super().render_str(shown(text), **options)

    def on_broken_pipe(self) -> None:
        """Rich calls this where the reader has gone; by itself it would end the process with code 1.

        Raises:
            BrokenPipeError: Always.
        """
        raise  # the one that rich caught, which knows the output

    def say(self, line: str, style: str | None = None) -> None:
        """One line, which a terminal may fold but rich does not break."""
        self.print(line, style=style, soft_wrap=True)


def stacked(texts: Iterable[str]) -> Text:
    """Several lines as one text, such as the caption of a table."""
    return Text("\n".join(map(shown, texts)))
