"""The edges of tinyseg/data/edges.py on a GPU, for networks that are told where edges are.

There, a weak pixel of Canny's edges stays if it is connected with a strong one. A single block of threads follows
that for an image, until nothing changes: so nobody has to wait for the GPU to hear whether it is done.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array

_cuda = cuda.KernelFile(__file__)


def mask_edges(labels: Array, *, radius: float = 2.0, ignore_label: int | None = None) -> Array:
    """The edges of the classes in integer masks (N, H, W): bool."""
    labels = cuda.contiguous(labels, np.int64)
    edges = cuda.empty(labels.shape, np.dtype(np.bool_))
    numbers = (labels.size, *labels.shape[1:], radius, ignore_label is not None, ignore_label or 0)
    _cuda.launch("mask_edges", labels, *numbers, edges, threads=labels.size)
    return edges


def canny(images: Array, mean: Array, std: Array, *, low: float = 10.0, high: float = 100.0) -> Array:
    """The edges in normalised images (N, H, W, C): (N, H, W), 0 or 1 in their type.

    mean, std  NumPy arrays (C,): images * std + mean has values from 0 to 1
    low, high  thresholds on the sum of the two derivatives: a step of 1/255 gives 4
    """
    stored, (*shape, C) = images.dtype, images.shape
    N, H, W = shape
    if H * W >= 2**31 - 1:  # pixels are numbered from 1 on
        raise OverflowError(f"canny on the GPU takes images of fewer than 2^31 pixels, got {H} x {W}; cut them")
    images = cuda.contiguous(images, cuda.real(stored))
    tables = [cuda.constant(np.asarray(table, np.float64)) for table in (mean, std)]
    u, v = (cuda.empty(shape, np.dtype(np.float64)) for _ in range(2))
    _cuda.launch("sobel", images, *tables, u.size, H, W, C, u, v, threads=u.size)
    states, edges = cuda.empty(shape, np.dtype(np.int32)), cuda.empty(shape, images.dtype)
    _cuda.launch("thin", u, v, u.size, H, W, low, high, states, threads=u.size)
    _cuda.launch("connect", H, W, states, edges, blocks=N)
    return cuda.contiguous(edges, stored)
