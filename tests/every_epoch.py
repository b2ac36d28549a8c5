"""`python every_epoch.py ARGUMENTS`: segrow that saves a run after every epoch, however short."""

import sys

from segrow import cli
from segrow.engine import checkpoint

if __name__ == "__main__":
    checkpoint.SECONDS = 0.0
    sys.exit(cli.main())
