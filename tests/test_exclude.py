"""Images that a run leaves out: train --data.exclude FILE."""

import json
from pathlib import Path

import pytest
from runs import build_tree, last_line, only_line, results, start
from trees import ade_tree, folder_tree

from segrow import cli
from segrow.data import open_dataset
from segrow.data.base import SegDataset
from segrow.data.exclude import Exclusion, read_exclusion, write_exclusion
from segrow.data.given import open_given
from segrow.errors import UserError

Capture = pytest.CaptureFixture[str]
ODD = ("train/a\nb", "val/ c ", "train/#d", "train/\x1b[31m", "train/kot 😀/e.1", "val/\udcff")


def written(path: Path, *images: str) -> str:
    write_exclusion(path, [(image, "why\nthis") for image in images])
    return str(path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "list"
    assert read_exclusion(written(path, *ODD)).images == set(ODD)
    text = path.read_text()
    assert text.count("# why\\nthis\n") == len(ODD)
    assert "\ntrain/kot 😀/e.1\n" in text
    path.write_bytes(b"\xef\xbb\xbf\r\n# x\r\ntrain/a\r\n\r\nval/b")
    assert read_exclusion(str(path)).images == {"train/a", "val/b"}
    assert read_exclusion(None).images == frozenset()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"train/a\n2007_000001\n", "line 2 is 2007_000001; expected lines of train/ID or val/ID"),
        (b"train/\n", "line 1 is train/; expected"),
        (b'"train/a\n', 'line 1: "train/a is not JSON'),
        (b'{"a": 1}\n', "line 1 is"),
        (b"train/\xff\n", "UTF-8"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_exclusion(str(tmp_path / "list"))
    assert says in str(caught.value)
    with pytest.raises(UserError, match="is missing"):
        read_exclusion(str(tmp_path / "none"))


def without(name: str, root: Path, *images: str) -> SegDataset:
    return open_dataset(name, str(root), exclude=Exclusion("--data.exclude list", frozenset(images)))


def test_every_kind_of_data_set_leaves_images_out(tmp_path: Path) -> None:
    trees = {
        "voc": build_tree(tmp_path / "VOC2012"),
        "ade20k": ade_tree(tmp_path / "ADEChallengeData2016"),
        "folder": folder_tree(tmp_path / "folder"),
    }
    for name, tree in trees.items():
        train, val = tree.ids("train"), tree.ids("val")
        data = without(name, tree.root, f"train/{train[3]}", f"val/{val[0]}", f"train/{train[0]}")
        assert data.ids("train") == tuple(i for i in train if i not in (train[0], train[3]))
        assert data.ids("val") == val[1:]
        assert sorted(data.excluded) == sorted([f"train/{train[0]}", f"train/{train[3]}", f"val/{val[0]}"])
        assert any(note.startswith("3 images are left out (--data.exclude, ids ") for note in data.notes)
        with pytest.raises(UserError) as caught:
            without(name, tree.root, "train/no", f"val/{train[0]}")
        assert str(caught.value) == (
            "--data.exclude list lists train/no, which the data do not hold (2 such lines); take the line out"
        )


def test_what_has_no_pair_can_be_left_out(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "folder")
    (tree.root / "masks/train/train0001.png").unlink()
    (tree.root / "images/val/val0002.png").unlink()
    with pytest.raises(UserError, match="has no mask"):
        open_dataset("folder", str(tree.root))
    data = without("folder", tree.root, "train/train0001", "val/val0002")
    assert (len(data.ids("train")), len(data.ids("val"))) == (11, 3)


def test_a_flat_folder_holds_out_a_fifth_of_the_rest(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "data", val=0)
    for kind in ("images", "masks"):
        for path in (tree.root / kind / "train").iterdir():
            path.rename(tree.root / kind / path.name)
        (tree.root / kind / "train").rmdir()
    everything = open_dataset("folder", str(tree.root))
    gone = everything.ids("val")[0]
    data = without("folder", tree.root, f"train/{gone}")
    assert gone not in data.ids("train") + data.ids("val")
    assert len(data.ids("train") + data.ids("val")) == 11


def test_a_folder_of_vocs_kind_leaves_images_out(tmp_path: Path) -> None:
    tree = build_tree(tmp_path / "some")
    (tree.root / "classes.txt").write_text("_background_\na\nb\nc\nd\n")
    (tree.root / "JPEGImages/2007_000002.jpg").unlink()
    data = open_given(tree.root, "--data", frozenset({"train/2007_000001", "train/2007_000002"}))
    assert data.name == "palette"
    assert "2007_000001" not in data.ids("train")
    assert data.excluded == ("train/2007_000001", "train/2007_000002")


def test_it_is_part_of_what_a_run_is(tmp_path: Path, capsys: Capture) -> None:
    root, out = build_tree(tmp_path / "VOC2012").root, tmp_path / "run"
    some, other = written(tmp_path / "some", "train/2007_000001"), written(tmp_path / "o", "val/2008_000000")
    short = ("--train.epochs", "1", "--steps", "1")
    assert start(root, out, *short, "--data.exclude", some) == 0
    stored = results(out)
    assert stored["training"]["images"] == 23
    assert stored["excluded"] == read_exclusion(some).hash
    assert [r for r in stored["remarks"] if r.startswith("1 image is left out (--data.exclude, ids ")]
    words = ["eval", str(out), "--data.root", str(root), "--data.exclude", other, "--workers", "0", "--json"]
    capsys.readouterr()
    assert cli.main(words) == 0
    assert any(r.startswith("1 image is left out") for r in json.loads(capsys.readouterr().out)["remarks"])
    renamed = tmp_path / "renamed"
    Path(some).rename(renamed)
    assert start(root, out, *short, "--data.exclude", str(renamed)) == 0  # the same ids: the same run
    capsys.readouterr()
    for more in ((), ("--data.exclude", other)):
        assert start(root, out, *short, *more) == 2
        line = last_line(capsys.readouterr().err)
        assert line.startswith("segrow: the data have changed since the run began (")
        assert "excluded: " in line
    assert start(root, tmp_path / "new", "--data.exclude", str(tmp_path / "gone")) == 2
    assert "is missing" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_scenario_counts_what_is_left(tmp_path: Path, capsys: Capture) -> None:
    root = build_tree(tmp_path / "VOC2012").root
    words = ["scenario", "--data.root", str(root), "--data.classes", "aeroplane,bicycle,bird,boat"]
    words += ["--task", "2-1", "--json", "--data.exclude", written(tmp_path / "list", "train/2007_000000")]
    assert cli.main(words) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert all("2007_000000" not in step["images"] for step in steps)
