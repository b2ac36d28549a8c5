"""Files that appear whole or not at all: written under a temporary name first.

`engine/checkpoint.py` also waits for the disk, for what a run must not lose.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it; a reader never meets half of it.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def encoded(picture: "Image", kind: str, **options: int) -> bytes:
    """A picture as the content of a file.

    Args:
        kind: PNG or JPEG.
        options: As PIL's `save` takes them, such as quality.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()
