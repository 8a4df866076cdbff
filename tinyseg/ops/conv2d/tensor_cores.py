r"""Convolution on the GPU as an implicit matrix product on tensor cores, for float32 and bfloat16.

The product is that of implicit_gemm.py. Tensor cores multiply small matrices with one instruction, 16 x 8 by
8 x 8, at many times the rate of all other multiplications; but they take numbers in TF32, which has float's
exponent and 10 bits of mantissa where float has 23, or in bfloat16. So there are three kinds:

* By default each number is split in two, x = large + small, both TF32, and three products are added:

      a b  ~  large(a) large(b) + large(a) small(b) + small(a) large(b)

  What is left out, small(a) small(b), lies below float's last bit. This is as accurate as float32, with three
  multiplications for one. Tensor cores cut off sums instead of rounding them to the nearest, which adds up over
  long sums; so only 32 terms are summed there, and those sums added as usual.
* Inside `cuda.allow_tf32()` numbers are just rounded to TF32. Results then have three digits: relative errors of
  3e-4, which training hardly notices, at about three times the speed.
* Arrays of bfloat16 are multiplied as they are, twice as many at a time, with weights that are rounded to it for
  the occasion. Products are exact and sums float32; results are rounded when they are stored, but for the gradient
  of the weights, which is float32 as they are.

A block copies the next slices to shared memory while it multiplies one: the asynchronous copies of compute
capability 8.0 need no registers, and fill in zeros where a tap lies outside of the image. Groups must have a
multiple of 4 channels on both sides (of 8 in bfloat16), for copies of 16 bytes. Taps that fall outside of the
image for all pixels of a block are left out: a dilation of 18 on 33 x 33 pixels has many of them.

Infinity times a finite number becomes NaN, since infinity minus itself has no value.

Cost: 2 N P Q O (C/G) R S FLOPs each, or three times as many. Sources: Ootomo & Yokota, "Recovering single
precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", IJHPCA 2022 (the
split, and sums outside of tensor cores); NVIDIA, "Parallel thread execution ISA", mma.m16n8k8, mma.m16n8k16 and
ldmatrix (which lane holds what).
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops.conv2d import gather, implicit_gemm
from tinyseg.ops.geometry import Window

CAPABILITY = 80  # asynchronous copies, and TF32
SHARED = 3 * (128 + 64) * 32 * 4  # bytes: three slices of both matrices

_cuda = cuda.KernelFile(
    __file__,
    scalars=["float", "bfloat16"],
    headers=["taps.cuh", "tiles.cuh", "fragments.cuh"],
    unused=[{"SCALAR": "bfloat16", "TERMS": 3}],
    TERMS=(3, 1),
)


def unsuitable(dtype: np.dtype, w: Array, groups: int, window: Window | None = None) -> str | None:
    """Why arrays of this type cannot be convolved with weights (R, S, C/G, O) here; None if they can."""
    return unfit(dtype, w.shape[2], w.shape[3] // groups)


def unfit(dtype: np.dtype, in_group: int, out_group: int) -> str | None:
    """Why arrays of this type, with so many channels in each group, cannot be."""
    if cuda.capability() < CAPABILITY:
        return f"it needs a GPU of compute capability {CAPABILITY / 10}, this one has {cuda.capability() / 10}"
    if dtype.name not in ("float32", "bfloat16"):
        return f"it is for float32 and bfloat16, not {dtype}"
    run = 16 // dtype.itemsize
    if in_group % run or out_group % run:
        return f"each group must have a multiple of {run} channels on both sides, not {in_group} and {out_group}"
    return None


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    rounded = cuda.contiguous(w, x.dtype)
    return gather.product(_cuda, x, rounded, b, gather.forward_axes(window), groups, **_settings(x.dtype))


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    turned, axes = implicit_gemm.turn(w, groups, dy.dtype), gather.data_gradient_axes(window)
    return gather.product(_cuda, dy, turned, b, axes, groups, **_settings(dy.dtype))


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    return gather.weight_gradient(_cuda, x, dy, window, groups, **_settings(x.dtype))


def _settings(dtype: np.dtype) -> dict[str, int]:
    """Of a launch."""
    return {"shared": SHARED, "TERMS": terms(dtype)}


def terms(dtype: np.dtype) -> int:
    """How many products are calculated for each pair of numbers."""
    return 1 if dtype.name == "bfloat16" or cuda.tf32_is_allowed() else 3
