"""The fused network says what the model says, shares nothing with it, and can be exported."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from steps import quiet, shake, spread
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn

from segrow.argmax import arg_max
from segrow.config import ModelConfig
from segrow.methods.base import make_method
from segrow.model import fused
from segrow.model.fused import FusedSegmenter, fold_norms, fuse
from segrow.model.norm import synchronise_norms
from segrow.model.segmenter import Head, Segmenter, build_segmenter

SIDE = 65


def pictures(n: int = 2, seed: int = 0) -> Tensor:
    """Smooth, as photos are: classes then have inner regions."""
    coarse = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255).byte()


def grown(name: str, steps: tuple[int, ...] = (1, 2, 1), unknown: bool = True, **options: Any) -> Segmenter:
    """A network after some steps, with norms and logits as a trained one has them."""
    torch.manual_seed(0)
    options = {"width": 16, "rates": (1, 2, 3), **options}
    model = build_segmenter(ModelConfig(name=name, weights="none", **options), 3, unknown, quiet)
    for step, n in enumerate(steps, 1):
        model.grow(n, step)
    spread(model, pictures(seed=9))
    return model.eval()


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("deeplabv3_resnet26", {}),
    ("deeplabv3_mobilenet", {"reference_padding": True}),
    ("deeplabv3_mobilenet", {"output_stride": 8}),
    ("deeplabv3_tf_efficientnet_lite0", {}),
    ("deeplabv3_efficientnet_b0", {"separable": True}),
    ("deeplabv3_mobilenetv3_small_100", {"head": "linear"}),
    ("deeplabv3_seresnext26d_32x4d", {"unknown": False}),
    ("deeplabv3plus_resnet26", {}),
    ("deeplabv3plus_mobilenet", {"separable": True}),
    ("deeplabv3plus_resnet26", {"separable": True, "refine": True, "dilate_first": True, "norm_eps": 1e-3}),
    ("deeplabv3plus_mobilenet", {"head": "linear", "unknown": False}),
]


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=[f"{n} {o}" for n, o in FAMILIES])
@torch.inference_mode()
def test_label_maps_are_those_of_the_model(name: str, options: dict[str, Any]) -> None:
    model = grown(name, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quick, images = fuse(model), pictures()
    assert len(norms(model)) > 10
    assert not norms(quick)
    ours, theirs = quick(images), model(images)
    for a, b in zip((ours.logits, *ours.stages), (theirs.logits, *theirs.stages), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-3 * b.std()
    assert (ours.unknown is None) == (theirs.unknown is None)
    scores = make_method("ssul" if ours.unknown is not None else "mib", {}).scores
    maps = [arg_max(out.logits, out.unknown, (SIDE, SIDE), scores) for out in (ours, theirs)]
    assert len(maps[1].unique()) >= 4
    # where two classes are equal to the last digits rounding decides, and processors round differently
    assert (maps[0] == maps[1]).double().mean() >= 0.9995
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
def test_it_shares_nothing_with_the_model_and_changes_nothing_in_it() -> None:
    model, images = grown("deeplabv3_test_resnet"), pictures()
    model.train()
    quick = fuse(model)
    assert model.training
    assert not quick.training
    assert not [p for p in quick.parameters() if p.requires_grad]
    ours = {t.untyped_storage().data_ptr() for t in (*quick.parameters(), *quick.buffers())}
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not ours & theirs
    before = quick(images).logits
    shake(model)
    for value in model.parameters():
        value.zero_()
    assert torch.equal(quick(images).logits, before)


@torch.inference_mode()
def test_maps_before_the_last_activation() -> None:
    model, images = grown("deeplabv3_test_resnet"), pictures()
    ours, theirs = fuse(model)(images, before=True), model(images, before=True)
    assert len(ours.before) == len(theirs.before) == 4
    for a, b in zip(ours.before, theirs.before, strict=True):
        assert (a < 0).any()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_heads_of_both_forms_and_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "WIDEST", 16 * 5)
    model, images = grown("deeplabv3_test_resnet", steps=(1,) * 30), pictures()
    for k in (3, 4, 20):
        size = model.heads[k].out.out_channels  # type: ignore[union-attr]
        model.heads[k] = Head(16, 16, size, "linear", plus=False).eval()  # type: ignore[arg-type]
    quick = fuse(model)
    ours, theirs = quick(images), model(images)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.unknown, theirs.unknown, rtol=1e-4, atol=1e-4)
    # 3 conv, 2 linear, 15 conv, 1 linear, 12 conv with the unknown one
    assert [group.out.in_channels for group in quick.groups] == [48, 16, 80, 80, 80, 16, 80, 80, 32]  # type: ignore[union-attr]


def test_it_can_be_exported() -> None:
    model, images = grown("deeplabv3plus_test_resnet"), pictures()
    quick = fuse(model)
    program = torch.export.export(quick, (images,))
    with torch.no_grad():
        got, want = program.module()(images), quick(images)
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.unknown, want.unknown)


@torch.inference_mode()
def test_it_runs_in_bfloat16_and_float64() -> None:
    model, images = grown("deeplabv3_test_resnet"), pictures()
    want = model(images).logits
    got = fuse(model).bfloat16()(images).logits
    assert got.dtype == torch.bfloat16
    assert (got - want).abs().max() < 0.2 * want.std()
    exact, double = fuse(copy.deepcopy(model).double())(images).logits, model.double()(images).logits
    torch.testing.assert_close(exact, double, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_norms_over_processes_are_folded_too() -> None:
    model, images = grown("deeplabv3_mobilenet"), pictures()
    want = model(images).logits
    synchronise_norms(model, "cpu")
    quick = fuse(model.eval())
    assert not norms(quick)
    torch.testing.assert_close(quick(images).logits, want, rtol=1e-3, atol=1e-3)


# --- which norms can be folded ----------------------------------------------------------------------------


def pair(norm: nn.Module, conv: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    both = nn.Sequential(conv or nn.Conv2d(4, 6, 3, padding=1), norm)
    shake(both)
    return both.eval()


@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_weights_are_those_of_the_formula(conv_bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, groups=2, bias=conv_bias), nn.BatchNorm2d(6, eps=1e-3, affine=affine)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.01, 2)
    gamma = beta = None
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        gamma, beta = norm.weight.detach().double().numpy(), norm.bias.detach().double().numpy()
    w, mean, var = (t.detach().double().numpy() for t in (conv.weight, norm.running_mean, norm.running_var))
    bias = conv.bias.detach().double().numpy() if conv.bias is not None else np.zeros(6)
    both = nn.Sequential(conv, norm).eval()
    assert fold_norms(both, torch.zeros(1, 4, 5, 5)) == 1
    assert conv.bias is not None
    for c in range(6):
        scale = (1.0 if gamma is None else gamma[c]) / np.sqrt(var[c] + 1e-3)
        np.testing.assert_allclose(conv.weight[c].numpy(), w[c] * scale, rtol=1e-6, atol=1e-9)
        want = (bias[c] - mean[c]) * scale + (0.0 if beta is None else beta[c])
        np.testing.assert_allclose(conv.bias[c].item(), want, rtol=1e-6, atol=1e-7)


def test_the_activation_of_timms_norms_stays() -> None:
    both, x = pair(BatchNormAct2d(6, act_layer=nn.ReLU6)), torch.randn(1, 4, 8, 8)
    want = both(x)
    assert (want == 0).any()
    assert fold_norms(both, x) == 1
    assert isinstance(both[1], nn.ReLU6)
    torch.testing.assert_close(both(x), want)


class ReadTwice(nn.Module):
    """A convolution whose result something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = pair(nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = self.norm(y) + y
        return out


class CalledTwice(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) + self.conv(2 * x)
        return out


class NormCalledTwice(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.norm(self.conv(x)))
        return out


class ReturnedToo(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = self.conv(x)
        return y, self.norm(y)  # type: ignore[return-value]


class Unusual(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


ALONE = [
    ReadTwice(),
    CalledTwice(),
    NormCalledTwice(),
    ReturnedToo(),
    pair(Unusual(6)),
    pair(nn.BatchNorm2d(6), StdConv2d(4, 6, 3)),
    nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
]


@pytest.mark.parametrize("module", ALONE, ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_others_are_left_alone(module: nn.Module) -> None:
    module.eval()
    x = torch.randn(2, 4, 8, 8)
    want = module(x)
    assert fold_norms(module, x[:1]) == 0
    got = module(x)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_fuse_gives_a_fused_segmenter() -> None:
    quick = fuse(grown("deeplabv3_test_resnet", steps=()))
    assert isinstance(quick, FusedSegmenter)
    assert quick.n_classes == 4
