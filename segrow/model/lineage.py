"""A model directory remembers what it was: its earlier versions stand whole under `history/`.

models/animals/            the model as it is
    model.json  model.safetensors  …
    history/001-3f2a…/     the same files of an earlier version, byte for byte
    history/002-9c41…/

`parent` in a model.json is the hash of the version it was made from. Every change writes the whole directory
anew, history too (hard links where the disk has them), and exchanges it in one go: a kill leaves the old one
or the new one.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..atomic import locked
from ..class_lists import escaped, has_unseen, name_hint, one_name
from ..errors import UserError
from ..memory import Exemplar, from_json, to_json
from ..shapes import expect
from ..tensor_files import parse_safetensors
from .exchange import exchanged, settle
from .record import RECORD, check_needed, is_model, model_files, read_record
from .segmenter import Group, Head, Segmenter
from .steady import steadily
from .store import OURS, load_whole, save_model

HISTORY = "history"


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Attributes:
        folder: Where it stands.
        step: The step it was saved after.
        hash: Of configuration and weights.
        parent: Hash of the version it was made from; None for the first.
        classes: Names by class index, background first.
        change: What made it: "step", or the command's words such as "rename cow to cattle".
        current: It is the model itself, not its past.
        ancestor: It is on the way from the first version to the current one.
    """

    folder: Path
    step: int
    hash: str
    parent: str | None
    classes: tuple[str, ...]
    change: str
    current: bool
    ancestor: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "folder": str(self.folder), "classes": list(self.classes)}


def versions(directory: Path) -> list[Version]:
    """All versions of a model, the oldest first, the current one last.

    Raises:
        UserError: No model, or a model.json of any version that was changed.
    """

    def read(place: Path) -> tuple[list[Path], list[dict[str, Any]]]:
        folders = [*_stored(place), place]
        records = [read_record(folder) for folder in folders]
        for folder, record in zip(folders, records, strict=True):
            check_needed(record, folder)
        return [directory / folder.relative_to(place) for folder in folders], records

    folders, records = steadily(directory, read)
    by_hash = {record["hashes"]["model"]: record for record in records}
    chain: set[str] = set()
    at: str | None = records[-1]["hashes"]["model"]
    while at is not None and at in by_hash and at not in chain:
        chain.add(at)
        at = by_hash[at].get("parent")
    return [
        Version(
            folder,
            int(record["step"]),
            record["hashes"]["model"],
            record.get("parent"),
            tuple(record["class_names"]),
            record.get("change", "step"),
            folder == directory,
            folder == directory or record["hashes"]["model"] in chain,
        )
        for folder, record in zip(folders, records, strict=True)
        if folder == directory or record["hashes"]["model"] != records[-1]["hashes"]["model"]
    ]


_VERSION = re.compile(r"\d{3,}-[0-9a-f]{12}")


def _history(directory: Path) -> list[Path]:
    """What stands in the history: earlier versions, and what somebody else keeps there."""
    folder = directory / HISTORY
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, expected the folder itself; move the folder to its place")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _stored(directory: Path) -> list[Path]:
    """Folders of the earlier versions."""
    found = [f for f in _history(directory) if _VERSION.fullmatch(f.name)]
    if links := [f for f in found if f.is_symlink()]:
        raise UserError(f"{links[0]} is a link, expected the folder of a version; remove it")
    return found


def version_of(folder: Path) -> Path | None:
    """The model that a directory is an earlier version of (`MODEL/history/NNN-HASH`); None when of none."""
    place = folder.resolve()
    above = place.parent.parent
    inside = place.parent.name == HISTORY and _VERSION.fullmatch(place.name) is not None
    return above if inside and is_model(above) else None


def check_history(directory: Path) -> None:
    """Read every file of the earlier versions, which the next one is to keep.

    Raises:
        UserError: When one of them was changed.
    """
    steadily(directory, lambda place: [model_files(folder) for folder in _stored(place)])


def put_history(parent: Path, record: Mapping[str, Any]) -> Callable[[Path], None]:
    """Writes the history of a model's next version: that of `parent`, and `parent` itself as its last.

    Args:
        record: The model.json of `parent` that the next version was made from.

    Raises:
        UserError: When a file of `parent` was changed, now or before the history is written.
    """
    steadily(parent, lambda place: _files_of(place, record, parent))

    def put(folder: Path) -> None:
        history = folder / HISTORY

        def copy(place: Path) -> None:
            if history.exists():  # half of that of another version
                shutil.rmtree(history)
            _copy_history(place, history, _files_of(place, record, parent), record["hashes"]["model"])

        steadily(parent, copy)

    return put


def _files_of(place: Path, record: Mapping[str, Any], parent: Path) -> dict[str, Path]:
    """The files of a model that is still the version it was.

    Args:
        place: Where it stands.
        parent: Where it should, for errors.
    """
    files = model_files(place)
    if read_record(place)["hashes"] != record["hashes"]:
        raise UserError(f"{parent} was changed while this command was at work; give the command again")
    return files


