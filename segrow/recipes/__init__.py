"""Recipes: runs with a name. Those of the published tables come from one file, the others are a file each.

    read_recipe("voc-15-1-ssul-m")            # options of a run, by name
    cell("voc-15-1-ssul-m").published         # 71.37
    published_settings("mib", "ade20k", "100-50")

A recipe of the tables is called {voc|ade}-TASK-{mib|plop|ssul|ssul-m}[-disjoint].
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

from ..errors import UserError, near

Setting = Literal["overlap", "disjoint"]
SETTINGS: tuple[Setting, ...] = ("overlap", "disjoint")
FALLBACK = "voc"  # whose settings all data sets have that nothing was published for
NOT_PUBLISHED = "none published"
# a published number was reached with a new view of every image in every epoch
_EXACT = {"train": {"feature_views": 0}}


@dataclass(frozen=True)
class Reference:
    """One place where `--reference` follows a paper's released code.

    Attributes:
        set: Options of a run, by name.
        says: What they do.
        otherwise: What segrow does without them, where that differs.
    """

    set: Mapping[str, Any]
    says: str
    otherwise: str | None


@dataclass(frozen=True)
class Cell:
    """A recipe of the published tables.

    Attributes:
        name: As the command line takes it.
        row: Row of the table: mib, plop, ssul or ssul-m.
        method: Name of the method.
        data: voc or ade20k.
        task: Such as 15-1.
        setting: overlap or disjoint.
        published: mIoU in % over all classes after the last step; None where nothing was published.
        definition: How that is counted.
        source: Who measured it.
    """

    name: str
    row: str
    method: str
    data: str
    task: str
    setting: Setting
    published: float | None
    definition: str
    source: str


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, key by key at every depth; changes neither."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"train": {"lr": 0.1}} -> ("train.lr", 0.1)"""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def show(value: Any) -> str:
    """As a flag takes it: lists with commas, numbers without trailing zeros."""
    if isinstance(value, list | tuple):
        return ",".join(show(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- the published settings


def published_settings(row: str, data: str, task: str) -> dict[str, Any]:
    """Options of a run as published: {"model": {...}, "train": {...}, "method": {...}, "memory": {...}}.

    Args:
        row: A method, or a variant of one (ssul-m); one that nothing is known of has no settings.
        data: Name of a data set; any but voc and ade20k has the settings of voc.
        task: For the exceptions of single tasks.
    """
    settings = _entry(row).get("settings", {})
    known = data if data in _published()["data"] else FALLBACK
    usual = merge(settings.get("common", {}), settings.get(known, {}))
    return merge(usual, exceptions(row).get(data, {}).get(task, {}))


def exceptions(row: str) -> dict[str, dict[str, Any]]:
    """Settings that differ for single tasks: data set -> task -> options."""
    return dict(_entry(row).get("settings", {}).get("tasks", {}))


def paper(row: str) -> str | None:
    """Where a method was published; None for one that nothing is known of."""
    found: str | None = _entry(row).get("paper")
    return found


def losses(row: str) -> str | None:
    """The terms of a method's loss in words, their weights in brackets."""
    found: str | None = _entry(row).get("losses")
    return found


def deviations(row: str, data: str, task: str, memory: bool) -> tuple[str, ...]:
    """Where segrow differs from a method's paper whatever is chosen, a sentence each."""
    return tuple(item["says"] for item in _items("deviations", row, data, task, memory))


def notes(row: str, data: str, task: str, memory: bool) -> tuple[str, ...]:
    """What one should know to compare with the published number."""
    return tuple(item["says"] for item in _items("notes", row, data, task, memory))


def references(row: str, data: str, task: str, memory: bool) -> tuple[Reference, ...]:
    """What `--reference` switches on for a method in a run."""
    items = _items("reference", row, data, task, memory)
    return tuple(Reference(item["set"], item["says"], item.get("else")) for item in items)


def _items(kind: str, row: str, data: str, task: str, memory: bool) -> Iterator[Mapping[str, Any]]:
    for item in _entry(row).get(kind, ()):
        if (
            item.get("data", data) == data
            and item.get("task", task) == task
            and (memory or "memory" not in item)
        ):
            yield item


def _entry(row: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _published()["methods"].get(row, {})
    return found


@functools.cache
def _published() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(
        (resources.files(__package__) / "published.yaml").read_text("utf-8")
    )
    return loaded


# ---- recipes


@functools.cache
def cells() -> tuple[Cell, ...]:
    """All recipes of the published tables, by data set, task, method and setting."""
    table = _published()
    return tuple(
        _cell(data, task, row, setting)
        for data, about in table["data"].items()
        for task in about["tasks"]
        for row in table["rows"]
        for setting in SETTINGS
    )


def _cell(data: str, task: str, row: str, setting: Setting) -> Cell:
    entry = _entry(row)
    short = _published()["data"][data]["short"]
    name = f"{short}-{task}-{row}" + ("" if setting == "overlap" else f"-{setting}")
    value = entry["miou"][data].get(task) if setting == "overlap" else None
    return Cell(
        name, row, entry.get("of", row), data, task, setting, value, entry["definition"], entry["source"]
    )


def cell(name: str) -> Cell | None:
    """The recipe of the tables with this name; None when there is none."""
    return next((found for found in cells() if found.name == name), None)


def titles() -> dict[str, str]:
    """Data sets of the tables, with how a table calls them."""
    return {data: about["title"] for data, about in _published()["data"].items()}


def rows() -> tuple[str, ...]:
    """Methods of the tables, in their order."""
    return tuple(_published()["rows"])


def files() -> tuple[str, ...]:
    """Names of the recipes that are a file each."""
    found = (
        f.name.removesuffix(".yaml")
        for f in resources.files(__package__).iterdir()
        if f.name.endswith(".yaml")
    )
    return tuple(sorted(name for name in found if name != "published"))


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes."""
    return (*(found.name for found in cells()), *files())


def about(name: str) -> str:
    """What a recipe that is a file says of itself."""
    return " ".join(str(_read_file(name).get("about", "")).split())


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe as options of a run, by name; those of its method under `method`.

    Raises:
        UserError: When there is no such recipe.
    """
    found = cell(name)
    if found is None:
        if name not in files():
            hint = near(name, recipe_names())
            raise UserError(f'no recipe "{name}"; `segrow recipes` lists all {len(recipe_names())}.{hint}')
        values = _read_file(name)
        values.pop("about", None)
        return values
    scenario = {"task": found.task, "setting": found.setting, "data": {"name": found.data}}
    settings = published_settings(found.row, found.data, found.task)
    values = merge(merge(merge(scenario, settings), _EXACT), _entry(found.row).get("recipe", {}))
    values["method"] = {"name": found.method, **values.get("method", {})}
    return values


def _read_file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(
        (resources.files(__package__) / f"{name}.yaml").read_text("utf-8")
    )
    return loaded
