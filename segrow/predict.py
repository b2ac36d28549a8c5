"""From an image to a label map: `Predictor`, and files of label maps and overlays.

model, meta = load_model(directory)
predictor = Predictor(model, method.scores, class_names, crop=513)
labels = predictor.labels("photo.jpg")           # H W class indices, the size of the photo
write_prediction(labels, Path("photo.png"), voc_palette(len(class_names)))
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import track

from .argmax import Scores, arg_max
from .data.augment import View, centre_view, cut_image
from .data.files import read_image
from .errors import UserError
from .losses import upsample
from .model.fused import fuse
from .model.segmenter import Segmenter, SegOutput
from .palette import voc_palette
from .report.figures import overlay

Labels = npt.NDArray[np.integer[Any]]

MAX_AREA = 16
"""A long strip is never resized to more than this many crops' worth of pixels."""


@final
class Predictor:
    """A model ready to label images.

    Args:
        model: Stays as it is; a copy of it is fused (`model/fused.py`).
        scores: The method's `scores`: upsampled logits B C H W and unknown (B 1 H W or None) -> B C H W.
        classes: Names by class index, [0] = background; as many as the model has channels.
        crop: Side of the crop if the model was evaluated on resized crops: images then have their short
            side resized to it. None: images keep their size.
        device: Where the copy runs.
        precision: 32, or bf16: faster where the processor has it, but where classes are close a pixel can get
            another one.

    Raises:
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
        precision: Literal["32", "bf16"] = "32",
    ) -> None:
        if len(classes) != model.n_classes:
            raise ValueError(f"{len(classes)} class names for a model of {model.n_classes} classes")
        self.device = torch.device(device)
        self.model = fuse(model).to(self.device, torch.bfloat16 if precision == "bf16" else None)
        self.scores = scores
        self.classes = tuple(classes)
        self.crop = crop

    @torch.inference_mode()
    def labels(self, image: Path | str | Image.Image | npt.NDArray[np.uint8]) -> Labels:
        """The class of every pixel.

        The whole image goes through the network, at the scale the model was evaluated at; the logits are
        upsampled to the image's own size, so outlines stay smooth.

        Args:
            image: A file, a PIL image, or uint8 H W 3 (RGB).

        Returns:
            H W class indices in the size of the image (EXIF orientation applied to a file); uint8, or
            int16 where the model knows more than 256 classes.

        Raises:
            UserError: The file cannot be read, or the array is not uint8 H W 3.
        """
        pixels = as_rgb(image)
        return self._decide(self._run(pixels), pixels)

    @torch.inference_mode()
    def labels_and_unknown(
        self, image: Path | str | Image.Image | npt.NDArray[np.uint8], side: int
    ) -> tuple[Labels, npt.NDArray[np.float32]]:
        """The class of every pixel, and how far it is from all known classes.

        Args:
            image: As `labels` takes it.
            side: Longest side of the unknown map, which is never larger than the image.

        Returns:
            As `labels`, and float32 h w in 0..1 with the image's proportions: sigmoid of the unknown head, or
            without one 1 - the best score.

        Raises:
            UserError: As `labels`.
        """
        pixels = as_rgb(image)
        out = self._run(pixels)
        shrink = min(1.0, side / max(pixels.shape[:2]))
        size = [max(1, round(length * shrink)) for length in pixels.shape[:2]]
        if out.unknown is not None:
            unknown = upsample(out.unknown, size).sigmoid()[0, 0]
        else:
            unknown = 1 - self.scores(upsample(out.logits, size), None)[0].amax(0)
        return self._decide(out, pixels), unknown.clamp(0, 1).cpu().numpy()

    def _run(self, pixels: npt.NDArray[np.uint8]) -> SegOutput:
        resized = cut_image(pixels, self._view((pixels.shape[0], pixels.shape[1])), (0, 0, 0))
        batch = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].to(self.device)
        out: SegOutput = self.model(batch)
        return out

    def _decide(self, out: SegOutput, pixels: npt.NDArray[np.uint8]) -> Labels:
        chosen = arg_max(out.logits, out.unknown, pixels.shape[:2], self.scores)[0]
        return chosen.cpu().numpy().astype(np.uint8 if len(self.classes) <= 256 else np.int16)

    def _view(self, shape: tuple[int, int]) -> View:
        """The whole image at the scale of the evaluation."""
        height, width = shape
        if self.crop is not None:
            height, width = centre_view(shape, self.crop).size
            shrink = (MAX_AREA * self.crop**2 / (height * width)) ** 0.5
            if shrink < 1:
                height, width = (max(1, int(side * shrink)) for side in (height, width))
        return View((height, width), 0, 0, (height, width))


def as_rgb(image: Path | str | Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 H W 3 of a file, a PIL image or an array.

    Raises:
        UserError: The file cannot be read, or the array is not uint8 H W 3.
    """
    if isinstance(image, Path | str):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"got an array of {image.dtype} {image.shape}, expected uint8 (height, width, 3); convert it to"
            " RGB."
        )
    return image


