"""Pictures in the run folder, renewed after every epoch: learning curves, and what the network makes of images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseg.train import files
from tinyseg.train.reporters.base import Reporter

if TYPE_CHECKING:
    from tinyseg.train.evaluation import Scores
    from tinyseg.train.trainer import Trainer


class Pictures(Reporter):
    """Writes curves.png and samples.png."""

    def run_started(self, trainer: "Trainer") -> None:
        self.run, self.labels, self.name = trainer.run, trainer.labels, trainer.config.model.name

    def epoch_done(self, history: list[dict[str, Any]], scores: "Scores | None") -> None:
        from tinyseg import viz

        try:
            viz.save(viz.curves(history), self.run.curves)
        except OSError as error:
            raise files.explained(error, self.run.curves) from error
        if scores is None or not scores.examples:
            return
        sheet = viz.contact_sheet(
            [sample.image for sample, _ in scores.examples],
            [sample.mask for sample, _ in scores.examples if sample.mask is not None],
            [prediction for _, prediction in scores.examples],
            names=[sample.name for sample, _ in scores.examples],
            classes=self.labels.classes,
            colours=np.array(self.labels.palette, np.uint8),
            ignore_label=self.labels.ignore_label,
            title=f"{self.name} after {history[-1]['epoch']} epochs, mean IoU {scores.confusion.mean_iou:.3f}",
        )
        try:
            viz.save(sheet, self.run.samples)
        except OSError as error:
            raise files.explained(error, self.run.samples) from error
