"""Operators on the tape: each function lifts one pair of `tinyseg.ops` from arrays to tensors.

The arguments, shapes and errors are those of the operator of the same name; here inputs may be tensors or
arrays, and the result is a tensor that can be differentiated. Labels are plain integer arrays.

    from tinyseg import functional as F

    y = F.relu(F.conv2d(x, w, b, padding=1))
    loss = F.cross_entropy(logits, labels, ignore_label=255)

Arrays on a GPU may be bfloat16. Operators that have no kernels for it, and all losses, calculate in float32 then:
the first answer in bfloat16 again, a loss stays float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyseg import crf, cuda, ops
from tinyseg.backend import Array
from tinyseg.tape import Tensor, apply, record, recording

Input = Tensor | Array
"""What an array argument may be."""

# ---------------------------------------------------------------------------------------- convolution and products


def conv2d(x: Input, w: Input, b: Input | None = None, **options: Any) -> Tensor:
    return apply(ops.conv2d, ops.conv2d_backward, x, w, b, **options)


def conv_transpose2d(x: Input, w: Input, b: Input | None = None, **options: Any) -> Tensor:
    return apply(ops.conv_transpose2d, ops.conv_transpose2d_backward, x, w, b, **options)


def linear(x: Input, w: Input, b: Input | None = None) -> Tensor:
    return apply(ops.linear, ops.linear_backward, x, w, b)


def encoding(x: Input, codewords: Input, scales: Input) -> Tensor:
    return _as(x, apply(ops.encoding, ops.encoding_backward, widened(x), codewords, scales))


# -------------------------------------------------------------------------------------------- pooling and resizing


def max_pool2d(x: Input, kernel: Any, **options: Any) -> Tensor:
    return max_pool2d_with_index(x, kernel, **options)[0]


def max_pool2d_with_index(x: Input, kernel: Any, **options: Any) -> tuple[Tensor, Array]:
    """The maxima, and where each one was found: the `index` that `max_unpool2d` takes."""
    y, cache = ops.max_pool2d(_array(x), kernel, **options)
    return record(y, cache, ops.max_pool2d_backward, [x]), cache.index


def max_unpool2d(x: Input, index: Array, kernel: Any, **options: Any) -> Tensor:
    return apply(ops.max_unpool2d, ops.max_unpool2d_backward, x, index=index, kernel=kernel, **options)


def avg_pool2d(x: Input, kernel: Any, **options: Any) -> Tensor:
    return apply(ops.avg_pool2d, ops.avg_pool2d_backward, x, kernel=kernel, **options)


def adaptive_avg_pool2d(x: Input, size: Any) -> Tensor:
    return apply(ops.adaptive_avg_pool2d, ops.adaptive_avg_pool2d_backward, x, size=size)


def adaptive_max_pool2d(x: Input, size: Any) -> Tensor:
    return apply(ops.adaptive_max_pool2d, ops.adaptive_max_pool2d_backward, x, size=size)


def global_avg_pool2d(x: Input) -> Tensor:
    return apply(ops.global_avg_pool2d, ops.global_avg_pool2d_backward, x)


def global_max_pool2d(x: Input) -> Tensor:
    return apply(ops.global_max_pool2d, ops.global_max_pool2d_backward, x)


def resize(x: Input, size: Any = None, **options: Any) -> Tensor:
    return apply(ops.resize, ops.resize_backward, x, size=size, **options)


def pad(x: Input, padding: Any, **options: Any) -> Tensor:
    return apply(ops.pad, ops.pad_backward, x, padding=padding, **options)


def crop(x: Input, sides: Any = None, **options: Any) -> Tensor:
    return apply(ops.crop, ops.crop_backward, x, sides=sides, **options)


def gaussian_blur(x: Input, **options: Any) -> Tensor:
    return _as(x, apply(ops.gaussian_blur, ops.gaussian_blur_backward, widened(x), **options))


def spatial_gradient(x: Input) -> Tensor:
    return _as(x, apply(ops.spatial_gradient, ops.spatial_gradient_backward, widened(x)))


def gradient_magnitude(x: Input, **options: Any) -> Tensor:
    return _as(x, apply(ops.gradient_magnitude, ops.gradient_magnitude_backward, widened(x), **options))


# --------------------------------------------------------------------------------------------------- normalisation


def batch_norm(x: Input, gamma: Input, beta: Input, **options: Any) -> tuple[Tensor, Array, Array]:
    """The result, and the mean and (biased) variance that it was normalised with: arrays (C,), not on the tape."""
    y, cache = ops.batch_norm(_array(x), _array(gamma), _array(beta), **options)
    return record(y, cache, ops.batch_norm_backward, [x, gamma, beta]), cache.mean, cache.var


def group_norm(x: Input, gamma: Input, beta: Input, **options: Any) -> Tensor:
    return apply(ops.group_norm, ops.group_norm_backward, x, gamma, beta, **options)


def local_response_norm(x: Input, **options: Any) -> Tensor:
    return _as(x, apply(ops.local_response_norm, ops.local_response_norm_backward, widened(x), **options))


# ---------------------------------------------------------------------------------------------- element by element


def relu(x: Input) -> Tensor:
    return apply(ops.relu, ops.relu_backward, x)


def leaky_relu(x: Input, **options: Any) -> Tensor:
    return apply(ops.leaky_relu, ops.leaky_relu_backward, x, **options)


def sigmoid(x: Input) -> Tensor:
    return apply(ops.sigmoid, ops.sigmoid_backward, x)


def tanh(x: Input) -> Tensor:
    return apply(ops.tanh, ops.tanh_backward, x)


def softmax(x: Input) -> Tensor:
    return apply(ops.softmax, ops.softmax_backward, x)


def log_softmax(x: Input) -> Tensor:
    return apply(ops.log_softmax, ops.log_softmax_backward, x)


def gumbel_softmax(x: Input, **options: Any) -> Tensor:
    return _as(x, apply(ops.gumbel_softmax, ops.gumbel_softmax_backward, widened(x), **options))


def add(a: Input, b: Input | float) -> Tensor:
    """a + b. A plain number takes the type of a."""
    return apply(ops.add, ops.add_backward, a, _number(b, like=a))


def mul(a: Input, b: Input | float) -> Tensor:
    """a * b. A plain number takes the type of a: `mul(auxiliary_loss, 0.4)`."""
    return apply(ops.mul, ops.mul_backward, a, _number(b, like=a))


def cast(x: Input, *, dtype: Any) -> Tensor:
    return apply(ops.cast, ops.cast_backward, x, dtype=dtype)


def widened(x: Input) -> Tensor:
    """x, in float32 where it is stored in bfloat16."""
    if _is_bfloat16(x):
        return cast(x, dtype="float32")
    return x if isinstance(x, Tensor) else Tensor(x)


def dropout(x: Input, **options: Any) -> Tensor:
    return apply(ops.dropout, ops.dropout_backward, x, **options)


# --------------------------------------------------------------------------------------------- joining and cutting


def concat(arrays: Sequence[Input], *, axis: int = -1) -> Tensor:
    if len(arrays) == 1:
        return arrays[0] if isinstance(arrays[0], Tensor) else Tensor(arrays[0])
    y, cache = ops.concat([_array(x) for x in arrays], axis=axis)
    return record(y, cache, ops.concat_backward, arrays)


def slice(x: Input, ranges: Any) -> Tensor:
    return apply(ops.slice, ops.slice_backward, x, ranges=ranges)


def reshape(x: Input, shape: Sequence[int]) -> Tensor:
    return apply(ops.reshape, ops.reshape_backward, x, shape=shape)


# ------------------------------------------------------------------------------------------------------ dense CRFs


def refine(logits: Input, smoothness: Input, appearance: Input, log_bandwidths: Input, **options: Any) -> Tensor:
    """Of `tinyseg.crf`. Where no gradient will be asked for, up to a number for each pixel, and faster."""
    inputs = (logits, smoothness, appearance, log_bandwidths)
    if not recording(*inputs):
        return Tensor(crf.refine_without_gradient(*map(_array, inputs), **options))
    return apply(crf.refine, crf.refine_backward, *inputs, **options)


# ---------------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: Input, labels: Array, **options: Any) -> Tensor:
    return apply(ops.cross_entropy, ops.cross_entropy_backward, widened(logits), labels=labels, **options)


def bce_with_logits(logits: Input, targets: Array, **options: Any) -> Tensor:
    return apply(ops.bce_with_logits, ops.bce_with_logits_backward, widened(logits), targets=targets, **options)


def dice(probabilities: Input, labels: Array, **options: Any) -> Tensor:
    return apply(ops.dice, ops.dice_backward, widened(probabilities), labels=labels, **options)


def balanced_edge_loss(logits: Input, edges: Array, **options: Any) -> Tensor:
    return apply(ops.balanced_edge_loss, ops.balanced_edge_loss_backward, widened(logits), edges=edges, **options)


def dual_task_loss(logits: Input, labels: Array, **options: Any) -> Tensor:
    return apply(ops.dual_task_loss, ops.dual_task_loss_backward, widened(logits), labels=labels, **options)


def _array(value: Input) -> Array:
    return value.data if isinstance(value, Tensor) else value


def _is_bfloat16(value: Input) -> bool:
    dtype = _array(value).dtype
    return dtype.kind == "V" and dtype == cuda.bfloat16()


def _as(x: Input, y: Tensor) -> Tensor:
    """y, in bfloat16 where x is."""
    return cast(y, dtype="bfloat16") if _is_bfloat16(x) else y


def _number(value: Input | float, *, like: Input) -> Input:
    return cuda.constant_like(np.array(value), _array(like)) if isinstance(value, int | float) else value
