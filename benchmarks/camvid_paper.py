"""Train FC-DenseNet56 on CamVid as its paper did, and measure it on the test frames.

    python -m benchmarks.camvid_paper --data path/to/camvid
    python -m benchmarks.camvid_paper --data path/to/camvid --minutes 9     # and the same again, to go on

Two stages, as in Jegou et al. (CVPR workshops 2017, section 4.1) and the preset fc_densenet: windows of 224 x 224
from nothing, then whole frames with a tenth of the learning rate, each until the score on the validation frames
has not risen for 100 epochs. It wants a GPU: an epoch of the first stage is 122 steps of 3 windows. Stopped, or
after --minutes, the same command goes on from the last checkpoint. At the end, and whenever it is interrupted, the
best weights so far are measured on the 233 test frames. `results/camvid_paper.json` then has our score beside the
paper's 58.9 %, and how far the training got.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from tinyseg.train import checkpoint, config, evaluation, prediction, train
from tinyseg.train.reporters import Reporter, Step, file_reporters
from tinyseg.train.run import Run
from tinyseg.train.trainer import Trainer

PAPER = 0.589  # mean IoU on the test frames, table 1
FRAMES = ["augment.crop=false", "optim.lr=1e-4"]  # what the second stage changes


def stages(data: str, runs: Path, changes: Sequence[str]) -> list[tuple[Path, config.Config]]:
    """The run folder and the configuration of each stage."""
    windows, frames = runs / "fc_densenet56", runs / "fc_densenet56-frames"
    first = config.override(
        config.preset("fc_densenet"), ["model.name=fc_densenet56", f"data.root={data}", *changes]
    )
    return [(windows, first), (frames, config.override(first, [*FRAMES, f"train.init={windows}"]))]


class Deadline(Reporter):
    """Ends a run at a time of `time.perf_counter`, as Ctrl-C would."""

    def __init__(self, until: float):
        self.until = until

    def run_started(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def step_done(self, step: Step) -> None:
        self._look()

    def image_validated(self, done: int, total: int) -> None:
        self._look()

    def _look(self) -> None:
        if time.perf_counter() > self.until:
            self.trainer.stop.signal = signal.SIGTERM


def run_stages(stages: Sequence[tuple[Path, config.Config]], until: float = math.inf) -> bool:
    """Train each stage as far as it is not trained. False if that was interrupted, by a signal or a deadline."""
    for folder, configuration in stages:
        resume = (folder / "config.toml").exists()
        configuration = Run.open(folder).config if resume else configuration
        reporters = [Deadline(until), *file_reporters(configuration)]
        if train(configuration, folder, resume=resume, reporters=reporters).stopped_by:
            return False
    return True


def measure(stages: Sequence[tuple[Path, config.Config]], split: str) -> dict[str, Any]:
    """How far the training got, and the score of the best weights of the last stage that has begun."""
    begun = [folder for folder, _ in stages if (folder / "config.toml").exists()]
    device = Run.open(begun[-1]).config.train.device
    network, found = prediction.load(begun[-1], device=device)
    scores = evaluation.evaluate(network, prediction.open_dataset(found, split), found.labels)
    assert scores is not None
    progress = [checkpoint.load(Run.open(folder).last).progress for folder in begun]
    return {
        "name": "fc_densenet56",
        "split": split,
        "paper_mean_iou": PAPER,
        "mean_iou": scores.confusion.mean_iou,
        "pixel_accuracy": scores.confusion.pixel_accuracy,
        "iou": dict(zip(found.labels.classes, scores.confusion.iou.tolist(), strict=True)),
        "epochs": [place.epoch for place in progress],
        "best_epochs": [place.best_epoch for place in progress],
        "minutes": sum(place.seconds for place in progress) / 60,
        "device": device,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.camvid_paper", description="See benchmarks/camvid_paper.py."
    )
    parser.add_argument("--data", required=True, help="the folder of CamVid")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    parser.add_argument("--minutes", type=float, help="stop after so many, as Ctrl-C does")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    until = math.inf if given.minutes is None else began + 60 * given.minutes
    chosen = stages(given.data, given.runs, [f"train.device={given.device}", *given.changes])
    done = run_stages(chosen, until)
    row = measure(chosen, "test") | {"finished": done}
    state = "" if done else f", interrupted after {(time.perf_counter() - began) / 60:.1f} minutes: run it again"
    print(f"mean IoU on test {row['mean_iou']:.1%}, in the paper {PAPER:.1%}; epochs {row['epochs']}{state}")
    print(harness.write("camvid_paper", [row]))


if __name__ == "__main__":
    main(sys.argv[1:])
