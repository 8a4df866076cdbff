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
    y = np.empty((len(x), *window.out, groups, w.shape[-1] // groups), x.dtype)
    rows, columns = _tap_offsets(window)
    matrices = _group_matrices(w, groups)
    _gather_product(
        _split_groups(x, groups), rows, columns, window.stride, matrices, _bias(b, y), y, (0, 0), (1, 1)
    )
    return _merge_groups(y)


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    dx = np.empty((len(dy), *window.size, groups, w.shape[2]), dy.dtype)
    bias = _bias(b, dx)
    dy = _split_groups(dy, groups)
    # w[r, s, c, (g, o)] turned to [r, s, o, (g, c)]: input and output channels change places inside each group.
    turned = w.reshape(*w.shape[:3], groups, -1).transpose(0, 1, 4, 3, 2)
    turned = turned.reshape(*w.shape[:2], -1, groups * w.shape[2])
    for row_phase in range(min(window.stride[0], window.size[0])):
        r, rows = _taps_of_phase(row_phase, window.padding.top, window, axis=0)
        for column_phase in range(min(window.stride[1], window.size[1])):
            s, columns = _taps_of_phase(column_phase, window.padding.left, window, axis=1)
            matrices = _group_matrices(turned[r][:, s], groups)
            phase = (row_phase, column_phase)
            _gather_product(dy, rows, columns, (1, 1), matrices, bias, dx, phase, window.stride)
    return _merge_groups(dx)


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    x, dy = _split_groups(x, groups), _split_groups(dy, groups)
    taps = window.kernel[0] * window.kernel[1]
    in_group, out_group = x.shape[-1], dy.shape[-1]
    # As many partial sums as threads could share, but not more than 32 MB of them.
    elements = groups * taps * in_group * out_group
    parts = min(16, len(dy) * window.out[0], max(2, 2**23 // elements))
    partial = np.zeros((parts, groups, taps * in_group, out_group), x.dtype)
    _patch_products(x, *_tap_offsets(window), window.stride, dy, partial)
    dw = partial.sum(axis=0)  # G (R S C/G) O/G
    return np.ascontiguousarray(dw.transpose(1, 0, 2)).reshape(*window.kernel, in_group, -1)


def _tap_offsets(window: Window) -> tuple[Array, Array]:
    """Where the taps r and s lie in the input, for output row and column 0."""
    r, s = (np.arange(taps) * dilation for taps, dilation in zip(window.kernel, window.dilation, strict=True))
    return r - window.padding.top, s - window.padding.left


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
    """One number for each group and channel of out (..., G, L)."""
    return np.zeros(out.shape[-2:], out.dtype) if b is None else np.ascontiguousarray(b).reshape(out.shape[-2:])


def _split_groups(image: Array, groups: int) -> Array:
    """N H W (G K) to N H W G K."""
    image = np.ascontiguousarray(image)
    return image.reshape(*image.shape[:3], groups, image.shape[3] // groups)


def _merge_groups(image: Array) -> Array:
    """N H W G K to N H W (G K)."""
    return image.reshape(*image.shape[:3], -1)


# -------------------------------------------------------------------------------------------------------- Numba
# Groups have an axis of their own here: innermost loops then index arrays by their loop variable and not by a sum,
# which would be tested for being negative at every element. They copy element by element: slices take seconds to
# compile.


@kernel
def _gather_product(src, rows, columns, step, matrices, bias, out, start, stride):
    """out[n, start + i*stride] = bias + sum over taps of src[n, i*step + tap] @ matrices, for every i of the grid.

    src: N H W G K, out: N H' W' G L, matrices: G (taps K) L, bias: G L; rows, columns: the offsets of the taps.
    """
    images, _, _, groups, in_group = src.shape
    _, length, out_group = matrices.shape
    grid_rows = (out.shape[1] - start[0] + stride[0] - 1) // stride[0]
    grid_columns = (out.shape[2] - start[1] + stride[1] - 1) // stride[1]
    pixels = images * grid_rows * grid_columns
    for block in prange((pixels + BLOCK - 1) // BLOCK):
        first = np.int64(block) * BLOCK
        count = min(BLOCK, pixels - first)
        patches = np.empty((count, rows.size * columns.size, in_group), src.dtype)
        products = np.empty((count, out_group), src.dtype)
        for g in range(groups):
            for m in range(count):
                n, pixel = divmod(first + m, grid_rows * grid_columns)
                i, j = divmod(pixel, grid_columns)
                _copy_patch(src, n, i * step[0], j * step[1], g, rows, columns, patches, m)
            np.dot(patches.reshape(count, length), matrices[g], products)
            for m in range(count):
                n, pixel = divmod(first + m, grid_rows * grid_columns)
                i, j = divmod(pixel, grid_columns)
                h = start[0] + i * stride[0]
                v = start[1] + j * stride[1]
                for o in range(out_group):
                    out[n, h, v, g, o] = products[m, o] + bias[g, o]


@kernel
def _patch_products(src, rows, columns, step, dy, partial):
    """partial[part, g] += patches^T @ dy over the output pixels of each part, one block of them at a time.

    src: N H W G K, dy: N P Q G L, partial: parts G (taps K) L.
    """
    images, out_height, out_width, groups, out_group = dy.shape
    parts, _, length, _ = partial.shape
    pixels = images * out_height * out_width
    blocks = (pixels + BLOCK - 1) // BLOCK
    for part in prange(parts):
        product = np.empty((length, out_group), src.dtype)
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            first = np.int64(block) * BLOCK
            count = min(BLOCK, pixels - first)
            patches = np.empty((count, rows.size * columns.size, src.shape[4]), src.dtype)
            gradients = np.empty((count, out_group), src.dtype)
            for g in range(groups):
                for m in range(count):
                    n, pixel = divmod(first + m, out_height * out_width)
                    p, q = divmod(pixel, out_width)
                    _copy_patch(src, n, p * step[0], q * step[1], g, rows, columns, patches, m)
                    for o in range(out_group):
                        gradients[m, o] = dy[n, p, q, g, o]
                np.dot(patches.reshape(count, length).T, gradients, product)
                for k in range(length):
                    for o in range(out_group):
                        partial[part, g, k, o] += product[k, o]


@kernel(inline=True)
def _copy_patch(src, n, top, left, g, rows, columns, patches, m):
    """patches[m] = what the taps see in group g of image n when tap (0, 0) lies at (top, left); 0 outside."""
    _, height, width, _, in_group = src.shape
    t = 0
    for row in rows:
        h = top + row
        for column in columns:
            v = left + column
            if 0 <= h < height and 0 <= v < width:
                for c in range(in_group):
                    patches[m, t, c] = src[n, h, v, g, c]
            else:
                for c in range(in_group):
                    patches[m, t, c] = 0
            t += 1
