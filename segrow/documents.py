"""Text that somebody else may have written: read within bounds, refused in one line.

config = read_yaml(Path("config.yaml"), "--config", {"task": str, "data?": {str: (str, int, None)}})

Every text file of a user or of a run comes through here. So no file can hang a command, fill its memory,
reach the limit of recursion, or be read in a way that its writer did not mean.
"""

import io
import json
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

from .errors import UserError
from .plain_yaml import DEPTH, plain_value
from .resources import machine_refuses
from .shapes import Shape, expect

MIB = 1 << 20
_PART = MIB
TEXT_BYTES, YAML_BYTES, JSON_BYTES = 64 * MIB, 2 * MIB, 256 * MIB
"""Most bytes of a file: lists of names; configurations; results and records. COCO files get a larger one."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_WIDE = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


# ---- files


def open_file(path: Path, what: str, limit: int | None = None) -> io.BufferedReader:
    """Open a regular file; a pipe or a device is refused before anything waits for it.

    Args:
        what: How an error calls the file.
        limit: Most bytes that it may have.

    Raises:
        UserError: It is missing, may not be read, is no regular file, or is too large.
        OSError: The machine lacks something, such as open files: the file may be good.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if machine_refuses(error):
            raise
        raise UserError(_cannot_open(path, what, error)) from None
    try:
        status = os.fstat(handle)
        for is_kind, name in _KINDS:
            if is_kind(status.st_mode):
                raise UserError(f"{what} {path} is {name}, expected a file; give the path of a file")
        if limit is not None and status.st_size > limit:
            raise UserError(_too_large(path, what, limit))
    except UserError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _cannot_open(path: Path, what: str, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{what} {path} is missing; check the path"
    kind = next((name for is_kind, name in _KINDS if is_kind(_mode(path))), None)
    if kind is not None:
        return f"{what} {path} is {kind}, expected a file; give the path of a file"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"{what} {path} cannot be read ({reason}); check the path and its permissions"


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0


def _too_large(path: Path, what: str, limit: int) -> str:
    size = f"{limit // MIB} MiB" if limit >= MIB else f"{limit} bytes"
    return f"{what} {path} is larger than {size}, which no such file is; check that it is the right file"


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: As `open_file`; or reading fails.
    """
    content = bytearray()
    with open_file(path, what, limit) as file:
        try:
            # in parts: a read makes room for all that it is asked for before it reads
            while len(content) <= limit and (part := file.read(_PART)):
                content += part
        except OSError as error:
            if machine_refuses(error):
                raise
            raise UserError(f"{what} {path} cannot be read ({error.strerror}); copy it again") from None
    if len(content) > limit:  # it grew, or the system gives no size (as for /proc)
        raise UserError(_too_large(path, what, limit))
    return bytes(content)


def check_archive(path: Path, what: str) -> None:
    """Refuse a file that unpacks to more than it has bytes: torch and numpy compress nothing.

    Args:
        what: How an error calls the file.

    Raises:
        UserError: It is such a file, is missing, or no regular file.
    """
    with open_file(path, what) as file:
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return  # an older form, or no such file at all: torch says so
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise UserError(f"{what} {path} is compressed, which it should not be; save it again as it was made")


def read_text(path: Path, what: str, limit: int = TEXT_BYTES) -> str:
    """A text in UTF-8, with or without a byte order mark; line ends as they are.

    Args:
        what: How an error calls the file.
        limit: Most bytes that it may have.

    Raises:
        UserError: As `open_file`; or it is not UTF-8 text.
    """
    return decode(read_bytes(path, what, limit), f"{what} {path}")


def decode(content: bytes, where: str) -> str:
    """The content of a file as text.

    Args:
        where: The file, for errors.

    Raises:
        UserError: It is not UTF-8 text.
    """
    for mark, name in _WIDE:
        if content.startswith(mark):
            raise UserError(f"{where} is {name} text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{content[error.start]:02x} in line {line}"
        raise UserError(f"{where} is not UTF-8 text ({what}); save it as UTF-8") from None
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise UserError(f"{where} is not text (zero byte in line {line}); save it as UTF-8 text")
    return text


# ---- JSON


def read_json(
    path: Path,
    what: str,
    shape: Shape = object,
    *,
    limit: int = JSON_BYTES,
    fix: str = "restore it",
) -> Any:
    """The value in a JSON file.

    Args:
        what: How an error calls the file.
        shape: What is expected in it, see `Shape`.
        limit: Most bytes that it may have.
        fix: What to do about a damaged one.

    Raises:
        UserError: As `read_text`; it is not JSON, is too deep, names a key twice, or holds something else.
    """
    return parse_json(read_bytes(path, what, limit), f"{what} {path}", shape, fix=fix)


def parse_json(content: bytes, where: str, shape: Shape = object, *, fix: str = "restore it") -> Any:
    """The value in the content of a JSON file.

    Args:
        where: The file, for errors.
        shape: What is expected in it, see `Shape`.
        fix: What to do about a damaged one.

    Raises:
        UserError: As `read_json`.
    """
    text = decode(content, where)
    _check_depth(text, where, fix)
    if "\\u" in text and any(match[1] for match in _ESCAPES.finditer(text)):
        raise UserError(f"{where} has an escape (\\u0000 or half a pair) that is not a character; {fix}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f'{where} has "{twice}" twice in one object; {fix}')
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where} is not JSON ({error.msg}, {place}); {fix}") from None
    except UserError:
        raise
    except ValueError:  # the interpreter's limit of digits
        raise UserError(f"{where} holds a number of thousands of digits; {fix}") from None
    except MemoryError:
        raise UserError(f"{where} does not fit into memory ({len(text) // MIB} MiB of text); {fix}") from None
    expect(value, shape, where, fix)
    return value


# a pair of surrogates; group 1: what no text holds; any other escape
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def _check_depth(text: str, where: str, fix: str) -> None:
    """Before the parser, whose own limit differs from one version of Python to the next."""
    if text.count("[") + text.count("{") <= DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > DEPTH:
                line = text.count("\n", 0, match.start()) + 1
                raise UserError(f"{where} is nested more than {DEPTH} levels deep (line {line}); {fix}")
        elif first in "]}":
            depth -= 1


# ---- YAML


def read_yaml(path: Path, what: str, shape: Shape = object, *, fix: str = "correct it") -> Any:
    """The value in a YAML file: mappings with names as keys, lists, text, numbers, true, false and null.

    Args:
        what: How an error calls the file.
        shape: What is expected in it, see `Shape`.
        fix: What to do about a damaged one.

    Raises:
        UserError: As `read_text`; it is no YAML, is too deep, names a key twice, uses an alias, a merge key
            or a tag, holds several documents, a value that readers of YAML take differently, or something
            else than expected.
    """
    return parse_yaml(read_text(path, what, YAML_BYTES), f"{what} {path}", shape, fix=fix)


def parse_yaml(text: str, where: str, shape: Shape = object, *, fix: str = "correct it") -> Any:
    """The value in a YAML text.

    Args:
        where: The file, for errors.
        shape: What is expected in it, see `Shape`.
        fix: What to do about a damaged one.

    Raises:
        UserError: As `read_yaml`.
    """
    value = plain_value(text, where, fix)
    expect(value, shape, where, fix)
    return value
