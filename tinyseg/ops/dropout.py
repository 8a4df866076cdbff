r"""Dropout: elements, or whole channels, are set to zero at random, and the others enlarged to keep the mean.

    y[i] = x[i] / (1 - rate)  if  u(i) >= rate * 2^32  else  0,        u(i) a random word of 32 bits
    dx[i] = dy[i] / (1 - rate)  if  u(i) >= rate * 2^32  else  0

The map is linear, and its matrix is diagonal: forward and backward are the same function, and since the
expectation of y is x, nothing needs to be rescaled in evaluation. The channel kind asks u(n C + c) for all pixels
of channel c of image n: neighbouring pixels are so alike that dropping single ones hides little.

The random words. u is not a sequence that somebody has to walk along, but a function of the element's number, the
generator Philox4x32-10. So every backend, with any number of threads, draws the same mask, and the backward pass
draws it again instead of keeping it. Philox enciphers a counter of four words with a key of two:

    counter  =  (i // 4, low and high word;  offset, low and high word)          key  =  seed, low and high word
    u(i)     =  word i % 4 of the result

One round multiplies two of the words by constants, to products of 64 bits, and mixes their halves with the rest;
after each of the ten rounds the key moves on by constants (the golden ratio and sqrt(3) - 1, as 32-bit fractions):

    (c0, c1, c2, c3)  <-  (high(M1 c2) ^ c1 ^ k0,  low(M1 c2),  high(M0 c0) ^ c3 ^ k1,  low(M0 c0))

Cost: 20 products for 4 elements, 8 bytes of traffic per float32 element each way, no mask in memory.

Sources: Srivastava et al., "Dropout", JMLR 2014; Tompson et al., "Efficient object localization using
convolutional networks", CVPR 2015, section 3.2 (channels); Salmon, Moraes, Dror & Shaw, "Parallel random numbers:
as easy as 1, 2, 3", SC 2011, section 3.3 (Philox).
"""

from typing import Any, NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class Draw(NamedTuple):
    """What the mask is a function of, besides the shape."""

    rate: float
    seed: int
    offset: Any  # an integer, or one on the GPU
    channels: bool


