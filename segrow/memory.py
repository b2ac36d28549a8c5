"""Exemplars: which images of earlier steps stay, and which classes each may show (SSUL-M, METHODS 2)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .documents import parse_json
from .errors import LeakError, UserError
from .inside import is_below
from .scenario import IGNORE, UNKNOWN, Scenario
from .shapes import Shape


@dataclass(frozen=True)
class Exemplar:
    """One stored image.

    Attributes:
        image: Its id in the training split.
        step: The step after which it was stored last.
        classes: Class indices that were annotated while it was stored: all it may ever show.
    """

    image: str
    step: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """An image that may be stored.

    Attributes:
        exemplar: What would be stored.
        contains: Foreground classes in it: annotated ones, and pseudo-labelled older ones.
    """

    exemplar: Exemplar
    contains: frozenset[int]


def select_exemplars(
    candidates: Sequence[Candidate], classes: Iterable[int], size: int, seed: Sequence[int]
) -> tuple[Exemplar, ...]:
    """Class-balanced choice: the classes take turns, each adds a random new candidate that contains it.

    The order of the classes is drawn once. The choice ends when `size` images are chosen, or when a whole
    round added none (so it ends for every size; the reference code loops for ever there).

    Args:
        candidates: Images, each at most once.
        classes: Foreground class indices.
        size: Most images to choose.
        seed: Of the order and the draws.
    """
    rng = np.random.default_rng(list(seed))
    order = rng.permutation(sorted(classes)).tolist()
    # one shuffled queue a class: popping from it is a uniform draw among those left
    queues = {
        c: [int(i) for i in rng.permutation(len(candidates)) if c in candidates[i].contains] for c in order
    }
    chosen: list[int] = []
    taken: set[int] = set()
    while len(chosen) < size:
        before = len(chosen)
        for c in order:
            while queues[c] and queues[c][-1] in taken:
                queues[c].pop()
            if queues[c] and len(chosen) < size:
                taken.add(queues[c][-1])
                chosen.append(queues[c].pop())
        if len(chosen) == before:
            break
    return tuple(candidates[i].exemplar for i in chosen)


def merge_candidates(
    previous: Sequence[tuple[Exemplar, frozenset[int]]],
    images: Sequence[tuple[str, frozenset[int]]],
    step: int,
    annotated: Sequence[int],
) -> list[Candidate]:
    """The previous exemplars and the step's images as candidates.

    An exemplar that is also an image of this step was annotated twice: it keeps both sets of classes.

    Args:
        previous: Exemplars and the classes they contain.
        images: Ids of the step's images and the classes they contain.
        step: The step that just ended.
        annotated: Its class indices.
    """
    merged = {e.image: Candidate(e, contains) for e, contains in previous}
    for image, contains in images:
        old = merged.get(image)
        classes = set(annotated) | (set(old.exemplar.classes) if old else set())
        found = contains | (old.contains if old else frozenset())
        merged[image] = Candidate(Exemplar(image, step, tuple(sorted(classes))), found)
    return [merged[image] for image in sorted(merged)]


def exemplar_table(scenario: Scenario, exemplar: Exemplar, step: int, labels: str) -> np.ndarray:
    """Lookup table raw id -> class index of one exemplar replayed in `step`.

    Args:
        labels: known (default of segrow) or seen (METHODS 2, defect 2).
    """
    visible = exemplar.classes if labels == "known" else range(1, scenario.known(step))
    return scenario.table(visible)


def unshift(labels: np.ndarray) -> np.ndarray:
    """METHODS 2, defect 1: the reference code forgets the unknown channel in replayed labels.

    So background is trained as unknown, class 1 as background, class c as class c - 1.
    """
    shifted = np.where(labels == 0, UNKNOWN, labels - 1)
    return np.where(labels == IGNORE, IGNORE, shifted).astype(labels.dtype)


def check_memory(exemplars: Sequence[Exemplar], scenario: Scenario, step: int) -> None:
    """Part of the leak guard: what is replayed in `step` was an image of an earlier step, with its classes.

    Raises:
        LeakError: When an exemplar could not have been stored before `step`.
    """
    images = [set(s.images) for s in scenario.steps[:step]]
    for exemplar in exemplars:
        seen_at = [s for s, ids in enumerate(images) if exemplar.image in ids]
        allowed = {c for s in seen_at for c in scenario.steps[s].indices}
        if not seen_at or not set(exemplar.classes) <= allowed:
            raise LeakError(
                f"exemplar {exemplar.image} may show classes {sorted(allowed)} at step {step}, "
                f"but the memory grants it {sorted(exemplar.classes)}"
            )


_INDEX = range(1 << 16)
_SHAPE: Shape = {"exemplars": [{"image": str, "step": _INDEX, "classes": [_INDEX]}]}


def to_json(exemplars: Sequence[Exemplar]) -> bytes:
    """Content of memory.json."""
    return json.dumps({"format": 1, "exemplars": [asdict(e) for e in exemplars]}, indent=1).encode()


def from_json(content: bytes, where: str = "memory.json") -> tuple[Exemplar, ...]:
    """Exemplars of the content of a memory.json.

    Args:
        content: Of the file.
        where: The file, for the error.

    Raises:
        UserError: It holds something else, or an image that is not below its data set.
    """
    stored = parse_json(content, where, _SHAPE, fix="restore it, or train the step again")
    for e in stored["exemplars"]:
        if not is_below(e["image"]):
            line = f'names an image "{e["image"]}", expected one below the data set'
            raise UserError(f"{where} {line}; restore it, or train the step again")
    return tuple(Exemplar(e["image"], e["step"], tuple(e["classes"])) for e in stored["exemplars"])
