"""Slow float64 restatements of MiB, LwF, ILT and PLOP in numpy (METHODS 3 to 5); see naive.py.

K classes are known before the step, C after it; background is class 0. Everything is a loop over pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from naive import IGNORED, UNKNOWN, Array, Labels, pixel_ce, softmax, upsample, upsample_backward

# --- one pixel: value, and gradient with respect to the student's logits x -------------------------------


def pixel_unbiased_ce(x: Array, y: int, known_before: int, old_as_background: bool) -> tuple[float, Array]:
    """-log of the summed probability of all old classes for background, -log p of the label else."""
    p = softmax(x)
    background = y == 0 or (old_as_background and y < known_before)
    members = list(range(known_before)) if background else [y]
    mass = sum(p[c] for c in members)
    grad = np.array([p[c] - (p[c] / mass if c in members else 0.0) for c in range(len(x))])
    return -math.log(mass), grad


def pixel_distillation(x: Array, old: Array) -> tuple[float, Array]:
    """-(1/K) sum q log p over the K old channels, p their own softmax."""
    k = len(old)
    q, p = softmax(old), softmax(x[:k])
    value = -sum(q[c] * math.log(p[c]) for c in range(k)) / k
    grad = np.zeros(len(x))
    for c in range(k):
        grad[c] = (p[c] - q[c]) / k
    return value, grad


def pixel_unbiased_distillation(x: Array, old: Array) -> tuple[float, Array]:
    """-(1/K) sum q log p, where the student's background is background and all new classes together."""
    k = len(old)
    q, p = softmax(old), softmax(x)
    members = [0, *range(k, len(x))]
    background = sum(p[c] for c in members)
    value = -(q[0] * math.log(background) + sum(q[c] * math.log(p[c]) for c in range(1, k))) / k
    grad = np.zeros(len(x))
    for c in range(len(x)):
        grad[c] = p[c]  # every q sums to one
        grad[c] -= q[0] * p[c] / background if c in members else q[c]
    return value, grad / k


def over_pixels(
    function: Callable[..., tuple[float, Array]], x: Array, *others: Array | Labels
) -> tuple[Array, Array]:
    """Values B H W and gradients B C H W of a function of one pixel's vectors (or its label)."""
    values, grads = np.zeros((x.shape[0], *x.shape[2:])), np.zeros(x.shape)
    for b, i, j in np.ndindex(*values.shape):
        rest = [o[b, i, j] if o.ndim == 3 else o[b, :, i, j] for o in others]
        if any(o.ndim == 3 and value < 0 for o, value in zip(others, rest, strict=True)):
            continue  # ignored
        values[b, i, j], grads[b, :, i, j] = function(x[b, :, i, j], *rest)
    return values, grads


# --- local POD ------------------------------------------------------------------------------------------


def pod_vector(x: Array) -> list[tuple[float, list[tuple[int, int, int]], int]]:
    """Of one squared map C H W: each number with the pixels (c, i, j) it is the mean of, and how many."""
    channels, _, width = x.shape
    entries = []
    for scale in (1, 2, 4):
        side = width // scale
        for top in range(scale):
            for left in range(scale):
                for c in range(channels):
                    for i in range(side):
                        row = [(c, top * side + i, left * side + j) for j in range(side)]
                        entries.append((sum(x[place] for place in row) / side, row, side))
                    for j in range(side):
                        column = [(c, top * side + i, left * side + j) for i in range(side)]
                        entries.append((sum(x[place] for place in column) / side, column, side))
    return entries


def pod(x: Array, y: Array) -> tuple[float, Array]:
    """Distance of two maps B C H W, and its gradient with respect to the first."""
    value, grad = 0.0, np.zeros(x.shape)
    n = len(x)
    for b in range(n):
        ours, theirs = pod_vector(x[b] ** 2), pod_vector(y[b] ** 2)
        differences = [a[0] - c[0] for a, c in zip(ours, theirs, strict=True)]
        norm = math.sqrt(sum(d * d for d in differences))
        value += norm / n
        for d, (_, pixels, side) in zip(differences, ours, strict=True):
            for place in pixels:
                grad[(b, *place)] += d / norm / side * 2 * x[(b, *place)] / n
    return value, grad


# --- pseudo-labels --------------------------------------------------------------------------------------


def entropy(p: Array) -> float:
    """Divided by log K."""
    return -sum(v * math.log(v) for v in p if v > 0) / math.log(len(p))


def reference_entropy(p: Array, known: int) -> float:
    """The mean over the classes instead of the sum, and one more division by log C."""
    mean = -sum(v * math.log(v) for v in p if v > 0) / len(p)
    return mean / math.log(len(p)) / math.log(known)


def entropies(
    teacher: Array, labels: Labels, measure: Callable[[Array], float], classes: int
) -> list[list[float]]:
    """For each old class the entropies of the background pixels that the teacher gives to it."""
    found: list[list[float]] = [[] for _ in range(classes)]
    for b, i, j in np.ndindex(*labels.shape):
        if labels[b, i, j] == 0:
            p = softmax(teacher[b, :, i, j])
            if int(np.argmax(p)) < classes:
                found[int(np.argmax(p))].append(measure(p))
    return found


