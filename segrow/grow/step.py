"""One more step on somebody's own images, behind a gate that refuses a model which forgot.

    outcome = add_classes("models/animals", "photos", ["zebra"], check="old_photos")
    outcome.passed, outcome.model, outcome.verdicts.old[1].drop

The step itself is the engine's (`engine/run.py`). It works in a hidden folder beside the new model, which a
kill leaves behind: the same call then continues after the last finished epoch. The model is only replaced
when the gate has passed, in one exchange of directories; until then not a byte of it changes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..argmax import Scores
from ..atomic import discard, locked, write_atomic
from ..class_lists import split_names
from ..config import RunPaths
from ..data.base import Presence, SegDataset
from ..data.given import Files, GivenDataset
from ..data.saliency import write_map
from ..engine.fitting import Gauge, training_advice
from ..engine.left import Work
from ..engine.log import Display
from ..engine.machine import Machine
from ..engine.run import Run
from ..engine.setup import Prepared, make_fabric
from ..engine.val_features import trunk_hash
from ..errors import MachineError, NonFiniteLossError, UserError
from ..evaluate import eval_loader, image_matrices
from ..memory import Exemplar, to_json
from ..methods.base import make_method
from ..model.exchange import work_place, work_places
from ..model.lineage import succeed
from ..model.record import read_file_beside, read_record
from ..model.segmenter import Segmenter
from ..model.store import load_model, save_model
from ..pictures import encoded
from ..resources import enough_memory, named
from ..scenario import Scenario, Step, empty_table
from ..stored import MEMORY, METHOD_STATE, data_names, memory_in, origin_names, restore_state
from .gate import Matrices, Verdicts, judge_new, judge_old, with_unjudged
from .options import AddOptions
from .plan import EXEMPLAR, Images, Plan, plan_addition, rejected_folder

OPTIONS = {"batch_size": "--batch-size", "crop": "--crop"}
"""What `segrow add` calls them."""


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        passed: Whether the gate let the new model through.
        model: Where it stands: in its place, or under rejected/.
        verdicts: The gate's, class by class.
        plan: What was done.
    """

    passed: bool
    model: Path
    verdicts: Verdicts
    plan: Plan = field(repr=False)


def add_classes(
    model: Path | str,
    data: Path | str,
    classes: Sequence[str],
    *,
    out: Path | str | None = None,
    check: Path | str | None = None,
    exemplars: Path | str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Outcome:
    """Teach a model new classes from annotated images, and keep it only if it has not forgotten the old ones.

    Args:
        model: A model directory or a run folder (its last step).
        data: Annotated images; what their masks show of other classes counts as background.
        classes: Names of the new classes; a text holds them separated by commas.
        out: The new model's directory; None: it takes the place of the model (of a run: `RUN/grown`).
        check: Annotated images of old classes, for the gate.
        exemplars: Folder of the data set that the model's memory is of; None: the memory is not used.
        quiet: Show no progress.
        options: Other fields of `AddOptions`: max_drop, min_new, saliency, epochs, device …

    Raises:
        UserError: For a mistake in what was given; nothing has been changed then.
        NonFiniteLossError: When the training diverges; nothing has been changed then.
        TypeError: For an option that there is not.
    """
    names = split_names(classes, "classes") if isinstance(classes, str) else classes
    out, check, exemplars = (None if place is None else Path(place) for place in (out, check, exemplars))
    chosen = AddOptions(out=out, check=check, exemplars=exemplars, **options)
    return carry_out(plan_addition(Path(model), Path(data), names, chosen), quiet)


def carry_out(plan: Plan, quiet: bool = False) -> Outcome:
    """Train what was planned, judge it, and put it in its place or under rejected/."""
    with named(plan.target), _work_folder(plan) as work, Display(quiet) as display:
        data = _gather(plan, work, display)
        trained = _train(plan, work, data, display)
        after, record = load_model(trained)
        verdicts = _judge(plan, after, trained, data, display)
        memory = memory_in(plan.beside.get(MEMORY), plan.folder)
        extra = _extra(read_file_beside(trained, METHOD_STATE), memory)
        meta = _meta(plan, record, verdicts)
        if read_record(plan.folder)["hashes"] != plan.meta["hashes"]:
            discard(work)  # the next call begins with another model
            raise UserError(f"{plan.folder} was changed while the step was trained; give the command again")
        if verdicts.passes:
            succeed(after, plan.target, meta, extra, plan.folder, plan.meta)
            return Outcome(True, plan.target, verdicts, plan)
        rejected = rejected_folder(plan.target, plan.step)
        save_model(after, rejected, {**meta, "parent": plan.meta["hashes"]["model"]}, extra)
        return Outcome(False, rejected, verdicts, plan)


# --- the folder it works in ---------------------------------------------------------------------------------


@contextmanager
def _work_folder(plan: Plan) -> Iterator[Path]:
    """A hidden neighbour of the new model: that of the same call, if it was killed, else a new one."""
    place = plan.target.resolve()
    work = work_place(place, plan.meta["hashes"]["model"], _fingerprint(plan))
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place, "segrow add"):
        if place != plan.folder.resolve() and place.is_dir() and any(place.iterdir()):
            raise UserError(f"{plan.target} was written while the step was planned; give another --out")
        for other in work_places(place):
            if other != work:
                discard(other)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except (OSError, MachineError):  # such as a full disk: when that is mended the same call goes on
            raise
        except Exception as error:
            paths = RunPaths(work)
            trained = paths.checkpoint.exists() or paths.model(plan.step).exists()
            lost = not trained or isinstance(error, NonFiniteLossError)  # it would be lost again
            if lost and work.exists():
                discard(work)
            raise
        if work.exists():  # it went with the model that it was trained on, unless the new one was rejected
            discard(work)


