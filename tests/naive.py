"""Slow float64 restatements in numpy, written from the formulas; nothing of segrow or torch is imported.

Label maps hold class indices, -1 = ignored, -2 = unknown. With C classes the unknown channel is channel C.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]

IGNORED, UNKNOWN = -1, -2
EPS = 1e-5  # of a batch normalisation


# --- interpolation --------------------------------------------------------------------------------------


def bilinear_matrix(small: int, large: int) -> Array:
    """large x small: row i holds the two weights of output pixel i (pixel centres, borders repeated)."""
    matrix = np.zeros((large, small))
    for i in range(large):
        position = min(max((i + 0.5) * small / large - 0.5, 0.0), small - 1.0)
        low = math.floor(position)
        high = min(low + 1, small - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    return matrix


def upsample(x: Array, size: tuple[int, int]) -> Array:
    """B C h w -> B C H W."""
    rows, columns = bilinear_matrix(x.shape[2], size[0]), bilinear_matrix(x.shape[3], size[1])
    out: Array = np.einsum("Hh,bchw,Ww->bcHW", rows, x, columns)
    return out


def upsample_backward(grad: Array, size: tuple[int, int]) -> Array:
    """Gradient of the small map, h w = `size`, from that of the large one."""
    rows, columns = bilinear_matrix(size[0], grad.shape[2]), bilinear_matrix(size[1], grad.shape[3])
    out: Array = np.einsum("Hh,bcHW,Ww->bchw", rows, grad, columns)
    return out


# --- losses: value and gradient of one pixel ----------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softmax(x: Array) -> Array:
    powers = np.array([math.exp(v - max(x)) for v in x])
    return powers / powers.sum()


def pixel_bce(x: Array, y: int) -> tuple[float, Array]:
    """Binary cross-entropy of every channel, summed: -log p where the channel is y, else -log(1 - p)."""
    value, grad = 0.0, np.zeros(len(x))
    for c, logit in enumerate(x):
        # -log sigmoid(z) = max(-z, 0) + log(1 + exp(-|z|)), z = logit or -logit
        z = logit if c == y else -logit
        value += max(-z, 0.0) + math.log1p(math.exp(-abs(z)))
        grad[c] = sigmoid(logit) - (1.0 if c == y else 0.0)
    return value, grad


def pixel_ce(x: Array, y: int) -> tuple[float, Array]:
    """Softmax cross-entropy."""
    top = max(x)
    value = top + math.log(sum(math.exp(v - top) for v in x)) - x[y]
    grad = softmax(x)
    grad[y] -= 1
    return value, grad


def pixel_focal(x: Array, y: int, gamma: float = 2.0) -> tuple[float, Array]:
    """(1 - p)^gamma (-log p), p the softmax probability of y."""
    entropy, _ = pixel_ce(x, y)
    p = math.exp(-entropy)
    rest = sum(v for c, v in enumerate(softmax(x)) if c != y)  # 1 - p without cancellation
    value = rest**gamma * entropy
    slope = -gamma * rest ** (gamma - 1) * p * entropy - rest**gamma  # d value / d log p
    grad = -slope * softmax(x)
    grad[y] = slope * rest
    return value, grad


PIXEL = {"bce": pixel_bce, "ce": pixel_ce, "focal": pixel_focal}


def pixelwise(kind: str, logits: Array, target: Labels) -> tuple[Array, Array]:
    """Values B H W and gradients B C H W; both 0 where the target is negative."""
    values, grads = np.zeros(target.shape), np.zeros(logits.shape)
    for b, i, j in np.ndindex(*target.shape):
        if target[b, i, j] >= 0:
            values[b, i, j], grads[b, :, i, j] = PIXEL[kind](logits[b, :, i, j], int(target[b, i, j]))
    return values, grads


def poly_rate(rate: float, iteration: int, total: int, warm: bool) -> float:
    """Learning rate factor; warm: rises from 0.001 linearly over the first tenth."""
    factor = math.pow(1 - iteration / total, 0.9)
    tenth = total // 10
    if warm and iteration < tenth:
        alpha = iteration / tenth
        factor *= 0.001 * (1 - alpha) + alpha
    return rate * factor


# --- SSUL -----------------------------------------------------------------------------------------------


def probabilities(kind: str, x: Array) -> Array:
    """Of one pixel."""
    return np.array([sigmoid(v) for v in x]) if kind == "bce" else softmax(x)


def scores(kind: str, logits: Array, unknown: Array | None) -> Array:
    """p(background) += p(unknown); unknown is left out."""
    out = np.zeros(logits.shape)
    for b, i, j in np.ndindex(logits.shape[0], *logits.shape[2:]):
        x = list(logits[b, :, i, j]) + ([] if unknown is None else [unknown[b, 0, i, j]])
        p = probabilities(kind, np.array(x))
        for c in range(logits.shape[1]):
            out[b, c, i, j] = p[c]
        if unknown is not None:
            out[b, 0, i, j] += p[-1]
    return out


def unknown_labels(labels: Labels, mode: str, saliency: NDArray[np.bool_]) -> Labels:
    """Background that is salient (or all of it) becomes unknown."""
    out = labels.copy()
    for place in np.ndindex(*labels.shape):
        if labels[place] == 0 and (mode == "background" or (mode == "saliency" and saliency[place])):
            out[place] = UNKNOWN
    return out


def pseudo_labels(
    labels: Labels, teacher: Array, has_unknown: bool, threshold: float, kind: str = "bce"
) -> Labels:
    """Where nothing is annotated: the teacher's best channel if it is an old class and certain.

    Args:
        teacher: Logits B K(+1) H W at full resolution, the unknown channel last.
    """
    out = labels.copy()
    for b, i, j in np.ndindex(*labels.shape):
        if labels[b, i, j] not in (0, UNKNOWN):
            continue
        p = probabilities(kind, teacher[b, :, i, j])
        best = 0
        for c in range(len(p)):
            if p[c] > p[best]:
                best = c
        is_unknown = has_unknown and best == len(p) - 1
        if best != 0 and not is_unknown and p[best] >= threshold:
            out[b, i, j] = best
    return out


def unshift(labels: Labels) -> Labels:
    """Replayed labels read as if channel 0 were unknown and channel 1 background."""
    meaning = {0: UNKNOWN, 1: 0, IGNORED: IGNORED}
    out = labels.copy()
    for place in np.ndindex(*labels.shape):
        old = int(labels[place])
        out[place] = meaning[old] if old in meaning else old - 1
    return out


@dataclass
class SsulOptions:
    """Fields of the method that its loss depends on."""

    unknown: str = "saliency"
    pseudo: bool = True
    threshold: float = 0.7
    loss_type: str = "bce"


@dataclass
class SsulLoss:
    """Loss, its gradient with respect to the low-resolution channels, and the labels trained on."""

    value: float
    grad: Array
    labels: Labels


def ssul_loss(
    student: Array,
    teacher: Array | None,
    labels: Labels,
    saliency: NDArray[np.bool_],
    options: SsulOptions,
) -> SsulLoss:
    """The loss of a batch.

    Args:
        student: Logits B C(+1) h w, the unknown channel last if there is one.
        teacher: The same of the old model, or None.
        labels: B H W.
        saliency: B H W.
    """
    size = (labels.shape[1], labels.shape[2])
    has_unknown = options.unknown != "none"
    labels = unknown_labels(labels, options.unknown, saliency)
    if options.pseudo and teacher is not None:
        labels = pseudo_labels(
            labels, upsample(teacher, size), has_unknown, options.threshold, options.loss_type
        )
    target = labels.copy()
    target[labels == UNKNOWN] = student.shape[1] - 1
    values, grads = pixelwise(options.loss_type, upsample(student, size), target)
    valid = int((labels != IGNORED).sum())
    if valid == 0:
        return SsulLoss(0.0, np.zeros(student.shape), labels)
    grad = upsample_backward(grads / valid, (student.shape[2], student.shape[3]))
    return SsulLoss(float(values.sum() / valid), grad, labels)


# --- heads and their update -----------------------------------------------------------------------------


@dataclass
class NaiveHead:
    """3x3 convolution, batch normalisation with fixed statistics, ReLU, 1x1 convolution."""

    conv: Array  # width x channels x 3 x 3
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    weight: Array  # classes x width
    bias: Array
    momenta: dict[str, Array] = field(default_factory=dict)

    def forward(self, features: Array) -> tuple[Array, dict[str, Array]]:
        """B channels h w -> B classes h w, and what the backward pass needs."""
        padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = features.shape[2:]
        convolved = np.zeros((features.shape[0], self.conv.shape[0], height, width))
        for dy in range(3):
            for dx in range(3):
                window = padded[:, :, dy : dy + height, dx : dx + width]
                convolved += np.einsum("oc,bchw->bohw", self.conv[:, :, dy, dx], window)
        normed = np.zeros_like(convolved)
        for c in range(len(self.gamma)):
            scaled = (convolved[:, c] - self.mean[c]) / math.sqrt(self.var[c] + EPS)
            normed[:, c] = scaled * self.gamma[c] + self.beta[c]
        hidden = np.where(normed > 0, normed, 0.0)
        logits = np.einsum("kc,bchw->bkhw", self.weight, hidden) + self.bias[None, :, None, None]
        return logits, {"padded": padded, "normed": normed, "hidden": hidden}

    def backward(self, grad: Array, kept: dict[str, Array]) -> dict[str, Array]:
        """Gradients of conv, weight and bias from that of the logits."""
        height, width = grad.shape[2:]
        hidden = np.einsum("kc,bkhw->bchw", self.weight, grad)
        normed = np.where(kept["normed"] > 0, hidden, 0.0)
        scale = self.gamma / np.sqrt(self.var + EPS)
        convolved = normed * scale[None, :, None, None]
        conv = np.zeros_like(self.conv)
        for dy in range(3):
            for dx in range(3):
                window = kept["padded"][:, :, dy : dy + height, dx : dx + width]
                conv[:, :, dy, dx] = np.einsum("bohw,bchw->oc", convolved, window)
        weight = np.einsum("bkhw,bchw->kc", grad, kept["hidden"])
        return {"conv": conv, "weight": weight, "bias": grad.sum((0, 2, 3))}

    def update(self, grads: dict[str, Array], rate: float, momentum: float, decay: float) -> None:
        """Nesterov SGD with weight decay, as torch's SGD defines it (first buffer = first gradient)."""
        for name, grad in grads.items():
            parameter: Array = getattr(self, name)
            step = grad + decay * parameter
            before = self.momenta.get(name)
            self.momenta[name] = step if before is None else momentum * before + step
            setattr(self, name, parameter - rate * (step + momentum * self.momenta[name]))


