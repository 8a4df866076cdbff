r"""Binary cross-entropy on logits: for yes-or-no questions, such as "is there an edge at this pixel?".

With logits z, targets t between 0 and 1, weights w, positive weights q, over all elements i = (pixel, channel c):

    l[i]  = - q[c] t[i] log σ(z[i]) - (1 - t[i]) log(1 - σ(z[i]))         σ(z) = 1 / (1 + exp(-z))
    loss  = sum_i w[i] l[i]  /  sum_i w[i]                                reduction="mean"
    loss  = sum_i w[i] l[i]                                               reduction="sum"

    w[i]  = pixel_weights[i],  and 0 where t[i] is `ignore_label`

    z, t (..., C);  pixel_weights (...) or (..., C);  positive_weight one number or (C,);  loss: one number

`positive_weight` balances rare positives: q = negatives / positives gives both the same say. It does not enter the
denominator of the mean. (PyTorch's mean divides by the number of elements instead of the sum of their weights.)
If nothing counts, every element ignored or of weight 0, the loss and its gradient are 0, as in cross_entropy.

The sigmoid is never taken a logarithm of: it may have been rounded to 0. With u = log(1 + exp(-|z|)), which is
accurate for every z,

    -log σ(z) = max(-z, 0) + u               -log(1 - σ(z)) = max(z, 0) + u

Backward, with s = 1 / sum_i w[i] for the mean and 1 for the sum, and with 1 - σ(z) = σ(-z):

    dz[i] = dy * s * w[i] * ((1 - t[i]) σ(z[i]) - q[c] t[i] σ(-z[i]))

Cost per element: an exponential and a logarithm forward, an exponential backward; 12 and 16 bytes.

Source: Xie & Tu, "Holistically-nested edge detection", ICCV 2015, equation 2 (class-balanced cross-entropy).
"""

from typing import Literal, NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks
from tinyseg.ops.labels import blocks_for, check_not_negative, finish_loss_cuda, scaled_loss

BLOCK = 4096  # elements whose losses are summed one after the other


class BceWithLogitsCache(NamedTuple):
    logits: Array  # (..., C)
    targets: Array  # (..., C), in the type of the logits
    weights: Array  # (..., C), 0 where ignored
    positive_weight: Array  # (C,)
    scale: float | Array  # what the weighted sum was multiplied with; on a GPU an array of no axes


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(z: Array, t: Array, w: Array, q: Array, mean: bool) -> tuple[Array, float]:
    """The loss, and its scale."""
    u = np.log1p(np.exp(-np.abs(z)))
    losses = q * t * (np.maximum(-z, 0) + u) + (1 - t) * (np.maximum(z, 0) + u)
    return scaled_loss(np.where(w == 0, 0, w * losses).sum(dtype=np.float64), w, mean)


def _backward_reference(dy: Array, cache: BceWithLogitsCache) -> Array:
    z, t, w, q, scale = cache
    factor = z.dtype.type(scale * float(dy))
    e = np.exp(-np.abs(z))
    yes = np.where(z > 0, 1, e) / (1 + e)  # σ(z)
    no = np.where(z > 0, e, 1) / (1 + e)  # σ(-z)
    return np.where(w == 0, 0, w * factor * ((1 - t) * yes - q * t * no))


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(z, t, w, q, block, losses):
    for b in prange(losses.size):
        loss = 0.0
        for i in range(np.int64(b) * block, min((np.int64(b) + 1) * block, z.size)):
            if w[i] != 0:
                x, target = np.float64(z[i]), np.float64(t[i])
                u = np.log1p(np.exp(-abs(x)))
                yes, no = max(-x, 0.0) + u, max(x, 0.0) + u  # -log σ(z), -log(1 - σ(z))
                loss += w[i] * (q[i % q.size] * target * yes + (1 - target) * no)
        losses[b] = loss


