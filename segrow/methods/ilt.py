"""ILT: incremental learning techniques (Michieli and Zanuttigh, ICCVW 2019). METHODS section 5."""

from dataclasses import dataclass
from typing import final

from .parts import Distilling


@final
@dataclass
class Ilt(Distilling):
    """LwF, and the backbone's output is held where the teacher's is."""

    kd: float = 100.0
    mse: float = 100.0
