"""segrow: grow a semantic segmentation model class by class, without forgetting.

predictor = segrow.load("runs/ssul")
seen = predictor("photo.jpg")
seen.labels, seen.probability, seen.unknown, seen.overlay()

outcome = segrow.add_classes("models/animals", "photos", ["zebra"], check="old_photos")
outcome.passed, outcome.model, outcome.verdicts.old
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grow import add_classes
    from .predict import Predictor, load

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "add_classes", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes seconds, and not all who import segrow need it."""
    if name in ("add_classes", "Predictor", "load"):
        from .processes import before_torch

        before_torch()
    if name == "add_classes":
        from .grow import add_classes

        return add_classes
    if name in ("Predictor", "load"):
        from . import predict

        return predict.load if name == "load" else predict.Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
