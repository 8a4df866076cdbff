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
they are near 0 there. On a GPU the kernels take the residuals where they need them, and nothing cancels.

Cost: 4 K C FLOPs per pixel forward, 10 K C backward, all of it in BLAS; with residuals 6 K C and 14 K C.

Source: Zhang, Xue & Dana, "Deep TEN: texture encoding network", CVPR 2017, equations 1 to 4; Zhang, Dana, Shi et
al., "Context encoding for semantic segmentation", CVPR 2018.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, sums
from tinyseg.ops.arithmetic import add, mul
from tinyseg.ops.softmax import SoftmaxCache, softmax, softmax_backward


class EncodingCache(NamedTuple):
    x: Array  # N H W C
    codewords: Array  # K C
    scales: Array  # K
    shares: Array  # N M K, M = H W


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(x: Array, d: Array, s: Array) -> tuple[Array, Array]:
    """y (N, C, K) and the shares (N, M, K), for x (N, M, C)."""
    r = x[:, :, None] - d  # N M K C
    z = s * np.sum(r * r, axis=-1)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    a = e / e.sum(axis=-1, keepdims=True)
    return np.einsum("nmk,nmkc->nck", a, r), a


def _backward_reference(dy: Array, x: Array, d: Array, s: Array, a: Array) -> tuple[Array, Array, Array]:
    r = x[:, :, None] - d
    g = np.einsum("nck,nmkc->nmk", dy, r)
    dz = a * (g - np.sum(a * g, axis=-1, keepdims=True))
    dr = a[..., None] * dy.transpose(0, 2, 1)[:, None] + 2 * (s * dz)[..., None] * r
    ds = np.sum(dz * np.sum(r * r, axis=-1), axis=(0, 1))
    return dr.sum(axis=2), -dr.sum(axis=(0, 1)), ds


# ----------------------------------------------------------------------------------------- as products of matrices


def _forward_blas(x: Array, d: Array, s: Array) -> tuple[Array, Array]:
    x, d = _centred(x, d)
    z = s * _squares(x, d)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    a = e / e.sum(axis=-1, keepdims=True)
    return x.transpose(0, 2, 1) @ a - a.sum(axis=1)[:, None] * d.T, a


def _backward_blas(dy: Array, x: Array, d: Array, s: Array, a: Array) -> tuple[Array, Array, Array]:
    x, d = _centred(x, d)
    g = x @ dy - np.sum(dy * d.T, axis=1)[:, None]
    dz = a * (g - np.sum(a * g, axis=-1, keepdims=True))
    pull = 2 * s * dz  # N M K: dr = a dy + pull r
    dx = a @ dy.transpose(0, 2, 1) - pull @ d + pull.sum(axis=-1, keepdims=True) * x
    from_x = x.transpose(0, 2, 1) @ pull - pull.sum(axis=1)[:, None] * d.T  # N C K: sum over i of pull r
    dd = -(a.sum(axis=1)[:, None] * dy + from_x).sum(axis=0).T
    return dx, dd, np.sum(dz * _squares(x, d), axis=(0, 1))


def _centred(x: Array, d: Array) -> tuple[Array, Array]:
    """Both seen from the mean of the codewords, which changes no residual, and makes the numbers smaller."""
    centre = d.mean(axis=0)
    return x - centre, d - centre


def _squares(x: Array, d: Array) -> Array:
    """|x - d|^2, N M K."""
    squares = np.sum(x * x, axis=-1, keepdims=True) - 2 * (x @ d.T) + np.sum(d * d, axis=-1)
    return np.maximum(squares, 0)  # what rounding makes negative


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)

TILE = 32  # pixels, channels or codewords of a block of threads
CHUNK = 256  # pixels that one block sums


def _forward_cuda(x: Array, d: Array, s: Array) -> tuple[Array, Array]:
    x, d = cuda.contiguous(x), cuda.contiguous(d)
    squares = _squares_cuda(x, d)
    a, _ = softmax(mul(squares, s)[0])
    N, _, C = x.shape
    partial = _sums_cuda(a, x, d, None, None)
    return sums.over_middle(partial, N, partial.shape[1], C * len(d)).reshape(N, C, len(d)), a


def _backward_cuda(dy: Array, x: Array, d: Array, s: Array, a: Array) -> tuple[Array, Array, Array]:
    dy, x, d = cuda.contiguous(dy), cuda.contiguous(x), cuda.contiguous(d)
    g = cuda.empty(a.shape, a.dtype)
    squares = _squares_cuda(x, d, dy, g)
    dz = softmax_backward(g, SoftmaxCache(a))
    pull, _ = mul(dz, add(s, s)[0])  # dr = a dy + pull r
    (N, M, C), K = x.shape, len(d)
    dx = cuda.empty(x.shape, x.dtype)
    blocks = (_tiles(M), _tiles(C), N)
    _cuda.launch("encoding_input_gradient", a, pull, x, d, dy, M, C, K, dx, blocks=blocks)
    partial = _sums_cuda(pull, x, d, a, dy)
    dd = sums.over_middle(partial, 1, N * partial.shape[1], C * K, factor=-1.0).reshape(C, K)
    ds = sums.over_middle(mul(dz, squares)[0], 1, N * M, K).reshape(K)
    return dx, cuda.contiguous(dd.transpose(1, 0)), ds


def _squares_cuda(x: Array, d: Array, dy: Array | None = None, g: Array | None = None) -> Array:
    """q, (N, M, K). With dy (N, C, K), g is filled, too."""
    (N, M, C), K = x.shape, len(d)
    q = cuda.empty((N, M, K), x.dtype)
    _cuda.launch("encoding_products", x, d, dy, M, C, K, q, g, blocks=(_tiles(M), _tiles(K), N))
    return q


def _sums_cuda(weights: Array, x: Array, d: Array, shares: Array | None, dy: Array | None) -> Array:
    """Sums of weights r + shares dy over chunks of the pixels, (N, chunks, C, K)."""
    (N, M, C), K = x.shape, len(d)
    chunks = -(-M // CHUNK)
    partial = cuda.empty((N, chunks, C, K), x.dtype)
    blocks = (chunks, _tiles(C) * _tiles(K), N)
    _cuda.launch("encoding_sums", weights, x, d, shares, dy, M, C, K, partial, blocks=blocks)
    return partial


def _tiles(length: int) -> int:
    return -(-length // TILE)


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
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_blas, cuda=_forward_cuda)
    y, shares = forward(cuda.reshape(x, (N, H * W, C)), codewords, scales)
    return y, EncodingCache(x, codewords, scales, shares)


def encoding_backward(
    dy: Array, cache: EncodingCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dcodewords, dscales). They share their work: leaving one out saves little."""
    x, codewords, scales, shares = cache
    N, H, W, C = x.shape
    checks.upstream("encoding_backward", dy, (N, C, scales.size), x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_blas, cuda=_backward_cuda)
    dx, dd, ds = backward(dy, cuda.reshape(x, (N, H * W, C)), codewords, scales, shares)
    return dx.reshape(x.shape) if need[0] else None, dd if need[1] else None, ds if need[2] else None
