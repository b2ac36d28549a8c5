"""Class names on the command line: commas, quotes, Unicode, dashes; alike for all options."""

import json
from pathlib import Path

import pytest
from runs import only_line
from trees import folder_tree

from segrow import cli
from segrow.class_lists import name_hint, one_name, split_names
from segrow.commands import options as run_options
from segrow.data.class_file import read_classes
from segrow.data.folder import ignored_values
from segrow.errors import UserError
from segrow.model.foreign import check_names
from segrow.scenario import divide_classes

DOOR = "door, double door"
SPLITS: list[tuple[str, list[str]]] = [
    ("", []),
    ("cat", ["cat"]),
    ("cat,dog", ["cat", "dog"]),
    (" cat , dog ", ["cat", "dog"]),
    ("[cat,dog]", ["cat", "dog"]),
    ('["cat","dog"]', ["cat", "dog"]),
    (r"door\, double door,wall", [DOOR, "wall"]),
    (json.dumps([DOOR, "wall"]), [DOOR, "wall"]),
    ("traffic light,stop sign", ["traffic light", "stop sign"]),
    ("don't care,12\" screen", ["don't care", '12" screen']),
    ("[/red]", ["[/red]"]),
    ("[a],[b]", ["[a]", "[b]"]),
    ("-dash,--two", ["-dash", "--two"]),
    ("cafe\u0301", ["caf\u00e9"]),
    ("犬,кот", ["犬", "кот"]),
]


@pytest.mark.parametrize(("text", "names"), SPLITS)
def test_a_list(text: str, names: list[str]) -> None:
    assert split_names(text, "--classes") == names


@pytest.mark.parametrize(("text", "names"), [case for case in SPLITS if case[0]])
def test_the_options_of_a_run_read_it_alike(text: str, names: list[str]) -> None:
    assert run_options.parse_run([f"--data.classes={text}"], "train", "", "").config.data.classes == tuple(
        names
    )


@pytest.mark.parametrize("text", ["a,,b", ",a", "a,", '["a",""]', ","])
def test_an_empty_name_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="has an empty name in it; expected names such as cat,dog"):
        split_names(text, "--classes")


def test_one_name() -> None:
    assert one_name(DOOR) == one_name(r"door\, double door") == DOOR
    assert one_name(r"a\,b", [r"a\,b"]) == r"a\,b"  # a model may know just that


def test_the_hint_shows_how_a_comma_is_written() -> None:
    assert name_hint("door", ["wall", DOOR]) == (
        ' Did you mean "door, double door"? On the command line write a comma within a name as "\\," '
        '("door\\, double door"), or the list as JSON.'
    )
    assert name_hint("shep", ["cat", "sheep"]) == ' Did you mean "sheep"?'
    assert name_hint("zebra", ["cat", "sheep"]) == ""


def test_classes_of_a_file_are_composed(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\ncafe\u0301\n", encoding="utf-8")
    assert read_classes(tmp_path / "classes.txt").names == ("background", "caf\u00e9")


@pytest.mark.parametrize("text", [r"door\, double door", json.dumps([DOOR])])
def test_a_scenario_of_such_a_class(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGROW_CACHE", str(tmp_path / "cache"))
    root = folder_tree(tmp_path / "data", ("background", "wall", DOOR), 6, 2).root
    words = ["scenario", "--data.name", "folder", "--data.root", str(root), "--task", "offline", "--json"]
    assert cli.main([*words, "--data.classes", text]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["classes"] == [DOOR]
    assert cli.main([*words, "--data.classes", DOOR]) == 2
    assert 'unknown class "door"' in (line := only_line(capsys.readouterr().err))
    assert r"door\, double door" in line


def test_a_leading_dash(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["add", "model", "--data", "x", "--classes", "-dash"]) == 2
    line = only_line(capsys.readouterr().err)
    assert "A value that begins with a dash is written --classes=-VALUE." in line


UNSEEN = ["\u200b", "\u00ad", "\u00a0", "\ufeff", "\u202e", "\u2060"]


@pytest.mark.parametrize("unseen", UNSEEN)
def test_what_is_not_seen_around_a_typed_name_is_one_line(unseen: str) -> None:
    says = f'has a character that is not seen beside "dog" ("dog{ascii(unseen)[1:-1]}"); type the name anew'
    for read in (
        lambda: split_names(f"cat, dog{unseen}", "--classes"),
        lambda: split_names(json.dumps(["cat", f"dog{unseen}"]), "--classes"),
        lambda: run_options.parse_run([f"--data.classes=cat,dog{unseen}"], "train", "", ""),
        lambda: one_name(f"dog{unseen}"),
        lambda: divide_classes("folder", NAMES, "1-1", ["cat", f"dog{unseen}"]),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert says in str(caught.value)
    assert split_names(" cat ,\tdog\n", "--classes") == ["cat", "dog"]


NAMES = ("background", "cat", "dog", "hot dog", "نیم\u200cفاصله")


@pytest.mark.parametrize("unseen", UNSEEN)
def test_what_is_not_seen_within_is_shown_where_no_class_is_called_so(unseen: str, tmp_path: Path) -> None:
    shown = f'"do{ascii(unseen)[1:-1]}g" has a character in it that is not seen; type it anew.'
    name = f"do{unseen}g"
    with pytest.raises(UserError) as caught:
        divide_classes("folder", NAMES, "1-1", ["cat", name])
    assert shown in str(caught.value)
    for check in (
        lambda: ignored_values(NAMES, [name], tmp_path),
        lambda: check_names(tmp_path, [name, "a"], 3),
    ):
        with pytest.raises(UserError, match="has a character in it that is not seen; type it anew"):
            check()
    near = ' Did you mean "hot dog"?' if unseen == "\u00a0" else ' Did you mean "dog"?'
    typed = f"hot{unseen}dog" if unseen == "\u00a0" else name
    assert name_hint(typed, NAMES).endswith(near)


def test_a_class_that_is_written_with_a_joiner_can_be_named() -> None:
    assert divide_classes("folder", NAMES, "1-1", [NAMES[4], "cat"])[0] == [4, 1]