def exact_thresholds(values: list[list[float]], floor: float) -> list[float]:
    """Sorted, the middle one, or the mean of the two in the middle."""
    out = []
    for row in values:
        s, n = sorted(row), len(row)
        median = 0.0 if not n else (s[(n - 1) // 2] + s[n // 2]) / 2
        out.append(max(median, floor))
    return out


def reference_thresholds(values: list[list[float]], floor: float) -> list[float]:
    """A walk over 100 bins that adds up the bins' numbers where their counts belong."""
    out = []
    for row in values:
        counts = [0] * 100
        for value in row:
            counts[min(int(value * 100), 99)] += 1
        if not row:
            out.append(floor)
            continue
        walked = 0.0
        for number in range(100):
            index = int(number / 100 * 100)
            if walked <= len(row) / 2 <= walked + counts[index]:
                break
            walked += number / 100 * 100
        rest = len(row) / 2 - walked
        if counts[index]:
            median = number / 100 + rest / counts[index] / 100
        else:
            median = math.nan if rest == 0 else math.copysign(math.inf, rest)
        out.append(floor if median < floor else median)
    return out


@dataclass
class EntropyLabels:
    """Labels after pseudo-labelling by entropy, and each image's share of confident pixels."""

    labels: Labels
    factor: list[float]


def entropy_labels(
    teacher: Array,
    labels: Labels,
    thresholds: list[float],
    measure: Callable[[Array], float],
    empty: float,
) -> EntropyLabels:
    """Background pixels: the teacher's class below its threshold, else ignored.

    Args:
        empty: Factor of an image without any such pixel.
    """
    out, factor = labels.copy(), []
    for b in range(len(labels)):
        confident = n = 0
        for i, j in np.ndindex(*labels.shape[1:]):
            if labels[b, i, j] not in (0, UNKNOWN):
                continue
            n += 1
            p = softmax(teacher[b, :, i, j])
            best = int(np.argmax(p))
            if measure(p) < thresholds[best]:
                out[b, i, j] = best
                confident += 1
            else:
                out[b, i, j] = IGNORED
        factor.append(confident / n if n else empty)
    return EntropyLabels(out, factor)


# --- whole losses, from low-resolution logits -----------------------------------------------------------


@dataclass
class Terms:
    """Loss terms by name, and the gradient of their sum with respect to the student's small logits."""

    values: dict[str, float]
    grad: Array


def _down(grad: Array, like: Array) -> Array:
    return upsample_backward(grad, (like.shape[2], like.shape[3]))


def plain_ce(student: Array, labels: Labels) -> Terms:
    """Ignored pixels stay in the denominator."""
    values, grads = over_pixels(pixel_ce, upsample(student, labels.shape[1:]), labels)  # type: ignore[arg-type]
    return Terms({"ce": float(values.mean())}, _down(grads / labels.size, student))


def _distilled(
    student: Array, teacher: Array, size: tuple[int, int], weight: float, unbiased: bool
) -> tuple[float, Array]:
    function = pixel_unbiased_distillation if unbiased else pixel_distillation
    values, grads = over_pixels(function, upsample(student, size), upsample(teacher, size))
    return weight * float(values.mean()), weight * _down(grads / values.size, student)


def mib(student: Array, teacher: Array, labels: Labels, kd: float, old_as_background: bool = True) -> Terms:
    """Unbiased cross-entropy and unbiased distillation."""
    size = (labels.shape[1], labels.shape[2])
    known_before = teacher.shape[1]

    def pixel(x: Array, y: int) -> tuple[float, Array]:
        return pixel_unbiased_ce(x, y, known_before, old_as_background)

    values, grads = over_pixels(pixel, upsample(student, size), labels)
    distilled, grad = _distilled(student, teacher, size, kd, unbiased=True)
    return Terms({"unce": float(values.mean()), "kd": distilled}, _down(grads / labels.size, student) + grad)


def lwf(student: Array, teacher: Array, labels: Labels, kd: float) -> Terms:
    """Cross-entropy and distillation over the old channels."""
    ce = plain_ce(student, labels)
    distilled, grad = _distilled(student, teacher, (labels.shape[1], labels.shape[2]), kd, unbiased=False)
    return Terms({**ce.values, "kd": distilled}, ce.grad + grad)


def plop_ce(student: Array, found: EntropyLabels) -> Terms:
    """Cross-entropy of each image times its factor; ignored pixels stay in the denominator."""
    values, grads = over_pixels(
        pixel_ce,
        upsample(student, found.labels.shape[1:]),  # type: ignore[arg-type]
        found.labels,
    )
    for b, factor in enumerate(found.factor):
        values[b] *= factor
        grads[b] *= factor
    return Terms({"ce": float(values.mean())}, _down(grads / found.labels.size, student))


def plop_pod(maps: list[tuple[Array, Array]], weight: float, known: int, known_before: int) -> float:
    """The part of the five maps in the mean over six."""
    total = sum(pod(a, b)[0] for a, b in maps)
    return weight * total / 6 * math.sqrt(known / (known - known_before))


def plop_pod_logits(student: Array, teacher: Array, weight: float) -> tuple[float, Array]:
    """The part of the logits: new classes are summed into background first."""
    known, k = student.shape[1], teacher.shape[1]
    folded = student[:, :k].copy()
    for c in range(k, known):
        folded[:, 0] += student[:, c]
    value, grad = pod(folded, teacher)
    factor = weight / 6 * math.sqrt(known / (known - k))
    whole = np.zeros(student.shape)
    whole[:, :k] = grad
    for c in range(k, known):
        whole[:, c] = grad[:, 0]
    return factor * value, factor * whole
