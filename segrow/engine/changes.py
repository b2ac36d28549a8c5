"""Options that a run did not begin with: which may change, and which epochs ran with what.

A run that went out of memory may go on with --train.accumulate or --train.precision, one that lost a GPU
with fewer --train.devices, and one whose loss was not finite with smaller rates. `changes.json` says that a
loss was lost, and what was changed when.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..sealed import read_sealed_json, write_sealed_json
from ..shapes import Shape

COMPUTED = frozenset({"train.accumulate", "train.devices", "train.precision"})
"""How the same updates are computed: may change while a step is left."""
RATES = frozenset(
    {
        "train.lr",
        "train.backbone_lr",
        "train.step0_lr",
        "train.step0_backbone_lr",
        "train.lr_floor",
        "train.clip",
    }
)
"""What is learnt depends on them: they may change after a loss that was not finite."""

_INDEX = range(1 << 31)
_CHANGES: Shape = {
    "lost": ({"step": _INDEX, "why": str}, None),
    "changes": [{"step": _INDEX, "epoch": _INDEX, "options": {str: [(str, float, bool, None)]}}],
}
Changes = list[dict[str, Any]]


def _path(folder: Path) -> Path:
    return folder / "changes.json"


def _read(folder: Path) -> dict[str, Any]:
    if not _path(folder).exists():
        return {"lost": None, "changes": []}
    return read_sealed_json(_path(folder), "record of changed options", _CHANGES)


def read_changes(folder: Path) -> Changes:
    """Each with the step and the number of its epochs that were done, and `[before, after]` by option.

    Raises:
        UserError: When the file is damaged.
    """
    changes: Changes = _read(folder)["changes"]
    return changes


def loss_was_lost(folder: Path) -> bool:
    """Whether the run stopped because its loss was not finite, and has not gone on since."""
    return _read(folder)["lost"] is not None


def note_lost(folder: Path, step: int, why: str) -> None:
    """Write that a step has lost its loss."""
    write_sealed_json(_path(folder), {**_read(folder), "lost": {"step": step, "why": why}})


def note_change(folder: Path, step: int, epoch: int, options: Mapping[str, Sequence[Any]]) -> None:
    """Write what changes from here on; once, when a kill lets it be said twice."""
    changes = read_changes(folder)
    ours = {"step": step, "epoch": epoch, "options": {key: list(pair) for key, pair in options.items()}}
    write_sealed_json(
        _path(folder), {"lost": None, "changes": changes if ours in changes else [*changes, ours]}
    )


def changed_remarks(changes: Changes) -> list[str]:
    """Sentences for everyone who compares the run with another."""
    found = []
    for change in changes:
        options = (f"{key} {now} instead of {before}" for key, (before, now) in change["options"].items())
        found.append(
            f"from epoch {change['epoch'] + 1} of step {change['step']} on with {', '.join(options)}"
        )
    return found
