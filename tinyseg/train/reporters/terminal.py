"""Progress for a person: a live line in a terminal, and one line per epoch, which is all where there is none."""

import math
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tinyseg.train.reporters.base import Reporter, Step

if TYPE_CHECKING:
    from tinyseg.train.config import Train
    from tinyseg.train.evaluation import Scores
    from tinyseg.train.trainer import Result, Trainer


class Terminal(Reporter):
    """Prints to a rich console: what the run will do, its progress, and where its results are."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Progress | None = None

    # ---------------------------------------------------------------------------------------------- the events

    def run_started(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.epochs = trainer.config.train.epochs
        self.best = trainer.progress.best_score
        self.first_step = trainer.progress.step
        self.began = time.monotonic()
        for name, text in summary(trainer):
            self._print(f"[bold]{name:<9}[/] {text}")
        self._print("")
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("epoch {task.fields[epoch]:>{task.fields[digits]}}/{task.fields[epochs]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.live.add_task(
                "",
                total=len(trainer.loader),
                epoch=trainer.progress.epoch + 1,
                epochs=self.epochs,
                digits=len(str(self.epochs)),
                text="compiling the kernels, once",
            )
            self.live.start()

    def epoch_started(self, epoch: int) -> None:
        if self.live:
            self.live.update(self.task, completed=self.trainer.progress.batch, epoch=epoch)

    def step_done(self, step: Step) -> None:
        if self.live:
            rows = self.trainer.history
            score = f"mIoU {rows[-1]['mean_iou']:.3f}  " if rows and "mean_iou" in rows[-1] else ""
            speed = f"{step.images_per_second:.1f} images/s  "
            text = f"loss {step.loss:.4f}  {score}{speed}{self._time_left()}"
            self.live.update(self.task, completed=step.batch, text=text)

    def image_validated(self, done: int, total: int) -> None:
        if self.live:
            self.live.update(self.task, text=f"validating, image {done} of {total}")

    def epoch_done(self, history: list[dict[str, Any]], scores: "Scores | None") -> None:
        score = self.trainer.progress.best_score
        better, self.best = score != self.best, score
        self._print(epoch_line(history[-1], self.epochs) + ("  [green]best[/]" if better else ""))

    def run_ended(self, result: "Result | None") -> None:
        if self.live:
            self.live.stop()
            self.live = None
        if result is not None:
            self._print("")
            for line in closing_lines(self.trainer, result):
                self._print(line)

    # ------------------------------------------------------------------------------------------------- helpers

    def _print(self, text: str) -> None:
        """A line of its own, however narrow the terminal is, and at once."""
        self.console.print(text, soft_wrap=True, highlight=False)

    def _time_left(self) -> str:
        """An estimate from the whole run so far, validation and compilation included."""
        done = self.trainer.progress.step - self.first_step
        left = self.epochs * self.trainer.steps_per_epoch - self.trainer.progress.step
        return f"{duration((time.monotonic() - self.began) / max(done, 1) * left)} left"


def summary(trainer: "Trainer") -> list[tuple[str, str]]:
    """What the run is about to do, as pairs of a heading and a sentence."""
    config, progress = trainer.config, trainer.progress
    options = ", ".join(f"{name} {value}" for name, value in config.model.options.items())
    started = trainer.started.describe() if trainer.started else []
    steps, batch = trainer.steps_per_epoch, config.train.batch * config.train.accumulate
    rows = [
        ("Data", f"{trainer.train_set!r}".strip("<>")),
        ("", f"{trainer.val_set!r}".strip("<>")),
        ("Network", f"{config.model.name} ({options}), {trainer.network.num_parameters():,} parameters"),
        *(("" if number else "Starts", line) for number, line in enumerate(started)),
        (
            "Training",
            f"{config.train.epochs} epochs of {steps} steps, {batch} images each; {config.optim.name}, "
            f"learning rate {config.optim.lr:g} ({config.schedule.name}), seed {config.train.seed}",
        ),
        *device(config.train),
        ("Run", f"{trainer.run.folder}"),
    ]
    if progress.step:
        place = f"epoch {progress.epoch + 1}, batch {progress.batch + 1}" if progress.batch else ""
        rows.append(
            ("Resumes", f"after {progress.epoch} epochs and {progress.step} steps" + (place and f", in {place}"))
        )
    return rows


def device(settings: "Train") -> list[tuple[str, str]]:
    """Where the network is trained, if that is not the CPU: a pair like those of `summary`."""
    if settings.device == "cpu":
        return []
    numbers = {
        "float32": "float32",
        "tf32": "convolutions multiply in TF32",
        "bfloat16": "activations in bfloat16",
    }[settings.precision]
    return [("Device", f"GPU, {numbers}" + (", steps recorded as a CUDA graph" if settings.cuda_graph else ""))]


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in one line."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['loss']:.4f}"]
    if "mean_iou" in row:
        parts += [
            f"val loss {_number(row['val_loss'])}",
            f"mIoU {_number(row['mean_iou'])}",
            f"accuracy {_number(row['pixel_accuracy'])}",
        ]
    if row["images_per_second"]:
        parts.append(f"{row['images_per_second']:.1f} images/s")
    if row["peak_memory_mb"]:
        parts.append(f"{row['peak_memory_mb']} MB")
    if row.get("gpu_memory_mb"):
        parts.append(f"{row['gpu_memory_mb']} MB on the GPU")
    parts.append(duration(row["seconds"]))
    return "  ".join(parts)


def closing_lines(trainer: "Trainer", result: "Result") -> list[str]:
    """What came of the run, and what to do next."""
    run = trainer.run
    lines = []
    if result.stopped_by:
        lines.append(
            f"Stopped by {result.stopped_by} after step {trainer.progress.step}; nothing is lost. To go on:\n"
            f"    tinyseg train --resume --out {run.folder}"
        )
    elif trainer.out_of_patience:
        lines.append(f"Ended: no better {trainer.config.train.score} in {trainer.config.train.patience} epochs")
    if result.best_score is not None:
        lines.append(f"Best {trainer.config.train.score} {result.best_score:.4f}, in epoch {result.best_epoch}")
    for heading, path in (("Weights", run.best), ("Curves", run.curves), ("Samples", run.samples)):
        if path.exists():
            lines.append(f"{heading:<8} {path}")
    return lines


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
