"""Text files: read within bounds, and what cannot be read is one line that says why and what to do."""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from segrow import plain_yaml
from segrow.documents import TEXT_BYTES, YAML_BYTES, read_json, read_text, read_yaml
from segrow.errors import UserError
from segrow.plain_yaml import DEPTH
from segrow.shapes import expect, shape_of

Reader = Callable[[Path, str], Any]
READERS: tuple[Reader, ...] = (read_text, read_json, read_yaml)


def line_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert ";" in line  # what to do
    return line


def put(folder: Path, content: bytes | str) -> Path:
    path = folder / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- what is no file


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    place = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(place)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "is missing; check the path"),
        (Path.mkdir, "is a folder, expected a file"),
        (a_pipe, "is a pipe, expected a file"),
        (a_socket, "is a socket, expected a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
        (a_loop, "cannot be read (Too many levels of symbolic links)"),
        (lambda path: path.symlink_to("nowhere"), "is missing"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, read: Reader, make: Callable[[Path], object], expected: str
) -> None:
    path = tmp_path / "x"
    make(path)
    start = time.monotonic()
    line = line_of(lambda: read(path, "the list"))
    assert line.startswith(f"the list {path} ")
    assert expected in line
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", ["x\0y", "x" * 300])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert "cannot be read (" in line_of(lambda: read_text(tmp_path / name, "list"))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")  # the tests may run as root, who may read everything

    monkeypatch.setattr(os, "open", refuse)
    line = line_of(lambda: read_text(put(tmp_path, "a"), "list"))
    assert "cannot be read (Permission denied); check the path and its permissions" in line


@pytest.mark.parametrize(("read", "limit"), [(read_text, TEXT_BYTES), (read_yaml, YAML_BYTES)])
def test_too_large(tmp_path: Path, read: Reader, limit: int) -> None:
    path = put(tmp_path, "")
    os.truncate(path, limit + 1)
    assert f"is larger than {limit >> 20} MiB" in line_of(lambda: read(path, "list"))
    assert "is larger than 3 bytes" in line_of(lambda: read_json(put(tmp_path, "1234"), "list", limit=3))
    assert read_json(put(tmp_path, "123"), "list", limit=3) == 123


@pytest.mark.skipif(not Path("/proc/kallsyms").exists(), reason="needs a file whose size is not told")
def test_a_file_that_tells_no_size_is_bounded_too() -> None:
    assert "larger than" in line_of(lambda: read_text(Path("/proc/kallsyms"), "list", limit=10))


# ---- characters


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("äöü".encode("latin-1"), "is not UTF-8 text (byte 0xe4 in line 1); save it as UTF-8"),
        (b"a\nb\n\xff", "is not UTF-8 text (byte 0xff in line 3)"),
        (b"\xed\xa0\x80", "is not UTF-8 text"),
        ("a".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("\ufeffa".encode("utf-16-be"), "is UTF-16 text"),
        ("a".encode("utf-32"), "is UTF-32 text"),
        ("a\nb".encode("utf-16-le"), "is not text (zero byte in line 1)"),
        (b"a\n\n\0", "is not text (zero byte in line 3)"),
    ],
)
def test_what_is_not_utf_8(tmp_path: Path, read: Reader, content: bytes, expected: str) -> None:
    assert expected in line_of(lambda: read(put(tmp_path, content), "list"))


@pytest.mark.parametrize("read", READERS)
def test_a_byte_order_mark_is_left_out(tmp_path: Path, read: Reader) -> None:
    assert read(put(tmp_path, b"\xef\xbb\xbf12"), "list") in (12, "12")


