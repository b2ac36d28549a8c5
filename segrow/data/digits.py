"""Embedded demo data: real handwritten digits on cards, on real photographs.

    compose(Path("scenes"), scenes=300, val_scenes=100, seed=1)     # writes a folder data set

Everything comes out of scikit-learn's package (`load_digits`: 1,797 handwritten digits of 8x8 pixels;
`load_sample_images`: two photographs), so nothing is downloaded. Training and validation share no handwriting
(a stratified split of the samples) and no photograph pixel (a left and a right part of each). Scene i of a
split depends on (seed, split, i) alone, so the first 300 of 1,200 scenes are those of a composition of 300.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from ..atomic import appear, new_folder
from ..errors import UserError
from ..terminal import Terminal
from .base import Split
from .cache import cache_folder
from .folder import FolderDataset
from .scenes import Material, draw_scene

VERSION = 1  # of the composer: raise it whenever the same parameters would give other pixels
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 96  # pixels: a 12x12 map at output stride 8
DIGITS = 7  # quick to learn: four base digits and three more steps
VAL_SCENES = 200
SEED = 1
MARK = "scenes.json"  # says what was composed; a folder without it is somebody else's
TRAIN_SHARE = 0.8  # of the handwritten samples of each digit
TRAIN_WIDTH = 0.6  # of each photograph
STREAM = {"train": 0, "val": 1}  # second number of a scene's random seed; 2 splits the handwriting


@dataclass(frozen=True)
class Composition:
    """Every parameter of a composition; two equal ones give equal pixels.

    Attributes:
        scenes: Number of training scenes, at least 1.
        val_scenes: Number of validation scenes, at least 1.
        seed: Of everything random, at least 0.
        size: Height and width of a scene in pixels, 48 to 256.
        digits: Number of classes, 1 to 10: the digits from 0 on.
        version: Of the composer.

    Raises:
        UserError: A value outside its range.
    """

    scenes: int
    val_scenes: int = VAL_SCENES
    seed: int = SEED
    size: int = SIZE
    digits: int = DIGITS
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("scenes", self.scenes, 1, 99_999),
            ("val_scenes", self.val_scenes, 1, 99_999),
            ("seed", self.seed, 0, 2**32 - 1),
            ("size", self.size, 48, 256),
            ("digits", self.digits, 1, len(NAMES)),
        ):
            if not low <= value <= high:
                raise UserError(f"{name} of the digits data set is {value}; expected {low} to {high}")

    @property
    def folder(self) -> str:
        """A folder name that holds every parameter."""
        return (
            f"digits-v{self.version}-{self.digits}x{self.size}px"
            f"-{self.scenes}+{self.val_scenes}-seed{self.seed}"
        )

    @property
    def mark(self) -> str:
        """The text of the file that says what was composed."""
        return json.dumps(asdict(self)) + "\n"


class Digits(FolderDataset):
    """The composed scenes in `root`: a folder data set with saliency."""

    name = "digits"


def open_digits(root: str | None, scenes: int) -> Digits:
    """The demo data with `scenes` training scenes, composed if they are not there yet.

    Args:
        root: Folder for the scenes; None = a folder of their own in the user's cache.
        scenes: Number of training scenes.

    Raises:
        UserError: See `compose`.
    """
    what = Composition(scenes)
    folder = Path(root) if root else cache_folder() / what.folder
    _ensure(folder, what)
    return Digits(folder)


def compose(
    root: Path,
    scenes: int,
    val_scenes: int = VAL_SCENES,
    seed: int = SEED,
    size: int = SIZE,
    digits: int = DIGITS,
) -> None:
    """Writes a folder data set of scenes, all of it or nothing; does nothing if it is there already.

    Args:
        root: Its folder: absent, empty, or holding exactly this composition.
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        seed: Of everything random.
        size: Height and width of a scene in pixels.
        digits: Number of classes, "zero" on.

    Raises:
        UserError: A value out of range, a root that holds something else or cannot be written.
    """
    _ensure(root, Composition(scenes, val_scenes, seed, size, digits))


def _ensure(root: Path, what: Composition) -> None:
    root = root.expanduser().resolve()
    if _holds(root, what):
        return
    try:
        with new_folder(root) as temporary:
            _write(temporary, what)
            try:
                appear(temporary, root)
            except OSError:
                # another process may have finished the same scenes meanwhile
                if not _holds(root, what):
                    raise
    except OSError as error:
        raise UserError(
            f"the digit scenes cannot be written to {root} ({error.strerror}); "
            f"choose another folder with --data.root or SEGROW_CACHE"
        ) from None


def _holds(root: Path, what: Composition) -> bool:
    """Whether these very scenes are in `root`; False where there is nothing yet.

    Raises:
        UserError: Something else is there.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = (root / MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise UserError(
            f"{root} holds something else than digit scenes; give --data.root a new or an empty folder"
        ) from None
    if found != what.mark:
        raise UserError(
            f"{root} holds digit scenes with {' '.join(found.split())}, expected {what.mark.strip()}; "
            f"give --data.root another folder or delete this one"
        )
    return True


def _write(folder: Path, what: Composition) -> None:
    """All scenes as PNG (decoded alike everywhere), the class names, and last the mark."""
    splits: tuple[tuple[Split, int], ...] = (("train", what.scenes), ("val", what.val_scenes))
    # brief work needs no bar; many scenes take some seconds
    with Progress(
        console=Terminal(stderr=True), transient=True, disable=what.scenes + what.val_scenes < 100
    ) as bar:
        task = bar.add_task("composing scenes", total=what.scenes + what.val_scenes)
        for split, count in splits:
            material = load_material(what, split)
            places = [folder / kind / split for kind in ("images", "masks", "saliency")]
            for place in places:
                place.mkdir(parents=True)
            for i in range(count):
                scene = draw_scene(material, what.size, np.random.default_rng([what.seed, STREAM[split], i]))
                pictures = (scene.image, Image.fromarray(scene.mask), Image.fromarray(scene.saliency))
                for place, picture in zip(places, pictures, strict=True):
                    picture.save(place / f"{i:05d}.png", compress_level=3)
                bar.advance(task)
    names = ("background", *NAMES[: what.digits])
    (folder / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / MARK).write_text(what.mark, encoding="utf-8")


def load_material(what: Composition, split: Split) -> Material:
    """The handwriting and the photograph regions of a split; the two splits share neither."""
    # Imported here: scikit-learn takes a second to import, which only a composition should pay.
    from sklearn.datasets import load_digits, load_sample_images

    handwriting = load_digits()
    ink = np.minimum(handwriting.images * 16, 255).astype(np.uint8)  # 0..16 in the data
    rng = np.random.default_rng([what.seed, 2])
    digits = []
    for digit in range(what.digits):
        samples = rng.permutation(np.flatnonzero(handwriting.target == digit))
        cut = round(TRAIN_SHARE * len(samples))
        digits.append(ink[samples[:cut] if split == "train" else samples[cut:]])
    photos = []
    for number, photo in enumerate(load_sample_images().images):
        # training takes the left part of one photograph and the right part of the next: both splits see both
        width = photo.shape[1]
        cut = round((TRAIN_WIDTH if number % 2 == 0 else 1 - TRAIN_WIDTH) * width)
        left = (split == "train") == (number % 2 == 0)
        photos.append(Image.fromarray(np.ascontiguousarray(photo[:, :cut] if left else photo[:, cut:])))
    return Material(tuple(digits), tuple(photos))
