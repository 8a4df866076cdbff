r"""The encoding layer: how an image's features lie around a few learned codewords.

Each pixel i is shared out among K codewords d, the more to one the better it fits, and each codeword collects what
its share of the pixels differ from it by:

    r[i,k,c] = x[i,c] - d[k,c]                                  the residual
    q[i,k]   = sum_c r[i,k,c]^2
    a[i,k]   = softmax over k of  s[k] q[i,k]                   the shares; s is negative in practice: near is good
    y[c,k]   = sum_i a[i,k] r[i,k,c]

    x  N H W C, of which i numbers the pixels of one image;   d  K C;   s  K;   y  N C K

The result has no order of pixels left: it describes the image as a texture, whatever its size. Codewords are the
last axis because each has a mean and a variance of its own in the normalisation that follows in EncNet.

Backward, with g[i,k] = sum_c dy[c,k] r[i,k,c], what share a[i,k] is worth, and the softmax's own backward pass:

    dz[i,k]   = a[i,k] (g[i,k] - sum_j a[i,j] g[i,j])           by its logit s[k] q[i,k]
    dr[i,k,c] = a[i,k] dy[c,k] + 2 s[k] dz[i,k] r[i,k,c]

    dx[i,c] = sum_k dr[i,k,c]          dd[k,c] = - sum_i dr[i,k,c]          ds[k] = sum_i dz[i,k] q[i,k]

The residuals would take K times the memory of the features, and are never there in whole. Everything is a product
of matrices: |x - d|^2 = |x|^2 - 2 x d + |d|^2,  sum_i a r = sum_i a x - (sum_i a) d,  and so on. The squares lose
digits where a pixel is much nearer to a codeword than both are to the mean of the codewords, which is harmless:
they are near 0 there.

Cost: 4 K C FLOPs per pixel forward, 10 K C backward, all of it in BLAS.

Source: Zhang, Xue & Dana, "Deep TEN: texture encoding network", CVPR 2017, equations 1 to 4; Zhang, Dana, Shi et
al., "Context encoding for semantic segmentation", CVPR 2018.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.ops import checks


class EncodingCache(NamedTuple):
    x: Array  # N H W C
    codewords: Array  # K C
    scales: Array  # K
    shares: Array  # N M K, M = H W


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(x: Array, d: Array, s: Array) -> tuple[Array, Array]:
    """y (N, K, C) and the shares (N, M, K), for x (N, M, C)."""
    r = x[:, :, None] - d  # N M K C
    z = s * np.sum(r * r, axis=-1)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    a = e / e.sum(axis=-1, keepdims=True)
    return np.einsum("nmk,nmkc->nkc", a, r), a


def _backward_reference(dy: Array, x: Array, d: Array, s: Array, a: Array) -> tuple[Array, Array, Array]:
    r = x[:, :, None] - d
    g = np.einsum("nkc,nmkc->nmk", dy, r)
    dz = a * (g - np.sum(a * g, axis=-1, keepdims=True))
    dr = a[..., None] * dy[:, None] + 2 * (s * dz)[..., None] * r
    ds = np.sum(dz * np.sum(r * r, axis=-1), axis=(0, 1))
    return dr.sum(axis=2), -dr.sum(axis=(0, 1)), ds


# ----------------------------------------------------------------------------------------- as products of matrices


def _forward_blas(x: Array, d: Array, s: Array) -> tuple[Array, Array]:
    x, d = _centred(x, d)
    z = s * _squares(x, d)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    a = e / e.sum(axis=-1, keepdims=True)
    return a.transpose(0, 2, 1) @ x - a.sum(axis=1)[..., None] * d, a


def _backward_blas(dy: Array, x: Array, d: Array, s: Array, a: Array) -> tuple[Array, Array, Array]:
    x, d = _centred(x, d)
    g = x @ dy.transpose(0, 2, 1) - np.sum(dy * d, axis=-1)[:, None]
    dz = a * (g - np.sum(a * g, axis=-1, keepdims=True))
    pull = 2 * s * dz  # N M K: dr = a dy + pull r
    dx = a @ dy - pull @ d + pull.sum(axis=-1, keepdims=True) * x
    from_x = pull.transpose(0, 2, 1) @ x - pull.sum(axis=1)[..., None] * d  # N K C: sum over i of pull r
    dd = -(a.sum(axis=1)[..., None] * dy + from_x).sum(axis=0)
    return dx, dd, np.sum(dz * _squares(x, d), axis=(0, 1))


def _centred(x: Array, d: Array) -> tuple[Array, Array]:
    """Both seen from the mean of the codewords, which changes no residual, and makes the numbers smaller."""
    centre = d.mean(axis=0)
    return x - centre, d - centre


def _squares(x: Array, d: Array) -> Array:
    """|x - d|^2, N M K."""
    squares = np.sum(x * x, axis=-1, keepdims=True) - 2 * (x @ d.T) + np.sum(d * d, axis=-1)
    return np.maximum(squares, 0)  # what rounding makes negative


# ------------------------------------------------------------------------------------------------------- public


def encoding(x: Array, codewords: Array, scales: Array) -> tuple[Array, EncodingCache]:
    """Collect the residuals of x (N, H, W, C) from codewords (K, C), softly assigned with scales (K,): N C K.

    >>> x = np.array([1.0, 5.0]).reshape(1, 1, 2, 1)
    >>> encoding(x, np.array([[0.0], [4.0]]), np.array([-50.0, -50.0]))[0]
    array([[[1., 1.]]])
    """
    checks.floating("encoding", x=x, codewords=codewords, scales=scales)
    checks.rank("encoding", "x", x, "N H W C")
    checks.rank("encoding", "codewords", codewords, "K C")
    N, H, W, C = x.shape
    checks.shape("encoding", "codewords", codewords, (codewords.shape[0], C), f"as many channels as x {x.shape}")
    checks.shape("encoding", "scales", scales, codewords.shape[:1], "one for each codeword")
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_blas)
    y, shares = forward(x.reshape(N, H * W, C), codewords, scales)
    return np.ascontiguousarray(y.transpose(0, 2, 1)), EncodingCache(x, codewords, scales, shares)


def encoding_backward(
    dy: Array, cache: EncodingCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dcodewords, dscales). They share their work: leaving one out saves little."""
    x, codewords, scales, shares = cache
    N, H, W, C = x.shape
    checks.upstream("encoding_backward", dy, (N, C, scales.size), x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_blas)
    dx, dd, ds = backward(dy.transpose(0, 2, 1), x.reshape(N, H * W, C), codewords, scales, shares)
    return dx.reshape(x.shape) if need[0] else None, dd if need[1] else None, ds if need[2] else None
