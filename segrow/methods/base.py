"""The contract between a method and the engine.

A method is one final dataclass in `methods/NAME.py`: its fields are its hyper-parameters, its file name is
its name. It says what trains, how it is initialised and what the named losses are; it never calls backward,
an optimizer, autocast, a device, a process group, open or print: those are the engine's.
"""

import abc
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import UserError, near
from ..model.fused import folded
from ..model.segmenter import Segmenter, SegOutput, Trunk, TrunkOutput
from ..shapes import expect, shape_of

ParameterGroup = dict[str, Any]


class TrainedChannels(NamedTuple):
    """Logits of the channels that train, and where each class stands among them.

    Attributes:
        logits: B n h w: classes in order, then unknown where it trains.
        place: int64 C + 1: position among the n of class index 0..C-1 and of unknown (C); n = not among them.
    """

    logits: Tensor
    place: Tensor


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class StepContext:
    """One step as a method sees it; the engine owns it, the method only reads.

    Attributes:
        step: Index of the step, 0 = base.
        model: The student, already grown.
        teacher: The model as it was before the step (eval mode, no gradients); None at step 0.
        known: Number of known classes after this step, background included (C in METHODS).
        known_before: The same before this step (K in METHODS); 1 at step 0.
        shares_trunk: The trunk is frozen and runs once for student and teacher.
        frozen_trunk: What then runs: the model's trunk, or a folded copy of it; None while the trunk trains.
    """

    def __init__(
        self,
        step: int,
        model: Segmenter,
        teacher: Segmenter | None,
        known: int,
        known_before: int,
        scan: Callable[[], Iterator[Batch]] | None = None,
        processes: int = 1,
    ) -> None:
        self.step = step
        self.model = model
        self.teacher = teacher
        self.known = known
        self.known_before = known_before
        self.shares_trunk = False
        self._scan = scan
        self._processes = processes  # those of torch's group, in which others may be that do not train here
        self.frozen_trunk: Trunk | None = None
        self._trained: tuple[list[int], bool, Tensor] | None = None

    def share_frozen_trunk(self) -> None:
        """Run a wholly frozen trunk once an iteration for student and teacher (after `begin_step`)."""
        self.shares_trunk = self.model.trunk_frozen
        if not self.shares_trunk:
            return
        if self.teacher is not None:
            self.teacher.trunk = self.model.trunk
        self.frozen_trunk = folded(self.model.trunk)

    def fold_frozen_trunk(self) -> None:
        """Fold a large frozen trunk too, which pays where it runs in every iteration of the step."""
        if self.shares_trunk and self.frozen_trunk is self.model.trunk:
            self.frozen_trunk = folded(self.model.trunk, large=True)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """A frozen trunk's maps of uint8 B 3 H W before they are joined, for keeping them.

        Raises:
            RuntimeError: When the trunk trains.
        """
        if self.frozen_trunk is None:
            raise RuntimeError("the trunk of this step is not frozen")
        parts: tuple[Tensor, ...] = self.frozen_trunk.encode(self.model.normalise(images))
        return parts

    def forward(self, batch: Batch, before: bool = False) -> SegOutput:
        """The student on a batch; no graph is kept for a frozen trunk.

        Args:
            before: Also the backbone's maps before their last activation; as in `teach` of the same batch.
        """
        if self.shares_trunk:
            return self.model.classify(*self._trunk(batch, before))
        out: SegOutput = self.model(batch.images, before)
        return out

    def forward_trained(self, batch: Batch) -> TrainedChannels:
        """The student's channels that train, for losses in which every channel is a problem of its own.

        Under a frozen trunk a frozen head adds a constant to such a loss, so it need not run. Where the trunk
        trains, the old heads' terms teach it too, and all channels are there.
        """
        if self._trained is None:
            self._trained = self._find_trained(batch.labels.device)
        heads, unknown, place = self._trained
        features = self._trunk(batch, False)[0] if self.shares_trunk else self.model.features(batch.images)[0]
        return TrainedChannels(self.model.classify_some(features, heads, unknown), place)

    def _find_trained(self, device: torch.device) -> tuple[list[int], bool, Tensor]:
        """Indices of the heads that a loss must see, whether unknown is one, and `TrainedChannels.place`."""
        model = self.model
        heads = [k for k, head in enumerate(model.heads) if not self.shares_trunk or _trains(head)]
        unknown = model.unknown is not None and _trains(model.unknown)
        channels = [c for k in heads for c in range(model.layout[k].start, model.layout[k].stop)]
        count = len(channels) + unknown
        place = torch.full((self.known + 1,), count, device=device)
        place[channels] = torch.arange(len(channels), device=device)
        if unknown:
            place[self.known] = count - 1
        return heads, unknown, place

    @torch.no_grad()
    def teach(self, batch: Batch, before: bool = False) -> SegOutput:
        """The teacher on a batch, without gradient.

        Args:
            before: As in `forward`.

        Raises:
            RuntimeError: At step 0, which has no teacher.
        """
        if self.teacher is None:
            raise RuntimeError("step 0 has no teacher")
        if self.shares_trunk:
            return self.teacher.classify(*self._trunk(batch, before))
        out: SegOutput = self.teacher(batch.images, before)
        return out

    def _trunk(self, batch: Batch, before: bool) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        if batch.trunk is None:
            with torch.no_grad():
                if self.frozen_trunk is None:
                    raise RuntimeError("the trunk of this step is not frozen")
                if batch.parts:
                    dtype = self.model.mean.dtype  # they are kept in fewer digits
                    batch.trunk = TrunkOutput(self.model.trunk.join(tuple(p.to(dtype) for p in batch.parts)))
                else:
                    batch.trunk = self.frozen_trunk(self.model.normalise(batch.images), before)
        return batch.trunk

    def scan(self) -> Iterator[Batch]:
        """One plain pass over this process' share of the step's own images, the same at every call.

        No exemplars and nothing random: in order, the short side resized to the training crop, the centre
        cropped, labels as in training, no extra maps; batches of one device's size, the last may be smaller.
        Processes may get different numbers of batches: call `sum` after the pass, not in it.

        Raises:
            RuntimeError: In a context without images (the engine's always has them).
            UserError: When an image cannot be read.
            LeakError: When labels show what the step may not see.
        """
        if self._scan is None:
            raise RuntimeError("this StepContext was built without `scan`: it has no images to pass over")
        return self._scan()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, element by element; with one process `values` itself."""
        if self._processes > 1:
            values = values.clone(memory_format=torch.contiguous_format)
            torch.distributed.all_reduce(values)
        return values

    def mean(self, values: Tensor, valid: Tensor) -> Tensor:
        """Mean of `values` over the `valid` pixels of the global batch, 0 when there is none.

        With several processes every process divides by the average count, because the gradients are
        averaged afterwards: so the result equals one process on the whole batch.
        """
        count = valid.sum().to(values.dtype)
        if self._processes > 1:
            torch.distributed.all_reduce(count)
            count /= self._processes
        return values.masked_fill(~valid, 0.0).sum() / count.clamp(min=torch.finfo(values.dtype).tiny)


class Method(abc.ABC):
    """Base of all methods. Subclasses are final dataclasses."""

    sees: ClassVar[Literal["new", "seen"]] = "new"
    """Which classes are annotated in training: the step's own, or all so far (joint)."""

    paper_memory: ClassVar[bool] = False
    """Whether the method was published with a memory; if not, the results of a run with one say so."""

    @property
    def name(self) -> str:
        """The name on the command line: the file's name, or the whole module path outside segrow."""
        module = type(self).__module__
        return module.removeprefix(f"{__package__}.")

    @property
    def aux(self) -> tuple[str, ...]:
        """Extra maps this method reads from the data set."""
        return ()

    @property
    def unknown_head(self) -> bool:
        """Whether the model gets an auxiliary head for unknown objects."""
        return False

    def check(self, model: Segmenter, crop: int | None = None) -> None:
        """Refuse a network, or crops, that this method cannot train; default: it trains all.

        Args:
            crop: Side of the training crops in pixels; None = not known.

        Raises:
            UserError: Saying which one it needs.
        """
        return

    def begin_step(self, ctx: StepContext) -> None:
        """Initialise the new head and freeze. By default everything trains, from random new heads."""
        ctx.model.unfreeze()
        if ctx.model.unknown is not None and not self.unknown_head:  # base step of a method that has one
            ctx.model.freeze(ctx.model.unknown)

    def gather(self, ctx: StepContext) -> None:
        """Measure what the step needs to know of its images (`ctx.scan`) before it trains; default: nothing.

        Called after `begin_step`, with the student in evaluation mode, and only when a step starts afresh:
        a step that is continued gets back what `state_dict` gave.
        """
        return

    def parameter_groups(self, ctx: StepContext, lr: float, backbone_lr: float) -> list[ParameterGroup]:
        """What trains and how fast: by default all that is not frozen, the backbone at its own rate."""
        backbone = [p for p in ctx.model.trunk.backbone.parameters() if p.requires_grad]
        inside = {id(p) for p in backbone}
        rest = [p for p in ctx.model.parameters() if p.requires_grad and id(p) not in inside]
        groups: list[ParameterGroup] = [
            {"params": backbone, "lr": backbone_lr},
            {"params": rest, "lr": lr},
        ]
        return [group for group in groups if group["params"]]

    @abc.abstractmethod
    def loss(self, ctx: StepContext, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; their sum is minimised."""

    @abc.abstractmethod
    def scores(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Upsampled logits B C H W (and B 1 H W) -> scores B C H W; the prediction is their arg max."""

    def novelty(self, logits: Tensor, unknown: Tensor | None) -> Tensor:
        """Arguments of `scores` -> B 1 H W in 0..1: whether a pixel shows what the model was never taught.

        By default how unsure it is: 1 - its best score.
        """
        return unsure(self.scores(logits, unknown))

    def pseudo_labels(self, teacher: SegOutput, labels: Tensor) -> Tensor:
        """Fill B H W labels with the teacher's certain predictions of old classes; default: none."""
        return labels

    @property
    def pseudo_labelling(self) -> bool:
        """Whether `pseudo_labels` does anything."""
        return False

    def verdict(self, ctx: StepContext, teacher: SegOutput, size: Sequence[int]) -> Tensor | None:
        """What the teacher says of every pixel, whatever its label; None when the loss asks nothing of it.

        Kept beside cached features, so that its heads run once a view, and handed back as `Batch.verdict`:
        int16 B H W, in [-2, known_before).
        """
        return None

    @property
    def freezes_trunk(self) -> bool:
        """Whether increments leave the trunk as the base step made it, batch normalisations too."""
        return False

    @property
    def needs_features_only(self) -> bool:
        """Whether the loss of an increment reads images only through `ctx.forward`, `forward_trained` and
        `teach`, and of these no `stages` or `before`: then features of a frozen trunk can be cached."""
        return False

    def end_step(self, ctx: StepContext) -> None:
        """After the last update of a step, before the model is saved."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """Untrained state that must survive a restart: thresholds, prototypes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            UserError: When there is state that this method does not have.
        """
        if state:
            raise UserError(f"method {self.name} has no state, got {', '.join(state)}")

    def check_state(self, ctx: StepContext) -> None:
        """Refuse a restored state that is not of this step, which is then not continued; default: it fits.

        Raises:
            UserError: Saying what differs.
        """
        return

    def fields(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def unsure(scores: Tensor) -> Tensor:
    """Scores B C H W, of which background's can be above 1 -> 1 - the best one, B 1 H W in 0..1."""
    return 1 - scores.amax(1, keepdim=True).clamp(0, 1)


def method_names() -> tuple[str, ...]:
    """Names of the methods that come with segrow."""
    import segrow.methods as package

    names = {m.name for m in pkgutil.iter_modules(package.__path__)}
    return tuple(sorted(names - {"base", "parts"}))


def method_class(name: str) -> type[Method]:
    """Import the class of a method: a file of segrow/methods, or `package.module` outside.

    Raises:
        UserError: When there is no such module, or not exactly one method in it.
    """
    outside = "." in name.lstrip(".")
    path = name if outside else f"{__package__}.{name}"
    if not outside and name not in method_names():
        raise UserError(
            f'no method "{name}"; there is {", ".join(method_names())}.{near(name, method_names())}'
        )
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise UserError(f'cannot import method "{name}": {error}') from None
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f'method module "{name}" should hold exactly one Method, got {len(found)}')
    return found[0]


def make_method(name: str, fields: Mapping[str, Any]) -> Method:
    """Build a method from its name and hyper-parameters, as a model directory stores them.

    Raises:
        UserError: For an unknown method or field, or a value that the field cannot have.
    """
    kind = method_class(name)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in fields:
        if key not in known:
            raise UserError(f'method {name} has no field "{key}"; it has {", ".join(sorted(known))}')
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    expect(plain, shape_of(kind), f"method {name}", "correct it")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
