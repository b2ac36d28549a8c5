"""Losses of MiB, LwF and PLOP, and medians, against naive float64 versions: values and gradients."""

from collections.abc import Callable, Iterator

import naive_softmax as slow
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Array, Labels
from torch import Tensor

from segrow.losses import (
    distillation,
    local_pod,
    normalised_entropy,
    pod_distance,
    unbiased_cross_entropy,
    unbiased_distillation,
)
from segrow.medians import class_medians, reference_medians

torch.set_num_threads(1)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Array, Array, Labels]:
    """Student's logits B C H W, teacher's B K H W, labels from -2 to C - 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    spread = draw(st.sampled_from([0.1, 1.0, 4.0]))
    student = rng.normal(0, spread, (batch, old + new, height, width))
    teacher = rng.normal(0, spread, (batch, old, height, width))
    return student, teacher, rng.integers(-2, old + new, (batch, height, width))


def same(ours: Callable[[Tensor], Tensor], student: Array, expected: tuple[Array, Array], seed: int) -> None:
    """Values a pixel, and gradients under random weights a pixel, to 1e-10."""
    values, grads = expected
    x = torch.from_numpy(student).requires_grad_()
    got = ours(x)
    np.testing.assert_allclose(got.detach().numpy(), values, rtol=0, atol=1e-10)
    weights = np.random.default_rng(seed).normal(size=values.shape)
    (got * torch.from_numpy(weights)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), grads * weights[:, None], rtol=0, atol=1e-10)


@pytest.mark.parametrize("old_as_background", [True, False])
@settings(max_examples=60, deadline=None)
@given(case=steps(), seed=st.integers(0, 999))
def test_unbiased_cross_entropy(
    old_as_background: bool, case: tuple[Array, Array, Labels], seed: int
) -> None:
    student, teacher, labels = case
    known_before = teacher.shape[1]

    def pixel(x: Array, y: int) -> tuple[float, Array]:
        return slow.pixel_unbiased_ce(x, y, known_before, old_as_background)

    same(
        lambda x: unbiased_cross_entropy(x, torch.from_numpy(labels), known_before, old_as_background),
        student,
        slow.over_pixels(pixel, student, labels),
        seed,
    )


@settings(max_examples=60, deadline=None)
@given(case=steps(), seed=st.integers(0, 999))
def test_distillation(case: tuple[Array, Array, Labels], seed: int) -> None:
    student, teacher, _ = case
    expected = slow.over_pixels(slow.pixel_distillation, student, teacher)
    same(lambda x: distillation(x, torch.from_numpy(teacher)), student, expected, seed)


@settings(max_examples=60, deadline=None)
@given(case=steps(), seed=st.integers(0, 999))
def test_unbiased_distillation(case: tuple[Array, Array, Labels], seed: int) -> None:
    student, teacher, _ = case
    expected = slow.over_pixels(slow.pixel_unbiased_distillation, student, teacher)
    same(lambda x: unbiased_distillation(x, torch.from_numpy(teacher)), student, expected, seed)


def test_the_naive_gradients_are_slopes() -> None:
    rng = np.random.default_rng(0)
    x, old = rng.normal(0, 2, 5), rng.normal(0, 2, 3)
    maps = rng.normal(0, 1, (2, 1, 2, 5, 5))
    cases: list[tuple[Array, Callable[[Array], tuple[float, Array]]]] = [
        (x, lambda v: slow.pixel_unbiased_ce(v, 0, 3, True)),
        (x, lambda v: slow.pixel_unbiased_ce(v, 2, 3, True)),
        (x, lambda v: slow.pixel_unbiased_ce(v, 2, 3, False)),
        (x, lambda v: slow.pixel_unbiased_ce(v, 4, 3, True)),
        (x, lambda v: slow.pixel_distillation(v, old)),
        (x, lambda v: slow.pixel_unbiased_distillation(v, old)),
        (maps[0], lambda v: slow.pod(v, maps[1])),
    ]
    for start, function in cases:
        _, grad = function(start)
        for place in np.ndindex(*start.shape):
            change = np.zeros_like(start)
            change[place] = 1e-5
            slope = (function(start + change)[0] - function(start - change)[0]) / 2e-5
            assert abs(slope - grad[place]) < 1e-8


def test_without_new_classes_the_unbiased_losses_are_the_plain_ones() -> None:
    x, t = torch.randn(1, 4, 2, 2).double(), torch.randn(1, 4, 2, 2).double()
    torch.testing.assert_close(unbiased_distillation(x, t), distillation(x, t))


# --- local POD ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 3),
    side=st.integers(4, 9),
    extra=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_pod_distance(batch: int, channels: int, side: int, extra: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(0, 1.5, (2, batch, channels, side + extra, side))
    value, grad = slow.pod(x, y)
    ours = torch.from_numpy(x).requires_grad_()
    distance = pod_distance(ours, torch.from_numpy(y))
    distance.backward()
    assert ours.grad is not None
    assert abs(distance.item() - value) < 1e-10
    np.testing.assert_allclose(ours.grad.numpy(), grad, rtol=0, atol=1e-10)


def test_equal_maps_have_no_distance_and_a_finite_gradient() -> None:
    x = torch.randn(2, 3, 5, 5).requires_grad_()
    distance = pod_distance(x, x.detach().clone())
    distance.backward()
    assert distance.item() == 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_half_precision_maps_do_not_overflow() -> None:
    x = torch.full((1, 2, 4, 4), 300.0, dtype=torch.float16)  # its square is above the largest float16
    assert torch.isfinite(pod_distance(x, x / 2))


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (4, 5)])
def test_maps_too_small_for_local_pod(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 4 x 4 and as high as wide, got"):
        local_pod(torch.zeros(1, 1, *shape))


# --- entropy and medians --------------------------------------------------------------------------------


def test_entropy_is_normalised() -> None:
    p = np.random.default_rng(0).dirichlet([0.3] * 5, (2, 3, 4)).transpose(0, 3, 1, 2)
    p[0, :, 0, 0] = [1, 0, 0, 0, 0]
    p[0, :, 0, 1] = 0.2
    ours = normalised_entropy(torch.from_numpy(p.copy())).numpy()
    for b, i, j in np.ndindex(*ours.shape):
        assert abs(ours[b, i, j] - slow.entropy(p[b, :, i, j])) < 1e-12
    assert ours[0, 0, 0] == 0
    assert abs(ours[0, 0, 1] - 1) < 1e-12


Scan = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@st.composite
def scans(draw: st.DrawFn, dtype: type) -> tuple[Scan, list[Array]]:
    """Values in batches, some equal, some tiny; and the values of each of four classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 60))
    values = rng.choice([rng.random(n), rng.random(n) ** 20, rng.integers(0, 3, n) / 4]).astype(dtype)
    classes = rng.integers(0, draw(st.integers(1, 4)), n)
    cuts = sorted(rng.integers(0, n + 1, 3).tolist())

    def scan() -> Iterator[tuple[Tensor, Tensor]]:
        for a, b in zip([0, *cuts], [*cuts, n], strict=True):
            yield torch.from_numpy(values[a:b]), torch.from_numpy(classes[a:b])

    return scan, [values[classes == c] for c in range(4)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_medians_are_exact(dtype: type) -> None:
    @settings(max_examples=80, deadline=None)
    @given(case=scans(dtype))
    def check(case: tuple[Scan, list[Array]]) -> None:
        scan, rows = case
        ours = class_medians(scan, 4).numpy()
        assert ours.dtype == dtype
        for value, row in zip(ours, rows, strict=True):
            assert np.isnan(value) if not len(row) else value == np.median(row).astype(dtype)

    check()


def test_medians_sum_the_counts_of_processes() -> None:
    """Every process shows the same values: their medians are those of one."""
    values, classes = torch.rand(31).double(), torch.arange(31) % 2

    def scan() -> Iterator[tuple[Tensor, Tensor]]:
        yield values, classes

    alone, three = class_medians(scan, 2), class_medians(scan, 2, lambda counts: 3 * counts)
    assert torch.equal(alone, three)


def test_medians_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values to take a median of"):
        class_medians(lambda: iter(()), 2)
    with pytest.raises(ValueError, match=r"expected float32 or float64, got torch\.float16"):
        class_medians(lambda: iter([(torch.ones(1).half(), torch.zeros(1, dtype=torch.int64))]), 1)
    empty = (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert class_medians(lambda: iter([empty]), 2).isnan().all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(0, 400), scale=st.sampled_from([0.02, 0.3, 1.0]))
def test_reference_medians_add_up_the_bins_numbers(seed: int, n: int, scale: float) -> None:
    values = np.random.default_rng(seed).random(n) * scale
    pair = (torch.from_numpy(values), torch.zeros(n, dtype=torch.int64))
    ours = reference_medians(lambda: iter([pair]), 1).tolist()[0]
    expected = slow.reference_thresholds([values.tolist()], -np.inf)[0] if n else 0.0
    assert (ours == expected) or (np.isnan(ours) and np.isnan(expected)) or abs(ours - expected) < 1e-12


def test_the_defect_of_the_reference_medians() -> None:
    """METHODS 4: on the compressed scale they land at 0.005 to 0.015, or become infinite."""
    rng = np.random.default_rng(0)
    zeros = torch.zeros(20_000, dtype=torch.int64)
    for values, low, high in (
        (rng.random(20_000) * 0.009, 0.0049, 0.0051),  # all in the lowest bin: right by chance
        # 40 % in bin 0 are not counted as passed in bin 1: 0.01 + 0.01 * 50/60 instead of 0.01 + 0.01 * 10/60
        (np.where(np.arange(20_000) < 8_000, 0.001, 0.015), 0.01833, 0.01834),
    ):
        pair = (torch.from_numpy(values), zeros)
        assert low <= reference_medians(lambda p=pair: iter([p]), 1).item() <= high
    spread = rng.random(20_000) * 0.05  # no bin holds half of the values: the walk never ends
    pair = (torch.from_numpy(spread), zeros)
    assert reference_medians(lambda: iter([pair]), 1).item() == float("inf")
    assert class_medians(lambda: iter([pair]), 1).item() == np.median(spread)
