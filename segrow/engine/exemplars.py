"""After a step: which images stay as exemplars (SSUL-M, METHODS 2)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from ..config import RunConfig
from ..data.base import Presence, SegDataset
from ..data.loader import iterate, to_device
from ..evaluate import eval_loader
from ..memory import Exemplar, merge_candidates, select_exemplars
from ..methods.base import Method
from ..model.segmenter import Segmenter
from ..scenario import Scenario
from .log import Display


@dataclass(frozen=True)
class Chooser:
    """Knows what every image shows: by its annotation, and by the model's certain predictions."""

    data: SegDataset
    scenario: Scenario
    present: Presence
    config: RunConfig
    display: Display

    def choose(
        self,
        step: int,
        model: Segmenter,
        method: Method,
        previous: tuple[Exemplar, ...],
        device: torch.device,
    ) -> tuple[Exemplar, ...]:
        """Class-balanced choice among the previous exemplars and the images of a step that just ended.

        Args:
            model: As it is after the step; in evaluation mode afterwards.
        """
        taught = self.scenario.steps[step]
        images = tuple(dict.fromkeys([*taught.images, *(e.image for e in previous)]))
        pseudo: dict[str, frozenset[int]] = {}
        if step and method.pseudo_labelling:
            pseudo = self._pseudo_classes(images, model, method, device)
        none: frozenset[int] = frozenset()
        old = [(e, self._annotated(e.image, e.classes) | pseudo.get(e.image, none)) for e in previous]
        new = [(i, self._annotated(i, taught.indices) | pseudo.get(i, none)) for i in taught.images]
        candidates = merge_candidates(old, new, step, taught.indices)
        classes = range(1, self.scenario.known(step))
        return select_exemplars(candidates, classes, self.config.memory.size, (self.config.seed, step, 3))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {image: k for k, image in enumerate(self.present.ids)}

    def _annotated(self, image: str, classes: Iterable[int]) -> frozenset[int]:
        """Which of `classes` the annotation of a training image shows."""
        row = self.present.present[self._rows[image]]
        return frozenset(c for c in classes if row[self.scenario.raw_ids[c]])

    @torch.inference_mode()
    def _pseudo_classes(
        self, images: tuple[str, ...], model: Segmenter, method: Method, device: torch.device
    ) -> dict[str, frozenset[int]]:
        """Classes that the model is certain of in each image's centre crop."""
        train = self.config.train
        model.eval()
        # every foreground class is hidden: what is then labelled is the model's own doing
        table = self.scenario.table(())
        loader = eval_loader(
            self.data, "train", images, table, train.crop, train.val_batch_size, train.workers, device
        )
        found: dict[str, frozenset[int]] = {}
        for loaded, ids in self.display.track(iterate(loader), "exemplars", len(loader)):
            batch = to_device(loaded, device, train.channels_last)
            labels = method.pseudo_labels(model(batch.images), batch.labels)
            for image, row in zip(ids, labels.cpu(), strict=True):
                found[image] = frozenset(c for c in row.unique().tolist() if c > 0)
        return found
