"""Images that cannot be used: all are named, so that somebody can leave them out and go on."""

from collections.abc import Mapping

from ..errors import UserError
from ..wording import count


class Unfit(UserError):
    """Images that cannot be used as they are, such as those without a mask; all of them, not only the first.

    Args:
        message: About the first.
        each: A sentence for each by its SPLIT/ID.
        notes: On the files that were listed.
    """

    def __init__(self, message: str, each: Mapping[str, str], notes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.each = dict(each)
        self.notes = notes


def unfit_images(each: Mapping[str, str], notes: tuple[str, ...] = ()) -> Unfit:
    """What to raise for images that cannot be used, a sentence for each by its SPLIT/ID."""
    first, *others = each.values()
    more = f"; {count(len(others), 'image')} more cannot be used" if others else ""
    advice = ": segrow data check lists them, and --data.exclude leaves them out" if others else ""
    return Unfit(f"{first}{more}{advice}", each, notes)
