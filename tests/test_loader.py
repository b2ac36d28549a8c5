"""What a batch shows: which images, which views, which labels; and that no label leaks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from trees import folder_tree

from segrow.data import loader as loader_module
from segrow.data.augment import Augmentation, area_view, centre_view, padded_view, random_view
from segrow.data.folder import FolderDataset
from segrow.data.loader import (
    Draw,
    EpochPlan,
    EvalImages,
    Item,
    Loaded,
    ShardedBatches,
    StepImages,
    collate,
    guard,
    iterate,
    to_device,
)
from segrow.errors import LeakError, UserError
from segrow.memory import Exemplar
from segrow.scenario import IGNORE, UNKNOWN, Scenario, build_scenario

torch.set_num_threads(1)
MEAN = (124, 116, 104)
NAMES = ("background", "apple", "pear", "plum", "fig")
CONTENTS = [{1}, {2, 3}, {3}, {1, 3}, {4, 2}, {1, 2, 3, 4}]

# --- which images ---------------------------------------------------------------------------------------

plans = st.builds(
    EpochPlan,
    n_images=st.integers(1, 30),
    n_exemplars=st.integers(0, 7),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 50),
    step=st.integers(0, 5),
)


@settings(max_examples=100, deadline=None)
@given(plan=plans, epoch=st.integers(0, 4))
def test_half_of_every_batch_is_exemplars(plan: EpochPlan, epoch: int) -> None:
    batches = list(plan.batches(epoch))
    assert len(batches) == plan.iterations == plan.n_images // plan.batch_size
    for batch in batches:
        assert len(batch) == plan.batch_size
        replayed = [d for d in batch if d.from_memory]
        assert len(replayed) == (plan.batch_size // 2 if plan.n_exemplars else 0)
        assert all(0 <= d.index < (plan.n_exemplars if d.from_memory else plan.n_images) for d in batch)


@settings(max_examples=60, deadline=None)
@given(plan=plans)
def test_without_memory_every_epoch_is_a_new_permutation(plan: EpochPlan) -> None:
    plan = replace(plan, n_exemplars=0)
    shown = [[d.index for batch in plan.batches(epoch) for d in batch] for epoch in range(3)]
    for epoch in shown:
        assert len(epoch) == len(set(epoch)) == plan.iterations * plan.batch_size
    if plan.n_images > 12 and plan.iterations:
        assert shown[0] != shown[1] != shown[2]


@settings(max_examples=60, deadline=None)
@given(plan=plans, epochs=st.integers(1, 5))
def test_with_memory_no_image_is_lost(plan: EpochPlan, epochs: int) -> None:
    plan = replace(plan, n_exemplars=max(1, plan.n_exemplars), batch_size=max(2, plan.batch_size))
    draws = [d for epoch in range(epochs) for batch in plan.batches(epoch) for d in batch]
    for memory, total in ((False, plan.n_images), (True, plan.n_exemplars)):
        counts = Counter(d.index for d in draws if d.from_memory == memory)
        shown = [counts[i] for i in range(total)]
        assert max(shown) - min(shown) <= 1


@settings(max_examples=60, deadline=None)
@given(plan=plans, epoch=st.integers(0, 3))
def test_every_draw_has_its_own_seed(plan: EpochPlan, epoch: int) -> None:
    draws = [d for e in (epoch, epoch + 1) for batch in plan.batches(e) for d in batch]
    assert len({d.seed for d in draws}) == len(draws)
    assert all(d.seed[:2] == (plan.seed, plan.step) for d in draws)


def test_exemplars_stand_at_random_positions() -> None:
    plan = EpochPlan(n_images=4000, n_exemplars=5, batch_size=8, seed=1, step=1)
    share = np.mean([[d.from_memory for d in batch] for batch in plan.batches(0)], axis=0)
    assert np.abs(share - 0.5).max() < 0.1
    patterns = {tuple(d.from_memory for d in batch) for batch in plan.batches(0)}
    assert len(patterns) == 70  # all of them: 8 choose 4


@settings(max_examples=40, deadline=None)
@given(plan=plans, epoch=st.integers(0, 4))
def test_a_resumed_run_draws_the_same(plan: EpochPlan, epoch: int) -> None:
    for before in range(epoch):
        list(plan.batches(before))
    drawn = list(plan.batches(epoch))
    loader_module._PERMUTATIONS.clear()
    assert list(replace(plan).batches(epoch)) == drawn


def test_seed_step_and_epoch_change_the_draws() -> None:
    plan = EpochPlan(n_images=40, n_exemplars=9, batch_size=8, seed=1, step=1)
    others = [list(replace(plan, seed=2).batches(0)), list(replace(plan, step=2).batches(0))]
    others += [list(plan.batches(0)), list(plan.batches(1))]
    orders = {tuple((d.index, d.from_memory) for batch in batches for d in batch) for batches in others}
    assert len(orders) == 4


@settings(max_examples=60, deadline=None)
@given(plan=plans, first=st.integers(0, 3), world=st.integers(1, 4))
def test_shards_make_up_the_global_batches(plan: EpochPlan, first: int, world: int) -> None:
    """Of several epochs, the first of which need not be the step's first."""
    plan = replace(plan, batch_size=world * min(plan.batch_size, 4))
    epochs = range(first, first + 2)
    shards = [ShardedBatches(plan, epochs, rank, world) for rank in range(world)]
    assert all(len(shard) == 2 * plan.iterations for shard in shards)
    batches = [batch for epoch in epochs for batch in plan.batches(epoch)]
    for whole, *parts in zip(batches, *shards, strict=True):
        assert all(len(part) == plan.batch_size // world for part in parts)
        merged = [draw for group in zip(*parts, strict=True) for draw in group]
        assert merged == whole


# --- labels of a view -----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderDataset:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    folder_tree(tmp_path / "data", NAMES, CONTENTS, [{1, 4}, {2}], saliency=True, size=(24, 32))
    return FolderDataset(tmp_path / "data")


def scenario_of(data: FolderDataset) -> Scenario:
    """pear, apple | plum, fig: class indices 1, 2 | 3, 4 of the raw ids 2, 1 | 3, 4."""
    classes = ("pear", "apple", "plum", "fig")
    presence = data.presence("train", progress=False)
    return build_scenario("folder", data.class_names, data.ignore_id, presence, "2-2", "overlap", classes)


def step_images(
    data: FolderDataset,
    step: int,
    exemplars: tuple[Exemplar, ...] = (),
    *,
    sees: str = "new",
    exemplar_labels: str = "known",
    unshifted: bool = False,
    aux: tuple[str, ...] = ("saliency",),
    crop: int = 40,
    scale: tuple[float, float] = (1.0, 1.0),
    flip: float = 0.0,
    mode: Literal["scale", "area"] = "scale",
    padding: Literal["ignore", "background"] = "ignore",
    void: str = "ignore",
) -> StepImages:
    """By default the whole image, padded to 40 x 40."""
    return StepImages(
        data,
        scenario_of(data),
        step,
        sees,
        exemplars,
        exemplar_labels=exemplar_labels,
        unshifted=unshifted,
        aux=aux,
        augmentation=Augmentation(crop, mode, scale, flip, padding, MEAN),
        void=void,
    )


def item_of(images: StepImages, draw: Draw) -> Item:
    item = images[draw]
    assert isinstance(item, Item), item
    return item


def raw_to_index(visible: dict[int, int]) -> dict[int, int]:
    """Meaning of the raw ids of the tree when only some show."""
    return {raw: visible.get(raw, 0) for raw in range(len(NAMES))} | {255: IGNORE}


def read(data: FolderDataset, image_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.asarray(Image.open(data.image_path("train", image_id)).convert("RGB"))
    mask = np.asarray(Image.open(data.mask_path("train", image_id)))
    saliency = np.asarray(Image.open(data.saliency_path("train", image_id)).convert("L")) > 0
    return image, mask, saliency


VISIBLE = {
    ("new", 0): {2: 1, 1: 2},
    ("new", 1): {3: 3, 4: 4},
    ("seen", 0): {2: 1, 1: 2},
    ("seen", 1): {2: 1, 1: 2, 3: 3, 4: 4},
}


@pytest.mark.parametrize(("sees", "step"), list(VISIBLE))
@pytest.mark.parametrize("crop", [20, 40])
def test_items_equal_the_naive_ones(data: FolderDataset, sees: str, step: int, crop: int) -> None:
    images = step_images(data, step, sees=sees, crop=crop, scale=(0.5, 2.0), flip=0.5)
    meaning = raw_to_index(VISIBLE[sees, step])
    shown: set[int] = set()
    for index in range(len(images)):
        for k in range(4):
            seed = (1, step, k, index, 0)
            item = item_of(images, Draw(index, False, seed))
            image, mask, saliency = read(data, images.images[index])
            view = random_view(mask.shape, crop, (0.5, 2.0), 0.5, np.random.default_rng(seed))
            place = (view.size, view.top, view.left, view.crop, view.flip)
            raw = naive.view_map(mask, *place, 255)
            expected = np.vectorize(meaning.__getitem__)(raw)
            shown |= set(np.unique(expected).tolist())
            assert item.labels.dtype == torch.int16
            assert (item.labels.numpy() == expected).all()
            assert (item.aux["saliency"].numpy() == naive.view_map(saliency, *place, False)).all()
            assert item.image.dtype == torch.uint8
            colours = naive.view_image(image, *place, MEAN)
            assert np.abs(item.image.permute(1, 2, 0).numpy() - colours).max() <= 1.01
            assert item.image_id == images.images[index]
            assert not item.from_memory
    assert shown == {IGNORE, 0, *VISIBLE[sees, step].values()}


def test_padding_is_mean_colour_ignored_and_not_salient(data: FolderDataset) -> None:
    item = item_of(step_images(data, 0), Draw(0, False, (1, 0, 0, 0, 0)))
    view = random_view((24, 32), 40, (1.0, 1.0), 0.0, np.random.default_rng((1, 0, 0, 0, 0)))
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[-view.top : 24 - view.top, -view.left : 32 - view.left] = True
    assert (item.labels[~inside] == IGNORE).all()
    assert not item.aux["saliency"][~inside].any()
    assert (item.image[:, ~inside] == torch.tensor(MEAN)[:, None]).all()
    assert (item.labels[inside] != IGNORE).sum() == 23 * 32  # the tree's masks end in an ignored row


def test_padding_as_the_reference_has_it_is_black_background_and_not_salient(data: FolderDataset) -> None:
    seed = (1, 0, 0, 0, 0)
    item = item_of(step_images(data, 0, padding="background"), Draw(0, False, seed))
    view = padded_view((24, 32), 40, (1.0, 1.0), 0.0, np.random.default_rng(seed))
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[max(-view.top, 0) : 24 - view.top, max(-view.left, 0) : 32 - view.left] = True
    assert (~inside).any()
    assert (item.labels[~inside] == 0).all()
    assert not item.aux["saliency"][~inside].any()
    assert (item.image[:, ~inside] == 0).all()
    assert (item.labels[inside] == IGNORE).any()  # what is annotated as no class stays ignored


def test_padding_is_unknown_where_every_background_pixel_is(data: FolderDataset) -> None:
    """METHODS 2: the reference's padding is background on VOC, unknown on ADE20K."""
    images = step_images(data, 0, aux=("everything",), padding="background")
    item = item_of(images, Draw(0, False, (1, 0, 0, 0, 0)))
    black = (item.image == 0).all(0)
    assert black.any()
    assert (item.aux["everything"] & (item.labels == 0))[black].all()


@pytest.mark.parametrize("padding", ["ignore", "background"])
def test_void_can_be_background_and_padding_stays_what_it_is(
    data: FolderDataset, padding: Literal["ignore", "background"]
) -> None:
    for index in range(5):
        draw = Draw(index, False, (1, 0, 0, index, 0))
        kept = item_of(step_images(data, 0, padding=padding), draw)
        images = step_images(data, 0, padding=padding, void="background")
        merged = item_of(images, draw)
        _, mask, _ = read(data, images.images[index])
        view = images.augmentation.view(mask.shape, np.random.default_rng(draw.seed))
        place = (view.size, view.top, view.left, view.crop, view.flip)
        void = naive.view_map(mask, *place, 0) == 255  # padding aside
        assert void.any()
        assert (kept.labels.numpy()[void] == IGNORE).all()
        assert (merged.labels.numpy()[void] == 0).all()
        assert torch.equal(kept.labels[torch.from_numpy(~void)], merged.labels[torch.from_numpy(~void)])
        assert (merged.labels == IGNORE).any() == (padding == "ignore")


@pytest.mark.parametrize("void", ["ignore", "background"])
def test_a_plain_pass_reads_void_as_training_does(data: FolderDataset, void: str) -> None:
    plain = step_images(data, 0, void=void).plain(0, 1)
    for index, image_id in enumerate(plain.images):
        item = plain[index]
        assert isinstance(item, Item), item
        _, mask, _ = read(data, image_id)
        view = centre_view(mask.shape, 40)
        raw = naive.view_map(mask, view.size, view.top, view.left, view.crop, False, 77)
        meaning = raw_to_index(VISIBLE["new", 0]) | ({255: 0} if void == "background" else {})
        assert (item.labels.numpy() == np.vectorize(meaning.__getitem__)(raw)).all()


def test_parts_of_images_fill_the_crop(data: FolderDataset) -> None:
    """MiB's augmentation: no padding; image, labels and saliency show the same part."""
    images = step_images(data, 0, crop=20, mode="area", scale=(0.5, 2.0), flip=0.5)
    meaning = raw_to_index(VISIBLE["new", 0])
    for index in range(5):
        for k in range(6):
            seed = (1, 0, k, index, 0)
            item = item_of(images, Draw(index, False, seed))
            image, mask, saliency = read(data, images.images[index])
            view = area_view(mask.shape, 20, (0.5, 2.0), 0.5, np.random.default_rng(seed))
            assert view.part is not None
            top, left, height, width = view.part
            cut = np.s_[top : top + height, left : left + width]
            place = ((20, 20), 0, 0, (20, 20), view.flip)
            expected = np.vectorize(meaning.__getitem__)(naive.view_map(mask[cut], *place, 77))
            assert (item.labels.numpy() == expected).all()
            assert (item.aux["saliency"].numpy() == naive.view_map(saliency[cut], *place, False)).all()
            colours = naive.view_image(image[cut], *place, MEAN)
            assert np.abs(item.image.permute(1, 2, 0).numpy() - colours).max() <= 1.01


def test_which_images_a_step_has(data: FolderDataset) -> None:
    assert step_images(data, 0).images == ("train0000", "train0001", "train0003", "train0004", "train0005")
    assert step_images(data, 1).images == ("train0001", "train0002", "train0003", "train0004", "train0005")
    assert step_images(data, 1, sees="seen").images == data.ids("train")


def test_without_aux_no_saliency_is_read(data: FolderDataset) -> None:
    for image_id in data.ids("train"):
        data.saliency_path("train", image_id).unlink()
    assert item_of(step_images(data, 0, aux=()), Draw(0, False, (1,))).aux == {}
    failed = step_images(data, 0)[Draw(0, False, (1,))]
    assert isinstance(failed, UserError)


# --- labels of an exemplar ------------------------------------------------------------------------------

STORED = Exemplar("train0005", 0, (1, 2))  # shows all classes, was annotated with those of step 0


@pytest.mark.parametrize(
    ("exemplar_labels", "visible"), [("known", {2: 1, 1: 2}), ("seen", {2: 1, 1: 2, 3: 3, 4: 4})]
)
def test_exemplars_show_what_they_may(
    data: FolderDataset, exemplar_labels: str, visible: dict[int, int]
) -> None:
    images = step_images(data, 1, (STORED,), exemplar_labels=exemplar_labels)
    item = item_of(images, Draw(0, True, (1,)))
    assert item.from_memory
    assert item.image_id == "train0005"
    assert set(item.labels.unique().tolist()) == {IGNORE, 0, *visible.values()}
    own = item_of(images, Draw(images.images.index("train0005"), False, (1,)))
    assert set(own.labels.unique().tolist()) == {IGNORE, 0, 3, 4}
    assert torch.equal(own.image, item.image)  # the same view of the same image


def test_unshifted_exemplars(data: FolderDataset) -> None:
    straight = item_of(step_images(data, 1, (STORED,)), Draw(0, True, (1,)))
    images = step_images(data, 1, (STORED,), unshifted=True)
    item = item_of(images, Draw(0, True, (1,)))
    assert (item.labels.numpy() == naive.unshift(straight.labels.numpy().astype(np.int64))).all()
    assert set(item.labels.unique().tolist()) == {IGNORE, UNKNOWN, 0, 1}
    # what was class 1 is background now, and stays it where it is salient
    assert straight.aux["saliency"].any()
    assert not item.aux["saliency"].any()
    own = item_of(images, Draw(0, False, (1,)))
    assert UNKNOWN not in own.labels
    assert own.aux["saliency"].any()


# --- the leak guard -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    visible=st.frozensets(st.integers(1, 9), min_size=1),
    forbidden=st.integers(1, 12),
    row=st.integers(0, 5),
    column=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_one_forbidden_pixel_is_enough(
    visible: frozenset[int], forbidden: int, row: int, column: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([IGNORE, 0, *visible], (6, 7)).astype(np.int16)
    guard(labels, visible, "some_image", 3)
    labels[row, column] = forbidden
    if forbidden in visible:
        guard(labels, visible, "some_image", 3)
    else:
        with pytest.raises(LeakError, match=rf"image some_image shows classes \[{forbidden}\] at step 3"):
            guard(labels, visible, "some_image", 3)


def batches_of(images: StepImages, draws: list[Draw], workers: int = 0) -> list[Loaded]:
    loader: DataLoader[Loaded | UserError | LeakError] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=[draws],  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,  # type: ignore[arg-type]
    )
    return list(iterate(loader))


def paint_one_pixel(data: FolderDataset, image_id: str, raw: int) -> None:
    path = data.mask_path("train", image_id)
    mask = Image.open(path)
    mask.putpixel((5, 7), raw)
    mask.save(path)


def draws_of(images: StepImages) -> list[Draw]:
    return [Draw(i, False, (1, i)) for i in range(len(images))]


def test_a_tampered_table_is_found(data: FolderDataset) -> None:
    paint_one_pixel(data, "train0000", 4)  # of a class of step 1, in an image that shows none otherwise
    images = step_images(data, 0)
    assert images.images[0] == "train0000"
    ((batch, _),) = batches_of(images, draws_of(images))
    assert set(batch.labels.unique().tolist()) == {IGNORE, 0, 1, 2}
    images.table[4] = 4
    with pytest.raises(LeakError, match=r"image train0000 shows classes \[4\] at step 0, .* \[1, 2\] only"):
        batches_of(images, draws_of(images)[:1])


def test_a_tampered_table_is_found_by_a_worker_too(data: FolderDataset) -> None:
    images = step_images(data, 1)
    images.table[2] = 1  # an old class
    with pytest.raises(LeakError, match=r"image train0001 shows classes \[1\] at step 1") as caught:
        batches_of(images, draws_of(images), workers=1)
    assert "\n" not in str(caught.value)


def test_a_tampered_exemplar_is_found(data: FolderDataset) -> None:
    paint_one_pixel(data, "train0003", 4)
    exemplar = Exemplar("train0003", 0, (1, 2))
    images = step_images(data, 1, (exemplar,))
    draws = [Draw(0, True, (1,))]
    batches_of(images, draws)
    images.exemplar_tables[0][4] = 4  # a new class: annotated now, but not in what was stored
    with pytest.raises(LeakError, match=r"image train0003 shows classes \[4\] at step 1, .* \[1, 2\] only"):
        batches_of(images, draws)


# --- errors and batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line(data: FolderDataset, workers: int) -> None:
    images = step_images(data, 0)
    data.image_path("train", "train0001").write_bytes(b"no picture")
    batches_of(images, draws_of(images)[:1], workers=0)
    with pytest.raises(UserError, match=r"image .*train0001\.png cannot be decoded") as caught:
        batches_of(images, draws_of(images), workers)
    assert "\n" not in str(caught.value)


def test_image_and_mask_of_different_size(data: FolderDataset) -> None:
    images = step_images(data, 0)
    Image.new("RGB", (9, 8)).save(data.image_path("train", "train0000"))
    with pytest.raises(
        UserError, match=r"image train0000 is \(8, 9\), its mask \(24, 32\); they must be equal"
    ):
        batches_of(images, draws_of(images))


def test_a_batch_holds_its_items_in_order(data: FolderDataset) -> None:
    images = step_images(data, 1, (STORED,))
    draws = [Draw(2, False, (1,)), Draw(0, True, (2,)), Draw(0, False, (3,))]
    items = [item_of(images, draw) for draw in draws]
    ((batch, ids),) = batches_of(images, draws)
    assert ids == [images.images[2], "train0005", images.images[0]]
    assert batch.from_memory.tolist() == [False, True, False]
    assert batch.images.shape == (3, 3, 40, 40)
    for k, item in enumerate(items):
        assert torch.equal(batch.images[k], item.image)
        assert torch.equal(batch.labels[k], item.labels)
        assert torch.equal(batch.aux["saliency"][k], item.aux["saliency"])


@pytest.mark.parametrize("channels_last", [True, False])
def test_on_the_device_labels_are_int64(data: FolderDataset, channels_last: bool) -> None:
    images = step_images(data, 0)
    ((batch, _),) = batches_of(images, draws_of(images))
    moved = to_device(batch, torch.device("cpu"), channels_last)
    assert moved.labels.dtype == torch.int64
    assert torch.equal(moved.labels, batch.labels.long())
    assert torch.equal(moved.images, batch.images)
    assert moved.images.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    assert torch.equal(moved.aux["saliency"], batch.aux["saliency"])
    assert torch.equal(moved.from_memory, batch.from_memory)


# --- evaluation -----------------------------------------------------------------------------------------


def test_evaluation_shows_the_whole_truth(data: FolderDataset) -> None:
    table = scenario_of(data).eval_table()
    items = EvalImages(data, "val", data.ids("val"), table, None)
    assert len(items) == 2
    item = items[0]
    assert isinstance(item, Item)
    mask = np.asarray(Image.open(data.mask_path("val", "val0000")))
    expected = np.vectorize({0: 0, 2: 1, 1: 2, 3: 3, 4: 4, 255: IGNORE}.__getitem__)(mask)
    assert (item.labels.numpy() == expected).all()
    image = np.asarray(Image.open(data.image_path("val", "val0000")))
    assert (item.image.permute(1, 2, 0).numpy() == image).all()


def test_evaluation_on_crops(data: FolderDataset) -> None:
    item = EvalImages(data, "val", data.ids("val"), scenario_of(data).eval_table(), 12)[0]
    assert isinstance(item, Item)
    assert item.image.shape == (3, 12, 12)
    mask = np.asarray(Image.open(data.mask_path("val", "val0000")))
    raw = naive.view_map(mask, (12, 16), 0, 2, (12, 12), False, 255)
    assert (item.labels.numpy() == scenario_of(data).eval_table()[raw]).all()


def test_a_broken_image_in_evaluation(data: FolderDataset) -> None:
    items = EvalImages(data, "val", data.ids("val"), scenario_of(data).eval_table(), None)
    data.mask_path("val", "val0000").unlink()
    loader: DataLoader[Loaded | UserError | LeakError] = DataLoader(
        items,  # type: ignore[arg-type]
        collate_fn=collate,  # type: ignore[arg-type]
    )
    with pytest.raises(UserError, match=r"mask .*val0000\.png is missing"):
        list(iterate(loader))