# ---- JSON


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not JSON (Expecting value, line 1, column 1); restore it"),
        ('{"a": 1,\n"b": }', "is not JSON (Expecting value, line 2, column 6)"),
        ('{"a": 1', "is not JSON"),
        ("{} {}", "is not JSON (Extra data"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', 'has "b" twice in one object'),
        ("[" * 10_000, f"is nested more than {DEPTH} levels deep (line 1)"),
        ("[" * 10_000 + "]" * 10_000, "levels deep"),
        ("\n" + '{"a":' * 10_000 + "1" + "}" * 10_000, "levels deep (line 2)"),
        ("9" * 5000, "holds a number of thousands of digits"),
        ('["\\u0000"]', "has an escape"),
        ('["\\ud800"]', "has an escape"),
        ('["\\udc00\\ud83d"]', "has an escape"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in line_of(lambda: read_json(put(tmp_path, content), "results"))


@pytest.mark.parametrize(
    "value",
    [
        ["[[[[" * 100, '\\"[{' * 100, "\\u0000", "\\\\ud800", "😀", "\x1b"],
        [[[1, 2], [3.5, None]]] * 1000,
        {"a": {"a": {"a": True}}},
        float("inf"),
    ],
)
def test_json_that_is_read(tmp_path: Path, value: object) -> None:
    assert read_json(put(tmp_path, json.dumps(value)), "results") == value


def test_json_may_be_as_deep_as_it_says(tmp_path: Path) -> None:
    # beside many brackets, so that the count of levels is what decides
    text = "[" + "[]," * 100 + "[" * (DEPTH - 1) + "]" * DEPTH
    assert len(read_json(put(tmp_path, text), "results")) == 101
    assert "levels deep" in line_of(lambda: read_json(put(tmp_path, f"[{text}]"), "results"))


def test_json_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(json, "loads", loads)
    assert "does not fit into memory" in line_of(lambda: read_json(put(tmp_path, "1"), "results"))


# ---- YAML

BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [", "is not YAML ("),
        ("a: b: c", "is not YAML ("),
        ("a:\n\t- b", "line 2); correct it"),
        ("a: \x07", "is not YAML ("),
        (BOMB, "line 2 has an alias (*a), which is not read; write the value itself"),
        ("a: &b 1\n*b : 2", "line 2 has a list, mapping or alias for a key"),
        ("a: 1\n<<: {b: 2}", "line 2 has a merge key (<<)"),
        ("a: !!set {b}", "line 1 has a tag (tag:yaml.org,2002:set)"),
        ("a: !!binary aGFsbG8=", "has a tag"),
        ("a: !!python/object/apply:os.system [ls]", "has a tag"),
        ("a: ! 1", "has a tag"),
        ("!!str a: 1", "has a tag"),
        ("a: 2024-01-02", "line 1 has 2024-01-02, which is a date to some readers of YAML"),
        ("a: 2024-01-02T03:04:05Z", "a date"),
        ("a: 010", 'or "010" in quotes for the text'),
        ("a: 08", "an octal number"),
        ("a: 0o17", "an octal number"),
        ("a: 0x1F", "a hexadecimal number"),
        ("a: 0b1", "a binary number"),
        ("a: 1_000", "a number to"),
        ("a: 1:30", "a number to base 60"),
        ("a: 1:30:20.5", "a number to base 60"),
        ("a: yes", "true or false to some"),
        ("a: [On]", "true or false to some"),
        ("a: 1\nb: 2\na: 3", 'line 3 has "a" twice; keep one of them'),
        ("? [a]\n: 1", "line 1 has a list, mapping or alias for a key"),
        ("--- 1\n--- 2", "line 2 begins a second document"),
        ("[" * 10_000, "nest"),  # libyaml has a limit of its own
        ("[" * 100, f"line 1 is nested more than {DEPTH} levels deep"),
        ("{a: " * 10_000, f"is nested more than {DEPTH} levels deep"),
        ("- " * 10_000 + "a", f"is nested more than {DEPTH} levels deep"),
        ("9" * 5000, "has a number of 5000 digits"),
        ('"\\0"', "has an escape"),
        ("%YAML 3.0\n--- 1", "is not YAML"),
        ("%TAG ! tag:a,2000:\n--- !b 1", "has a tag"),
    ],
)
@pytest.mark.parametrize("events", [plain_yaml._Events, yaml.SafeLoader])
def test_yaml_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: str, events: type
) -> None:
    monkeypatch.setattr(plain_yaml, "_Events", events)
    start = time.monotonic()
    assert expected in line_of(lambda: read_yaml(put(tmp_path, content), "--config"))
    assert time.monotonic() - start < 2


def test_yaml_that_is_read(tmp_path: Path) -> None:
    text = """
        words: [null, ~, true, False, "yes", 'no', "010", '2024-01-02', a b, "\\e", 1-2, 15-1, é,
                2024-01-02 x, 1e-4]
        numbers: [1, -2, 0, +3, 1.5, .5, 2., 1.0e+3, -.inf]
        empty:
        nested: {a: {b: [[]]}, true: x, 1: y}
        block: |
          12
    """
    nan = read_yaml(put(tmp_path, "[.nan]"), "--config")[0]
    assert nan != nan
    assert read_yaml(put(tmp_path, text), "--config") == {
        "words": [
            *(None, None, True, False, "yes", "no", "010", "2024-01-02", "a b", "\x1b", "1-2", "15-1", "é"),
            "2024-01-02 x",
            "1e-4",
        ],
        "numbers": [1, -2, 0, 3, 1.5, 0.5, 2.0, 1e3, float("-inf")],
        "empty": None,
        "nested": {"a": {"b": [[]]}, "true": "x", "1": "y"},
        "block": "12\n",
    }


def test_yaml_that_segrow_writes_is_read_as_it_was(tmp_path: Path) -> None:
    value = {
        "text": [
            "yes",
            "010",
            "1:30",
            "2024-01-02",
            "<<",
            "=",
            "null",
            "",
            " a",
            "a: b",
            "ä",
            "#",
            "1e5",
            "1_0",
        ],
        "dates": ["2024-01-02", "1e5", "1_0"],
        "number": [1e-05, 1e300, -0.0, 1.0, 10**15, 0.1, True, None],
    }
    assert read_yaml(put(tmp_path, yaml.safe_dump(value, sort_keys=False)), "config") == value


# ---- shapes

STEP = {"step": range(10), "seconds?": float, "names": [str], "loss": {str: (float, None)}}
GOOD = {"step": 1, "names": ["a"], "loss": {"kd": 0.5, "bce": None}, "more": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "results.json holds a list of 0, expected a mapping; train again"),
        (None, "holds null, expected a mapping"),
        ({}, "results.json lacks step, names, loss; train again"),
        ({**GOOD, "step": "1"}, 'results.json: step holds "1", expected a whole number from 0 to 9'),
        ({**GOOD, "step": True}, "step holds true"),
        ({**GOOD, "step": 1.0}, "step holds 1.0"),
        ({**GOOD, "step": -1}, "step holds -1"),
        ({**GOOD, "step": 10**400}, "step holds a whole number that is too large"),
        ({**GOOD, "seconds": float("nan")}, "seconds holds NaN, expected a finite number"),
        ({**GOOD, "seconds": float("-inf")}, "seconds holds -Infinity"),
        ({**GOOD, "seconds": 10**400}, "seconds holds a whole number that is too large"),
        ({**GOOD, "seconds": None}, "seconds holds null"),
        ({**GOOD, "names": "a"}, 'names holds "a", expected a list'),
        ({**GOOD, "names": ["a", 2]}, "names[1] holds 2, expected text"),
        ({**GOOD, "loss": {"kd": "x"}}, 'loss.kd holds "x", expected a finite number or null'),
    ],
)
def test_a_value_of_another_shape_is_one_line(value: object, expected: str) -> None:
    line = line_of(lambda: expect(value, STEP, "results.json", "train again"))
    assert expected in line
    assert line_of(lambda: expect([GOOD, value], [STEP], "x")).startswith("x: [1]")


