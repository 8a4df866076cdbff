"""Edges on a GPU: those that tinyseg/data/edges.py finds."""

from typing import Any

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.data.edges import mask_edges
from tinyseg.models.gscnn import canny_of_normalised
from tinyseg.ops import edges


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("ignored", [None, 2])
def test_mask_edges(machine, radius, ignored):
    def find(labels, _):
        on = edges.mask_edges if cuda.on_gpu(labels) else mask_edges
        return on(labels, radius=radius, ignore_label=ignored)

    coarse = machine.rng.integers(0, 4, (2, 3, 2)).astype(np.uint8)
    found, *_ = machine.agree(find, coarse.repeat(9, axis=1).repeat(11, axis=2), np.zeros(1))
    assert 0 < found.mean() < 1
    machine.agree(find, np.full((1, 4, 7), 1), np.zeros(1))


def canny_edges(mean, std):
    def find(images):
        on = edges.canny if cuda.on_gpu(images) else canny_of_normalised
        return on(images, np.array(mean), np.array(std))

    return find


@pytest.mark.parametrize(
    ("shape", "channels"), [((2, 31, 45), 3), ((1, 60, 33), 1), ((1, 1, 7), 2), ((3, 2, 1), 1)]
)
def test_canny(machine, dtype, shape, channels):
    mean, std = machine.rng.uniform(0.3, 0.6, (2, channels))
    waves = np.add.outer(np.sin(np.arange(shape[1]) / 3), np.sin(np.arange(shape[2]) / 2))[..., None]
    noise = machine.rng.random((*shape, channels))
    image = np.round(255 * (0.4 + 0.1 * waves + 0.07 * noise)) / 255  # among the edges weak ones
    found, *_ = machine.agree(canny_edges(mean, std), ((image - mean) / std).astype(dtype))
    assert found.size < 50 or 0 < found.mean() < 0.5


def test_a_long_weak_edge_hangs_on_one_strong_pixel(machine):
    """A bar that winds, dark but at its beginning: its edge is followed to the end, or not at all."""
    image = np.zeros((1, 40, 30, 1))
    for number, row in enumerate(range(2, 40, 8)):
        image[0, row : row + 4, 2:28] = 15 / 255
        side = 24 if number % 2 == 0 else 2
        image[0, row : row + 8, side : side + 4] = 15 / 255
    assert not machine.agree(canny_edges([0.0], [1.0]), image)[0].any()
    image[0, 2:6, 2:6] = 1
    found, *_ = machine.agree(canny_edges([0.0], [1.0]), image)
    assert found[0, 34:].sum() > 30


def test_an_image_whose_pixels_cannot_be_numbered(host):
    with cuda.on(host()):
        images: Any = cuda.to_device(np.zeros((1, 1, 1, 3), np.float32))
        images.values = np.broadcast_to(images.values, (1, 2**16, 2**15, 3))
        with pytest.raises(OverflowError, match="fewer than 2\\^31 pixels, got 65536 x 32768; cut them"):
            edges.canny(images, np.zeros(3), np.ones(3))
