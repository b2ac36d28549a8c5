"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016), as MiB's authors ran it. METHODS section 5."""

from dataclasses import dataclass
from typing import final

from .parts import Distilling


@final
@dataclass
class Lwf(Distilling):
    """Cross-entropy, and distillation over the old classes."""

    kd: float = 100.0
