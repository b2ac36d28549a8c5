"""Label maps at full resolution without the scores of a whole batch: image by image, in bands of rows.

labels = arg_max(out.logits, out.unknown, (513, 513), method.scores)    # B H W int64
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .losses import upsample, wide

Scores = Callable[[Tensor, Tensor | None], Tensor]
Decide = Callable[[Tensor, Tensor | None], Tensor]

BAND_BYTES = 2_000_000
"""Upsampled logits of a band on a CPU: small enough for its caches, large enough for its kernels."""

DEVICE_BAND_BYTES = 256_000_000
"""The same on other devices: large enough that starting a kernel costs nothing beside it."""

STRIP_BYTES = 64_000_000
"""Logits whose columns are upsampled at once, for many bands."""


def by_bands(
    logits: Tensor, unknown: Tensor | None, size: Sequence[int], decide: Decide, dtype: torch.dtype
) -> Tensor:
    """Apply `decide` to upsampled logits, a band of rows of one image at a time.

    The bands together are `upsample(logits, size)`, up to rounding; it never exists as a whole. `decide` must
    look at every pixel by itself. On a CPU several threads call it at once, in no order, without gradients.
    On a GPU, where every call costs, it is called with as many whole images as make up a band.

    Args:
        logits: B C h w.
        unknown: B 1 h w or None, upsampled beside the logits.
        size: H and W of the result.
        decide: Upsampled logits B C r W and unknown (B 1 r W or None) -> B r W, for any number of images and
            of rows r.
        dtype: Of the result.

    Returns:
        B H W.
    """
    result = torch.empty((len(logits), *size), dtype=dtype, device=logits.device)
    if together := _images_at_once(logits, size):
        with torch.inference_mode():
            for start in range(0, len(logits), together):
                some = slice(start, start + together)
                other = None if unknown is None else upsample(unknown[some], size)
                result[some] = decide(upsample(logits[some], size), other)
        return result

    @torch.inference_mode()
    def work(span: tuple[int, int, int]) -> None:
        i, first, last = span
        maps = logits[i : i + 1] if unknown is None else torch.cat([logits[i : i + 1], unknown[i : i + 1]], 1)
        for start, stop, band in _bands(wide(maps), size, first, last):
            parts = (band, None) if unknown is None else (band[:, :-1], band[:, -1:])
            result[i, start:stop] = decide(*parts)[0]

    threads = _threads(logits, size)
    spans = _spans(len(logits), size[0], threads)
    if threads == 1:
        for span in spans:
            work(span)
        return result
    torch.set_num_threads(1)  # of each of the threads that start below
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, spans))
    finally:
        torch.set_num_threads(threads)
    return result


def _images_at_once(logits: Tensor, size: Sequence[int]) -> int:
    """How many whole images are a band on a GPU; 0: an image is more than one, or this is no GPU."""
    if logits.device.type == "cpu":
        return 0
    return DEVICE_BAND_BYTES // (4 * logits.shape[1] * size[0] * size[1])


def _threads(logits: Tensor, size: Sequence[int]) -> int:
    """How many threads share the work: torch's own would have to wait for each other in every band."""
    if logits.device.type != "cpu" or logits[:, :, 0, 0].numel() * size[0] * size[1] * 4 <= BAND_BYTES:
        return 1
    return torch.get_num_threads()


def _spans(images: int, height: int, threads: int) -> list[tuple[int, int, int]]:
    """Image, first and last row (excluded) of each piece of work; at least one a thread."""
    parts = min(height, -(-threads // images))
    edges = [height * k // parts for k in range(parts + 1)]
    return [(i, *rows) for i in range(images) for rows in itertools.pairwise(edges)]


def arg_max(
    logits: Tensor,
    unknown: Tensor | None,
    size: Sequence[int],
    scores: Scores,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Class of every pixel: `scores(upsample(logits, size), upsample(unknown, size)).argmax(1)`.

    Args:
        logits: B C h w.
        unknown: B 1 h w or None.
        size: H and W of the result.
        scores: A method's `scores`.
        dtype: Of the result.

    Returns:
        B H W. The same but where the two best scores are equal up to rounding.
    """

    def decide(band: Tensor, unknown_band: Tensor | None) -> Tensor:
        # max gives the first of equal ones, as argmax does, and is several times faster on a CPU
        return scores(band, unknown_band).max(1).indices

    return by_bands(logits, unknown, size, decide, dtype)


def _bands(maps: Tensor, size: Sequence[int], first: int, last: int) -> Iterator[tuple[int, int, Tensor]]:
    """Rows [start, stop) of `upsample(maps, size)`, 1 C h w -> 1 C (stop - start) W, from `first` to `last`.

    Columns are upsampled once for a strip of many bands, rows within the band.
    """
    height, width = size
    n = maps.shape[2]
    row_bytes = maps.shape[1] * width * maps.element_size()
    band = max(1, (BAND_BYTES if maps.device.type == "cpu" else DEVICE_BAND_BYTES) // row_bytes)
    strip = max(band, STRIP_BYTES // row_bytes * height // n)
    for top in range(first, last, strip):
        bottom = min(last, top + strip)
        low, high, weight = _taps(top, bottom, n, height)
        a, b = int(low[0]), int(high[-1]) + 1
        low, high, weight = (low - a).to(maps.device), (high - a).to(maps.device), weight.to(maps)
        source = upsample(maps[:, :, a:b], (b - a, width))
        for start in range(top, bottom, band):
            rows = slice(start - top, min(bottom, start + band) - top)
            band_maps = torch.lerp(source[:, :, low[rows]], source[:, :, high[rows]], weight[rows])
            yield start, top + rows.stop, band_maps


def _taps(start: int, stop: int, n: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """For rows of the result: the two rows of the source, and the weight of the second (k x 1)."""
    # row i of the result lies at source row (i + 0.5) n / H - 0.5 (align_corners=False)
    source = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * n / height - 0.5).clamp(min=0)
    low = source.long().clamp(max=n - 1)
    return low, (low + 1).clamp(max=n - 1), (source - low)[:, None]
