"""What travels from the loader to a method."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Batch:
    """What a method sees of one update.

    Attributes:
        images: uint8 B 3 H W, RGB; without pixels (B 3 0 0) where `parts` stand for them.
        labels: int64 B H W; class index, IGNORE (-1). What the step (or the exemplar) may not see is 0.
        from_memory: bool B; the image is an exemplar.
        aux: Extra maps by name: "saliency" bool B H W; "everything" is true everywhere, but
            in exemplars whose labels say already what is unknown.
        trunk: Output of a frozen trunk (features, stages, before), shared by student and teacher once it has
            been computed.
        parts: Kept maps of a frozen trunk, which `Trunk.join` makes the features of; empty = not kept.
        verdict: B H W; kept `Method.verdict` of the step's teacher; None = not kept.
    """

    images: Tensor
    labels: Tensor
    from_memory: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)
    trunk: tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
    parts: tuple[Tensor, ...] = ()
    verdict: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which a GPU copies while it computes; the loader calls it."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of the changed tensors; a frozen trunk's output is computed anew."""
        return Batch(
            images=change(self.images),
            labels=change(self.labels),
            from_memory=change(self.from_memory),
            aux={name: change(value) for name, value in self.aux.items()},
            parts=tuple(change(part) for part in self.parts),
            verdict=None if self.verdict is None else change(self.verdict),
        )