@kernel
def _backward_kernel(z, t, w, q, scale, dz):
    for i in prange(z.size):
        one = z.dtype.type(1)
        e = np.exp(-abs(z[i]))
        yes = (one if z[i] > 0 else e) / (one + e)  # σ(z)
        no = (e if z[i] > 0 else one) / (one + e)  # σ(-z)
        c = np.int64(i) % q.size
        dz[i] = w[i] * scale * ((one - t[i]) * yes - q[c] * t[i] * no) if w[i] != 0 else 0


def _forward_numba(z: Array, t: Array, w: Array, q: Array, mean: bool) -> tuple[Array, float]:
    losses = np.empty(-(-z.size // BLOCK))
    _forward_kernel(*_flat(z, t, w, q), BLOCK, losses)
    return scaled_loss(losses.sum(), w, mean)


def _backward_numba(dy: Array, cache: BceWithLogitsCache) -> Array:
    *arrays, scale = cache
    dz = np.empty(cache.logits.shape, cache.logits.dtype)
    _backward_kernel(*_flat(*arrays), dz.dtype.type(scale * float(dy)), dz.reshape(-1))
    return dz


def _flat(*arrays: Array) -> list[Array]:
    return [np.ascontiguousarray(array).reshape(-1) for array in arrays]


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["loss_sums.cuh"])


def _forward_cuda(z: Array, t: Array, w: Array, q: Array, mean: bool) -> tuple[Array, Array]:
    z = cuda.contiguous(z)
    blocks = blocks_for(z.size)
    partial = cuda.empty((2, blocks), np.dtype(np.float64))
    _cuda.launch("bce_forward", z, t, w, q, z.size, z.shape[-1], partial, blocks=blocks)
    return finish_loss_cuda(partial, mean, z.dtype)


def _backward_cuda(dy: Array, cache: BceWithLogitsCache) -> Array:
    z, t, w, q, scale = cache
    z = cuda.contiguous(z)
    dz = cuda.empty(z.shape, z.dtype)
    arrays = (cuda.contiguous(dy), scale, z, t, w, q)
    _cuda.launch("bce_backward", *arrays, z.size, z.shape[-1], dz, threads=z.size)
    return dz


def _prepare_cuda(
    targets: Array,
    pixel_weights: Array | None,
    positive_weight: float | Array,
    logits: Array,
    ignore_label: int | None,
) -> tuple[Array, Array, Array]:
    """As on the CPU, but a target or weight out of bounds makes the loss NaN: nobody waits for the GPU to tell."""
    C, dtype = logits.shape[-1], logits.dtype
    per_weight = 1
    if pixel_weights is not None:
        _check_weights_shape(pixel_weights.shape, logits)
        per_weight = 1 if pixel_weights.shape == logits.shape else C
        pixel_weights = cuda.contiguous(pixel_weights, dtype)
    given = cuda.contiguous(targets, dtype)
    used, weights = cuda.empty(logits.shape, dtype), cuda.empty(logits.shape, dtype)
    numbers = (logits.size, per_weight, ignore_label is not None, ignore_label or 0)
    _cuda.launch("bce_prepare", given, pixel_weights, *numbers, used, weights, threads=logits.size)
    if not cuda.on_gpu(positive_weight):
        return used, weights, cuda.constant(_positive_weight(positive_weight, logits))
    positive: Array = positive_weight  # type: ignore[assignment]
    checks.shape("bce_with_logits", "positive_weight", positive, (C,), "one for each channel")
    return used, weights, cuda.contiguous(positive)


# ------------------------------------------------------------------------------------------------------- public


def bce_with_logits(
    logits: Array,
    targets: Array,
    *,
    positive_weight: float | Array = 1.0,
    pixel_weights: Array | None = None,
    ignore_label: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Array, BceWithLogitsCache]:
    """The loss of `logits` (..., C) for `targets` (..., C) between 0 and 1, hard or soft: an array of no axes.

    targets          of any type: 0 and 1 as bool or integer, or probabilities
    positive_weight  what a positive element counts relative to a negative one; one number, or one per channel (C,)
    pixel_weights    (...) for all channels of a pixel, or (..., C); not negative; all 1 if absent
    ignore_label     elements with this target do not count, for instance 255 in a mask of 0 and 1
    reduction        "mean": divided by the sum of the weights of the elements that count; "sum": not divided

    If no element counts, the loss is 0, and so is its gradient.
    """
    checks.floating("bce_with_logits", logits=logits)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'bce_with_logits: reduction must be "mean" or "sum", got {reduction!r}')
    if logits.ndim < 1:
        raise ValueError("bce_with_logits: the logits must have the axes (..., C), got a single number")
    if not hasattr(targets, "dtype") or targets.dtype.kind not in "biuf":
        kind = getattr(targets, "dtype", type(targets).__name__)
        raise TypeError(f"bce_with_logits: targets must be an array of numbers or bools, got {kind}")
    checks.shape("bce_with_logits", "targets", targets, logits.shape, "that of the logits")
    prepare = backend.choose(logits, numpy=_prepare, numba=_prepare, cuda=_prepare_cuda)
    targets, weights, positive = prepare(targets, pixel_weights, positive_weight, logits, ignore_label)
    forward = backend.choose(logits, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    loss, scale = forward(logits, targets, weights, positive, reduction == "mean")
    return loss, BceWithLogitsCache(logits, targets, weights, positive, scale)


def bce_with_logits_backward(dy: Array, cache: BceWithLogitsCache) -> Array:
    """The gradient with respect to the logits, of their shape. `dy` is one number, an array of no axes."""
    checks.upstream("bce_with_logits_backward", dy, (), cache.logits.dtype)
    backward = backend.choose(cache.logits, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache)


def _prepare(
    targets: Array,
    pixel_weights: Array | None,
    positive_weight: float | Array,
    logits: Array,
    ignore_label: int | None,
) -> tuple[Array, Array, Array]:
    """Targets and weights of all elements, and the positive weight of each channel."""
    weights = _element_weights(pixel_weights, logits)
    targets, weights = _targets_and_weights(targets, weights, logits, ignore_label)
    return targets, weights, _positive_weight(positive_weight, logits)


def _element_weights(weights: Array | None, logits: Array) -> Array:
    """(..., C)"""
    if weights is None:
        return np.ones(logits.shape, logits.dtype)
    weights = np.asarray(weights, dtype=logits.dtype)
    _check_weights_shape(weights.shape, logits)
    if weights.shape != logits.shape:
        weights = weights[..., None]
    check_not_negative("bce_with_logits", "pixel_weights", weights)
    return np.array(np.broadcast_to(weights, logits.shape))


def _check_weights_shape(shape: tuple[int, ...], logits: Array) -> None:
    if shape not in (logits.shape[:-1], logits.shape):
        raise ValueError(
            f"bce_with_logits: pixel_weights must have shape {logits.shape[:-1]}, one for each pixel, "
            f"or {logits.shape}, one for each element of the logits; got {shape}"
        )


def _targets_and_weights(
    targets: Array, weights: Array, logits: Array, ignore_label: int | None
) -> tuple[Array, Array]:
    """Targets in the type of the logits, and weights; both are 0 where ignored."""
    if ignore_label is not None:
        ignored = targets == ignore_label
        targets, weights = np.where(ignored, 0, targets), np.where(ignored, logits.dtype.type(0), weights)
    smallest, largest = targets.min(), targets.max()
    if smallest < 0 or largest > 1:
        raise ValueError(
            f"bce_with_logits: targets must lie between 0 and 1, these reach from {smallest:g} to {largest:g}; "
            "divide a mask of 0 and 255 by 255, or pass ignore_label= if a value means 'not labelled'"
        )
    return targets.astype(logits.dtype, copy=False), weights


def _positive_weight(weight: float | Array, logits: Array) -> Array:
    """(C,)"""
    weights = np.asarray(weight, dtype=logits.dtype)
    if weights.ndim == 0:
        weights = np.full(logits.shape[-1:], weights)
    checks.shape("bce_with_logits", "positive_weight", weights, logits.shape[-1:], "one for each channel")
    check_not_negative("bce_with_logits", "positive_weight", weights)
    return weights
