"""Medians of more numbers than memory holds, one a class: exact, and as PLOP's reference code finds them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Values of one dimension, none negative, and the class of each, int64."""

_DIGIT = 16
_AS_INT = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}
REFERENCE_BINS = 100


def identity(counts: Tensor) -> Tensor:
    """The sum over processes, when there is one."""
    return counts


def class_medians(
    scan: Callable[[], Pairs], n_classes: int, total: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """The exact median of every class (the mean of the two middle values of an even number).

    Floating-point numbers that are not negative have the order of their bits, so the median is found digit
    by digit, 16 bits a pass: two passes over float32, four over float64, with a fixed amount of memory.

    Args:
        scan: Starts a pass over all values; every pass must show the same ones.
        n_classes: Number of classes.
        total: Sums counts over processes.

    Returns:
        n_classes values in the values' type; nan for a class without any.

    Raises:
        ValueError: When a pass shows nothing, or a type other than float32 and float64.
    """
    prefix = rank = empty = torch.empty(0)
    kind, position = torch.float32, -1
    while position != 0:
        counts: Tensor | None = None
        for values, classes in scan():
            kind = values.dtype
            if kind not in _AS_INT:
                raise ValueError(f"expected float32 or float64, got {kind}")
            if counts is None:
                position = (position if position > 0 else _AS_INT[kind][1]) - _DIGIT
                counts = torch.zeros(2, n_classes, 1 << _DIGIT, dtype=torch.int64, device=values.device)
            _count(counts, values, classes, prefix, position)
        if counts is None:
            raise ValueError("there are no values to take a median of")
        counts = total(counts)
        if not rank.numel():
            n = counts[0].sum(-1)
            empty = n == 0
            rank = torch.stack([(n - 1).clamp(min=0) // 2, n // 2])
            prefix = torch.zeros_like(rank)
        below = counts.cumsum(-1)
        digit = (below <= rank.unsqueeze(-1)).sum(-1).clamp(max=(1 << _DIGIT) - 1)
        rank = rank - (below - counts).gather(-1, digit.unsqueeze(-1)).squeeze(-1)
        prefix = (prefix << _DIGIT) | digit
    middle = prefix.to(_AS_INT[kind][0]).view(kind).mean(0)
    return middle.masked_fill(empty, torch.nan)


def _count(counts: Tensor, values: Tensor, classes: Tensor, prefix: Tensor, position: int) -> None:
    """Add how often each digit at `position` follows the prefix of each class; both middles, 2 n 65536."""
    bits = values.contiguous().view(_AS_INT[values.dtype][0]).long()
    n_classes, n_digits = counts.shape[1:]
    for k in range(2):
        if prefix.numel():
            here = (bits >> (position + _DIGIT)) == prefix[k][classes]
            chosen, owner = bits[here], classes[here]
        else:
            chosen, owner = bits, classes
        digit = (chosen >> position) & (n_digits - 1)
        counts[k] += torch.bincount(owner * n_digits + digit, minlength=n_classes * n_digits).view(
            n_classes, n_digits
        )


def reference_medians(
    scan: Callable[[], Pairs], n_classes: int, total: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """What PLOP's reference code takes for medians of values in [0, 1] (METHODS 4, Reference code).

    A histogram of 100 bins is walked until half of the values is reached, but instead of the counts the
    numbers of the bins are added up. So for all but few values the walk ends wherever a count is large
    enough, in the lowest bins, or in none, and the result is small, infinite or nan.

    Args and returns as `class_medians`; 0 for a class without values.
    """
    counts = torch.zeros(n_classes, REFERENCE_BINS, dtype=torch.int64)
    for values, classes in scan():
        bins = (values * REFERENCE_BINS).long().clamp(max=REFERENCE_BINS - 1)
        flat = torch.bincount(classes * REFERENCE_BINS + bins, minlength=counts.numel())
        counts = counts.to(flat.device) + flat.view_as(counts)
    rows: list[list[int]] = total(counts).tolist()
    return torch.tensor([_reference_median(row) for row in rows], dtype=torch.float64, device=counts.device)


def _reference_median(counts: list[int]) -> float:
    half, passed, border, index = sum(counts) / 2, 0.0, 0.0, 0
    if not half:
        return 0.0
    for k in range(REFERENCE_BINS):
        border = k / REFERENCE_BINS
        index = int(border * REFERENCE_BINS)  # rounding makes 28 of 29 and 56 of 57 there, too
        if passed <= half <= passed + counts[index]:
            break
        passed += border * REFERENCE_BINS
    over = half - passed
    if counts[index]:
        return border + over / counts[index] / REFERENCE_BINS
    return torch.nan if not over else torch.inf if over > 0 else -torch.inf