# --- views ----------------------------------------------------------------------------------------------


def view_map(
    mask: NDArray[Any],
    size: tuple[int, int],
    top: int,
    left: int,
    crop: tuple[int, int],
    flip: bool,
    fill: int,
) -> NDArray[Any]:
    """Nearest by pixel centres, one pixel at a time."""
    out = np.zeros(crop, mask.dtype)
    for i in range(crop[0]):
        for j in range(crop[1]):
            row, column = i + top, (crop[1] - 1 - j if flip else j) + left
            if 0 <= row < size[0] and 0 <= column < size[1]:
                # floor((k + 1/2) * old / new) in whole numbers
                out[i, j] = mask[
                    (2 * row + 1) * mask.shape[0] // (2 * size[0]),
                    (2 * column + 1) * mask.shape[1] // (2 * size[1]),
                ]
            else:
                out[i, j] = fill
    return out


def triangle_matrix(old: int, new: int) -> Array:
    """new x old: antialiased linear interpolation; the triangle is as wide as an output pixel at least."""
    scale = old / new
    support = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        for k in range(old):
            matrix[i, k] = max(0.0, 1 - abs(k + 0.5 - (i + 0.5) * scale) / support)
        matrix[i] /= matrix[i].sum()
    return matrix


def view_image(
    image: Pixels,
    size: tuple[int, int],
    top: int,
    left: int,
    crop: tuple[int, int],
    flip: bool,
    fill: tuple[int, int, int],
) -> Array:
    """The whole image resized, then cropped, one pixel at a time."""
    rows, columns = triangle_matrix(image.shape[0], size[0]), triangle_matrix(image.shape[1], size[1])
    whole = np.einsum("Hh,hwc,Ww->HWc", rows, image.astype(np.float64), columns)
    out = np.zeros((*crop, 3))
    for i in range(crop[0]):
        for j in range(crop[1]):
            row, column = i + top, (crop[1] - 1 - j if flip else j) + left
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            out[i, j] = whole[row, column] if inside else fill
    return out


def random_part(
    height: int, width: int, low: float, high: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], bool]:
    """Random resized crop as torchvision documents it: top, left, height, width; then a fair flip."""
    found = None
    for _ in range(10):
        area = height * width * rng.uniform(low, high)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w >= 1 and h >= 1 and w <= width and h <= height:
            top = int(rng.integers(0, height - h + 1))
            found = (top, int(rng.integers(0, width - w + 1)), h, w)
            break
    if found is None:
        w, h = width, height
        if width / height < 3 / 4:
            h = round(width / (3 / 4))
        elif width / height > 4 / 3:
            w = round(height * (4 / 3))
        found = ((height - h) // 2, (width - w) // 2, h, w)
    return found, bool(rng.random() < 0.5)


def confusion(truth: Labels, prediction: Labels, n_true: int, n_known: int) -> Labels:
    """Count pairs."""
    counts = np.zeros((n_true, n_known), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t >= 0:
            counts[t, p] += 1
    return counts
