"""The benchmark's section on inference: its variants compute the same, its rows say what was measured."""

import pytest
import torch
from steps import quiet

from benchmarks import inference
from benchmarks.inference import agreement, child, first_steps, photo, shaken, times, whole_arg_max
from segrow.argmax import arg_max
from segrow.config import ModelConfig
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import build_segmenter


@torch.inference_mode()
def test_the_first_steps_are_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig("deeplabv3_test_resnet", "none", width=8), 2, True, quiet)
    for step in (1, 2, 3):
        model.grow(1, step)
    model.eval()
    image = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    early = first_steps(model, 2)
    assert (early.n_classes, model.n_classes) == (4, 6)
    assert len(model.heads) == 5
    assert torch.equal(early(image).logits, model(image).logits[:, :4])
    assert early.trunk is model.trunk


@torch.inference_mode()
def test_shaken_logits_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "SIDE", 65)
    model = build_segmenter(ModelConfig("deeplabv3_test_resnet", "none", width=8), 2, True, quiet).eval()
    logits = shaken(model, seed=0)(photo(1)).logits
    torch.testing.assert_close(logits.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits.std((0, 2, 3)), torch.full((3,), 3.0), atol=1e-3, rtol=0)


def test_both_arg_maxes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "SIDE", 50)
    logits, unknown = torch.randn(2, 5, 9, 9), torch.randn(2, 1, 9, 9)
    same = whole_arg_max(logits, unknown) == arg_max(logits, unknown, (50, 50), Ssul().scores)
    assert same.double().mean() > 0.999
    bands, whole = child(5, 2, 1, 1, torch.get_num_threads())
    assert bands.time > 0
    assert whole.time > 0


def test_rows_are_ratios_of_what_was_measured() -> None:
    best = {"unfused 1": 100.0, "fused 1": 80.0, "unfused 19": 150.0, "fused 19": 100.0, "bf16 19": 50.0}
    rows = {row.key: row for row in times(best)}
    assert rows["inference.steps.1"].ratio == pytest.approx(1.25)
    assert rows["inference.steps.bf16"].ratio == pytest.approx(3)
    assert rows["inference.growth.fused"].ratio == pytest.approx(1.25)
    assert rows["inference.growth.fused"].met
    assert not next(r for r in times({**best, "fused 19": 121.0}) if r.key.endswith("growth.fused")).met
    truth = torch.zeros(100, 200, dtype=torch.int64)
    other = truth.clone()
    other[0, :3] = 1
    (same,) = agreement({"unfused 19": truth, "fused 19": other})
    assert same.ratio == pytest.approx(99.985)
    assert not same.met
