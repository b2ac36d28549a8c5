"""Saliency maps from a network for salient objects: an ONNX file such as U2-Net-p, or a rembg model by name.

maker = SaliencyMaker("u2netp.onnx")
write_map(maker.map(Path("photo.jpg")), Path("saliency/photo.png"))
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..atomic import write_atomic
from ..errors import UserError
from ..pictures import encoded
from .files import open_image

THRESHOLD = 0.5
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@final
class SaliencyMaker:
    """A network that finds the salient objects of an image.

    Args:
        model: An ONNX file whose input is 1 3 S S (RGB over its maximum, ImageNet mean and deviation) and
            whose first output is a map; or the name of a rembg model.

    Attributes:
        model: As given.

    Raises:
        UserError: The file cannot be read, or the package that it needs is not installed.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        path = Path(model).expanduser()
        if path.suffix == ".onnx" or path.exists():
            self._probabilities = _from_file(path)
        else:
            self._probabilities = _from_rembg(model)

    def map(self, image: Path) -> NDArray[np.bool_]:
        """H W: which pixels are salient, in the size of the image (upright).

        Raises:
            UserError: The image cannot be read.
        """
        picture = open_image(image)
        found = self._probabilities(picture)
        resized = Image.fromarray(found).resize(picture.size, Image.Resampling.LANCZOS)
        salient: NDArray[np.bool_] = np.asarray(resized) > THRESHOLD
        return salient


def write_map(salient: NDArray[np.bool_], path: Path) -> None:
    """A 1-bit PNG; it appears whole or not at all."""
    write_atomic(path, encoded(Image.fromarray(salient.astype(np.uint8) * 255).convert("1"), "PNG"))


def _from_file(path: Path) -> Callable[[Image.Image], NDArray[np.float32]]:
    """Picture -> map in 0..1, float32, of the network's size."""
    if not path.is_file():
        raise UserError(f"no saliency model {path}; give an ONNX file such as u2netp.onnx")
    try:
        import onnxruntime
    except ImportError:
        raise UserError('saliency maps need onnxruntime; run: pip install "segrow[saliency]"') from None
    try:
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a kind for every way a file can be broken
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not an ONNX file that onnxruntime reads ({reason})") from None
    entry = session.get_inputs()[0]
    shape = entry.shape
    if len(shape) != 4 or shape[1] != 3:
        raise UserError(f"{path} takes an input {shape}, expected 1 x 3 x height x width")
    height, width = (s if isinstance(s, int) else 320 for s in shape[2:])
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)

    def run(picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32)
        normal = (pixels / max(float(pixels.max()), 1e-6) - mean) / std
        out = session.run(None, {entry.name: normal.astype(np.float32).transpose(2, 0, 1)[None]})[0]
        found = np.asarray(out, np.float32).reshape(out.shape[-2:])
        low, high = float(found.min()), float(found.max())
        return ((found - low) / max(high - low, 1e-6)).astype(np.float32)

    return run


def _from_rembg(name: str) -> Callable[[Image.Image], NDArray[np.float32]]:
    """The same with a rembg model, which may fetch its weights."""
    try:
        import rembg
    except ImportError:
        raise UserError(
            f'saliency model "{name}" is not a file, and models by name need rembg; give an ONNX file, or '
            'run: pip install "segrow[saliency]"'
        ) from None
    try:
        session: Any = rembg.new_session(name)
    except Exception as error:  # a wrong name, or no network
        reason = " ".join(str(error).split())[:120]
        raise UserError(f'rembg has no model "{name}" at hand ({reason}); give an ONNX file') from None

    def run(picture: Image.Image) -> NDArray[np.float32]:
        mask = rembg.remove(picture, session=session, only_mask=True)
        return (np.asarray(mask.convert("L"), np.float32) / 255).astype(np.float32)

    return run
