"""Losses, schedules, the mean of a step and the confusion matrix against naive float64 versions."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Array, Labels, poly_rate, upsample_backward
from naive import confusion as naive_confusion
from naive import pixelwise as naive_pixelwise
from naive import upsample as naive_upsample
from torch import Tensor

from segrow.config import ModelConfig
from segrow.evaluate import confusion
from segrow.losses import (
    cross_entropy,
    focal,
    one_vs_rest,
    one_vs_rest_upsampled,
    poly,
    rate_factor,
    upsample,
)
from segrow.methods.base import StepContext
from segrow.model.segmenter import build_segmenter

torch.set_num_threads(1)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": one_vs_rest,
    "ce": cross_entropy,
    "focal": focal,
}
kinds = pytest.mark.parametrize("kind", list(LOSSES))


def quiet(line: str) -> None:
    """Drop the report."""


def context(processes: int = 1) -> StepContext:
    config = ModelConfig(name="deeplabv3_resnet10t", weights="none", width=8, rates=(1, 2, 3))
    return StepContext(0, build_segmenter(config, 2, False, quiet), None, 3, 1, None, processes)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Array, Labels]:
    """Logits B C H W, some far from 0, and labels with ignored ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    spread = draw(st.sampled_from([0.1, 1.0, 4.0]))
    logits = rng.normal(0, spread, (batch, channels, height, width))
    lowest = draw(st.sampled_from([0, -1, -2]))
    return logits, rng.integers(lowest, channels, (batch, height, width))


# --- one value a pixel ----------------------------------------------------------------------------------


@kinds
@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_losses_equal_the_naive_ones_in_value_and_gradient(
    kind: str, problem: tuple[Array, Labels], seed: int
) -> None:
    logits, target = problem
    values, grads = naive_pixelwise(kind, logits, target)
    x = torch.from_numpy(logits).requires_grad_()
    ours = LOSSES[kind](x, torch.from_numpy(target))
    np.testing.assert_allclose(ours.detach().numpy(), values, rtol=0, atol=1e-10)
    # a weight a pixel: no pixel's gradient may stand at another's place
    weights = np.random.default_rng(seed).normal(size=target.shape)
    (ours * torch.from_numpy(weights)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), grads * weights[:, None], rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000), size=st.tuples(st.integers(5, 9), st.integers(5, 9)))
def test_one_vs_rest_upsampled_equals_the_naive_one_in_value_and_gradient(
    problem: tuple[Array, Labels], seed: int, size: tuple[int, int]
) -> None:
    logits, rng = problem[0], np.random.default_rng(seed)
    target = rng.integers(-2, logits.shape[1], (len(logits), *size))
    values, grads = naive_pixelwise("bce", naive_upsample(logits, size), target)
    weights = rng.normal(size=target.shape)
    x = torch.from_numpy(logits).requires_grad_()
    ours = one_vs_rest_upsampled(x, torch.from_numpy(target))
    np.testing.assert_allclose(ours.detach().numpy(), values, rtol=0, atol=1e-10)
    (ours * torch.from_numpy(weights)).sum().backward()
    assert x.grad is not None
    below = upsample_backward(grads * weights[:, None], logits.shape[-2:])
    np.testing.assert_allclose(x.grad.numpy(), below, rtol=0, atol=1e-10)


