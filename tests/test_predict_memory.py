"""What a result of the predictor holds on to: of every image logits alone, of a list in the host's memory."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from segrow import predict
from segrow.config import ModelConfig
from segrow.methods.base import make_method
from segrow.model.segmenter import Segmenter, SegOutput, build_segmenter
from segrow.predict import Predictor

NAMES = ("background", "cat", "dog")


class Watched(torch.nn.Module):
    """The network; remembers what it gave without keeping it alive."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.inner, self.n_classes = model, model.n_classes
        self.logits: list[weakref.ref[Tensor]] = []
        self.others: list[weakref.ref[Tensor]] = []

    def forward(self, images: Tensor) -> SegOutput:
        out: SegOutput = self.inner(images)
        self.logits.append(weakref.ref(out.logits))
        self.others += [weakref.ref(part) for part in (out.features, *out.stages)]
        return out


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    config = ModelConfig(name="deeplabv3_test_resnet", weights="none", width=8)
    model = build_segmenter(config, 2, True, lambda line: None).eval()
    found = Predictor(model, make_method("ssul", {}).scores, NAMES)
    found.model = Watched(found.model)  # type: ignore[assignment]
    return found


def test_a_result_holds_logits_and_unknown_alone(predictor: Predictor) -> None:
    """Features and stages of one image of 513 pixels take 60 MB of a ResNet-101."""
    image = np.zeros((64, 64, 3), np.uint8)
    results = predictor([image, image, image])
    gc.collect()
    watched: Watched = predictor.model  # type: ignore[assignment]
    assert len(results) == len(watched.logits) == 3
    assert len(watched.others) > 3
    assert all(ref() is None for ref in watched.others)
    kept = [tensor for one in results for tensor in (one._maps.logits, one._maps.unknown)]
    pixels = (64 // 8) ** 2
    for logits, unknown in zip(kept[::2], kept[1::2], strict=True):
        assert logits is not None
        assert unknown is not None
        assert max(logits.untyped_storage().nbytes(), unknown.untyped_storage().nbytes()) <= 16 * pixels


def test_maps_of_a_list_leave_the_device(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    on = predict._Maps.on

    def spy(self: predict._Maps, device: torch.device) -> predict._Maps:
        places.append(device.type)
        return on(self, torch.device("cpu"))

    monkeypatch.setattr(predict._Maps, "on", spy)
    image = np.zeros((32, 32, 3), np.uint8)
    predictor(image)
    assert places == ["cpu"]
    monkeypatch.setattr(
        predictor, "_run", lambda pixels: predictor.model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    )
    predictor.device = torch.device("meta")  # as if it were a GPU
    predictor(image)
    predictor([image])
    assert places == ["cpu", "meta", "cpu"]
