r"""Soft Dice loss: one minus the overlap of predicted and labelled area, for each class, whatever its size.

With probabilities p, labels t, g[i,c] = [t[i] = c] and weights w, over all pixels i of the batch:

    I[c]  = sum_i w[i] p[i,c] g[i,c]            the area on which both agree
    S[c]  = sum_i w[i] (p[i,c] + g[i,c])        both areas
    L[c]  = 1 - (2 I[c] + ε) / (S[c] + ε)
    loss  = sum_c v[c] L[c]  /  sum_c v[c]      reduction="mean"
    loss  = sum_c v[c] L[c]                     reduction="sum"

    w[i]  = pixel_weights[i],  and 0 where t[i] is `ignore_label`;      v = class_weights

    p (..., C);  t, pixel_weights (...);  class_weights (C,);  loss: one number

It takes probabilities, not logits: put a softmax before it. ε counts pixels. It decides what a class costs that
is in no label of the batch: with S[c] predicted pixels, S[c] / (S[c] + ε). If all pixels are ignored or have
weight 0, the loss is 0 and so is its gradient; likewise if all class weights are 0.

This is a loss, for whole batches and soft predictions. The Dice score of an evaluation is in tinyseg.metrics.

Backward. With u[c] = v[c] / sum(v) for the mean and v[c] for the sum, the quotient rule gives

    dp[i,c] = dy * u[c] * w[i] * ((2 I[c] + ε) / (S[c] + ε)² - g[i,c] * 2 / (S[c] + ε))

Cost per element: 2 FLOPs and 4 bytes forward, 1 FLOP and 4 bytes backward. Sums run in float64, in blocks set by
the shape alone.

Source: Milletari, Navab & Ahmadi, "V-Net", 3DV 2016, section 3 (there with squares in the denominator).
"""

from typing import Literal, NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, sums
from tinyseg.ops.labels import class_weights as checked_class_weights
from tinyseg.ops.labels import class_weights_cuda, labels_and_weights

BLOCK_ELEMENTS = 65536


class DiceCache(NamedTuple):
    labels: Array  # (...) int64; 0 where ignored
    weights: Array  # (...) 0 where ignored
    everywhere: Array  # (C,) the derivative by p[i,c] in all pixels of weight 1
    labelled: Array  # (C,) what is added to it in pixels of class c


# ---------------------------------------------------------------------------------------------------- reference


def _one_hot(labels: Array, classes: int) -> Array:
    """(...) -> (..., C)"""
    return labels[..., None] == np.arange(classes)


