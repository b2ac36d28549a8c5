"""What reaches a terminal: names as they are, one line each, and nothing that the terminal would obey."""

import ast
import io
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table

import segrow
from segrow import cli
from segrow.engine.log import Display
from segrow.errors import LeakError, NonFiniteLossError, UserError, shown
from segrow.terminal import Terminal, stacked

Capture = pytest.CaptureFixture[str]
ODD = "a[/red][link=http://x]\x1b[31m\n\t\x00\x9b2J\u202e\u2028\udcff$x_1$ :smile: %s {}é😀\\"
SAFE = r"a[/red][link=http://x]\x1b[31m\n\t\x00\x9b2J\u202e\u2028\udcff$x_1$ :smile: %s {}é😀" + "\\"


def test_control_characters_are_escaped_and_nothing_else_is() -> None:
    assert shown(ODD) == SAFE
    everything = "".join(map(chr, range(0x20, 0x7F))) + "äöü–…“中文кот👩‍🚀"
    assert shown(everything) == everything
    unseen = [*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F)]
    unseen += [*range(0x2066, 0x206A), 0xD800, 0xDCFF, 0xDFFF]
    for code in unseen:
        assert shown(chr(code)).isascii(), hex(code)
        assert shown(chr(code)).isprintable(), hex(code)


@pytest.mark.parametrize(
    "error", [UserError(ODD), LeakError(ODD), NonFiniteLossError(ODD), OSError(5, ODD, ODD)]
)
def test_every_error_is_one_line(error: Exception, capsys: Capture) -> None:
    def command() -> int:
        raise error

    assert cli.guarded(command) in (1, 2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert SAFE in line


_NO_TEXT = ((ODD, "\0", "\udcff"), (SAFE, r"\x00", r"\udcff"))  # and what is refused before it is looked at


def test_an_unknown_command_is_one_line(capsys: Capture) -> None:
    odd, safe = (text.replace(nul, "").replace(lone, "") for text, nul, lone in _NO_TEXT)
    assert cli.main([odd]) == 2
    assert capsys.readouterr().err.startswith(f'segrow: no command "{safe}"; there is ')


def test_lines_cells_and_titles_are_printed_as_they_are(capsys: Capture) -> None:
    table = Table(title=f"title {ODD}", caption=f"below {ODD}")
    table.add_column(f"head {ODD}")
    table.add_row(f"cell {ODD}")
    console = Terminal(wide=True)
    console.say(f"line {ODD}")
    console.print(table)
    console.print(stacked([f"first {ODD}", f"second {ODD}"]))
    Display().say(f"display {ODD}")
    captured = capsys.readouterr()
    assert captured.err == f"display {SAFE}\n"
    for what in ("line", "title", "below", "head", "cell", "first", "second"):
        assert captured.out.count(f"{what} {SAFE}") == 1, what


def test_a_bar_takes_no_name_for_markup() -> None:
    display = Display()
    display.console.file = io.StringIO()
    with display:
        assert list(display.track([1, 2], ODD, 2)) == [1, 2]
        bar = display.training(ODD, 2, 0)
        bar.advance()
        bar.show({"[/red]": 1.0})
        display.console.print(display._progress.get_renderable())
        bar.close()
    text = display.console.file.getvalue()
    assert "[/red]" in text
    assert "\x1b" not in text


def test_a_name_that_stdout_cannot_write_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    def command() -> int:
        Terminal().say("кот é")
        return 0

    assert cli.guarded(command) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u043a\\u043e\\u0442 \\xe9\n"


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards

    assert cli.guarded(lambda: 0) == 0
    assert warnings.formatwarning(UserWarning(ODD), UserWarning, "file.py", 1) == f"warning: {SAFE}\n"


def test_nothing_prints_past_the_terminal() -> None:
    """One console; a plain print is of what segrow itself has made: usage, JSON, YAML, Markdown, recipes."""
    package = Path(segrow.__file__).parent
    plain = {"add", "data", "data_check", "eval", "lineage", "methods", "options", "recipes", "reproduce"}
    plain |= {"results", "scenario", "cli"}
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if path.stem != "terminal":
            assert not imported & {"rich.console", "rich.markup"}, path
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in called or path.stem in plain, path


def test_a_closed_stdout_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it where the caller has closed the descriptor
    monkeypatch.setattr("sys.argv", ["segrow", "--version"])
    with pytest.raises(SystemExit) as stop:
        cli.entry()
    assert stop.value.code == 0


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_table_in_a_pipe_keeps_its_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("class", *(f"number {k}" for k in range(4)))
    table.add_row("traffic light", *map(str, range(1000, 1004)))
    Terminal().print(table)
    out = capsys.readouterr().out
    assert all(word in out for word in ("traffic light", "number 3", "1003"))
