"""TensorBoard events beside the other files of a run. Needs tensorboardX, and neither PyTorch nor TensorFlow."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseg.train.errors import SettingError
from tinyseg.train.reporters.base import Reporter

if TYPE_CHECKING:
    from tinyseg.train.evaluation import Scores
    from tinyseg.train.trainer import Result, Trainer


class TensorBoard(Reporter):
    """Every number of metrics.jsonl, and the first example as a strip of input, truth and prediction."""

    def __init__(self):
        try:
            import tensorboardX  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            raise SettingError(
                "train.tensorboard is on, but tensorboardX is not installed; `pip install tensorboardX` brings it"
            ) from None

    def run_started(self, trainer: "Trainer") -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]

        self.labels = trainer.labels
        self.writer = SummaryWriter(str(trainer.run.folder / "tensorboard"), purge_step=trainer.progress.epoch + 1)

    def epoch_done(self, history: list[dict[str, Any]], scores: "Scores | None") -> None:
        from tinyseg import viz

        row = history[-1]
        parts = {f"iou/{name}": value for name, value in row.get("iou", {}).items()}
        parts |= {f"loss_terms/{name}": value for name, value in row.get("loss_terms", {}).items()}
        for name, value in {**row, **parts}.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.writer.add_scalar(name, value, row["epoch"])
        if scores is not None and scores.examples:
            sample, prediction = scores.examples[0]
            colours = np.array(self.labels.palette, np.uint8)
            masks = [
                viz.colourise(mask, colours, self.labels.ignore_label)
                for mask in (sample.mask, prediction)
                if mask is not None
            ]
            strip = np.concatenate([viz.rgb(sample.image), *masks], axis=1)
            self.writer.add_image("example", strip, row["epoch"], dataformats="HWC")
        self.writer.flush()

    def run_ended(self, result: "Result | None") -> None:
        if hasattr(self, "writer"):
            self.writer.close()
