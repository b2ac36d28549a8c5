"""The embedded digits: what is in a scene, that nothing leaks between the splits, that nothing changes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from segrow.data.digits import Composition, Digits, compose, load_material, open_digits
from segrow.data.scenes import FALSE_BLOB, MISSED_CARD, Material, draw_scene
from segrow.errors import UserError

KINDS = ("images", "masks", "saliency")


def pixels(root: Path, split: str, count: int) -> dict[str, str]:
    """Hash of the decoded pixels of the first `count` pictures of each kind."""
    found = {}
    for kind in KINDS:
        for path in sorted((root / kind / split).iterdir())[:count]:
            array = np.asarray(Image.open(path))
            found[f"{kind}/{path.name}"] = hashlib.sha256(
                repr(array.shape).encode() + array.tobytes()
            ).hexdigest()
    return found


def stamps(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_a_folder_data_set(tmp_path: Path) -> None:
    compose(tmp_path / "scenes", scenes=5, val_scenes=3, seed=1, digits=10)
    data = Digits(tmp_path / "scenes")
    assert data.name == "digits"
    assert data.class_names[:3] == ("background", "zero", "one")
    assert len(data.class_names) == 11
    assert data.ids("train") == ("00000", "00001", "00002", "00003", "00004")
    assert len(data.ids("val")) == 3
    data.require_saliency()
    for image_id in data.ids("val"):
        assert data.image("val", image_id).shape == (96, 96, 3)
        mask = data.mask("val", image_id)
        assert mask.shape == (96, 96)
        assert 1 <= len(set(mask[mask > 0].tolist())) <= 4
        assert mask.max() <= 10
        assert set(np.unique(data.saliency("val", image_id))) <= {0, 1}
    presence = data.presence("train", progress=False)
    assert presence.present.shape == (5, 11)
    assert presence.present[:, 0].all()
    assert not list(tmp_path.glob(".*"))


def test_number_of_classes_and_size(tmp_path: Path) -> None:
    compose(tmp_path / "scenes", scenes=8, val_scenes=1, seed=1, size=64, digits=3)
    data = Digits(tmp_path / "scenes")
    assert data.class_names == ("background", "zero", "one", "two")
    masks = np.stack([data.mask("train", image_id) for image_id in data.ids("train")])
    assert masks.shape == (8, 64, 64)
    assert set(np.unique(masks)) == {0, 1, 2, 3}


def test_same_parameters_same_pixels_and_a_larger_set_begins_alike(tmp_path: Path) -> None:
    compose(tmp_path / "a", scenes=4, val_scenes=2, seed=3)
    compose(tmp_path / "b", scenes=7, val_scenes=3, seed=3)
    compose(tmp_path / "c", scenes=4, val_scenes=2, seed=4)
    for split, count in (("train", 4), ("val", 2)):
        first = pixels(tmp_path / "a", split, count)
        assert len(first) == 3 * count
        assert first == pixels(tmp_path / "b", split, count)
        other = pixels(tmp_path / "c", split, count)
        assert not set(first.values()) & {other[name] for name in other if name.startswith("images")}


def test_splits_share_no_handwriting_and_all_digits_are_in_both() -> None:
    what = Composition(1, digits=10)
    bunch = load_digits()
    train, val = load_material(what, "train").digits, load_material(what, "val").digits
    for digit in range(10):
        own = bunch.images[bunch.target == digit]
        assert len(train[digit]) + len(val[digit]) == len(own)
        assert abs(len(val[digit]) / len(own) - 0.2) < 0.01
        # the two together are the samples of this digit, each once
        both = np.concatenate([train[digit], val[digit]]).reshape(len(own), 64)
        expected = np.minimum(own * 16, 255).reshape(len(own), 64)
        assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, expected.astype(int).tolist()))


def test_splits_share_no_photograph_pixel() -> None:
    what = Composition(1)
    train, val = load_material(what, "train").photos, load_material(what, "val").photos
    photos = load_sample_images().images
    assert len(train) == len(val) == len(photos) == 2
    for number, photo in enumerate(photos):
        parts = [np.asarray(train[number]), np.asarray(val[number])]
        whole = np.concatenate(parts if number == 0 else parts[::-1], axis=1)
        assert np.array_equal(whole, photo)


def test_card_shows_its_digit_and_colour_is_no_clue() -> None:
    """With blank samples the cards are plain; with the digit there is ink on each card."""
    material = load_material(Composition(1), "train")
    blank = Material(tuple(np.zeros_like(samples) for samples in material.digits), material.photos)
    for seed in range(5):
        scene = draw_scene(material, 96, np.random.default_rng(seed))
        plain = draw_scene(blank, 96, np.random.default_rng(seed))
        assert np.array_equal(scene.mask, plain.mask)
        changed = (np.asarray(scene.image) != np.asarray(plain.image)).any(axis=2)
        for value in np.unique(scene.mask[scene.mask > 0]):
            card = scene.mask == value
            assert 0.04 < changed[card].mean() < 0.7
        # strokes lie on cards only
        assert not changed[scene.mask == 0].any()


def test_saliency_errs_as_often_as_documented() -> None:
    material = load_material(Composition(1), "train")
    scenes = [draw_scene(material, 96, np.random.default_rng([9, i])) for i in range(200)]
    missed, cards, blobs, exact = 0, 0, 0, 0
    for scene in scenes:
        # whatever border and shift together may reach, four pixels each way
        near = np.asarray(Image.fromarray(scene.mask).filter(ImageFilter.MaxFilter(9))) > 0
        blobs += bool((scene.saliency > 0)[~near].any())
        exact += bool(np.array_equal(scene.saliency > 0, scene.mask > 0))
        for value in np.unique(scene.mask[scene.mask > 0]):
            cards += 1
            missed += bool((scene.saliency[scene.mask == value] > 0).mean() < 0.3)
    assert set(np.unique(scenes[0].saliency)) <= {0, 255}
    assert 0.6 * MISSED_CARD < missed / cards < 1.4 * MISSED_CARD
    assert 0.4 * FALSE_BLOB < blobs / len(scenes) < 1.4 * FALSE_BLOB  # some blobs lie on cards
    assert exact < 0.1 * len(scenes)


def test_second_call_reuses_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    data = open_digits(None, 2)
    assert data.root.parent == (tmp_path / "cache").resolve()
    assert data.root.name == "digits-v1-7x96px-2+200-seed1"
    assert len(data.ids("train")) == 2
    before = stamps(data.root)
    assert open_digits(None, 2).root == data.root
    assert stamps(data.root) == before
    assert Composition(3).folder != Composition(2).folder


def test_an_empty_root_is_taken_and_one_of_ours_is_reused(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    compose(root, scenes=2, val_scenes=1, seed=1)
    assert json.loads((root / "scenes.json").read_text())["scenes"] == 2
    before = stamps(root)
    compose(root, scenes=2, val_scenes=1, seed=1)
    assert stamps(root) == before
    with pytest.raises(UserError, match=r"holds digit scenes with .*expected .*another folder"):
        compose(root, scenes=3, val_scenes=1, seed=1)
    assert stamps(root) == before


def test_a_root_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds something else than digit scenes; give .* an empty folder"):
        open_digits(str(tmp_path), 2)
    with pytest.raises(UserError, match="holds something else"):
        open_digits(str(tmp_path / "notes.txt"), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot be written to .* \((Not a directory|File exists)\); choose another"
    ):
        compose(tmp_path / "file" / "scenes", scenes=1, val_scenes=1)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    save = Image.Image.save

    def full(self: Image.Image, path: Path, **options: int) -> None:
        if len(done) == 4:
            raise OSError(28, "No space left on device")
        done.append(path)
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        compose(tmp_path / "scenes", scenes=3, val_scenes=1)
    assert len(done) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"scenes": 0}, "scenes of the digits data set is 0; expected 1 to 99999"),
        ({"val_scenes": 0}, "val_scenes of the digits data set is 0"),
        ({"seed": -1}, "seed of the digits data set is -1"),
        ({"size": 8}, "size of the digits data set is 8; expected 48 to 256"),
        ({"digits": 11}, "digits of the digits data set is 11; expected 1 to 10"),
    ],
)
def test_values_out_of_range(tmp_path: Path, wrong: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        compose(tmp_path / "scenes", **({"scenes": 1} | wrong))
    assert not list(tmp_path.iterdir())
