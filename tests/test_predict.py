"""Predict: the label map is what the evaluation would count, at the image's own size, in safe files."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from steps import spread
from torch import Tensor

import segrow
from segrow import argmax
from segrow.config import ModelConfig
from segrow.errors import UserError
from segrow.methods.lwf import Lwf
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter, SegOutput, build_segmenter
from segrow.model.store import save_model
from segrow.palette import voc_palette
from segrow.predict import STRIDE, ImageWarning, Predictor, as_rgb
from segrow.predict_files import Job, Prediction, find_images, predict_files, write_prediction

NAMES = ("background", "cat", "dog")


def images_of(names: list[str], out: Path | None = None) -> list[Job]:
    """Without what is said of others."""
    return find_images(names, out).jobs


def scores(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """As SSUL: the unknown channel counts for background."""
    p = logits.sigmoid()
    if unknown is not None:
        p = torch.cat([p[:, :1] + unknown.sigmoid(), p[:, 1:]], 1)
    return p


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig(name="deeplabv3_mobilenet", weights="none", width=16)
    built = build_segmenter(config, 1, unknown=True, report=lambda line: None)
    built.grow(1, step=1)
    # random weights say the same everywhere
    spread(built, torch.from_numpy(noise(96, 96, seed=1).copy()).permute(2, 0, 1)[None])
    return built


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth random colours."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def expected(model: Segmenter, seen: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The label map of what the network sees, with torch alone."""
    model.eval()
    with torch.no_grad():
        out = model(torch.from_numpy(seen.copy()).permute(2, 0, 1)[None])
        assert out.unknown is not None
        full = [
            F.interpolate(m, size, mode="bilinear", align_corners=False) for m in (out.logits, out.unknown)
        ]
        return scores(full[0], full[1]).argmax(1)[0].numpy()


def test_whole_image_at_its_own_size(model: Segmenter) -> None:
    image = noise(70, 100)
    model.train()
    labels = Predictor(model, scores, NAMES).labels(image)
    assert labels.dtype == np.uint8
    assert labels.shape == (70, 100)
    assert model.training  # it is not touched
    assert (labels == expected(model, image, (70, 100))).all()
    assert len(np.unique(labels)) > 1  # otherwise this shows nothing


def test_bf16_is_nearly_the_same(model: Segmenter) -> None:
    predictor = Predictor(model, scores, NAMES, precision="bf16")
    assert {p.dtype for p in predictor.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    image = noise(70, 100)
    assert 0.7 < (predictor.labels(image) == Predictor(model, scores, NAMES).labels(image)).mean() < 1


@pytest.mark.parametrize(
    ("size", "resized"), [((70, 100), (45, 64)), ((100, 70), (64, 45)), ((30, 30), (45, 45))]
)
def test_short_side_is_resized_to_the_crop_and_the_labels_back(
    model: Segmenter, size: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = noise(*size)
    labels = Predictor(model, scores, NAMES, crop=45).labels(image)
    seen = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR))
    assert labels.shape == size
    assert (labels == expected(model, seen, size)).all()


def test_a_long_strip_is_not_blown_up(model: Segmenter) -> None:
    predictor = Predictor(model, scores, NAMES, crop=32)
    seen: list[torch.Size] = []
    predictor.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    assert predictor.labels(noise(4, 2000)).shape == (4, 2000)
    assert 0.8 * 16 * 32 * 32 <= seen[0][2] * seen[0][3] <= 16 * 32 * 32


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)])
def test_tiny_images(model: Segmenter, size: tuple[int, int]) -> None:
    for crop in (None, 32):
        assert Predictor(model, scores, NAMES, crop=crop).labels(noise(8, 8)[: size[0]]).shape[1] == 8
        tiny = np.zeros((*size, 3), np.uint8)
        assert Predictor(model, scores, NAMES, crop=crop).labels(tiny).shape == size


