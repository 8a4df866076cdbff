"""Initialisers: variances, bounds, fans of each layer, and bilinear interpolation by transposed convolution."""

import math

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.nn import init
from tinyseg.nn.init import Fans

SHAPE = (3, 5, 40, 60)
FANS = Fans(into=600.0, out_of=900.0)


@pytest.mark.parametrize(
    ("initialiser", "variance", "limit"),
    [
        (init.normal(0.01), 1e-4, None),
        (init.he_normal(), 2 / 600, None),
        (init.he_normal(fan="out"), 2 / 900, None),
        (init.he_normal(gain=1.0), 1 / 600, None),
        (init.he_uniform(), 2 / 600, math.sqrt(6 / 600)),
        (init.he_uniform(fan="out", gain=1.0), 1 / 900, math.sqrt(3 / 900)),
        (init.xavier_normal(), 2 / 1500, None),
        (init.xavier_uniform(), 2 / 1500, math.sqrt(6 / 1500)),
        (init.xavier_uniform(gain=2.0), 8 / 1500, 2 * math.sqrt(6 / 1500)),
    ],
)
def test_distributions(rng, initialiser, variance, limit):
    """Bounds are 5 standard deviations of the sample mean and (for normal numbers, the wider) sample variance."""
    w = initialiser(SHAPE, FANS, rng)
    assert w.shape == SHAPE
    assert abs(w.mean()) < 5 * math.sqrt(variance / w.size)
    assert abs(w.var() / variance - 1) < 5 * math.sqrt(2 / w.size)
    if limit is None:
        assert abs(w).max() > 3.5 * math.sqrt(variance)
        assert abs((abs(w) < math.sqrt(variance)).mean() - 0.6827) < 0.02
    else:
        assert 0.99 * limit < abs(w).max() <= limit


def test_constants():
    np.testing.assert_array_equal(init.zeros()((2, 3), FANS, None), np.zeros((2, 3)))
    np.testing.assert_array_equal(init.constant(0.1)((2,), FANS, None), [0.1, 0.1])


def test_the_same_generator_gives_the_same_weights():
    one, other = (nn.Conv2d(3, 4, 3, rng=np.random.default_rng(5)).weight.data for _ in range(2))
    np.testing.assert_array_equal(one, other)


def fans_of(layer, *arguments, **options):
    seen = []

    def spy(shape, fans, rng):
        seen.append(fans)
        return np.zeros(shape)

    layer(*arguments, init=spy, **options)
    return seen[0]


def test_fans_of_the_layers():
    """U-Net's example: a 3 x 3 convolution of 64 channels has N = 9 * 64 = 576 inputs."""
    assert fans_of(nn.Conv2d, 64, 128, 3) == (576, 9 * 128)
    assert fans_of(nn.Conv2d, 6, 4, (3, 5), groups=2) == (45, 30)
    assert fans_of(nn.Conv2d, 6, 4, 2, stride=2) == (24, 4)  # each input goes to one output per channel
    assert fans_of(nn.ConvTranspose2d, 128, 64, 2, stride=2) == (128, 256)  # windows do not overlap
    assert fans_of(nn.ConvTranspose2d, 6, 4, 4, stride=(2, 1), groups=2) == (24, 32)
    assert fans_of(nn.Linear, 10, 20) == (10, 20)


def test_he_keeps_the_variance_through_relus(rng):
    x = rng.standard_normal((64, 300))
    for _ in range(8):
        layer = nn.Linear(300, 300, rng=rng).astype(np.float64)
        x = F.linear(F.relu(x), layer.weight).data
        assert 0.5 < x.var() < 2


# ---------------------------------------------------------------------------------------------------- bilinear


def test_tents_by_hand():
    np.testing.assert_array_equal(init.tent(1), [1])
    np.testing.assert_array_equal(init.tent(2), [0.5, 0.5])
    np.testing.assert_array_equal(init.tent(3), [0.5, 1, 0.5])
    np.testing.assert_array_equal(init.tent(4), [0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(init.tent(5), [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(("size", "factor"), [(1, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 4), (16, 8)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_bilinear_layer_interpolates(size, factor, groups):
    """A plane (a linear function of row and column) is reproduced, away from the border, in each channel."""
    padding = math.ceil((factor - 1) / 2)
    layer = nn.ConvTranspose2d(
        3, 3, size, stride=factor, padding=padding, groups=groups, bias=False, init=init.bilinear()
    )
    slopes = np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]])
    rows, columns = np.mgrid[:7, :6]
    x = rows[..., None] * slopes[:, 0] + columns[..., None] * slopes[:, 1]  # (7, 6, 3)
    y = layer.astype(np.float64)(x[None]).data[0]

    shift = (size - 1) / 2 - padding  # output pixel factor * h + shift lies on input pixel h
    inside = np.s_[2 * factor : -2 * factor]
    rows, columns = ((np.arange(length) - shift) / factor for length in y.shape[:2])
    expected = rows[:, None, None] * slopes[:, 0] + columns[None, :, None] * slopes[:, 1]
    np.testing.assert_allclose(y[inside, inside], expected[inside, inside], rtol=1e-6, atol=1e-6)


def test_rectangular_kernels_and_other_channels_stay_apart():
    w = nn.ConvTranspose2d(2, 2, (4, 3), init=init.bilinear()).weight.data
    np.testing.assert_array_equal(w[:, :, 0, 0], np.outer([0.25, 0.75, 0.75, 0.25], [0.5, 1, 0.5]))
    np.testing.assert_array_equal(w[:, :, 1, 1], w[:, :, 0, 0])
    np.testing.assert_array_equal(w[:, :, 0, 1], 0)
    np.testing.assert_array_equal(w[:, :, 1, 0], 0)


# ------------------------------------------------------------------------------------------------------- errors


def test_errors():
    with pytest.raises(
        TypeError, match=r"random initial weights need a generator, got rng=None; pass rng=np\.random"
    ):
        nn.Conv2d(3, 4, 3)
    with pytest.raises(TypeError, match="got rng=0"):
        nn.Linear(3, 4, rng=0)
    with pytest.raises(ValueError, match='fan must be "in" or "out", got \'both\''):
        init.he_normal(fan="both")
    with pytest.raises(ValueError, match=r"init\.bilinear: .* as many outputs as inputs.*got \(4, 4, 3, 2\)"):
        nn.ConvTranspose2d(2, 3, 4, init=init.bilinear())
    nn.Conv2d(3, 4, 3, init=init.constant(0.5))  # needs no generator