def test_one_vs_rest_upsampled_of_labels_without_a_channel() -> None:
    """Target C is a class whose channel is not among these: no channel is hit."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 4, 4))
    target = rng.integers(-1, 4, (2, 9, 9))
    assert (target == 3).any()
    with_fourth = np.concatenate([logits, np.full((2, 1, 4, 4), -1e3)], 1)  # costs 1000 where it is hit
    values, grads = naive_pixelwise("bce", naive_upsample(with_fourth, (9, 9)), target)
    x = torch.from_numpy(logits).requires_grad_()
    ours = one_vs_rest_upsampled(x, torch.from_numpy(target))
    np.testing.assert_allclose(ours.detach().numpy(), values - 1e3 * (target == 3), rtol=0, atol=1e-10)
    ours.sum().backward()
    assert x.grad is not None
    below = upsample_backward(grads, (4, 4))[:, :3]
    np.testing.assert_allclose(x.grad.numpy(), below, rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [2, 151])
@pytest.mark.parametrize("spread", [0.01, 1.0, 500.0])
def test_one_vs_rest_upsampled_in_float32_takes_images_in_turn(channels: int, spread: float) -> None:
    """More pixels than go at a time, more channels than factors in a product; channels last."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, spread, (3, channels, 6, 6)).astype(np.float32)
    target = rng.integers(-1, channels, (3, 60, 60))
    big = np.concatenate([target] * 40, 2) if channels == 2 else target  # 60 x 2400
    size = big.shape[1], big.shape[2]
    wide = torch.from_numpy(naive_upsample(logits.astype(np.float64), size)).requires_grad_()
    expected = one_vs_rest(wide, torch.from_numpy(big))
    expected.mean().backward()
    assert wide.grad is not None
    x = torch.from_numpy(logits).to(memory_format=torch.channels_last).requires_grad_()
    ours = one_vs_rest_upsampled(x, torch.from_numpy(big))
    ours.mean().backward()
    assert x.grad is not None
    assert ours.dtype == torch.float32
    scale = float(expected.detach().max())
    np.testing.assert_allclose(ours.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6 * scale)
    below = upsample_backward(wide.grad.numpy(), (6, 6))
    np.testing.assert_allclose(x.grad.numpy(), below, rtol=1e-4, atol=1e-5 * np.abs(below).max())


@kinds
def test_naive_gradients_are_the_slopes_of_the_naive_values(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 2, (1, 4, 2, 2)), rng.integers(-1, 4, (1, 2, 2))
    _, grads = naive_pixelwise(kind, logits, target)
    for place in np.ndindex(*logits.shape):
        change = np.zeros_like(logits)
        change[place] = 1e-5
        up = naive_pixelwise(kind, logits + change, target)[0].sum()
        down = naive_pixelwise(kind, logits - change, target)[0].sum()
        assert abs((up - down) / 2e-5 - grads[place]) < 1e-8


@kinds
@pytest.mark.parametrize("size", [40.0, 1000.0])
def test_losses_stay_finite_and_right_for_large_logits(kind: str, size: float) -> None:
    logits = np.array([[-size, size, 0.0], [size, -size, 0.0]]).T.reshape(1, 3, 1, 2)
    target = np.array([[[0, 0]]])
    x = torch.from_numpy(logits).requires_grad_()
    ours = LOSSES[kind](x, torch.from_numpy(target))
    ours.sum().backward()
    values, grads = naive_pixelwise(kind, logits, target)
    assert x.grad is not None
    np.testing.assert_allclose(ours.detach().numpy(), values, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(x.grad.numpy(), grads, rtol=1e-10, atol=1e-10)


@kinds
@pytest.mark.parametrize("ignored", [-1, -2])
def test_ignored_pixels_have_no_value_and_no_gradient(kind: str, ignored: int) -> None:
    x = torch.full((1, 3, 2, 2), 1e4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[ignored, 1], [2, ignored]]])
    values = LOSSES[kind](x, target)
    values.sum().backward()
    assert x.grad is not None
    assert (values[target < 0] == 0).all()
    assert (x.grad.permute(0, 2, 3, 1)[target < 0] == 0).all()


# --- upsampling -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    small=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    more=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    seed=st.integers(0, 1000),
)
def test_upsample_equals_the_naive_one(small: tuple[int, int], more: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (small[0] + more[0], small[1] + more[1])
    maps, weights = rng.normal(size=(2, 3, *small)), rng.normal(size=(2, 3, *size))
    x = torch.from_numpy(maps).requires_grad_()
    large = upsample(x, size)
    np.testing.assert_allclose(large.detach().numpy(), naive_upsample(maps, size), rtol=0, atol=1e-10)
    (large * torch.from_numpy(weights)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), upsample_backward(weights, small), rtol=0, atol=1e-10)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16, torch.float32])