def test_many_scores_go_in_bands(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(70, 100)
    whole = Predictor(model, scores, NAMES).labels(image)
    called: list[torch.Size] = []

    def counted(logits: Tensor, unknown: Tensor | None) -> Tensor:
        called.append(logits.shape)
        return scores(logits, unknown)

    monkeypatch.setattr(argmax, "BAND_BYTES", 4 * 4 * 100 * 9)  # three classes and unknown, float32
    banded = Predictor(model, counted, NAMES).labels(image)
    assert [shape[2] for shape in called] == [9] * 7 + [7]
    assert (banded != whole).mean() < 1e-3  # only where two classes are equal to the last bit
    monkeypatch.setattr(argmax, "BAND_BYTES", 1)
    assert (Predictor(model, scores, NAMES).labels(image) != whole).mean() < 1e-3


def test_file_pil_and_array_say_the_same(model: Segmenter, tmp_path: Path) -> None:
    image = noise(40, 60)
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = Predictor(model, scores, NAMES)
    labels = predictor.labels(image)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        assert (predictor.labels(same) == labels).all()


def test_exif_orientation_turns_the_labels_too(model: Segmenter, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 60)).save(tmp_path / "a.png", exif=exif)
    assert Predictor(model, scores, NAMES).labels(tmp_path / "a.png").shape == (60, 40)


def test_arrays_of_another_kind_are_refused(model: Segmenter) -> None:
    predictor = Predictor(model, scores, NAMES)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(UserError, match=r"got an array of .* expected uint8 \(height, width, 3\)"):
            predictor.labels(wrong)  # type: ignore[arg-type]


def test_what_is_no_image_is_refused(model: Segmenter) -> None:
    predictor = Predictor(model, scores, NAMES)
    wrongs: list[Any] = [None, b"photo", (one for one in [noise(8, 8)]), 3, [None], {"a": 1}]
    for wrong in wrongs:
        with pytest.raises(UserError, match=r"^got \w+, expected a file, a PIL image, .* list of these$"):
            predictor(wrong)
    for empty in (noise(8, 8)[:0], noise(8, 8)[:, :0], torch.zeros(3, 0, 4, dtype=torch.uint8)):
        with pytest.raises(UserError, match="expected uint8"):
            predictor(empty)
    with pytest.raises(UserError, match="at least one"):
        predictor(Image.new("RGB", (0, 4)))


def told(says: str) -> AbstractContextManager[object]:
    return pytest.warns(ImageWarning, match=says) if says else nullcontext()


def test_a_pil_image_is_taken_as_its_file(tmp_path: Path) -> None:
    wide = noise(40, 60)[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 60)).save(tmp_path / "turned.png", exif=exif)
    for name, shape, says in (
        ("wide.png", (40, 60, 3), "has 16 bits per value and is divided by 256"),
        ("turned.png", (60, 40, 3), ""),
    ):
        with told(says):
            by_file = as_rgb(tmp_path / name)
        assert by_file.shape == shape
        with Image.open(tmp_path / name) as picture, told(says):
            assert (as_rgb(picture) == by_file).all()
    for mode in ("I;16", "I"):
        picture = Image.fromarray(wide.astype(np.int32) if mode == "I" else wide)
        assert picture.mode == mode
        with told("the picture has 16 bits per value and is divided by 256"):
            assert (as_rgb(picture)[:, :, 0] == wide >> 8).all()
    dark = np.arange(256, dtype=np.int32).reshape(16, 16)
    for kind in (np.int32, np.uint16):  # values of 8 bits in files of more
        with told("more than 8 bits per value but nothing above 255: taken as 8-bit"):
            assert (as_rgb(Image.fromarray(dark.astype(kind)))[:, :, 1] == dark).all()
    (tmp_path / "cut.png").write_bytes((tmp_path / "turned.png").read_bytes()[:300])
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(UserError, match="cannot be decoded"):
        as_rgb(picture)


