"""Lists of colours: what is a comment and what a class, several colours of one class, numbers beside them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_colours import BLUE, IGNORED, RED, VALUES, folder, painted, refused, voc_like

from segrow.data import open_dataset
from segrow.data.colours import parse_colours
from segrow.data.given import open_given
from segrow.errors import UserError

TITLE = "# label:color_rgb:parts:actions\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("sign", ["#1", "# 1", "#add", "#facade"])
@pytest.mark.parametrize("form", ["{}:250,50,83::", "{},250,50,83", "{} 250 50 83", "{}: #fa3253"])
@pytest.mark.parametrize("numbers", [False, True], ids=["colours", "numbers"])
def test_a_class_may_begin_as_a_comment_does(tmp_path: Path, sign: str, form: str, numbers: bool) -> None:
    shown = np.where(VALUES == 255, 0, VALUES).astype(np.uint8)
    mask = shown if numbers else painted((BLUE, RED, (0, 0, 0)))
    root = voc_like(tmp_path / "d", Image.fromarray(mask), n=1)
    lines = ("background:0,0,0::", "# a comment", form.format(sign), "red:10,200,30::")
    (root / "labelmap.txt").write_text(TITLE + "\n".join(lines))
    data = open_given(root, "--data")
    data.presence("train", progress=False)
    assert data.class_names == ("background", sign, "red")
    assert np.array_equal(data.mask("train", "000"), shown)
    (told,) = [note for note in data.notes if "a comment begins" in note]
    assert told.endswith(
        f'labelmap.txt: "{sign}" has a colour, so it is taken as a class; a comment begins with # and has '
        "no colour"
    )
    of_numbers = [note for note in data.notes if "numbers count" in note]
    assert ["or without it of the lines with a colour" in note for note in of_numbers] == [True] * numbers


@pytest.mark.parametrize(
    "line", ["# 250 50 83 cat", "#cat", "# cat: 1,2", "#", "  # made in 2024, by 3 of us"]
)
def test_comments(line: str) -> None:
    assert parse_colours([line, "a:1,2,3::"]) == [("a", (1, 2, 3))]


def test_the_classes_of_a_folder_may_begin_so_too(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted((BLUE, RED, (0, 0, 0)))))
    (root / "classes.txt").write_text("background: 0,0,0\n#1: 250,50,83\n#2: 10,200,30\n")
    data = open_dataset("folder", str(root))
    assert data.class_names == ("background", "#1", "#2")
    assert any(note.endswith("classes.txt: all of '#1' is taken as the name") for note in data.notes)


SEVERAL = "background:0,0,0::\nblue:250,50,83::\nblue:10,200,30::\nred:255,255,255::\n"


def test_a_class_of_several_colours(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()), n=1)
    (root / "labelmap.txt").write_text(SEVERAL)
    data = open_given(root, "--data")
    assert data.class_names == ("background", "blue", "red")
    assert np.array_equal(data.mask("train", "000"), np.choose(np.clip(VALUES, 0, 3), [0, 1, 1, 2]))
    assert any(
        note.endswith('labelmap.txt gives 2 colours to "blue", which is one class') for note in data.notes
    )


def test_the_same_of_what_counts_nowhere(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(painted()), n=1)
    (root / "labelmap.txt").write_text(SEVERAL.replace("blue", "void"))
    data = open_given(root, "--data")
    assert data.class_names == ("background", "red")
    assert np.array_equal(data.mask("train", "000"), np.choose(np.clip(VALUES, 0, 3), [0, 255, 255, 1]))


def test_numbers_beside_several_colours_of_a_class_need_a_list(tmp_path: Path) -> None:
    root = voc_like(tmp_path / "d", Image.fromarray(np.clip(VALUES, 0, 2)), n=1)
    (root / "labelmap.txt").write_text(SEVERAL)
    assert "labelmap.txt does not say which: its lines do not begin with background, one between" in refused(
        root
    )
    assert "or a class has several; add a classes.txt whose line i (from 0) names value i" in refused(root)
    (root / "classes.txt").write_text("background\nblue\nred\n")
    assert np.array_equal(open_given(root, "--data").mask("train", "000"), np.clip(VALUES, 0, 2))


def test_one_colour_of_two_classes_in_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", Image.fromarray(painted((BLUE, RED, IGNORED))))
    (root / "classes.txt").write_text("background: 0,0,0\na: 1,2,3\nb: 1,2,3\n")
    with pytest.raises(UserError, match=r'gives "a" and "b" the colour 1,2,3; they must differ'):
        open_dataset("folder", str(root))
