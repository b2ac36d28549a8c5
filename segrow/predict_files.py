"""Label maps and overlays of files, folders and patterns.

found = find_images(["photos/", "more/*.jpg"])
for done in predict_files(predictor, found.jobs, Path("out"), overlays=True): ...
"""

import errno
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .ahead import ahead
from .atomic import tidy, write_atomic
from .data.files import IMAGE_SUFFIXES, decode_image, opened
from .data.listing import advice, divide, left_out, pipes_left_out, walk
from .data.taken import Taken
from .errors import MachineError, UserError
from .palette import voc_palette
from .pictures import encoded
from .predict import Labels, Predictor, Segmentation
from .resources import enough_memory, machine_refuses

LARGE = 1 << 24
"""Pixels of an image beside which no other one is held."""
THREADED = ("cuda",)
"""Where the network leaves the processor free to read and write other images meanwhile."""


@dataclass(frozen=True)
class Job:
    """An image, and where its results go below the folder of results.

    Attributes:
        image: The file.
        place: Its path below the folder or pattern that was given, so sub-folders are kept.
    """

    image: Path
    place: Path


@dataclass(frozen=True)
class Prediction:
    """What was written for one image.

    Attributes:
        image: The input.
        labels: The label map; None when the image cannot be read.
        overlay: The picture with the labels painted over, if asked for.
        shares: Class name -> part of the pixels, 0..1, of the classes that appear, the largest first.
        problem: Why the image was skipped.
        taken: What was decided where the file does not say what its numbers mean.
    """

    image: Path
    labels: Path | None
    overlay: Path | None
    shares: dict[str, float]
    problem: str = ""
    taken: Taken = Taken.PLAIN


class Found(NamedTuple):
    """What was asked for: the images, and a sentence per folder or pattern of which files are left out."""

    jobs: list[Job]
    notes: tuple[str, ...]


def find_images(names: Sequence[str], out: Path | None = None) -> Found:
    """The images that files, folders (with what is below them) and patterns (`*`, `**`) name, each once.

    Of folders and patterns, what is not called as an image is left out; of folders, hidden files too.

    Args:
        names: As on the command line.
        out: The folder of results: what a folder or pattern around it finds in it is left out.

    Raises:
        UserError: A name that is nothing, or holds no image.
    """
    jobs: dict[str, Job] = {}
    notes = []
    for name in names:
        pipes: list[str] = []
        found, left = _jobs(name, out and out.resolve(), pipes)
        if not found:
            some = f": {left_out(left, 'image')}" if left else f": {pipes_left_out(pipes)}" if pipes else ""
            if "[" in name and not Path(name).exists():
                written = glob.escape(name.partition("*")[0])
                some += f"; [ begins a choice of letters in a pattern: for the sign itself write {written}…"
            raise UserError(f"{name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){some}")
        if left:
            notes.append(f"{name}: {left_out(left, 'image')}{advice(left, 'image')}")
        if pipes:
            notes.append(f"{name}: {pipes_left_out(pipes)}")
        for job in found:
            jobs.setdefault(os.path.realpath(job.image), job)  # a link that leads to itself is no error there
    return Found(list(jobs.values()), tuple(notes))


def _jobs(name: str, out: Path | None, pipes: list[str]) -> tuple[list[Job], list[str]]:
    """The images of a name, and what is left out of it; `pipes` takes what is no file."""
    path = Path(name)
    if path.is_dir():
        top, files = path, sorted(walk(path, pipes))
    elif glob.has_magic(name) and not path.exists():
        top = _fixed(path)
        files = [
            os.path.relpath(f, top) for f in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(f)
        ]
    elif not path.exists():
        raise UserError(f"image {path} is missing")
    else:
        return [Job(path, Path(path.name))], []
    if out is not None and out not in (top.resolve(), *top.resolve().parents):
        # what an earlier call has written is no input, unless it was asked for
        files = [f for f in files if not Path(os.path.realpath(top / f)).is_relative_to(out)]
    read, left = divide(files, IMAGE_SUFFIXES)
    if not path.is_dir():  # a pattern that finds hidden files means them
        read = [f for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES]
        left = [f for f in left if f not in read]
    return [Job(top / file, Path(file)) for file in read], left


