"""The picture of a CRF's iterations."""

import numpy as np
import pytest

from tinyseg import crf, viz
from tinyseg.crf import pictures

pytest.importorskip("matplotlib", reason="figures are drawn with Matplotlib")


def shown(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_columns_are_the_marginals(toy):
    image, probabilities = toy
    options = {"appearance_weight": 4, "smoothness_position": 2}
    figure = pictures.iterations(image, probabilities, "deeplab_v1", shown=(0, 2, 3), label=2, **options)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "image",
        "before the CRF",
        "2 iterations",
        "3 iterations",
    ]
    pages = shown(figure)
    np.testing.assert_array_equal(pages[0], image)
    for page, iterations in ((pages[1], 0), (pages[3], 2), (pages[5], 3)):
        q = crf.dense_crf(image, probabilities, "deeplab_v1", iterations=iterations, **options)
        np.testing.assert_array_equal(page, viz.rgb(q[:, :, 2]))
        assert 0 < page.mean() < 255


def test_layout_and_the_label_that_is_shown(toy):
    image, probabilities = toy
    other = pictures.iterations(image, probabilities.transpose(2, 0, 1), shown=(0, 1), layout="LHW")
    last = crf.dense_crf(image, probabilities, iterations=1)
    count = np.bincount(last.argmax(axis=2).ravel(), minlength=3)
    np.testing.assert_array_equal(shown(other)[3], viz.rgb(last[:, :, 1 + count[1:].argmax()]))


@pytest.mark.parametrize("steps", [(), (2, 1), (1, 1), (-1, 3)])
def test_errors(toy, steps):
    with pytest.raises(ValueError, match="shown must be increasing numbers of iterations"):
        pictures.iterations(*toy, shown=steps)