def test_a_device_that_is_not_there(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device cuda, but torch sees no GPU; use cpu"):
        Predictor(model, scores, NAMES, device="cuda")
    with pytest.raises(UserError, match="device is gpu, expected cpu, cuda or cuda:N"):
        Predictor(model, scores, NAMES, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="device cuda:1, but torch sees 1 GPU; they count from 0"):
        Predictor(model, scores, NAMES, device="cuda:1")


def test_names_must_fit_the_channels(model: Segmenter) -> None:
    with pytest.raises(ValueError, match="2 class names for a model of 3 classes"):
        Predictor(model, scores, NAMES[:2])


def test_png_value_is_the_class_index(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [20, 255, 7]], np.uint8)
    path = tmp_path / "a.png"
    write_prediction(labels, path, voc_palette(256))
    picture = Image.open(path)
    assert picture.mode == "P"
    assert (np.asarray(picture) == labels).all()
    assert np.asarray(picture.convert("RGB"))[1, 0].tolist() == [0, 64, 128]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_more_than_256_classes_are_written_as_16_bit(tmp_path: Path) -> None:
    labels = np.array([[0, 300], [1000, 32767]], np.int16)
    write_prediction(labels, tmp_path / "a.png", voc_palette(1001))
    assert (np.asarray(Image.open(tmp_path / "a.png")) == labels).all()


def test_more_than_256_classes_are_int16() -> None:
    config = ModelConfig(name="deeplabv3_mobilenet", weights="none", width=8, head="linear")
    big = build_segmenter(config, 299, unknown=False, report=lambda line: None)
    with torch.no_grad():
        for head in big.heads_of("base"):
            head.out.bias[280] = 1e6  # type: ignore[index]
    names = [str(i) for i in range(300)]
    labels = Predictor(big, scores, names).labels(noise(20, 20))
    assert labels.dtype == np.int16
    assert Predictor(big, lambda x, u: x, names).labels(noise(20, 20)).max() == 280


def folder(path: Path, names: Sequence[str]) -> list[Path]:
    path.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(noise(40, 60, seed=i)).save(path / name)
    return [path / name for name in names]


def written(predictor: Predictor, names: Sequence[Path], out: Path, **options: bool) -> list[Prediction]:
    """All results at once."""
    jobs = [Job(image, Path(image.name)) for image in names]
    return list(predict_files(predictor, jobs, out, **{"overlays": True, **options}))


def test_predict_files(model: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "in", ["a.jpg", "b.c.png"])
    predictor = Predictor(model, scores, NAMES)
    out = tmp_path / "x" / "out"
    done = written(predictor, images, out, unknown=True)
    assert sorted(p.name for p in out.iterdir()) == [
        *("a.png", "a_overlay.jpg", "a_unknown.png", "b.c.png", "b.c_overlay.jpg", "b.c_unknown.png")
    ]
    assert [d.image for d in done] == images
    for prediction in done:
        assert prediction.labels is not None
        labels = np.asarray(Image.open(prediction.labels))
        assert (labels == predictor.labels(prediction.image)).all()
        assert prediction.overlay is not None
        assert Image.open(prediction.overlay).size == (60, 40)
        assert prediction.shares == pytest.approx({NAMES[c]: (labels == c).mean() for c in np.unique(labels)})
        assert list(prediction.shares.values()) == sorted(prediction.shares.values(), reverse=True)
        grey = np.asarray(Image.open(prediction.labels.with_name(f"{prediction.labels.stem}_unknown.png")))
        assert np.abs(grey / 255 - predictor(prediction.image).unknown).max() <= 0.5 / 255 + 1e-6
    assert capsys.readouterr().out == ""


def test_predict_files_without_overlays(model: Segmenter, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", ["a.jpg"])
    done = written(Predictor(model, scores, NAMES), images, tmp_path / "out", overlays=False)
    assert done[0].overlay is None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_same_stem_is_refused_before_anything_is_written(model: Segmenter, tmp_path: Path) -> None:
    images = [*folder(tmp_path / "one", ["a.jpg"]), *folder(tmp_path / "two", ["a.png"])]
    with pytest.raises(UserError, match=r"one/a\.jpg and .*two/a\.png would both be written to .*out/a\.png"):
        written(Predictor(model, scores, NAMES), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["a.png"], ["a.jpg", "a_overlay.jpg"]])
