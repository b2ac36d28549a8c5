"""MiB, LwF, ILT and PLOP, and the parts they exchange: whole losses and updates against naive versions."""

import copy
import math
from collections.abc import Callable

import naive_softmax as slow
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Array, Labels
from naive import upsample as slow_upsample
from steps import SIDE, first_step, hide_old, make_batch, next_step, shake, tiny
from torch import Tensor, nn

from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.losses import upsample
from segrow.methods.base import Method, StepContext, make_method
from segrow.methods.ilt import Ilt
from segrow.methods.lwf import Lwf
from segrow.methods.mib import Mib
from segrow.methods.parts import Freeze, Pseudo
from segrow.methods.plop import Plop
from segrow.methods.ssul import Ssul
from segrow.model.backbones import Backbone
from segrow.model.segmenter import Head, Segmenter, SegOutput, build_segmenter
from segrow.scenario import IGNORE, UNKNOWN

torch.set_num_threads(1)
COMPOSED = ("mib", "lwf", "ilt", "plop")
SMALL = 64  # four pixels of features: what local POD needs


def linear(**options: object) -> Segmenter:
    """The heads that MiB and PLOP have."""
    model = tiny(unknown=False, head="linear", dropout=0.0, **options)
    for head in model.heads:
        nn.init.normal_(head.out.weight, 0, 0.5)
    return model


