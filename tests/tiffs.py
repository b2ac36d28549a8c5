"""TIFF files of any kind that PIL does not write: one strip, not compressed."""

import struct
from collections.abc import Sequence

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
_TYPES = {2: "B", 3: "H", 4: "I"}
_SIZES = {2: 1, 3: 2, 4: 4}
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(
    samples: np.ndarray,
    photometric: int = BLACK_IS_ZERO,
    extra: Sequence[int] = (),
    bits: int = 0,
    nodata: str = "",
) -> bytes:
    """The content of a TIFF, in the byte order of the samples.

    Args:
        samples: H W, or H W bands, of any numpy kind; of one bit if `bits` is 1.
        photometric: What the numbers are.
        extra: What each band beside the colours is; 0 = not said, 2 = alpha.
        bits: Of each sample; 0: as the samples have.
        nodata: What GDAL_NODATA says.
    """
    height, width = samples.shape[:2]
    n = samples.shape[2] if samples.ndim == 3 else 1
    order = ">" if samples.dtype.str[0] == ">" else "<"
    data = np.packbits(samples.astype(np.uint8), axis=1).tobytes() if bits == 1 else samples.tobytes()
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits or samples.dtype.itemsize * 8] * n),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [0]),
        277: (3, [n]),
        278: (4, [height]),
        279: (4, [len(data)]),
        339: (3, [_FORMATS[samples.dtype.kind]] * n),
    }
    if extra:
        tags[338] = 3, extra
    if nodata:
        tags[42113] = 2, f"{nodata}\0".encode()
    at = 8 + 2 + 12 * len(tags) + 4
    lengths = [len(values) * _SIZES[kind] for kind, values in tags.values()]
    tags[273] = 4, [at + sum(length for length in lengths if length > 4)]
    entries, more = b"", b""
    for number, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{_TYPES[kind]}", *values)
        if len(raw) > 4:
            more, raw = more + raw, struct.pack(f"{order}I", at + len(more))
        entries += struct.pack(f"{order}HHI", number, kind, len(values)) + raw.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    head = start + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + more + data
