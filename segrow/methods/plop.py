"""PLOP: learning without forgetting for continual semantic segmentation (Douillard et al., CVPR 2021).

arXiv 2011.11390; METHODS section 4 in prose.
"""

from dataclasses import dataclass
from typing import final

from .parts import Distilling, Init, Pseudo


@final
@dataclass
class Plop(Distilling):
    """Pseudo-labels of low entropy, and local POD distillation at several depths."""

    init: Init = "background"
    pseudo: Pseudo = "entropy"
    adaptive: bool = True
    pod: float = 0.01
    pod_logits: float = 0.0005
