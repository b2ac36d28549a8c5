"""Methods that are not part of segrow."""
