"""Views against naive versions that look at one pixel at a time."""

import naive
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional

from segrow.data.augment import (
    View,
    area_view,
    centre_view,
    cut_image,
    cut_map,
    padded_view,
    random_view,
    whole_view,
)

FILL = (101, 102, 103)
sides = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, int], View]:
    """Shape of an image, and any view of it: larger or smaller, padded on none to both sides of each axis."""
    shape = (draw(sides), draw(sides))
    size = shape if draw(st.booleans()) else (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    crop = (draw(sides), draw(sides))
    top, left = (draw(st.integers(min(0, s - c), max(0, s - c))) for s, c in zip(size, crop, strict=True))
    return shape, View(size, top, left, crop, draw(st.booleans()))


def arguments(view: View) -> tuple[tuple[int, int], int, int, tuple[int, int], bool]:
    return view.size, view.top, view.left, view.crop, view.flip


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- cutting --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(case=views(), seed=seeds, wide=st.booleans())
def test_maps_equal_the_naive_ones(case: tuple[tuple[int, int], View], seed: int, wide: bool) -> None:
    shape, view = case
    mask = noise(shape, seed).astype(np.uint16) * 200 if wide else noise(shape, seed)
    fill = 65535 if wide else 255
    ours = cut_map(mask, view, fill)
    assert ours.dtype == mask.dtype
    assert ours.flags.c_contiguous
    assert ours.flags.writeable  # torch warns of arrays that are not
    np.testing.assert_array_equal(ours, naive.view_map(mask, *arguments(view), fill))


def test_a_pixel_centre_on_a_border_belongs_to_the_next_pixel() -> None:
    # (27 + 1/2) * 18 / 33 is exactly 15; in float64 it is less
    mask = np.arange(18, dtype=np.uint8)[:, None]
    assert cut_map(mask, View((33, 1), 0, 0, (33, 1)), 255)[27, 0] == 15


@settings(max_examples=150, deadline=None)
@given(case=views(), seed=seeds)
def test_images_equal_the_naive_ones(case: tuple[tuple[int, int], View], seed: int) -> None:
    """PIL rounds to whole values after each axis: that is all that may differ."""
    shape, view = case
    image = noise((*shape, 3), seed)
    before = image.copy()
    ours = cut_image(image, view, FILL)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert ours.flags.writeable  # torch warns of arrays that are not
    expected = naive.view_image(image, *arguments(view), FILL)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 1.01
    assert (image == before).all()


@settings(max_examples=100, deadline=None)
@given(case=views(), seed=seeds)
def test_resizing_the_crop_alone_equals_cropping_the_resized_image(
    case: tuple[tuple[int, int], View], seed: int
) -> None:
    shape, view = case
    image = noise((*shape, 3), seed)
    whole = np.asarray(Image.fromarray(image).resize(view.size[::-1], Image.Resampling.BILINEAR))
    ours = cut_image(image, view, FILL).astype(int)
    # at its own size the naive view only crops, pads and mirrors
    expected = naive.view_image(whole, *arguments(view), FILL)
    assert np.abs(ours - expected).max() <= 1.01


@settings(max_examples=100, deadline=None)
@given(case=views(), seed=seeds)
def test_image_and_label_lie_on_each_other_at_scale_1(case: tuple[tuple[int, int], View], seed: int) -> None:
    shape, view = case
    view = View(shape, min(view.top, 0), min(view.left, 0), (24, 24), view.flip)
    mask = noise(shape, seed) % 200
    image = np.stack([mask, mask + 1, 255 - mask], 2)
    labels = cut_map(mask, view, 255)
    colours = cut_image(image, view, FILL)
    saliency = cut_map((mask > 100).astype(np.uint8), view, 0)
    inside = labels != 255
    assert (colours[inside, 0] == labels[inside]).all()
    assert (colours[inside, 1] == labels[inside] + 1).all()
    assert (saliency[inside] == (labels[inside] > 100)).all()
    assert (colours[~inside] == FILL).all()
    assert (saliency[~inside] == 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), crop=st.integers(8, 40))