class Logits:
    """The low-resolution logits of a student, with their gradient."""

    def __init__(self, ctx: StepContext) -> None:
        self.maps: list[Tensor] = []
        self.hooks = [head.register_forward_hook(self._keep) for head in ctx.model.heads]

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        self.maps.append(output)

    def release(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def values(self) -> Array:
        return torch.cat(self.maps, 1).detach().numpy()

    def gradients(self) -> Array:
        return torch.cat([m.grad for m in self.maps if m.grad is not None], 1).numpy()


def run(
    method: Method, batch: Batch, step: int = 1, images: list[Batch] | None = None
) -> tuple[StepContext, dict[str, float], Array, Array, Array | None]:
    """Loss terms, student's logits, their gradient, and the teacher's logits, in step 0 or 1."""
    model = linear()
    ctx = first_step(method, model) if step == 0 else next_step(method, model, 2, 1, images)
    ctx.model.train()
    logits = Logits(ctx)
    losses = method.loss(ctx, batch)
    torch.stack(list(losses.values())).sum().backward()
    logits.release()
    teacher = None if ctx.teacher is None else ctx.teach(batch).logits.numpy()
    return ctx, {k: v.item() for k, v in losses.items()}, logits.values(), logits.gradients(), teacher


def close(ours: dict[str, float], grad: Array, expected: slow.Terms) -> None:
    assert ours.keys() == expected.values.keys()
    for name, value in expected.values.items():
        assert abs(ours[name] - value) < 1e-10, name
    np.testing.assert_allclose(grad, expected.grad, rtol=0, atol=1e-10)


# --- losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSED)
def test_the_base_step_is_cross_entropy_over_all_pixels(name: str) -> None:
    batch = make_batch(3)
    assert (batch.labels == IGNORE).any()
    _, ours, logits, grad, _ = run(make_method(name, {}), batch, step=0)
    close(ours, grad, slow.plain_ce(logits, batch.labels.numpy()))


def test_mib_equals_the_naive_one() -> None:
    batch = hide_old(make_batch(5), 3)
    _, ours, logits, grad, teacher = run(Mib(kd=7.0), batch)
    assert teacher is not None
    close(ours, grad, slow.mib(logits, teacher, batch.labels.numpy(), kd=7.0))


def test_mib_keeps_old_classes_that_an_exemplar_shows() -> None:
    batch = make_batch(5)
    assert ((batch.labels > 0) & (batch.labels < 3)).any()
    _, ours, logits, grad, teacher = run(Mib(), batch)
    assert teacher is not None
    labels = batch.labels.numpy()
    close(ours, grad, slow.mib(logits, teacher, labels, kd=10.0, old_as_background=False))
    folded = slow.mib(logits, teacher, labels, kd=10.0)
    assert abs(folded.values["unce"] - ours["unce"]) > 1e-3


def test_biased_mib_is_lwf() -> None:
    batch = make_batch(5)
    _, ours, logits, grad, teacher = run(Mib(unbiased=False, kd=100.0, init="random"), batch)
    assert teacher is not None
    close(ours, grad, slow.lwf(logits, teacher, batch.labels.numpy(), kd=100.0))


def test_lwf_equals_the_naive_one() -> None:
    batch = make_batch(5)
    _, ours, logits, grad, teacher = run(Lwf(), batch)
    assert teacher is not None
    close(ours, grad, slow.lwf(logits, teacher, batch.labels.numpy(), kd=100.0))


def test_ilt_equals_the_naive_one() -> None:
    batch = make_batch(5)
    ctx, ours, logits, grad, teacher = run(Ilt(), batch)
    assert teacher is not None
    mse = ours.pop("mse")
    close(ours, grad, slow.lwf(logits, teacher, batch.labels.numpy(), kd=100.0))
    assert ctx.teacher is not None
    student = ctx.model.features(batch.images).stages[-1].detach().numpy()
    old = ctx.teacher.features(batch.images).stages[-1].numpy()
    squares = [(a - b) ** 2 for a, b in zip(student.ravel(), old.ravel(), strict=True)]
    assert abs(mse - 100 * sum(squares) / len(squares)) < 1e-9 * mse
    assert mse > 0
    weights = [p.grad for p in ctx.model.trunk.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in weights)


def test_loss_terms_can_be_exchanged() -> None:
    """MiB held by local POD, and PLOP with MiB's losses, are what their terms are by themselves."""
    batch = hide_old(make_batch(5, side=SMALL), 3)
    images = [hide_old(make_batch(5, seed=9, side=SMALL), 3)]
    _, mib, *_ = run(Mib(pod=0.01, pod_logits=0.0005, mse=100.0), batch, images=images)
    assert list(mib) == ["unce", "kd", "mse", "pod", "pod_logits"]
    _, plop, *_ = run(Plop(unbiased=True, kd=10.0), batch, images=images)
    assert list(plop) == ["unce", "kd", "pod", "pod_logits"]
    _, alone, *_ = run(Mib(), batch, images=images)
    _, ilt, *_ = run(Ilt(init="background"), batch, images=images)
    _, pods, *_ = run(Plop(), batch, images=images)
    assert mib["mse"] == pytest.approx(ilt["mse"], rel=1e-12)
    for name in ("pod", "pod_logits"):
        assert mib[name] == pytest.approx(pods[name], rel=1e-12)
        assert plop[name] == pytest.approx(pods[name], rel=1e-12)
    for name in ("unce", "kd"):
        assert mib[name] == pytest.approx(alone[name], rel=1e-12)
    assert plop["kd"] == pytest.approx(alone["kd"], rel=1e-12)


def test_an_entropy_at_its_threshold_is_not_certain() -> None:
    """METHODS 4: below its class's threshold; the only pixel of a class is its own median."""
    method, ctx = Plop(floor=0.0), next_step(Plop(), linear(), 1, 1)
    batch = make_batch(4, side=SMALL)
    teacher = ctx.teach(batch)
    p = upsample(teacher.logits, (SMALL, SMALL)).softmax(1)
    b, i, j = (batch.labels == 0).nonzero()[0].tolist()
    best, limit = int(p[b, :, i, j].argmax()), -(p * p.log()).sum(1)[b, i, j] / math.log(3)
    exact = method._entropy(p, 4)[b, i, j]
    assert abs(exact - limit) < 1e-12
    method.load_state_dict({"thresholds": torch.full((3,), float(exact), dtype=torch.float64)})
    assert method.targets(ctx, teacher, batch.labels).labels[b, i, j] == IGNORE
    more = torch.full((3,), float(exact) + 1e-9, dtype=torch.float64)
    method.load_state_dict({"thresholds": more})
    assert method.targets(ctx, teacher, batch.labels).labels[b, i, j] == best


@pytest.mark.parametrize("name", ["mib", "lwf", "ilt"])
def test_a_weight_of_zero_takes_the_term_out(name: str) -> None:
    zero: dict[str, object] = {"kd": 0.0} | ({"mse": 0.0} if name == "ilt" else {})
    _, ours, *_ = run(make_method(name, zero), make_batch(5))
    assert len(ours) == 1


@pytest.mark.parametrize("median", ["exact", "reference"])
def test_plop_equals_the_naive_one(median: str) -> None:
    method = Plop(median=median, floor=0.02)  # type: ignore[arg-type]
    batch = hide_old(make_batch(5, side=SMALL, n=3), 3)
    batch.labels[2][batch.labels[2] == 0] = 4  # an image without background
    images = [hide_old(make_batch(5, seed=s, side=SMALL), 3) for s in (11, 12)]
    ctx, ours, logits, grad, teacher = run(method, batch, images=images)
    assert teacher is not None
    assert ctx.teacher is not None
    size = (SMALL, SMALL)
    reference = median == "reference"

    def measure(p: Array) -> float:
        return slow.reference_entropy(p, 5) if reference else slow.entropy(p)

    found: list[list[float]] = [[], [], []]
    for scanned in images:
        old = slow_upsample(ctx.teacher(scanned.images).logits.numpy(), size)
        for row, more in zip(found, slow.entropies(old, scanned.labels.numpy(), measure, 3), strict=True):
            row += more
    rule = slow.reference_thresholds if reference else slow.exact_thresholds
    thresholds = rule(found, 0.02)
    stored = method.state_dict()["thresholds"].numpy()
    np.testing.assert_allclose(stored, thresholds, rtol=0, atol=1e-10)

    labels = slow.entropy_labels(
        slow_upsample(teacher, size), batch.labels.numpy(), thresholds, measure, 0.0 if reference else 1.0
    )
    pseudo = (batch.labels.numpy() == 0) & (labels.labels > 0)
    ignored = (batch.labels.numpy() == 0) & (labels.labels == IGNORE)
    if not reference:
        assert pseudo.sum() > 50  # the case is not empty
        assert ignored.sum() > 50
    ce = slow.plop_ce(logits, labels)
    pod_logits, pod_grad = slow.plop_pod_logits(logits, teacher, 0.0005)
    assert abs(ours["ce"] - ce.values["ce"]) < 1e-10
    assert abs(ours["pod_logits"] - pod_logits) < 1e-10
    np.testing.assert_allclose(grad, ce.grad + pod_grad, rtol=0, atol=1e-10)

    fixed = Plop(adaptive=False, median=median, floor=0.02)  # type: ignore[arg-type]
    _, theirs, same, grad, _ = run(fixed, batch, images=images)
    np.testing.assert_array_equal(same, logits)
    labels.factor = [1.0] * len(labels.factor)
    ce = slow.plop_ce(logits, labels)
    assert abs(theirs["ce"] - ce.values["ce"]) < 1e-10
    assert (theirs["pod"], theirs["pod_logits"]) == (ours["pod"], ours["pod_logits"])
    np.testing.assert_allclose(grad, ce.grad + pod_grad, rtol=0, atol=1e-10)

    student = ctx.model(batch.images, True)  # batch statistics: the same numbers again
    old_out = ctx.teacher(batch.images, True)
    maps = zip((*student.before, student.features), (*old_out.before, old_out.features), strict=True)
    pairs = [(a.detach().numpy(), b.numpy()) for a, b in maps]
    assert len(pairs) == 5
    expected = slow.plop_pod(pairs, 0.01, known=5, known_before=3)
    assert abs(ours["pod"] - expected) < 1e-9 * expected


def test_an_image_without_background_counts_fully_in_plop_and_not_at_all_in_its_reference() -> None:
    for median, expected in (("exact", 1.0), ("reference", 0.0)):
        method = Plop(median=median)  # type: ignore[arg-type]
        ctx = next_step(method, linear(), 2, 1)
        batch = make_batch(5)
        batch.labels.fill_(3)
        assert method.targets(ctx, ctx.teach(batch), batch.labels).confident.tolist() == [expected] * 2


def test_plop_leaves_an_exemplar_its_annotation() -> None:
    method = Plop()
    ctx = next_step(method, linear(), 2, 1)
    batch = make_batch(5)
    labels = method.targets(ctx, ctx.teach(batch), batch.labels).labels
    annotated = batch.labels > 0
    assert (annotated & (batch.labels < 3)).any()
    assert torch.equal(labels[annotated], batch.labels[annotated])


# --- maps before the last activation --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deeplabv3_resnet10t", "deeplabv3_test_resnet", "deeplabv3_resnet50"])
def test_maps_before_the_last_relu(name: str) -> None:
    """Relu of them gives the maps that go on; they hold what relu takes away."""
    torch.manual_seed(0)
    config = ModelConfig(name=name, weights="none", width=8, rates=(1, 2, 3))
    model = build_segmenter(config, 2, False, lambda line: None).train()
    shake(model)  # a fresh block adds nothing to its shortcut, which is not negative
    images = make_batch(3, side=SMALL).images
    plain = model(images)
    again = copy.deepcopy(model)
    out, twin = model(images, True), again(images, True)
    assert plain.before == ()
    assert len(out.before) == 4
    for raw, stage, other in zip(out.before, out.stages[-4:], twin.before, strict=True):
        assert torch.equal(raw.relu(), stage)
        assert (raw < 0).any()
        assert torch.equal(raw, other)
        assert raw is not other
    torch.testing.assert_close(out.stages[-1], plain.stages[-1])
    loss = torch.stack([r.sum() for r in out.before]).sum()
    loss.backward()
    first = model.trunk.backbone.net.conv1
    first = first[0] if isinstance(first, nn.Sequential) else first
    assert first.weight.grad is not None


def test_inverted_residual_stages_end_without_activation() -> None:
    backbone = Backbone("mobilenetv2_100", 16).eval()
    maps, before = backbone.forward_before(torch.randn(1, 3, 64, 64))
    assert backbone.shows_before
    assert len(before) == 4
    for a, b in zip(before, maps[-4:], strict=True):
        assert a is b
        assert (a < 0).any()


def test_plop_refuses_a_backbone_whose_stages_it_does_not_know() -> None:
    model = tiny(unknown=False, head="linear")
    model.trunk.backbone._ends = None
    with pytest.raises(UserError, match=r"not known of backbone resnet10t; use a resnet or mobilenet, or"):
        first_step(Plop(), model)
    first_step(Plop(pod=0.0), model)
    with pytest.raises(RuntimeError, match="where the stages of resnet10t end is not known"):
        model.trunk.backbone.forward_before(torch.zeros(1, 3, 32, 32))


def test_plop_needs_maps_of_four_pixels() -> None:
    method, model = Plop(), linear()
    with pytest.raises(
        UserError, match=r"pixels and more, but crops of 48 give 3 at stride 16; use --train\.crop 64 or more"
    ):
        method.check(model, 48)
    method.check(model, 49)
    Plop(pod=0.0, pod_logits=0.0).check(model, 48)
    ctx = next_step(method, model, 1, 1)
    with pytest.raises(ValueError, match="at least 4 x 4"):  # a run is refused before it comes to this
        method.loss(ctx, make_batch(4))
    assert SIDE == 48


# --- initialisation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("n_new", [1, 2, 5])
def test_background_initialisation_splits_the_old_background(head: str, n_new: int) -> None:
    """Old classes keep their probability; background and new classes share the old background's."""
    model = tiny(unknown=False, head=head, dropout=0.0)
    ctx = next_step(Mib(), model, n_new, 1)
    images = make_batch(3).images
    model.eval()
    with torch.no_grad():
        new, old = ctx.model(images).logits.softmax(1), ctx.teach(make_batch(3)).logits.softmax(1)
    torch.testing.assert_close(new[:, 1:3], old[:, 1:3], rtol=0, atol=1e-6)
    shared = torch.cat([new[:, :1], new[:, 3:]], 1)
    torch.testing.assert_close(shared.sum(1), old[:, 0], rtol=0, atol=1e-6)
    for c in range(shared.shape[1]):
        torch.testing.assert_close(shared[:, c], old[:, 0] / (n_new + 1), rtol=0, atol=1e-6)
    assert old[:, 0].std() > 0.01


def test_background_initialisation_equals_the_formula() -> None:
    model = linear()
    before = {k: v.clone() for k, v in model.heads[0].state_dict().items()}
    next_step(Mib(), model, 3, 1)
    base, new = model.heads[0].state_dict(), model.heads[1].state_dict()
    bias = before["out.bias"][0].item() - math.log(3 + 1)
    for row in range(3):
        assert torch.equal(new["out.weight"][row], before["out.weight"][0])
        assert abs(new["out.bias"][row].item() - bias) < 1e-12
    assert abs(base["out.bias"][0].item() - bias) < 1e-12
    assert torch.equal(base["out.weight"], before["out.weight"])
    assert torch.equal(base["out.bias"][1:], before["out.bias"][1:])


def test_one_vs_rest_background_is_copied_and_not_split() -> None:
    model = tiny()
    bias = model.heads[0].out.bias.clone()
    next_step(Ssul(init="background"), model, 2, 1)
    assert torch.equal(model.heads[0].out.bias, bias)
    assert torch.equal(model.heads[-1].out.bias, bias.expand(2))
    for key, value in model.heads[-1].body.state_dict().items():
        assert torch.equal(value, model.heads[0].body.state_dict()[key]), key


@pytest.mark.parametrize("name", ["lwf", "ilt"])
def test_random_initialisation_leaves_the_old_logits(name: str) -> None:
    model = linear()
    ctx = next_step(make_method(name, {}), model, 2, 1)
    model.eval()
    images = make_batch(3).images
    assert ctx.teacher is not None
    assert torch.equal(model(images).logits[:, :3], ctx.teacher(images).logits)
    assert not torch.equal(model.heads[1].out.weight[0], model.heads[0].out.weight[0])


def test_unknown_initialisation_needs_an_unknown_head() -> None:
    for name in COMPOSED:
        with pytest.raises(
            UserError, match=f"init unknown needs an unknown head, which method {name} does not"
        ):
            make_method(name, {"init": "unknown"})


# --- freezing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["none", "trunk", "old_heads"])
@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("name", COMPOSED)
def test_what_trains(name: str, head: str, freeze: Freeze) -> None:
    model = tiny(unknown=False, head=head)
    method = make_method(name, {"freeze": freeze})
    next_step(method, model, 1, 1)
    next_step(method, model, 2, 2)
    model.train()
    # linear: base with background, step 1, step 2; conv: background, base, step 1, step 2
    old = ("heads.0.", "heads.1.") if head == "linear" else ("heads.1.", "heads.2.")
    still = {"none": (), "trunk": ("trunk.",), "old_heads": ("trunk.", *old)}[freeze]
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (not key.startswith(still)), key
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (not key.startswith(still)), key
    assert model.trunk_frozen == (freeze != "none")


@pytest.mark.parametrize("name", COMPOSED)
def test_a_frozen_trunk_is_shared_and_changes_nothing(name: str) -> None:
    found = []
    for share in (False, True):
        method, model = make_method(name, {"freeze": "trunk"}), linear()
        ctx = next_step(method, model, 1, 1)
        if share:
            ctx.share_frozen_trunk()
        assert ctx.shares_trunk == share
        model.train()
        losses = method.loss(ctx, make_batch(4, side=SMALL))
        torch.stack(list(losses.values())).sum().backward()
        grads = [p.grad for p in model.heads.parameters()]
        found.append((losses, grads))
    (a, first), (b, second) = found
    for name_ in a:
        torch.testing.assert_close(a[name_], b[name_], rtol=0, atol=1e-12)
    for x, y in zip(first, second, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


# --- pseudo-labels --------------------------------------------------------------------------------------


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Array, Labels, bool, int]:
    """Teacher's logits (unknown last, if any), labels, whether there is unknown, and K."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known, unknown = draw(st.integers(2, 5)), draw(st.booleans())
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    logits = rng.normal(0, 2, (shape[0], known + unknown, *shape[1:]))
    return logits, rng.choice([IGNORE, 0, 0, UNKNOWN, known - 1, known], shape), unknown, known


class Heads:
    """A context whose teacher says what it is told; two steps' worth of classes."""

    def __init__(self, known_before: int) -> None:
        self.known_before, self.known = known_before, known_before + 1


@pytest.mark.parametrize("loss_type", ["bce", "ce"])
@settings(max_examples=60, deadline=None)
@given(case=outputs(), limit=st.sampled_from([0.2, 0.6, 0.9]))
def test_entropy_labels_of_ssul(loss_type: str, case: tuple[Array, Labels, bool, int], limit: float) -> None:
    """Unknown is a channel of the distribution but never a label; what is uncertain is ignored."""
    logits, labels, unknown, known = case
    method = Ssul(
        pseudo="entropy",
        unknown="saliency" if unknown else "none",
        loss_type=loss_type,  # type: ignore[arg-type]
    )
    method.load_state_dict({"thresholds": torch.full((known,), limit).double()})
    x = torch.from_numpy(logits)
    out = SegOutput(x[:, :-1] if unknown else x, x[:, -1:] if unknown else None, x, ())
    ours = method.targets(Heads(known), out, torch.from_numpy(labels)).labels.numpy()  # type: ignore[arg-type]
    for b, i, j in np.ndindex(*labels.shape):
        z = logits[b, :, i, j]
        p = slow.softmax(z) if loss_type == "ce" else np.array([1 / (1 + math.exp(-v)) for v in z])
        best = int(np.argmax(p))
        expected = labels[b, i, j]
        if expected in (0, UNKNOWN) and best < known:
            expected = best if slow.entropy(p / p.sum()) < limit else IGNORE
        assert ours[b, i, j] == expected


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("pseudo", ["none", "threshold", "entropy"])
def test_every_rule_goes_with_every_method(name: str, pseudo: Pseudo) -> None:
    method = make_method(name, {"pseudo": pseudo})
    ctx = next_step(method, linear(), 2, 1)
    batch = hide_old(make_batch(5, side=SMALL), 3)
    losses = method.loss(ctx, batch)
    assert all(torch.isfinite(v) for v in losses.values())
    labels = method.targets(ctx, ctx.teach(batch), batch.labels).labels
    changed = labels != batch.labels
    assert (batch.labels[changed] == 0).all()
    assert (labels[changed] < 3).all()
    if pseudo == "none":
        assert not changed.any()
    if pseudo == "threshold":
        p = upsample(ctx.teach(batch).logits, (SMALL, SMALL)).softmax(1)
        certain = (batch.labels == 0) & (p[:, 1:].max(1).values >= 0.7)
        assert torch.equal(changed, certain)
        assert certain.any()
    if pseudo == "entropy":
        assert (labels == IGNORE)[changed].any()


def test_a_class_that_the_teacher_sees_nowhere_has_the_floor() -> None:
    method, model = Plop(floor=0.125), linear()
    with torch.no_grad():
        assert model.heads[0].out.bias is not None
        model.heads[0].out.bias[2] = -1e3
    next_step(method, model, 1, 1)
    assert method.state_dict()["thresholds"][2] == 0.125


def test_the_base_step_gathers_nothing() -> None:
    method = Plop()
    ctx = first_step(method, linear())
    method.gather(ctx)
    assert method.state_dict() == {}


def test_state_of_thresholds_survives() -> None:
    method, again = Plop(), Plop()
    ctx = next_step(method, linear(), 1, 1)
    again.load_state_dict(method.state_dict())
    batch = make_batch(4, side=SMALL)
    ours, theirs = (m.targets(ctx, ctx.teach(batch), batch.labels) for m in (method, again))
    assert torch.equal(ours.labels, theirs.labels)
    with pytest.raises(UserError, match="method plop has no state prototypes"):
        again.load_state_dict({"prototypes": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="the entropy thresholds have not been gathered"):
        Plop().targets(ctx, ctx.teach(batch), batch.labels)


# --- options --------------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, float], str]] = [
    *[(name, {"threshold": 1.5}, "threshold is 1.5, expected a score from 0 to 1") for name in COMPOSED],
    *[(name, {"floor": -0.1}, "floor is -0.1, expected an entropy from 0 to 1") for name in COMPOSED],
    *[(name, {"kd": -1.0}, "kd is -1.0, expected 0 or more") for name in ("mib", "lwf", "ilt")],
    ("ilt", {"mse": -2.0}, "mse is -2.0, expected 0 or more"),
    ("plop", {"pod": -2.0}, "pod is -2.0, expected 0 or more"),
    ("plop", {"pod_logits": -2.0}, "pod_logits is -2.0, expected 0 or more"),
]


@pytest.mark.parametrize(("name", "fields", "message"), WRONG)
def test_values_that_mean_nothing(name: str, fields: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"--method.{message}"):
        make_method(name, fields)


# --- two updates by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mib", "lwf"])
def test_two_updates_of_the_heads_equal_the_naive_ones(name: str) -> None:
    """Linear heads on a frozen trunk: logits = W f + b, so that a whole update can be written down."""
    method: Method = make_method(name, {"freeze": "trunk"})
    model = linear()
    ctx = next_step(method, model, 2, 1)
    ctx.share_frozen_trunk()
    assert ctx.teacher is not None
    model.train()
    weight = np.concatenate([h.out.weight.detach().numpy()[:, :, 0, 0] for h in model.heads])
    bias = np.concatenate([h.out.bias.detach().numpy() for h in model.heads])
    momenta: list[Array | None] = [None, None]
    groups = method.parameter_groups(ctx, 0.05, 9.0)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for i in range(2):
        batch = hide_old(make_batch(5, seed=i), 3)
        optimizer.zero_grad()
        torch.stack(list(method.loss(ctx, batch).values())).sum().backward()
        optimizer.step()
        features = ctx.teacher.features(batch.images).features.numpy()
        student = np.einsum("kc,bchw->bkhw", weight, features) + bias[None, :, None, None]
        old = ctx.teacher.classify(torch.from_numpy(features)).logits.numpy()
        rule: Callable[..., slow.Terms] = slow.mib if name == "mib" else slow.lwf
        grad = rule(student, old, batch.labels.numpy(), kd=10.0 if name == "mib" else 100.0).grad
        slopes = [np.einsum("bkhw,bchw->kc", grad, features), grad.sum((0, 2, 3))]
        values = [weight, bias]
        for k in range(2):
            step = slopes[k] + 1e-4 * values[k]
            before = momenta[k]
            moved = step if before is None else 0.9 * before + step
            momenta[k] = moved
            values[k] = values[k] - 0.05 * (step + 0.9 * moved)
        weight, bias = values
    ours = np.concatenate([h.out.weight.detach().numpy()[:, :, 0, 0] for h in model.heads])
    np.testing.assert_allclose(ours, weight, rtol=0, atol=1e-10)
    ours = np.concatenate([h.out.bias.detach().numpy() for h in model.heads])
    np.testing.assert_allclose(ours, bias, rtol=0, atol=1e-10)


def test_shake_moves_every_head() -> None:
    """What the cases above stand on: heads that differ."""
    model = tiny(unknown=False)
    shake(model)
    assert isinstance(model.heads[0], Head)
    assert model.heads[0].out.bias is not None
    assert (model.heads[0].out.bias != 0).all()
