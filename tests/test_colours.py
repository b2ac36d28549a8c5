"""RGB masks whose colours a file states become class numbers; a colour that it lacks is one line."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segrow import cli
from segrow.data import open_dataset
from segrow.data.base import SegDataset
from segrow.data.colours import ColourTable, parse_colours
from segrow.data.files import Refused
from segrow.data.given import open_given
from segrow.data.voc import NAMES
from segrow.errors import UserError
from segrow.palette import voc_palette

BLUE, RED, IGNORED = (250, 50, 83), (10, 200, 30), (255, 255, 255)
VALUES = np.zeros((12, 16), np.uint8)
VALUES[2:6, 2:9], VALUES[7:10, 3:12], VALUES[0] = 1, 2, 255
LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nblue:250,50,83::\n"
    "red:10,200,30::\nignore:255,255,255::\n"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


def painted(colours: Sequence[tuple[int, int, int]] = (BLUE, RED, IGNORED)) -> NDArray[np.uint8]:
    rgb = np.zeros((*VALUES.shape, 3), np.uint8)
    for value, colour in zip((1, 2, 255), colours, strict=True):
        rgb[value == VALUES] = colour
    return rgb


def voc_like(root: Path, mask: Image.Image, n: int = 6, folder: str = "SegmentationClass") -> Path:
    for name in ("JPEGImages", folder):
        (root / name).mkdir(parents=True, exist_ok=True)
    for k in range(n):
        Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(root / f"JPEGImages/{k:03d}.jpg")
        mask.save(root / folder / f"{k:03d}.png")
    return root


def folder(root: Path, mask: Image.Image) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for k in range(6):
        Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(root / f"images/{k:03d}.jpg")
        mask.save(root / f"masks/{k:03d}.png")
    return root


def check(data: SegDataset) -> None:
    assert data.class_names == ("background", "blue", "red")
    assert np.array_equal(data.mask("train", data.ids("train")[0]), VALUES)
    assert data.presence("train", progress=False).present.all()


def test_cvat(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()))
    (root / "labelmap.txt").write_text(LABELMAP)
    data = open_given(root, "--data")
    check(data)
    assert any("labelmap.txt: pixels of ignore count nowhere" in note for note in data.notes)


def test_colours_of_a_palette_count_where_they_are_stated(tmp_path: Path) -> None:
    indexed = Image.fromarray(painted()).quantize(8, dither=Image.Dither.NONE)
    root = voc_like(tmp_path / "d", indexed)
    (root / "labelmap.txt").write_text(LABELMAP)
    check(open_given(root, "--data"))


def test_alpha_that_says_nothing(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()).convert("RGBA"))
    (root / "labelmap.txt").write_text(LABELMAP)
    check(open_given(root, "--data"))


def test_masks_of_numbers_beside_a_labelmap(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(VALUES))
    (root / "labelmap.txt").write_text(LABELMAP)
    check(open_given(root, "--data"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("label_colors.txt", "0 0 0\tbackground\n250 50 83\tblue\n10 200 30\tred\n255 255 255\tVoid\n"),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\nblue,250,50,83\nred,10,200,30\nvoid,255,255,255\n"),
        ("colors.txt", "blue: 250, 50, 83\nred: 10, 200, 30\nignore: 255, 255, 255\n"),
        ("palette.txt", "red 10 200 30\nblue 250 50 83\ndon't care 255 255 255\n"),
    ],
)
def test_a_folder_with_a_list_of_colours(tmp_path: Path, name: str, text: str) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted()))
    (root / "classes.txt").write_text("background\nblue\nred\n")
    (root / name).write_text(text)
    check(open_given(root, "--data"))
    check(open_dataset("folder", str(root), hold_out=False))


def test_classes_with_colours(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted((BLUE, RED, (0, 0, 0)))))
    (root / "classes.txt").write_text("background: 0,0,0\nblue: 250,50,83\nred: 10,200,30\n")
    data = open_given(root, "--data")
    assert data.class_names == ("background", "blue", "red")
    assert np.array_equal(data.mask("train", "000"), np.where(VALUES == 255, 0, VALUES))


def test_vocs_own_colours(tmp_path: Path) -> None:
    palette = voc_palette(21)
    rgb = palette[np.where(VALUES == 255, 0, VALUES)]
    rgb[VALUES == 255] = (224, 224, 192)
    data = open_given(voc_like(tmp_path / "d", Image.fromarray(rgb)), "--data")
    assert data.class_names == NAMES
    assert np.array_equal(data.mask("train", "000"), VALUES)


# --- what is refused --------------------------------------------------------------------------------------


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_given(root, "--data").presence("train", progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_colour_that_is_not_stated(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted((BLUE, (12, 199, 30), IGNORED))))
    (root / "labelmap.txt").write_text(LABELMAP)
    line = refused(root)
    assert "000.png has colour 12,199,30 in 27 pixels, which labelmap.txt lacks" in line
    assert '(nearest is "red" (10,200,30)); add it there, or correct the mask' in line


def test_smoothed_colours_are_counted(tmp_path: Path) -> None:
    smooth = Image.fromarray(painted()).resize((48, 36), Image.Resampling.BICUBIC).resize((16, 12))
    root = voc_like(tmp_path / "d", smooth)
    (root / "labelmap.txt").write_text(LABELMAP)
    line = refused(root)
    assert "pixels that labelmap.txt lacks, such as" in line
    assert "it was smoothed or compressed; save masks as PNG without either" in line


def test_colours_without_a_table(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted()))
    (root / "classes.txt").write_text("background\nblue\nred\n")
    assert "is an image of mode RGB; expected a palette or grey PNG" in refused(root)
    assert "labelmap.txt" in refused(root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "background:0,0,0::\nblue\n",
            "labelmap.txt has the line 'blue'; expected a name and a colour, as crack:",
        ),
        ("a:0,0,300::\n", "has the line 'a:0,0,300::'"),
        ("a:1,2,3::\nb:1,2,3::\n", 'gives "a" and "b" the colour 1,2,3; they must differ'),
        ("a:1,2,3::\na:1,2,3::\n", 'gives "a" the colour 1,2,3 twice; remove one of the lines'),
        ("bolt 8,10,12:1,2,3::\n", "has the line 'bolt 8,10,12:1,2,3::'; expected a name and a colour"),
        ("# cat\n\n", "labelmap.txt holds no colour; expected a name and a colour, as crack:"),
    ],
)
def test_a_labelmap_that_cannot_be_read(tmp_path: Path, text: str, expected: str) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()))
    (root / "labelmap.txt").write_text(text)
    assert expected in refused(root)


def test_a_colour_of_no_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted()))
    (root / "classes.txt").write_text("background\nblue\nred\n")
    (root / "labelmap.txt").write_text("green:1,2,3::\n")
    assert (
        'labelmap.txt gives a colour to "green", which is not a class; the classes are blue, red'
        in refused(root)
    )


def test_the_table_compared_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    colours = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(9)]
    table = ColourTable("x", tuple(colours), tuple(range(9)), tuple("abcdefghi"))  # type: ignore[arg-type]
    values = rng.integers(0, 9, (8, 11))
    rgb = np.array(colours, np.uint8)[values]
    assert table.to_ids(rgb).tolist() == [[colours.index(tuple(p)) for p in row] for row in rgb.tolist()]
    with pytest.raises(Refused, match="has colour 1,1,1 in 1 pixel"):
        table.to_ids(np.array([[[1, 1, 1]]], np.uint8))


def test_names_with_spaces_and_numbers() -> None:
    assert parse_colours(["traffic light 2: 1, 2, 3"]) == [("traffic light 2", (1, 2, 3))]
    assert parse_colours(["a"]) is None
    assert parse_colours([]) is None


# --- lists and commands -----------------------------------------------------------------------------------


def test_lists_of_train_and_val(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()))
    (root / "labelmap.txt").write_text(LABELMAP)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n001\n002\n")
    (lists / "val.txt").write_text("003\n004\n")
    data = open_dataset("folder", str(root))
    assert (data.ids("train"), data.ids("val")) == (("000", "001", "002"), ("003", "004"))
    assert any(
        "1 image is in neither train.txt nor val.txt and left out (first 005)" in note for note in data.notes
    )
    (lists / "val.txt").write_text("007\n")
    assert "lists 007, which has no mask in" in refused(root)


def test_labelmes_folders(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(VALUES), folder="SegmentationClassPNG")
    (root / "SegmentationClass").mkdir()
    np.save(root / "SegmentationClass/000.npy", VALUES)
    (root / "class_names.txt").write_text("_background_\nblue\nred\n")
    check(open_given(root, "--data"))


def test_voc_as_it_is_downloaded(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "VOCdevkit/VOC2012", Image.fromarray(VALUES))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n001\n")
    (lists / "val.txt").write_text("002\n")
    data = open_dataset("voc", str(tmp_path / "VOCdevkit"))
    assert data.ids("train") == ("000", "001")
    assert (
        "has no SegmentationClassAug: trained are the 2 masks of SegmentationClass (train.txt)"
        in data.notes[-1]
    )
    shutil.rmtree(root / "SegmentationClass")
    with pytest.raises(UserError, match="has no folder SegmentationClassAug"):
        open_dataset("voc", str(root))


def test_the_scenario_of_a_cvat_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()))
    (root / "labelmap.txt").write_text(LABELMAP)
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "1-1", "--json"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert [step["classes"] for step in json.loads(shown.out)["steps"]] == [["blue"], ["red"]]
    assert "so 1 of 6 images is held out, chosen by their names" in shown.err


# --- classes of numbers that count nowhere ------------------------------------------------------------------


def with_void(root: Path) -> Path:
    """A folder whose value 2 is called void."""
    folder(root, Image.fromarray(VALUES))
    (root / "classes.txt").write_text("background\nblue\nvoid\n")
    return root


def test_a_class_called_void_counts_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = with_void(tmp_path / "d")
    data = open_given(root, "--data")
    assert np.array_equal(data.mask("train", "000"), np.where(VALUES == 2, 255, VALUES))
    assert data.presence("train", progress=False).present.tolist() == [[True, True, False]] * 6
    assert any("pixels of void count nowhere; --ignore none" in note for note in data.notes)
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["classes"] == ["blue"]
    assert cli.main([*words, "--data.ignore", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["classes"] == ["blue", "void"]


def test_the_user_names_what_counts_nowhere(tmp_path: Path) -> None:
    root = with_void(tmp_path / "d")
    data = open_given(root, "--data", ignore=["blue"])
    assert np.array_equal(data.mask("train", "000"), np.where(VALUES == 1, 255, VALUES))
    assert any("pixels of blue count nowhere; as --ignore says" in note for note in data.notes)
    with pytest.raises(UserError, match='has no class "snow" to ignore; its classes are blue, void'):
        open_given(root, "--data", ignore=["snow"])


def test_lists_of_names_of_vocs_kind(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(VALUES))
    (root / "class_names.txt").write_text("_background_\nblue\nIgnore\n")
    assert open_given(root, "--data").ignored == (2,)
    assert open_given(root, "--data", ignore=["none"]).ignored == ()
