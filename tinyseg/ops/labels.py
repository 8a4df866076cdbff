"""Integer labels for the losses: their checks, the label to ignore, the weights of pixels and of classes."""

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks


def labels_and_weights(
    operator: str,
    labels: Array,
    scores: Array,
    ignore_label: int | None,
    pixel_weights: Array | None,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """Labels (...) for scores (..., C), as int64, and the weight of each pixel (...), in the type of the scores.

    A pixel's weight is that of the pixel times that of its class. A pixel with the label to ignore gets weight 0,
    and label 0, so that its label can be used as an index.

    On the CPU a label that is no class, or a negative weight, is an error. To find one on a GPU would mean to wait
    for it in every step. There it makes the weight, and so the loss, NaN.
    """
    if scores.ndim < 1:
        raise ValueError(f"{operator}: the scores must have the axes (..., C), got a single number")
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{operator}: labels must be an array of integers, one class number per pixel, got {kind}")
    checks.shape(operator, "labels", labels, scores.shape[:-1], f"one for each pixel of the scores {scores.shape}")
    if ignore_label is not None and not isinstance(ignore_label, int | np.integer):
        raise TypeError(f"{operator}: ignore_label must be an integer or None, got {ignore_label!r}")
    prepare = backend.choose(scores, numpy=_prepare, numba=_prepare, cuda=_prepare_cuda)
    return prepare(operator, labels, scores, ignore_label, pixel_weights, class_weights)


def _prepare(
    operator: str,
    labels: Array,
    scores: Array,
    ignore_label: int | None,
    pixel_weights: Array | None,
    of_classes: Array | None,
) -> tuple[Array, Array]:
    ignored = None if ignore_label is None else labels == ignore_label
    _check_range(operator, labels, ignored, scores.shape[-1], ignore_label)
    weights = _pixel_weights(operator, pixel_weights, labels.shape, scores.dtype)
    labels = np.require(labels, np.int64, ["C", "W"])  # writable: Numba compiles read-only arrays anew
    if ignored is not None:
        labels, weights = np.where(ignored, 0, labels), np.where(ignored, weights.dtype.type(0), weights)
    if of_classes is not None:
        weights = weights * class_weights(operator, of_classes, scores)[labels]
    return labels, weights


def scaled_loss(total: float, weights: Array, mean: bool) -> tuple[Array, float]:
    """The sum of all losses, divided by the sum of the weights for the mean, and the factor that does it."""
    scale = 1.0
    if mean:
        total_weight = weights.sum(dtype=np.float64)
        scale = 0.0 if total_weight == 0 else float(1 / total_weight)
    return np.array(total * scale, weights.dtype), scale


def class_weights(operator: str, weights: Array, scores: Array) -> Array:
    """The weight of each class (C,), in the type of the scores."""
    weights = np.asarray(weights, dtype=scores.dtype)
    checks.shape(operator, "class_weights", weights, scores.shape[-1:], f"one for each class of {scores.shape}")
    check_not_negative(operator, "class_weights", weights)
    return weights


def _pixel_weights(operator: str, weights: Array | None, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    if weights is None:
        return np.ones(shape, dtype)
    weights = np.require(weights, dtype, ["C", "W"])
    checks.shape(operator, "pixel_weights", weights, shape, "that of the labels")
    check_not_negative(operator, "pixel_weights", weights)
    return weights


def _check_range(
    operator: str, labels: Array, ignored: Array | None, classes: int, ignore_label: int | None
) -> None:
    if labels.min() >= 0 and labels.max() < classes:
        return
    outside = (labels < 0) | (labels >= classes)
    if ignored is not None:
        outside &= ~ignored
    if outside.any():
        values = np.unique(labels[outside])
        listing = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        remedy = (
            "pass ignore_label= if one of them means 'not labelled'"
            if ignore_label is None
            else f"only {ignore_label} is ignored"
        )
        raise ValueError(
            f"{operator}: labels must lie in 0 .. {classes - 1}, "
            f"but {outside.sum()} of {labels.size} pixels have {listing}; {remedy}"
        )


def check_not_negative(operator: str, name: str, weights: Array) -> None:
    if weights.min() < 0:
        raise ValueError(f"{operator}: {name} must not be negative, the smallest is {weights.min():g}")


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)

MOST_BLOCKS = 528  # that sum losses: four for each of 132 multiprocessors


def _prepare_cuda(
    operator: str,
    labels: Array,
    scores: Array,
    ignore_label: int | None,
    pixel_weights: Array | None,
    of_classes: Array | None,
) -> tuple[Array, Array]:
    dtype = scores.dtype
    labels = cuda.contiguous(labels, np.int64)
    if pixel_weights is not None:
        checks.shape(operator, "pixel_weights", pixel_weights, labels.shape, "that of the labels")
        pixel_weights = cuda.contiguous(pixel_weights, dtype)
    if of_classes is not None:
        of_classes = class_weights_cuda(operator, of_classes, scores)
    indices, weights = cuda.empty(labels.shape, np.dtype(np.int64)), cuda.empty(labels.shape, dtype)
    numbers = (labels.size, scores.shape[-1], ignore_label is not None, ignore_label or 0)
    arrays = (labels, pixel_weights, of_classes)
    _cuda.launch("prepare_labels", *arrays, *numbers, indices, weights, threads=labels.size)
    return indices, weights


def class_weights_cuda(operator: str, weights: Array, scores: Array) -> Array:
    """The weight of each class (C,) on the GPU. They may be given as a NumPy array or a list, too."""
    if not cuda.on_gpu(weights):
        return cuda.constant(class_weights(operator, weights, scores))
    checks.shape(operator, "class_weights", weights, scores.shape[-1:], f"one for each class of {scores.shape}")
    return cuda.contiguous(weights, scores.dtype)


def blocks_for(threads: int) -> int:
    """How many blocks of 256 threads sum losses. The shape alone decides, and so the order of the sums."""
    return min(MOST_BLOCKS, -(-threads // 256))


def finish_loss_cuda(partial: Array, mean: bool, dtype: np.dtype) -> tuple[Array, Array]:
    """The loss, and the factor of `scaled_loss`, from the sums (2, blocks) of losses and of weights."""
    loss, scale = cuda.empty((), dtype), cuda.empty((), np.dtype(np.float64))
    _cuda.launch("finish_loss", partial, partial.shape[1], mean, loss, scale, blocks=1)
    return loss, scale
