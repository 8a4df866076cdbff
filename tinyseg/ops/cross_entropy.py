r"""Softmax cross-entropy: the loss of a classifier for every pixel.

With scores z (the logits), labels t and weights w, over all pixels i:

    p[i,c]  = exp(z[i,c]) / sum_j exp(z[i,j])                       the softmax
    l[i]    = -log p[i,t[i]] = log sum_j exp(z[i,j]) - z[i,t[i]]
    loss    = sum_i w[i] l[i]  /  sum_i w[i]                        reduction="mean"
    loss    = sum_i w[i] l[i]                                       reduction="sum"

    w[i]    = class_weights[t[i]] * pixel_weights[i],  and 0 where t[i] is `ignore_label`

    z (..., C), usually N H W C;  t, pixel_weights (...);  class_weights (C,);  loss: one number

The mean is divided by the sum of the weights of the pixels that count, not by the number of all pixels: ignored
pixels do not make the loss smaller. (PyTorch does the same with its class weights; it has no pixel weights.) If
nothing counts, every pixel ignored or of weight 0, then the loss is 0 and its gradient is 0: a crop without any
label is an ordinary thing in training, and must not turn the parameters into NaN. A pixel of weight 0 is not
looked at: its logits may be anything.

Backward, with s = 1 / sum_i w[i] for the mean and 1 for the sum:

    dz[i,c] = dy * s * w[i] * (p[i,c] - [c = t[i]])

The softmax is not kept for it. The backward pass computes it again, which takes less time than to write it to
memory and to read it back, and a forward pass that is not followed by a backward one pays nothing.

Rounding. The largest score of a pixel is subtracted before the exponential. Losses are summed in float64, in
blocks set by the shape alone: same bits on any number of threads.

Cost per element: one exponential (about 14 FLOPs) and 4 bytes forward, the same and 8 bytes backward.

Source: Bishop, "Pattern recognition and machine learning", 2006, equations 4.108 and 4.109; pixel weights as in
Ronneberger, Fischer & Brox, "U-Net", MICCAI 2015, equation 1 (where the minus sign is missing).
"""

from typing import Literal, NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks
from tinyseg.ops.labels import blocks_for, finish_loss_cuda, labels_and_weights, scaled_loss

BLOCK_ELEMENTS = 4096
"""Scores that one thread takes at a time: they stay in its nearest cache for all of their passes."""


class CrossEntropyCache(NamedTuple):
    logits: Array  # (..., C)
    labels: Array  # (...) int64; 0 where ignored
    weights: Array  # (...) 0 where ignored
    scale: float | Array  # what the weighted sum was multiplied with; on a GPU an array of no axes


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(logits: Array, labels: Array, weights: Array, mean: bool) -> tuple[Array, float]:
    """The loss, and its scale."""
    shifted = logits - logits.max(-1, keepdims=True)
    of_label = np.take_along_axis(shifted, labels[..., None], -1)[..., 0]
    losses = np.log(np.exp(shifted).sum(-1)) - of_label
    total = np.where(weights == 0, 0, weights * losses).sum(dtype=np.float64)
    return scaled_loss(total, weights, mean)


