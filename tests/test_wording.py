"""Messages: words that depend on a number, and what to do about a value or a name in the user's files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only_line
from trees import folder_tree, voc_tree

from segrow import cli
from segrow.data.class_file import read_classes
from segrow.data.colours import parse_colours
from segrow.data.folder import FolderDataset
from segrow.data.given import PaletteDataset
from segrow.data.voc import VocDataset
from segrow.devices import choose_device
from segrow.errors import UserError
from segrow.wording import are, count, have


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def test_one_and_many() -> None:
    assert [count(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [count(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    assert (are(1), are(2), have(1), have(0)) == ("is", "are", "has", "have")


@pytest.mark.parametrize("asked", ["mps", "cuda:7", "7", "nonsense", "", "meta"])
def test_a_device_that_segrow_does_not_use(asked: str) -> None:
    with pytest.raises(
        UserError, match=rf"--device is {asked}, expected auto \(a GPU if there is one\), cpu"
    ) as e:
        choose_device(asked, "--device")
    assert ("CUDA_VISIBLE_DEVICES=7" in str(e.value)) == ("7" in asked)


def test_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda, but torch sees no GPU; use --device cpu"):
        choose_device("cuda", "--device")
    assert choose_device("auto", "--device") == choose_device("cpu", "--device") == "cpu"


def test_a_value_above_the_list_may_be_a_line_that_is_missing(tmp_path: Path) -> None:
    tree = folder_tree(tmp_path / "fruit")
    names = (tree.root / "classes.txt").read_text().splitlines()
    (tree.root / "classes.txt").write_text("\n".join(names[1:]))  # background was left out
    with pytest.raises(UserError, match=r"has value \d.* where the list of classes lacks backgr"):
        FolderDataset(tree.root).presence("train", progress=False)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("crack:#FF0080::", ("crack", (255, 0, 128))),
        ("crack, #ff0080", ("crack", (255, 0, 128))),
        ("#ff0080 crack", ("crack", (255, 0, 128))),
    ],
)
def test_hexadecimal_colours(line: str, found: tuple[str, tuple[int, int, int]]) -> None:
    assert parse_colours(["# label:color_rgb:parts:actions", line]) == [found]


@pytest.mark.parametrize("line", ["crack:#ff00", "crack#ff0080", "crack:#ff00801"])
def test_what_is_no_colour(line: str) -> None:
    assert parse_colours([line]) is None


def test_masks_in_hexadecimal_colours(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[:2] = (250, 50, 83)
    Image.fromarray(mask).save(root / "SegmentationClass/a.png")
    Image.fromarray(mask).save(root / "JPEGImages/a.png")
    (root / "labelmap.txt").write_text("background:#000000::\ncrack:#fa3253::\n")
    data = PaletteDataset(root)
    assert data.class_names == ("background", "crack")
    assert data.mask("train", "a").tolist() == [[1] * 4] * 2 + [[0] * 4] * 2


@pytest.mark.parametrize(
    "text",
    ['"background"\n"a, b"\n', '"background",\n"a, b",\n', "- background\n- a, b", "background,\na, b,"],
)
def test_signs_around_every_name_are_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    names, notes = read_classes(path)
    assert names == ("background", "a, b")
    assert notes == (f"{path}: the quotes, dashes or commas around the names are left out",)
    path.write_text("background\n- a\n")  # not every line: it may be the name
    assert read_classes(path) == (("background", "- a"), (f"{path}: all of '- a' is taken as the name",))


def test_a_name_twice_in_a_list_is_told(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "VOC2012").root
    path = root / "ImageSets/Segmentation/val.txt"
    names = path.read_text().split()
    path.write_text("\n".join([*names, f"{names[0]}.jpg", *names[:1]]))
    data = VocDataset(root)
    assert data.ids("val") == tuple(names)
    assert f"{path}: 2 lines repeat an image of the list and are left out (first {names[0]})" in data.notes


@pytest.mark.parametrize("command", ["train", "eval", "predict", "report"])
def test_a_device_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """Before anything is read."""
    option = "--train.device" if command == "train" else "--device"
    words = {
        "train": ["--data.root", str(tmp_path)],
        "eval": [str(tmp_path)],
        "predict": [str(tmp_path), "x.jpg", "--out", str(tmp_path / "out")],
        "report": [str(tmp_path)],
    }[command]
    assert cli.main([command, *words, option, "mps"]) == 2
    assert f"{option} is mps, expected auto" in only_line(capsys.readouterr().err)
