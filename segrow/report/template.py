"""The HTML pages of the package, filled in: whatever stands in a name is text there."""

from importlib.resources import files
from typing import Any

from ..errors import shown


def fill(page: str, **values: Any) -> str:
    """A page with its values; they are escaped for HTML, control characters too.

    Args:
        page: File name of the template in this folder.
        values: What it shows.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )
    source = files(__package__).joinpath(page).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _as_text(value: object) -> object:
    """What a template is about to write; the result of a macro, escaped already, has a type of its own."""
    return shown(value) if type(value) is str else value
