"""A run's models on its validation images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from ..data.base import Presence, SegDataset
from ..evaluate import Matrices, eval_loader, evaluate
from ..methods.base import Method
from ..model.segmenter import Segmenter
from ..resources import enough_memory
from ..scenario import Scenario
from .fitting import Gauge, evaluation_advice
from .machine import Machine
from .val_features import KeptFeatures


@dataclass(frozen=True)
class Validation:
    """What all evaluations of a run share.

    Attributes:
        data: The data set.
        scenario: Its classes in learning order.
        present: Classes present in every validation image.
        machine: Devices, options, display.
        features: Where the trunk's results are kept; None = they are computed every time.
    """

    data: SegDataset
    scenario: Scenario
    present: Presence
    machine: Machine
    features: KeptFeatures | None = None

    def showing(self, classes: Iterable[int]) -> tuple[str, ...]:
        """Ids of the images whose annotation shows one of these class indices, in the order of the data."""
        raw = [self.scenario.raw_ids[c] for c in classes]
        rows = zip(self.present.ids, self.present.present, strict=True)
        return tuple(image for image, row in rows if row[raw].any())

    def known(self, step: int) -> frozenset[str]:
        """Ids of the images that show a foreground class known after `step`."""
        return frozenset(self.showing(range(1, self.scenario.known(step))))

    def matrices(
        self,
        step: int,
        model: Segmenter,
        method: Method,
        images: tuple[str, ...],
        what: str,
        settled: bool = True,
    ) -> Matrices:
        """Confusion matrices over all processes, each of which evaluates its share.

        Args:
            step: Says which classes are known.
            model: On the device; in evaluation mode afterwards.
            method: Whose scores it is read with.
            images: Ids of validation images.
            what: Name of the progress bar.
            settled: The trunk is what later evaluations will meet: its features may be kept.
        """
        fabric, train, display = self.machine.fabric, self.machine.train, self.machine.display
        # whichever images are asked for, each is always the same process' business
        place = {image: k for k, image in enumerate(self.present.ids)}
        share = tuple(i for i in images if place[i] % fabric.world_size == fabric.global_rank)
        crop = train.crop if train.crop_val else None
        table = self.scenario.eval_table()
        features = self.features if settled else None
        if features:
            features.begin(model, crop)
        pixels = features is None or not features.hold(share)
        loader = eval_loader(
            self.data,
            "val",
            share,
            table,
            crop,
            train.val_batch_size,
            train.workers,
            fabric.device,
            pixels=pixels,
        )
        with enough_memory(partial(evaluation_advice, train, Gauge(fabric.device))):
            return evaluate(
                model,
                method.scores,
                loader,
                len(self.scenario.classes),
                self.known(step),
                fabric.device,
                channels_last=train.channels_last,
                features=features.features if features else None,
                track=lambda items: display.track(items, f"step {step} {what}", len(loader)),
                total=lambda counts: torch.as_tensor(fabric.all_reduce(counts, reduce_op="sum")),
            )
