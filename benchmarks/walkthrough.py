"""Everything in docs/teach-your-own-class.md, from embedded data: the folders, the commands, the pictures.

python -m benchmarks.walkthrough folders --out walk     the folders; the page's commands then work in walk/
python -m benchmarks.walkthrough all --out walk         folders, commands with their output, pictures

The images are scenes of handwritten digits on photographs (`segrow/data/digits.py`), all from scikit-learn's
package. They stand for what an engineer has: a model of some classes, photographs of another one with masks
that show it alone, and annotated images of the old classes. One to eight are the old classes, zero is the new
one; nine is an object that nobody names. Zeros and nines stand undrawn in images of the base, as what a model
learns later does in most data sets.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from segrow import cli, load
from segrow.data.base import Split
from segrow.data.digits import NAMES, Digits, compose
from segrow.errors import UserError
from segrow.palette import voc_palette
from segrow.report.figures import overlay

OLD = ("one", "two", "three", "four", "five", "six", "seven", "eight")
NEW = "zero"
WRONG = "nine"
"""Somebody exported its masks inverted."""
SCENES, VAL_SCENES = 2000, 300
PHOTOS, LOOKED_AT = 100, 6
SEED = 1

BASE = """\
# the model that somebody has: eight digits, a small network from scratch, a minute or two on two CPU cores
task: offline
seed: 1
data: {name: folder, root: base}
model:
  {name: deeplabv3_test_resnet, weights: none, output_stride: 8, width: 64, rates: [2, 4, 6],
   norm_momentum: 0.1}
method: {name: ssul}
train:
  {epochs: 12, batch_size: 16, step0_lr: 0.1, step0_backbone_lr: 0.1, crop: 96, scale: [0.8, 1.25], flip: 0.0,
   workers: 1, device: cpu}
