"""What a person sees of a run: with a terminal and without, and when it is stopped."""

import io
import re
import signal
import sys
import types

import pytest
from rich.console import Console
from rich.progress import Progress

from tinyseg.train import config, train
from tinyseg.train.config import Train
from tinyseg.train.errors import SettingError
from tinyseg.train.reporters import Pictures, file_reporters
from tinyseg.train.reporters.terminal import Terminal, device, duration, epoch_line


@pytest.fixture
def paper():
    """A console that writes into a text, 60 characters wide: narrower than the lines."""
    return Console(file=io.StringIO(), width=60)


def test_without_a_terminal_there_is_one_line_for_each_epoch(tmp_path, tiny, paper):
    train(tiny, tmp_path / "run", reporters=[Terminal(paper), Pictures()])
    text = paper.file.getvalue()
    lines = text.splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 4
    for number, line in enumerate(epochs, start=1):
        assert line.startswith(f"epoch {number}/4  loss ")
        assert "mIoU" in line
        assert "images/s" in line
    assert "\x1b" not in text
    assert "\r" not in text
    assert "unet_padded (base 2, depth 1" in text
    assert "4 epochs of 3 steps, 2 images each; adamw" in text
    for name in ("best.safetensors", "curves.png", "samples.png"):
        assert str(tmp_path / "run" / name) in text


def test_a_terminal_shows_loss_score_speed_and_time_left(tmp_path, tiny, monkeypatch):
    """Steps may be faster than the screen is renewed, so what it is told is looked at, and not the screen."""
    told = []
    update = Progress.update

    def record(self, task, **fields):
        told.append(fields.get("text", ""))
        update(self, task, **fields)

    monkeypatch.setattr(Progress, "update", record)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    train(tiny, tmp_path / "run", reporters=[Terminal(console)])
    assert re.fullmatch(r"loss \d\.\d{4}  mIoU 0\.\d{3}  \d+\.\d images/s  \d+:\d\d left", told[-4])
    assert told[-3:] == [f"validating, image {done} of 3" for done in (1, 2, 3)]
    text = console.file.getvalue()
    assert "compiling the kernels, once" in text
    assert text.endswith("\n")


def test_a_stopped_run_says_how_to_go_on(tmp_path, tiny, paper, signal_at):
    train(tiny, tmp_path / "run", reporters=[signal_at(signal.SIGTERM, step=4), Terminal(paper)])
    text = paper.file.getvalue()
    assert "Stopped by SIGTERM after step 4; nothing is lost" in text
    assert f"tinyseg train --resume --out {tmp_path / 'run'}" in text
    again = Console(file=io.StringIO())
    train(out=tmp_path / "run", resume=True, reporters=[Terminal(again)])
    assert "after 1 epochs and 4 steps, in epoch 2, batch 2" in again.file.getvalue()


def test_a_run_on_a_gpu_says_so():
    assert device(Train()) == []
    assert device(Train(device="cuda")) == [("Device", "GPU, float32")]
    ((_, text),) = device(Train(device="cuda", precision="bfloat16", cuda_graph=True))
    assert text == "GPU, activations in bfloat16, steps recorded as a CUDA graph"


def test_an_epoch_without_validation_or_with_nan_is_a_line_too():
    row = {"epoch": 3, "loss": 0.5, "images_per_second": None, "peak_memory_mb": None, "seconds": 61.2}
    assert epoch_line(row, 10) == "epoch  3/10  loss 0.5000  1:01"
    row |= {"val_loss": None, "mean_iou": float("nan"), "pixel_accuracy": 0.25}
    assert "val loss -  mIoU -  accuracy 0.2500" in epoch_line(row, 10)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7384, "2:03:04")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_tensorboard_is_asked_for_by_name(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SettingError, match="tensorboardX is not installed; `pip install tensorboardX`"):
        file_reporters(config.override(tiny, ["train.tensorboard=true"]))


def test_tensorboard_gets_scalars_and_an_example(tmp_path, tiny, monkeypatch):
    written = {"scalars": [], "images": []}

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name, value, epoch):
            written["scalars"].append((name, epoch))

        def add_image(self, name, image, epoch, dataformats):
            written["images"].append((image.shape, dataformats))

        def flush(self): ...

        def close(self):
            written["closed"] = True

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    wanted = config.override(tiny, ["train.tensorboard=true", "train.epochs=2"])
    train(wanted, tmp_path / "run")
    assert {("loss", 1), ("loss", 2), ("mean_iou", 1), ("iou/background", 2)} <= set(written["scalars"])
    assert written["images"] == [((16, 48, 3), "HWC")] * 2
    assert written["closed"]
