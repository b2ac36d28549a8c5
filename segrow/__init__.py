"""segrow: grow a semantic segmentation model class by class, without forgetting."""

__version__ = "0.1.0"
