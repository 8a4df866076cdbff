r"""The dual-task loss: the borders of the predicted classes should lie where those of the true classes do.

    p[n,h,w,c] = Gumbel softmax of the logits: nearly the one-hot argmax, but with a gradient
    t[n,h,w,c] = 1 where the label is c, else 0;     at ignored pixels both are 0
    ζ(m)       = |∇ (G * m)| / sqrt(2)               G a Gaussian; the magnitude for each class
    loss       = mean over (n,h,w,c) in S of  |ζ(p) - ζ(t)|
    S          = where ζ(p) > threshold or ζ(t) > threshold,  and the pixel is not ignored

    logits  N H W C;   labels  N H W;   loss: one number, 0 if S is empty

Both sides pass through the same blur and gradient. A class border that is one pixel off still meets the slope of
the right one, and the loss says which way to go.

Backward. S is taken as it is, a constant. With σ = sign(ζ(p) - ζ(t)) / |S| on S and 0 elsewhere,

    d|∇| = dy σ / sqrt(2)

and the rest is done by the backward passes of gradient_magnitude, gaussian_blur and gumbel_softmax, in this order.

Cost: with sigma = 1, about 60 multiply-adds, two logarithms and one exponential per element forward.

Differences from the paper, Takikawa, Acuna, Jampani & Fidler, "Gated-SCNN: Gated shape CNNs for semantic
segmentation", ICCV 2019, equations 5 to 8
    * The paper's S holds the pixels where ζ is not 0. The softmax is nowhere exactly 0, so a threshold decides.
    * The paper's sum is a mean here, so that the weight of the loss does not depend on the size of the crop.
    * The released code has a term of this name whose blur and gradient return their input as it is: it compares
      probabilities with one-hot labels, and borders play no part in it. This one has the gradient that the paper
      describes. Nor are magnitudes divided by their largest here, which would tie all pixels of a batch to one.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks
from tinyseg.ops.arithmetic import mul
from tinyseg.ops.gumbel_softmax import GumbelSoftmaxCache, gumbel_softmax, gumbel_softmax_backward
from tinyseg.ops.labels import blocks_for, finish_loss_cuda, labels_and_weights
from tinyseg.ops.separable import SeparableCache
from tinyseg.ops.spatial_gradient import (
    GradientMagnitudeCache,
    gaussian_blur,
    gaussian_blur_backward,
    gradient_magnitude,
    gradient_magnitude_backward,
)

HALF_ROOT = 1 / math.sqrt(2)


class DualTaskLossCache(NamedTuple):
    softmax: GumbelSoftmaxCache
    blur: SeparableCache
    magnitude: GradientMagnitudeCache
    seen: Array  # N H W 1, 1 where the pixel is not ignored, else 0
    slope: Array  # N H W C, the derivative by the magnitude of the blurred p


# --------------------------------------------------------------------------------------------- parts: on the CPU


def _keep_seen(x: Array, seen: Array) -> Array:
    """0 where a pixel is ignored, and not a product: what stands there may be NaN."""
    return np.where(seen > 0, x, 0)


def _one_hot(labels: Array, seen: Array, classes: int) -> Array:
    return (labels[..., None] == np.arange(classes)) * seen


def _compare(magnitude: Array, true_magnitude: Array, seen: Array, threshold: float) -> tuple[Array, Array]:
    """The loss, and its derivative by the magnitude. NaN counts as a border, so that it stays visible."""
    half_root = magnitude.dtype.type(HALF_ROOT)
    borders = ~(half_root * np.maximum(magnitude, true_magnitude) <= threshold) & (seen > 0)
    difference = half_root * np.where(borders, magnitude - true_magnitude, 0)
    size = max(int(borders.sum()), 1)
    loss = np.array(np.abs(difference).sum(dtype=np.float64) / size, magnitude.dtype)
    return loss, np.sign(difference) * magnitude.dtype.type(HALF_ROOT / size)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["loss_sums.cuh"])


def _keep_seen_cuda(x: Array, seen: Array) -> Array:
    x, y = cuda.contiguous(x), cuda.empty(x.shape, x.dtype)
    _cuda.launch("keep_seen", x, seen, x.size, x.shape[-1], y, threads=x.size)
    return y


def _one_hot_cuda(labels: Array, seen: Array, classes: int) -> Array:
    truth = cuda.empty((*labels.shape, classes), seen.dtype)
    _cuda.launch("one_hot", labels, seen, truth.size, classes, truth, threads=truth.size)
    return truth


def _compare_cuda(magnitude: Array, true_magnitude: Array, seen: Array, threshold: float) -> tuple[Array, Array]:
    n, C = magnitude.size, magnitude.shape[-1]
    blocks = blocks_for(n)
    partial = cuda.empty((2, blocks), np.dtype(np.float64))
    arrays = (magnitude, true_magnitude, seen)
    _cuda.launch("dual_task_forward", *arrays, threshold, n, C, partial, blocks=blocks)
    loss, scale = finish_loss_cuda(partial, True, magnitude.dtype)
    slope = cuda.empty(magnitude.shape, magnitude.dtype)
    _cuda.launch("dual_task_slope", *arrays, scale, threshold, n, C, slope, threads=n)
    return loss, slope


# ------------------------------------------------------------------------------------------------------- public


def dual_task_loss(
    logits: Array,
    labels: Array,
    *,
    temperature: float = 1.0,
    sigma: float = 1.0,
    threshold: float = 0.01,
    seed: int | None = None,
    offset: int | Array = 0,
    ignore_label: int | None = None,
) -> tuple[Array, DualTaskLossCache]:
    """The loss of `logits` (N, H, W, C) for integer `labels` (N, H, W) in 0 .. C - 1: an array of no axes.

    temperature   of the Gumbel softmax
    sigma         of the blur, in pixels
    threshold     0 or more: where the magnitude ζ is above it, there is a border
    seed, offset  of the noise, see gumbel_softmax; seed None is for no noise
    ignore_label  pixels with this label do not count
    """
    checks.floating("dual_task_loss", logits=logits)
    checks.rank("dual_task_loss", "logits", logits, "N H W C")
    if not threshold >= 0:
        raise ValueError(f"dual_task_loss: threshold must be 0 or more, got {threshold}")
    labels, weights = labels_and_weights("dual_task_loss", labels, logits, ignore_label, None)
    seen = cuda.reshape(weights, (*weights.shape, 1))
    keep_seen = backend.choose(logits, numpy=_keep_seen, numba=_keep_seen, cuda=_keep_seen_cuda)
    one_hot = backend.choose(logits, numpy=_one_hot, numba=_one_hot, cuda=_one_hot_cuda)
    compare = backend.choose(logits, numpy=_compare, numba=_compare, cuda=_compare_cuda)

    p, softmax_cache = gumbel_softmax(logits, temperature=temperature, seed=seed, offset=offset)
    blurred, blur_cache = gaussian_blur(keep_seen(p, seen), sigma=sigma)
    magnitude, magnitude_cache = gradient_magnitude(blurred)
    truth = one_hot(labels, seen, logits.shape[-1])
    true_magnitude, _ = gradient_magnitude(gaussian_blur(truth, sigma=sigma)[0])
    loss, slope = compare(magnitude, true_magnitude, seen, threshold)
    return loss, DualTaskLossCache(softmax_cache, blur_cache, magnitude_cache, seen, slope)


def dual_task_loss_backward(dy: Array, cache: DualTaskLossCache) -> Array:
    """The gradient with respect to the logits, N H W C. `dy` is one number, an array of no axes."""
    checks.upstream("dual_task_loss_backward", dy, (), cache.slope.dtype)
    keep_seen = backend.choose(dy, numpy=_keep_seen, numba=_keep_seen, cuda=_keep_seen_cuda)
    dmagnitude, _ = mul(cache.slope, dy)
    dp = gaussian_blur_backward(gradient_magnitude_backward(dmagnitude, cache.magnitude), cache.blur)
    dlogits = gumbel_softmax_backward(keep_seen(dp, cache.seen), cache.softmax)
    return keep_seen(dlogits, cache.seen)
