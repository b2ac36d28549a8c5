"""What is computed otherwise in training on a CPU is what torch computes: values, gradients, names."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segrow.config import ModelConfig
from segrow.model.kernels import Clip, Depthwise, Dilated, DilatedGradient, accelerate, merged, subgrids
from segrow.model.segmenter import Segmenter, build_segmenter

torch.set_num_threads(1)
GEOMETRIES = [(1, 2), (1, 3), (2, 1)]


def quiet(line: str) -> None:
    """Drop the report."""


def mobilenet() -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(name="deeplabv3_mobilenet", weights="none", width=8, rates=(1, 2, 3), dropout=0.0)
    return build_segmenter(config, 2, True, quiet)


def naive_depthwise(x: Tensor, weight: Tensor, stride: int, d: int) -> Tensor:
    """The definition, a pixel at a time; padded by d."""
    batch, channels, height, width = x.shape
    size = (height - 1) // stride + 1, (width - 1) // stride + 1
    rows = []
    for i in range(size[0]):
        for j in range(size[1]):
            total = torch.zeros(batch, channels, dtype=x.dtype)
            for a in range(3):
                for b in range(3):
                    y, z = i * stride + (a - 1) * d, j * stride + (b - 1) * d
                    if 0 <= y < height and 0 <= z < width:
                        total = total + x[:, :, y, z] * weight[:, 0, a, b]
            rows.append(total)
    return torch.stack(rows, 2).view(batch, channels, *size)


@pytest.mark.parametrize(("stride", "d"), GEOMETRIES)
@pytest.mark.parametrize("size", [(5, 8), (6, 7), (1, 4)])
def test_depthwise_convolutions_equal_the_definition(stride: int, d: int, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 3, 3, stride, d, d, groups=3, bias=False).double()
    ours = Depthwise(conv)
    assert ours.weight is conv.weight
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    wanted = naive_depthwise(x, conv.weight, stride, d)
    above = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, (x, conv.weight), above)
    got = ours(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, (x, conv.weight), above), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "d"), GEOMETRIES)
@pytest.mark.parametrize("frozen", ["none", "input", "weight"])
def test_depthwise_convolutions_in_bfloat16(stride: int, d: int, frozen: str) -> None:
    """Under autocast; also where only one of the two wants a gradient, as behind a frozen layer."""
    torch.manual_seed(1)
    conv = nn.Conv2d(8, 8, 3, stride, d, d, groups=8, bias=False)
    conv.weight.requires_grad_(frozen != "weight")
    x = torch.randn(2, 8, 9, 12).to(memory_format=torch.channels_last).requires_grad_(frozen != "input")
    wanted: list[Tensor] = []
    for module, dtype in ((conv, torch.float32), (Depthwise(conv), torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = module(x)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        grads = [p.grad for p in (x, conv.weight) if p.requires_grad]
        if not wanted:
            wanted = [out.detach(), *(g.clone() for g in grads if g is not None)]
            x.grad, conv.weight.grad = None, None
    for got, expected in zip([out.detach(), *grads], wanted, strict=True):
        assert got is not None
        torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("d", [2, 4, 5, 9])
@pytest.mark.parametrize("size", [(5, 6), (6, 3)])
@pytest.mark.parametrize("frozen", ["none", "input", "weight"])
def test_far_dilated_convolutions_equal_the_definition(d: int, size: tuple[int, int], frozen: str) -> None:
    """Taps that meet a few rows, one or none; d = 2 also where `Dilated` leaves all to torch."""
    torch.manual_seed(2)
    conv = nn.Conv2d(4, 3, 3, 1, d, d, bias=False).double()
    conv.weight.requires_grad_(frozen != "weight")
    x = torch.randn(2, 4, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    x.requires_grad_(frozen != "input")
    channels = [naive_depthwise(x, row[:, None], 1, d).sum(1) for row in conv.weight]
    wanted = torch.stack(channels, 1)
    above = torch.randn_like(wanted)
    inputs = [p for p in (x, conv.weight) if p.requires_grad]
    expected = torch.autograd.grad(wanted, inputs, above)
    for got in (Dilated(conv)(x), DilatedGradient.apply(x, conv.weight, d)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        for a, b in zip(torch.autograd.grad(got, inputs, above), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_far_dilated_convolutions_in_bfloat16() -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(16, 8, 3, 1, 4, 4, bias=False)
    x = torch.randn(2, 16, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    wanted = torch.autograd.grad(conv(x).square().sum(), (x, conv.weight))
    with torch.autocast("cpu", torch.bfloat16):
        out = Dilated(conv)(x)
    assert out.dtype == torch.bfloat16
    for got, expected in zip(
        torch.autograd.grad(out.float().square().sum(), (x, conv.weight)), wanted, strict=True
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_subgrids_are_every_dth_pixel(d: int) -> None:
    x = torch.randn(2, 3, 7, 8)
    parts = subgrids(x, d).reshape(d, d, 2, 3, -(-7 // d), -(-8 // d))
    for i in range(d):
        for j in range(d):
            piece = x[:, :, i::d, j::d]
            assert torch.equal(parts[i, j, :, :, : piece.shape[2], : piece.shape[3]], piece)
    assert torch.equal(merged(subgrids(x, d), d, x.shape[2:]), x)


def test_clip_is_torchs_and_its_gradient_too() -> None:
    values = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 6.0001, float("nan")], dtype=torch.float64)
    expected, ours = (values.clone().requires_grad_() for _ in range(2))
    above = torch.arange(1, 9, dtype=torch.float64)
    wanted, got = F.relu6(expected), Clip(0.0, 6.0)(ours * 1)  # in place needs something that is no leaf
    (wanted * above).sum().backward()
    (got * above).sum().backward()
    assert expected.grad is not None
    assert ours.grad is not None
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
def test_an_accelerated_network_is_the_same_network(training: bool) -> None:
    plain = mobilenet().double().train(training)
    fast = copy.deepcopy(plain)
    weights = dict(fast.named_parameters())
    accelerate(fast)
    accelerate(fast)  # a second time changes nothing
    assert all(weights[name] is p for name, p in fast.named_parameters())
    kinds = [type(m) for m in fast.modules()]
    assert kinds.count(Depthwise) == 6  # three strides, three dilated blocks
    assert kinds.count(Clip) == 34
    assert kinds.count(Dilated) == 2  # of the ASPP; its first rate is 1 here
    assert nn.ReLU6 not in kinds
    images = torch.randint(0, 256, (2, 3, 49, 65), dtype=torch.uint8)
    plain.mean, plain.std, fast.mean, fast.std = (
        value.double() for value in (plain.mean, plain.std, fast.mean, fast.std)
    )
    results = []
    for model in (plain, fast):
        logits = model(images).logits
        logits.square().sum().backward()
        results.append(logits.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (name, p), (other, q) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert name == other
        if p.grad is None:  # the unknown head was not asked
            assert q.grad is None
            continue
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-12 * largest)
    assert list(plain.state_dict()) == list(fast.state_dict())
    for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)  # running statistics moved alike


def test_the_references_padding_trains_as_well() -> None:
    """Its strided depthwise convolutions get maps that are padded already, so they stay as they are."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3_mobilenet", weights="none", width=8, rates=(1, 2), dropout=0.0, reference_padding=True
    )
    plain = build_segmenter(config, 2, True, quiet).double()
    plain.mean, plain.std = plain.mean.double(), plain.std.double()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    images = torch.randint(0, 256, (2, 3, 49, 65), dtype=torch.uint8)
    for model in (plain, fast):
        model(images).logits.square().sum().backward()
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for p, q in zip(plain.parameters(), fast.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-12 * largest)
    low = fast.float()
    low.mean, low.std = low.mean.float(), low.std.float()
    with torch.autocast("cpu", torch.bfloat16):
        low(images).logits.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in low.parameters() if p.grad is not None)


def test_modes_survive() -> None:
    model = mobilenet()
    model.freeze(model.trunk)
    accelerate(model)
    model.train()
    assert model.trunk_frozen
    for module in model.trunk.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
