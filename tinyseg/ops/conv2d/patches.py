r"""Convolution as matrix products: gather the patches that the kernel sees, and multiply them by the weights.

A block of output pixels needs the matrix whose rows are their patches,

    y[m, :] = sum over t, c of  patch[m, (t, c)] * w[(t, c), :]        m: pixel of the block, t: tap (r, s)

which is a product that BLAS does at full speed. The patch matrix of a whole layer would be R * S times the input;
that of a block of pixels stays in the cache, and every thread has its own.

All three passes, of convolution and of transposed convolution, are one of two loops:

* `_gather_product`: out[i, j] = sum over taps of src[i * step + offset(r), j * step + offset(s)] @ weights(r, s).
  Forward, src is x, the step is the stride and offset(r) = r * dilation - padding. For the gradient in x, input
  row h received tap r from output row p where  h = p * stride - padding + r * dilation.  The rows
  h = a, a + stride, ... (one *phase* a) all meet the same taps r, those for which the stride divides
  a + padding - r * dilation,  and the i-th of them meets r at  p = i + (a + padding - r * dilation) / stride.
  So each phase is the same loop over dy, with step 1 and some of the taps: a gather, with no race between
  threads and no multiplication by zero.
* `_patch_products`: the gradient in w, the sum over all output pixels of patch^T dy. Blocks of rows are summed
  apart and then together, in an order that depends on the shape alone.

Cost: 2 N P Q O (C/G) R S FLOPs each. Sources: Chellapilla, Puri & Simard, "High performance convolutional neural
networks for document processing", IWFHR 2006 (patches); Dumoulin & Visin 2016, chapter 4 (transposed).
"""

import numpy as np

from tinyseg.backend import Array, kernel, prange
from tinyseg.ops.geometry import Window

