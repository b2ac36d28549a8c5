"""Which images a report shows, and their pictures: photo, truth, prediction and unknown map after each step.

After each step the step's model labels a pool of validation images; what it said is kept in the run's
folder `pictures/`. So the worst images of the last model can be shown with the predictions of every earlier
step, and a report after each step costs only the new step.
"""

import io
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..atomic import discard, locked, write_atomic
from ..config import DataConfig, RunPaths
from ..data import open_dataset
from ..data.base import SegDataset
from ..data.exclude import read_exclusion
from ..devices import choose_device
from ..engine.folder import images_hash
from ..errors import UserError
from ..methods.base import Method
from ..model.record import is_model, read_record
from ..palette import voc_palette
from ..pictures import encoded
from ..predict import Predictor
from ..scenario import Scenario, build_scenario
from ..sealed import read_sealed_json, write_sealed_json
from ..shapes import Shape
from ..stored import load_memory, load_with_method
from .figures import outline
from .runs import ReportRun, tested_on

POOL = 64
"""Validation images that are labelled after each step, unless another number is asked for."""
SHOWN = 8
"""Images of the grid."""
SIDE = 448  # pixels: longest side of a picture
UNKNOWN_SIDE = 160  # the map is smooth
THUMB = 88  # side of a training image's thumbnail
SEEN = 8  # thumbnails of a step's images, and of its exemplars
VERSION = 2  # of the folder; another one is drawn again
_VOID = (224, 224, 192)  # as in the label files of VOC

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a run: files in its folder.

    Attributes:
        folder: Where they are.
        images: Ids of the pool.
        of: How many validation images there are.
        palette: Colour of each class index: that of its raw id, so the same in every class order.
        scores: Per step, per image of the pool: its mean IoU, None where it shows and is given no class.
    """

    folder: Path
    images: tuple[str, ...]
    of: int
    palette: tuple[tuple[int, int, int], ...]
    scores: tuple[tuple[float | None, ...], ...]

    def photo(self, k: int) -> Path:
        """The k-th image of the pool, JPEG."""
        return self.folder / f"{k:04d}.jpg"

    def truth(self, k: int) -> Path:
        """Its annotation: a PNG to lay over the photo, transparent where it is background."""
        return self.folder / f"{k:04d}.png"

    def labels(self, step: int, k: int) -> Path:
        """What the model of a step said, a PNG as the truth."""
        return self.folder / f"step_{step:02d}" / f"{k:04d}.png"

    def unknown(self, step: int, k: int) -> Path:
        """How unknown that model found each pixel: a grey JPEG, white = unknown."""
        return self.folder / f"step_{step:02d}" / f"{k:04d}.jpg"

    def seen(self, step: int) -> Path | None:
        """Some training images of a step in a row; None where they were not kept."""
        return _there(self.folder / f"step_{step:02d}" / "seen.jpg")

    def exemplars(self, step: int) -> Path | None:
        """Some of the exemplars it replayed, in a row; None where there are none."""
        return _there(self.folder / f"step_{step:02d}" / "exemplars.jpg")


def _there(path: Path) -> Path | None:
    return path if path.exists() else None


@dataclass(frozen=True)
class Source:
    """The data a run was trained on, opened again."""

    data: SegDataset
    scenario: Scenario
    pool: tuple[str, ...]
    of: int

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """uint8 N+1 x 3: colour of each class index, that of its raw id."""
        return voc_palette(self.scenario.n_raw)[list(self.scenario.raw_ids)]


def open_source(run: ReportRun, root: str | None, pool: int) -> Source:
    """Open the data of a run.

    Args:
        run: The run.
        root: The data set's folder, where it is not the one the run was trained with.
        pool: Most images of the pool.

    Raises:
        UserError: The data are not there, or are not those the run was trained and tested on.
    """
    options = run.config["data"]
    where = root or options.get("root")
    if root is None and where is not None and not Path(where).is_dir():
        raise UserError(f"its data were in {where}, which is not there; give --data.root DIR")
    data = open_dataset(
        options["name"],
        where,
        options.get("scenes", DataConfig.scenes),
        exclude=read_exclusion(options.get("exclude")),
        ignore=options.get("ignore"),
    )
    train, val = data.presence("train", False), data.presence("val", False)
    scenario = build_scenario(
        options["name"],
        data.class_names,
        data.ignore_id,
        train,
        run.config["task"],
        run.config["setting"],
        options.get("classes"),
        options.get("order_seed"),
        run.config["seed"],
        ignored=data.ignored,
    )
    tested = images_hash(val.ids)
    if list(scenario.classes) != run.results["classes"] or tested != tested_on(run)[1]:
        raise UserError(f"the data in {data.root} are not those that {run.name} was tested on")
    foreground = sorted(
        scenario.raw_ids[1:]
    )  # not in learning order: runs of other orders have the same pool
    return Source(
        data, scenario, tuple(val.ids[k] for k in pool_of(val.present[:, foreground], pool)), len(val.ids)
    )


def pool_of(present: npt.NDArray[np.bool_], size: int) -> list[int]:
    """Rows of a presence matrix such that every class shows: the classes take turns, each adds one more.

    Args:
        present: images x classes.
        size: Most rows; images that show no class fill what is left.
    """
    queues = [np.flatnonzero(column).tolist() for column in present.T]
    queues.append(np.flatnonzero(~present.any(1)).tolist())
    chosen: dict[int, None] = {}
    while len(chosen) < size and any(queues):
        for queue in queues[:-1] if any(queues[:-1]) else queues[-1:]:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < size:
                chosen[queue.pop(0)] = None
    return sorted(chosen)


def update_gallery(
    run: ReportRun,
    root: str | None,
    pool: int,
    allow_code: bool,
    trusted: Method | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Gallery:
    """Draw what is missing of a run's pictures.

    Args:
        run: The run.
        root: The data set's folder, where it is not the one the run was trained with.
        pool: Most images of the pool.
        allow_code: Import a method from outside segrow.
        trusted: A method that is in use already.
        device: Where pictures are predicted, cpu or cuda; None: a GPU if there is one.
        say: Gets a line for each step that is drawn.

    Raises:
        UserError: Its data or a model are missing, or its method is code that may not be imported.
    """
    source = open_source(run, root, pool)
    folder = run.folder / "pictures"
    about = {
        "version": VERSION,
        "images": list(source.pool),
        "of": source.of,
        "classes": list(source.scenario.classes),
        "palette": source.palette.tolist(),
    }
    if _undrawn(run, folder, about):
        with locked(folder, "segrow report"):
            place = choose_device(device or "auto", "--device")
            draw = partial(_draw_step, allow_code=allow_code, trusted=trusted, device=place)
            _draw_missing(run, source, about, draw, say)
    return stored_gallery(run)


def _draw_missing(
    run: ReportRun,
    source: Source,
    about: Mapping[str, Any],
    draw_step: Callable[[Path, Source, ReportRun, int], None],
    say: Callable[[str], None] | None,
) -> None:
    """The pool, if it is another one or damaged, and the steps that lack whole pictures of their model."""
    folder = run.folder / "pictures"
    if not _is_pool(folder, about):
        _clear(folder)
        _draw_pool(folder, source)
        _close(folder, _POOL, about)
    for step in _undrawn(run, folder, about):
        if say:
            why = " again: its pictures are of another model, or were changed"
            there = (folder / f"step_{step:02d}" / _SCORES).exists()
            say(f"step {step}  drawing {len(source.pool)} images for the report{why if there else ''}")
        draw_step(folder, source, run, step)


def _is_pool(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether the pool's pictures are those that are wanted, and whole."""
    stored = _read(folder / _POOL, _ABOUT)
    return (
        stored is not None and _is_whole(folder, stored) and all(stored.get(k) == v for k, v in about.items())
    )


