"""The presence index: its cache reads again what changed, and nothing else."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from runs import only_line
from trees import Tree, as_sets, folder_tree, save_mask, voc_tree

from segrow.data import index, parallel
from segrow.data.base import SegDataset, Split
from segrow.data.folder import FolderDataset
from segrow.data.voc import VocDataset
from segrow.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def shown(data: SegDataset, split: Split) -> dict[str, set[int]]:
    """The presence index as sets."""
    presence = data.presence(split, progress=False)
    return as_sets(presence.ids, presence.present)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Masks that the index reads."""
    read: list[str] = []
    real = index.check_pair

    def counted(pair: tuple[str, str], values: index.Values) -> index.Bits:
        read.append(Path(pair[1]).stem)
        return real(pair, values)

    monkeypatch.setattr(index, "check_pair", counted)
    return read


def rewrite(tree: Tree, image_id: str, classes: list[int]) -> None:
    """Another mask for an image; surely with another time of modification."""
    file = tree.root / f"SegmentationClassAug/{image_id}.png"
    before = file.stat().st_mtime_ns
    save_mask(np.resize(np.array(classes, np.uint8), (24, 32)), file)
    os.utime(file, ns=(before + 1, before + 1))
    tree.shown["train"][image_id] = set(classes)


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    tree = voc_tree(tmp_path / "VOC2012")
    listing = tree.root / "ImageSets/Segmentation/train_aug.txt"

    def check(expected: list[str]) -> None:
        reads.clear()
        assert shown(VocDataset(tree.root), "train") == tree.shown["train"]
        assert reads == expected

    ids = list(tree.ids("train"))
    check(ids)
    check([])
    rewrite(tree, ids[5], [7, 9])
    check([ids[5]])
    check([])
    image = tree.root / f"JPEGImages/{ids[3]}.jpg"  # an image of another size would not fit its mask any more
    os.utime(image, ns=(1, 1))
    check([ids[3]])
    # deleted
    gone = tree.shown["train"].pop(ids[0])
    listing.write_text("\n".join(ids[1:]))
    check([])
    # and added again, with a new one
    tree.shown["train"]["new"] = {4}
    tree.shown["train"][ids[0]] = gone
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        shutil.copy(tree.root / folder / f"{ids[1]}.{suffix}", tree.root / folder / f"new.{suffix}")
    save_mask(np.full((24, 32), 4, np.uint8), tree.root / "SegmentationClassAug/new.png")
    listing.write_text("\n".join([*ids[1:], "new", ids[0]]))
    check(["new"])
    check([])


def test_another_number_of_classes_makes_a_new_index(tmp_path: Path, reads: list[str]) -> None:
    tree = folder_tree(tmp_path / "fruit", train=3, val=0)
    FolderDataset(tree.root).presence("train")
    (tree.root / "classes.txt").write_text("background\napple\npear\nplum\nfig\n")
    assert FolderDataset(tree.root).presence("train").present.shape == (3, 5)
    assert len(reads) == 6


def test_a_broken_cache_is_read_again(
    tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = folder_tree(tmp_path / "fruit", train=3, val=0)
    FolderDataset(tree.root).presence("train")
    (cached,) = (tmp_path / "cache/presence").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    FolderDataset(tree.root).presence("train")
    assert f"note: the index of the masks {cached} is damaged; it is made again" in capsys.readouterr().err
    assert shown(FolderDataset(tree.root), "train") == tree.shown["train"]
    assert len(reads) == 6


def test_two_data_sets_do_not_share_an_index(tmp_path: Path, reads: list[str]) -> None:
    one = folder_tree(tmp_path / "one", seed=1)
    two = folder_tree(tmp_path / "two", seed=2)
    for tree in (one, two, one):
        assert shown(FolderDataset(tree.root), "train") == tree.shown["train"]
        assert shown(FolderDataset(tree.root), "val") == tree.shown["val"]
    assert len(reads) == 2 * 16  # the second time the first one is still known


def test_a_cache_that_cannot_be_written_is_only_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = folder_tree(tmp_path / "fruit", train=3, val=0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "file"))
    assert shown(FolderDataset(tree.root), "train") == tree.shown["train"]
    assert "set SEGROW_CACHE to a folder that can be written" in only_line(capsys.readouterr().err)


def test_after_an_error_the_good_part_is_kept(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 2)
    tree = voc_tree(tmp_path / "VOC2012", train=6, val=1)
    ids = tree.ids("train")
    rewrite(tree, ids[4], [1, 99])
    with pytest.raises(UserError, match="value 99"):
        VocDataset(tree.root).presence("train", progress=False)
    rewrite(tree, ids[4], [1, 9])
    reads.clear()
    assert shown(VocDataset(tree.root), "train") == tree.shown["train"]
    assert reads == list(ids[4:])


def test_many_masks_are_read_by_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = folder_tree(tmp_path / "fruit", train=parallel.SERIAL + 10, val=0, size=(4, 6))
    data = FolderDataset(tree.root)
    presence = data.presence("train", progress=True)
    assert {
        i: set(np.flatnonzero(r).tolist()) for i, r in zip(presence.ids, presence.present, strict=True)
    } == tree.shown["train"]
    out, _ = capfd.readouterr()
    assert out == ""  # the bar goes to stderr: stdout is for results
    started = time.perf_counter()
    data.presence("train")
    assert time.perf_counter() - started < 0.5


def test_an_error_comes_out_of_the_processes_as_one_line(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit", train=parallel.SERIAL + 10, val=0, size=(4, 6))
    for bad in ("train0200", "train0100"):
        save_mask(np.full((4, 6), 77, np.uint8), tree.root / f"masks/train/{bad}.png")
    with pytest.raises(UserError, match=r"train0100.png has value 77") as caught:
        FolderDataset(tree.root).presence("train", progress=False)
    assert "\n" not in str(caught.value)
