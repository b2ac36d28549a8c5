"""Loading: images a second of one core, and the index of 12,000 masks cold and warm.

    python -m benchmarks --only loading

Both loaders read the same files in one process and make batches; what is counted is CPU time, so that other
work on the machine matters little. The reference hands on normalised float32 images and int64 labels, ours
uint8 images and int16 labels, which the device turns into the same; what that costs on a CPU is a row of its
own, without target.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import default_collate

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.data.cache import cache_folder
from segrow.data.index import index
from segrow.data.loader import EpochPlan, StepImages, collate, to_device
from segrow.data.masks import Values
from segrow.data.voc import NAMES, VocDataset
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter

from .data import ANIMALS, animals, few, photographs
from .ours import make_run
from .process import spawned
from .reference_data import ReferenceImages
from .report import Options, Row, less, more
from .timing import alternate

BATCH = 16
SMALL, LARGE = 96, 64  # images of the base class
PAIRS, FULL_PAIRS = 2000, 12_000
COLD, WARM = 40.0, 0.5  # seconds, of FULL_PAIRS
CPU = torch.device("cpu")


def run(options: Options) -> list[Row]:
    """Both loaders at crop 193, at 513 on real images and on photographs of VOC's size; then the index."""
    small = animals(options, "loading", few(SMALL, BATCH, of="person"), val=8)
    large = photographs(options.work / "large" / "VOC2012", few(LARGE, BATCH, of="person"), 8, options.seed)
    rows = _rows(options, small, 193)
    if options.root is not None:
        rows += _rows(options, small, 513, "data")
    rows += _rows(options, large, 513)
    return rows + _index_rows(options, VocDataset(large))


def _rows(options: Options, root: Path, crop: int, which: str = "") -> list[Row]:
    options.say(f"loading, {crop} px{which and ', real images'}")
    speed = spawn(root, crop, options.rounds or (7 if options.full else 4), options.seed)
    what = f"loading, {crop} px{which and ', real images'}, a core"
    key = f"loading.{crop}{which and '-data'}"
    note = "loading: images a second of CPU time in one new process, the fastest round of each"
    theirs = speed["reference"]
    return [
        more(key, what, "uint8", theirs, speed["ours"], "images/s", 3.0, note),
        more(
            f"{key}-normalised",
            what,
            "normalised on this CPU",
            theirs,
            speed["ours and normalised"],
            "images/s",
            note=note,
        ),
    ]


def spawn(root: Path, crop: int, rounds: int, seed: int) -> dict[str, float]:
    """`measure` in a process of its own, as a loader's worker is: there memory that is freed goes back to the
    system, while one that has trained before keeps it.

    Raises:
        UserError: When the data cannot be measured, with what the process said last.
    """
    words = (root.resolve(), crop, rounds, seed, BATCH)
    speed: dict[str, float] = spawned(f"loading of {root}", "benchmarks.loading", *words)
    return speed


def measure(root: Path, crop: int, rounds: int, seed: int, batch: int) -> dict[str, float]:
    """Images a second of the reference, of ours, and of ours with the normalisation that the device does."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        config = RunConfig(
            task="1-1",
            data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
            model=ModelConfig(name="deeplabv3_mobilenet", weights="none"),
            train=TrainConfig(epochs=1, batch_size=batch, crop=crop, device="cpu"),
        )
        plan = make_run(config, Ssul(), Path(work) / "plan")
        model = plan._base_model()
        images = plan._views(0, model, ())
        table = plan.scenario.train_table(0)
        reference = ReferenceImages(plan.data, images.images, table, crop, seed)
        seconds: dict[str, Callable[[], float]] = {
            "reference": partial(_reference, reference, batch),
            "ours": partial(_ours, images, None, batch),
            "ours and normalised": partial(_ours, images, model, batch),
        }
        found = alternate(seconds, rounds, lambda line: None, "")
    return {name: 1 / min(each) for name, each in found.items()}  # the least disturbed round


def _reference(images: ReferenceImages, batch: int) -> float:
    """CPU seconds an image."""
    n = len(images) // batch * batch
    start = time.process_time()
    for first in range(0, n, batch):
        default_collate([images[k] for k in range(first, first + batch)])
    return (time.process_time() - start) / n


def _ours(images: StepImages, model: Segmenter | None, batch: int) -> float:
    """CPU seconds an image; with a model, those of its normalisation too."""
    plan = EpochPlan(len(images), 0, batch, 1, 0)
    start = time.process_time()
    for draws in plan.batches(0):
        loaded = collate([images[draw] for draw in draws])
        if isinstance(loaded, Exception):
            raise loaded
        if model is not None:
            model.normalise(to_device(loaded[0], CPU, channels_last=True).images)
    return (time.process_time() - start) / (plan.iterations * batch)


def _index_rows(options: Options, data: VocDataset) -> list[Row]:
    """The same files under many ids: they come from memory, not from a disk, as they do after a download."""
    n = FULL_PAIRS if options.full else PAIRS
    ids = data.ids("train")
    files = [(str(data.image_path("train", i)), str(data.mask_path("train", i))) for i in ids]
    pairs = [files[k % len(files)] for k in range(n)]
    names = [f"{k:06d}" for k in range(n)]
    values = Values(len(NAMES), data.ignore_id)

    def once() -> float:
        start = time.perf_counter()
        index("bench", data.root, "train", names, pairs, values, progress=False)
        return time.perf_counter() - start

    spent = {}
    for state in ("cold", "warm"):
        options.say(f"loading: index of {n} masks, {state}")
        if state == "cold":
            for file in (cache_folder() / "presence").glob("bench-*"):
                file.unlink()
        spent[state] = once() * FULL_PAIRS / n
    scaled = "" if options.full else f", {n} measured and scaled"
    note = f"index: files in memory{scaled}; the figure it is held against is the target"
    return [
        less(
            f"loading.index-{state}",
            f"index of {FULL_PAIRS} masks",
            state,
            limit,
            spent[state],
            "s",
            1.0,
            note,
        )
        for state, limit in (("cold", COLD), ("warm", WARM))
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
