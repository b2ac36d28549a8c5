"""PNG files of any bit depth and colour type, which PIL does not write."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

GREY, COLOUR, PALETTE, GREY_ALPHA, ALPHA = 0, 2, 3, 4, 6


def png(
    samples: np.ndarray,
    depth: int,
    kind: int,
    palette: Sequence[int] = (),
    interlaced: bool = False,
    transparent: bytes = b"",
) -> bytes:
    """The content of a PNG.

    Args:
        samples: H W, or H W channels; whole numbers below 2 ** depth.
        depth: Bits of a sample: 1, 2, 4, 8 or 16.
        kind: GREY, COLOUR, PALETTE, GREY_ALPHA or ALPHA.
        palette: Red, green, blue of each index.
        interlaced: In seven passes (Adam7).
        transparent: Content of the tRNS block.
    """
    height, width = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # first row, first column, and how far apart they are
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    lines = b"".join(_lines(samples[y::down, x::right], depth) for y, x, down, right in passes)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    parts = [_block(b"IHDR", header)]
    if kind == PALETTE:
        parts.append(_block(b"PLTE", bytes(palette)))
    if transparent:
        parts.append(_block(b"tRNS", transparent))
    parts += [_block(b"IDAT", zlib.compress(lines)), _block(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(width: int, height: int) -> bytes:
    """A grey PNG of one byte per pixel, all black, made without its pixels: its sum of bytes is wrong."""
    squeeze = zlib.compressobj(9)
    head = squeeze.compress(b"") + squeeze.flush(zlib.Z_FULL_FLUSH)
    rows = squeeze.compress(bytes((1 + width) * 64)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    body = head + rows * (height // 64) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height // 64 * 64, 8, GREY, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _block(b"IHDR", header) + _block(b"IDAT", body) + _block(b"IEND", b"")


def _lines(samples: np.ndarray, depth: int) -> bytes:
    """Rows with their filter byte (none)."""
    if not samples.size:
        return b""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def _block(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
