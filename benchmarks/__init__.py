"""segrow beside our own re-statement of the SSUL reference loop: `python -m benchmarks`."""

from segrow.processes import before_torch

before_torch()  # as every command of segrow does
