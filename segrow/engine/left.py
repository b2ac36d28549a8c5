"""The time left of a whole run, from what was measured so far.

left = TimeLeft(); left.ahead = [Work("evaluation", 300), Work("heads", 4000), ...]
left.words(Work("trunk", 1200), 0.02)      # "about 2 min left of the run"
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from ..config import RunConfig
from ..methods.base import Method
from ..scenario import Scenario

Kind = Literal["trunk", "heads", "evaluation", "page"]
_FORWARD = 1 / 3
"""Share of a training iteration that an evaluation needs: it has no backward pass, two thirds of the work."""


@dataclass(frozen=True)
class Work:
    """A piece of a run.

    Attributes:
        kind: Updates of the whole network, of heads behind a frozen trunk, an evaluation, or the report's
            page.
        images: How often an image is shown; pages.
    """

    kind: Kind
    images: int


@final
class TimeLeft:
    """What is still to be done, and how long that takes.

    A kind of work that was not measured yet is taken for what it most resembles, so the first estimates are
    rough, and those of increments, which cost less than the base step, too high.

    Attributes:
        what: What it is the time of.
        ahead: Pieces of this run after the one in progress.
        later: Pieces of the runs after this one.
    """

    def __init__(self, what: str = "the run") -> None:
        self.what = what
        self.ahead: Sequence[Work] = ()
        self.later: Sequence[Work] = ()
        self._measured: dict[Kind, float] = {}  # seconds an image, of the last piece of a kind

    def finished(self, work: Work, seconds: float) -> None:
        """A piece was done."""
        if work.images:
            self._measured[work.kind] = seconds / work.images

    def estimate(self, now: Work, seconds_per_image: float) -> float:
        """Seconds from now to the end.

        Args:
            now: What is left of the piece in progress.
            seconds_per_image: Of this piece so far.
        """
        known = {now.kind: seconds_per_image, **self._measured}
        training = known.get("trunk", known.get("heads", 0.0))
        usual: dict[Kind, float] = {
            "trunk": training,
            "heads": training,
            "evaluation": training * _FORWARD,
            "page": 0.0,
        }
        rates = {**usual, **known}
        rest = sum(rates[work.kind] * work.images for work in (*self.ahead, *self.later))
        return now.images * seconds_per_image + rest

    def words(self, now: Work, seconds_per_image: float) -> str:
        """The estimate for people: `about 3 min left of the run`."""
        return f"{about(self.estimate(now, seconds_per_image))} left of {self.what}"


def about(seconds: float) -> str:
    """A length of time without more digits than an estimate has."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h {rest} min" if hours < 10 else f"about {round(minutes / 60)} h"


def pieces(
    config: RunConfig, method: Method, scenario: Scenario, evaluated: int, first: int = 0, pages: bool = False
) -> Iterator[Work]:
    """What a run does from a step on.

    Args:
        evaluated: Validation images.
        first: The step.
        pages: The report's page is written after every step.
    """
    train = config.train
    for step in scenario.steps[first : config.steps]:
        epochs = train.epochs if step.index or train.step0_epochs is None else train.step0_epochs
        images = len(scenario.images(step.index, method.sees))
        shown = epochs * (images // train.batch_size) * train.batch_size
        yield Work("heads" if step.index and method.freezes_trunk else "trunk", shown)
        yield Work("evaluation", evaluated)
        if pages:
            yield Work("page", 1)
