"""Large images: in tiles without a map of classes x pixels; a limit that names what lifts it."""

import resource
import struct
import time
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pngs import bomb
from torch import Tensor

from segrow.config import ModelConfig
from segrow.data import files
from segrow.data.masks import Values, read_mask
from segrow.errors import UserError
from segrow.model.segmenter import Segmenter, build_segmenter
from segrow.predict import Predictor
from segrow.predict_files import find_images, predict_files

NAMES = ("background", "a", "b")


def softmax(logits: Tensor, unknown: Tensor | None) -> Tensor:
    return logits.softmax(1)


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        name="deeplabv3_test_resnet", weights="none", width=8, output_stride=8, rates=(1, 2, 3)
    )
    return build_segmenter(config, 2, unknown=False, report=lambda line: None)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_PIXELS", 10_000)


def test_above_the_limit_the_line_names_the_variable(
    tmp_path: Path, small_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Image.MAX_IMAGE_PIXELS
    Image.new("L", (101, 100)).save(tmp_path / "a.png")
    Image.new("L", (100, 100)).save(tmp_path / "b.png")
    assert files.read_image(tmp_path / "b.png").shape == (100, 100, 3)
    for read in (
        files.read_image,
        files.read_saliency,
        files.upright_size,
        files.examine_image,
        lambda path: read_mask(path, Values(3, 255)),
    ):
        with pytest.raises(UserError, match=r"too large \(Image size \(10100 pixels\).*SEGROW_MAX_PIXELS"):
            read(tmp_path / "a.png")
    monkeypatch.setenv("SEGROW_MAX_PIXELS", "10100")
    assert files.read_image(tmp_path / "a.png").shape == (100, 101, 3)
    assert before == Image.MAX_IMAGE_PIXELS  # which is not ours
    monkeypatch.setenv("SEGROW_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="SEGROW_MAX_PIXELS is many, expected a whole number of pixels"):
        files.read_image(tmp_path / "a.png")


def test_an_orthophoto_is_not_too_large(tmp_path: Path) -> None:
    """More than PIL allows."""
    Image.new("1", (13500, 13400)).save(tmp_path / "a.png")
    assert files.upright_size(tmp_path / "a.png") == (13400, 13500)


def test_a_bomb_is_one_line_at_once(tmp_path: Path) -> None:
    """4 GiB of pixels in a file of 4 MB."""
    (tmp_path / "a.png").write_bytes(bomb(65536, 65536))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for read in (files.read_image, files.read_saliency, lambda path: read_mask(path, Values(3, 255))):
        with pytest.raises(UserError, match="is too large"):
            read(tmp_path / "a.png")
    assert time.perf_counter() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_what_follows_the_pixels_of_a_small_png_is_not_unpacked(tmp_path: Path) -> None:
    content = bomb(65536, 65536)
    header = bytearray(content)
    header[16:24] = (8).to_bytes(4, "big") * 2  # 8 x 8 pixels, says the header now
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    (tmp_path / "a.png").write_bytes(bytes(header))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_mask(tmp_path / "a.png", Values(3, 255)).shape == (8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_predict_skips_what_is_too_large(tmp_path: Path, network: Segmenter, small_limit: None) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    predictor = Predictor(network, softmax, NAMES)
    (done,) = predict_files(predictor, find_images([str(tmp_path)]).jobs, tmp_path / "out", False)
    assert done.labels is None
    assert "SEGROW_MAX_PIXELS" in done.problem


def test_no_tile_is_kept(monkeypatch: pytest.MonkeyPatch, network: Segmenter) -> None:
    """Beside the one map of the image there is one tile at a time."""
    predictor = Predictor(network, softmax, NAMES, tile=64)
    real, alive = predictor._stacked, []

    def watched(pixels: np.ndarray) -> torch.Tensor:
        assert pixels.shape == (64, 64, 3)
        assert sum(one() is not None for one in alive) <= 1
        maps = real(pixels)
        alive.append(weakref.ref(maps))
        return maps

    monkeypatch.setattr(predictor, "_stacked", watched)
    image = np.random.default_rng(0).integers(0, 256, (150, 250, 3), dtype=np.uint8)
    seen = predictor(image)
    assert len(alive) == 3 * 5
    assert seen.labels.shape == (150, 250)
    assert seen.labels.dtype == np.uint8
    assert sum(seen.shares().values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_label_map_of_40_megapixels(tmp_path: Path, network: Segmenter) -> None:
    Image.new("L", (6400, 6300), 120).save(tmp_path / "ortho.png")
    predictor = Predictor(network, softmax, NAMES, tile=1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jobs = find_images([str(tmp_path / "ortho.png")]).jobs
    (done,) = predict_files(predictor, jobs, tmp_path / "out", False)
    assert done.labels is not None
    with Image.open(done.labels) as image:
        assert image.size == (6400, 6300)
    # three bytes per pixel, twice while the picture is decoded; one for the labels; 0.6 GB for the rest
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (7 * 40_320_000 + 6e8) / 1024
