"""Scenarios: which classes each step teaches, which images it has, and how raw mask values become labels.

A scenario is a value: data set x task x setting x class order (METHODS of the settings: `build_scenario`).
Class index == logit channel: 0 is background, 1..N the classes in learning order. A *raw id* is the value
that a mask of the data set holds.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .class_lists import name_hint, typed_name
from .errors import UserError, near
from .wording import count

IGNORE = -1
UNKNOWN = -2
SETTINGS = ("overlap", "disjoint", "partitioned")


class PresenceLike(Protocol):
    """What `build_scenario` needs to know about the training images."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids in the order of the data set."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Images x raw ids: whether the mask shows the raw id."""


@dataclass(frozen=True)
class Step:
    """What one step teaches.

    Attributes:
        index: 0 = base step.
        classes: Names of the new classes, in learning order.
        first: Class index of the first of them.
        images: Ids of the training images, in the order of the data set.
    """

    index: int
    classes: tuple[str, ...]
    first: int
    images: tuple[str, ...]

    @property
    def indices(self) -> range:
        """Class indices of the new classes."""
        return range(self.first, self.first + len(self.classes))


@dataclass(frozen=True)
class Scenario:
    """Steps of a task on a data set, and the lookup tables from raw ids to class indices.

    Attributes:
        data: Name of the data set.
        task: As given: 15-1, 15-1_b, offline.
        setting: overlap, disjoint or partitioned.
        classes: N+1 names in learning order, the first is "background".
        raw_ids: raw_ids[i] is the raw id of class index i.
        ignore_id: Raw value of pixels that count nowhere: 255, or 65535 where masks are 16 bit.
        n_raw: Number of classes of the data set, background included (more than N+1 for a subset).
        steps: The steps.
        ids: All training images of the data set, in its order; only gives `images` its order.
    """

    data: str
    task: str
    setting: str
    classes: tuple[str, ...]
    raw_ids: tuple[int, ...]
    ignore_id: int
    n_raw: int
    steps: tuple[Step, ...]
    ids: tuple[str, ...] = ()

    def known(self, step: int) -> int:
        """Number of classes known after `step`, background included."""
        return self.steps[step].indices.stop

    def table(self, visible: Iterable[int]) -> NDArray[np.int16]:
        """Lookup table raw id -> class index where the class is visible, else 0 (background).

        Args:
            visible: Class indices; 0 may be among them and changes nothing.

        Returns:
            int16 of length 256 (65536 for 16-bit masks); IGNORE at the ignore id and at values that are no
            class. Index it with raw masks only: a negative index would read its end.

        Raises:
            ValueError: An index that is no class.
        """
        table = empty_table(self.ignore_id, self.n_raw)
        for index in visible:
            if not 0 <= index < len(self.classes):
                raise ValueError(f"class index {index} is not in 0..{len(self.classes) - 1}")
            table[self.raw_ids[index]] = index
        return table

    def train_table(self, step: int, sees: Literal["new", "seen"] = "new") -> NDArray[np.int16]:
        """Table of the labels a training image of `step` shows: its new classes, or all seen ones."""
        return self.table(self.steps[step].indices if sees == "new" else range(1, self.known(step)))

    def eval_table(self) -> NDArray[np.int16]:
        """Table of the whole truth: all N+1 classes, future ones included."""
        return self.table(range(len(self.classes)))

    def images(self, step: int, sees: Literal["new", "seen"] = "new") -> tuple[str, ...]:
        """Training images of `step`, or of all steps up to it, each once, in the order of the data set."""
        if sees == "new":
            return self.steps[step].images
        wanted = dict.fromkeys(image for s in self.steps[: step + 1] for image in s.images)
        return tuple(image for image in self.ids or wanted if image in wanted)


def empty_table(ignore_id: int, n_raw: int) -> NDArray[np.int16]:
    """Lookup table raw id -> class index by which every class of a data set is background.

    Args:
        ignore_id: Raw value that is no class; 255, or more where masks are 16 bit.
        n_raw: Number of classes of the data set, background included.

    Returns:
        int16 of length 256 (65536 for 16-bit masks); IGNORE at the ignore id and at values that are no class.
    """
    table = np.full(256 if ignore_id < 256 else 65536, IGNORE, dtype=np.int16)
    table[:n_raw] = 0
    return table


def build_scenario(
    data: str,
    class_names: Sequence[str],
    ignore_id: int,
    presence: PresenceLike,
    task: str,
    setting: str,
    classes: Sequence[str] | None = None,
    order_seed: int | None = None,
    seed: int = 1,
    ignored: Collection[int] = (),
) -> Scenario:
    """Divides the classes into steps and gives every step its training images.

    With "new" the classes of the step and "future" those of later steps (in learning order, whatever the
    raw ids are), a step gets the images that
    - overlap: show at least one new class;
    - disjoint: also show no future class;
    - partitioned: were given to it: every image that shows any of the classes belongs to one of those it
      shows, chosen uniformly by the seed and the image id (Kwak et al. 2024, arXiv 2405.09858).

    Args:
        data: Name of the data set; SSUL's orders exist for voc only.
        class_names: Names by raw id, the first is background.
        ignore_id: Raw value that is no class.
        presence: Which raw ids each training image shows.
        task: BASE-INCREMENT in foreground classes, the same with one of SSUL's orders behind it (15-1_b),
            or offline (one step).
        setting: overlap, disjoint or partitioned.
        classes: Names in learning order; what is left out counts as background. Default: by raw id.
        order_seed: Shuffle the (selected) classes.
        seed: Of the partitioned setting.
        ignored: Raw ids of classes that no mask shows, for their pixels count nowhere.

    Raises:
        UserError: Unknown or repeated names, a task that does not add up, a step without any image.
    """
    if setting not in SETTINGS:
        hint = near(setting, SETTINGS)
        raise UserError(f'unknown setting "{setting}", expected overlap, disjoint or partitioned.{hint}')
    raw, sizes = divide_classes(data, class_names, task, classes, order_seed, ignored)
    shown = np.asarray(presence.present)[:, raw]  # images x classes in learning order
    if setting == "partitioned":
        shown = _partition(presence.ids, shown, raw, seed)
    steps: list[Step] = []
    first = 1
    for index, size in enumerate(sizes):
        chosen = shown[:, first - 1 : first - 1 + size].any(axis=1)
        if setting == "disjoint":
            chosen &= ~shown[:, first - 1 + size :].any(axis=1)
        names = tuple(class_names[r] for r in raw[first - 1 : first - 1 + size])
        images = tuple(presence.ids[i] for i in np.flatnonzero(chosen).tolist())
        if not images:
            raise UserError(_empty(index, names, setting))
        steps.append(Step(index, names, first, images))
        first += size
    names = ("background", *(class_names[r] for r in raw))
    n_raw = len(class_names)
    return Scenario(
        data, task, setting, names, (0, *raw), ignore_id, n_raw, tuple(steps), tuple(presence.ids)
    )


def divide_classes(
    data: str,
    class_names: Sequence[str],
    task: str,
    classes: Sequence[str] | None = None,
    order_seed: int | None = None,
    ignored: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """Raw ids in learning order, and how many of them each step teaches; arguments of `build_scenario`.

    Raises:
        UserError: Unknown or repeated names, a task that does not add up.
    """
    raw = _select(data, class_names, classes, ignored)
    base, increment, letter = _parse_task(task, len(raw))
    if letter:
        raw = _named_order(data, len(class_names), letter, task, classes, order_seed)
    elif order_seed is not None:
        raw = [raw[i] for i in np.random.default_rng(order_seed).permutation(len(raw))]
    return raw, _step_sizes(data, task, len(raw), base, increment)


def _select(
    data: str, class_names: Sequence[str], classes: Sequence[str] | None, ignored: Collection[int]
) -> list[int]:
    """Raw ids of the classes to learn."""
    _no_duplicates(class_names, f"the classes of {data}")
    if classes is None:
        return [raw for raw in range(1, len(class_names)) if raw not in ignored]
    if not classes:
        raise UserError("--data.classes is empty; name at least one class, or leave it out to learn all")
    classes = [typed_name(name, "--data.classes") for name in classes]
    _no_duplicates(classes, "--data.classes")
    known = {name: raw for raw, name in enumerate(class_names) if raw and raw not in ignored}
    for name in classes:
        if name == class_names[0]:
            raise UserError(
                f'"{name}" is what no class covers and always there; take it out of --data.classes'
            )
        if name not in known:
            listed = ", ".join(known) if len(known) <= 30 else f"{', '.join(list(known)[:10])}, ..."
            hint = name_hint(name, known)
            raise UserError(
                f'unknown class "{name}"; {data} has {count(len(known), "class")}: {listed}.{hint}'
            )
    return [known[name] for name in classes]


def unseen_notes(scenario: Scenario, presence: PresenceLike) -> tuple[str, ...]:
    """A note on classes that no training image of their step shows, which nothing can be learnt of.

    Args:
        scenario: The steps.
        presence: Which raw ids each training image shows.
    """
    rows = {image: row for row, image in enumerate(presence.ids)}
    present = np.asarray(presence.present)
    unseen: list[str] = []
    for step in scenario.steps:
        images = present[[rows[image] for image in step.images]]
        raw = scenario.raw_ids[step.first : step.first + len(step.classes)]
        unseen += [name for name, r in zip(step.classes, raw, strict=True) if not images[:, r].any()]
    if not unseen:
        return ()
    some = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
    it = "it" if len(unseen) == 1 else "them"
    return (
        f"no training image shows {some}, so nothing is learnt of {it}; leave {it} out with --data.classes",
    )


def _no_duplicates(names: Sequence[str], where: str) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UserError(f'{where} hold "{repeated[0]}" twice; every class needs a name of its own')


def _parse_task(task: str, n_classes: int) -> tuple[int, int, str]:
    """15-1_b -> (15, 1, "b"); offline -> (all classes, 0, "")."""
    if task == "offline":
        return n_classes, 0, ""
    match = re.fullmatch(r"([0-9]+)-([0-9]+)(?:_(\w+))?", task)
    if not match:
        raise UserError(
            f'unknown task "{task}", expected BASE-INCREMENT such as 15-1, 15-1_b, or offline.'
            f"{_task_hint(task)}"
        )
    base, increment = int(match[1]), int(match[2])
    if not base or not increment:
        raise UserError(
            f'task "{task}" teaches 0 classes in a step; both numbers must be at least 1, such as 15-1'
        )
    return base, increment, match[3] or ""


def _task_hint(task: str) -> str:
    """The same task as segrow writes it, of other spellings; never another experiment that is spelled alike.

    MiB and PLOP call steps of one class "s": 15-5s are 15 classes, then five more, one a step.
    """
    plain = re.sub(r"[-\s_\u2010-\u2015\u2212+/:]+", "-", task.strip().lower())
    setting = next((name for name in SETTINGS if name in plain), "")
    plain = re.sub(r"-?(overlap(ped)?|disjoint|partitioned)-?", "-", plain).strip("-")
    spelled = re.fullmatch(r"(\d+)-(\d+)(?:-(\2(?:-\2)*))?(-?s)?(?:-?([a-z]+))?", plain)
    if spelled is None:
        if plain.isdigit():
            return f" MiB's and PLOP's task \"{plain}\" of ADE20K is {plain}-{plain} here."
        return ' Did you mean "offline"?' if plain == "joint" else near(plain, ["offline"])
    base, increment, _, sequential, order = spelled.groups()
    meant = f"{base}-{1 if sequential else increment}"
    if setting:
        setting = f" with --setting {setting}"
    if order is None:
        why = f" MiB's and PLOP's s: {base} classes, then one a step." if sequential else ""
        return f' Did you mean "{meant}"{setting}?{why}'
    return (
        f' Its steps are those of "{meant}"{setting}, but "{order}" is a class order: SSUL\'s on VOC are '
        "written 15-1_b, any other is given by --data.classes."
    )


def _step_sizes(data: str, task: str, n_classes: int, base: int, increment: int) -> list[int]:
    """Number of new classes of every step."""
    if not n_classes:
        raise UserError(f"{data} has no class besides background; there is nothing to learn")
    if not increment:
        return [base]
    steps, rest = divmod(n_classes - base, increment)
    if steps < 1 or rest:
        below = base + max(steps, 1) * increment
        sums = f"{base} + {max(steps, 1)} x {increment} = {below}"
        if below < n_classes:
            sums += f", {base} + {steps + 1} x {increment} = {below + increment}"
        raise UserError(
            f"task {task} does not add up: {sums}, but {data} has {count(n_classes, 'class')} to learn; "
            f"change the task or select classes with --data.classes"
        )
    return [base] + [increment] * steps


def _named_order(
    data: str,
    n_raw: int,
    letter: str,
    task: str,
    classes: Sequence[str] | None,
    order_seed: int | None,
) -> list[int]:
    """Raw ids in one of SSUL's class orders."""
    table = json.loads(resources.files("segrow.data").joinpath("voc_orders.json").read_text("utf-8"))
    orders: dict[str, list[int]] = table["orders"]
    if letter not in orders:
        hint = near(task, [f"{task.partition('_')[0]}_{name}" for name in orders])
        raise UserError(f'unknown class order "{letter}" in task {task}, expected {", ".join(orders)}.{hint}')
    if data != "voc" or n_raw != 21:
        raise UserError(
            f"task {task}: the order {letter} is one of voc's 20 classes, not of {data}; use --data.classes"
        )
    if classes is not None or order_seed is not None:
        which = "--data.classes" if classes is not None else "--data.order_seed"
        raise UserError(f"task {task} sets the class order and {which} another; leave one of them out")
    return orders[letter]


def _partition(
    ids: Sequence[str], shown: NDArray[np.bool_], raw: Sequence[int], seed: int
) -> NDArray[np.bool_]:
    """Keeps one class an image, uniformly among those it shows.

    The choice hangs on the seed, the image id and the classes it shows alone: neither other images nor the
    learning order change it.
    """
    columns = np.argsort(raw)
    owned = np.zeros_like(shown)
    for row in np.flatnonzero(shown.any(axis=1)).tolist():
        candidates = columns[shown[row, columns]]
        digest = hashlib.sha256(f"{seed}/{ids[row]}".encode()).digest()
        owned[row, candidates[int.from_bytes(digest[:8], "big") % len(candidates)]] = True
    return owned


def _empty(index: int, names: Sequence[str], setting: str) -> str:
    why = {
        "overlap": "no training image shows any of them",
        "disjoint": "every training image that shows one of them shows a later class too",
        "partitioned": "no training image fell to them",
    }[setting]
    return (
        f"step {index} ({', '.join(names)}) has no image in the {setting} setting: {why}; "
        f"choose other classes, another order or another setting"
    )
