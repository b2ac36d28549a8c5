"""segrow: grow a semantic segmentation model class by class, without forgetting.

predictor = segrow.load("runs/ssul")
seen = predictor("photo.jpg")
seen.labels, seen.probability, seen.unknown, seen.overlay()
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predict import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(model: Path | str, **options: Any) -> "Predictor":
    """A model directory, or the last model of a run folder, ready to label images.

    Args:
        model: The folder.
        options: device, precision, tile, allow_code: as in `segrow.predict.load`.

    Raises:
        UserError: When there is no model, it was changed, or its method may not be imported.
    """
    from .predict import load as load_predictor  # torch takes seconds, and not all who import segrow need it

    return load_predictor(model, **options)
