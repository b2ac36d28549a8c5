"""MiB: modelling the background (Cermelli et al., CVPR 2020, arXiv 2002.00718). METHODS section 3."""

from dataclasses import dataclass
from typing import final

from .parts import Distilling, Init


@final
@dataclass
class Mib(Distilling):
    """Background stands for all old classes in the labels, and for the new ones in the teacher."""

    init: Init = "background"
    unbiased: bool = True
    kd: float = 10.0
