"""Which image files are one and the same, byte for byte.

    $SEGROW_CACHE/contents/KEY.npz        hashes of the files that were read, by path, size and time

Only files of one size can be equal, so others are not even opened.
"""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic import tidy, write_atomic
from ..documents import open_file
from ..errors import UserError
from ..processes import cores
from .cache import cache_folder, read_arrays, say_damaged, say_unkept

_WHAT = "the list of what images hold"
_SHOWN = 3  # pairs that a sentence names

Key = tuple[str, int, int]  # path, size, time of modification in ns


@dataclass(frozen=True)
class Copies:
    """Images that are one file twice, as pairs of ids; in a pair the first is the one to keep.

    Attributes:
        within: Training images: the first of its kind, and another one.
        across: A measuring image, and a training image.
        trained: Number of training images.
        measured: Number of images to measure on.
        place: What these are: validation images …
    """

    within: tuple[tuple[str, str], ...]
    across: tuple[tuple[str, str], ...]
    trained: int
    measured: int
    place: str = "validation images"

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind that there is."""
        found = []
        if self.across:
            images = len({kept for kept, _ in self.across})
            found.append(
                f"{images} of {self.measured} {self.place} are training images too "
                f"({_named(self.across)}): results on them say nothing of new images"
            )
        if self.within:
            found.append(
                f"{len(self.within)} of {self.trained} training images are copies of others "
                f"({_named(self.within)})"
            )
        return tuple(found)

    def refuse(self, advice: str) -> None:
        """Stops where there is a copy.

        Raises:
            UserError: Saying which, and `advice`.
        """
        if notes := self.notes():
            raise UserError(f"--strict: {'; '.join(notes)}; {advice}")


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    some = ", ".join(f"{kept} = {other}" for kept, other in pairs[:_SHOWN])
    return f"{some}, …" if len(pairs) > _SHOWN else some


def find_copies(
    train: Mapping[str, Path], measured: Mapping[str, Path], place: str = "validation images"
) -> Copies:
    """Copies among training images, and between these and the images to measure on.

    Args:
        train: Files by id.
        measured: Files by id.
        place: What the second are, for sentences.

    Raises:
        OSError: A file that is gone.
    """
    names, n = [*train, *measured], len(train)
    within, across = [], []
    for group in equal_files([*train.values(), *measured.values()]):
        ours = [k for k in group if k < n]
        others = [k for k in group if k >= n]
        within += [(names[ours[0]], names[k]) for k in ours[1:]]
        across += [(names[other], names[k]) for other in others for k in ours]
    return Copies(tuple(within), tuple(across), n, len(measured), place)


def equal_files(files: Sequence[Path]) -> list[list[int]]:
    """Groups of files of the same content, two or more in each: indices into `files`, in order.

    Raises:
        OSError: A file that is missing or cannot be read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    keys: list[Key] = []
    for k, file in enumerate(files):
        status = os.stat(file)
        keys.append((os.fspath(file), status.st_size, status.st_mtime_ns))
        by_size[status.st_size].append(k)
    alike = sorted(k for group in by_size.values() if len(group) > 1 for k in group)
    by_content: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for k, digest in zip(alike, _digests([keys[k] for k in alike]), strict=True):
        by_content[keys[k][1], digest].append(k)
    return [group for group in by_content.values() if len(group) > 1]


def _digests(keys: Sequence[Key]) -> list[bytes]:
    """Hash of each file, from the cache as far as nothing changed."""
    if not keys:
        return []
    folders = "\n".join(sorted({os.path.dirname(os.path.abspath(path)) for path, _, _ in keys}))
    name = hashlib.sha256(os.fsencode(folders)).hexdigest()[:16]
    cache = cache_folder() / "contents" / f"{name}.npz"
    known = _recall(cache)
    todo = list(dict.fromkeys(key for key in keys if key not in known))
    if todo:
        with ThreadPoolExecutor(cores()) as pool:  # hashing and reading leave the lock alone
            known |= zip(todo, pool.map(_digest, [path for path, _, _ in todo]), strict=True)
        try:
            _store(cache, {key: known[key] for key in keys})
        except OSError as error:
            say_unkept(_WHAT, cache.parent, error)
    return [known[key] for key in keys]


_LARGEST = 1 << 31  # bytes: PIL reads no larger image


def _digest(path: str) -> bytes:
    with open_file(Path(path), "image", _LARGEST) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _recall(cache: Path) -> dict[Key, bytes]:
    """What the cache holds; nothing where there is none or it is broken."""
    stored = read_arrays(cache, _WHAT)
    if not stored:
        return {}
    try:
        paths = os.fsdecode(stored["paths"].tobytes()).split("\0")
        rows = zip(paths, stored["stamps"].tolist(), stored["digests"], strict=True)
        return {(path, size, time): digest.tobytes() for path, (size, time), digest in rows}
    except (KeyError, TypeError, ValueError):
        say_damaged(_WHAT, cache)
        return {}


def _store(cache: Path, known: Mapping[Key, bytes]) -> None:
    """Writes paths as one text, stamps int64 n x 2, digests uint8 n x 16."""
    tidy(cache.parent)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        paths=np.frombuffer(os.fsencode("\0".join(path for path, _, _ in known)), np.uint8),
        stamps=np.array([key[1:] for key in known], np.int64),
        digests=np.frombuffer(b"".join(known.values()), np.uint8).reshape(-1, 16),
    )
    write_atomic(cache, buffer.getvalue())
