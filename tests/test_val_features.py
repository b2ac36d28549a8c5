"""Features of validation images: computed once a run, never those of another trunk, nothing else changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STEPS, last_line, matrices, options, results, run_processes, start
from torch import Tensor

from segrow.config import ModelConfig
from segrow.engine import validate
from segrow.engine.val_features import KeptFeatures, trunk_hash
from segrow.methods.base import make_method
from segrow.model.backbones import Backbone
from segrow.model.segmenter import Segmenter, build_segmenter

VAL = 8  # images
IDS = [f"image {k}" for k in range(6)]


# --- the store by itself ----------------------------------------------------------------------------------


def small(seed: int = 0, family: str = "deeplabv3") -> Segmenter:
    torch.manual_seed(seed)
    config = ModelConfig(name=f"{family}_test_resnet", weights="none", width=8)
    return build_segmenter(config, 2, unknown=True, report=lambda line: None).eval()


def pictures(n: int, side: int = 32) -> Tensor:
    g = torch.Generator().manual_seed(n)
    drawn = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=g)
    return drawn.contiguous(memory_format=torch.channels_last)


class Counted:
    """How many images a model's trunk has seen."""

    def __init__(self, model: Segmenter) -> None:
        self.images = 0
        model.trunk.backbone.register_forward_pre_hook(self._add)

    def _add(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self.images += len(args[0])


def silent(line: str) -> None:
    pytest.fail(line)


@torch.no_grad()
def test_the_trunk_runs_once_an_image_whatever_is_asked_for() -> None:
    model, images = small(), pictures(len(IDS))
    want = model.features(images).features
    counted, kept = Counted(model), KeptFeatures(1e9, len(IDS), silent)
    kept.begin(model, 32)
    assert not kept.hold(IDS[:1])
    for chosen in ([1, 2], [0, 1, 2, 3], [4], [3, 5, 0], [0, 1, 2, 3, 4, 5]):
        batch = images[chosen].contiguous(memory_format=torch.channels_last)
        got = kept.features(model, batch, [IDS[k] for k in chosen])
        torch.testing.assert_close(got, want[chosen], rtol=1e-6, atol=1e-6)
        assert got.stride() == want.stride()
    assert counted.images == len(IDS)
    assert kept.hold(IDS)
    nothing = torch.empty(2, 3, 0, 0, dtype=torch.uint8)
    assert (kept.features(model, nothing, IDS[2:4]) - want[2:4]).abs().max() < 1e-6
    assert counted.images == len(IDS)


@torch.no_grad()
@pytest.mark.parametrize("family", ["deeplabv3", "deeplabv3plus"])
def test_what_is_kept_is_equal_to_the_last_bit(family: str) -> None:
    model, images = small(family=family), pictures(4)
    want = model.features(images).features
    kept = KeptFeatures(1e9, 4, silent)
    kept.begin(model, 32)
    for _ in range(2):
        got = kept.features(model, images, IDS[:4])
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
    want.zero_()  # nothing of it is shared
    assert kept.features(model, images, IDS[:4]).abs().sum() > 0


def _weight(model: Segmenter) -> None:
    model.trunk.decoder.aspp.project[0].weight *= 1.5


def _statistic(model: Segmenter) -> None:
    next(model.trunk.backbone.buffers())[0] += 1e-3


def _mean(model: Segmenter) -> None:
    model.mean += 1e-3


@torch.no_grad()
@pytest.mark.parametrize("change", [_weight, _statistic, _mean])
def test_features_of_another_trunk_are_never_served(change: Callable[[Segmenter], None]) -> None:
    model, images = small(), pictures(2)
    kept = KeptFeatures(1e9, 2, silent)
    kept.begin(model, 32)
    before = kept.features(model, images, IDS[:2])
    change(model)
    kept.begin(model, 32)
    assert not kept.hold(IDS[:1])
    after = kept.features(model, images, IDS[:2])
    assert torch.equal(after, model.features(images).features)
    assert not torch.equal(after, before)


@torch.no_grad()
def test_heads_do_not_matter_and_crops_do() -> None:
    model, images = small(), pictures(2)
    kept = KeptFeatures(1e9, 2, silent)
    kept.begin(model, 32)
    kept.features(model, images, IDS[:2])
    model.heads[0].out.weight += 1  # type: ignore[union-attr, operator]
    model.grow(1, 1)
    kept.begin(model, 32)
    assert kept.hold(IDS[:2])
    kept.begin(model, None)
    assert not kept.hold(IDS[:1])


def test_trunks_differ_in_their_hash() -> None:
    assert trunk_hash(small()) == trunk_hash(small())
    assert trunk_hash(small()) != trunk_hash(small(seed=1))


@torch.no_grad()
@pytest.mark.parametrize("crop", [32, None])
def test_a_small_budget_is_one_line_and_the_trunk(crop: int | None) -> None:
    model, images = small(), pictures(3)
    one = model.features(images).features[0].numel() * 4
    said: list[str] = []
    enough = KeptFeatures(3 * one, 3, silent)
    enough.begin(model, crop)
    enough.features(model, images, IDS[:3])
    assert enough.hold(IDS[:3])
    kept = KeptFeatures(3 * one - 1, 3, said.append)
    for _ in range(2):
        kept.begin(model, crop)
        for k in range(3):
            got = kept.features(model, images[k : k + 1], IDS[k : k + 1])
            assert torch.equal(got, model.features(images[k : k + 1]).features)
            assert not said or not kept.hold(IDS[k : k + 1])
    assert len(said) == 1
    assert "(--train.feature_budget)" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize(
    ("name", "fields", "frozen"),
    [
        ("ssul", {}, True),
        ("ssul", {"freeze": "none"}, False),
        ("ssul", {"bn_freeze": False}, False),  # the running statistics of its trunk move
        ("mib", {}, False),
        ("mib", {"freeze": "trunk"}, True),
        ("finetune", {}, False),
        ("joint", {}, False),
    ],
)
def test_which_methods_freeze_the_trunk(name: str, fields: dict[str, Any], frozen: bool) -> None:
    assert make_method(name, fields).freezes_trunk is frozen


# --- in runs ----------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """Images that went through a backbone in evaluations."""

    evaluating: bool = False
    images: list[int] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Counts; everything is computed as without it."""
    found = Seen()
    evaluate, forward = validate.evaluate, Backbone.forward

    def evaluating(*args: Any, **options: Any) -> Any:
        found.evaluating = True
        found.images.append(0)
        try:
            return evaluate(*args, **options)
        finally:
            found.evaluating = False

    def counting(self: Backbone, images: Tensor) -> tuple[Tensor, ...]:
        if found.evaluating:
            found.images[-1] += len(images)
        return forward(self, images)

    monkeypatch.setattr(validate, "evaluate", evaluating)
    monkeypatch.setattr(Backbone, "forward", counting)
    return found


BUDGET = "--train.feature_budget"


@pytest.mark.parametrize(
    "more", [(), ("--train.crop_val", "false"), ("--method", "mib", "--method.freeze", "trunk")]
)
def test_a_run_computes_them_once(root: Path, tmp_path: Path, seen: Seen, more: tuple[str, ...]) -> None:
    assert start(root, tmp_path / "kept", *more) == 0
    assert seen.images == [VAL, 0, 0]
    seen.images.clear()
    assert start(root, tmp_path / "anew", *more, BUDGET, "0") == 0
    assert seen.images == [VAL] * STEPS
    assert matrices(tmp_path / "kept") == matrices(tmp_path / "anew")


def test_a_trunk_that_trains_is_run_every_time(root: Path, tmp_path: Path, seen: Seen) -> None:
    assert start(root, tmp_path / "run", "--method.bn_freeze", "false") == 0
    assert seen.images == [VAL] * STEPS


def test_a_continued_run_computes_them_once_more(root: Path, tmp_path: Path, seen: Seen) -> None:
    out = tmp_path / "run"
    for steps in ("1", "2", "3"):
        assert start(root, out, "--steps", steps) == 0
    assert seen.images == [VAL] * 3
    assert start(root, tmp_path / "whole") == 0
    assert matrices(out) == matrices(tmp_path / "whole")


def test_the_selection_looks_at_subsets_of_them(root: Path, tmp_path: Path, seen: Seen) -> None:
    best = ("--train.select", "best", "--train.batch_size", "2", "--train.step0_epochs", "1")
    long = (*best, "--train.epochs", "17")
    assert start(root, tmp_path / "run", *long, "--steps", "1") == 0
    seen.images.clear()
    long = (*long, "--steps", "2")
    assert start(root, tmp_path / "run", *long) == 0  # a selection comes first, then the evaluation
    assert len(seen.images) == 2
    assert sum(seen.images) == VAL
    assert 0 < seen.images[0] < VAL
    assert start(root, tmp_path / "anew", *long, BUDGET, "0") == 0
    assert matrices(tmp_path / "run") == matrices(tmp_path / "anew")
    selected = [[s["selected"] for s in results(tmp_path / name)["steps"]] for name in ("run", "anew")]
    assert selected[0] == selected[1]


def test_the_base_step_selects_with_the_trunk_that_trains(root: Path, tmp_path: Path, seen: Seen) -> None:
    more = ("--train.select", "best", "--train.batch_size", "2", "--train.step0_epochs", "18", "--steps", "2")
    assert start(root, tmp_path / "run", *more) == 0
    looks = len(seen.images) - 2
    assert looks >= 1
    assert all(seen.images[: looks + 1])
    assert seen.images[-1] == 0


def test_a_small_budget_in_a_run(
    root: Path, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(root, tmp_path / "run", BUDGET, "1e-7") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "feature_budget" in line]
    assert len(lines) == 1
    assert seen.images == [VAL] * STEPS


def test_a_negative_budget_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(root, tmp_path / "run", BUDGET, "-1") == 2
    assert last_line(capsys.readouterr().err).endswith("--train.feature_budget should be 0 or more, got -1.0")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_keep_their_shares(root: Path, tmp_path: Path) -> None:
    for name, budget in (("kept", "4"), ("anew", "0")):
        done = run_processes(options(root, tmp_path / name, "--train.devices", "2", BUDGET, budget))
        assert done.returncode == 0, done.stderr
    assert matrices(tmp_path / "kept") == matrices(tmp_path / "anew")
