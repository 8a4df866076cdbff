"""The training loop.

    result = train(preset("shapes"), out="runs/shapes")
    result = train(out="runs/shapes", resume=True)        # goes on where the run stopped

An epoch is: every training image once, in batches; validation over the whole validation set; a line in
metrics.jsonl; a checkpoint. What happens is told to reporters (`tinyseg.train.reporters`), which show progress and
draw pictures; the loop itself prints nothing.

The loss is the network's own (`SegmentationNetwork.losses`). Where it has several terms, as with an auxiliary
head, a line in metrics.jsonl also has the mean of each one, `loss_terms`. The loss of the validation is that of
the logits alone: it compares with the term "pixels".

Everything random follows from train.seed, the epoch and the image, and a checkpoint holds the weights, the
optimiser's state and the place in the run. So a run that was stopped, even in the middle of an epoch, and
resumed ends with the same bits as one that was not.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyseg import cuda
from tinyseg.data import Batch
from tinyseg.train import build, checkpoint, feed, files, start
from tinyseg.train.checkpoint import Checkpoint, Labels, Progress
from tinyseg.train.config import Config, from_tables, preset, to_tables
from tinyseg.train.errors import CheckpointError, DivergedError, SettingError
from tinyseg.train.evaluation import Scores, evaluate
from tinyseg.train.loss import PixelLoss
from tinyseg.train.memory import peak_bytes
from tinyseg.train.reporters import Reporter, Step, file_reporters
from tinyseg.train.run import Run
from tinyseg.train.signals import StopRequest


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    epochs: int  # finished
    best_score: float | None
    best_epoch: int | None
    stopped_by: str | None = None  # the signal that ended the run early


def train(
    config: Config | None = None,
    out: str | Path = "runs/latest",
    *,
    resume: bool = False,
    reporters: Iterable[Reporter] | None = None,
) -> Result:
    """Train a network, and leave everything in the run folder `out`.

    config     what to do; None stands for the preset "shapes", with `resume` for the run's own configuration
    resume     go on from the folder's last checkpoint, instead of starting in an empty folder
    reporters  by default those that write pictures into the run folder, and TensorBoard events if asked for

    Raises `UserError` in one of its forms, or `DataError`, when something outside the program is not as it
    should be.
    """
    run = Run.open(out) if resume else Run(out)
    config = run.config if resume and config is None else _checked(config or preset("shapes"))
    reporters = file_reporters(config) if reporters is None else reporters
    if not resume:
        trainer = Trainer(config, run, reporters)  # makes the folder
        with files.locked(run.folder):
            return trainer.fit()
    with files.locked(run.folder):
        return Trainer(config, run, reporters, checkpoint.load(run.last)).fit()


def _checked(config: Config) -> Config:
    """A configuration that was put together in Python, with the same checks as one from a file."""
    return from_tables(to_tables(config))


class Trainer:
    """A run in progress: the network, the optimiser, the data, and the place in the run."""

    def __init__(
        self, config: Config, run: Run, reporters: Iterable[Reporter] = (), last: Checkpoint | None = None
    ):
        self.config = config
        self.run = run
        self.reporters = list(reporters)
        self.train_set = build.open_dataset(config, "train")
        self.val_set = build.open_dataset(config, "val")
        self.labels = Labels.of(self.train_set)
        source = start.read(config.train.init) if config.train.init is not None and last is None else None
        if source is not None:
            self.labels = source.labels(self.labels)
        elif last is not None:
            self.labels = replace(self.labels, mean=last.labels.mean, std=last.labels.std)
        self.loader = build.training_loader(config, self.train_set, mean=self.labels.mean, std=self.labels.std)
        self.network = build.network(
            config,
            self.labels.channels,
            len(self.labels.classes),
            mean=self.labels.mean,
            std=self.labels.std,
        )
        self.labels = replace(self.labels, align_corners=self.network.align_corners)
        self.started = source.into(self.network, self.labels.classes) if source else None
        if config.train.freeze_norm:
            self.network.freeze_norms(scale_and_shift=True)
        self.on_gpu = config.train.device == "cuda"
        self.network.to(config.train.device)
        self.steps_per_epoch = -(-len(self.loader) // config.train.accumulate)
        self.optimiser = build.optimiser(config, self.network, self.steps_per_epoch)
        self.loss = PixelLoss(config.loss, self.train_set)
        self.steps = build.steps(config, self.network, self.optimiser, self.loss)
        self.progress = Progress()
        self.saved_step = 0  # of the last checkpoint
        self.images_per_second: float | None = None  # of the last epoch
        self.history: list[dict[str, Any]] = []
        self.stop = StopRequest()
        if last is None:
            Run.create(run.folder, config)
        else:
            self._continue_from(last)

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> Result:
        """Train until all epochs are done, or until the process is asked to stop."""
        try:
            with self.stop, cuda.allow_tf32(self.config.train.precision == "tf32"):
                self._tell("run_started", self)
                self._run_epochs()
        except BaseException:
            self._tell("run_ended", None)
            raise
        result = self._result()
        self._tell("run_ended", result)
        return result

    def _run_epochs(self) -> None:
        if self.progress.step == 0:
            self.save_last()  # also shows at once whether the folder can be written to
        while self.progress.epoch < self.config.train.epochs and not self.out_of_patience and not self.stop:
            self.train_epoch()
            scores = None if self.stop else self.validate()
            if self.stop:
                self.save_last()  # in the middle of an epoch
            else:
                self.finish_epoch(scores)

    @property
    def out_of_patience(self) -> bool:
        """Whether the score has not risen for as many epochs as the configuration waits."""
        patience, best = self.config.train.patience, self.progress.best_epoch
        return patience is not None and best is not None and self.progress.epoch - best >= patience

    def train_epoch(self) -> None:
        """One pass over the training images, from where the epoch stands; ends early when asked to stop."""
        self.network.train()
        self._tell("epoch_started", self.progress.epoch + 1)
        started, images = time.perf_counter(), 0
        batches = self.loader.epoch(self.progress.epoch, start=self.progress.batch)
        if self.on_gpu:
            batches = feed.ahead(batches)
        with contextlib.closing(batches):  # type: ignore[type-var]  stops the loader's threads
            for group in _groups(batches, self.config.train.accumulate):
                began = time.perf_counter()
                lr = self.optimiser.current_lr
                loss = self.train_step(group)
                self.progress.seconds += time.perf_counter() - began
                images += sum(len(batch.names) for batch in group)
                speed = images / (time.perf_counter() - started)
                self._tell("step_done", Step(self.progress.epoch + 1, self.progress.batch, loss, lr, speed))
                if self.stop:
                    break
        self.images_per_second = images / max(time.perf_counter() - started, 1e-9) if images else None

    def train_step(self, group: Sequence[Batch]) -> float:
        """Change the weights once, by the mean gradient of some batches. Returns their mean loss."""
        number = self.progress.step * self.config.train.accumulate
        losses, terms, norm = self.steps.take(group, number)
        for loss, batch in zip(losses, group, strict=True):
            if not np.isfinite(loss):
                raise DivergedError(self._diverged(f"the loss became {loss}", batch))
        if norm is not None and not np.isfinite(norm):
            raise DivergedError(self._diverged(f"the gradient's norm became {norm}", group[-1]))

        images = [len(batch.names) for batch in group]
        self.progress.step += 1
        self.progress.batch += len(group)
        self.progress.images += sum(images)
        self.progress.loss_sum += float(np.dot(losses, images))
        for name in terms[0]:
            weighted = float(np.dot([term[name] for term in terms], images))
            self.progress.loss_terms[name] = self.progress.loss_terms.get(name, 0.0) + weighted
        return float(np.mean(losses))

    def validate(self) -> Scores | None:
        """Scores over the validation set, or None in an epoch without validation, or if asked to stop."""
        epoch, every = self.progress.epoch + 1, self.config.train.validate_every
        if epoch % every and epoch < self.config.train.epochs:
            return None
        began = time.perf_counter()
        scores = evaluate(
            self.network,
            self.val_set,
            self.labels,
            loss=self.loss,
            keep=self.config.train.pictures,
            stop=lambda: bool(self.stop),
            progress=lambda done, total: self._tell("image_validated", done, total),
            **self.config.inference.options(),
        )
        self.progress.seconds += time.perf_counter() - began
        return scores

    def finish_epoch(self, scores: Scores | None) -> None:
        """Write the epoch into the history and the checkpoints, and have it drawn."""
        self._check_weights()
        progress = self.progress
        row = self._row(scores)
        score = row.get(self.config.train.score)
        best = -np.inf if progress.best_score is None else progress.best_score
        better = score is not None and score > best  # never true for NaN
        progress.epoch, progress.batch, progress.images = progress.epoch + 1, 0, 0
        progress.loss_sum, progress.loss_terms = 0.0, {}
        if better:
            progress.best_score, progress.best_epoch = score, progress.epoch
        # The history first: a run that dies in between repeats the epoch, and `resume` drops the line.
        self.history.append(row)
        self.run.add_to_history(row)
        if better:
            checkpoint.save(self.run.best, self._checkpoint(with_optimiser=False))
        self.save_last()
        self._tell("epoch_done", self.history, scores)

    def save_last(self) -> None:
        """Write the checkpoint to resume from."""
        self._check_weights()
        checkpoint.save(self.run.last, self._checkpoint(with_optimiser=True))
        self.saved_step = self.progress.step

    # --------------------------------------------------------------------------------------------------- parts

    def _result(self) -> Result:
        return Result(
            folder=self.run.folder,
            epochs=self.progress.epoch,
            best_score=self.progress.best_score,
            best_epoch=self.progress.best_epoch,
            stopped_by=self.stop.signal.name if self.stop.signal else None,
        )

    def _row(self, scores: Scores | None) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        peak = peak_bytes()
        row = {
            "epoch": self.progress.epoch + 1,
            "step": self.progress.step,
            "loss": self.progress.loss_sum / max(self.progress.images, 1),
            "lr": self.optimiser.current_lr,
            "images_per_second": self.images_per_second,
            "seconds": round(self.progress.seconds, 3),
            "peak_memory_mb": None if peak is None else round(peak / 2**20),
        }
        if self.on_gpu:
            row["gpu_memory_mb"] = round(cuda.memory().reserved / 2**20)
        if len(self.progress.loss_terms) > 1:
            row["loss_terms"] = {
                name: value / max(self.progress.images, 1) for name, value in self.progress.loss_terms.items()
            }
        if scores is not None:
            row |= {"val_loss": scores.loss} | scores.confusion.scores()
            row["iou"] = dict(zip(self.labels.classes, scores.confusion.iou.tolist(), strict=True))
        return row

    def _checkpoint(self, *, with_optimiser: bool) -> Checkpoint:
        return Checkpoint(
            config=self.config,
            labels=self.labels,
            model=self.network.state_dict(),
            progress=self.progress,
            optimiser=self.optimiser.state_dict() if with_optimiser else None,
        )

    def _continue_from(self, last: Checkpoint) -> None:
        """Take over the state of a checkpoint. Nothing in the run folder changes if it does not fit."""
        if last.optimiser is None:
            raise CheckpointError(f"{last.path} holds weights only; a run is resumed from its last.safetensors")
        old, new = last.config, self.config
        changed = (old.data, old.train.batch, old.train.seed) != (new.data, new.train.batch, new.train.seed)
        if changed and last.progress.batch > 0:
            raise SettingError(
                f"the run stopped in the middle of epoch {last.progress.epoch + 1}: data, train.batch and "
                "train.seed cannot change before it is finished"
            )
        groups = [(config.optim.head_lr, config.optim.bias_lr, config.train.freeze_norm) for config in (old, new)]
        if groups[0] != groups[1]:
            raise SettingError(
                "optim.head_lr, optim.bias_lr and train.freeze_norm sort the parameters into groups and cannot "
                "change in a run; start a new one from its weights, with --init"
            )
        load_weights(self.network, last)
        try:
            self.optimiser.load_state_dict(last.optimiser)
        except ValueError as error:
            raise CheckpointError(f"{last.path} was written with another optimiser: {error}") from error
        self.optimiser.lr = self.config.optim.lr
        self.progress, self.saved_step = last.progress, last.progress.step
        self.history = self.run.rewind_history(last.progress.epoch)
        self.run.write_config(self.config)

    def _check_weights(self) -> None:
        """Refuse to write weights that are not numbers over ones that are."""
        for name, parameter in self.network.named_parameters():
            if not np.isfinite(cuda.to_host(parameter.data)).all():
                raise DivergedError(self._diverged(f"the weights {name} are no longer finite"))

    def _diverged(self, what: str, batch: Batch | None = None) -> str:
        images = f" (images {', '.join(batch.names[:4])})" if batch and batch.names else ""
        clip = self.config.optim.clip
        clipping = "optim.clip=1" if clip is None else f"a smaller optim.clip (now {clip:g})"
        return (
            f"{what} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}{images}. The last good "
            f"checkpoint, written after step {self.saved_step}, is kept in {self.run.last}. What usually helps: a "
            f"lower optim.lr (now {self.config.optim.lr:g}), schedule.warm_up=1, or {clipping}"
        )

    def _tell(self, event: str, *arguments: Any) -> None:
        for reporter in self.reporters:
            getattr(reporter, event)(*arguments)


def load_weights(network: Any, source: Checkpoint) -> None:
    """Put a checkpoint's weights into a network. Raises `CheckpointError`, which lists what does not fit."""
    stored = source.labels.align_corners
    if stored is not None and stored != network.align_corners:
        raise CheckpointError(
            f"{source.path} is of a network that enlarges its scores with align_corners={stored}, and "
            f"{source.config.model.name} does it with align_corners={network.align_corners}"
        )
    try:
        network.load_state_dict(source.model)
    except ValueError as error:
        raise CheckpointError(f"{source.path} is a checkpoint of another model: {error}") from error
    broken = [name for name, value in source.model.items() if not np.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{source.path} holds weights that are not finite numbers, for instance {broken[0]}")


def _groups(batches: Iterable[Batch], size: int) -> Iterable[list[Batch]]:
    """The batches in groups of `size`; the last group may be smaller."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
