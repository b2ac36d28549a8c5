"""classes.txt as people write it: numbers, one line, lists of a language, characters not seen."""

import json
from pathlib import Path

import pytest
from PIL import Image
from runs import only_line
from trees import folder_tree

from segrow import cli
from segrow.class_lists import name_notes, plain_name
from segrow.data import open_dataset
from segrow.data.class_file import read_classes
from segrow.data.given import PaletteDataset, nothing_in
from segrow.errors import UserError

THREE = ("background", "cat", "dog")


def classes(folder: Path, text: str) -> Path:
    path = folder / "classes.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    "form", ["{1} {0}", "{1},{0}", "{1}\t{0}", "{1}: {0}", "{1} ({0})", "{1}={0}", "{1} # {0}", "{0} {1}"]
)
@pytest.mark.parametrize("bare", [False, True], ids=["all", "but background"])
def test_numbers_that_are_the_lines_own_are_left_out(tmp_path: Path, form: str, bare: bool) -> None:
    lines = [form.format(k, name) for k, name in enumerate(THREE)]
    path = classes(tmp_path, "\n".join([THREE[0], *lines[1:]] if bare else lines))
    side = "in front of" if form.startswith("{0}") else "behind"
    assert read_classes(path) == (
        THREE,
        (f"{path}: the numbers {side} the names are left out; put every name in quotes where the number "
         "belongs to it",),
    )  # fmt: skip


def test_quotes_keep_the_numbers(tmp_path: Path) -> None:
    assert read_classes(classes(tmp_path, '"background 0"\n"cat 1"\n"dog 2"')).names[1:] == ("cat 1", "dog 2")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("background 1\ncat 2\ndog 3", r'number 1 \("background"\) in line 0; line i'),
        ("background\ncat,7\ndog,8", r'number 7 \("cat"\) in line 1; line i'),
        ("background\n7: cat\n8: dog", r'number 7 \("cat"\) in line 1; line i'),
        ("0 background\n2 cat\n1 dog", r'number 2 \("cat"\) in line 1; line i'),
    ],
)
def test_other_numbers_are_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(
        UserError, match=f"{line}.*sort the lines, or remove the numbers; put every name in quotes"
    ):
        read_classes(classes(tmp_path, text))


@pytest.mark.parametrize(
    ("first", "second"), [("Boeing 747", "Airbus 320"), ("1 cat", "5 dogs"), ("cat 1", "")]
)
def test_numbers_that_may_be_part_of_names_stay_and_are_told(tmp_path: Path, first: str, second: str) -> None:
    path = classes(tmp_path, f"background\n{first}\n{second}\n")
    names, (note,) = read_classes(path)
    assert names == tuple(filter(None, ("background", first, second)))
    assert note.endswith(f'the names ("{first}") are taken as part of them')


def test_numbers_that_tell_names_apart_belong_to_them(tmp_path: Path) -> None:
    path = classes(tmp_path, "class 0\nclass 1\nclass 2\n")
    assert read_classes(path).names == ("background", "class 1", "class 2")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("background,cat,dog\n", "one line, with commas between the names"),
        ("background;cat;dog", "one line, with semicolons between"),
        ("background\tcat\tdog", "one line, with tabs between"),
        (json.dumps(THREE), "a list in brackets, such as JSON's"),
        (json.dumps(THREE, indent=2), "a list in brackets, such as JSON's"),
        (json.dumps({"0": "background", "1": "cat"}, indent=2), "a list in brackets, such as JSON's"),
        (str(list(THREE)), "a list in brackets, such as JSON's"),
    ],
)
def test_another_form_is_refused_by_its_name(tmp_path: Path, text: str, got: str) -> None:
    with pytest.raises(UserError, match=f"{got}.*; expected one name per line, background first"):
        read_classes(classes(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "# mine\ncat\ndog",
            r'line 1 \("# mine"\) is a comment; take it out, for line i \(from 0\)',
        ),
        ("background\n#animals\ncat\ndog", r'line 2 \("#animals"\) is a comment'),
        ("background\ncat\ndog\n// end", r'line 4 \("// end"\) is a comment'),
        ("background\ncat  # felis\ndog", r'line 2 \("cat  # felis"\) has a remark behind the name'),
        ("0: background\n1: cat // felis", r'line 2 \("cat // felis"\) has a remark'),
        ("names:\n- background\n- cat", r'line 1 \("names:"\) ends with a colon, as a heading does'),
        ("background\ncat\n255: ignore", r'line 3 \("255: ignore"\) has a number that is not in all lines'),
        ("background,none\ncat,animal", r'has several columns \(line 2 is "cat,animal"\); expected one name'),
    ],
)
def test_lines_that_are_no_names_are_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(
        UserError, match=rf"classes\.txt:? {line}.*; put (the|every) name in quotes where that belongs"
    ):
        read_classes(classes(tmp_path, text))
    quoted = "\n".join(f'"{line}"' for line in text.split("\n") if not line.startswith("- "))
    if quoted.count("\n"):
        assert read_classes(classes(tmp_path, quoted)).names[1] == text.split("\n")[1]


