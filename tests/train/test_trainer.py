"""The loop: it learns, repeats itself bit by bit, stops when asked or when the loss breaks, and loses nothing."""

import dataclasses
import json
import math
import signal
import threading

import numpy as np
import pytest
from PIL import Image

import tinyseg
from tinyseg import functional as F
from tinyseg.train import build, checkpoint, config, load, train
from tinyseg.train.errors import CheckpointError, DivergedError, RunFolderError, SettingError
from tinyseg.train.evaluation import evaluate
from tinyseg.train.loss import PixelLoss
from tinyseg.train.prediction import predict
from tinyseg.train.reporters import Pictures, Reporter
from tinyseg.train.run import Run
from tinyseg.train.trainer import Trainer

UNPADDED = ("model.name=unet", "model.base=2", "model.depth=1", "data.size=32,32")
UNTIMED = ("seconds", "images_per_second", "peak_memory_mb")


def history_of(folder):
    """The history without what differs from run to run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in UNTIMED} for row in rows]


def final_state(folder):
    last = checkpoint.load(folder / "last.safetensors")
    assert last.optimiser is not None
    return {**last.model, **{f"optimiser/{name}": value for name, value in last.optimiser.items()}}


def test_a_run_leaves_everything_behind(tmp_path, tiny):
    result = train(tiny, tmp_path / "run")
    run = Run.open(result.folder)
    assert result.epochs == 4
    assert result.stopped_by is None
    rows = run.history()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert result.best_score == max(row["mean_iou"] for row in rows)
    assert checkpoint.load(run.best).progress.best_score == result.best_score
    assert run.config == tiny
    for picture in (run.curves, run.samples):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_training_lowers_the_loss(tmp_path, tiny):
    eager = config.override(
        tiny, ["train.epochs=30", "optim.lr=0.02", "data.train.length=2", "augment.flip=false"]
    )
    train(eager, tmp_path / "run", reporters=[])
    losses = [row["loss"] for row in history_of(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


def test_validation_and_eval_look_at_images_as_the_configuration_says(tmp_path, tiny):
    halved = config.override(tiny, ["train.epochs=1", "inference.scales=0.5"])
    row = train(halved, tmp_path / "run", reporters=[]) and Run.open(tmp_path / "run").history()[0]
    network, found = load(tmp_path / "run", "last")
    val_set = build.open_dataset(found.config, "val")
    scores = {
        scale: evaluate(network, val_set, found.labels, scales=(scale,)).confusion.scores() for scale in (0.5, 1.0)
    }
    assert row["mean_iou"] == scores[0.5]["mean_iou"] != scores[1.0]["mean_iou"]
    Image.fromarray(val_set[0].image).save(tmp_path / "image.png")
    written = [
        predict(tmp_path / "run", [tmp_path / "image.png"], tmp_path / name, weights="last", **options).masks[0]
        for name, options in (("as_said", {}), ("half", {"scales": (0.5,)}), ("whole", {"scales": (1.0,)}))
    ]
    as_said, half, whole = (np.asarray(Image.open(path)) for path in written)
    assert (as_said == half).all()
    assert (as_said != whole).any()


def test_a_run_ends_when_its_score_no_longer_rises(tmp_path, tiny):
    """Weights that do not move have the score of the first epoch for ever."""
    resting = config.override(
        tiny, ["optim.lr=1e-30", "train.epochs=9", "train.patience=2", "train.freeze_norm=true"]
    )
    result = train(resting, tmp_path / "run", reporters=[])
    assert (result.epochs, result.best_epoch, result.stopped_by) == (3, 1, None)
    assert train(out=tmp_path / "run", resume=True, reporters=[]).epochs == 3
    assert (
        train(config.override(resting, ["train.patience=4"]), tmp_path / "run", resume=True, reporters=[]).epochs
        == 5
    )


# ------------------------------------------------------------------------------------------------ the same bits


def test_the_same_configuration_gives_the_same_bits(tmp_path, tiny, same_bits):
    for name in ("one", "two"):
        train(tiny, tmp_path / name, reporters=[])
    assert same_bits(final_state(tmp_path / "one"), final_state(tmp_path / "two"))
    assert history_of(tmp_path / "one") == history_of(tmp_path / "two")


def test_another_seed_gives_other_weights(tmp_path, tiny, same_bits):
    train(tiny, tmp_path / "one", reporters=[])
    train(config.override(tiny, ["train.seed=1"]), tmp_path / "two", reporters=[])
    assert not same_bits(final_state(tmp_path / "one"), final_state(tmp_path / "two"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", [{"step": 6}, {"step": 8}, {"epoch_validated": 2}])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path, tiny, number, when, same_bits, signal_at):
    whole = train(tiny, tmp_path / "whole", reporters=[])
    stopped = train(tiny, tmp_path / "parts", reporters=[signal_at(number, **when)])
    assert stopped.stopped_by == number.name
    assert stopped.epochs < 4
    resumed = train(out=tmp_path / "parts", resume=True, reporters=[])
    assert same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    assert history_of(tmp_path / "whole") == history_of(tmp_path / "parts")
    assert (resumed.best_score, resumed.best_epoch) == (whole.best_score, whole.best_epoch)
    best = [checkpoint.load(tmp_path / name / "best.safetensors").model for name in ("whole", "parts")]
    assert same_bits(*best)


@pytest.mark.parametrize(
    "options", [["optim.name=sgd"], ["optim.name=rmsprop", "train.accumulate=2"], ["loss.dice=1"]]
)
def test_so_it_is_with_other_settings(tmp_path, tiny, options, same_bits, signal_at):
    varied = config.override(tiny, options)
    train(varied, tmp_path / "whole", reporters=[])
    train(varied, tmp_path / "parts", reporters=[signal_at(signal.SIGTERM, step=5)])
    train(out=tmp_path / "parts", resume=True, reporters=[])
    assert same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_dropout_and_kernels_resume_to_the_same_bits(tmp_path, tiny, same_bits, signal_at):
    """With the Numba kernels, and a network that drops out; the counters of its masks are in the checkpoint."""
    dropping = config.override(tiny, [*UNPADDED, "train.epochs=2"])
    with tinyseg.use("numba"):
        train(dropping, tmp_path / "whole", reporters=[])
        train(dropping, tmp_path / "parts", reporters=[signal_at(signal.SIGTERM, step=2)])
        train(out=tmp_path / "parts", resume=True, reporters=[])
    assert any(name.endswith("calls") for name in final_state(tmp_path / "whole"))
    assert same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_four_epochs_are_two_and_two_more(tmp_path, tiny, same_bits):
    """With a constant learning rate, a finished run can be given more epochs."""
    constant = config.override(tiny, ["schedule.name=constant"])
    train(constant, tmp_path / "four", reporters=[])
    train(config.override(constant, ["train.epochs=2"]), tmp_path / "two", reporters=[])
    train(constant, tmp_path / "two", resume=True, reporters=[])
    assert same_bits(final_state(tmp_path / "four"), final_state(tmp_path / "two"))


def test_resuming_a_finished_run_changes_nothing(tmp_path, tiny, same_bits):
    train(tiny, tmp_path / "run", reporters=[])
    before = final_state(tmp_path / "run")
    assert train(out=tmp_path / "run", resume=True, reporters=[]).epochs == 4
    assert same_bits(before, final_state(tmp_path / "run"))


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, tiny):
    """Without batch normalisation: 3 batches of 2 make the step of a batch of 6."""
    plain = [*UNPADDED, "model.dropout=0", "train.epochs=1"]
    one = Trainer(config.override(tiny, [*plain, "train.batch=6"]), Run(tmp_path / "one"))
    three = Trainer(config.override(tiny, [*plain, "train.accumulate=3"]), Run(tmp_path / "three"))
    for trainer in (one, three):
        trainer.train_epoch()
        assert trainer.progress.step == 1
    for a, b in zip(one.network.parameters(), three.network.parameters(), strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-4, atol=1e-6)


def test_a_signal_outside_the_main_thread_is_no_matter(tmp_path, tiny):
    results = []

    def work():
        with tinyseg.use("numpy"):
            results.append(train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].epochs == 1


def test_the_old_signal_handlers_come_back(tmp_path, tiny):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_does_not_wait(tmp_path, tiny, signal_at):
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", reporters=[signal_at(signal.SIGINT, step=5, times=2)])
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").progress.epoch == 1  # the last whole epoch


# ---------------------------------------------------------------------------------------------- what goes wrong


class BreaksAt(Reporter):
    """Makes a weight infinite before a step, as a diverging run does."""

    def __init__(self, step):
        self.step = step

    def run_started(self, trainer):
        self.trainer = trainer

    def step_done(self, step):
        if self.trainer.progress.step == self.step:
            next(iter(self.trainer.network.parameters())).data[...] = np.inf


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("after", "words"), [(4, "the loss became nan in epoch 2, step 5"), (6, "no longer finite in epoch 2, step 7")]
)
def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, tiny, after, words):
    with pytest.raises(DivergedError) as error:
        train(tiny, tmp_path / "run", reporters=[BreaksAt(after)])
    message = str(error.value)
    assert words in message
    assert "The last good checkpoint, written after step 3, is kept in " in message
    assert "a lower optim.lr (now 0.003)" in message
    kept = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert kept.progress.epoch == 1
    assert all(np.isfinite(value).all() for value in kept.model.values())
    assert len(history_of(tmp_path / "run")) == 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_loss_names_the_images(tmp_path, tiny, monkeypatch):
    finite = PixelLoss.__call__
    monkeypatch.setattr(PixelLoss, "__call__", lambda *arguments: F.mul(finite(*arguments), math.inf))
    with pytest.raises(
        DivergedError, match=r"the loss became inf in epoch 1, step 1 \(images train-0000\d, train"
    ):
        train(tiny, tmp_path / "run", reporters=[])


def test_a_run_that_diverged_can_be_resumed_with_other_settings(tmp_path, tiny):
    with pytest.raises(DivergedError), np.errstate(invalid="ignore"):
        train(tiny, tmp_path / "run", reporters=[BreaksAt(4)])
    gentle = config.override(tiny, ["optim.lr=0.0001"])
    assert train(gentle, tmp_path / "run", resume=True, reporters=[]).epochs == 4
    assert Run.open(tmp_path / "run").config.optim.lr == 0.0001


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, tiny, full_disk):
    class FillsUp(Reporter):
        def epoch_started(self, epoch):
            if epoch == 2:
                self.context = full_disk()
                self.context.__enter__()

        def run_ended(self, result):
            self.context.__exit__(None, None, None)

    with pytest.raises(RunFolderError, match="the disk is full"):
        train(tiny, tmp_path / "run", reporters=[FillsUp()])
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").progress.epoch == 1
    assert train(out=tmp_path / "run", resume=True, reporters=[]).epochs == 4


def test_pictures_on_a_full_disk_are_explained(tmp_path, tiny, monkeypatch):
    def no_space(picture, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyseg.viz.save", no_space)
    with pytest.raises(RunFolderError, match=r"cannot write .*curves.png: the disk is full"):
        train(tiny, tmp_path / "run", reporters=[Pictures()])


def test_the_folder_of_a_run_must_be_writable(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a file stands where a folder is needed"):
        train(tiny, tmp_path / "file" / "run", reporters=[])


def test_a_checkpoint_of_another_model_is_listed_name_by_name(tmp_path, tiny):
    train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[])
    other = config.override(tiny, ["model.base=3"])
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(CheckpointError) as error:
        train(other, tmp_path / "run", resume=True, reporters=[])
    assert "is a checkpoint of another model" in str(error.value)
    assert "contracting.0.conv1.weight is (3, 3, 3, 3) here and (3, 3, 3, 2)" in str(error.value)
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_a_checkpoint_whose_scores_are_enlarged_in_another_way(tmp_path, tiny):
    small = ["model.name=deeplab_v3_resnet50", "model.backbone=resnet18", "model.width=0.0625", "train.epochs=1"]
    train(config.override(tiny, [*small, "data.train.length=2"]), tmp_path / "run", reporters=[])
    best = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert best.labels.align_corners is True
    other = dataclasses.replace(best, labels=dataclasses.replace(best.labels, align_corners=False))
    checkpoint.save(tmp_path / "other.safetensors", other)
    words = (
        r"enlarges its scores with align_corners=False, and deeplab_v3_resnet50 does it with align_corners=True"
    )
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "other.safetensors")


def test_another_optimiser_cannot_go_on(tmp_path, tiny):
    train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[])
    with pytest.raises(CheckpointError, match="was written with another optimiser"):
        train(config.override(tiny, ["optim.name=sgd"]), tmp_path / "run", resume=True, reporters=[])


def test_batches_cannot_change_in_the_middle_of_an_epoch(tmp_path, tiny, signal_at):
    train(tiny, tmp_path / "run", reporters=[signal_at(signal.SIGTERM, step=2)])
    with pytest.raises(SettingError, match=r"stopped in the middle of epoch 1: data, train.batch and train.seed"):
        train(config.override(tiny, ["train.batch=3"]), tmp_path / "run", resume=True, reporters=[])


def test_damaged_and_missing_checkpoints_cannot_be_resumed(tmp_path, tiny):
    train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[])
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is damaged"):
        train(out=tmp_path / "run", resume=True)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*beside it there is best.safetensors"):
        train(out=tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="there is no run folder"):
        train(out=tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.variant=padde"], "model: UNet: unknown variant 'padde'"),
        (["model.base=0"], "model: UNet: base must be at least 1"),
        (
            ["loss.class_weights=1,2"],
            "loss.class_weights has 2 numbers, but there are 6 classes: background, disk",
        ),
        (["optim.name=sgd", "optim.nesterov=true", "optim.momentum=0"], "optim: SGD: nesterov"),
        (["augment.elastic.grid=1"], "augment: elastic: grid must be at least 2"),
    ],
)
def test_settings_that_only_the_parts_understand_are_explained(tmp_path, tiny, options, message):
    with pytest.raises(SettingError, match=message):
        train(config.override(tiny, options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_configuration_made_in_python_is_checked_too(tmp_path):
    with pytest.raises(SettingError, match=r"optim.lr must be more than 0, got -1"):
        train(config.Config(optim=config.Optim(lr=-1.0)), tmp_path / "run")
