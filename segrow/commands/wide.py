"""Where tables with many columns are printed."""

from rich.console import Console

_WIDTH = 110


def wide_console(stderr: bool = False) -> Console:
    """A terminal as wide as it is; a file or a pipe wide enough that a table need not be squeezed."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console