def test_image_and_label_lie_on_each_other_at_every_scale(seed: int, crop: int) -> None:
    """In the middle of areas of one colour, where resizing invents no others."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 4, (3, 4)), np.ones((10, 10), np.int64)).astype(np.uint8)
    view = random_view(mask.shape, crop, (0.5, 2.0), 0.5, rng)
    labels = cut_map(mask, view, 255)
    colours = cut_image(np.stack([mask * 60] * 3, 2), view, FILL)
    checked = 0
    for i in range(3, crop - 3):
        for j in range(3, crop - 3):
            around = labels[i - 3 : i + 4, j - 3 : j + 4]
            if (around == labels[i, j]).all() and labels[i, j] != 255:
                assert colours[i, j].tolist() == [60 * labels[i, j]] * 3
                checked += 1
    if view.size[0] >= 30 and view.size[1] >= 40 and crop >= 24:
        assert checked > 0


# --- which view -----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, crop=sides, seed=seeds, low=st.floats(0.1, 1), high=st.floats(1, 3))
def test_random_views(height: int, width: int, crop: int, seed: int, low: float, high: float) -> None:
    view = random_view((height, width), crop, (low, high), 0.5, np.random.default_rng(seed))
    assert view == random_view((height, width), crop, (low, high), 0.5, np.random.default_rng(seed))
    assert view.crop == (crop, crop)
    # one factor for both axes
    factors = [
        (max(low, (new - 0.5) / old), min(high, (new + 0.5) / old))
        for old, new in ((height, view.size[0]), (width, view.size[1]))
        if new > 1
    ]
    assert all(a <= b + 1e-9 for a, _ in factors for _, b in factors)
    for size, start in ((view.size[0], view.top), (view.size[1], view.left)):
        assert size >= 1
        if size >= crop:  # nothing is padded
            assert 0 <= start <= size - crop
        else:  # all of the image is there
            assert size - crop <= start <= 0


def test_random_views_use_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_view((100, 50), 60, (0.5, 2.0), 0.5, rng) for _ in range(2000)]
    heights = np.array([v.size[0] for v in drawn])
    assert heights.min() == 50
    assert heights.max() == 200
    # linear: a third of the range 0.5..2 lies below 1
    assert abs((heights < 100).mean() - 1 / 3) < 0.04
    assert abs(np.mean([v.flip for v in drawn]) - 0.5) < 0.04
    same = [random_view((10, 4), 6, (1.0, 1.0), 0.0, rng) for _ in range(300)]
    assert {v.size for v in same} == {(10, 4)}
    assert {v.top for v in same} == {0, 1, 2, 3, 4}  # the crop anywhere in the image
    assert {v.left for v in same} == {-2, -1, 0}  # the image anywhere in the crop
    assert not any(v.flip for v in same)
    assert all(random_view((10, 4), 6, (1.0, 1.0), 1.0, rng).flip for _ in range(50))


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, crop=sides, seed=seeds, high=st.floats(0.5, 3))
def test_padded_views_equal_padding_on_all_sides(
    height: int, width: int, crop: int, seed: int, high: float
) -> None:
    """The reference's steps one after another: scale, pad for the width, pad for the height, crop, flip."""
    view = padded_view((height, width), crop, (0.4, high), 0.5, np.random.default_rng(seed))
    mask = noise((height, width), seed)
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.4, high)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    scaled = naive.view_map(mask, size, 0, 0, size, False, 0)
    if scaled.shape[1] < crop:
        scaled = np.pad(scaled, int((1 + crop - scaled.shape[1]) / 2))
    if scaled.shape[0] < crop:
        scaled = np.pad(scaled, int((1 + crop - scaled.shape[0]) / 2))
    i = int(rng.integers(0, scaled.shape[0] - crop + 1))
    j = int(rng.integers(0, scaled.shape[1] - crop + 1))
    expected = scaled[i : i + crop, j : j + crop]
    if rng.random() < 0.5:
        expected = expected[:, ::-1]
    np.testing.assert_array_equal(cut_map(mask, view, 0), expected)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, seed=seeds, low=st.floats(0.05, 1), high=st.floats(1, 3))
def test_area_views_equal_the_naive_ones(height: int, width: int, seed: int, low: float, high: float) -> None:
    view = area_view((height, width), 16, (low, high), 0.5, np.random.default_rng(seed))
    part, flip = naive.random_part(height, width, low, high, np.random.default_rng(seed))
    assert (view.part, view.flip) == (part, flip)
    assert (view.size, view.top, view.left, view.crop) == ((16, 16), 0, 0, (16, 16))
    top, left, h, w = part
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


def test_area_views_draw_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    parts = [area_view((300, 400), 16, (0.5, 0.9), 0.5, rng).part for _ in range(2000)]
    sizes = np.array([(p[2], p[3]) for p in parts if p])
    area, ratio = sizes.prod(1) / 120_000, sizes[:, 1] / sizes[:, 0]
    assert 0.49 < area.min() < 0.52
    assert 0.85 < area.max() < 0.91
    assert 0.74 < ratio.min() < 0.8
    assert 1.3 < ratio.max() < 1.34


def test_area_views_beyond_the_image_show_its_centre() -> None:
    """Ten tries cannot fit: all of it, or the largest centre part of ratio 3/4 to 4/3."""
    for shape, part in (
        ((30, 36), (0, 0, 30, 36)),
        ((30, 60), (0, 10, 30, 40)),
        ((60, 30), (10, 0, 40, 30)),
        ((1, 9), (0, 4, 1, 1)),
    ):
        assert area_view(shape, 16, (2.0, 3.0), 0.0, np.random.default_rng(0)).part == part


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), crop=st.integers(1, 40))
def test_centre_views_equal_torchvisions(height: int, width: int, crop: int) -> None:
    view = centre_view((height, width), crop)
    resized = functional.resize(torch.zeros(1, height, width), [crop])
    assert view.size == tuple(resized.shape[1:])
    assert view.crop == (crop, crop)
    assert not view.flip
    places = torch.arange(view.size[0] * view.size[1]).view(1, *view.size)
    first = int(functional.center_crop(places, [crop, crop])[0, 0, 0])
    assert divmod(first, view.size[1]) == (view.top, view.left)


def test_centre_view_by_hand() -> None:
    assert centre_view((300, 500), 513) == View((513, 855), 0, 171, (513, 513))
    assert centre_view((513, 513), 513) == View((513, 513), 0, 0, (513, 513))


def test_whole_view_changes_nothing() -> None:
    image, mask = noise((5, 7, 3), 0), noise((5, 7), 1)
    assert (cut_image(image, whole_view((5, 7)), FILL) == image).all()
    assert (cut_map(mask, whole_view((5, 7)), 255) == mask).all()
