"""Every method's update on a GPU that is not there: all tensors are on it, and no number is waited for."""

import copy
import functools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GPU, fake_gpu
from torch import Tensor, nn

from benchmarks import updates
from benchmarks.gpu_parity import Kind, Options, all_cases
from segrow.argmax import arg_max
from segrow.batch import Batch
from segrow.config import ModelConfig
from segrow.data.loader import to_device
from segrow.engine.step import Objective, chunks
from segrow.methods.base import Method, StepContext, make_method, method_names
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.predict import Predictor

pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14),
    reason="fake tensors of a GPU go backward by a way that was tried with torch 2.14",
)

CPU = torch.device("cpu")
SIDE, IMAGES = 65, 4
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
QUICK = [
    *((name, {}, "increment") for name in method_names()),
    *((name, {}, "base") for name in ("finetune", "ssul")),
    ("finetune", {"loss_type": "bce"}, "base"),
    *(("ssul", {}, kind) for kind in ("memory", "kept")),
    ("mib", {"freeze": "trunk"}, "kept"),
]
"""Cases of the fast suite: every method, every kind of step."""


@functools.cache
def network(head: str, unknown: bool) -> Segmenter:
    """On the host; few layers, for what is looked for is not in the trunk."""
    config = ModelConfig(name="deeplabv3_resnet10t", weights="none", width=8, rates=(1,), head=head)
    return build_segmenter(config, 2, unknown, lambda line: None)


def begin(method: Method, model: Segmenter, step: int) -> StepContext:
    """A step begins, as in `Run.train_step`, on the GPU; of the steps before there are the heads."""
    for earlier in range(1, step):
        model.grow(1, earlier)
    model.to(GPU)
    teacher, before = None, 1
    if step:
        before = model.n_classes
        shared = {id(model.trunk): model.trunk} if method.freezes_trunk else {}
        teacher = copy.deepcopy(model, shared).eval().requires_grad_(False)
        model.grow(1, step)
    ctx = StepContext(step, model, teacher, model.n_classes, before)
    method.begin_step(ctx)
    ctx.share_frozen_trunk()
    ctx.fold_frozen_trunk()
    if step and getattr(method, "pseudo", "none") == "entropy":  # what `gather` would have found
        method.load_state_dict({"thresholds": torch.zeros(before, device=GPU)})
    return ctx


def loaded(method: Method, exemplars: int = 0) -> Batch:
    """A batch as the loader hands it on, in the memory of the host."""
    shape = (IMAGES, SIDE, SIDE)
    return Batch(
        images=torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8),
        labels=torch.zeros(shape, dtype=torch.int16),
        from_memory=torch.arange(IMAGES) < exemplars,
        aux={name: torch.zeros(shape, dtype=torch.bool) for name in method.aux},
    )


def kept(method: Method, ctx: StepContext, batch: Batch) -> Batch:
    """The same with features in the place of pixels, as they come from the store."""
    with torch.no_grad():
        parts = tuple(part.bfloat16() for part in ctx.encode(batch.images.to(GPU)))
        seen = ctx.teach(Batch(batch.images, batch.labels.to(GPU), batch.from_memory, parts=parts))
        verdict = method.verdict(ctx, seen, (SIDE, SIDE))
    return Batch(
        images=batch.images[:, :, :0, :0],
        labels=batch.labels,
        from_memory=batch.from_memory,
        aux=batch.aux,
        parts=tuple(part.cpu() for part in parts),
        verdict=None if verdict is None else verdict.cpu(),
    )


def update(method: Method, ctx: StepContext, batch: Batch, precision: str) -> None:
    """One update as `StepTrainer` makes it, but for the loss scaler, which waits for the device."""
    autocast = torch.autocast("cuda", AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()
    objective = Objective(method, ctx).train()
    groups = method.parameter_groups(ctx, 0.01, 0.001)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    (tensors,) = chunks(to_device(batch, GPU, channels_last=True), 1)
    with autocast:
        losses = objective(tensors)
    assert {value.device for value in losses.values()} == {GPU}
    total = torch.stack(list(losses.values())).sum()
    assert total.dtype == torch.float32
    total.backward()
    trained = [p for group in groups for p in group["params"]]
    assert {p.device for p in trained} == {p.grad.device for p in trained if p.grad is not None} == {GPU}
    optimizer.step()
    optimizer.zero_grad()


def label(method: Method, ctx: StepContext, batch: Batch) -> None:
    """Evaluation: label maps, and what is unknown."""
    model = ctx.model.eval()
    images = torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8, device=GPU)
    with torch.no_grad():
        out = model(images)
        labels = arg_max(out.logits, out.unknown, (SIDE, SIDE), method.scores)
        novel = method.novelty(out.logits, out.unknown)
    assert (labels.device, novel.device) == (GPU, GPU)


