"""The plain baseline: counts by hand, the size kept, its context, gradients."""

import numpy as np
import pytest

from tinyseg import models
from tinyseg.models.plain import Plain


def small(**settings):
    return Plain(2, 3, **({"width": 4, "depth": 3} | settings), rng=np.random.default_rng(1))


def test_parameter_counts():
    # 3 -> 64, seven times 64 -> 64, 64 -> 21
    assert models.create("plain").num_parameters() == (27 * 64 + 64) + 7 * (576 * 64 + 64) + (64 * 21 + 21)
    # One number for each channel instead of the bias, and one more: scale and shift.
    assert models.create("plain", norm=True).num_parameters() == models.create("plain").num_parameters() + 8 * 64
    assert models.create("plain", 1, 2, width=5, depth=1, kernel=7).num_parameters() == (49 * 5 + 5) + (5 * 2 + 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 4), (17, 8)])
@pytest.mark.parametrize("settings", [{}, {"norm": True}, {"kernel": 5, "depth": 1}])
def test_every_size(size, settings):
    net = small(**settings)
    for training in (True, False):
        assert net.train(training)(np.zeros((1, *size, 2), np.float32)).shape == (1, *size, 3)


def test_context_is_one_pixel_a_layer():
    """A pixel changes the logits within `depth` pixels of it, and no others."""
    net = small(depth=3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 15, 17, 2)).astype(np.float32)
    changed = x.copy()
    changed[0, 7, 8] += 5
    difference = np.abs(net(x).data - net(changed).data).sum(axis=(0, 3)) > 0
    rows, columns = np.nonzero(difference)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 5, 11)


@pytest.mark.parametrize("norm", [False, True])
def test_gradient_through_the_whole_network(norm, check_network_gradient):
    check_network_gradient(small(norm=norm), (5, 8))


def test_errors():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        small(depth=0)
    with pytest.raises(ValueError, match=r"kernel must be an odd number.*got 4"):
        small(kernel=4)
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\), got .*, 3\)"):
        small()(np.zeros((1, 4, 4, 3), np.float32))


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    """It sees 25 pixels on a side: those of a small image say where in which image it is."""
    net = Plain(3, 11, width=32, depth=6, kernel=5, norm=True, rng=np.random.default_rng(0))
    assert learn_by_heart(net, size=(72, 96), part=0.5, lr=3e-3, steps=250) >= 0.95
