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
from ..resources import machine_refuses
from .files import open_image

THRESHOLD = 0.5
MAX_SIDE = 4096
_OTHER = "copy the file again, or give another network"
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
    session = _session(path)
    entries = session.get_inputs()
    shape = entries[0].shape if len(entries) == 1 else [entry.shape for entry in entries]
    if len(entries) != 1 or len(shape) != 4 or shape[1] != 3:
        raise UserError(f"{path} takes an input {shape}, expected 1 x 3 x height x width; {_OTHER}")
    height, width = (s if isinstance(s, int) else 320 for s in shape[2:])
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise UserError(
            f"{path} takes images of {height} x {width}, expected sides of 1 to {MAX_SIDE}; {_OTHER}"
        )
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)

    def run(picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32)
        normal = (pixels / max(float(pixels.max()), 1e-6) - mean) / std
        found = _output(path, session, {entries[0].name: normal.astype(np.float32).transpose(2, 0, 1)[None]})
        low, high = float(found.min()), float(found.max())
        return ((found - low) / max(high - low, 1e-6)).astype(np.float32)

    run(Image.new("RGB", (width, height)))  # what is wrong with it is known before anything is written
    return run


def _session(path: Path) -> Any:
    """The network of a file, ready to run."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError('saliency maps need onnxruntime; run: pip install "segrow[saliency]"') from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it prints of a damaged file stands in the error too
    providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime has a kind for every way a file can be broken
        if machine_refuses(error):
            raise
        raise UserError(
            f"{path} is not an ONNX file that onnxruntime reads ({_reason(error)}); {_OTHER}"
        ) from None


def _output(path: Path, session: Any, given: dict[str, Any]) -> NDArray[np.float32]:
    """The first output of the network, which is one map: H W."""
    try:
        found = np.asarray(session.run(None, given)[0], np.float32)
    except Exception as error:  # as above
        if machine_refuses(error):
            raise
        raise UserError(f"{path} cannot be run ({_reason(error)}); {_OTHER}") from None
    if found.ndim < 2 or found.size != found.shape[-2] * found.shape[-1] or not found.size:
        raise UserError(f"{path} gives {found.shape}, expected one map; {_OTHER}")
    if not np.isfinite(found).all():
        raise UserError(f"{path} gives numbers that are not finite; {_OTHER}")
    return found.reshape(found.shape[-2:])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


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
        raise UserError(
            f'rembg has no model "{name}" at hand ({_reason(error)}); give an ONNX file'
        ) from None

    def run(picture: Image.Image) -> NDArray[np.float32]:
        mask = rembg.remove(picture, session=session, only_mask=True)
        return (np.asarray(mask.convert("L"), np.float32) / 255).astype(np.float32)

    return run
