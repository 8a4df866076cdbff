"""What maps of labels say about their images: by hand."""

import numpy as np

from tinyseg.ops.label_maps import image_weights, labels_above, present_classes


def test_present_classes():
    labels = np.array([[[0, 2], [2, 255]], [[1, 1], [1, 1]]])
    assert present_classes(labels, 4, 255).tolist() == [[True, False, True, False], [False, True, False, False]]
    assert present_classes(labels, 3, 2).tolist() == [[True, False, False], [False, True, False]]


def test_image_weights():
    # Three of four labelled pixels are of class 0: it weighs 1 + 1/4, class 1 weighs 1 + 3/4, all 3 * 5/4 + 7/4.
    labels = np.array([[[0, 0, 0, 1, 9]], [[9, 9, 9, 9, 9]]])
    weights = image_weights(labels, 3, ignore_label=9)
    np.testing.assert_allclose(weights, np.array([[[5, 5, 5, 7, 0]], [[0] * 5]]) / 22 / 2, rtol=1e-14)
    one_class = image_weights(np.full((2, 3, 4), 1, np.uint8), 2, ignore_label=None)
    np.testing.assert_allclose(one_class, np.full((2, 3, 4), 1 / 24), rtol=1e-14)
    unknown = image_weights(np.array([[[0, 1, -1, 7]]]), 2, ignore_label=1)
    np.testing.assert_array_equal(unknown, [[[1, 0, 0, 0]]])


def test_labels_above():
    labels = np.array([3, 2, 1, 0], np.uint8)
    above = labels_above(np.array([0.5, 1.5, 1.0, np.nan]), 1.0, labels, -1)
    assert above.tolist() == [-1, 2, -1, -1] and above.dtype == np.int64
