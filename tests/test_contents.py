"""One image twice: in training and validation, or in training alone."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import build_tree, only_line, results, start
from trees import folder_tree

from segrow import cli
from segrow.data import contents
from segrow.data.contents import equal_files, find_copies

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/contents"


def written(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_files_of_one_content_are_found_whatever_they_are_called(tmp_path: Path, cache: Path) -> None:
    some = {"a": b"one", "b": b"two", "c\n\udcff": b"one", "d": b"three", "e": b"", "f": b"two", "g": b"one"}
    files = written(tmp_path / "images", some)
    assert equal_files(files) == [[0, 2, 6], [1, 5]]
    assert equal_files(files) == [[0, 2, 6], [1, 5]]  # from the cache
    assert equal_files(files[:2]) == []
    assert equal_files([]) == []


def test_only_what_could_be_equal_is_read_and_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    digest = contents._digest

    def watched(path: str) -> bytes:
        read.append(Path(path).name)
        return digest(path)

    monkeypatch.setattr(contents, "_digest", watched)
    files = written(tmp_path / "images", {"a": b"one", "b": b"two", "long": b"longer"})
    assert equal_files(files) == []
    assert sorted(read) == ["a", "b"]
    read.clear()
    assert equal_files(files) == []
    assert read == []
    status = files[1].stat()
    files[1].write_bytes(b"one")  # same size; another time
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert equal_files(files) == [[0, 1]]
    assert read == ["b"]
    [stored] = cache.glob("*.npz")
    stored.write_bytes(stored.read_bytes()[:-9])  # a broken cache is read again
    assert equal_files(files) == [[0, 1]]
    assert sorted(read) == ["a", "b", "b"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert equal_files(written(tmp_path / "images", {"a": b"one", "b": b"one"})) == [[0, 1]]


def test_copies_are_pairs_of_what_is_kept_and_what_is_not(tmp_path: Path, cache: Path) -> None:
    a, b, c, v, w = written(tmp_path / "i", {"a": b"one", "b": b"one", "c": b"two", "v": b"one", "w": b"new"})
    found = find_copies({"a": a, "b": b, "c": c}, {"v": v, "w": w})
    assert found.within == (("a", "b"),)
    assert found.across == (("v", "a"), ("v", "b"))
    assert found.notes() == (
        "1 of 2 validation images are training images too (v = a, v = b): results on them say nothing of "
        "new images",
        "1 of 3 training images are copies of others (a = b)",
    )
    assert find_copies({"a": a, "c": c}, {"w": w}).notes() == ()


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training image is a validation image too, another one stands there twice."""
    root = build_tree(tmp_path_factory.mktemp("data") / "VOC2012").root
    for original, copy in (("2007_000001", "2008_000002"), ("2007_000003", "2007_000005")):
        for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png"), ("saliency_map", "png")):
            shutil.copyfile(root / kind / f"{original}.{suffix}", root / kind / f"{copy}.{suffix}")
    return root


def test_train_says_it_and_keeps_it_in_the_results(doubled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert start(doubled, out, "--train.epochs", "1", "--steps", "1") == 0
    notes = [
        "1 of 8 validation images are training images too (2008_000002 = 2007_000001): results on them say "
        "nothing of new images",
        "1 of 24 training images are copies of others (2007_000003 = 2007_000005)",
    ]
    err = capsys.readouterr().err
    for note in notes:
        assert err.count(f"note: {note}\n") == 1
        assert results(out)["remarks"].count(note) == 1


def test_train_strict_stops_before_anything_is_written(
    doubled: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert start(doubled, tmp_path / "run", "--strict") == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith("segrow: --strict: 1 of 8 validation images are training images too")
    assert "segrow data check" in line
    assert not (tmp_path / "run").exists()
    clean = build_tree(tmp_path / "VOC2012").root
    assert start(clean, tmp_path / "run", "--strict", "--train.epochs", "1", "--steps", "1") == 0


def test_add_says_it_and_stops_when_strict(doubled: Path, tmp_path: Path, capsys: Capture) -> None:
    assert start(doubled, tmp_path / "run", "--train.epochs", "1", "--steps", "1") == 0
    names = ("background", "aeroplane", "bicycle", "zebra")
    new = folder_tree(tmp_path / "new", names, train=[{3}] * 6, val=[{3}] * 2, size=(40, 48)).root
    old = folder_tree(tmp_path / "old", names, train=[{1}, {2}] * 3, val=0, size=(40, 48), seed=1).root
    for place in (new / "images/val/val0001.png", old / "images/train/train0003.png"):
        shutil.copyfile(new / "images/train/train0002.png", place)
    shutil.copyfile(new / "images/train/train0001.png", new / "images/train/train0004.png")
    model = str(tmp_path / "run/steps/00/model")
    words = ["add", model, "--data", str(new), "--classes", "zebra", "--out", str(tmp_path / "more")]
    words += ["--check", str(old), "--workers", "0"]
    capsys.readouterr()
    assert cli.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 of 8 images to measure on are training images too" in said
    assert "val0001.png = train0002" in said
    assert "1 of 6 training images are copies of others (train0001 = train0004)" in said
    assert cli.main([*words, "--strict"]) == 2
    line = only_line(capsys.readouterr().err)
    assert "--strict: 2 of 8 images to measure on" in line
    assert "leave them out of --data or of --check" in line
    assert not (tmp_path / "more").exists()


def test_the_same_picture_in_another_file_is_another_file(tmp_path: Path, cache: Path) -> None:
    """Only `segrow data check`, which decodes every image, finds these."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    assert equal_files([tmp_path / "a.png", tmp_path / "b.bmp"]) == []
