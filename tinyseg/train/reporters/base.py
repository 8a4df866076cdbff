"""What a run tells to those who watch it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyseg.train.evaluation import Scores
    from tinyseg.train.trainer import Result, Trainer


@dataclass(frozen=True)
class Step:
    """One change of the weights."""

    epoch: int  # from 1
    batch: int  # batches of this epoch that are done
    loss: float
    lr: float
    images_per_second: float  # of this epoch so far


class Reporter:
    """Base class: does nothing. A subclass overrides the events that it wants to hear of."""

    def run_started(self, trainer: "Trainer") -> None:
        """Before the first step, or the first step after a resumption."""

    def epoch_started(self, epoch: int) -> None:
        """Before an epoch, counted from 1."""

    def step_done(self, step: Step) -> None: ...

    def image_validated(self, done: int, total: int) -> None: ...

    def epoch_done(self, history: list[dict[str, Any]], scores: "Scores | None") -> None:
        """After validation and checkpoints. The last row of the history is this epoch's."""

    def run_ended(self, result: "Result | None") -> None:
        """Always the last event; None if an error ended the run."""
