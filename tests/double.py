"""`python double.py ARGUMENTS`: segrow with every number of training in float64.

Rounding then differs in the sixteenth digit, and what differs more between two runs is a mistake.
"""

import sys

import torch

from segrow import cli
from segrow.engine.run import Run
from segrow.model.segmenter import Segmenter

build = Run._base_model


def in_float64(run: Run) -> Segmenter:
    return build(run).double()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    Run._base_model = in_float64  # type: ignore[method-assign]
    sys.exit(cli.main())