def test_upsample_works_in_float32_at_least(half: torch.dtype) -> None:
    maps = torch.randn(1, 2, 3, 3).to(half)
    assert upsample(maps, (7, 9)).dtype == torch.float32
    assert torch.equal(upsample(maps, (7, 9)), upsample(maps.float(), (7, 9)))


# --- schedules ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 5000), place=st.floats(0, 1, exclude_max=True), warm=st.booleans())
def test_schedules_equal_the_naive_ones(total: int, place: float, warm: bool) -> None:
    iteration = int(place * total)
    assert abs(poly(iteration, total, warm_up=warm) - poly_rate(1.0, iteration, total, warm)) < 1e-10


def test_schedules_by_hand() -> None:
    assert poly(0, 100) == 1.0
    assert abs(poly(50, 100) - 0.5**0.9) < 1e-15
    assert poly(0, 100, warm_up=True) == 0.001
    # half of the first tenth: 0.001 + 0.999 / 2
    assert abs(poly(5, 100, warm_up=True) - 0.5005 * 0.95**0.9) < 1e-15
    assert poly(10, 100, warm_up=True) == poly(10, 100)
    assert 0 < poly(4, 5, warm_up=True) == poly(4, 5)  # too short for a tenth


@given(iteration=st.integers(0, 99), size=st.integers(1, 60))
def test_rates_by_policy(iteration: int, size: int) -> None:
    assert rate_factor("poly", iteration, 100, size) == poly(iteration, 100)
    assert rate_factor("warm_poly", iteration, 100, size) == poly(iteration, 100, warm_up=True)
    expected = 1.0
    for i in range(1, iteration + 1):
        if i % size == 0:
            expected /= 10
    assert abs(rate_factor("step", iteration, 100, size) / expected - 1) < 1e-12


# --- the mean of a step ---------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_all_ignored_crop_has_loss_0_and_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    target = torch.full((2, 4, 4), -1)
    loss = context().mean(LOSSES[kind](x, target), target >= 0)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_mean_counts_the_valid_pixels_only() -> None:
    values = torch.tensor([1.0, float("nan"), 4.0, float("inf")], requires_grad=True)
    loss = context().mean(values, torch.tensor([True, False, True, False]))
    loss.backward()
    assert loss.item() == 2.5
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0, 0.5, 0]


def _mean_in_a_process(rank: int, store: str, folder: str, ctx: StepContext) -> None:
    """The average over two processes of the mean of each one's share of the pixels."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values, valid = _pixels()
    with torch.no_grad():  # the mean is linear in the values, so gradients follow
        total = ctx.mean(values[rank::2], valid[rank::2])
        torch.distributed.all_reduce(total)
    np.save(os.path.join(folder, f"{rank}.npy"), total.numpy() / 2)
    torch.distributed.destroy_process_group()


def _pixels() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    valid = rng.random(64) < 0.5
    valid[::4] = False  # one process has fewer valid pixels than the other
    return torch.from_numpy(rng.normal(size=64)), torch.from_numpy(valid)


def test_mean_of_two_processes_equals_that_of_one(tmp_path: Path) -> None:
    ctx = context(2)
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds
    workers = [
        fork.Process(target=_mean_in_a_process, args=(rank, str(tmp_path / "store"), str(tmp_path), ctx))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    values, valid = _pixels()
    alone = context().mean(values, valid).item()
    for rank in range(2):
        assert abs(float(np.load(tmp_path / f"{rank}.npy")) - alone) < 1e-12


# --- confusion ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n_true=st.integers(1, 6), n_known=st.integers(1, 6), pixels=st.integers(0, 40), seed=st.integers(0, 999)
)
def test_confusion_equals_a_loop(n_true: int, n_known: int, pixels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(-2, n_true, (2, pixels)), rng.integers(0, n_known, (2, pixels))
    ours = confusion(torch.from_numpy(truth), torch.from_numpy(prediction), n_true, n_known)
    assert ours.dtype == torch.int64
    assert ours.shape == (n_true, n_known)
    assert (ours.numpy() == naive_confusion(truth, prediction, n_true, n_known)).all()
