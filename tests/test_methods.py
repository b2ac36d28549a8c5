"""Every method keeps the contract; ssul equals a naive implementation, its loss and whole updates."""

from collections.abc import Iterator
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Array, Labels, NaiveHead, SsulOptions
from steps import SIDE, first_step, make_batch, next_step, shake, tiny
from torch import Tensor, nn

from segrow.batch import Batch
from segrow.errors import UserError
from segrow.methods.base import Method, StepContext, make_method, method_class, method_names
from segrow.methods.finetune import Finetune
from segrow.methods.joint import Joint
from segrow.methods.parts import Freeze
from segrow.methods.ssul import Ssul
from segrow.model import fused
from segrow.model.segmenter import Head, Segmenter, SegOutput
from segrow.scenario import IGNORE, UNKNOWN


def two_steps(method: Method, model: Segmenter) -> Iterator[StepContext]:
    """The base step, and when it has been used, the next."""
    yield first_step(method, model)
    yield next_step(method, model, 2, 1)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def with_unknown(out: SegOutput) -> Array:
    parts = [out.logits] if out.unknown is None else [out.logits, out.unknown]
    return torch.cat(parts, 1).detach().numpy()


# --- the contract ---------------------------------------------------------------------------------------


def check_groups(method: Method, ctx: StepContext) -> torch.optim.Optimizer:
    groups = method.parameter_groups(ctx, 0.01, 0.001)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len({id(p) for p in listed})
    assert {id(p) for p in listed} == {id(p) for p in ctx.model.parameters() if p.requires_grad}
    assert all(group["params"] and group["lr"] > 0 for group in groups)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)


def check_update(method: Method, ctx: StepContext) -> None:
    """Loss terms are scalars with a gradient for everything that trains; no gradient reaches the teacher."""
    optimizer = check_groups(method, ctx)
    ctx.model.train()
    losses = method.loss(
        ctx, make_batch(ctx.known, seed=ctx.step, side=64)
    )  # local POD needs 4 pixels of features
    assert losses
    for name, value in losses.items():
        assert isinstance(name, str)
        assert value.shape == ()
        assert torch.isfinite(value)
        assert value.requires_grad
    total(losses).backward()
    for name, parameter in ctx.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
    assert ctx.teacher is None or all(p.grad is None for p in ctx.teacher.heads.parameters())
    optimizer.step()
    optimizer.zero_grad()
    method.end_step(ctx)


def check_scores(method: Method, ctx: StepContext) -> None:
    ctx.model.eval()
    with torch.no_grad():
        out = ctx.model(make_batch(ctx.known).images)
        first, second = method.scores(out.logits, out.unknown), method.scores(out.logits, out.unknown)
    assert first.shape == (2, ctx.known, *out.logits.shape[2:])
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("name", method_names())
def test_contract(name: str) -> None:
    method = make_method(name, {})
    assert method.name == name
    assert method.sees in ("new", "seen")
    assert set(method.aux) <= {"saliency", "everything"}
    assert method.fields() == {key: getattr(method, key) for key in method.fields()}
    model = tiny(method.unknown_head)
    for ctx in two_steps(method, model):
        ctx.share_frozen_trunk()
        check_update(method, ctx)
        check_scores(method, ctx)
        state = method.state_dict()
        assert all(isinstance(value, Tensor) for value in state.values())
        make_method(name, {}).load_state_dict(state)


@pytest.mark.parametrize("name", method_names())
def test_a_base_step_with_an_unknown_head_can_be_shared(name: str) -> None:
    """The unknown head of another method's base step: whoever does not use it does not train it."""
    method, model = make_method(name, {}), tiny(unknown=True)
    next_step(method, model, 1, 1)
    assert model.unknown is not None
    uses = any(p.requires_grad for p in model.unknown.parameters())
    assert uses == method.unknown_head


@pytest.mark.parametrize("name", method_names())
def test_an_all_ignored_batch_has_no_loss(name: str) -> None:
    method = make_method(name, {})
    ctx = first_step(method, tiny(method.unknown_head))
    batch = make_batch(ctx.known)
    batch.labels.fill_(IGNORE)
    loss = total(method.loss(ctx, batch))
    loss.backward()
    assert loss.item() == 0
    for parameter in ctx.model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_methods_that_come_with_segrow() -> None:
    assert {"finetune", "joint", "ssul"} <= set(method_names())
    assert "base" not in method_names()
    assert method_class("ssul") is Ssul


