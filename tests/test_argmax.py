"""Label maps in bands of rows, against bilinear interpolation and scores written in numpy, float64."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from segrow import argmax
from segrow.argmax import arg_max, by_bands
from segrow.losses import upsample
from segrow.methods.base import make_method

Array = npt.NDArray[np.float64]
SIZES = [(48, 64), (37, 50), (5, 7), (3, 4), (1, 1), (96, 9)]


def axis(n: int, size: int) -> Array:
    """The size x n matrix of linear interpolation along one axis, align_corners=False."""
    matrix = np.zeros((size, n))
    for i in range(size):
        at = max(0.0, (i + 0.5) * n / size - 0.5)
        low = min(int(at), n - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, n - 1)] += at - low
    return matrix


def bilinear(maps: Array, size: tuple[int, int]) -> Array:
    rows, columns = axis(maps.shape[2], size[0]), axis(maps.shape[3], size[1])
    return np.einsum("Hh,bchw,Ww->bcHW", rows, maps, columns)


def ssul(logits: Array, unknown: Array) -> Array:
    """Sigmoid of every channel; unknown counts for background."""
    p, u = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-unknown))
    return np.concatenate([p[:, :1] + u, p[:, 1:]], 1)


def softmax(logits: Array, unknown: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def maps(classes: int, seed: int, images: int = 3, side: tuple[int, int] = (5, 7)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(images, classes + 1, *side, generator=g) * 2
    return draw[:, :-1], draw[:, -1:]


def classes_of(scores: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The best class, and where it is better than the second by more than rounding."""
    best = np.sort(scores, 1)
    return scores.argmax(1), best[:, -1] - best[:, -2] > 1e-6


@pytest.mark.parametrize("band_bytes", [1, 4 * 22 * 50 * 3, 10**9])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("method", "oracle"), [("ssul", ssul), ("mib", softmax)])
def test_classes_are_those_of_the_formula(
    method: str,
    oracle: Callable[[Array, Array], Array],
    size: tuple[int, int],
    band_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(argmax, "BAND_BYTES", band_bytes)
    monkeypatch.setattr(argmax, "STRIP_BYTES", max(4 * 22 * 50 * 2, band_bytes))
    logits, unknown = maps(21, seed=sum(size))
    labels = arg_max(logits, unknown, size, make_method(method, {}).scores)
    want, clear = classes_of(oracle(*(bilinear(m.double().numpy(), size) for m in (logits, unknown))))
    assert labels.shape == (3, *size)
    assert labels.dtype == torch.int64
    assert clear.mean() > 0.99
    assert (labels.numpy() == want)[clear].all()


def test_without_unknown_and_in_any_memory_format() -> None:
    logits, _ = maps(4, seed=1)
    labels = arg_max(logits, None, (40, 41), lambda x, unknown: x)
    want, clear = classes_of(bilinear(logits.double().numpy(), (40, 41)))
    assert (labels.numpy() == want)[clear].all()
    last = logits.contiguous(memory_format=torch.channels_last)
    assert (arg_max(last, None, (40, 41), lambda x, unknown: x) == labels).float().mean() > 0.999


def test_the_first_of_equal_classes() -> None:
    same = torch.ones(2, 5, 3, 3)
    same[:, 0] = 0
    assert (arg_max(same, None, (9, 9), lambda x, unknown: x) == 1).all()


def test_bands_are_rows_of_the_upsampled_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argmax, "BAND_BYTES", 4 * 4 * 50 * 9)
    logits, unknown = maps(3, seed=2)
    full = [upsample(m, (70, 50)) for m in (logits, unknown)]
    seen: list[tuple[int, ...]] = []

    def second(band: Tensor, unknown_band: Tensor | None) -> Tensor:
        assert unknown_band is not None
        seen.append(tuple(band.shape))
        return band[:, 1] - unknown_band[:, 0]

    got = by_bands(logits, unknown, (70, 50), second, torch.float32)
    torch.testing.assert_close(got, full[0][:, 1] - full[1][:, 0], rtol=1e-5, atol=1e-5)
    assert seen == [(1, 3, 9, 50)] * 7 + [(1, 3, 7, 50)] + ([(1, 3, 9, 50)] * 7 + [(1, 3, 7, 50)]) * 2


def test_half_precision_is_upsampled_in_single() -> None:
    logits, unknown = maps(3, seed=3)
    seen: set[torch.dtype] = set()

    def decide(band: Tensor, unknown_band: Tensor | None) -> Tensor:
        assert unknown_band is not None
        seen.update((band.dtype, unknown_band.dtype))
        return band[:, 0] > unknown_band[:, 0]

    got = by_bands(logits.bfloat16(), unknown.bfloat16(), (20, 20), decide, torch.bool)
    assert got.dtype == torch.bool
    assert seen == {torch.float32}


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.usefixtures("three_threads")
def test_several_threads_say_the_same(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argmax, "BAND_BYTES", 4 * 4 * 50 * 9)
    logits, unknown = maps(3, seed=4, images=images)
    callers: set[int] = set()

    def scores(x: Tensor, u: Tensor | None) -> Tensor:
        assert u is not None
        assert torch.get_num_threads() == 1  # of a kernel
        callers.add(threading.get_ident())
        return torch.cat([x[:, :1] + u, x[:, 1:]], 1)

    labels = arg_max(logits.requires_grad_(), unknown, (70, 50), scores)
    x, u = (bilinear(m.detach().double().numpy(), (70, 50)) for m in (logits, unknown))
    want, clear = classes_of(np.concatenate([x[:, :1] + u, x[:, 1:]], 1))
    assert (labels.numpy() == want)[clear].all()
    assert threading.get_ident() not in callers
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argmax, "BAND_BYTES", 1)
    with pytest.raises(ZeroDivisionError):
        by_bands(torch.zeros(1, 2, 4, 4), None, (8, 8), lambda x, u: x[:, 0] * (1 // 0), torch.float32)
    assert torch.get_num_threads() == 3


# --- a GPU: whole images, as many as fit a band ----------------------------------------------------------


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("with_unknown", [True, False])
def test_whole_images_say_what_bands_say(
    together: int, with_unknown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps_, other = maps(21, seed=5, images=3)
    unknown = other if with_unknown else None

    def best(logits: Tensor, unknown: Tensor | None) -> Tensor:
        shown = logits if unknown is None else torch.cat([logits[:, :1] + unknown, logits[:, 1:]], 1)
        return shown.max(1).indices

    bands = by_bands(maps_, unknown, (40, 41), best, torch.int64)
    monkeypatch.setattr(argmax, "_images_at_once", lambda logits, size: together)
    seen: list[int] = []

    def counted(logits: Tensor, unknown: Tensor | None) -> Tensor:
        seen.append(len(logits))
        return best(logits, unknown)

    whole = by_bands(maps_, unknown, (40, 41), counted, torch.int64)
    assert (whole == bands).float().mean() > 0.999
    assert seen == [min(together, 3 - start) for start in range(0, 3, together)]


@pytest.mark.parametrize(
    ("device", "side", "expected"),
    [("meta", 513, 11), ("meta", 10_000, 0), ("meta", 8, 45454), ("cpu", 8, 0)],  # meta: as a GPU
)
def test_how_many_images_are_a_band(device: str, side: int, expected: int) -> None:
    assert argmax._images_at_once(torch.empty(2, 22, 1, 1, device=device), (side, side)) == expected
