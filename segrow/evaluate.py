"""Confusion matrices: all true classes x known predictions, over the whole split after every step."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .argmax import Scores, arg_max
from .data.base import SegDataset, Split
from .data.loader import EvalImages, Loaded, collate, iterate, to_device
from .devices import kernel_search
from .errors import LeakError, UserError
from .model.segmenter import Segmenter
from .precision import true_float32
from .processes import loader_processes

Features = Callable[[Segmenter, Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Matrices:
    """Pixels counted; row = truth (N+1 classes), column = prediction (known classes).

    Attributes:
        all: Over all images.
        known: Over the images that contain at least one known foreground class.
    """

    all: np.ndarray
    known: np.ndarray


def confusion(truth: Tensor, prediction: Tensor, n_true: int, n_known: int) -> Tensor:
    """Rectangular confusion matrix, int64 n_true x n_known; negative truth is ignored.

    Args:
        truth: Class indices of any shape, in [-2, n_true).
        prediction: The same shape, in [0, n_known).
    """
    valid = truth >= 0
    pairs = truth[valid] * n_known + prediction[valid]
    return torch.bincount(pairs, minlength=n_true * n_known).view(n_true, n_known)


def eval_loader(
    data: SegDataset,
    split: Split,
    images: tuple[str, ...],
    table: np.ndarray,
    crop: int | None,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    *,
    pixels: bool = True,
) -> DataLoader[Loaded | UserError | LeakError]:
    """Images in order; batches of one when they keep their own size (`crop` None).

    Args:
        device: What the batches are for.
        pixels: Else the labels alone are read, and images are empty: 3 x 0 x 0.
    """
    return DataLoader(
        EvalImages(data, split, images, table, crop, pixels=pixels),  # type: ignore[arg-type]
        batch_size=batch_size if crop else 1,
        **loader_processes(workers, device.type),
        collate_fn=collate,
        generator=torch.Generator(),  # else an evaluation would move the global random state
    )


@torch.inference_mode()
@true_float32()
@kernel_search(False)
def evaluate(
    model: Segmenter,
    scores: Scores,
    loader: DataLoader[Loaded | UserError | LeakError],
    n_true: int,
    with_known: Set[str],
    device: torch.device,
    *,
    channels_last: bool = True,
    features: Features | None = None,
    track: Callable[[Iterable[Loaded]], Iterable[Loaded]] = iter,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Matrices:
    """Predict every image of a loader in float32 and count.

    Args:
        model: In any mode; it is put into eval mode.
        scores: The method's `scores`.
        n_true: N+1, future classes included.
        with_known: Ids of the images that contain a known foreground class.
        features: Model, images and their ids -> what `model.features` says of them; default: that itself.
        track: Wraps the loop, e.g. with a progress bar.
        total: Sum of counts over the processes that evaluate a share each.
    """
    model.eval()
    known = model.n_classes
    totals = torch.zeros(2, n_true, known, dtype=torch.int64, device=device)
    for batch, ids in track(iterate(loader)):
        batch = to_device(batch, device, channels_last)
        out = model.classify(features(model, batch.images, ids)) if features else model(batch.images)
        prediction = arg_max(out.logits, out.unknown, batch.labels.shape[-2:], scores)
        shown = torch.tensor([i in with_known for i in ids], device=device)
        for k, chosen in enumerate((shown, ~shown)):
            totals[k] += confusion(batch.labels[chosen], prediction[chosen], n_true, known)
    with_class, without = total(totals).cpu().numpy()
    return Matrices(all=with_class + without, known=with_class)


@torch.inference_mode()
@true_float32()
@kernel_search(False)
def image_matrices(
    models: Sequence[tuple[Segmenter, Scores]],
    loader: DataLoader[Loaded | UserError | LeakError],
    n_true: int,
    device: torch.device,
    *,
    one_trunk: bool = False,
    channels_last: bool = True,
    track: Callable[[Iterable[Loaded]], Iterable[Loaded]] = iter,
) -> list[np.ndarray]:
    """A confusion matrix of every image, of several models on the same images.

    Args:
        models: Each with its method's `scores`, on the device; they are put into eval mode.
        n_true: Number of true classes.
        one_trunk: The models' trunks are equal, so that of the first speaks for all.
        track: Wraps the loop, e.g. with a progress bar.

    Returns:
        For each model int64 n x n_true x its classes, in the order of the loader.
    """
    found: list[list[np.ndarray]] = [[] for _ in models]
    for model, _ in models:
        model.eval()
    for loaded, _ in track(iterate(loader)):
        batch = to_device(loaded, device, channels_last)
        features = models[0][0].features(batch.images).features if one_trunk else None
        for (model, scores), rows in zip(models, found, strict=True):
            out = model(batch.images) if features is None else model.classify(features)
            prediction = arg_max(out.logits, out.unknown, batch.labels.shape[-2:], scores)
            for truth, row in zip(batch.labels, prediction, strict=True):
                rows.append(confusion(truth, row, n_true, model.n_classes).cpu().numpy())
    sizes = [model.n_classes for model, _ in models]
    return [
        np.stack(rows) if rows else np.zeros((0, n_true, size), np.int64)
        for rows, size in zip(found, sizes, strict=True)
    ]