def _fixed(pattern: Path) -> Path:
    """The folders in front of a pattern's first wildcard."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def predict_files(
    predictor: Predictor, jobs: Sequence[Job], out: Path, overlays: bool, unknown: bool = False
) -> Iterator[Prediction]:
    """Write `<stem>.png`, and with `overlays` `<stem>_overlay.jpg`, for every image; one result at a time.

    An image that cannot be read, or needs more memory than there is, is skipped.

    Args:
        predictor: The model.
        jobs: What to label.
        out: Folder of the results; made if it is missing.
        overlays: Also write the pictures with the labels painted over.
        unknown: Also write `<stem>_unknown.png`: 0..255 = how likely it is something never taught.

    Raises:
        UserError: Before anything is written: two inputs have one result, a result would overwrite an input,
            a folder stands where one would be written, or the folder cannot be made. Later: a result cannot
            be written.
        OSError: The disk is full, or too many files are open.
    """
    endings = [".png"] + overlays * ["_overlay.jpg"] + unknown * ["_unknown.png"]
    targets = _targets(jobs, out, endings)
    palette = voc_palette(max(256, len(predictor.classes)))
    for folder in dict.fromkeys([out, *(target.parent for target in targets)]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            if machine_refuses(error):
                raise
            raise UserError(f"{folder} cannot be a folder ({reason}); choose another --out.") from error
        tidy(folder)  # every file is whole by itself, so that several calls may share a folder
    maker = _Maker(predictor, palette, overlays, unknown)
    # each is forgotten with its pixels when it is done
    works = (_Work(job.image, target) for job, target in zip(jobs, targets, strict=True))
    if predictor.device.type in THREADED:
        return maker.beside(works)
    return (maker.write(maker.look(maker.read(work))) for work in works)


@dataclass
class _Work:
    """An image on its way; `problem` says why it is skipped."""

    image: Path
    target: Path
    pixels: npt.NDArray[np.uint8] | None = None
    taken: Taken = Taken.PLAIN
    seen: Segmentation | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Maker:
    """What is done with each image, in three parts; each does nothing when there is a problem already."""

    predictor: Predictor
    palette: npt.NDArray[np.uint8]
    overlays: bool
    unknown: bool

    def beside(self, works: Iterable[_Work]) -> Iterator[Prediction]:
        """While the network looks at an image, the next one is read and the one before is written."""
        read = (self.read(work) if _is_small(work.image) else work for work in works)
        with closing(ahead(read, 1)) as ready, ThreadPoolExecutor(1) as pool:
            before: Future[Prediction] | None = None
            for work in ready:
                self.look(self.read(work))
                if before is not None:
                    yield before.result()  # an error comes before anything else is written
                before = pool.submit(self.write, work)
                if work.pixels is not None and work.pixels.size > 3 * LARGE:
                    wait([before])
            if before is not None:
                yield before.result()

    def read(self, work: _Work) -> _Work:
        if work.pixels is None and not work.problem:
            with self._problems(work):
                picture, work.taken = decode_image(work.image)
                work.pixels = np.array(picture)
        return work

    def look(self, work: _Work) -> _Work:
        if work.pixels is not None and not work.problem:
            with self._problems(work):
                work.seen = self.predictor(work.pixels)
                if self.unknown:
                    _ = work.seen.unknown  # by the network's device
        return work

    def write(self, work: _Work) -> Prediction:
        done: Prediction | None = None
        if work.seen is not None and not work.problem:
            with self._enough(work):
                done = self._written(work, work.seen)
        return done or Prediction(work.image, None, None, {}, work.problem)

    @contextmanager
    def _problems(self, work: _Work) -> Iterator[None]:
        """An image that cannot be read is skipped, and one that needs more memory than there is."""
        with self._enough(work):
            try:
                yield
            except UserError as error:
                work.problem = str(error)

    @contextmanager
    def _enough(self, work: _Work) -> Iterator[None]:
        tile = self.predictor.tile
        smaller = f"a smaller --tile than {tile}" if tile else "--tile 1024, which takes pieces"
        try:
            with enough_memory(lambda error: f"try {smaller}"):
                yield
        except MachineError as error:
            work.problem = f"{work.image}: {error}"

    def _written(self, work: _Work, seen: Segmentation) -> Prediction:
        image, target = work.image, work.target
        painted = _beside(target, "_overlay.jpg") if self.overlays else None
        try:
            write_prediction(seen.labels, target, self.palette)
            if painted is not None:
                write_atomic(painted, encoded(seen.overlay(), "JPEG", quality=92))
            if self.unknown:
                grey = np.rint(255 * seen.unknown).astype(np.uint8)
                write_atomic(_beside(target, "_unknown.png"), encoded(Image.fromarray(grey), "PNG"))
        except OSError as error:
            # what the format cannot hold, such as a JPEG of 70,000 pixels; or a name too long with its ending
            if error.errno in (None, errno.ENAMETOOLONG):
                return Prediction(image, None, None, {}, f"{image}: its result cannot be written ({error})")
            if machine_refuses(error):  # such as a full disk: the next image would not fit either
                raise
            raise UserError(
                f"{target} cannot be written ({error.strerror}); use another --out, or allow writing there"
            ) from None
        return Prediction(image, target, painted, seen.shares(), taken=work.taken)


def _is_small(image: Path) -> bool:
    """Whether another image may be held beside it; False also when it cannot be opened."""
    try:
        with opened(image, "image") as picture:
            return picture.width * picture.height <= LARGE
    except UserError:
        return False


def write_prediction(labels: Labels, path: Path, palette: npt.NDArray[np.uint8]) -> None:
    """A PNG whose pixel value is the class index: with a palette, or 16-bit grey above 256 classes.

    Args:
        labels: H W class indices, not negative.
        path: Where it goes; written under a temporary name first.
        palette: uint8 n x 3, for at least the classes that appear.
    """
    if labels.dtype == np.uint8:
        picture = Image.fromarray(labels)
        picture.putpalette(palette[:256].tobytes())
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    write_atomic(path, encoded(picture, "PNG"))


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.stem}{ending}")


def _targets(jobs: Sequence[Job], out: Path, endings: Sequence[str]) -> list[Path]:
    """The label map of each image, once it is sure that nothing is written twice or over an input."""
    inputs = {Path(os.path.realpath(job.image)) for job in jobs}
    taken: dict[Path, Path] = {}  # what is written -> for which image
    targets = []
    for job in jobs:
        target = out / job.place.with_suffix(".png")
        for file in (_beside(target, ending) for ending in endings):
            if os.path.isdir(file):
                raise UserError(f"{file} is a folder, where a result would go; use another --out than {out}.")
            if file.resolve() in inputs:
                raise UserError(f"{file} would overwrite an input image; choose another --out than {out}.")
            if file in taken:
                raise UserError(
                    f"{taken[file]} and {job.image} would both be written to {file}; rename one, or predict"
                    " them into two folders."
                )
            taken[file] = job.image
        targets.append(target)
    return targets