def test_an_input_is_never_overwritten(model: Segmenter, tmp_path: Path, names: list[str]) -> None:
    images = folder(tmp_path / "in", names)
    before = images[-1].read_bytes()
    with pytest.raises(UserError, match=f"{names[-1]} would overwrite an input image"):
        written(Predictor(model, scores, NAMES), images, tmp_path / "in" / ".." / "in")
    assert images[-1].read_bytes() == before
    assert len(list((tmp_path / "in").iterdir())) == len(names)


def test_unreadable_images_are_skipped_with_a_line(model: Segmenter, tmp_path: Path) -> None:
    good = folder(tmp_path, ["a.jpg", "z.jpg"])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(good[0].read_bytes()[:300])
    text = tmp_path / "text.png"
    text.write_text("no image")
    done = written(Predictor(model, scores, NAMES), [good[0], broken, text, good[1]], tmp_path / "out")
    assert [bool(d.labels) for d in done] == [True, False, False, True]
    for skipped in done[1:3]:
        assert str(skipped.image) in skipped.problem
        assert "cannot be decoded" in skipped.problem
        assert "\n" not in skipped.problem
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["a.png", "a_overlay.jpg", "z.png", "z_overlay.jpg"]


def test_sub_folders_and_patterns_are_kept(model: Segmenter, tmp_path: Path) -> None:
    folder(tmp_path / "in", ["a.jpg"])
    folder(tmp_path / "in" / "deep" / "er", ["a.jpg", "b.PNG"])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    jobs = images_of([str(tmp_path / "in")])
    assert [str(job.place) for job in jobs] == ["a.jpg", "deep/er/a.jpg", "deep/er/b.PNG"]
    list(predict_files(Predictor(model, scores, NAMES), jobs, tmp_path / "out", overlays=False))
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert found == ["a.png", "deep/er/a.png", "deep/er/b.png"]
    by_pattern = images_of([str(tmp_path / "in" / "**" / "*.jpg"), str(tmp_path / "in" / "a.jpg")])
    assert [str(job.place) for job in by_pattern] == ["a.jpg", "deep/er/a.jpg"]  # each once
    one = images_of([str(tmp_path / "in" / "d*" / "er" / "a.jpg")])
    assert [str(job.place) for job in one] == ["deep/er/a.jpg"]
    for nothing in ("in/*.tif", "in/nowhere/**"):
        with pytest.raises(UserError, match="holds no images"):
            images_of([str(tmp_path / nothing)])
    with pytest.raises(UserError, match=r"no\.jpg is missing"):
        images_of([str(tmp_path / "no.jpg")])


def test_a_folder_with_the_name_of_an_image_is_none(tmp_path: Path) -> None:
    folder(tmp_path / "in" / "dir.jpg", ["a.jpg"])
    assert [str(job.place) for job in images_of([str(tmp_path / "in")])] == ["dir.jpg/a.jpg"]