def _copy_history(place: Path, history: Path, files: Mapping[str, Path], model: str) -> None:
    """The history of the model in `place` and, as its last version, the model itself.

    Args:
        files: Those of the model.
        model: Its hash.
    """
    history.mkdir()
    number, hashes = 0, set()
    for old in _stored(place):
        number = max(number, int(old.name.partition("-")[0]))
        _link(model_files(old), history / old.name)
        hashes.add(read_record(old)["hashes"]["model"])
    if model not in hashes:
        _link(files, history / f"{number + 1:03d}-{model[:12]}")
    for other in _history(place):
        if _VERSION.fullmatch(other.name):
            continue
        if other.is_dir() and not other.is_symlink():  # what somebody keeps there stays
            shutil.copytree(other, history / other.name, symlinks=True)
        else:
            shutil.copy2(other, history / other.name, follow_symlinks=False)


def _link(files: Mapping[str, Path], folder: Path) -> None:
    """The same files in another place: links to them, or copies where there can be none."""
    folder.mkdir()
    for name, path in files.items():
        try:
            os.link(path, folder / name)
        except OSError:
            shutil.copyfile(path, folder / name)


def succeed(
    model: Segmenter,
    directory: Path,
    meta: Mapping[str, Any],
    extra: Mapping[str, bytes],
    parent: Path,
    record: Mapping[str, Any],
) -> None:
    """Write the next version of the model in `parent` to `directory`, the same or another, with its history.

    Args:
        meta: As `save_model` takes it; its `parent` is set here.
        record: The model.json of `parent` that the next version was made from.

    Raises:
        UserError: When a file of `parent` was changed, or `directory` is no place for a model.
    """
    put = put_history(parent, record)
    save_model(model, directory, {**meta, "parent": record["hashes"]["model"]}, extra, put)


def rollback(directory: Path, step: int | None = None, version: str | None = None) -> Version:
    """Make another version the model again, byte for byte; the present one stays in the history.

    Args:
        step: The step it was saved after. Of several the newest ancestor of the present model is taken, else
            the newest of those that were left aside.
        version: Instead of a step, the beginning of its hash.

    Raises:
        UserError: When there is no such version, or a file of it was changed.
    """
    with locked(directory, "segrow rollback"):
        settle(directory)
        return _roll_back(directory, step, version)


def _roll_back(directory: Path, step: int | None, version: str | None) -> Version:
    there = versions(directory)
    past = [v for v in there if not v.current]
    fitting = [v for v in past if (v.step == step if version is None else v.hash.startswith(version))]
    if version is not None and not fitting and there[-1].hash.startswith(version):
        raise UserError(f"{directory} is that version already; nothing was done")
    if version is not None and len({v.hash for v in fitting}) != 1:
        raise UserError(
            f'{directory} has {len(fitting)} versions whose hash begins with "{version}", expected one '
            f"(segrow lineage {directory} shows them)"
        )
    if not fitting:
        have = ", ".join(str(s) for s in sorted({v.step for v in past})) or "none"
        raise UserError(
            f"{directory} has no earlier version of step {step}; its history has {have} "
            f"(segrow lineage {directory} shows them)"
        )
    chosen = ([v for v in fitting if v.ancestor] or fitting)[-1]
    files, put = model_files(chosen.folder), put_history(directory, read_record(directory))
    with exchanged(directory) as temporary:
        for name, path in files.items():
            shutil.copyfile(path, temporary / name, follow_symlinks=False)
        put(temporary)
    return chosen


# --- classes ----------------------------------------------------------------------------------------------


def rename_class(directory: Path, old: str, new: str) -> None:
    """Give a class another name; the weights stay as they are.

    Raises:
        UserError: For a class that the model does not know, background, or a name that cannot be.
    """
    with locked(directory, "segrow rename-class"):
        settle(directory)
        _rename(directory, old, new)


def _rename(directory: Path, old: str, new: str) -> None:
    model, meta, extra = load_whole(directory)
    check_needed(meta, directory)
    names = list(meta["class_names"])
    index = _find(names, old, directory)
    old, new = names[index], one_name(new)
    if not new or has_unseen(new):
        raise UserError(
            f'"{escaped(new)}" cannot be the name of a class; expected words, without line break and '
            "characters that are not seen"
        )
    if new in names:
        raise UserError(f'{directory} has a class "{new}" already; choose another name')
    names[index] = new
    # data sets go on calling it what they did
    learnt_as = {k: v for k, v in meta.get("learnt_as", {}).items() if k != old}
    learnt_as[new] = meta.get("learnt_as", {}).get(old, old)
    meta = {**meta, "learnt_as": learnt_as}
    _rewrite(model, directory, meta, names, f"rename {old} to {new}", extra)


def remove_class(directory: Path, name: str) -> None:
    """Take a class out of the model: its channel goes, and the classes behind it move up by one.

    The weights of the others stay bit-identical, and background keeps index 0. The pixels of the class fall
    to whatever the others make of them; a class that gave way to it (`Ssul.gives_way`) no longer does.

    Raises:
        UserError: For a class that the model does not know, background, the last foreground class, or a
            method whose state cannot lose a class.
    """
    with locked(directory, "segrow remove-class"):
        settle(directory)
        _remove(directory, name)