"""

GATE = "--check old_photos --min-new 30"
ADD = f"segrow add run --data photos --classes {NEW} {GATE} --out models/digits"
COMMANDS = (
    (0, "segrow train --config base.yaml --out run"),
    (0, f"{ADD} --dry-run"),
    (0, ADD),
    (0, "segrow predict models/digits new_photos --out seen --unknown"),
    (3, f"segrow add models/digits --data wrong --classes {WRONG} --check old_photos"),
    (0, "segrow lineage models/digits"),
    (0, f"segrow rename-class models/digits {NEW} nought"),
    (0, "segrow remove-class models/digits nought"),
    (0, "segrow rollback models/digits --to-step 1"),
)
"""Exit code and command, as the page has them, in this order."""


# --- folders ------------------------------------------------------------------------------------------------


def folders(out: Path, scenes: int = SCENES, val_scenes: int = VAL_SCENES) -> None:
    """All folders of the walk-through and base.yaml; what was there of them is replaced.

    Args:
        out: Their place.
        scenes: Training scenes that are composed.
        val_scenes: Validation scenes.
    """
    compose(out / "scenes", scenes, val_scenes, SEED, digits=NAMES.index(WRONG) + 1)
    data = Digits(out / "scenes")
    train, val = (scenes_with(data, split) for split in ("train", "val"))
    old = [i for i, shown in val.items() if shown <= set(OLD)]
    new = [i for i, shown in train.items() if NEW in shown][:PHOTOS]
    wrong = [i for i, shown in train.items() if WRONG in shown and NEW not in shown][:PHOTOS]
    base = [i for i, shown in train.items() if shown & set(OLD) and i not in {*new, *wrong}]
    looked_at = [i for i, shown in val.items() if NEW in shown and shown & set(OLD) and len(shown) > 2]
    for name in ("base", "old_photos", "photos", "wrong", "new_photos"):
        shutil.rmtree(out / name, ignore_errors=True)
    write_folder(data, out / "base", "train", base, OLD, place="train")
    write_folder(data, out / "base", "val", old[::3], OLD, place="val")
    write_folder(data, out / "old_photos", "val", [i for i in old if i not in old[::3]], OLD)
    write_folder(data, out / "photos", "train", new, (NEW,))
    write_folder(data, out / "wrong", "train", wrong, (WRONG,), inverted=True)
    (out / "new_photos").mkdir()
    for i in looked_at[:LOOKED_AT]:
        shutil.copy(data.image_path("val", i), out / "new_photos")
    (out / "base.yaml").write_text(BASE)


def scenes_with(data: Digits, split: Split) -> dict[str, set[str]]:
    """What every scene shows, by its id."""
    found = data.presence(split)
    rows = zip(found.ids, found.present, strict=True)
    return {i: {data.class_names[k] for k in np.flatnonzero(row) if k} for i, row in rows}


def write_folder(
    data: Digits,
    root: Path,
    split: Split,
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    place: str = "",
    inverted: bool = False,
) -> None:
    """A folder of one's own: images, masks that show some classes alone, saliency maps.

    Args:
        data: The scenes.
        root: The folder.
        split: Of the scenes.
        ids: Which of them.
        classes: Which digits the masks show, as values 1 on; the others are background.
        place: Sub-folder of images, masks and saliency: none, train or val.
        inverted: Draw what is not of the classes as the first of them, and the classes as background.
    """
    images, masks, saliency = (root / name / place for name in ("images", "masks", "saliency"))
    for folder in (images, masks, saliency):
        folder.mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *classes)))
    table = np.zeros(256, np.uint8)
    table[[data.class_names.index(name) for name in classes]] = range(1, len(classes) + 1)
    for i in ids:
        mask = table[data.mask(split, i)]
        drawn = (mask == 0).astype(np.uint8) if inverted else mask
        Image.fromarray(drawn).save(masks / f"{i}.png")
        shutil.copy(data.image_path(split, i), images)
        shutil.copy(data.saliency_path(split, i), saliency)


# --- commands -----------------------------------------------------------------------------------------------


def type_all() -> None:
    """Every command of the page in the present folder, with its output.

    Raises:
        UserError: One ends otherwise than the page says.
    """
    for made in ("run", "models", "seen"):
        shutil.rmtree(made, ignore_errors=True)
    for code, command in COMMANDS:
        print(f"$ {command}", flush=True)
        got = cli.main(shlex.split(command)[1:])
        print(f"exit code {got}\n", flush=True)
        if got != code:
            raise UserError(f"exit code {got} of {command}, expected {code}")


# --- pictures -----------------------------------------------------------------------------------------------


def draw_photos(out: Path, path: Path) -> None:
    """Four of the photographs, and what their masks show."""
    data = sorted((out / "photos/images").iterdir())[:4]
    figure, axes = plt.subplots(2, 4, figsize=(6.4, 3.4), layout="constrained")
    for (top, bottom), image in zip(axes.T, data, strict=True):
        show(top, np.asarray(Image.open(image)))
        mask = np.asarray(Image.open(out / "photos/masks" / image.name))
        show(bottom, voc_palette(2 + len(OLD))[np.where(mask == 1, 1 + len(OLD), 0)])
    axes[0, 0].set_ylabel("images/", fontsize=9)
    axes[1, 0].set_ylabel("masks/", fontsize=9)
    save(figure, path)


def draw_results(out: Path, path: Path) -> None:
    """Images that nobody trained on: what the models before and after say, and what they do not know."""
    images = sorted((out / "new_photos").iterdir())[:4]
    models = {"before": load(out / "run"), "after": load(out / "models/digits")}
    palette = voc_palette(256)
    figure, axes = plt.subplots(len(images), 5, figsize=(8, 1.7 * len(images)), layout="constrained")
    for row, image in zip(axes, images, strict=True):
        show(row[0], np.asarray(Image.open(image)))
        for column, predictor in enumerate(models.values()):
            seen = predictor(image)
            show(row[1 + column], overlay(seen.image, seen.labels, palette))
            row[3 + column].imshow(seen.unknown, cmap="gray", vmin=0, vmax=1)
            bare(row[3 + column])
    titles = ("image", *models, *(f"unknown, {name}" for name in models))
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=9)
    colours = [Patch(color=palette[k] / 255) for k in range(1, 2 + len(OLD))]
    figure.legend(colours, (*OLD, NEW), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    save(figure, path)


def show(panel: Axes, pixels: np.ndarray) -> None:
    """An image without axes."""
    panel.imshow(pixels)
    bare(panel)


def bare(panel: Axes) -> None:
    """No ticks."""
    panel.set_xticks([])
    panel.set_yticks([])


def save(figure: Figure, path: Path) -> None:
    """A small PNG: 256 colours are enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


# --- the command --------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Make what was asked for; 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.walkthrough",
        description="The walk-through of docs/teach-your-own-class.md, from embedded data.",
    )
    parser.add_argument("what", choices=("folders", "all"), help="the data alone, or everything")
    parser.add_argument("--out", type=Path, default=Path("walk"), metavar="DIR", help="default: walk")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="where the pictures go (default: OUT/pictures)"
    )
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    pictures = (arguments.pictures or out / "pictures").resolve()
    try:
        folders(out)
        if arguments.what == "all":
            os.chdir(out)
            type_all()
            draw_photos(out, pictures / "teach_photos.png")
            draw_results(out, pictures / "teach_results.png")
    except UserError as error:
        print(f"benchmarks.walkthrough: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