def test_what_methods_ask_for() -> None:
    assert Ssul().aux == ("saliency",)
    assert Ssul(unknown="background").aux == ("everything",)
    assert Ssul(unknown="none").aux == ()
    assert Ssul().unknown_head
    assert Ssul(unknown="background").unknown_head
    assert not Ssul(unknown="none").unknown_head
    assert Ssul().pseudo_labelling
    assert not Ssul(pseudo="none").pseudo_labelling
    assert (Finetune.sees, Joint.sees, Ssul.sees) == ("new", "seen", "new")
    for method in (Finetune(), Joint()):
        assert not method.aux
        assert not method.unknown_head
        assert not method.pseudo_labelling


# --- finding methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"), [("sul", "ssul"), ("fine-tune", "finetune"), ("SSUL", "ssul"), (".ssul", "ssul")]
)
def test_unknown_method_names_its_neighbour(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=f'no method "{wrong}"; there is .*Did you mean "{near}"'):
        method_class(wrong)


def test_the_base_module_is_no_method() -> None:
    with pytest.raises(UserError, match='no method "base"'):
        method_class("base")


@pytest.mark.parametrize("name", ["no_such_package.method", "segrow.methods.nothing", "ssul."])
def test_module_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(UserError, match="cannot import method"):
        method_class(name)


OUTSIDE = """
from dataclasses import dataclass
from segrow.methods.base import Method
from segrow.losses import cross_entropy, upsample

@dataclass
class Outside(Method):
    weight: float = 1.0

    def loss(self, ctx, batch):
        logits = upsample(ctx.forward(batch).logits, batch.labels.shape[-2:])
        return {"mine": self.weight * ctx.mean(cross_entropy(logits, batch.labels), batch.labels >= 0)}

    def scores(self, logits, unknown):
        return logits.softmax(1)
"""


def test_a_method_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "segrow_outside"
    folder.mkdir()
    (folder / "mine.py").write_text(OUTSIDE)
    (folder / "empty.py").write_text("from segrow.methods.ssul import Ssul\n")
    (folder / "two.py").write_text(OUTSIDE + OUTSIDE.replace("Outside(", "Second("))
    monkeypatch.syspath_prepend(str(tmp_path))
    method = make_method("segrow_outside.mine", {"weight": 2.0})
    assert method.name == "segrow_outside.mine"
    assert method.fields() == {"weight": 2.0}
    ctx = first_step(method, tiny(unknown=False))
    check_update(method, ctx)
    check_scores(method, ctx)
    check_update(method, next_step(method, ctx.model, 1, 1))
    with pytest.raises(UserError, match="should hold exactly one Method, got 0"):
        method_class("segrow_outside.empty")
    with pytest.raises(UserError, match="should hold exactly one Method, got 2"):
        method_class("segrow_outside.two")


def test_unknown_field() -> None:
    with pytest.raises(UserError, match=r'ssul has no field "treshold"; it has .*threshold'):
        make_method("ssul", {"treshold": 0.5})
    assert make_method("ssul", {"threshold": 0.5}).fields()["threshold"] == 0.5


def test_state_that_nobody_has() -> None:
    with pytest.raises(UserError, match="method finetune has no state, got thresholds"):
        Finetune().load_state_dict({"thresholds": torch.zeros(1)})


def test_ssul_needs_a_background_head() -> None:
    with pytest.raises(UserError, match=r"needs a background head of its own; use --model\.head conv"):
        first_step(Ssul(), tiny(head="linear"))


# --- finetune, joint --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["ce", "bce"])
@pytest.mark.parametrize("kind", [Finetune, Joint])
def test_plain_losses_equal_the_naive_ones(kind: type[Finetune] | type[Joint], loss_type: str) -> None:
    method = kind(loss_type=loss_type)  # type: ignore[arg-type]
    ctx = first_step(method, tiny(unknown=False))
    ctx.model.eval()
    batch = make_batch(ctx.known)
    logits, labels = with_unknown(ctx.model(batch.images)), batch.labels.numpy()
    values, _ = naive.pixelwise(loss_type, naive.upsample(logits, (SIDE, SIDE)), labels)
    ours = method.loss(ctx, batch)[loss_type].item()
    assert abs(ours - values.sum() / (labels >= 0).sum()) < 1e-10


