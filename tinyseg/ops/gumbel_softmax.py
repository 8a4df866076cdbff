r"""Gumbel softmax: a random one-hot choice, made so soft that it can be differentiated.

    y[i,c] = softmax over c of  (x[i,c] + g[i,c]) / temperature,          g[i,c] = -log(-log u[i,c])

    x, y  (..., C);   u  uniform between 0 and 1, one for each element

The largest of x[c] + g[c] is channel c with the probability softmax(x)[c] (Gumbel's trick): so the argmax of y is
a draw from what the scores say, and with a temperature near 0 y is its one-hot vector. At a moderate temperature
y is still nearly one-hot, but has a gradient where the argmax has none. Without noise (seed None) y is the
softmax, sharpened.

The noise. u is a function of the element's number, the seed and the offset, from the counter-based generator of
tinyseg/ops/dropout.py: u = (word + 1/2) / 2^32, never 0 or 1. Every backend draws the same, and a resumed training
draws what the first one would have.

Backward. The noise is a constant, hence with s = sum_c dy[i,c] y[i,c]

    dx[i,c] = y[i,c] (dy[i,c] - s) / temperature

Cost per element: the generator (5 products of integers), two logarithms, one exponential.

Sources: Jang, Gu & Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017, equation 2; Maddison,
Mnih & Teh, "The concrete distribution", ICLR 2017, equation 10.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks
from tinyseg.ops.arithmetic import mul
from tinyseg.ops.dropout import checked_draw, offset_on_gpu, random_words
from tinyseg.ops.softmax import SoftmaxCache, softmax, softmax_backward


class Draw(NamedTuple):
    """What the noise is a function of, besides the shape."""

    seed: int
    offset: int | Array


class GumbelSoftmaxCache(NamedTuple):
    softmax: SoftmaxCache
    temperature: float


def gumbel_noise(shape: tuple[int, ...], *, seed: int, offset: int = 0) -> Array:
    """-log(-log u): float64, mean 0.5772 (Euler's constant), variance pi^2 / 6, between -3.2 and 23."""
    words = random_words(int(np.prod(shape)), seed=seed, offset=offset).reshape(shape)
    return -np.log(-np.log((words + 0.5) / 2**32))


def _scores(x: Array, temperature: float, draw: Draw | None) -> Array:
    """What the softmax is taken of."""
    if draw is not None:
        x = x + gumbel_noise(x.shape, **draw._asdict()).astype(x.dtype)
    return _divided(x, temperature)


def _divided(array: Array, temperature: float) -> Array:
    return array / array.dtype.type(temperature)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["philox.cuh"])


def _scores_cuda(x: Array, temperature: float, draw: Draw | None) -> Array:
    if draw is None:
        return _divided_cuda(x, temperature)
    x = cuda.contiguous(x)
    y = cuda.empty(x.shape, x.dtype)
    numbers = (x.size, draw.seed, offset_on_gpu(draw.offset), 1 / temperature)
    _cuda.launch("add_noise", x, *numbers, y, threads=cuda.quads(x.size))
    return y


def _divided_cuda(array: Array, temperature: float) -> Array:
    return mul(array, cuda.constant(np.array(1 / temperature, array.dtype)))[0]


# ------------------------------------------------------------------------------------------------------- public


def gumbel_softmax(
    x: Array, *, temperature: float = 1.0, seed: int | None, offset: int | Array = 0
) -> tuple[Array, GumbelSoftmaxCache]:
    """A soft random choice from scores x (..., C): positive, and of sum 1 over the last axis.

    temperature   more than 0; the lower, the nearer to one-hot
    seed, offset  integers from 0 to 2^64 - 1, which the noise is a function of; seed None is for no noise. On a
                  GPU the offset may be an array there, as dropout's (`next_offset`)

    >>> gumbel_softmax(np.log(np.array([1.0, 3.0])), temperature=0.5, seed=None)[0]
    array([0.1, 0.9])
    """
    checks.floating("gumbel_softmax", x=x)
    if not temperature > 0:
        raise ValueError(f"gumbel_softmax: temperature must be more than 0, got {temperature}; near 0 is one-hot")
    draw = None if seed is None else Draw(*checked_draw("gumbel_softmax", seed, offset))
    scores = backend.choose(x, numpy=_scores, numba=_scores, cuda=_scores_cuda)
    y, cache = softmax(scores(x, temperature, draw))
    return y, GumbelSoftmaxCache(cache, float(temperature))


def gumbel_softmax_backward(dy: Array, cache: GumbelSoftmaxCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("gumbel_softmax_backward", dy, cache.softmax.y.shape, cache.softmax.y.dtype)
    divided = backend.choose(dy, numpy=_divided, numba=_divided, cuda=_divided_cuda)
    return divided(softmax_backward(dy, cache.softmax), cache.temperature)
