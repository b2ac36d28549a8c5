"""Records of a run that tell whether somebody changed them: JSON and YAML with a checksum of their own.

A user may have good reason to change one; then the checksum goes, and the record counts as it is. One without
a checksum is read as it is: an earlier segrow wrote none.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .atomic import write_atomic, write_json
from .documents import YAML_BYTES, parse_yaml, read_json, read_text
from .errors import UserError
from .shapes import Shape

SUM = "checksum"
_LINE = "# checksum"
_MINE = f"restore it, or if the change is yours, take the {SUM} out of it"


def _sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sum_of_values(values: Mapping[str, Any]) -> str:
    return _sum_of(json.dumps(values, sort_keys=True).encode())


def write_sealed_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as `write_json`, with a checksum under its own key, the last."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != SUM}))
    write_json(path, {**plain, SUM: _sum_of_values(plain)})


def read_sealed_json(
    path: Path, what: str, shape: Shape = object, *, fix: str = "restore it"
) -> dict[str, Any]:
    """A mapping as `read_json`, without its checksum.

    Raises:
        UserError: As `read_json`; or it was changed after it was written.
    """
    values: dict[str, Any] = read_json(path, what, shape, fix=fix)
    found = values.pop(SUM, None)
    if found is not None and found != _sum_of_values(values):
        raise UserError(f"{what} {path} was changed after it was written; {_MINE}")
    return values


def write_sealed_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, with a checksum in a comment at its end."""
    text = yaml.safe_dump(dict(values), sort_keys=False)
    write_atomic(path, f"{text}{_LINE} {_sum_of(text.encode())}\n".encode())


def read_sealed_yaml(path: Path, what: str, shape: Shape = object, *, fix: str = "correct it") -> Any:
    """The value in such a file.

    Raises:
        UserError: As `read_yaml`; or it was changed after it was written.
    """
    text = read_text(path, what, YAML_BYTES).replace("\r\n", "\n")
    body, found = text, re.search(rf"^{_LINE} (\w*)\n?\Z", text, re.MULTILINE)
    if found:
        body = text[: found.start()]
        changed = found[1] != _sum_of(body.encode())
    else:  # the sum without the words before it
        changed = re.search(r"[0-9a-f]{16}\s*\Z", text) is not None
    if changed:
        raise UserError(f"{what} {path} was changed after it was written; {_MINE}")
    return parse_yaml(body, f"{what} {path}", shape, fix=fix)
