"""Runs as a report shows them: read, counted by one definition, grouped where they repeat one experiment."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..engine.folder import BEFORE, FREE, read_config, read_results
from ..protocol import StepSummary, Summary, summarise
from ..recipes import Cell, cells, flatten, show
from ..shapes import Shape, expect

Number = Literal["old", "new", "all", "harmonic", "forgetting"]
NUMBERS: tuple[Number, ...] = ("old", "new", "all", "harmonic", "forgetting")

# runs that differ in nothing else repeat one experiment: another seed, another class order
_REPEATS = (FREE | {"seed", "base", "task", "data.order_seed", "data.classes"}) - {"train.feature_budget"}

# what the page reads of results.json
_COSTS = ("train_s", "eval_s", "peak_memory_bytes", "trainable", "parameters", "stored_bytes", "iterations")
_COUNT = range(1 << 53)
_RESULTS: Shape = {
    **dict.fromkeys(("data", "task", "setting", "method", "segrow"), str),
    "seed": int,
    "memory?": _COUNT,
    "evaluation": {"images": _COUNT, "crop": _COUNT, "crop_val": bool},
    "steps": [
        {
            "classes": [str],
            "images": _COUNT,
            "exemplars": _COUNT,
            "cost": {f"{key}?": (float, None) for key in _COSTS},
            "from_base": (str, None),
        }
    ],
}


@dataclass(frozen=True)
class ReportRun:
    """One run of a report.

    Attributes:
        name: Name of its folder, made unique.
        folder: Where it is.
        results: Its results.json.
        config: Its config.yaml.
        summary: The results counted by the report's definition.
    """

    name: str
    folder: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    summary: Summary

    @property
    def records(self) -> list[dict[str, Any]]:
        """What results.json holds of each step."""
        steps: list[dict[str, Any]] = self.results["steps"]
        return steps

    @property
    def finished(self) -> bool:
        """Whether its last step teaches the last class."""
        return sum(len(record["classes"]) for record in self.records) == len(self.results["classes"]) - 1


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of the runs that have the number; None where none has."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs of one experiment: they differ in nothing but seed and class order.

    Attributes:
        label: A lone run's name; of several runs their method, and what tells them from other groups.
        runs: At least one.
    """

    label: str
    runs: tuple[ReportRun, ...]

    @property
    def n_steps(self) -> int:
        """Steps that all its runs have done."""
        return min(len(run.summary["steps"]) for run in self.runs)

    def at(self, step: int, key: Number) -> Spread:
        """One number after a step, over the runs."""
        return spread([_value(run.summary["steps"][step], key) for run in self.runs])

    def average(self) -> Spread:
        """Mean of `all` over the steps, over the runs."""
        return spread([run.summary["average"] for run in self.runs])


def _value(step: StepSummary, key: Number) -> float | None:
    return step[key]


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation of the values that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return Spread(None, None, 0)
    return Spread(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, len(there))


def read_runs(folders: Sequence[Path], definition: str) -> list[ReportRun]:
    """The runs in these folders, counted.

    Args:
        folders: Run folders; one that is given twice counts once.
        definition: A key of `protocol.DEFINITIONS`.

    Raises:
        UserError: A folder that is no run or has no step yet, or an unknown definition.
    """
    runs: list[ReportRun] = []
    taken: set[str] = set()
    for folder in {folder.resolve(): folder for folder in folders}.values():
        results = read_results(folder)
        config = read_config(folder)
        summary = summarise(results, definition)
        # what is counted was checked where it is
        expect(results, _RESULTS, f"results {folder / 'results.json'}", "restore it, or run again")
        name = first = folder.resolve().name
        count = 1
        while name in taken:
            count += 1
            name = f"{first} ({count})"
        taken.add(name)
        runs.append(ReportRun(name, folder, results, config, summary))
    return runs


def group_runs(runs: Sequence[ReportRun]) -> list[Group]:
    """Runs of the same experiment together, in the order of their first run.

    A run whose seed and class order are in a group already repeats nothing: it stands in the next one.
    """
    found: list[tuple[str, list[ReportRun]]] = []
    for run in runs:
        experiment = _experiment(run)
        same = (members for key, members in found if key == experiment)
        group = next((members for members in same if _draw(run) not in map(_draw, members)), None)
        if group is None:
            found.append((experiment, [run]))
        else:
            group.append(run)
    several = [members[0] for _, members in found if len(members) > 1]
    groups: list[Group] = []
    for _, members in found:
        label = _label(members, [run for run in several if run is not members[0]])
        if label in [group.label for group in groups]:
            label = f"{label}, again: {', '.join(run.name for run in members)}"
        groups.append(Group(label, tuple(members)))
    return groups


def _draw(run: ReportRun) -> tuple[int, tuple[str, ...]]:
    """What makes a run another repetition of its experiment: seed and class order."""
    return run.config["seed"], tuple(run.results["classes"])


def _label(members: Sequence[ReportRun], others: Sequence[ReportRun]) -> str:
    """A lone run's name; else the method, and where another group has the same, the settings that differ.

    Args:
        members: Runs of the group.
        others: The first run of each other group of several.
    """
    run = members[0]
    if len(members) == 1:
        return run.name
    settings = _settings(run)
    differing = {
        f"{key} {show(settings.get(key))}": None
        for other in others
        if _method(other) == _method(run)
        for key in sorted(settings.keys() | _settings(other).keys())
        if settings.get(key) != _settings(other).get(key)
    }
    some = [*list(differing)[:3], *["…"] * (len(differing) > 3)]
    return f"{', '.join([_method(run), *some])} ({len(members)} runs)"


def _method(run: ReportRun) -> str:
    size = run.results.get("memory", 0)
    return f"{run.results['method']}-m{size}" if size else str(run.results["method"])


def _settings(run: ReportRun) -> dict[str, Any]:
    images = {"training.images_hash": trained_on(run), "evaluation.images_hash": tested_on(run)[1]}
    changes = run.results.get("changes", [])  # config.yaml holds what the run ended with
    settings = {**BEFORE, **dict(flatten(run.config)), **images, "changes": changes}
    return {key: value for key, value in settings.items() if key not in _REPEATS}


def _experiment(run: ReportRun) -> str:
    """All that must be equal for two runs to repeat one experiment."""
    task = str(run.results["task"]).split("_")[0]
    results = run.results
    return json.dumps(
        [_settings(run), results["data"], task, sorted(results["classes"]), results["evaluation"]],
        sort_keys=True,
    )


def trained_on(run: ReportRun) -> str | None:
    """The hash of the names of all training images, where it was stored."""
    training = run.results.get("training") or {}
    images_hash: str | None = training.get("images_hash")
    return images_hash


def tested_on(run: ReportRun) -> tuple[int, str | None]:
    """How many validation images, and the hash of their names where it was stored."""
    evaluation = run.results["evaluation"]
    return evaluation["images"], evaluation.get("images_hash")


def published(run: ReportRun) -> Cell | None:
    """The cell of the published tables that a run measures again; None where nothing was published.

    The classes must be those of the data set, in its own order.
    """
    chosen = run.config.get("data", {})
    if chosen.get("classes") is not None or chosen.get("order_seed") is not None:
        return None
    results, memory = run.results, bool(run.results.get("memory", 0))
    wanted = (results["data"], results["task"], results["setting"], results["method"], memory)
    for cell in cells():
        found = (cell.data, cell.task, cell.setting, cell.method, cell.row.endswith("-m"))
        if found == wanted and cell.published is not None:
            return cell
    return None
