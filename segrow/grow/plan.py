"""What one more step on somebody's own images will be: everything that is decided, and can fail, before it.

Nothing is written here. `step.py` carries a plan out.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..class_lists import alike_notes, name_hint, typed_name
from ..config import MemoryConfig, RunConfig, TrainConfig
from ..data import open_dataset
from ..data.base import Presence, SegDataset, Split
from ..data.contents import Copies, find_copies
from ..data.given import open_given
from ..data.saliency import SaliencyMaker
from ..engine.setup import LEAST, check_ranges
from ..errors import UserError
from ..memory import Exemplar
from ..methods.base import Method, make_method
from ..model.exchange import check_apart, put_right, replaceable
from ..model.lineage import check_history, version_of
from ..model.segmenter import Segmenter
from ..recipes import published_settings
from ..stored import Stored, data_names, find_model, load_stored, origin_names, step_of_run
from ..wording import are, count, have
from .options import AUTO, BATCH, NONE, REMBG, UPDATES, AddOptions, check_options

HELD_OUT = 5
"""Every fifth image of a class is held out where --min-new asks for a measurement;
of its exemplars every fifth for the gate."""
EXEMPLAR = ".memory/"
"""Begins the id of an exemplar; no id of a new image does, for hidden files are not listed. No slash before
it: an id in memory.json may not lead out of its folder."""

# of the settings that a method was published with, those that do not depend on the size of its data
_PUBLISHED = (
    "lr",
    "backbone_lr",
    "policy",
    "lr_floor",
    "momentum",
    "weight_decay",
    "clip",
    "crop_mode",
    "scale",
    "flip",
)


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Attributes:
        data: The data set.
        split: train or val.
        ids: Which.
    """

    data: SegDataset
    split: Split
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One more step, decided.

    Attributes:
        folder: The model directory that it starts from.
        target: Where the new model goes.
        network: The model.
        meta: Its model.json.
        beside: Contents of its further files by name.
        method: How the step is trained.
        classes: The new ones.
        new: Images to learn from.
        held: Images that the new classes are measured on; None: none.
        check: Images that the old classes are measured on; None: `judged`, or there is no gate.
        exemplars: Old images to replay.
        judged: Exemplars that are not replayed, for the gate looks at them: without --check a fifth.
        old_data: The data set that they are of.
        maker: Makes saliency maps; None: they are the folder's, or the method needs none.
        config: The run.
        options: As asked for.
        notes: Sentences on what was chosen, and why.
    """

    folder: Path
    target: Path
    network: Segmenter
    meta: Mapping[str, Any]
    beside: Mapping[str, bytes]
    method: Method
    classes: tuple[str, ...]
    new: Images
    held: Images | None
    check: Images | None
    exemplars: tuple[Exemplar, ...]
    judged: tuple[Exemplar, ...]
    old_data: SegDataset | None
    maker: SaliencyMaker | None
    config: RunConfig
    options: AddOptions
    notes: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """All classes afterwards, background first."""
        return (*self.meta["class_names"], *self.classes)

    @property
    def step(self) -> int:
        """Index of the step."""
        return int(self.meta["step"]) + 1

    @property
    def salient(self) -> Literal["folder", "made", "none"]:
        """Where saliency maps come from."""
        if self.maker is not None:
            return "made"
        return "folder" if "saliency" in self.method.aux else "none"

    @property
    def updates(self) -> int:
        """Of the whole step."""
        train = self.config.train
        return train.epochs * (len(self.new.ids) // train.batch_size)


def plan_addition(model: Path, data: Path, classes: Sequence[str], options: AddOptions) -> Plan:
    """Decide everything and check it; nothing is written but the user's cache.

    What a killed writer left beside the model is put right first.

    Args:
        model: A model directory or a run folder (its last step).
        data: Annotated images (`data/given.py: open_given`).
        classes: Names of the new classes; other classes of the data count as background.
        options: The rest.

    Raises:
        UserError: For the first thing that would go wrong.
    """
    for place in (model, options.out or model / "grown"):
        put_right(place, "segrow add")
    folder = find_model(model)
    check_history(folder)
    target = _target(model, folder, options.out)
    start = load_stored(folder, options.allow_code)
    network, meta, method = start.model, start.meta, start.method
    check_options(options)
    classes = [typed_name(name, "--classes") if isinstance(name, str) else name for name in classes]
    _check_classes(classes, meta, folder)
    dataset = open_given(data, "--data", ignore=options.ignore)
    present = dataset.presence("train")
    columns = _columns(dataset, classes, data)
    new, held = _divide(dataset, present, columns, classes, options)
    stored, old_data, notes = _memory(start, options)
    if stored and (total := len(dataset.class_names) + len(meta["class_names"]) - 1) > dataset.ignore_id:
        raise UserError(
            f"{total} classes of {data} and of the model do not fit its masks of {dataset.ignore_id} values; "
            "leave classes out of classes.txt, or --exemplars out"
        )
    judged = for_the_gate(stored) if options.check is None else ()
    exemplars = tuple(e for e in stored if e not in judged)
    method, more = _method(method, network)
    more += alike_notes(f"{data} and the model", dict.fromkeys((*meta["class_names"], *dataset.class_names)))
    maker = None
    if "saliency" in method.aux and (lacking := _without_map(new, stored, old_data)):
        maker = _saliency_maker(options.saliency)
        images = len(new.ids) + len(stored)
        if maker is None:
            method, lacking_said = _without_saliency(method, new, options, lacking, images)
            more.append(lacking_said)
        elif lacking < images:
            more.append(
                f"{images - lacking} of {count(images, 'image')} {have(images - lacking)} a saliency map; "
                "others get one"
            )
    config = _config(network, meta, method, len(new.ids), options)
    method.check(network, config.train.crop)
    check, remark = _check_images(options, meta, folder, bool(judged))
    copies = _copies(new, held, check)
    if options.strict:
        copies.refuse("leave them out of --data or of --check")
    if check is not None or judged or held is not None:
        _check_rejected(rejected_folder(target, int(meta["step"]) + 1))
    return Plan(
        folder,
        target,
        network,
        meta,
        start.beside,
        method,
        tuple(classes),
        new,
        held,
        check,
        exemplars,
        judged,
        old_data,
        maker,
        config,
        options,
        (
            *dataset.notes,
            *_as_background(new, present, columns, meta),
            *(check.data.notes if check else ()),
            *notes,
            *copies.notes(),
            *more,
            *remark,
        ),
    )


def _as_background(
    new: Images, present: Presence, columns: Sequence[int], meta: Mapping[str, Any]
) -> Iterator[str]:
    """Notes on what of the data is not learnt: images without a new class, and other classes."""
    shows = present.present[:, columns].any(axis=1)
    if without := int((~shows).sum()):
        show = "shows" if without == 1 else "show"
        yield (
            f"{new.data.root}: {without} of {count(len(present.ids), 'image')} {show} no new class "
            f"and {are(without)} left out"
        )
    rest = [v for v in np.flatnonzero(present.present[shows].any(axis=0)).tolist() if v not in (0, *columns)]
    unknown = [name for name in (new.data.class_names[v] for v in rest) if name not in meta["class_names"]]
    if unknown:
        yield (
            f"{new.data.root}: pixels of {', '.join(unknown[:20])} count as background; --classes names what "
            "is learnt"
        )


def _copies(new: Images, *measured: Images | None) -> Copies:
    """Images to learn from that are there twice, or are measured on: held out, or of --check."""
    files = {
        str(path): path
        for images in measured
        if images is not None
        for path in images.data.image_paths(images.split, images.ids).values()
    }
    return find_copies(new.data.image_paths(new.split, new.ids), files, "images to measure on")


def _target(model: Path, folder: Path, out: Path | None) -> Path:
    if out is not None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out} is there already; give another place, or leave --out out")
        _check_place(out, "--out")
        check_apart(out)
        return out
    if kept := version_of(folder):
        raise UserError(
            f"{model} is an earlier version of {kept}, which its history keeps as it was; give --out DIR, or "
            f"segrow rollback {kept} --to-version {folder.name.partition('-')[2]} first"
        )
    if run := step_of_run(folder) if folder == model else None:
        raise UserError(f"{model} is a step of run {run}, which stays as it was trained; give --out DIR")
    if folder == model:
        _check_place(folder, "model")
        return folder
    grown = model / "grown"
    _check_place(grown, "place")
    if grown.exists():
        raise UserError(
            f"{model} is a run folder and {grown} is there already; give {grown} as the model, or --out"
        )
    return grown


def for_the_gate(stored: Sequence[Exemplar]) -> tuple[Exemplar, ...]:
    """A fifth of the exemplars, spread over their classes; none of a single one.

    They are stored with the classes taking turns, so a stride over them as they are would meet the same few
    classes again and again.
    """
    by_class = sorted(stored, key=lambda e: e.classes)
    return tuple(by_class[::HELD_OUT]) if len(stored) > 1 else ()


def rejected_folder(target: Path, step: int) -> Path:
    """Where the new model goes when the gate does not let it through."""
    place = target.resolve()
    return place.parent / "rejected" / f"{place.name}-step-{step:02d}"


def _check_rejected(place: Path) -> None:
    """A rejected model can go there."""
    if place.parent.exists() and not place.parent.is_dir():
        raise UserError(f"{place.parent} is a file where a rejected model would go; give --out elsewhere")
    if place.exists() and not replaceable(place):
        raise UserError(f"{place} is not a model, and a rejected one would go there; move it, or give --out")


def _check_place(target: Path, what: str) -> None:
    """A folder can be made there."""
    above = target.resolve().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{what} {target} cannot be made, for {above} is a file; give another --out")
    if not os.access(above, os.W_OK):
        raise UserError(f"{what} {target} cannot be made, for {above} is read only; give another --out")


def _check_classes(classes: Sequence[str], meta: Mapping[str, Any], folder: Path) -> None:
    if not classes:
        raise UserError("--classes is empty; name at least one class to learn")
    names = list(meta["class_names"])
    for name in classes:
        if not isinstance(name, str) or name == names[0] or not name:
            raise UserError(f'"{name}" cannot be learnt; name classes of the folder, such as --classes zebra')
        if name in names:
            # a class cannot be taken out of a run's step
            alone = step_of_run(folder) is None
            other = ", or take it out of the model first (segrow remove-class)" if alone else ""
            raise UserError(
                f'{folder} knows "{name}" already (learnt in step {meta["class_steps"][names.index(name)]}); '
                f"leave it out of --classes{other}"
            )
        if now := next((new for new, old in meta.get("learnt_as", {}).items() if old == name), None):
            raise UserError(
                f'{folder} has learnt "{name}" already and calls it "{now}" now (segrow rename-class); give '
                "the new class another name in the folder and in --classes"
            )
        if list(classes).count(name) > 1:
            raise UserError(f'--classes holds "{name}" twice; every class needs a name of its own')


def _columns(dataset: SegDataset, classes: Sequence[str], data: Path) -> list[int]:
    """Mask values of the new classes."""
    for name in classes:
        if name in dataset.class_names and dataset.class_names.index(name) in dataset.ignored:
            raise UserError(f'pixels of "{name}" of {data} count nowhere; give --ignore none to learn it')
        if name not in dataset.class_names[1:]:
            listed = ", ".join(dataset.class_names[1:21])
            hint = name_hint(name, dataset.class_names[1:])
            raise UserError(f'{data} has no class "{name}"; its classes are {listed}.{hint}')
    return [dataset.class_names.index(name) for name in classes]


def _divide(
    dataset: SegDataset,
    present: Presence,
    columns: Sequence[int],
    classes: Sequence[str],
    options: AddOptions,
) -> tuple[Images, Images | None]:
    """Images to learn from, and to measure on: the validation images, or some of the others."""
    shows = present.present[:, columns]
    for name, images in zip(classes, shows.sum(0).tolist(), strict=True):
        if not images:
            raise UserError(
                f'no image of {dataset.root} shows "{name}": its value is in no mask; annotate some, or '
                "leave it out of --classes"
            )
    rows = np.flatnonzero(shows.any(axis=1)).tolist()
    if len(rows) < LEAST:
        raise UserError(
            f"{dataset.root} has {len(rows)} image to learn from, expected {LEAST} or more that show "
            f"{' or '.join(classes)}; annotate more"
        )
    held: list[int] = []
    validation = dataset.ids("val")
    if validation:
        measured = dataset.presence("val").present[:, columns].sum(0).tolist()  # checks every pair, too
        for name, images in zip(classes, measured, strict=True):
            if options.min_new is not None and not images:
                raise UserError(
                    f'--min-new measures "{name}" on the validation images of {dataset.root}, none of which '
                    "shows it; add some, or leave --min-new out"
                )
    elif options.min_new is not None:
        held = _hold_out(shows, classes, options.seed)
    chosen = tuple(present.ids[r] for r in rows if r not in set(held))
    if len(chosen) < LEAST:
        raise UserError(
            f"{dataset.root} has {len(chosen)} image to learn from besides what --min-new holds out, "
            f"expected {LEAST} or more that show {' or '.join(classes)}; annotate more, or leave it out"
        )
    new = Images(dataset, "train", chosen)
    if validation:
        return new, Images(dataset, "val", validation)
    return new, Images(dataset, "train", tuple(present.ids[r] for r in sorted(held))) if held else None


def _hold_out(shows: Any, classes: Sequence[str], seed: int) -> list[int]:
    """Rows to measure on: of every class a fifth of its images, at least one."""
    order = np.random.default_rng(seed).permutation(len(shows))
    held: list[int] = []
    for k, name in enumerate(classes):
        images = int(shows[:, k].sum())
        if images < 2:
            raise UserError(
                f'--min-new holds images out to measure "{name}" on, but only {images} image shows it; '
                "annotate more, or leave --min-new out"
            )
        wanted = max(1, images // HELD_OUT) - sum(bool(shows[r, k]) for r in held)
        held += [int(r) for r in order if shows[r, k] and int(r) not in held][: max(wanted, 0)]
    for k, name in enumerate(classes):
        if all(r in held for r in np.flatnonzero(shows[:, k]).tolist()):
            raise UserError(f'nothing is left to learn "{name}" from; annotate more, or leave --min-new out')
    return held


def _memory(start: Stored, options: AddOptions) -> tuple[tuple[Exemplar, ...], SegDataset | None, list[str]]:
    """Exemplars to replay and the data set they are of."""
    stored, folder, meta = start.memory(), start.folder, start.meta
    if options.exemplars is None:
        if not stored:
            return (), None, []
        return (), None, [f"its {len(stored)} exemplars are not replayed (--exemplars DIR would)"]
    if not stored:
        raise UserError(f"{folder} has no exemplars; leave --exemplars out")
    try:
        data = open_dataset(meta["scenario"]["data"], str(options.exemplars))
    except UserError as error:  # which names the option of segrow train
        raise UserError(str(error).replace("--data.root", "--exemplars")) from None
    known = set(data.ids("train"))
    if missing := [e.image for e in stored if e.image not in known]:
        raise UserError(
            f"{options.exemplars} lacks {len(missing)} of the model's {len(stored)} exemplars, first "
            f"{missing[0]}; give the folder that the model was trained on"
        )
    names = meta["class_names"]
    there = set(origin_names(meta, data.class_names).values())
    for name in sorted({names[c] for e in stored for c in e.classes if c not in there}):
        raise UserError(f'{options.exemplars} has no class "{name}", which exemplars of {folder} show')
    return stored, data, []


def _method(method: Method, network: Segmenter) -> tuple[Method, list[str]]:
    """The model's own method, changed where a few new images alone ask for it."""
    notes: list[str] = []
    fields = method.fields()
    if method.name in ("joint", "finetune"):
        loss = fields["loss_type"]
        notes.append(
            f"method {method.name} would forget, so ssul trains the step (its {loss} scores are the same)"
        )
        init = "background" if loss == "ce" else "random"
        method = make_method("ssul", {"unknown": "none", "loss_type": loss, "init": init})
        fields = method.fields()
    if "gives_way" in fields:
        # the new heads see no old images: what the model has chosen stays
        fields["gives_way"] = (*fields["gives_way"], network.n_classes)
        method = make_method(method.name, fields)
    if fields.get("freeze") == "none":
        notes.append("the trunk is frozen: a few images would only unsettle it")
        method = make_method(method.name, {**fields, "freeze": "trunk"})
    return method, notes


