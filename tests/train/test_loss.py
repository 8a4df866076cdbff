"""The loss of a configuration, against the same sums written out."""

import numpy as np
import pytest

from tinyseg.data import DATASETS
from tinyseg.tape import Tensor
from tinyseg.train import config
from tinyseg.train.errors import SettingError
from tinyseg.train.loss import PixelLoss, middle


@pytest.fixture
def shapes():
    return DATASETS["shapes"]("train", length=3, size=(16, 20))


def negative_log_probability(logits, labels):
    """-log p of the label, pixel by pixel, (N, H, W)."""
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(p, labels[..., None], axis=-1)[..., 0])


def test_cross_entropy_with_class_and_pixel_weights(shapes, rng):
    logits, labels = rng.standard_normal((2, 5, 7, 6)), rng.integers(0, 6, (2, 5, 7))
    weights, class_weights = rng.random((2, 5, 7)), (0.5, 1.0, 2.0, 1.0, 0.0, 3.0)
    loss = PixelLoss(config.Loss(class_weights=class_weights), shapes)(Tensor(logits), labels, weights)
    each = weights * np.array(class_weights)[labels]
    expected = (each * negative_log_probability(logits, labels)).sum() / each.sum()
    assert float(loss.data) == pytest.approx(expected, rel=1e-9)


def test_dice_is_added_with_its_weight(shapes, rng):
    logits, labels = rng.standard_normal((2, 5, 7, 6)), rng.integers(0, 6, (2, 5, 7))
    without, half, whole = (
        float(PixelLoss(config.Loss(dice=weight), shapes)(Tensor(logits), labels).data)
        for weight in (0.0, 0.5, 1.0)
    )
    assert whole - without == pytest.approx(2 * (half - without), rel=1e-9)
    assert 0 < whole - without < 1  # 1 - Dice


def test_labels_are_cut_to_the_middle_of_what_is_answered_for(shapes, rng):
    logits, labels = rng.standard_normal((1, 4, 3, 6)), rng.integers(0, 6, (1, 8, 6))
    loss = PixelLoss(config.Loss(), shapes)(Tensor(logits), labels)
    expected = negative_log_probability(logits, labels[:, 2:6, 1:4]).mean()
    assert float(loss.data) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(middle(np.arange(5).reshape(1, 1, 5), (1, 2)), [[[1, 2]]])


def test_labels_must_not_be_smaller(shapes, rng):
    logits, labels = rng.standard_normal((1, 8, 6, 6)), rng.integers(0, 6, (1, 8, 5))
    with pytest.raises(ValueError, match="the logits have 8 x 6 pixels, more than the 8 x 5 of the labels"):
        PixelLoss(config.Loss(), shapes)(Tensor(logits), labels)


def test_median_frequency_weights_come_from_the_masks(shapes):
    loss = PixelLoss(config.Loss(class_weights="median"), shapes)
    masks = [shapes[i].mask for i in range(3)]
    frequency = np.full(6, np.nan)
    for label in range(6):
        showing = [mask for mask in masks if (mask == label).any()]
        if showing:
            frequency[label] = sum((mask == label).sum() for mask in showing) / (len(showing) * 16 * 20)
    expected = np.nan_to_num(np.nanmedian(frequency) / frequency)
    np.testing.assert_allclose(loss.class_weights, expected)


def test_the_number_of_class_weights_is_checked(shapes):
    with pytest.raises(SettingError, match=r"loss.class_weights has 2 numbers, but there are 6 classes"):
        PixelLoss(config.Loss(class_weights=(1.0, 2.0)), shapes)
