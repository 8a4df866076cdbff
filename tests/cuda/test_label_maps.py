"""The CUDA kernels of label maps."""

import numpy as np
import pytest

from tinyseg.ops import label_maps


@pytest.mark.parametrize("ignored", [None, 255, 0])
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 1, 1), 1), ((3, 5, 7), 4), ((2, 67, 70), 2), ((2, 9, 4), 150)]
)
def test_classes_and_weights(machine, shape, classes, ignored):
    labels = machine.rng.integers(0, classes, shape).astype(np.uint8)
    labels[:, :2] = 0 if ignored is None else ignored
    labels[0] = machine.rng.integers(0, classes)
    if ignored is not None:
        labels[-1] = ignored  # an image without labels

    def both(labels, _):
        weights = label_maps.image_weights(labels, classes, ignore_label=ignored)
        return label_maps.present_classes(labels, classes, ignored), weights

    machine.agree(both, labels, np.zeros(1))


def test_labels_that_are_no_class(machine):
    labels = machine.rng.integers(-2, 6, (2, 5, 7))
    machine.agree(lambda labels, _: label_maps.image_weights(labels, 3, ignore_label=None), labels, np.zeros(1))


def test_labels_above(machine, dtype):
    labels = machine.rng.integers(0, 5, (2, 13, 11))
    scores = machine.numbers(2, 13, 22, dtype=dtype)
    machine.agree(lambda s, t: label_maps.labels_above(s[..., ::2], 0.25, t, 255), scores, labels)
