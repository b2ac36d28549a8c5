"""Pictures as the content of files."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def encoded(picture: "Image", kind: str, **options: int) -> bytes:
    """A picture as the content of a file.

    Args:
        kind: PNG or JPEG.
        options: As PIL's `save` takes them, such as quality.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()
