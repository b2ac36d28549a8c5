"""The validation images' features, computed once per run while the trunk does not change."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..model.segmenter import Segmenter

GIB = 1 << 30


class KeptFeatures:
    """Features of this process' share of the validation images, in the host's memory.

    They belong to one trunk, told by a hash of all its numbers, and to one evaluation crop: with another
    trunk or crop they are dropped. When those of all images do not fit, none are kept.

    Args:
        budget: Bytes they may take.
        images: How many images there will be.
        say: Gets one line when they do not fit.
    """

    def __init__(self, budget: float, images: int, say: Callable[[str], None]) -> None:
        self._budget, self._images, self._say = budget, images, say
        self._key: tuple[str, int | None] = ("", None)
        # maps 1 C h w of `Segmenter.encode`, in the memory format they were computed in
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self._bytes = 0
        self._fit = True

    def begin(self, model: Segmenter, crop: int | None) -> None:
        """Before an evaluation: drop what another trunk computed, or this one on other views.

        Args:
            crop: Side of the centre crops that will be shown; None = images of their own sizes.
        """
        key = (trunk_hash(model), crop)
        if key != self._key:
            self._kept.clear()
            self._key, self._bytes = key, 0

    def hold(self, images: Iterable[str]) -> bool:
        """Whether the features of all these images are there, so that their pixels are not needed."""
        return all(image in self._kept for image in images)

    def features(self, model: Segmenter, images: Tensor, ids: Sequence[str]) -> Tensor:
        """Features B D h w of a batch, on the model's device: the trunk runs only on images that are new.

        Args:
            model: The one that `begin` saw, in evaluation mode.
            images: uint8 B 3 H W; not looked at when `hold(ids)`.
            ids: One an image.
        """
        new = [k for k, image in enumerate(ids) if image not in self._kept]
        if len(new) == len(ids):
            maps = model.encode(images)
            self._keep(maps, ids)
            return model.trunk.join(maps)
        parts = {image: self._kept[image] for image in ids if image in self._kept}
        if new:
            # slices, not an index, so that the memory format stays
            maps = model.encode(torch.cat([images[k : k + 1] for k in new]))
            parts |= {ids[k]: tuple(m[i : i + 1] for m in maps) for i, k in enumerate(new)}
            self._keep(maps, [ids[k] for k in new])
        device = model.mean.device
        columns = zip(*(parts[image] for image in ids), strict=True)
        return model.trunk.join(tuple(torch.cat([part.to(device) for part in column]) for column in columns))

    def _keep(self, maps: tuple[Tensor, ...], ids: Sequence[str]) -> None:
        if not self._fit:
            return
        size = sum(part[0].numel() * part.element_size() for part in maps)
        self._bytes += size * len(ids)
        cropped = self._key[1] is not None  # then all images are of one size
        wanted = max(self._bytes, size * self._images) if cropped else self._bytes
        if wanted > self._budget:
            self._give_up(wanted)
            return
        for k, image in enumerate(ids):
            self._kept[image] = tuple(part[k : k + 1].to("cpu", copy=True) for part in maps)

    def _give_up(self, wanted: int) -> None:
        self._fit = False
        self._kept = {}
        self._say(
            f"features of the validation images are not kept: they need {wanted / GIB:.3g} GiB or more in "
            f"each process, which may take {self._budget / GIB:.3g} (--train.feature_budget)"
        )


def trunk_hash(model: Segmenter) -> str:
    """SHA-256 of every number that the features depend on: the trunk's parameters and buffers, mean, std."""
    digest = hashlib.sha256()
    for name, value in [*model.trunk.state_dict().items(), ("mean", model.mean), ("std", model.std)]:
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