def _fingerprint(plan: Plan) -> str:
    """Tells one call from another: model, images, settings."""
    files = [plan.new.data.image_path(plan.new.split, i) for i in plan.new.ids]
    files += [plan.new.data.mask_path(plan.new.split, i) for i in plan.new.ids]
    maps = [plan.new.data.saliency_path(plan.new.split, i) for i in plan.new.ids]
    if plan.old_data is not None:
        replayed = [e.image for e in (*plan.exemplars, *plan.judged)]
        files += [plan.old_data.image_path("train", i) for i in replayed]
        files += [plan.old_data.mask_path("train", i) for i in replayed]
        maps += [plan.old_data.saliency_path("train", i) for i in replayed]
    files += [path for path in maps if path.is_file()]
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    what = {
        "model": plan.meta["hashes"],
        "classes": plan.classes,
        "config": asdict(plan.config),
        "method": [plan.method.name, plan.method.fields()],
        "exemplars": [asdict(e) for e in (*plan.exemplars, *plan.judged)],
        "saliency": [plan.salient, plan.maker.model if plan.maker else None],
        "images": stamps,
        "masks": [repr(plan.new.data.colours), plan.new.data.ignored],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _gather(plan: Plan, work: Path, display: Display) -> GivenDataset:
    """The new images and the exemplars as one data set; an exemplar's mask shows only what it may."""
    source = plan.new
    files = {
        i: Files(
            source.data.image_path(source.split, i),
            source.data.mask_path(source.split, i),
            source.data.saliency_path(source.split, i),
        )
        for i in source.ids
    }
    names = plan.meta["class_names"]
    if plan.old_data is not None:
        files |= _exemplar_files(plan, plan.old_data, work / "masks")
    if plan.maker is not None:
        lacking = [(i, own) for i, own in files.items() if not own.saliency.is_file()]
        for number, (i, own) in enumerate(display.track(lacking, "saliency maps", len(lacking))):
            path = work / "saliency" / f"{number}.png"
            if not path.exists():
                write_map(plan.maker.map(own.image), path)
            files[i] = own._replace(saliency=path)
    class_names = (*source.data.class_names, *(f"old {name}" for name in names[1:] if plan.exemplars))
    return GivenDataset(source.data.root, class_names, source.data.ignore_id, files, source.data)


def _exemplar_files(plan: Plan, old: SegDataset, masks: Path) -> dict[str, Files]:
    """Exemplars by their new ids; into `masks` are written the classes that each may show, as new values."""
    files: dict[str, Files] = {}
    new, there = plan.new.data, origin_names(plan.meta, old.class_names)
    for number, exemplar in enumerate((*plan.exemplars, *plan.judged)):
        table = np.zeros(65536, np.uint8 if new.ignore_id < 256 else np.uint16)
        table[old.ignore_id] = new.ignore_id
        for raw, index in there.items():
            if index in exemplar.classes:
                table[raw] = len(new.class_names) + index - 1
        path = masks / f"{number}.png"
        write_atomic(path, encoded(Image.fromarray(table[old.mask("train", exemplar.image)]), "PNG"))
        files[EXEMPLAR + exemplar.image] = Files(
            old.image_path("train", exemplar.image), path, old.saliency_path("train", exemplar.image)
        )
    return files


# --- the step -----------------------------------------------------------------------------------------------


def _train(plan: Plan, work: Path, data: GivenDataset, display: Display) -> Path:
    """The engine's step on top of a copy of the model; where it stands."""
    paths = RunPaths(work)
    if paths.model(plan.step).exists():  # a call that was killed had come so far
        return paths.model(plan.step)
    before = paths.model(plan.step - 1)
    if not before.exists():
        memory = [replace(e, image=EXEMPLAR + e.image) for e in plan.exemplars]
        meta = {key: plan.meta[key] for key in ("class_names", "step", "method")}
        save_model(plan.network, before, meta, _extra(plan.beside.get(METHOD_STATE), memory))
    nothing = Presence((), np.zeros((0, len(data.class_names)), np.bool_))
    prepared = Prepared(data, scenario_of(plan, data), nothing, nothing)
    fabric, precision = make_fabric(plan.config.train)
    machine = Machine(fabric, precision, plan.config.train, plan.config.seed, work, display)
    if machine.numbers.line:
        display.say(machine.numbers.line)
    machine.left.ahead = [Work("evaluation", _gate_images(plan))]
    with _enough_memory(plan, fabric.device):
        Run(plan.config, plan.method, prepared, machine).train_step(plan.step)
    return paths.model(plan.step)


def _gate_images(plan: Plan) -> int:
    """How many images go through a network after the training: those of old classes through two."""
    old = len(plan.judged) if plan.check is None else len(plan.check.ids)
    return 2 * old + (0 if plan.held is None else len(plan.held.ids))


def _enough_memory(plan: Plan, device: torch.device) -> AbstractContextManager[None]:
    advice = partial(training_advice, plan.config.train, Gauge(device), options=OPTIONS)
    return enough_memory(advice)


def _extra(state: bytes | None, memory: Sequence[Exemplar]) -> dict[str, bytes]:
    """What goes beside a model: a memory, and the method's state."""
    return {MEMORY: to_json(memory), **({METHOD_STATE: state} if state else {})}


def scenario_of(plan: Plan, data: GivenDataset) -> Scenario:
    """The model's past as steps whose images are the exemplars, and the new step."""
    names, taught = plan.names, plan.meta["class_steps"]
    known, first_old = len(taught), len(plan.new.data.class_names)
    steps: list[Step] = []
    first = 1
    for index in range(plan.step):
        classes = tuple(names[k] for k in range(1, known) if taught[k] == index)
        indices = range(first, first + len(classes))
        shown = tuple(EXEMPLAR + e.image for e in plan.exemplars if set(e.classes) & set(indices))
        steps.append(Step(index, classes, first, shown))
        first += len(classes)
    steps.append(Step(plan.step, plan.classes, known, plan.new.ids))
    columns = [plan.new.data.class_names.index(name) for name in plan.classes]
    raw_ids = (0, *(first_old + k for k in range(known - 1)), *columns)
    origin = plan.meta["scenario"]
    return Scenario(
        data=origin["data"],
        task=origin["task"],
        setting=origin["setting"],
        classes=names,
        raw_ids=raw_ids,
        ignore_id=data.ignore_id,
        n_raw=len(data.class_names),
        steps=tuple(steps),
        ids=data.ids("train"),
    )


# --- the gate -----------------------------------------------------------------------------------------------


def _judge(plan: Plan, after: Segmenter, trained: Path, data: GivenDataset, display: Display) -> Verdicts:
    """Old classes on --check or on exemplars that were not replayed, new ones on what was held out.

    Each model is read as whoever loads it later will read it.

    Args:
        after: The new model.
        trained: Its directory.
    """
    device = make_fabric(plan.config.train)[0].device
    readers = [make_method(**described) for described in (plan.meta["method"], _method_after(plan))]
    restore_state(readers[0], plan.beside.get(METHOD_STATE), plan.folder, device)
    restore_state(readers[1], read_file_beside(trained, METHOD_STATE), trained, device)
    models = [(m.to(device), r.scores) for m, r in zip((plan.network, after), readers, strict=True)]
    options, names, known = plan.options, plan.names, len(plan.meta["class_names"])
    old, new = Verdicts().old, Verdicts().new
    images, judged = plan.check, []
    table = empty_table(data.ignore_id, len(data.class_names))
    if images is not None:
        table = empty_table(images.data.ignore_id, len(images.data.class_names))
        for raw, name in enumerate(images.data.class_names):
            if raw and name in plan.classes:
                table[raw] = names.index(name)
        there = data_names(plan.meta, images.data.class_names)
        table[list(there)] = list(there.values())
        judged = sorted({0, *there.values()})
    elif plan.judged:
        images = Images(data, "train", tuple(EXEMPLAR + e.image for e in plan.judged))
        first = len(plan.new.data.class_names)
        table[first : first + known - 1] = np.arange(1, known)
        judged = sorted({0, *(c for e in plan.judged for c in e.classes)})
    if images is not None:
        before, later = _matrices(plan, models, images, table, "old classes", display)
        old = judge_old(before, later, names, judged, options.max_drop, options.seed)
    if plan.held is not None:
        table = empty_table(plan.held.data.ignore_id, len(plan.held.data.class_names))
        for name in plan.classes:
            table[plan.held.data.class_names.index(name)] = names.index(name)
        (later,) = _matrices(plan, models[1:], plan.held, table, "new classes", display)
        new = judge_new(later, names, known, options.min_new, options.seed)
    return Verdicts(with_unjudged(old, names[:known]), new, options.strict)


def _matrices(
    plan: Plan,
    models: Sequence[tuple[Segmenter, Scores]],
    images: Images,
    table: np.ndarray,
    what: str,
    display: Display,
) -> list[Matrices]:
    """A confusion matrix of every image and model, at the scale that the model is evaluated at."""
    train = plan.config.train
    crop = train.crop if train.crop_val else None
    one_trunk = len({trunk_hash(model) for model, _ in models}) == 1
    device = models[0][0].mean.device
    loader = eval_loader(
        images.data, images.split, images.ids, table, crop, train.batch_size, train.workers, device
    )
    with _enough_memory(plan, device):
        return image_matrices(
            models,
            loader,
            len(plan.names),
            device,
            one_trunk=one_trunk,
            channels_last=train.channels_last,
            track=lambda items: display.track(items, what, len(loader)),
        )


def _meta(plan: Plan, record: dict[str, Any], verdicts: Verdicts) -> dict[str, Any]:
    """The new model.json without what the store writes."""
    origin, train = plan.meta["scenario"], plan.config.train
    return {
        "step": plan.step,
        "class_names": list(plan.names),
        "scenario": {**origin, "classes": list(plan.names)},
        "method": _method_after(plan),
        "protocol": plan.meta["protocol"],
        "views": record["views"],
        "learnt_as": plan.meta.get("learnt_as", {}),
        "training": record["training"],
        "change": "step",
        "grown": {
            "classes": list(plan.classes),
            "images": len(plan.new.ids),
            "epochs": train.epochs,
            "batch_size": train.batch_size,
            "views": train.feature_views,
            "lr": train.lr,
            "seed": plan.config.seed,
            "method": _described(plan),
            "notes": list(plan.notes),
            "gate": verdicts.as_json(),
        },
    }


def _method_after(plan: Plan) -> dict[str, Any]:
    """The method of the new model: what this step alone changed (no saliency, a frozen trunk) is left out."""
    stored, method = plan.meta["method"], _described(plan)
    if stored["name"] != plan.method.name:
        return method
    given = {k: v for k, v in method["fields"].items() if k == "gives_way"}
    return {"name": stored["name"], "fields": {**stored["fields"], **given}}


def _described(plan: Plan) -> dict[str, Any]:
    return {"name": plan.method.name, "fields": plan.method.fields()}
