r"""How weights start.

Each function here takes its options and returns an initialiser, `(shape, fans, rng) -> float64 array`, which a
layer calls with its own sizes:

    nn.Conv2d(64, 128, 3, init=init.he_normal(fan="out"), rng=rng)

`fans` says how many products are summed into one output of the layer (`into`), and into how many outputs one
input goes (`out_of`). A sum of n products of independent numbers with mean 0 has n times the variance of one
product. Weights of variance 1 / into therefore keep the variance of the activations from layer to layer, weights
of variance 1 / out_of that of the gradients on the way back; a ReLU halves both, so that 2 / fan is right there.

    he_normal       N(0, gain^2 / fan),       gain^2 = 2
    he_uniform      U(-a, a), a = gain sqrt(3 / fan): the same variance
    xavier_normal   N(0, gain^2 * 2 / (into + out_of)),   gain = 1
    xavier_uniform  U(-a, a), a = gain sqrt(6 / (into + out_of))
    bilinear        a transposed convolution that interpolates

Sources: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
2010, eq. 12 and 16; He, Zhang, Ren & Sun, "Delving deep into rectifiers", ICCV 2015, eq. 10 and 14; Long,
Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 3.3 (bilinear).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from tinyseg.backend import Array


class Fans(NamedTuple):
    into: float  # products summed into one output
    out_of: float  # outputs that one input reaches


Shape = tuple[int, ...]
Random = np.random.Generator | None
Initialiser = Callable[[Shape, Fans, Random], Array]
Fan = Literal["in", "out"]


def zeros() -> Initialiser:
    return constant(0.0)


def constant(value: float) -> Initialiser:
    return lambda shape, fans, rng: np.full(shape, float(value))


def normal(std: float) -> Initialiser:
    """N(0, std^2), whatever the size of the layer."""
    return lambda shape, fans, rng: std * _generator(rng).standard_normal(shape)


def he_normal(fan: Fan = "in", gain: float = math.sqrt(2.0)) -> Initialiser:
    """N(0, gain^2 / fan). With fan "in" it is the U-Net's N(0, sqrt(2 / N)), N the inputs of one neuron."""
    _check_fan(fan)
    return lambda shape, fans, rng: gain / math.sqrt(_pick(fans, fan)) * _generator(rng).standard_normal(shape)


def he_uniform(fan: Fan = "in", gain: float = math.sqrt(2.0)) -> Initialiser:
    """U(-a, a) with a = gain sqrt(3 / fan)."""
    _check_fan(fan)
    return lambda shape, fans, rng: _uniform(shape, gain * math.sqrt(3.0 / _pick(fans, fan)), rng)


def xavier_normal(gain: float = 1.0) -> Initialiser:
    """N(0, gain^2 * 2 / (into + out_of))."""
    return lambda shape, fans, rng: gain * math.sqrt(2.0 / sum(fans)) * _generator(rng).standard_normal(shape)


def xavier_uniform(gain: float = 1.0) -> Initialiser:
    """U(-a, a) with a = gain sqrt(6 / (into + out_of))."""
    return lambda shape, fans, rng: _uniform(shape, gain * math.sqrt(6.0 / sum(fans)), rng)


def bilinear() -> Initialiser:
    """Weights (R, S, out, in) of a transposed convolution that interpolates each channel for itself.

    The kernel is a tent, the product of  1 - |r - centre| / factor  in both directions. Its size k belongs to the
    enlargement factor ceil(k / 2): k = 4 to a factor of 2, k = 3 too, k = 16 to 8. With stride = factor and
    padding = ceil((factor - 1) / 2), the taps that meet in one output sum to 1, so that a constant image stays
    constant away from the border.

    A layer with groups (each channel a group, weights (R, S, 1, channels)) gets the tent in every channel.
    """
    return lambda shape, fans, rng: _bilinear(shape)


def _bilinear(shape: Shape) -> Array:
    if len(shape) != 4 or (shape[2] != shape[3] and shape[2] != 1):
        raise ValueError(
            "init.bilinear: the layer must be a transposed convolution with as many outputs as inputs, "
            f"weights (R, S, channels, channels) or (R, S, 1, channels), got {shape}"
        )
    rows, columns, outputs, channels = shape
    weights = np.zeros(shape)
    for channel in range(channels):
        weights[:, :, channel if outputs > 1 else 0, channel] = np.outer(tent(rows), tent(columns))
    return weights


def tent(size: int) -> Array:
    """The weights of linear interpolation by the factor ceil(size / 2).

    >>> tent(4)
    array([0.25, 0.75, 0.75, 0.25])
    >>> tent(3)
    array([0.5, 1. , 0.5])
    """
    factor = (size + 1) // 2
    centre = (size - 1) / 2
    return 1 - np.abs(np.arange(size) - centre) / factor


def _uniform(shape: Shape, limit: float, rng: Random) -> Array:
    return _generator(rng).uniform(-limit, limit, shape)


def _pick(fans: Fans, fan: Fan) -> float:
    return fans.into if fan == "in" else fans.out_of


def _check_fan(fan: str) -> None:
    if fan not in ("in", "out"):
        raise ValueError(f'init: fan must be "in" or "out", got {fan!r}')


def _generator(rng: Random) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"random initial weights need a generator, got rng={rng!r}; "
            "pass rng=np.random.default_rng(seed) to the layer or model"
        )
    return rng