def _without_map(new: Images, exemplars: Sequence[Exemplar], old_data: SegDataset | None) -> int:
    """How many images have no saliency map; those that are there are read, for what is broken."""
    chosen = [(new.data, new.split, i) for i in new.ids]
    if old_data is not None:
        chosen += [(old_data, "train", e.image) for e in exemplars]
    there = [one for one in chosen if one[0].saliency_path(*one[1:]).is_file()]
    for data, split, i in there:
        data.saliency(split, i)
    return len(chosen) - len(there)


def _saliency_maker(wanted: str) -> SaliencyMaker | None:
    """What makes the maps that are lacking; None: nothing does, so there are none."""
    if wanted == NONE:
        return None
    if wanted != AUTO:
        return SaliencyMaker(wanted)
    try:
        return SaliencyMaker(REMBG)
    except UserError:  # not installed, or its weights cannot be fetched
        return None


def _without_saliency(
    method: Method, new: Images, options: AddOptions, lacking: int, images: int
) -> tuple[Method, str]:
    fields = method.fields()
    if "unknown" not in fields:
        raise UserError(
            f"method {method.name} needs saliency maps, which {lacking} of {count(images, 'image')} of "
            f"{new.data.root} lack{'s' if lacking == 1 else ''}; give --saliency FILE"
        )
    some = "there are no saliency maps"
    if lacking < images:
        some = f"{lacking} of {count(images, 'image')} {have(lacking)} no saliency map"
        some += ", and the others' are not used"
    remark = f"{some}, so all background may hide unknown objects"
    if options.saliency == AUTO:
        remark += ' (--saliency FILE makes maps; pip install "segrow[saliency]" does so by itself)'
    return make_method(method.name, {**fields, "unknown": "background"}), remark