@pytest.mark.parametrize("line", ["- cat", "cat,", "door, double door", "a|b", "255 ignore"])
def test_signs_and_numbers_that_other_lines_lack_are_told(tmp_path: Path, line: str) -> None:
    path = classes(tmp_path, f"background\n{line}\ndog")
    assert read_classes(path) == (
        ("background", line, "dog"),
        (f"{path}: all of '{line}' is taken as the name",),
    )


@pytest.mark.parametrize("name", ["C#", "c++", "a/b", "#cat", "AC:DC"])
def test_names_with_signs_of_their_own(tmp_path: Path, name: str) -> None:
    text = f'"background"\n"{name}"' if name[0] == "#" else f"background\n{name}"
    assert read_classes(classes(tmp_path, text)).names == ("background", name)


def test_numbers_and_quotes_of_a_dictionary_go_together(tmp_path: Path) -> None:
    names, notes = read_classes(classes(tmp_path, "0: 'background',\n1: 'cat',\n2: 'dog',\n"))
    assert (names, len(notes)) == (THREE, 2)


def test_the_mark_of_dos_at_the_end_is_no_class(tmp_path: Path) -> None:
    assert read_classes(classes(tmp_path, "background\r\ncat\r\ndog\r\n\x1a")) == (THREE, ())


def test_comments_between_colours_are_told(tmp_path: Path) -> None:
    path = classes(tmp_path, "background: 0,0,0\n# animals\ncat: 9,0,0\ndog: 0,9,0")
    assert read_classes(path) == (THREE, (f"{path}: 1 line without a colour is left out",))


# ---- names that are not what they look like


@pytest.mark.parametrize(
    "unseen", ["\u200b", "\u00ad", "\u00a0", "\ufeff", "\u2060", "\u200e", "\u3164", "\x07", "\u2028"]
)
def test_what_is_not_seen_is_left_out_around_names_and_told_within(tmp_path: Path, unseen: str) -> None:
    around = classes(tmp_path, f"background\n{unseen}cat\ndog{unseen}\n")
    names, (note,) = read_classes(around)
    assert names == THREE
    shown = ascii(unseen)[1:-1]
    assert note == f'{around}: characters that are not seen, around names, are left out ("{shown}cat")'
    within = classes(tmp_path, f"background\nc{unseen}at\ndog\n")
    names, (note,) = read_classes(within)
    assert names == ("background", f"c{unseen}at", "dog")
    assert note.startswith(f'{within}: "c{shown}at" has a character in it that is not seen')


def test_names_alike_are_told_and_two_classes() -> None:
    (note,) = name_notes("f", ["Cat", "dog", "cat"])
    assert note == (
        'f: "Cat" and "cat" are two classes, though the names are nearly the same; name them '
        "alike where one is meant"
    )
    assert len(name_notes("f", ["traffic light", "traffic_light", "\uff23at", "cat"])) == 2
    for one, other in (
        ("cat", "cat_1"),
        ("cat", "cat (2)"),
        ("cat", "cats"),
        ("box", "boxes"),
        ("a b", "a-b."),
    ):
        assert name_notes("f", [other, "dog", one]) == (
            f'f: "{one}" and "{other}" are two classes, though the names are nearly the same; name them '
            "alike where one is meant",
        )
    assert name_notes("f", ["type 1", "type 2", "1", "2", "bus", "glass"]) == ()
    assert name_notes("f", ["c", "c++", "कि", "की", "-", "_", "café"]) == ()


def test_plain_names() -> None:
    assert plain_name(" \u200bdoor way\u00a0\n") == "door way"
    assert plain_name("\u200b ") == ""


def test_the_names_of_a_list_of_colours(tmp_path: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "labelmap.txt").write_text(
        "background:0,0,0::\ncat\u200b:255,0,0::\nCat:0,255,0::\n", encoding="utf-8"
    )
    data = PaletteDataset(tmp_path)
    assert data.class_names == ("background", "cat", "Cat")
    assert [note.partition(": ")[2][:20] for note in data.notes] == [
        "characters that are ",
        '"cat" and "Cat" are ',
    ]


def test_a_command_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    root = folder_tree(tmp_path / "data", ("background", "Cat", "cat\u200b"), 4, 2).root
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline", "--json"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"][0]["classes"] == ["Cat", "cat"]
    assert '("cat\\u200b")' in err
    assert '"Cat" and "cat" are two classes' in err
    classes(root, "background,Cat,cat")
    assert cli.main(words) == 2
    assert "expected one name per line" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Classes.TXT", "Classes.TXT is there: rename it to classes.txt"),
        *(
            (name, f"{name} is there: write its names into classes.txt, background first, one a line")
            for name in ("labelmap.txt", "class_dict.csv", "classes.names", "Labels.txt")
        ),
    ],
)
def test_a_missing_list_names_the_file_that_has_its_names(tmp_path: Path, name: str, said: str) -> None:
    root = folder_tree(tmp_path / "data", train=2, val=1).root
    (root / "classes.txt").rename(root / name)
    with pytest.raises(UserError) as error:
        open_dataset("folder", str(root))
    assert str(error.value) == f"{root / 'classes.txt'} is missing; it names the classes; {said}"
    assert nothing_in(root, "--data").endswith(
        f"; images and masks are there, classes.txt is missing; {said}"
    )