class DropoutCache(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    draw: Draw


# ------------------------------------------------------------------------------------- the generator, in integers

# Typed, because Numba turns the product of a signed and an unsigned integer into a float.
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


@kernel
def _philox(c0, c1, c2, c3, k0, k1):
    """Four random words from a counter of four words and a key of two: 32-bit words in 64-bit integers.

    As a plain function, `_philox.function`, it computes whole arrays of counters in NumPy.
    """
    for _ in range(10):
        p0 = M0 * c0
        p1 = M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & LOW, (p0 >> HALF) ^ c3 ^ k1, p0 & LOW
        k0 = (k0 + W0) & LOW
        k1 = (k1 + W1) & LOW
    return c0, c1, c2, c3


def random_words(count: int, *, seed: int, offset: int = 0) -> Array:
    """The words u(0) .. u(count - 1) of this seed and offset: uint32 (count,)."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    words = _philox.function(blocks & LOW, blocks >> HALF, *_halves(offset), *_halves(seed))
    return np.stack(words, axis=-1).astype(np.uint32).reshape(-1)[:count]


def _halves(number: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(number & 0xFFFFFFFF), np.uint64(number >> 32)


def _threshold(rate: float) -> int:
    """Words below it drop their element."""
    return round(rate * 2**32)


# ---------------------------------------------------------------------------------------------------- reference


def _apply_reference(x: Array, draw: Draw) -> Array:
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if draw.channels else x.shape
    words = random_words(int(np.prod(shape)), seed=draw.seed, offset=draw.offset)
    kept = words.reshape(shape) >= np.uint64(_threshold(draw.rate))
    return np.where(kept, x * x.dtype.type(1 / (1 - draw.rate)), x.dtype.type(0))


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _elements_kernel(x, o0, o1, k0, k1, threshold, scale, y):
    zero = x.dtype.type(0)
    for block in prange((x.size + 3) // 4):
        number = np.uint64(block)
        words = _philox(number & LOW, number >> HALF, o0, o1, k0, k1)
        for j in range(min(4, x.size - 4 * block)):
            i = 4 * block + j
            y[i] = x[i] * scale if words[j] >= threshold else zero


def _apply_numba(x: Array, draw: Draw) -> Array:
    if draw.channels:
        return _apply_reference(x, draw)  # few draws, and a product with a small mask
    y = np.empty(x.shape, x.dtype)
    scale = x.dtype.type(1 / (1 - draw.rate))
    words = (*_halves(draw.offset), *_halves(draw.seed), np.uint64(_threshold(draw.rate)))
    _elements_kernel(np.ascontiguousarray(x).reshape(-1), *words, scale, y.reshape(-1))
    return y


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["philox.cuh"], scalars=cuda.WITH_BFLOAT16)


def _apply_cuda(x: Array, draw: Draw) -> Array:
    x = cuda.contiguous(x)
    y = cuda.empty(x.shape, x.dtype)
    numbers = (draw.seed, offset_on_gpu(draw.offset), _threshold(draw.rate), 1 / (1 - draw.rate))
    if draw.channels:
        in_image = x.size // x.shape[0]
        _cuda.launch("dropout_channels", x, y, x.size, in_image, x.shape[-1], *numbers, threads=x.size)
    else:
        _cuda.launch("dropout_elements", x, y, x.size, *numbers, threads=cuda.quads(x.size))
    return y


# ------------------------------------------------------------------------------------------------------- public


def dropout(
    x: Array, *, rate: float, seed: int, offset: int | Array = 0, channels: bool = False
) -> tuple[Array, DropoutCache]:
    """Drop the share `rate` of the elements of x, any shape; or of its channels, (N, .., C).

    seed, offset: integers from 0 to 2^64 - 1. Each pair gives a mask of its own, always the same. A network
    takes one seed for each of its dropout layers, and counts the steps in offset (see `next_offset`).

    >>> dropout(np.arange(1.0, 9.0), rate=0.5, seed=7)[0]
    array([ 2.,  4.,  0.,  0.,  0., 12.,  0., 16.])
    """
    checks.floating("dropout", x=x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate must be at least 0 and less than 1, got {rate}")
    seed, offset = checked_draw("dropout", seed, offset)
    if channels and x.ndim < 2:
        raise ValueError(f"dropout: with channels=True x must have the axes (N, .., C), got shape {x.shape}")
    draw = Draw(float(rate), seed, offset, channels)
    apply = backend.choose(x, numpy=_apply_reference, numba=_apply_numba, cuda=_apply_cuda)
    return apply(x, draw), DropoutCache(x.shape, x.dtype, draw)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """The gradient with respect to `x`: dy through the same mask."""
    checks.upstream("dropout_backward", dy, cache.shape, cache.dtype)
    apply = backend.choose(dy, numpy=_apply_reference, numba=_apply_numba, cuda=_apply_cuda)
    return apply(dy, cache.draw)


def checked_draw(operator: str, seed: int, offset: int | Array) -> tuple[int, int | Array]:
    """Seed and offset, as integers but for an offset on a GPU (see `next_offset`)."""
    for name, number in (("seed", seed), ("offset", 0 if cuda.on_gpu(offset) else offset)):
        if not (hasattr(number, "__index__") and 0 <= number < 2**64):
            raise ValueError(f"{operator}: {name} must be an integer from 0 to 2^64 - 1, got {number!r}")
    return int(seed), offset if cuda.on_gpu(offset) else int(offset)


def offset_on_gpu(offset: int | Array) -> Array:
    return cuda.constant(np.array(offset, np.uint64)) if isinstance(offset, int) else offset


def next_offset(calls: Array) -> int | Array:
    """The number of this call, for `dropout`: that in `calls`, int64 (), which goes up by one in place.

    Of a counter on a GPU the number stays there: a recorded CUDA graph draws a new mask at each launch.
    """
    if cuda.on_gpu(calls):
        offset = cuda.empty((), np.dtype(np.uint64))
        _cuda.launch("dropout_next", calls, offset, blocks=1)
        return offset
    offset = int(calls)
    calls[...] = offset + 1
    return offset
