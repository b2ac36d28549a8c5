"""Whether a mask holds class numbers or the colours that a file states: a grey one may hold either."""

import numpy as np
from PIL import Image

from .colours import ColourTable
from .files import Refused
from .palettes import index_chosen
from .taken import Taken


def by_colour(
    image: Image.Image, table: ColourTable, n_raw: int, ignore_id: int, step: int
) -> tuple[bool, Taken]:
    """Whether the colours of an opened mask count, not its numbers; and what is to be told.

    Args:
        image: The mask.
        table: The colours that are stated.
        n_raw: Number of classes.
        ignore_id: The value that is none.
        step: What PIL multiplied the numbers by.

    Raises:
        Refused: Both are possible and differ, or the numbers are not stated.
    """
    if image.mode == "P":
        if index_chosen() and table.of_palettes:
            return False, _numbers(table)
        return table.of_palettes, Taken.PLAIN
    in_rgb = image.mode in ("RGB", "RGBA")
    if in_rgb:
        pixels = np.asarray(image)
        if (pixels[..., :3] != pixels[..., :1]).any():
            return True, Taken.PLAIN
    elif not table.of_palettes:
        return False, Taken.PLAIN
    elif image.mode not in ("1", "L", "LA"):  # more than 8 bits are numbers
        return False, _numbers(table)
    greys = np.flatnonzero(image.getchannel(0).histogram()).tolist()
    numbers = [grey // (255 if image.mode == "1" else step) for grey in greys]
    of = {r: v for (r, g, b), v in zip(table.colours, table.values, strict=True) if r == g == b}
    legal = all(number < n_raw or number == ignore_id for number in numbers)
    if not set(greys) <= of.keys():
        return False, _numbers(table) if legal and table.of_palettes else Taken.PLAIN
    apart = [(n, g) for n, g in zip(numbers, greys, strict=True) if of[g] != n]
    if in_rgb or not legal or not apart:
        return True, Taken.PLAIN
    if any(0 < number < n_raw for number in numbers):
        names = dict(zip(table.values, table.names, strict=True))
        number, grey = apart[0]
        one, other = names.get(number, "ignored"), names[of[grey]]
        raise Refused(
            f'holds {number}, which as a number is "{one}" and as the colour {grey},{grey},{grey} of '
            f'{table.source} "{other}"; save it as RGB or with a palette in these colours, or, where numbers '
            f"are meant, name the classes in classes.txt and remove {table.source}"
        )
    return True, Taken.GREY_COLOURS


def _numbers(table: ColourTable) -> Taken:
    if not table.in_order:
        raise Refused(
            f"holds numbers, and {table.source} does not say which: its lines do not begin with "
            "background, one between classes is ignored, or a class has several; add a classes.txt whose "
            "line i (from 0) names value i, or save masks in the colours"
        )
    return Taken.NUMBERS
