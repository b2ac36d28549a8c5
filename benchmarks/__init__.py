"""segrow beside our own re-statement of the SSUL reference loop: `python -m benchmarks`."""

from segrow.processes import wait_briefly

wait_briefly()  # as every command of segrow does
