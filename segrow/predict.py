"""From an image to a label map: `Predictor`, and files of label maps and overlays.

predictor = load("runs/ssul")
seen = predictor("photo.jpg")
seen.labels, seen.probability, seen.unknown, seen.overlay()      # all in the size of the photo
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .argmax import Scores, arg_max, by_bands
from .data.augment import View, centre_view, cut_image
from .data.files import BROKEN, as_upright_rgb, decode_image
from .data.taken import Taken, taken_notes
from .errors import UserError
from .losses import upsample
from .methods.base import unsure
from .model.fused import fuse
from .model.segmenter import Segmenter, SegOutput
from .palette import voc_palette
from .precision import PrecisionWarning, choose, true_float32
from .processes import limit_threads
from .report.figures import overlay
from .stored import find_model, load_with_method
from .wording import count

Labels = npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.uint8]
Image_ = Path | str | Image.Image | Pixels | Tensor

MAX_AREA = 16
"""A long strip is never resized to more than this many crops' worth of pixels."""

STRIDE = 16
"""Tiles begin at multiples of this, so that their maps fit each other; every backbone's stride divides it."""


@final
@dataclass(frozen=True)
class Segmentation:
    """What a model says of one image.

    Attributes:
        image: uint8 H W 3, RGB.
        labels: H W class indices, 0 = background; uint8, or int16 of more than 256 classes.
        classes: Names by class index.
    """

    image: Pixels
    labels: Labels
    classes: tuple[str, ...]
    _maps: "_Maps"

    @cached_property
    def probability(self) -> npt.NDArray[np.float32]:
        """Of each class at each pixel: C H W in 0..1, as the model's method scores them.

        Of a method with softmax they sum to 1 (but for classes of `segrow add`, which give way); else every
        class is a question of its own. Computed when it is asked for: C H W numbers need much memory.
        """
        return self._maps.probability()

    @cached_property
    def unknown(self) -> npt.NDArray[np.float32]:
        """H W in 0..1: here may be something that the model was not taught.

        A model with a head for unknown objects (SSUL) says so itself; else it is 1 - the best class's
        probability.
        """
        return self._maps.novel()

    def overlay(self, alpha: float = 0.55) -> Image.Image:
        """The image with its classes painted over.

        Args:
            alpha: Weight of the colour, 0..1.

        Raises:
            UserError: It is not.
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}, expected a number from 0 to 1")
        palette = voc_palette(max(256, len(self.classes)))
        return Image.fromarray(overlay(self.image, self.labels, palette, alpha))

    def shares(self) -> dict[str, float]:
        """Class name -> part of the pixels, 0..1, of the classes that appear, the largest first."""
        pixels = np.zeros(len(self.classes), np.int64)
        for row in self.labels:  # counting makes eight bytes of every pixel
            pixels += np.bincount(row, minlength=len(self.classes))
        order = np.argsort(-pixels, kind="stable")
        return {self.classes[c]: float(pixels[c] / self.labels.size) for c in order if pixels[c]}


@dataclass(frozen=True)
class _Maps:
    """What of the network's output the classes need, still small, and how it is read.

    Attributes:
        logits: 1 C h w.
        unknown: 1 1 h w or None.
        size: What the maps cover when they are upsampled; at least that of the image.
        shape: Height and width of the image.
    """

    logits: Tensor
    unknown: Tensor | None
    size: tuple[int, int]
    shape: tuple[int, int]
    scores: Scores
    novelty: Scores

    def on(self, device: torch.device) -> "_Maps":
        """The same in the memory of a device."""
        unknown = None if self.unknown is None else self.unknown.to(device)
        return replace(self, logits=self.logits.to(device), unknown=unknown)

    @torch.inference_mode()
    def labels(self) -> Tensor:
        kind = torch.uint8 if self.logits.shape[1] <= 256 else torch.int16  # of large images much less
        return self._cut(arg_max(self.logits, self.unknown, self.size, self.scores, kind)[0])

    @torch.inference_mode()
    def probability(self) -> npt.NDArray[np.float32]:
        unknown = None if self.unknown is None else upsample(self.unknown, self.size)
        scores = self.scores(upsample(self.logits, self.size), unknown)[0].float()
        return self._cut(scores.clamp(0, 1)).cpu().numpy()

    @torch.inference_mode()
    def novel(self) -> npt.NDArray[np.float32]:
        def decide(logits: Tensor, unknown: Tensor | None) -> Tensor:
            return self.novelty(logits, unknown)[:, 0]

        found = by_bands(self.logits, self.unknown, self.size, decide, torch.float32)
        return self._cut(found[0]).cpu().numpy()

    def _cut(self, full: Tensor) -> Tensor:
        return full[..., : self.shape[0], : self.shape[1]]


def load(
    model: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Literal["auto", "32", "bf16"] = "auto",
    tile: int | None = None,
    allow_code: bool = False,
) -> "Predictor":
    """A model directory, or the last model of a run folder, ready to label images.

    Args:
        model: The folder.
        device: None: a GPU if there is one.
        precision: As in `Predictor`.
        tile: As in `Predictor`.
        allow_code: Import a method from outside segrow, if that is what the model was trained with.

    Warns:
        PrecisionWarning: bf16 was asked for where the device emulates it.

    Raises:
        UserError: When there is no model, it was changed, its method may not be imported, or the device is
            not there.
    """
    folder = find_model(Path(model))
    place = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, meta, method = load_with_method(folder, allow_code, place)
    protocol = meta["protocol"]
    predictor = Predictor(
        network,
        method.scores,
        meta["class_names"],
        crop=protocol["crop"] if protocol["crop_val"] else None,
        device=place,
        precision=precision,
        tile=tile,
        novelty=method.novelty,
    )
    if predictor.precision.emulated:
        warnings.warn(str(predictor.precision.line), PrecisionWarning, stacklevel=2)
    return predictor


@final
class Predictor:
    """A model ready to label images; call it with one, or with a list.

    Args:
        model: Stays as it is; a copy of it is fused (`model/fused.py`).
        scores: The method's `scores`: upsampled logits B C H W and unknown (B 1 H W or None) -> B C H W.
        classes: Names by class index, [0] = background; as many as the model has channels.
        crop: Side of the crop if the model was evaluated on resized crops: images then have their short
            side resized to it. None: images keep their size.
        device: Where the copy runs.
        precision: 32; bf16, faster where the device computes in it, but where classes are close a pixel can
            get another one; or auto: bf16 there, else 32.
        tile: Side in pixels of square tiles, for large images: they then keep their size, whatever `crop`
            says, and go through the network piece by piece. Tiles overlap by a quarter and are blended.
        novelty: The method's `novelty`; None: 1 - the best score.

    Attributes:
        precision: The one that is used, and why.

    Raises:
        UserError: A tile that is too small, another precision, or a device that is not there.
        ValueError: Names and channels differ in number.
    """

    def __init__(
        self,
        model: Segmenter,
        scores: Scores,
        classes: Sequence[str],
        *,
        crop: int | None = None,
        device: torch.device | str = "cpu",
        precision: Literal["auto", "32", "bf16"] = "auto",
        tile: int | None = None,
        novelty: Scores | None = None,
    ) -> None:
        if len(classes) != model.n_classes:
            raise ValueError(f"{len(classes)} class names for a model of {model.n_classes} classes")
        if tile is not None and (not isinstance(tile, int) or tile < 4 * STRIDE):
            raise UserError(f"tile is {tile}, expected a whole number of pixels, {4 * STRIDE} or more")
        if precision not in ("auto", "32", "bf16"):
            raise UserError(f'precision is {precision!r}, expected "auto", "32" or "bf16"')
        self.device = _device(device)
        limit_threads()
        self.precision = choose(precision, self.device.type)
        number = torch.bfloat16 if self.precision.used == "bf16" else None
        self.model = fuse(model).to(self.device, number)
        self.scores = scores
        self.novelty = novelty or (lambda logits, unknown: unsure(scores(logits, unknown)))
        self.classes = tuple(classes)
        self.crop = crop
        self.tile = tile
        self._index = np.dtype(np.uint8 if len(classes) <= 256 else np.int16)

    @overload
    def __call__(self, image: Image_) -> Segmentation: ...
    @overload
    def __call__(self, image: list[Image_] | tuple[Image_, ...]) -> list[Segmentation]: ...
    @torch.inference_mode()
    def __call__(
        self, image: Image_ | list[Image_] | tuple[Image_, ...]
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or a list of them.

        Args:
            image: A file, a PIL image, uint8 H W 3 (numpy) or uint8 3 H W (torch), RGB; or a list or tuple
                of these.

        Raises:
            UserError: A file cannot be read, or an array is something else.
        """
        if isinstance(image, list | tuple):
            # their maps do not fill the memory of the device
            return [self._segment(one, torch.device("cpu")) for one in image]
        return self._segment(image, self.device)

    @true_float32()
    def _segment(self, image: Image_, keep: torch.device) -> Segmentation:
        """One image; its maps stay on the device `keep` until they are asked for."""
        pixels = as_rgb(image)
        maps = self._tiled(pixels) if self.tile else self._whole(pixels)
        labels: Labels = maps.labels().cpu().numpy().astype(self._index, copy=False)
        return Segmentation(pixels, labels, self.classes, maps.on(keep))

    def labels(self, image: Image_) -> Labels:
        """The class of every pixel.

        The whole image goes through the network, at the scale the model was evaluated at; the logits are
        upsampled to the image's own size, so outlines stay smooth.

        Args:
            image: As in a call.

        Returns:
            H W class indices in the size of the image (EXIF orientation applied to a file or PIL image);
            uint8, or int16 where the model knows more than 256 classes.

        Raises:
            UserError: The file cannot be read, or the array is not an RGB image.
        """
        return self(image).labels

    def _whole(self, pixels: Pixels) -> _Maps:
        height, width = pixels.shape[:2]
        resized = cut_image(pixels, self._view((height, width)), (0, 0, 0))
        out = self._run(np.array(resized))
        return self._maps(out.logits, out.unknown, (height, width), (height, width))

    def _run(self, pixels: Pixels) -> SegOutput:
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)
        out: SegOutput = self.model(batch)
        return out

    def _stacked(self, pixels: Pixels) -> Tensor:
        """Logits and, last, unknown of a tile: float32 1 C(+1) h w."""
        out = self._run(np.ascontiguousarray(pixels))
        return (out.logits if out.unknown is None else torch.cat([out.logits, out.unknown], 1)).float()

    def _maps(
        self, logits: Tensor, unknown: Tensor | None, size: tuple[int, int], shape: tuple[int, int]
    ) -> _Maps:
        return _Maps(logits, unknown, size, shape, self.scores, self.novelty)

    def _view(self, shape: tuple[int, int]) -> View:
        """The whole image at the scale of the evaluation."""
        height, width = shape
        if self.crop is not None:
            height, width = centre_view(shape, self.crop).size
            shrink = (MAX_AREA * self.crop**2 / (height * width)) ** 0.5
            if shrink < 1:
                height, width = (max(1, int(side * shrink)) for side in (height, width))
        return View((height, width), 0, 0, (height, width))

    def _tiled(self, pixels: Pixels) -> _Maps:
        """Maps of the whole image, put together from those of tiles: means where tiles overlap.

        A tile weighs less towards its border, where the network sees half of what surrounds a pixel.
        """
        shape = pixels.shape[0], pixels.shape[1]
        side = (self.tile or 0) // STRIDE * STRIDE
        size = tuple(-(-length // STRIDE) * STRIDE for length in shape)
        total: Tensor | None = None  # the one map of the whole image: tiles are added as they come
        for top, left in itertools.product(*(_starts(length, side) for length in size)):
            maps = self._stacked(_tile(pixels, top, left, min(side, size[0]), min(side, size[1])))
            height, width = maps.shape[2:]
            stride = min(side, size[0]) // height
            if total is None:
                total = maps.new_zeros(1, maps.shape[1] + 1, size[0] // stride, size[1] // stride)
            weight = (_tent(height)[:, None] * _tent(width)).to(maps)[None, None]
            rows, columns = (
                slice(at // stride, at // stride + n) for at, n in ((top, height), (left, width))
            )
            total[:, :-1, rows, columns] += maps * weight
            total[:, -1:, rows, columns] += weight
        assert total is not None  # an image has a tile
        mean = total[:, :-1].div_(total[:, -1:])
        known = len(self.classes)
        unknown = mean[:, known:] if mean.shape[1] > known else None
        return self._maps(mean[:, :known], unknown, (size[0], size[1]), shape)


def _tile(pixels: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """A tile, its last rows and columns repeated where it goes beyond the image."""
    part = pixels[top : top + height, left : left + width]
    beyond = [(0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)]
    return np.pad(part, beyond, "edge")


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin along a side: they overlap by a quarter, and the last ends where the image does."""
    if length <= side:
        return [0]
    apart = side * 3 // 4 // STRIDE * STRIDE
    last = length - side
    return [*range(0, last, apart), last]


def _tent(n: int) -> Tensor:
    """Weights of n positions, the largest in the middle."""
    place = torch.arange(1, n + 1, dtype=torch.float32)
    return torch.minimum(place, n + 1 - place)


def _device(wanted: torch.device | str) -> torch.device:
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        raise UserError(f"device is {wanted}, expected cpu, cuda or cuda:N (N counts GPUs from 0)") from None
    if device.type == "meta":
        raise UserError(f"device is {wanted}, which holds no numbers; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {wanted}, but torch sees no GPU; use cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            there = count(torch.cuda.device_count(), "GPU")
            raise UserError(f"device {wanted}, but torch sees {there}; they count from 0")
    return device


def as_rgb(image: Image_) -> Pixels:
    """uint8 H W 3 of a file, a PIL image, an array or a tensor.

    A PIL image is taken as its file would be: EXIF orientation applied, more than 8 bits scaled.

    Warns:
        ImageWarning: What was decided for it, as `segrow predict` notes it, and that 16 bits were scaled.

    Raises:
        UserError: The file cannot be read, the array is empty or not uint8 H W 3 (a tensor uint8 3 H W), or
            it is none of these.
    """
    if isinstance(image, Path | str):
        picture, taken = decode_image(Path(image))
        _warn(taken, str(image))
        return np.array(picture)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UserError(f"got a picture of {image.size} pixels, expected at least one; leave it out")
        try:
            picture, taken = as_upright_rgb(image)
        except BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the picture cannot be decoded ({reason}); leave it out") from None
        _warn(taken, "the picture")
        return np.array(picture)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            kind, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
            raise UserError(
                f"got a tensor of {kind} {shape}, expected uint8 (3, height, width); {_hint(kind, shape)}"
            )
        return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"got {type(image).__name__}, expected a file, a PIL image, an array or a tensor, or a list of"
            " these"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        kind, shape = str(image.dtype), image.shape
        raise UserError(
            f"got an array of {kind} {shape}, expected uint8 (height, width, 3); {_hint(kind, shape)}"
        )
    return image.copy()  # what was seen stays so when the caller fills its array anew


class ImageWarning(UserWarning):
    """An image does not say plainly what its numbers mean: what was decided."""


def _warn(taken: Taken, name: str) -> None:
    told = [*taken_notes([taken], [name], "read")]
    if taken & Taken.SIXTEEN:
        told.append(f"{name} has 16 bits per value and is divided by 256")
    for note in told:
        warnings.warn(note, ImageWarning, stacklevel=4)


def _hint(kind: str, shape: tuple[int, ...]) -> str:
    """What makes an image of an array or a tensor that is none."""
    if len(shape) == 4:
        return "give a list of images, not a batch"
    if 0 in shape:
        return "leave it out"
    if kind != "uint8":
        return "scale it to 0..255 and make it uint8"
    if len(shape) == 3 and 3 in (shape[0], shape[2]):
        return "bring the colours to their place with permute or transpose"
    return "convert it to RGB"
