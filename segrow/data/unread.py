"""Files beside those that are read, which say something, too: a sentence on each kind."""

from collections.abc import Sequence
from pathlib import Path

from ..wording import are


def unread_files(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """A note on files that say something else than the one that is read, which is the first that is there."""
    there = [root / name for name in names if (root / name).is_file()]
    others = [path.name for path in there[1:] if path.read_bytes().split() != there[0].read_bytes().split()]
    if not others:
        return ()
    return (
        f"{root}: {there[0].name} is read, {', '.join(others)} {are(len(others))} not; they say different "
        "things",
    )


def unread_annotations(root: Path) -> tuple[str, ...]:
    """A note on COCO files, or others in JSON, in a folder whose masks are read."""
    there = [
        path
        for folder in (root, root / "annotations")
        for path in sorted(folder.glob("*.json"))
        if path.is_file() and _annotates(path)
    ]
    if not there:
        return ()
    names = ", ".join(str(path.relative_to(root)) for path in there)
    return (f"{root}: masks are read, the annotations in {names} are not",)


def _annotates(path: Path) -> bool:
    """Whether a file is of annotations, by its beginning."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    return any(word in start for word in (b'"annotations"', b'"categories"', b'"images"', b'"shapes"'))