def take_step(name: str, options: Options, kind: Kind, *precisions: str) -> None:
    """An update in every precision; raises where a tensor is not on the GPU."""
    method = make_method(name, options)
    model = copy.deepcopy(network("conv" if name == "ssul" else "linear", method.unknown_head))
    with fake_gpu():
        ctx = begin(method, model, {"base": 0, "memory": 2}.get(kind, 1))
        batch = loaded(method, exemplars=IMAGES // 2 if kind == "memory" else 0)
        if kind == "kept":
            batch = kept(method, ctx, batch)
        for precision in precisions:
            update(method, ctx, batch, precision)
        method.end_step(ctx)
        label(method, ctx, batch)


@pytest.mark.parametrize(("name", "options", "kind"), QUICK)
def test_a_step_stays_on_the_gpu(name: str, options: Options, kind: Kind) -> None:
    take_step(name, options, kind, "16")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "kind"), all_cases())
def test_every_step_stays_on_the_gpu(name: str, options: Options, kind: Kind) -> None:
    take_step(name, options, kind, "32", "bf16", "16")


@pytest.mark.parametrize("tile", [None, 64])
def test_label_maps_stay_on_the_gpu(tile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folded network, whole images and tiles; what a list keeps is then moved to the host."""
    monkeypatch.setattr("segrow.predict._device", torch.device)
    method, model = make_method("ssul", {}), copy.deepcopy(network("conv", True))
    with fake_gpu():
        predictor = Predictor(
            model.to(GPU),  # type: ignore[arg-type]
            method.scores,
            ("background", "a", "b"),
            device=GPU,
            precision="bf16",
            tile=tile,
            novelty=method.novelty,
        )
        assert not any(isinstance(part, nn.BatchNorm2d) for part in predictor.model.modules())
        pixels = np.zeros((100, 130, 3), np.uint8)
        maps = predictor._tiled(pixels) if tile else predictor._whole(pixels)
        assert {maps.logits.device, maps.labels().device} == {GPU}
        assert maps.on(CPU).logits.device == CPU


@pytest.mark.slow
@pytest.mark.parametrize("kind", updates.KINDS)
def test_the_benchmarks_updates_stay_on_the_gpu(kind: updates.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script meets a GPU for the first time where nobody can mend it."""
    case = updates.Case("resnet10t", 2, 33, updates=1, warm=1, width=8)
    made = updates.networks(case, kind, 1)
    monkeypatch.setattr(updates, "networks", lambda *words: made)
    with fake_gpu():
        assert updates.segrow(case, kind, "bf16", GPU, 1)().device == GPU


def test_the_quick_cases_are_some_of_all() -> None:
    assert all(case in all_cases() for case in QUICK)


# --- what the fake GPU notices ----------------------------------------------------------------------------


def test_a_loss_with_a_tensor_of_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_host(self: Method, verdict: Tensor | None, labels: Tensor) -> Any:
        return fill(self, verdict, labels)._replace(confident=torch.ones(len(labels)))

    fill = type(make_method("plop", {})).fill
    monkeypatch.setattr("segrow.methods.parts.Composed.fill", on_the_host)
    with pytest.raises(RuntimeError, match="on the same device"):
        take_step("plop", {}, "increment", "32")


def test_a_gradient_with_a_tensor_of_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass, too: SSUL's loss has one of its own."""
    from segrow import losses

    channel = losses._channel
    calls: list[int] = []

    def on_the_host(target: Tensor, x: Tensor) -> Tensor:
        calls.append(1)
        return channel(target, x).cpu() if len(calls) == 2 else channel(target, x)

    monkeypatch.setattr(losses, "_channel", on_the_host)
    with pytest.raises(RuntimeError, match="on the same device"):
        take_step("ssul", {}, "increment", "16")
    assert len(calls) == 2


def test_new_heads_that_stay_on_the_host_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = Segmenter.grow

    def on_the_host(self: Segmenter, n_new: int, step: int) -> None:
        grow(self, n_new, step)
        self.heads[-1].to("cpu")

    monkeypatch.setattr(Segmenter, "grow", on_the_host)
    with pytest.raises(RuntimeError, match="on the same device"):
        take_step("finetune", {}, "increment", "32")


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any())])
def test_waiting_for_a_number_is_noticed(wait: Any) -> None:
    """What reads a number of the GPU stops it until it has computed all before."""
    with fake_gpu(), pytest.raises(Exception, match=r"item|nonzero|_local_scalar_dense|index"):
        wait(torch.zeros(3, device=GPU))


def test_tensors_know_their_device() -> None:
    """The help for autograd tells no lies to others."""
    with fake_gpu():
        host, gpu = torch.zeros(2), torch.zeros(2, device="cuda", dtype=torch.float64)
        assert host.to(gpu).device == gpu.new_zeros(3).device == torch.zeros_like(gpu).device == GPU
        assert gpu.to(host).device == host.new_ones(2).device == torch.device("cpu")
        assert host.to(gpu).dtype == torch.float64
        with torch.inference_mode():
            assert host.to(gpu)[torch.zeros(3, dtype=torch.int64, device=GPU)].device == GPU
        with pytest.raises(RuntimeError, match="on the same device"):
            gpu + host