def test_results_below_the_images_are_no_images(model: Segmenter, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", ["a.jpg", "b.jpg"])
    out = tmp_path / "in" / "seen"
    for names in ([str(tmp_path / "in")], [str(tmp_path / "in" / "**" / "*.*")]):
        jobs = images_of(names, tmp_path / "in" / ".." / "in" / "seen")
        assert [job.image for job in jobs] == images
        assert len(list(predict_files(Predictor(model, scores, NAMES), jobs, out, overlays=True))) == 2
    assert len(images_of([str(tmp_path / "in")])) == 6
    assert len(images_of([str(out)], out)) == 4  # one asks for just these
    with pytest.raises(UserError, match=r"a\.png would overwrite an input image"):
        predict_files(Predictor(model, scores, NAMES), images_of([str(out)], out), out, overlays=False)


def test_an_image_is_labelled_once(tmp_path: Path) -> None:
    (image,) = folder(tmp_path / "in", ["a.jpg"])
    (tmp_path / "link.jpg").symlink_to(image)
    names = [image, tmp_path / "in" / ".." / "in" / "a.jpg", tmp_path / "in", tmp_path / "link.jpg"]
    assert [job.image for job in images_of([str(name) for name in names])] == [image]


def test_hidden_files_are_left_out_and_lost_links_are_listed(model: Segmenter, tmp_path: Path) -> None:
    images = folder(tmp_path / "in", ["a.jpg", ".b.jpg"])
    folder(tmp_path / "in" / ".cache", ["c.jpg"])
    (tmp_path / "in" / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "in" / "loop.jpg").symlink_to(tmp_path / "in" / "loop.jpg")
    jobs = images_of([str(tmp_path / "in")])
    assert [job.image.name for job in jobs] == ["a.jpg", "loop.jpg", "lost.jpg"]
    done = list(predict_files(Predictor(model, scores, NAMES), jobs, tmp_path / "out", overlays=False))
    assert [bool(d.problem) for d in done] == [False, True, True]
    assert done[2].problem.startswith(f"image {tmp_path / 'in' / 'lost.jpg'} is missing")
    assert len(images_of([str(tmp_path / "in" / ".cache" / "*.jpg")])) == 1
    assert len(images_of([str(images[1])])) == 1  # by name it is meant


def test_what_cannot_be_written_is_one_line(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(model, scores, NAMES)
    images = folder(tmp_path / "in", ["a.jpg"])
    (tmp_path / "one" / "a.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"a\.png is a folder, where a result would go"):
        written(predictor, images, tmp_path / "one")
    folder(tmp_path / "in" / "deep", ["b.jpg"])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "deep").touch()
    with pytest.raises(UserError, match=r"two/deep cannot be a folder \(File exists\)"):
        predict_files(predictor, images_of([str(tmp_path / "in")]), tmp_path / "two", overlays=True)

    def too_large(*_: object, **__: object) -> bytes:
        raise OSError("encoder error -2")  # as PIL says that a picture is larger than a format holds

    with monkeypatch.context() as patch:
        patch.setattr("segrow.predict_files.encoded", too_large)
        (skipped,) = written(predictor, images, tmp_path / "four")
    assert skipped.problem == f"{images[0]}: its result cannot be written (encoder error -2)"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.png"):
        written(predictor, images, tmp_path / "three")
    assert list((tmp_path / "three").iterdir()) == []


def test_out_that_is_a_file(model: Segmenter, tmp_path: Path) -> None:
    images = folder(tmp_path, ["a.jpg"])
    with pytest.raises(UserError, match=r"a\.jpg cannot be a folder"):
        written(Predictor(model, scores, NAMES), images, images[0])


# --- what a call gives ------------------------------------------------------------------------------------


def test_a_segmentation_says_how_sure_it_is(model: Segmenter) -> None:
    image = noise(40, 60)
    seen = Predictor(model, scores, NAMES)(image)
    assert (seen.image == image).all()
    assert seen.probability.shape == (3, 40, 60)
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        assert out.unknown is not None
        full = [
            F.interpolate(m, (40, 60), mode="bilinear", align_corners=False)
            for m in (out.logits, out.unknown)
        ]
    said = scores(full[0], full[1])[0].clamp(0, 1)
    wanted = said.numpy()
    assert np.abs(seen.probability - wanted).max() < 1e-4
    assert np.abs(seen.unknown - (1 - said.amax(0)).numpy()).max() < 1e-4
    assert np.asarray(seen.overlay()).shape == (40, 60, 3)
    assert (np.asarray(seen.overlay())[seen.labels == 0] == image[seen.labels == 0]).all()
    assert list(seen.shares()) == sorted(seen.shares(), key=lambda name: -seen.shares()[name])
    assert sum(seen.shares().values()) == pytest.approx(1)


def test_ssul_says_with_its_own_head_what_is_unknown(model: Segmenter) -> None:
    image = noise(40, 60)
    seen = Predictor(model, Ssul().scores, NAMES, novelty=Ssul().novelty)(image)
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        assert out.unknown is not None
        head = F.interpolate(out.unknown, (40, 60), mode="bilinear", align_corners=False)
    assert np.abs(seen.unknown - head[0, 0].sigmoid().numpy()).max() < 1e-4
    softmax = Lwf()
    logits = torch.randn(1, 3, 2, 2)
    best = logits.softmax(1).amax(1, keepdim=True)
    assert torch.allclose(softmax.novelty(logits, None), 1 - best)


def test_a_list_a_tensor_and_a_file_are_taken(model: Segmenter, tmp_path: Path) -> None:
    image = noise(40, 60)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    predictor = Predictor(model, scores, NAMES)
    found = predictor([image, tensor, tmp_path / "a.png", Image.fromarray(image)])
    assert len(found) == 4
    assert all((seen.labels == found[0].labels).all() for seen in found)
    assert predictor([]) == []
    pair = predictor((image, tensor))
    assert [(seen.labels == found[0].labels).all() for seen in pair] == [True, True]
    for wrong, hint in (
        (tensor.float(), "scale it to 0..255 and make it uint8"),
        (tensor[0], "convert it to RGB"),
        (tensor.permute(1, 2, 0), "bring the colours to their place"),
        (tensor[None], "give a list of images"),
        (tensor[:, :0], "leave it out"),
    ):
        with pytest.raises(
            UserError, match=rf"got a tensor of .* expected uint8 \(3, height, width\); {hint}"
        ):
            as_rgb(wrong)
        if wrong is not tensor[None]:
            with pytest.raises(UserError, match=r"got an array of .* expected uint8 \(height, width, 3\); "):
                as_rgb(np.moveaxis(wrong.numpy(), -1, 0))


# --- tiles ------------------------------------------------------------------------------------------------


def test_an_image_of_one_tile_is_seen_whole(model: Segmenter) -> None:
    image = noise(64, 96)
    whole, tiled = (Predictor(model, scores, NAMES, tile=tile)(image) for tile in (None, 96))
    assert (whole.labels == tiled.labels).all()
    assert np.abs(whole.probability - tiled.probability).max() < 1e-4


@pytest.mark.parametrize("size", [(200, 330), (64, 500), (331, 65), (20, 30)])
def test_tiles_are_put_together_in_place(size: tuple[int, int]) -> None:
    """A network that only looks at its own pixels gives the same in tiles as whole."""

    class Local(torch.nn.Module):
        n_classes = 3

        def forward(self, images: Tensor) -> SegOutput:
            logits = F.avg_pool2d(images.float() / 255, STRIDE, ceil_mode=True)
            return SegOutput(logits, logits[:, :1] / 2, logits, ())

    predictor = Predictor.__new__(Predictor)
    predictor.device, predictor.model = torch.device("cpu"), Local()  # type: ignore[assignment]
    predictor.scores = lambda logits, unknown: logits
    predictor.novelty = lambda logits, unknown: unknown
    predictor.classes, predictor.crop, predictor.tile = NAMES, None, 64
    predictor._index = np.dtype(np.uint8)
    image = noise(*size)
    seen = predictor(image)
    sides = [-(-length // STRIDE) * STRIDE for length in size]
    padded = np.pad(image, [(0, sides[0] - size[0]), (0, sides[1] - size[1]), (0, 0)], "edge")
    out = Local()(torch.from_numpy(padded).permute(2, 0, 1)[None])
    wanted = F.interpolate(out.logits, sides, mode="bilinear", align_corners=False)[
        0, :, : size[0], : size[1]
    ]
    assert seen.labels.shape == size
    assert np.abs(seen.probability - wanted.numpy()).max() < 1e-5
    assert np.abs(seen.unknown - wanted[0].numpy() / 2).max() < 1e-5


def test_tiles_weigh_less_towards_their_border() -> None:
    """A network whose answer depends on where in the tile a pixel is: the mean is restated, cell by cell."""

    class Placed(torch.nn.Module):
        n_classes = 3

        def forward(self, images: Tensor) -> SegOutput:
            logits = F.avg_pool2d(images.float() / 255, STRIDE, ceil_mode=True)
            rows, columns = logits.shape[2:]
            logits = logits + torch.arange(rows)[:, None] ** 2 + 3 * torch.arange(columns) ** 2
            return SegOutput(logits, None, logits, ())

    predictor = Predictor.__new__(Predictor)
    predictor.device, predictor.model = torch.device("cpu"), Placed()  # type: ignore[assignment]
    predictor.scores = lambda logits, unknown: logits
    predictor.novelty = lambda logits, unknown: logits
    predictor.classes, predictor.crop, predictor.tile = NAMES, None, 64
    predictor._index = np.dtype(np.uint8)
    image = noise(96, 160)  # 6 x 10 cells of 16 pixels; tiles of 4 x 4
    found = predictor._tiled(image).logits[0]
    pieces = [(top, left) for top in (0, 2) for left in (0, 3, 6)]  # the last ends where the image does
    cells = F.avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255, STRIDE)
    tent = (1, 2, 2, 1)
    for row in range(6):
        for column in range(10):
            total, weights = torch.zeros(3), 0
            for top, left in pieces:
                y, x = row - top, column - left
                if 0 <= y < 4 and 0 <= x < 4:
                    total += tent[y] * tent[x] * (cells[:, row, column] + y**2 + 3 * x**2)
                    weights += tent[y] * tent[x]
            assert torch.allclose(found[:, row, column], total / weights, atol=1e-4)


def test_a_tile_that_is_too_small(model: Segmenter) -> None:
    with pytest.raises(UserError, match="tile is 32, expected a whole number of pixels, 64 or more"):
        Predictor(model, scores, NAMES, tile=32)
    for tile in ("a", 64.5):
        with pytest.raises(UserError, match="expected a whole number of pixels"):
            Predictor(model, scores, NAMES, tile=tile)  # type: ignore[arg-type]


def test_what_is_asked_for_must_be_there(model: Segmenter) -> None:
    with pytest.raises(UserError, match=r"precision is '16', expected \"auto\", \"32\" or \"bf16\""):
        Predictor(model, scores, NAMES, precision="16")  # type: ignore[arg-type]
    for device in ("meta", "gpu7", 1.5):
        with pytest.raises(UserError, match=f"device is {device}"):
            Predictor(model, scores, NAMES, device=device)  # type: ignore[arg-type]
    seen = Predictor(model, scores, NAMES)(noise(20, 20))
    assert seen.overlay(0.0).size == seen.overlay(1).size == (20, 20)
    for alpha in (2, -1, float("nan")):
        with pytest.raises(UserError, match=r"alpha is .*, expected a number from 0 to 1"):
            seen.overlay(alpha)


def test_a_result_outlives_the_array_it_was_made_of(model: Segmenter) -> None:
    image = noise(40, 60).copy()
    seen = Predictor(model, scores, NAMES)(image)
    before = np.asarray(seen.overlay()).copy()
    image[:] = 0  # a camera's buffer
    assert (np.asarray(seen.overlay()) == before).all()


def test_three_lines_are_enough(model: Segmenter, tmp_path: Path) -> None:
    protocol = {"crop_val": True, "crop": 48}
    method = {"name": "ssul", "fields": {}}
    scenario = {"data": "voc", "task": "1-1", "setting": "overlap", "classes": list(NAMES)}
    meta = {
        "step": 1,
        "class_names": list(NAMES),
        "scenario": scenario,
        "method": method,
        "protocol": protocol,
    }
    save_model(model, tmp_path / "steps" / "01" / "model", meta)
    predictor = segrow.load(tmp_path)
    seen = predictor(noise(40, 60))
    assert seen.classes == NAMES
    assert predictor.crop == 48
    same = Predictor(model, Ssul().scores, NAMES, crop=48, novelty=Ssul().novelty)(noise(40, 60))
    assert (seen.labels == same.labels).all()
    with pytest.raises(UserError, match="nowhere holds no model"):
        segrow.load("nowhere")
    save_model(model, tmp_path / "whole", {**meta, "protocol": {"crop_val": False, "crop": 48}})
    assert segrow.load(tmp_path / "whole").crop is None