def _forward_reference(p: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """I and S, (C,) each."""
    g, w = _one_hot(labels, p.shape[-1]), weights[..., None]
    pixels = tuple(range(p.ndim - 1))
    intersection = np.where(g & (w != 0), w * p, 0).sum(pixels, dtype=np.float64)
    total = np.where(w != 0, w * (p + g), 0).sum(pixels, dtype=np.float64)
    return intersection, total


def _backward_reference(labels: Array, weights: Array, everywhere: Array, labelled: Array) -> Array:
    return weights[..., None] * (everywhere + _one_hot(labels, everywhere.size) * labelled)


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(p, labels, weights, block, sums):
    for b in prange(sums.shape[0]):
        first = np.int64(b) * block
        for i in range(first, min(first + block, labels.size)):
            if weights[i] != 0:
                weight = np.float64(weights[i])
                for c in range(p.shape[1]):
                    sums[b, 1, c] += weight * p[i, c]
                sums[b, 0, labels[i]] += weight * p[i, labels[i]]
                sums[b, 1, labels[i]] += weight


@kernel
def _backward_kernel(labels, weights, everywhere, labelled, dp):
    for i in prange(labels.size):
        for c in range(everywhere.size):
            dp[i, c] = weights[i] * everywhere[c]
        dp[i, labels[i]] += weights[i] * labelled[labels[i]]


def _forward_numba(p: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    classes = p.shape[-1]
    block = max(1, BLOCK_ELEMENTS // classes)
    sums = np.zeros((-(-labels.size // block), 2, classes))
    pixels = np.ascontiguousarray(p).reshape(-1, classes)
    _forward_kernel(pixels, labels.reshape(-1), weights.reshape(-1), block, sums)
    intersection, total = sums.sum(axis=0)
    return intersection, total


def _backward_numba(labels: Array, weights: Array, everywhere: Array, labelled: Array) -> Array:
    dp = np.empty((*labels.shape, everywhere.size), weights.dtype)
    _backward_kernel(
        labels.reshape(-1), weights.reshape(-1), everywhere, labelled, dp.reshape(-1, everywhere.size)
    )
    return dp


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _loss_cuda(
    p: Array, labels: Array, weights: Array, class_weights: Array | None, epsilon: float, mean: bool
) -> tuple[Array, Array, Array]:
    p, C = cuda.contiguous(p), p.shape[-1]
    if class_weights is not None:
        class_weights = class_weights_cuda("dice", class_weights, p)
    width, tiles, chunks = sums.split(1, labels.size, C)
    partial = cuda.empty((chunks, 2, C), np.dtype(np.float64))
    _cuda.launch("dice_chunks", p, labels, weights, labels.size, C, width, partial, blocks=(chunks, tiles))
    loss = cuda.empty((), p.dtype)
    everywhere, labelled = (cuda.empty((C,), partial.dtype) for _ in range(2))
    results = (loss, everywhere, labelled)
    _cuda.launch("dice_finish", partial, class_weights, chunks, C, epsilon, mean, *results, blocks=1)
    return results


def _backward_cuda(dy: Array, cache: DiceCache) -> Array:
    labels, C = cache.labels, cache.everywhere.size
    dp = cuda.empty((*labels.shape, C), cache.weights.dtype)
    width, blocks = cuda.tile(labels.size, C)
    _cuda.launch("dice_backward", cuda.contiguous(dy), *cache, labels.size, C, width, dp, blocks=blocks)
    return dp


# ------------------------------------------------------------------------------------------------------- public


def dice(
    probabilities: Array,
    labels: Array,
    *,
    epsilon: float = 1.0,
    class_weights: Array | None = None,
    pixel_weights: Array | None = None,
    ignore_label: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Array, DiceCache]:
    """The loss of `probabilities` (..., C) for integer `labels` (...) in 0 .. C - 1: an array of no axes.

    epsilon         more than 0, in pixels: the larger, the less do small areas matter
    class_weights   (C,), not negative; all 1 if absent
    pixel_weights   (...), of the shape of the labels, not negative; all 1 if absent
    ignore_label    pixels with this label do not count
    reduction       "mean" or "sum" over the classes
    """
    checks.floating("dice", probabilities=probabilities)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'dice: reduction must be "mean" or "sum", got {reduction!r}')
    if not epsilon > 0:
        raise ValueError(f"dice: epsilon must be more than 0, got {epsilon}; it keeps 0 / 0 from absent classes")
    labels, weights = labels_and_weights("dice", labels, probabilities, ignore_label, pixel_weights)
    forward = backend.choose(probabilities, numpy=_loss, numba=_loss, cuda=_loss_cuda)
    mean = reduction == "mean"
    loss, everywhere, labelled = forward(probabilities, labels, weights, class_weights, epsilon, mean)
    return loss, DiceCache(labels, weights, everywhere, labelled)


def dice_backward(dy: Array, cache: DiceCache) -> Array:
    """The gradient with respect to the probabilities, of their shape. `dy` is one number, an array of no axes."""
    dtype = cache.weights.dtype
    checks.upstream("dice_backward", dy, (), dtype)
    return backend.choose(cache.weights, numpy=_backward, numba=_backward, cuda=_backward_cuda)(dy, cache)


def _loss(
    probabilities: Array, labels: Array, weights: Array, class_weights: Array | None, epsilon: float, mean: bool
) -> tuple[Array, Array, Array]:
    """The loss, and the derivatives that its cache holds."""
    _check_probabilities(probabilities)
    shares = np.ones(probabilities.shape[-1])
    if class_weights is not None:
        shares = checked_class_weights("dice", class_weights, probabilities).astype(np.float64)
    if mean and shares.any():
        shares = shares / shares.sum()

    forward = backend.choose(probabilities, numpy=_forward_reference, numba=_forward_numba)
    intersection, total = forward(probabilities, labels, weights)
    numerator, denominator = 2 * intersection + epsilon, total + epsilon
    loss = np.array((shares * (1 - numerator / denominator)).sum(), probabilities.dtype)
    return loss, shares * numerator / denominator**2, -2 * shares / denominator


def _backward(dy: Array, cache: DiceCache) -> Array:
    dtype = cache.weights.dtype
    backward = backend.choose(cache.weights, numpy=_backward_reference, numba=_backward_numba)
    everywhere, labelled = ((float(dy) * factor).astype(dtype) for factor in (cache.everywhere, cache.labelled))
    return backward(cache.labels, cache.weights, everywhere, labelled)


def _check_probabilities(probabilities: Array) -> None:
    smallest, largest = probabilities.min(), probabilities.max()
    if smallest < -0.01 or largest > 1.01:  # room for rounding, and for finite differences
        raise ValueError(
            f"dice: probabilities must lie between 0 and 1, these reach from {smallest:g} to {largest:g}; "
            "put ops.softmax before it"
        )
