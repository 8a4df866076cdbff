"""A run that takes a second: a tiny network, a few tiny pictures, the reference operators."""

import contextlib
import errno
import os

import pytest

import tinyseg
from tinyseg.train import config
from tinyseg.train.checkpoint import Labels
from tinyseg.train.reporters import Reporter

TINY = (
    "data.size=16,16",
    "data.train.length=6",
    "data.val.length=3",
    "model.base=2",
    "model.depth=1",
    "optim.lr=0.003",
    "train.batch=2",
    "train.epochs=4",
    "train.pictures=2",
)


@pytest.fixture
def tiny() -> config.Config:
    """3 steps an epoch, 4 epochs."""
    return config.override(config.preset("shapes"), TINY)


@pytest.fixture(autouse=True)
def reference_operators():
    """The NumPy references: at this size they are faster than loading the kernels."""
    with tinyseg.use("numpy"):
        yield


@pytest.fixture
def labels() -> Labels:
    return Labels(("sky", "sea"), ((0, 0, 9), (9, 0, 0)), 255, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture
def full_disk(monkeypatch):
    """A context in which no data reaches the disk."""

    @contextlib.contextmanager
    def context():
        def no_space(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            yield

    return context


@pytest.fixture
def same_bits():
    """A function that says whether two dicts of arrays hold the same names and the same bits."""

    def described(arrays):
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}

    return lambda a, b: described(a) == described(b)


@pytest.fixture
def signal_at():
    """A reporter that sends this process a signal after a step, or during a validation, so many times."""
    return SignalAt


class SignalAt(Reporter):
    def __init__(self, number, *, step=None, epoch_validated=None, times=1):
        self.number, self.step, self.epoch, self.times = number, step, epoch_validated, times

    def run_started(self, trainer):
        self.trainer = trainer

    def step_done(self, step):
        if self.trainer.progress.step == self.step:
            self._send()

    def image_validated(self, done, total):
        if self.trainer.progress.epoch + 1 == self.epoch and done == 1:
            self._send()

    def _send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)
