r"""Class-balanced binary cross-entropy for edges, of which there are few.

With logits z, edges t in {0, 1}, and P positive and B negative pixels among the M = P + B that are not ignored:

    w[i] = B / M  where t[i] = 1,       P / M  where t[i] = 0,       0 where ignored
    loss = 1 / M  sum_i  w[i] * ( -t[i] log σ(z[i]) - (1 - t[i]) log(1 - σ(z[i])) )

    z, t  (..., C), usually N H W 1;   loss: one number

Both kinds together have the weight P B / M, however rare one of them is. Without that, "no edge anywhere" would be
nearly right. A map without any edge, or of nothing but edges, has the loss 0.

The argument is the logit, not the probability σ(z): of a probability near 0 or 1 the logarithm has no digits left,
and a sigmoid that is taken twice can say nothing below one half.

Backward. The weights do not depend on z: dz[i] = dy / M * w[i] * (σ(z[i]) - t[i]), which is bce_with_logits' own.

Cost: that of bce_with_logits, and a pass over the edges to count them.

Sources: Xie & Tu, "Holistically-nested edge detection", ICCV 2015, equation 2; Takikawa, Acuna, Jampani & Fidler,
"Gated-SCNN", ICCV 2019, equation 4.
"""

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, sums
from tinyseg.ops.bce_with_logits import BceWithLogitsCache, bce_with_logits, bce_with_logits_backward
from tinyseg.ops.labels import blocks_for


def _targets_and_weights(edges: Array, logits: Array, ignore_label: int | None) -> tuple[Array, Array]:
    counts = np.ones(edges.shape, bool) if ignore_label is None else edges != ignore_label
    positive, negative = (edges == 1) & counts, (edges == 0) & counts
    if (counts & ~positive & ~negative).any():
        odd = np.unique(edges[counts & ~positive & ~negative])[:8]
        raise ValueError(
            f"balanced_edge_loss: edges must be 0 or 1, got also {', '.join(map(str, odd))}; pass ignore_label= "
            "if one of them means 'unknown'"
        )
    P, B = int(positive.sum()), int(negative.sum())
    M = max(P + B, 1)
    weights = np.where(positive, B / M, np.where(negative, P / M, 0)) / M
    return positive.astype(logits.dtype), weights


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["loss_sums.cuh"])


def _targets_and_weights_cuda(edges: Array, logits: Array, ignore_label: int | None) -> tuple[Array, Array]:
    """An edge that is neither 0 nor 1 makes the loss NaN: nobody waits for the GPU to tell."""
    edges = cuda.contiguous(edges, np.int64)
    blocks, ignored = blocks_for(edges.size), (ignore_label is not None, ignore_label or 0)
    partial = cuda.empty((2, blocks), np.dtype(np.float64))
    _cuda.launch("count_edges", edges, edges.size, *ignored, partial, blocks=blocks)
    counts = sums.over_middle(partial, 2, blocks, 1)
    targets, weights = (cuda.empty(edges.shape, logits.dtype) for _ in range(2))
    _cuda.launch("weigh_edges", edges, counts, edges.size, *ignored, targets, weights, threads=edges.size)
    return targets, weights


# ------------------------------------------------------------------------------------------------------- public


def balanced_edge_loss(
    logits: Array, edges: Array, *, ignore_label: int | None = None
) -> tuple[Array, BceWithLogitsCache]:
    """The loss of `logits` (..., C) for `edges` of the same shape, 0 or 1: an array of no axes.

    ignore_label  pixels of this value in `edges` do not count

    The balance is that of all that is passed at once: a batch, not each image.
    """
    checks.floating("balanced_edge_loss", logits=logits)
    edges = edges if hasattr(edges, "dtype") else np.asarray(edges)
    if edges.dtype.kind not in "biu":
        raise TypeError(f"balanced_edge_loss: edges must be bools or integers, 0 and 1, got {edges.dtype}")
    checks.shape("balanced_edge_loss", "edges", edges, logits.shape, "that of the logits")
    prepare = backend.choose(
        logits, numpy=_targets_and_weights, numba=_targets_and_weights, cuda=_targets_and_weights_cuda
    )
    targets, weights = prepare(edges, logits, ignore_label)
    return bce_with_logits(logits, targets, pixel_weights=weights, reduction="sum")


def balanced_edge_loss_backward(dy: Array, cache: BceWithLogitsCache) -> Array:
    """The gradient with respect to the logits, of their shape. `dy` is one number, an array of no axes."""
    return bce_with_logits_backward(dy, cache)
