"""The file of --config: options of a run and nothing else.

The parser of options would import what a file names as a class (`memory: package.module.Class`), and read
further files that it names. Neither reaches it from here.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..config import RunConfig
from ..documents import read_yaml
from ..errors import UserError, near
from ..recipes import merge

_KINDS: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(RunConfig).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
_GROUPS: dict[str, list[str]] = {name: list(get_type_hints(kind)) for name, kind in _KINDS.items()}
_OTHERS = ("method", "out", "base", "report", "strict")
_KEYS = (*(field.name for field in dataclasses.fields(RunConfig)), *_OTHERS)


def read_config_file(path: Path) -> dict[str, Any]:
    """The options in a file, such as a run's own config.yaml; those of a group as one mapping.

    Raises:
        UserError: It cannot be read, or holds something else than options.
    """
    values: dict[str, Any] = read_yaml(path, "--config", {"method?": (str, {"name?": str})})
    values.pop("segrow", None)  # a run's own config.yaml can be given
    found: dict[str, Any] = {}
    for key, value in values.items():  # train.lr: 0.1 is {"train": {"lr": 0.1}}
        for part in reversed(key.split(".")):
            value, key = {part: value}, part
        if isinstance(found.get(key), Mapping) != isinstance(value[key], Mapping) and key in found:
            raise UserError(f"--config {path} has {key} twice, in two forms; keep one")
        found = merge(found, value)
    _check_keys(path, "", found, _KEYS)
    _check_nulls(path, "", found, RunConfig)
    for group, names in _GROUPS.items():
        inside = found.get(group, {})
        if not isinstance(inside, Mapping):
            text = str(inside)[:40]
            raise UserError(
                f"--config {path}: {group} holds {text}, expected a mapping of options, as {group}.{names[0]}"
            )
        _check_keys(path, f"{group}.", inside, names)
        _check_nulls(path, f"{group}.", inside, _KINDS[group])
    return found


def _check_keys(path: Path, before: str, there: Iterable[str], known: Iterable[str]) -> None:
    for key in there:
        if key not in known:
            hint = near(f"{before}{key}", [f"{before}{name}" for name in known])
            raise UserError(f"--config {path}: no option {before}{key}.{hint}")


def _check_nulls(path: Path, before: str, there: Mapping[str, Any], kind: type) -> None:
    """The parser of options takes null for a value of any of them."""
    for name, hint in get_type_hints(kind).items():
        if name in there and there[name] is None and NoneType not in get_args(hint):
            raise UserError(f"--config {path}: {before}{name} is null; give it a value, or leave it out")