def _backward_reference(dy: Array, cache: CrossEntropyCache) -> Array:
    logits, labels, weights, scale = cache
    e = np.exp(logits - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    one_hot = np.arange(logits.shape[-1]) == labels[..., None]
    weights = weights[..., None]
    return np.where(weights == 0, 0, (p - one_hot) * (weights * logits.dtype.type(scale * float(dy))))


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(logits, labels, weights, block, losses):
    for b in prange(losses.size):
        first = np.int64(b) * block
        last = min(first + block, labels.size)
        _, top, total = _exponentials(logits, first, last)
        differences = logarithms = 0.0  # apart, because top + log(total) would lose digits of a small loss
        for i in range(last - first):
            pixel = first + i
            if weights[pixel] != 0:
                weight = np.float64(weights[pixel])
                differences += weight * (np.float64(top[i]) - logits[pixel, labels[pixel]])
                logarithms += weight * np.log(total[i])
        losses[b] = differences + logarithms


@kernel
def _backward_kernel(logits, labels, weights, block, scale, dlogits):
    for b in prange((labels.size + block - 1) // block):
        first = np.int64(b) * block
        last = min(first + block, labels.size)
        e, _, total = _exponentials(logits, first, last)
        for i in range(last - first):
            pixel = first + i
            weight = weights[pixel] * scale
            factor = weight / total[i]
            if weights[pixel] == 0:
                for c in range(logits.shape[1]):
                    dlogits[pixel, c] = 0
            else:
                for c in range(logits.shape[1]):
                    dlogits[pixel, c] = factor * e[c, i]
                dlogits[pixel, labels[pixel]] -= weight


@kernel
def _exponentials(logits, first, last):
    """For the pixels i from first to last - 1: e[c, i] = exp(logit - top[i]), the largest logit top[i], sum_c e.

    In e all pixels of one class lie side by side. The loops over them are long, whatever the number of classes, so
    that the compiler can let them handle 8 or 16 numbers at once.
    """
    pixels, classes = last - first, logits.shape[1]
    e = np.empty((classes, pixels), logits.dtype)
    top = np.empty(pixels, logits.dtype)
    total = np.empty(pixels, logits.dtype)
    for i in range(pixels):
        largest = logits[first + i, 0]
        for c in range(classes):
            logit = logits[first + i, c]
            largest = max(largest, logit)
            e[c, i] = logit
        top[i] = largest
        total[i] = 0
    for c in range(classes):
        for i in range(pixels):
            t = e[c, i] - top[i]
            e[c, i] = _exp(t) if logits.itemsize == 4 else np.exp(t)
        for i in range(pixels):  # a loop of its own: the one above would no longer be vectorised
            total[i] += e[c, i]
    return e, top, total


@kernel
def _exp(t):
    """exp(t) in float32, for t <= 0, within 1e-7 of its value.

    The C library's exponential is a call for each number. This one is plain arithmetic, so that the compiler can
    handle 8 or 16 numbers at once, in a sixth of the time. With n = round(t / log 2):

        exp(t) = 2^n exp(r),      r = t - n log 2,      |r| <= log(2) / 2

    exp(r) is its Taylor polynomial of degree 7. log 2 is subtracted in two parts, the first of few bits so that
    n times it is exact. 2^n is written as a float32 by its bits: the exponent, n + 127, stands above 23 others.
    """
    smallest = np.float32(-87)  # exp(-87) is near the smallest float32
    x = t if t >= smallest else np.float32(0)  # not NaN, nor minus infinity: they are no integers
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(1 / 2)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    y = p * np.int32(bits).view(np.float32)
    if t < smallest:
        y = np.float32(0)
    return t if np.isnan(t) else y


def _pixels_in_block(logits: Array) -> int:
    return max(64, BLOCK_ELEMENTS // logits.shape[-1])


def _pixels(logits: Array) -> Array:
    """(..., C) -> (pixels, C)"""
    return np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])


def _forward_numba(logits: Array, labels: Array, weights: Array, mean: bool) -> tuple[Array, float]:
    block = _pixels_in_block(logits)
    losses = np.empty(-(-labels.size // block))
    _forward_kernel(_pixels(logits), labels.reshape(-1), weights.reshape(-1), block, losses)
    return scaled_loss(losses.sum(), weights, mean)


def _backward_numba(dy: Array, cache: CrossEntropyCache) -> Array:
    logits, labels, weights, scale = cache
    factor = logits.dtype.type(scale * float(dy))
    dlogits = np.empty(logits.shape, logits.dtype)
    arrays = (_pixels(logits), labels.reshape(-1), weights.reshape(-1))
    _backward_kernel(*arrays, _pixels_in_block(logits), factor, _pixels(dlogits))
    return dlogits


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["loss_sums.cuh"])


def _forward_cuda(logits: Array, labels: Array, weights: Array, mean: bool) -> tuple[Array, Array]:
    logits, (pixels, C, width) = cuda.contiguous(logits), _shared(logits)
    blocks = blocks_for(pixels * width)
    partial = cuda.empty((2, blocks), np.dtype(np.float64))
    _cuda.launch("cross_entropy_forward", logits, labels, weights, pixels, C, width, partial, blocks=blocks)
    return finish_loss_cuda(partial, mean, logits.dtype)


def _backward_cuda(dy: Array, cache: CrossEntropyCache) -> Array:
    logits, (pixels, C, width) = cuda.contiguous(cache.logits), _shared(cache.logits)
    dlogits = cuda.empty(logits.shape, logits.dtype)
    arrays = (cuda.contiguous(dy), cache.scale, logits, cache.labels, cache.weights)
    _cuda.launch("cross_entropy_backward", *arrays, pixels, C, width, dlogits, threads=pixels * width)
    return dlogits


def _shared(logits: Array) -> tuple[int, int, int]:
    """How many pixels and classes there are, and how many lanes share a pixel."""
    C = logits.shape[-1]
    return logits.size // C, C, cuda.lanes(C, each=8)


# ------------------------------------------------------------------------------------------------------- public


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    class_weights: Array | None = None,
    pixel_weights: Array | None = None,
    ignore_label: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Array, CrossEntropyCache]:
    """The loss of scores `logits` (..., C) for integer `labels` (...) in 0 .. C - 1: an array of no axes.

    class_weights   (C,), not negative; all 1 if absent
    pixel_weights   (...), of the shape of the labels, not negative; all 1 if absent
    ignore_label    pixels with this label do not count; usually a number outside the classes, as 255
    reduction       "mean": divided by the sum of the weights of the pixels that count; "sum": not divided

    If no pixel counts, the loss is 0, and so is its gradient.

    >>> cross_entropy(np.log(np.array([[1.0, 3.0]])), np.array([0]))[0] == np.log(4)
    np.True_
    """
    checks.floating("cross_entropy", logits=logits)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'cross_entropy: reduction must be "mean" or "sum", got {reduction!r}')
    labels, weights = labels_and_weights(
        "cross_entropy", labels, logits, ignore_label, pixel_weights, class_weights
    )
    forward = backend.choose(logits, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    loss, scale = forward(logits, labels, weights, reduction == "mean")
    return loss, CrossEntropyCache(logits, labels, weights, scale)


def cross_entropy_backward(dy: Array, cache: CrossEntropyCache) -> Array:
    """The gradient with respect to the logits, of their shape. `dy` is one number, an array of no axes."""
    checks.upstream("cross_entropy_backward", dy, (), cache.logits.dtype)
    backward = backend.choose(cache.logits, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache)
