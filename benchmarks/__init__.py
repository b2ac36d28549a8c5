"""segrow beside our own re-statement of the SSUL reference loop: `python -m benchmarks`."""

from segrow.processes import sleep_while_waiting

sleep_while_waiting()  # as every command of segrow does