def write_prediction(labels: Labels, path: Path, palette: npt.NDArray[np.uint8]) -> None:
    """A PNG whose pixel value is the class index: with a palette, or 16-bit grey above 256 classes.

    Args:
        labels: H W class indices, not negative.
        path: Where it goes; written under a temporary name first.
        palette: uint8 n x 3, for at least the classes that appear.
    """
    if labels.dtype == np.uint8:
        picture = Image.fromarray(labels)
        picture.putpalette(palette[:256].tobytes())
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    _save(picture, path, "PNG")


@dataclass(frozen=True)
class Prediction:
    """What was written for one image.

    Attributes:
        image: The input.
        labels: The label map.
        overlay: The picture with the labels painted over, if asked for.
        shares: Class name -> part of the pixels, 0..1, of the classes that appear, the largest first.
    """

    image: Path
    labels: Path
    overlay: Path | None
    shares: dict[str, float]


def predict_files(
    predictor: Predictor, images: Sequence[Path], out: Path, overlays: bool, progress: bool
) -> list[Prediction]:
    """Write `<stem>.png`, and `<stem>_overlay.jpg` with `overlays`, for every image.

    Args:
        images: Image files.
        out: Folder of the results; made if it is missing.
        overlays: Also write the pictures with the labels painted over.
        progress: Show a progress bar.

    Raises:
        UserError: Two inputs have the same stem, a result would overwrite an input, or an image cannot be
            read (what came before it is written).
    """
    targets = _targets(images, out, overlays)
    palette = voc_palette(max(256, len(predictor.classes)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be a folder ({error.strerror}); choose another --out.") from error
    done = []
    jobs = list(zip(images, targets, strict=True))
    for image, (label_path, overlay_path) in track(jobs, description="predict", disable=not progress):
        pixels = as_rgb(image)
        labels = predictor.labels(pixels)
        write_prediction(labels, label_path, palette)
        if overlay_path is not None:
            _save(Image.fromarray(overlay(pixels, labels, palette)), overlay_path, "JPEG", quality=92)
        done.append(Prediction(image, label_path, overlay_path, _shares(labels, predictor.classes)))
    return done


def _targets(images: Sequence[Path], out: Path, overlays: bool) -> list[tuple[Path, Path | None]]:
    """Label map and overlay of each image, once it is sure that nothing is written twice or over an input."""
    inputs = {image.resolve() for image in images}
    taken: dict[Path, Path] = {}  # what is written -> for which image
    targets = []
    for image in images:
        label_path = out / f"{image.stem}.png"
        overlay_path = out / f"{image.stem}_overlay.jpg" if overlays else None
        for target in (label_path, overlay_path):
            if target is not None and target.resolve() in inputs:
                raise UserError(f"{target} would overwrite an input image; choose another --out than {out}.")
        if label_path in taken:
            raise UserError(
                f"{taken[label_path]} and {image} would both be written to {label_path}; rename one, or"
                " predict them into two folders."
            )
        taken[label_path] = image
        targets.append((label_path, overlay_path))
    return targets


def _shares(labels: Labels, classes: Sequence[str]) -> dict[str, float]:
    pixels = np.bincount(labels.ravel(), minlength=len(classes))
    order = np.argsort(-pixels, kind="stable")
    return {classes[c]: float(pixels[c] / labels.size) for c in order if pixels[c]}


def _save(picture: Image.Image, path: Path, kind: str, **options: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(temporary, format=kind, **options)
    os.replace(temporary, path)
