"""Softmax losses a few images at a time: the same values and gradients, and little that is kept."""

import pytest
import torch
from torch import Tensor

from segrow import losses
from segrow.losses import cross_entropy, in_pieces, upsample

SIZE = (24, 20)


def entropy(low: Tensor, labels: Tensor, *theirs: Tensor) -> Tensor:
    return cross_entropy(upsample(low, SIZE), labels)


def draw(images: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(images)
    logits = torch.randn(images, 6, 5, 4, generator=g, dtype=torch.float64).requires_grad_()
    return logits, torch.randint(-2, 6, (images, *SIZE), generator=g)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("together", [1, 2, 7])
def test_values_and_gradients_do_not_depend_on_the_pieces(
    images: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, labels = draw(images)
    cut = whole.detach().clone().requires_grad_()
    weights = torch.rand(labels.shape, dtype=torch.float64)
    want = entropy(whole, labels)
    (want * weights).sum().backward()
    monkeypatch.setattr(losses, "PIECE", together * 6 * SIZE[0] * SIZE[1])
    found = in_pieces(entropy, cut, labels)
    (found * weights).sum().backward()
    assert torch.equal(found, want)
    assert whole.grad is not None
    assert cut.grad is not None
    torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-12, atol=1e-12)


def test_nothing_of_full_resolution_and_all_classes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw(5)
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    def numbers() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            in_pieces(entropy, logits, labels).sum().backward()
        return max(kept)

    every = 6 * SIZE[0] * SIZE[1]  # of one image
    assert numbers() == 5 * every
    monkeypatch.setattr(losses, "PIECE", every)
    assert numbers() <= every
