"""Decisions at full resolution, without the scores of a whole batch at full resolution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .losses import upsample

BAND = 1 << 21  # scores held at once

Decide = Callable[[Tensor, Tensor | None], Tensor]


def by_bands(
    logits: Tensor, unknown: Tensor | None, size: Sequence[int], decide: Decide, dtype: torch.dtype
) -> Tensor:
    """B H W: `decide` of upsampled logits (1 C h W) and unknown (1 1 h W, or None), band by band."""
    height, width = size
    out = torch.empty(len(logits), height, width, dtype=dtype, device=logits.device)
    rows = max(1, BAND // (logits.shape[1] * width))
    for b in range(len(logits)):
        one, other = logits[b : b + 1], None if unknown is None else unknown[b : b + 1]
        for start in range(0, height, rows):
            stop = min(height, start + rows)
            if stop - start == height:
                band = upsample(one, size)
                extra = None if other is None else upsample(other, size)
            else:
                from .predict import upsample_rows

                band = upsample_rows(one, (height, width), start, stop)
                extra = None if other is None else upsample_rows(other, (height, width), start, stop)
            out[b, start:stop] = decide(band, extra)[0]
    return out
