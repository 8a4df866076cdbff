"""Scores over a data set, with a network whose answers are known."""

import numpy as np
import pytest

from tinyseg.data import DataError, Sample
from tinyseg.models import SegmentationNetwork
from tinyseg.tape import Tensor
from tinyseg.train import config
from tinyseg.train.checkpoint import Labels
from tinyseg.train.evaluation import evaluate, normalised
from tinyseg.train.loss import PixelLoss


class Threshold(SegmentationNetwork):
    """Class 1 where the normalised first channel is positive, class 0 elsewhere."""

    in_channels, classes = 3, 2

    def forward(self, x):
        brightness = x.data[..., :1] if isinstance(x, Tensor) else x[..., :1]
        return Tensor(np.concatenate([-brightness, brightness], axis=-1))


class Pictures:
    """Three pictures of different sizes; the masks say "bright" where the first channel is above one half."""

    classes, ignore_label, channels = ("dark", "bright"), 255, 3
    palette = np.zeros((2, 3), np.uint8)
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (4 + index, 7, 3), np.uint8)
        mask = (image[:, :, 0] > 127).astype(np.uint8)
        mask[0, 0] = 255
        mask[1, :2] = 1 - mask[1, :2]  # two errors in each
        return Sample(image, mask, name=f"picture {index}")


@pytest.fixture
def dataset():
    return Pictures()


def test_counts_are_summed_over_images_of_different_sizes(dataset):
    done = []
    scores = evaluate(
        Threshold(),
        dataset,
        Labels.of(dataset),
        loss=PixelLoss(config.Loss(), dataset),
        boundary=True,
        trimap=True,
        keep=2,
        progress=lambda *numbers: done.append(numbers),
    )
    assert scores is not None
    pixels = sum(7 * (4 + index) - 1 for index in range(3))
    assert scores.confusion.matrix.sum() == pixels
    assert scores.confusion.pixel_error == pytest.approx(6 / pixels)
    assert [sample.name for sample, _ in scores.examples] == ["picture 0", "picture 2"]
    assert scores.examples[0][1].shape == (4, 7)
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert scores.boundary is not None
    assert 0 < scores.boundary.mean <= 1
    assert scores.trimap is not None
    assert scores.loss > 0


def test_it_can_be_stopped(dataset):
    answers = iter([False, True])
    assert evaluate(Threshold(), dataset, Labels.of(dataset), stop=lambda: next(answers)) is None


def test_images_are_normalised_by_what_the_checkpoint_says(labels):
    image = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_allclose(
        normalised(image, labels), [[[-2.5, (0.2 - 0.4) / 0.2, (1 - 0.3) / 0.2]]], rtol=1e-6
    )
    assert normalised(image, labels).dtype == np.float32


def test_an_image_without_a_mask_cannot_be_scored(dataset, monkeypatch):
    monkeypatch.setattr(
        Pictures, "__getitem__", lambda self, index: Sample(np.zeros((4, 4, 3), np.uint8), name="one")
    )
    with pytest.raises(DataError, match="one: has no mask"):
        evaluate(Threshold(), dataset, Labels.of(dataset))