def _undrawn(run: ReportRun, folder: Path, about: Mapping[str, Any]) -> list[int]:
    """Steps without whole pictures of their model."""
    steps = [int(record["step"]) for record in run.records]
    if not _is_pool(folder, about):
        return steps
    size = len(about["images"])
    return [s for s in steps if _step(folder, s, _hash(RunPaths(run.folder).model(s)), size) is None]


def stored_gallery(run: ReportRun) -> Gallery:
    """The pictures of a run as an earlier report left them.

    Raises:
        UserError: There are none, or not of every step.
    """
    folder = run.folder / "pictures"
    about = _read(folder / _POOL, _ABOUT)
    if about is None or not _is_whole(folder, about) or not {"images", "of", "palette"} <= about.keys():
        raise UserError(f"{run.name} has no pictures from an earlier report")
    images = tuple(about["images"])
    scores = [_step(folder, int(record["step"]), None, len(images)) for record in run.records]
    values = tuple(tuple(each) for each in scores if each is not None)
    if len(values) < len(scores):
        raise UserError(f"{run.name} has pictures of {len(values)} of its steps only")
    palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
    return Gallery(folder, images, int(about["of"]), palette, values)


_POOL, _SCORES = "pool.json", "scores.json"
"""What says of a folder what it holds; the file of a step goes into that step's folder."""
_ABOUT: Shape = {
    "images?": [str],
    "of?": int,
    "palette?": [[range(256)]],
    "bytes?": {str: int},
    "sums?": {str: int},
}
_SEEN: Shape = {"model?": str, "scores?": [(float, None)], "bytes?": {str: int}, "sums?": {str: int}}
# what a report may throw away; the last are hidden, left by a kill or by a desktop
_OURS = re.compile(r"step_\d+|\d+\.(jpg|png)|pool\.json|\..*")