def _config(
    network: Segmenter, meta: Mapping[str, Any], method: Method, images: int, options: AddOptions
) -> RunConfig:
    """Settings for a few images: the paper's rates, the model's own views, and updates enough."""
    scenario, protocol = meta["scenario"], meta["protocol"]
    published = published_settings(method.name, scenario["data"], scenario["task"]).get("train", {})
    chosen = {key: value for key, value in published.items() if key in _PUBLISHED}
    # views as the model has seen them: the frozen trunk knows no others, and a mirrored digit is none
    chosen |= meta.get("views", {})
    if "scale" in chosen:
        chosen["scale"] = tuple(chosen["scale"])
    batch = min(BATCH, images) if options.batch_size is None else options.batch_size
    if batch > images:
        raise UserError(
            f"--batch-size {batch} is more than the {count(images, 'image')} to learn from; use {images} or "
            "less"
        )
    train = TrainConfig(
        **chosen,
        epochs=-(-UPDATES // (images // batch)) if options.epochs is None else options.epochs,
        batch_size=batch,
        crop=protocol["crop"] if options.crop is None else options.crop,
        crop_val=protocol["crop_val"],
        device=options.device,
        workers=options.workers,
        feature_views=options.views,
    )
    if options.lr is not None:
        train = replace(train, lr=options.lr)
    config = RunConfig(
        task=scenario["task"],
        seed=options.seed,
        model=replace(network.config, weights="none"),
        memory=MemoryConfig(),
        train=train,
    )
    check_ranges(config)
    return config


def _check_images(
    options: AddOptions, meta: Mapping[str, Any], folder: Path, judged: bool
) -> tuple[Images | None, list[str]]:
    """What the gate looks at: --check, its validation images where it has some."""
    if options.check is None:
        if judged:
            return None, [
                "a fifth of the exemplars is not replayed: the gate looks at it; --check DIR judges better"
            ]
        if options.strict:
            raise UserError(
                "--strict wants a verdict on every old class, and there are no images to judge them by; give "
                "--check DIR (or --exemplars DIR), or leave --strict out"
            )
        return None, ["no gate: nothing says what becomes of the old classes (--check DIR would)"]
    data = open_given(options.check, "--check")
    split: Split = "val" if data.ids("val") else "train"
    columns = list(data_names(meta, data.class_names))
    if not columns:
        raise UserError(
            f"--check {options.check} has none of the classes that {folder} knows "
            f"({', '.join(meta['class_names'][1:])}); give images of old classes"
        )
    present = data.presence(split)
    if not present.present[:, columns].any():
        raise UserError(f"--check {options.check}: no image shows a class that {folder} knows")
    return Images(data, split, present.ids), []
