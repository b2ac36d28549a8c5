"""Names of classes.txt that look like comments, remarks, numbers or columns, and are none."""

from pathlib import Path

import pytest
from test_class_files import classes

from segrow.data.class_file import read_classes
from segrow.errors import UserError

NAMES = [
    ["#1 bolt", "#2 bolt"],
    ["#add", "#sub"],
    ["# 1", "# 2"],
    ["C #", "F #"],
    ["C #", "dog"],
    ["10:30 clock", "dog"],
    ["16:9 screen", "4:3 screen"],
    ["1.5 inch", "3.5 metres"],
    ["bolt 8,10,12", "nut 1,2,3"],
    ["bolt 8,10,12", "dog"],
    ["water // sky", "land // sky"],
]


@pytest.mark.parametrize("names", NAMES, ids=[names[0] for names in NAMES])
@pytest.mark.parametrize("colours", [False, True], ids=["", "coloured"])
def test_what_all_have_or_what_is_no_remark_is_a_name(
    tmp_path: Path, names: list[str], colours: bool
) -> None:
    lines = ["background", *names]
    if colours and "8,10" in names[0]:
        return  # see test_colours.py: which is the colour?
    if colours:
        lines = [f"{name}: {k},0,0" for k, name in enumerate(lines)]
    path = classes(tmp_path, "\n".join(lines))
    found, notes = read_classes(path)
    assert found == ("background", *names)
    assert len(notes) == 1
    assert notes[0].startswith(str(path))
    assert names[0] in notes[0]
    assert notes[0].endswith(("is taken as the name", "are taken as part of them"))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["background", "#add", "dog"], r'line 2 \("#add"\) is a comment'),
        (["# names", "#1 bolt", "#2 bolt"], r'line 1 \("# names"\) is a comment'),
        (["background", "water // sky", "dog"], r'line 2 \("water // sky"\) has a remark behind'),
        (["background", "5: ignore", "dog"], r'line 2 \("5: ignore"\) has a number that is not in all'),
        (["background", "names:", "dog"], r'line 2 \("names:"\) ends with a colon'),
    ],
)
@pytest.mark.parametrize("mark", ['"', "'"])
def test_quotes_around_one_name_alone_settle_it(
    tmp_path: Path, lines: list[str], says: str, mark: str
) -> None:
    with pytest.raises(UserError, match=rf"{says}.*; put the name in quotes where that belongs to it$"):
        read_classes(classes(tmp_path, "\n".join(lines)))
    if lines[0] != "background":
        return
    quoted = [f"{mark}{line}{mark}" if k == 1 else line for k, line in enumerate(lines)]
    path = classes(tmp_path, "\n".join(quoted))
    names, notes = read_classes(path)
    assert names == ("background", *lines[1:])
    assert notes == (f"{path}: quotes around 1 name (first {lines[1]}) are left out; all in them counts",)


def test_quotes_around_some_names(tmp_path: Path) -> None:
    path = classes(tmp_path, 'background\n"# 1"\n"# 2"\ndog')
    assert read_classes(path).names == ("background", "# 1", "# 2", "dog")
    assert "around 2 names (first # 1) are" in read_classes(path).notes[0]
    with pytest.raises(UserError, match='has "dog" in lines 2 and 3'):
        read_classes(classes(tmp_path, 'background\n"dog"\ndog'))
