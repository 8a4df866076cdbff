"""Integer labels for the losses: their checks, the label to ignore, the weights of pixels and of classes."""

import numpy as np

from tinyseg.backend import Array
from tinyseg.ops import checks


def labels_and_weights(
    operator: str,
    labels: Array,
    scores: Array,
    ignore_label: int | None,
    pixel_weights: Array | None,
) -> tuple[Array, Array]:
    """Labels (...) for scores (..., C), as int64, and the weight of each pixel (...), in the type of the scores.

    A pixel with the label to ignore gets weight 0, and label 0, so that its label can be used as an index.
    """
    if scores.ndim < 1:
        raise ValueError(f"{operator}: the scores must have the axes (..., C), got a single number")
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{operator}: labels must be an array of integers, one class number per pixel, got {kind}")
    checks.shape(operator, "labels", labels, scores.shape[:-1], f"one for each pixel of the scores {scores.shape}")
    if ignore_label is not None and not isinstance(ignore_label, int | np.integer):
        raise TypeError(f"{operator}: ignore_label must be an integer or None, got {ignore_label!r}")

    ignored = None if ignore_label is None else labels == ignore_label
    _check_range(operator, labels, ignored, scores.shape[-1], ignore_label)
    weights = _pixel_weights(operator, pixel_weights, labels.shape, scores.dtype)
    labels = np.require(labels, np.int64, ["C", "W"])  # writable: Numba compiles read-only arrays anew
    if ignored is not None:
        labels, weights = np.where(ignored, 0, labels), np.where(ignored, weights.dtype.type(0), weights)
    return labels, weights


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
