"""One more step on somebody's own images.

`options.py` says what is asked for, `plan.py` decides, `step.py` trains, `gate.py` judges. `adopt.py` makes
a model directory of a network that was trained elsewhere, to start from.
"""

from .options import AddOptions
from .plan import Plan, plan_addition
from .step import Outcome, add_classes, carry_out

__all__ = ["AddOptions", "Outcome", "Plan", "add_classes", "carry_out", "plan_addition"]
