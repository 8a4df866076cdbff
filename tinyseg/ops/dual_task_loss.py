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

from tinyseg.backend import Array
from tinyseg.ops import checks
from tinyseg.ops.gumbel_softmax import GumbelSoftmaxCache, gumbel_softmax, gumbel_softmax_backward
from tinyseg.ops.labels import labels_and_weights
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


def dual_task_loss(
    logits: Array,
    labels: Array,
    *,
    temperature: float = 1.0,
    sigma: float = 1.0,
    threshold: float = 0.01,
    seed: int | None = None,
    offset: int = 0,
    ignore_label: int | None = None,
) -> tuple[Array, DualTaskLossCache]:
    """The loss of `logits` (N, H, W, C) for integer `labels` (N, H, W) in 0 .. C - 1: an array of no axes.

    temperature   of the Gumbel softmax
    sigma         of the blur, in pixels
    threshold     0 or more: where the magnitude ζ is above it, there is a border
    seed, offset  of the noise; seed None is for no noise
    ignore_label  pixels with this label do not count
    """
    checks.floating("dual_task_loss", logits=logits)
    checks.rank("dual_task_loss", "logits", logits, "N H W C")
    if not threshold >= 0:
        raise ValueError(f"dual_task_loss: threshold must be 0 or more, got {threshold}")
    labels, weights = labels_and_weights("dual_task_loss", labels, logits, ignore_label, None)
    seen = weights[..., None]
    truth = (labels[..., None] == np.arange(logits.shape[-1])) * seen  # N H W C, in the type of the logits

    p, softmax_cache = gumbel_softmax(logits, temperature=temperature, seed=seed, offset=offset)
    p = np.where(seen > 0, p, 0)  # not a product: the logits of an ignored pixel may be NaN
    blurred, blur_cache = gaussian_blur(p, sigma=sigma)
    magnitude, magnitude_cache = gradient_magnitude(blurred)
    true_magnitude, _ = gradient_magnitude(gaussian_blur(truth, sigma=sigma)[0])

    half_root = logits.dtype.type(HALF_ROOT)
    borders = half_root * np.maximum(magnitude, true_magnitude) > threshold
    difference = half_root * np.where(borders & (seen > 0), magnitude - true_magnitude, 0)
    size = max(int((borders & (seen > 0)).sum()), 1)
    loss = np.array(np.abs(difference).sum(dtype=np.float64) / size, logits.dtype)
    slope = np.sign(difference) * logits.dtype.type(HALF_ROOT / size)
    return loss, DualTaskLossCache(softmax_cache, blur_cache, magnitude_cache, seen, slope)


def dual_task_loss_backward(dy: Array, cache: DualTaskLossCache) -> Array:
    """The gradient with respect to the logits, N H W C. `dy` is one number, an array of no axes."""
    checks.upstream("dual_task_loss_backward", dy, (), cache.slope.dtype)
    dblurred = gradient_magnitude_backward(cache.slope * dy, cache.magnitude)
    dp = gaussian_blur_backward(dblurred, cache.blur)
    dlogits = gumbel_softmax_backward(dp * cache.seen, cache.softmax)
    return np.where(cache.seen > 0, dlogits, 0)