def _close(folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """Write what a folder holds, with the sums of its pictures: what has it, and agrees, is whole."""
    write_sealed_json(folder / name, {**about, "sums": _sums(folder)})


def _is_whole(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether the pictures that a folder is said to hold are there, each as it was."""
    found = _sums(folder) if "sums" in about else _sizes(folder)  # of an earlier segrow
    return bool(found == about.get("sums", about.get("bytes")))


def _sums(folder: Path) -> dict[str, int]:
    """CRC-32 of each picture in a folder, JPEG and PNG, by its name."""
    return {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.glob("*.??g"))}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each picture in a folder, JPEG and PNG, by its name."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.??g"))}


def _step(folder: Path, step: int, model: str | None, images: int) -> list[float | None] | None:
    """The stored scores of a step; None where its pictures are not whole, or those of another model.

    Args:
        folder: Of all pictures.
        step: Which step.
        model: Hash of its model; None: whichever it was.
        images: How many there should be.
    """
    place = folder / f"step_{step:02d}"
    stored = _read(place / _SCORES, _SEEN)
    if stored is None or not _is_whole(place, stored) or model not in (None, stored.get("model")):
        return None
    scores = stored.get("scores")
    return scores if isinstance(scores, list) and len(scores) == images else None


def _clear(folder: Path) -> None:
    """Take away the pictures of earlier reports.

    Raises:
        UserError: The folder holds something that no report has put there.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    if others := [path.name for path in there if not _OURS.fullmatch(path.name)]:
        raise UserError(f"{folder} holds {others[0]}, which is not a picture of a report; move it elsewhere")
    if there and not (folder / _POOL).exists():
        raise UserError(f"{folder} holds pictures that no report has made; move them elsewhere")
    if there:
        discard(folder)
    write_atomic(folder / _POOL, b"{}")  # what follows is a report's, even after a kill


def _hash(model: Path) -> str:
    if not is_model(model):
        raise UserError(f"{model} is not there; pictures need the model of every step")
    return str(read_record(model)["hashes"]["model"])


def _read(path: Path, shape: Shape) -> dict[str, Any] | None:
    """A JSON file; None where there is none that can be read: the pictures are drawn again."""
    try:
        loaded: dict[str, Any] = read_sealed_json(path, "pictures", shape)
    except UserError:
        return None
    return loaded


def _draw_pool(folder: Path, source: Source) -> None:
    palette, table = source.palette, source.scenario.eval_table()
    for k, image_id in enumerate(source.pool):
        photo = Image.fromarray(source.data.image("val", image_id))
        photo.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        write_atomic(folder / f"{k:04d}.jpg", encoded(photo, "JPEG", quality=85))
        truth = table[source.data.mask("val", image_id)]
        write_atomic(folder / f"{k:04d}.png", label_png(truth, photo.size, palette))


def _draw_step(
    folder: Path,
    source: Source,
    run: ReportRun,
    step: int,
    allow_code: bool,
    trusted: Method | None,
    device: str,
) -> None:
    target = folder / f"step_{step:02d}"
    shutil.rmtree(target, ignore_errors=True)
    model, meta, reader = load_with_method(RunPaths(run.folder).model(step), allow_code, device, trusted)
    crop = meta["protocol"]["crop"] if meta["protocol"]["crop_val"] else None
    predictor = Predictor(
        model,
        reader.scores,
        meta["class_names"],
        crop=crop,
        device=device,
        precision="32",  # as it was evaluated
        novelty=reader.novelty,
    )
    palette, table = source.palette, source.scenario.eval_table()
    values: list[float | None] = []
    for k, image_id in enumerate(source.pool):
        seen = predictor(source.data.image("val", image_id))
        truth = table[source.data.mask("val", image_id)]
        values.append(image_iou(truth, seen.labels, len(meta["class_names"])))
        with Image.open(folder / f"{k:04d}.jpg") as photo:
            size = photo.size
        write_atomic(target / f"{k:04d}.png", label_png(seen.labels, size, palette))
        grey = Image.fromarray(np.rint(255 * seen.unknown).astype(np.uint8))
        grey.thumbnail((UNKNOWN_SIDE, UNKNOWN_SIDE))
        write_atomic(target / f"{k:04d}.jpg", encoded(grey, "JPEG", quality=75))
    _thumbnails(target / "seen.jpg", source.data, source.scenario.images(step, reader.sees))
    if step and run.records[step]["exemplars"]:
        kept = load_memory(RunPaths(run.folder).model(step - 1))
        _thumbnails(target / "exemplars.jpg", source.data, tuple(e.image for e in kept))
    _close(target, _SCORES, {"model": meta["hashes"]["model"], "scores": values})


def image_iou(truth: Labels, labels: Labels, known: int) -> float | None:
    """Mean IoU of one image over the known foreground classes it shows or is given.

    Classes that are not learnt yet count as background: painting over them is a mistake.

    Args:
        truth: H W class indices, negative = void.
        labels: H W, predicted.
        known: Number of known classes, background included.
    """
    valid = truth >= 0
    expected, got = np.where(truth[valid] < known, truth[valid], 0), labels[valid]
    values = []
    for c in np.union1d(expected, got).tolist():
        if c:
            values.append(((expected == c) & (got == c)).sum() / ((expected == c) | (got == c)).sum())
    return float(np.mean(values)) if values else None


def label_png(labels: Labels, size: tuple[int, int], palette: npt.NDArray[np.uint8]) -> bytes:
    """A label map to lay over a photo: classes in their colours, edges solid, background transparent.

    Args:
        labels: H W class indices; negative = void, pale.
        size: Width and height of the result.
        palette: uint8 n x 3.
    """
    rows = np.minimum(((np.arange(size[1]) + 0.5) * labels.shape[0] / size[1]).astype(int), len(labels) - 1)
    columns = ((np.arange(size[0]) + 0.5) * labels.shape[1] / size[0]).astype(int)
    small = labels[rows[:, None], np.minimum(columns, labels.shape[1] - 1)[None]]
    alpha = np.where(outline(small), 255, 150)
    alpha[small == 0] = 0
    alpha[small < 0] = 90
    colours = palette[np.maximum(small, 0)]
    colours[small < 0] = _VOID
    colours[small == 0] = 0
    rgba = np.ascontiguousarray(np.dstack([colours, alpha.astype(np.uint8)]))
    values, index = np.unique(rgba.view(np.uint32), return_inverse=True)
    if len(values) > 256:
        return encoded(Image.fromarray(rgba), "PNG")
    entries = values.view(np.uint8).reshape(-1, 4)
    picture = Image.fromarray(index.reshape(small.shape).astype(np.uint8))
    picture.putpalette(entries[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=entries[:, 3].tobytes())
    return buffer.getvalue()


def _thumbnails(path: Path, data: SegDataset, images: Sequence[str]) -> None:
    """A row of some training images, centre squares; nothing when there are none."""
    if not images:
        return
    some = [images[k] for k in np.unique(np.linspace(0, len(images) - 1, min(SEEN, len(images))).astype(int))]
    row = Image.new("RGB", (len(some) * THUMB, THUMB))
    for k, image_id in enumerate(some):
        picture = data.picture("train", image_id)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        row.paste(square.resize((THUMB, THUMB), Image.Resampling.LANCZOS), (k * THUMB, 0))
    write_atomic(path, encoded(row, "JPEG", quality=80))


def choose(scores: Sequence[Sequence[float | None]], n: int = SHOWN) -> list[tuple[int, str]]:
    """Images to show, and why: half of them the worst, a quarter those that lost most, the best, the middle.

    Args:
        scores: Per step, per image: its IoU; None where nothing can be counted.
        n: How many, at least 4.
    """
    last = [(value, k) for k, value in enumerate(scores[-1]) if value is not None]
    ranked = [k for _, k in sorted(last)]
    drops = {k: max((row[k] or 0.0) for row in scores) - (scores[-1][k] or 0.0) for k in ranked}
    chosen: dict[int, str] = dict.fromkeys(ranked[: n // 2], "among the worst")
    for k in sorted(ranked, key=lambda k: -drops[k]):
        if len(chosen) < n // 2 + n // 4 and drops[k] > 0:
            chosen.setdefault(k, "lost most")
    if ranked:
        chosen.setdefault(ranked[-1], "the best")
        chosen.setdefault(ranked[len(ranked) // 2], "in the middle")
    for k in [*ranked, *range(len(scores[-1]))]:
        if len(chosen) < n:
            chosen.setdefault(k, "further")
    return list(chosen.items())[:n]
