"""What the search for copies costs beside the index: python -m benchmarks.copies VOCdevkit/VOC2012

Files are in the page cache, for the index has just read them: seconds of index, first search and next one.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable

from segrow.data.contents import find_copies
from segrow.data.voc import VocDataset


def main(root: str) -> None:
    """Print seconds of each."""
    data = VocDataset(root)
    train, val = (data.image_paths(split, data.ids(split)) for split in ("train", "val"))
    mebibytes = sum(os.path.getsize(path) for path in [*train.values(), *val.values()]) / 2**20
    print(f"{len(train) + len(val)} images, {mebibytes:.0f} MiB")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SEGROW_CACHE"] = cache
        _timed("index", lambda: (data.presence("train", False), data.presence("val", False)))
        _timed("copies, first", lambda: find_copies(train, val))
        _timed("copies, again", lambda: find_copies(train, val))


def _timed(what: str, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