def _remove(directory: Path, name: str) -> None:
    model, meta, extra = load_whole(directory)
    check_needed(meta, directory)
    names = list(meta["class_names"])
    index = _find(names, name, directory)
    name = names[index]
    if len(names) == 2:
        raise UserError(f'"{name}" is the only class of {directory}; delete the folder instead')
    extra = _without(extra, index, meta)
    del names[index]
    meta = {**meta, "learnt_as": {k: v for k, v in meta.get("learnt_as", {}).items() if k != name}}
    method = _method_without(meta["method"], index, len(names), directory)
    smaller = without_channel(model, index)
    _rewrite(smaller, directory, meta, names, f"remove {name}", extra, method)


def without_channel(model: Segmenter, index: int) -> Segmenter:
    """A model without one class; all other tensors as they are.

    Args:
        index: Its class index, not 0.
    """
    layout: list[Group] = []
    kept: list[tuple[int, list[int]]] = []  # of each head that stays: its number, and the rows that stay
    start = 0
    for number, group in enumerate(model.layout):
        rows = [c - group.start for c in range(group.start, group.stop) if c != index]
        if rows:
            layout.append(Group(group.name, start, start + len(rows), group.form, group.step))
            kept.append((number, rows))
            start += len(rows)
    mean, std = (tuple(v.flatten().tolist()) for v in (model.mean, model.std))
    state: dict[str, Tensor] = {
        key: value for key, value in model.state_dict().items() if not key.startswith("heads.")
    }
    for place, (number, rows) in enumerate(kept):
        for key, value in model.heads[number].state_dict().items():
            state[f"heads.{place}.{key}"] = value[rows] if key.startswith("out.") else value
    with torch.random.fork_rng(devices=[]):
        smaller = Segmenter(model.config, tuple(layout), model.unknown is not None, mean, std)
    dtype = next(model.parameters()).dtype
    smaller.to(dtype).set_normalisation(mean, std, dtype)
    smaller.load_state_dict(state)
    return smaller.eval()


def _find(names: Sequence[str], name: str, directory: Path) -> int:
    """Class index of a foreground class."""
    name = one_name(name, names)
    if name == names[0]:
        raise UserError(f'"{name}" is what no class covers and always there; name another class')
    if name not in names:
        listed = ", ".join(names[1:])
        raise UserError(f'{directory} has no class "{name}"; it knows {listed}.{name_hint(name, names[1:])}')
    return names.index(name)


def _without(extra: Mapping[str, bytes], index: int, meta: Mapping[str, Any]) -> dict[str, bytes]:
    """Exemplars and the method's state after a class has gone."""

    files = dict(extra)
    if "memory.json" in files:
        kept = []
        for e in from_json(files["memory.json"]):
            classes = tuple(c - (c > index) for c in e.classes if c != index)
            if classes:
                kept.append(Exemplar(e.image, e.step, classes))
        files["memory.json"] = to_json(kept)
    if "method.safetensors" in files:
        state = parse_safetensors(files["method.safetensors"], "the state of the model's method")
        if other := sorted(set(state) - {"thresholds"}):
            raise UserError(
                f"method {meta['method']['name']} keeps {', '.join(other)} with the model, which cannot lose "
                "a class; teach a model without it instead"
            )
        if "thresholds" not in state or state["thresholds"].ndim != 1:
            raise UserError(
                "the state of the model's method has no threshold per class; copy the model again"
            )
        rows = [k for k in range(len(state["thresholds"])) if k != index]
        files["method.safetensors"] = safetensors.torch.save({"thresholds": state["thresholds"][rows]})
    return files


def _method_without(method: Mapping[str, Any], index: int, known: int, directory: Path) -> dict[str, Any]:
    """The method's fields after a class has gone: the class indices among them move along."""
    fields = dict(method["fields"])
    expect(fields, {"gives_way?": [range(1 << 16)]}, f"{directory / RECORD}: method", "copy it again")
    if starts := fields.get("gives_way"):
        moved = sorted({start - (start > index) for start in starts})
        fields["gives_way"] = [start for start in moved if start < known]
    return {**method, "fields": fields}


def _rewrite(
    model: nn.Module,
    directory: Path,
    meta: Mapping[str, Any],
    names: Sequence[str],
    change: str,
    extra: Mapping[str, bytes],
    method: Mapping[str, Any] | None = None,
) -> None:
    """The next version, of the same step."""
    if not isinstance(model, Segmenter) or not all(isinstance(head, Head) for head in model.heads):
        raise TypeError("expected a Segmenter")
    ours = {key: value for key, value in meta.items() if key not in OURS}
    # classes of steps that were never taken say nothing of this model any more
    ours |= {"class_names": list(names), "change": change}
    ours["scenario"] = {**meta["scenario"], "classes": list(names)}
    ours["method"] = dict(method or meta["method"])
    succeed(model, directory, ours, extra, directory, meta)
