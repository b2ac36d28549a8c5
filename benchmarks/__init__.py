"""segrow beside our own re-statement of the SSUL reference loop: `python -m benchmarks`."""