def test_a_value_of_the_shape_passes() -> None:
    expect(GOOD, STEP, "results.json")
    expect([GOOD, None], [(STEP, None)], "results.json")
    expect([[1, 2], [3, 4]], [[int]], "results.json")
    expect("a", frozenset({"a"}), "results.json")


@pytest.mark.parametrize("bad", [-1, 1.5, True, "1", 1 << 60, float("nan")])
def test_many_numbers_are_checked_as_one_is(bad: object) -> None:
    assert "x: [2] holds" in line_of(lambda: expect([1, 2, bad, 3], [range(10)], "x"))
    expect([1, 2, 3], [range(10)], "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, "1", 1 << 60])
def test_many_floats_are_checked_as_one_is(bad: object) -> None:
    assert "x: [2] holds" in line_of(lambda: expect([1, 0.5, bad, 3.5], [float], "x"))


def test_of_alternatives_the_one_of_its_kind_tells_the_difference() -> None:
    line = line_of(lambda: expect({"step": "x"}, (None, {"step": int}), "x"))
    assert 'x: step holds "x"' in line
    assert "expected text or null" in line_of(lambda: expect(3, (str, None), "x"))
    assert 'holds "c", expected a or b' in line_of(lambda: expect("c", frozenset("ab"), "x"))


@dataclass
class Options:
    width: int = 3
    rate: float = 0.1
    rates: tuple[int, ...] | None = None
    form: Literal["conv", "linear"] = "conv"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 1.5}, "width holds 1.5, expected a whole number"),
        ({"rate": "x"}, "rate holds "),
        ({"rates": [1, "x"]}, 'rates[1] holds "x"'),
        ({"form": "round"}, 'form holds "round", expected conv or linear'),
    ],
)
def test_a_dataclass_says_what_its_fields_may_be(change: dict[str, Any], expected: str) -> None:
    assert expected in line_of(lambda: expect({"width": 1, **change}, shape_of(Options), "model.json"))
    expect({"width": 1, "rate": 1, "rates": None, "form": "conv"}, shape_of(Options), "model.json")
    expect({"rates": [1, 2]}, shape_of(Options), "model.json")