BLOCK = 128  # pixels of a patch matrix: BLAS is near its full speed, the patches of 64 channels fill 300 kB


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    out_channels = w.shape[-1]
    y = np.empty((len(x), *window.out, out_channels), x.dtype)
    rows, columns = (
        np.arange(kernel) * dilation - before
        for kernel, dilation, before in zip(
            window.kernel, window.dilation, (window.padding.top, window.padding.left), strict=True
        )
    )
    matrices = _group_matrices(w, groups)
    _gather_product(
        np.ascontiguousarray(x), rows, columns, window.stride, matrices, _bias(b, y), y, (0, 0), (1, 1)
    )
    return y


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    dy = np.ascontiguousarray(dy)
    channels = w.shape[2] * groups
    dx = np.empty((len(dy), *window.size, channels), dy.dtype)
    bias = _bias(b, dx)
    # w[r, s, c, (g, o)] turned to [r, s, o, (g, c)]: input and output channels change places inside each group.
    turned = w.reshape(*w.shape[:3], groups, -1).transpose(0, 1, 4, 3, 2).reshape(*w.shape[:2], -1, channels)
    for row_phase in range(min(window.stride[0], window.size[0])):
        r, rows = _taps_of_phase(row_phase, window.padding.top, window, axis=0)
        for column_phase in range(min(window.stride[1], window.size[1])):
            s, columns = _taps_of_phase(column_phase, window.padding.left, window, axis=1)
            matrices = _group_matrices(turned[r][:, s], groups)
            phase = (row_phase, column_phase)
            _gather_product(dy, rows, columns, (1, 1), matrices, bias, dx, phase, window.stride)
    return dx


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    taps = window.kernel[0] * window.kernel[1]
    in_group, out_group = x.shape[-1] // groups, dy.shape[-1] // groups
    # As many partial sums as threads could share, but not more than 32 MB of them.
    elements = taps * x.shape[-1] * out_group
    parts = min(16, len(dy) * window.out[0], max(2, 2**23 // elements))
    partial = np.zeros((parts, groups, taps * in_group, out_group), x.dtype)
    origin = (-window.padding.top, -window.padding.left)
    _patch_products(x, origin, window.kernel, window.stride, window.dilation, dy, partial)
    dw = partial.sum(axis=0)  # G (R S C/G) O/G
    return np.ascontiguousarray(dw.transpose(1, 0, 2)).reshape(*window.kernel, in_group, -1)


def _taps_of_phase(phase: int, before: int, window: Window, axis: int) -> tuple[Array, Array]:
    """The taps r that reach input elements h = phase (mod stride), and the offset of each in the output."""
    taps = np.arange(window.kernel[axis])
    offsets, remainder = np.divmod(phase + before - taps * window.dilation[axis], window.stride[axis])
    return taps[remainder == 0], offsets[remainder == 0]


def _group_matrices(w: Array, groups: int) -> Array:
    """Weights R S C/G O as one matrix (R S C/G, O/G) for each group."""
    matrix = w.reshape(w.shape[0] * w.shape[1] * w.shape[2], groups, w.shape[3] // groups)
    return np.ascontiguousarray(matrix.transpose(1, 0, 2))


def _bias(b: Array | None, out: Array) -> Array:
    return np.zeros(out.shape[-1], out.dtype) if b is None else np.ascontiguousarray(b)


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _gather_product(src, rows, columns, step, matrices, bias, out, start, stride):
    """out[n, start + i*stride] = bias + sum over taps of src[n, i*step + tap] @ matrices, for every i of the grid.

    src: N H W (G K), out: N H' W' (G L), matrices: G (taps K) L; rows, columns: the offsets of the taps.
    """
    images, height, width, _ = src.shape
    groups, length, out_group = matrices.shape
    in_group = src.shape[3] // groups
    grid_rows = (out.shape[1] - start[0] + stride[0] - 1) // stride[0]
    grid_columns = (out.shape[2] - start[1] + stride[1] - 1) // stride[1]
    pixels = images * grid_rows * grid_columns
    for block in prange((pixels + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        count = min(BLOCK, pixels - first)
        patches = np.empty((count, length), src.dtype)
        products = np.empty((count, out_group), src.dtype)
        for g in range(groups):
            for m in range(count):
                n, pixel = divmod(first + m, grid_rows * grid_columns)
                i, j = divmod(pixel, grid_columns)
                k = 0
                for row in rows:
                    h = i * step[0] + row
                    for column in columns:
                        v = j * step[1] + column
                        if 0 <= h < height and 0 <= v < width:
                            for c in range(in_group):
                                patches[m, k + c] = src[n, h, v, g * in_group + c]
                        else:
                            for c in range(in_group):
                                patches[m, k + c] = 0
                        k += in_group
            np.dot(patches, matrices[g], products)
            for m in range(count):
                n, pixel = divmod(first + m, grid_rows * grid_columns)
                i, j = divmod(pixel, grid_columns)
                h = start[0] + i * stride[0]
                v = start[1] + j * stride[1]
                for o in range(out_group):
                    out[n, h, v, g * out_group + o] = products[m, o] + bias[g * out_group + o]


@kernel
def _patch_products(x, origin, kernel_size, stride, dilation, dy, partial):
    """partial[part, g] += patches^T @ dy over the output rows of each part, one block of pixels at a time."""
    _, height, width, _ = x.shape
    images, out_height, out_width, _ = dy.shape
    parts, groups, length, out_group = partial.shape
    in_group = x.shape[3] // groups
    pixels = images * out_height * out_width
    blocks = (pixels + BLOCK - 1) // BLOCK
    for part in prange(parts):
        product = np.empty((length, out_group), x.dtype)
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            first = block * BLOCK
            count = min(BLOCK, pixels - first)
            patches = np.empty((count, length), x.dtype)
            gradients = np.empty((count, out_group), x.dtype)
            for g in range(groups):
                for m in range(count):
                    n, pixel = divmod(first + m, out_height * out_width)
                    p, q = divmod(pixel, out_width)
                    for o in range(out_group):
                        gradients[m, o] = dy[n, p, q, g * out_group + o]
                    k = 0
                    for r in range(kernel_size[0]):
                        h = origin[0] + p * stride[0] + r * dilation[0]
                        for s in range(kernel_size[1]):
                            v = origin[1] + q * stride[1] + s * dilation[1]
                            if 0 <= h < height and 0 <= v < width:
                                for c in range(in_group):
                                    patches[m, k + c] = x[n, h, v, g * in_group + c]
                            else:
                                for c in range(in_group):
                                    patches[m, k + c] = 0
                            k += in_group
                np.dot(patches.T, gradients, product)
                for k in range(length):
                    for o in range(out_group):
                        partial[part, g, k, o] += product[k, o]
