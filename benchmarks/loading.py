"""Loading: images a second of one core, and the index of 12,000 masks cold and warm.

    python -m benchmarks --only loading

Both loaders read the same files in one process and make batches; what is counted is CPU time, so that other
work on the machine matters little. The reference hands on normalised float32 images and int64 labels, ours
uint8 images and int16 labels, which the device turns into the same; what that costs on a CPU is a row of its
own, without target.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import default_collate

from segrow.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from segrow.data.index import Values, cache_folder, index
from segrow.data.loader import EpochPlan, StepImages, collate, to_device
from segrow.data.voc import NAMES, VocDataset
from segrow.methods.ssul import Ssul
from segrow.model.segmenter import Segmenter

from .data import ANIMALS, animals, few, photographs
from .ours import make_run
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
    config = RunConfig(
        task="1-1",
        data=DataConfig(name="voc", root=str(root), classes=ANIMALS),
        model=ModelConfig(name="deeplabv3_mobilenet", weights="none"),
        train=TrainConfig(epochs=1, batch_size=BATCH, crop=crop, device="cpu"),
    )
    plan = make_run(config, Ssul(), options.work / f"plan-loading-{crop}{which}")
    model = plan._base_model()
    images = plan._views(0, model, ())
    reference = ReferenceImages(plan.data, images.images, plan.scenario.train_table(0), crop, options.seed)
    seconds: dict[str, Callable[[], float]] = {
        "reference": partial(_reference, reference),
        "ours": partial(_ours, images, None),
        "ours and normalised": partial(_ours, images, model),
    }
    rounds = options.rounds or (7 if options.full else 4)
    with one_thread():
        found = alternate(seconds, rounds, options.say, f"loading, {crop} px{which and ', real'}")
    speed = {name: 1 / min(each) for name, each in found.items()}  # the least disturbed round
    what = f"loading, {crop} px{', real images' if which else ''}, a core"
    key = f"loading.{crop}{f'-{which}' if which else ''}"
    note = "loading: images a second of CPU time in one process, the fastest round of each"
    return [
        more(key, what, "uint8", speed["reference"], speed["ours"], "images/s", 3.0, note),
        more(
            f"{key}-normalised",
            what,
            "normalised on this CPU",
            speed["reference"],
            speed["ours and normalised"],
            "images/s",
            note=note,
        ),
    ]


def _reference(images: ReferenceImages) -> float:
    """CPU seconds an image."""
    n = len(images) // BATCH * BATCH
    start = time.process_time()
    for first in range(0, n, BATCH):
        default_collate([images[k] for k in range(first, first + BATCH)])
    return (time.process_time() - start) / n


def _ours(images: StepImages, model: Segmenter | None) -> float:
    """CPU seconds an image; with a model, those of its normalisation too."""
    plan = EpochPlan(len(images), 0, BATCH, 1, 0)
    start = time.process_time()
    for draws in plan.batches(0):
        loaded = collate([images[draw] for draw in draws])
        if isinstance(loaded, Exception):
            raise loaded
        if model is not None:
            model.normalise(to_device(loaded[0], CPU, channels_last=True).images)
    return (time.process_time() - start) / (plan.iterations * BATCH)


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


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as in a loader's worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