@pytest.mark.parametrize("kind", [Finetune, Joint])
def test_plain_scores_are_probabilities(kind: type[Finetune] | type[Joint]) -> None:
    logits, unknown = torch.randn(2, 3, 4, 5).double(), torch.full((2, 1, 4, 5), 9.0).double()
    soft = kind().scores(logits, unknown).numpy()
    np.testing.assert_allclose(soft, naive.scores("ce", logits.numpy(), None), rtol=0, atol=1e-12)
    own = kind(loss_type="bce").scores(logits, unknown).numpy()
    np.testing.assert_allclose(own, naive.scores("bce", logits.numpy(), None), rtol=0, atol=1e-12)


# --- ssul: labels and scores ----------------------------------------------------------------------------


@st.composite
def old_outputs(draw: st.DrawFn) -> tuple[Array, Labels, bool]:
    """Logits of a teacher at full resolution (unknown last, if any) and labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known, unknown = draw(st.integers(2, 5)), draw(st.booleans())
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    logits = rng.normal(0, 2, (shape[0], known + unknown, *shape[1:]))
    return logits, rng.choice([IGNORE, 0, 0, UNKNOWN, known], shape), unknown


@settings(max_examples=80, deadline=None)
@given(
    case=old_outputs(),
    threshold=st.sampled_from([0.0, 0.5, 0.7, 0.95]),
    loss_type=st.sampled_from(["bce", "ce"]),
)
def test_pseudo_labels_equal_the_naive_ones(
    case: tuple[Array, Labels, bool], threshold: float, loss_type: str
) -> None:
    logits, labels, unknown = case
    x = torch.from_numpy(logits)
    out = SegOutput(x[:, :-1] if unknown else x, x[:, -1:] if unknown else None, x, ())
    method = Ssul(threshold=threshold, loss_type=loss_type)  # type: ignore[arg-type]
    ours = method.pseudo_labels(out, torch.from_numpy(labels))
    assert (ours.numpy() == naive.pseudo_labels(labels, logits, unknown, threshold, loss_type)).all()


def test_a_score_at_the_threshold_is_certain() -> None:
    logits = torch.tensor([[-9.0, 0.0, -9.0]]).double().view(1, 3, 1, 1)  # sigmoid(0) is exactly 1/2
    out = SegOutput(logits, None, logits, ())
    for label, expected in ((0, 1), (UNKNOWN, 1), (IGNORE, IGNORE), (2, 2)):
        labels = torch.full((1, 1, 1), label)
        assert Ssul(threshold=0.5).pseudo_labels(out, labels).item() == expected
        assert Ssul(threshold=0.5 + 1e-12).pseudo_labels(out, labels).item() == label


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(1, 5),
    unknown=st.booleans(),
    kind=st.sampled_from(["bce", "ce", "focal"]),
    seed=st.integers(0, 999),
)
def test_scores_add_unknown_to_background(classes: int, unknown: bool, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, extra = rng.normal(0, 3, (2, classes, 3, 2)), rng.normal(0, 3, (2, 1, 3, 2))
    method = Ssul(loss_type=kind)  # type: ignore[arg-type]
    ours = method.scores(torch.from_numpy(logits), torch.from_numpy(extra) if unknown else None)
    expected = naive.scores(kind, logits, extra if unknown else None)
    assert ours.shape == logits.shape
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


# --- ssul: the loss as a whole --------------------------------------------------------------------------


class Outputs:
    """Keeps what the heads of a model say, with gradients."""

    def __init__(self, model: Segmenter) -> None:
        self.maps: list[Tensor] = []
        heads = [*model.heads, *([] if model.unknown is None else [model.unknown])]
        self.hooks = [head.register_forward_hook(self._keep) for head in heads]

    def release(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        self.maps.append(output)

    def values(self) -> Array:
        return torch.cat(self.maps, 1).detach().numpy()

    def gradients(self) -> Array:
        return torch.cat([m.grad for m in self.maps if m.grad is not None], 1).numpy()


@pytest.mark.parametrize("loss_type", ["bce", "ce", "focal"])
@pytest.mark.parametrize("unknown", ["saliency", "background", "none"])
@pytest.mark.parametrize("pseudo", [True, False])
def test_ssul_loss_equals_the_naive_one(loss_type: str, unknown: str, pseudo: bool) -> None:
    options = SsulOptions(unknown=unknown, pseudo=pseudo, threshold=0.6, loss_type=loss_type)
    method = Ssul(
        freeze="none",
        init="random",
        pseudo="threshold" if pseudo else "none",
        threshold=options.threshold,
        loss_type=options.loss_type,  # type: ignore[arg-type]
        unknown=options.unknown,  # type: ignore[arg-type]
    )
    model = tiny(method.unknown_head, dropout=0.0)
    shake(model, spread=1.5)
    teacher_labels = 0
    for ctx in two_steps(method, model):
        ctx.model.train(ctx.step > 0)
        batch = make_batch(ctx.known, seed=ctx.step + 1)
        outputs = Outputs(ctx.model)
        losses = method.loss(ctx, batch)
        assert list(losses) == [loss_type]
        losses[loss_type].backward()
        outputs.release()
        teacher = None if ctx.teacher is None else with_unknown(ctx.teacher(batch.images))
        labels, saliency = batch.labels.numpy(), batch.aux["saliency"].numpy()
        expected = naive.ssul_loss(outputs.values(), teacher, labels, saliency, options)
        assert abs(losses[loss_type].item() - expected.value) < 1e-10
        np.testing.assert_allclose(outputs.gradients(), expected.grad, rtol=0, atol=1e-10)
        teacher_labels += int(((labels == 0) & (expected.labels > 0)).sum())
    assert (teacher_labels > 50) == pseudo  # the case is not empty


def test_the_batch_keeps_its_labels() -> None:
    method, batch = Ssul(), make_batch(5)
    model = tiny()
    ctx = next_step(method, model, 2, 1)
    before = batch.labels.clone()
    method.loss(ctx, batch)
    assert torch.equal(batch.labels, before)


# --- ssul: begin_step -----------------------------------------------------------------------------------


def test_weight_transfer() -> None:
    model = tiny()
    next_step(Ssul(), model, 3, 1)
    assert model.unknown is not None
    new = model.heads[-1]
    assert isinstance(new, Head)
    theirs = model.unknown.body.state_dict()
    assert len(theirs) == 6  # convolution, affine, statistics and their counter
    for key, value in new.body.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    for row in range(3):
        assert torch.equal(new.out.weight[row], model.unknown.out.weight[0])
        assert new.out.bias is not None
        assert model.unknown.out.bias is not None
        assert torch.equal(new.out.bias[row], model.unknown.out.bias[0])


def test_without_weight_transfer_the_head_stays_random() -> None:
    model = tiny()
    next_step(Ssul(init="random"), model, 1, 1)
    assert model.unknown is not None
    assert not torch.equal(model.heads[-1].out.weight, model.unknown.out.weight)


@pytest.mark.parametrize("freeze", ["none", "trunk", "old_heads"])
@pytest.mark.parametrize("bn_freeze", [True, False])
def test_what_trains(freeze: Freeze, bn_freeze: bool) -> None:
    method, model = Ssul(freeze=freeze, bn_freeze=bn_freeze), tiny()
    next_step(method, model, 1, 1)
    next_step(method, model, 2, 2)
    model.train()
    # heads: background, base, step 1, step 2
    frozen = {"none": (), "trunk": ("trunk.",), "old_heads": ("trunk.", "heads.1.", "heads.2.")}
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, parameter in model.named_parameters():
        is_norm = name.rpartition(".")[0] in norms
        expected = not name.startswith(frozen[freeze]) and not (bn_freeze and is_norm)
        assert parameter.requires_grad == expected, name
    for name in norms:
        assert model.get_submodule(name).training == (not bn_freeze), name
        assert name.startswith((*frozen["old_heads"], "heads.0.", "heads.3.", "unknown."))
    assert model.trunk_frozen == (freeze != "none" and bn_freeze)


def test_group_rates() -> None:
    method, model = Ssul(background_lr=1e-3), tiny()
    ctx = next_step(method, model, 2, 1)
    rates = {
        id(p): g["lr"] for g in method.parameter_groups(ctx, lr=0.5, backbone_lr=7.0) for p in g["params"]
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.5 * 1e-3 if name.startswith("heads.0.") else 0.5), name


@pytest.mark.parametrize("name", method_names())
def test_group_rates_of_the_base_step(name: str) -> None:
    method = make_method(name, {})
    model = tiny(method.unknown_head)
    ctx = first_step(method, model)
    rates = {
        id(p): g["lr"] for g in method.parameter_groups(ctx, lr=0.5, backbone_lr=0.25) for p in g["params"]
    }
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.25 if key.startswith("trunk.backbone.") else 0.5), key


# --- ssul: two updates by hand --------------------------------------------------------------------------


def naive_head(head: nn.Module) -> NaiveHead:
    state = {key: value.detach().numpy().copy() for key, value in head.state_dict().items()}
    return NaiveHead(
        conv=state["body.0.weight"],
        gamma=state["body.1.weight"],
        beta=state["body.1.bias"],
        mean=state["body.1.running_mean"],
        var=state["body.1.running_var"],
        weight=state["out.weight"][:, :, 0, 0],
        bias=state["out.bias"],
    )


def naive_update(
    heads: list[NaiveHead],
    teacher: list[NaiveHead],
    features: Array,
    batch: Batch,
    rates: dict[int, float],
) -> int:
    """One update of the heads in `rates`, unknown last; returns how many pixels were pseudo-labelled."""
    passes = [head.forward(features) for head in heads]
    student = np.concatenate([logits for logits, _ in passes], 1)
    old = np.concatenate([head.forward(features)[0] for head in teacher], 1)
    labels, saliency = batch.labels.numpy(), batch.aux["saliency"].numpy()
    loss = naive.ssul_loss(student, old, labels, saliency, SsulOptions())
    first = 0
    for k, (head, (logits, kept)) in enumerate(zip(heads, passes, strict=True)):
        grad = loss.grad[:, first : first + logits.shape[1]]
        first += logits.shape[1]
        if k in rates:
            head.update(head.backward(grad, kept), rates[k], momentum=0.9, decay=1e-4)
    return int((loss.labels != naive.unknown_labels(labels, "saliency", saliency)).sum())


def test_two_updates_equal_the_naive_ones() -> None:
    method, model = Ssul(), tiny(dropout=0.0)
    shake(model, spread=1.5)
    next_step(method, model, 1, 1)
    shake(model.heads[2], spread=1.5)
    ctx = next_step(method, model, 2, 2)
    ctx.share_frozen_trunk()
    model.train()
    assert ctx.teacher is not None
    assert model.unknown is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe = make_batch(ctx.known, seed=99).images
    old_logits = model.eval()(probe).logits[:, 1 : ctx.known_before].detach()
    model.train()
    # heads: background, base, step 1, step 2, unknown; weight transfer by hand for the new one
    teacher = [naive_head(h) for h in [*ctx.teacher.heads, ctx.teacher.unknown]]
    source = naive_head(ctx.teacher.unknown)
    source.weight, source.bias = np.repeat(source.weight, 2, 0), np.repeat(source.bias, 2)
    heads = [naive_head(h) for h in ctx.teacher.heads] + [source, naive_head(ctx.teacher.unknown)]
    lr = 0.05
    groups = method.parameter_groups(ctx, lr, backbone_lr=123.0)
    start = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    labelled = 0
    for i in range(2):
        batch = make_batch(ctx.known, seed=i)
        for group, rate in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = naive.poly_rate(rate, i, 10, warm=False)
        optimizer.zero_grad()
        total(method.loss(ctx, batch)).backward()
        optimizer.step()
        rate = naive.poly_rate(lr, i, 10, warm=False)
        features = ctx.teacher.features(batch.images)[0].numpy()
        labelled += naive_update(heads, teacher, features, batch, {0: rate * 1e-4, 3: rate, 4: rate})
    assert labelled > 50

    after = model.state_dict()
    trained = set()
    for prefix, head in (("heads.0", heads[0]), ("heads.3", heads[3]), ("unknown", heads[4])):
        expected = {
            "body.0.weight": head.conv,
            "out.weight": head.weight[..., None, None],
            "out.bias": head.bias,
        }
        for key, value in expected.items():
            name = f"{prefix}.{key}"
            trained.add(name)
            np.testing.assert_allclose(after[name].numpy(), value, rtol=0, atol=1e-9, err_msg=name)
            # the background head hardly moves: look at how much, not at where it is
            change, moved = value - before[name].numpy(), (after[name] - before[name]).numpy()
            assert np.abs(moved).max() > 0
            np.testing.assert_allclose(moved, change, rtol=1e-6, atol=1e-13, err_msg=name)
    for name, value in after.items():
        assert name in trained or torch.equal(value, before[name]), name
    assert torch.equal(model.eval()(probe).logits[:, 1 : ctx.known_before], old_logits)


# --- one trunk for two ----------------------------------------------------------------------------------


def count_runs(modules: list[nn.Module], counts: list[int]) -> None:
    for module in modules:
        module.register_forward_pre_hook(lambda *_: counts.append(1))


def frozen_part(student: Array, teacher: Array, batch: Batch, channels: range) -> float:
    """What some channels add to the loss: the mean over valid pixels of their binary cross-entropies."""
    labels, saliency = batch.labels.numpy(), batch.aux["saliency"].numpy()
    trained = naive.ssul_loss(student, teacher, labels, saliency, SsulOptions()).labels
    size = (labels.shape[1], labels.shape[2])
    maps = naive.upsample(student, size)
    found = []
    for b, i, j in np.ndindex(*labels.shape):
        if trained[b, i, j] != -1:
            here = int(trained[b, i, j])
            found.append(
                sum(naive.pixel_bce(maps[b, c : c + 1, i, j], 0 if c == here else 1)[0] for c in channels)
            )
    return float(np.mean(found))


@pytest.mark.parametrize("bn_freeze", [True, False])
def test_a_frozen_trunk_runs_once_and_changes_nothing(bn_freeze: bool) -> None:
    results = []
    for share in (False, True):
        method, model = Ssul(bn_freeze=bn_freeze), tiny(dropout=0.1)
        ctx = next_step(method, model, 2, 1)
        assert ctx.teacher is not None
        if share:
            ctx.share_frozen_trunk()
        assert ctx.shares_trunk == (share and bn_freeze)
        assert (ctx.teacher.trunk is model.trunk) == ctx.shares_trunk  # one copy in memory
        model.train()
        counts: list[int] = []
        assert (ctx.frozen_trunk is not None) == ctx.shares_trunk
        count_runs([ctx.frozen_trunk] if ctx.frozen_trunk else [model.trunk, ctx.teacher.trunk], counts)
        batch = make_batch(ctx.known)
        outputs = Outputs(model)
        torch.manual_seed(5)  # dropout
        loss = total(method.loss(ctx, batch))
        loss.backward()
        outputs.release()
        assert len(counts) == (1 if share and bn_freeze else 2)
        if not share:
            teacher = with_unknown(ctx.teacher(batch.images))
            constant = frozen_part(outputs.values(), teacher, batch, range(1, ctx.known_before))
        assert not ctx.teacher.training
        assert model.dropout.training
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss, grads))
    (loss, grads), (shared_loss, shared_grads) = results
    # what frozen heads add to the value is left out, and nothing else
    assert constant > 0.1
    assert abs(loss.item() - shared_loss.item() - (constant if bn_freeze else 0.0)) < 1e-10
    assert grads.keys() == shared_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(shared_grads[name], grad, rtol=1e-10, atol=1e-13)


def test_a_large_frozen_trunk_is_folded_where_it_runs_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FOLDED_BYTES", 0)
    method, model = Ssul(), tiny(dropout=0.0)
    ctx = next_step(method, model, 2, 1)
    ctx.share_frozen_trunk()
    assert ctx.frozen_trunk is model.trunk  # of one that passes over a few views nothing is copied
    batch = make_batch(ctx.known)
    plain = total(method.loss(ctx, batch))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ctx.fold_frozen_trunk()
    assert ctx.frozen_trunk is not model.trunk
    again = total(method.loss(ctx, make_batch(ctx.known)))
    assert abs(plain.item() - again.item()) < 1e-10
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    once = ctx.frozen_trunk
    ctx.fold_frozen_trunk()
    assert ctx.frozen_trunk is once


def test_a_training_trunk_is_never_shared() -> None:
    method, model = Finetune(), tiny(unknown=False)
    ctx = next_step(method, model, 1, 1)
    ctx.share_frozen_trunk()
    ctx.fold_frozen_trunk()
    assert not ctx.shares_trunk
    assert ctx.frozen_trunk is None
    assert ctx.teacher is not None
    assert ctx.teacher.trunk is not model.trunk
    batch = make_batch(ctx.known)
    assert not ctx.teach(batch).logits.requires_grad
    assert ctx.teach(batch).logits.shape[1] == ctx.known_before
    assert ctx.forward(batch).logits.requires_grad


def test_step_0_has_no_teacher() -> None:
    ctx = first_step(Finetune(), tiny(unknown=False))
    with pytest.raises(RuntimeError, match="step 0 has no teacher"):
        ctx.teach(make_batch(3))
