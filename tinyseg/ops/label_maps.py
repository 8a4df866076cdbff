"""What a map of labels says about its image as a whole: which classes there are, and how rare each is.

Losses of some networks are made of it. It is computed where the labels are: on a GPU nothing is read back, so that
a training step can be recorded. Labels that are no class do not count here; the loss of the pixels reports them.
"""

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import sums


def present_classes(labels: Array, classes: int, ignore_label: int | None = None) -> Array:
    """Which classes there are in each of the label maps (N, H, W): bool (N, classes)."""
    present = backend.choose(labels, numpy=_present, numba=_present, cuda=_present_cuda)
    return present(labels, classes, ignore_label)


def image_weights(labels: Array, classes: int, *, ignore_label: int | None) -> Array:
    """The weights of the pixels (N, H, W) in a mean over the images of each one's weighted mean: float64.

    In an image, a pixel of class c weighs 1 + (1 - share of c among the image's labelled pixels): classes that are
    rare in it count up to twice. An image without labels has weights 0, the others have the sum 1 / N.
    """
    weights = backend.choose(labels, numpy=_image_weights, numba=_image_weights, cuda=_image_weights_cuda)
    return weights(labels, classes, ignore_label)


def labels_above(scores: Array, threshold: float, labels: Array, other: int) -> Array:
    """The labels where the score is above the threshold, elsewhere `other`: int64, of the shape of both."""
    above = backend.choose(scores, numpy=_labels_above, numba=_labels_above, cuda=_labels_above_cuda)
    return above(scores, threshold, labels, other)


# --------------------------------------------------------------------------------------------------- on the CPU


def _counts(labels: Array, classes: int, ignore_label: int | None) -> Array:
    """How many pixels of each class each image has, (N, classes)."""
    counted = _is_counted(labels, classes, ignore_label)
    of_images = zip(labels, counted, strict=True)
    return np.array([np.bincount(image[known], minlength=classes) for image, known in of_images])


def _is_counted(labels: Array, classes: int, ignore_label: int | None) -> Array:
    """Where the label is that of a class: bool (N, H, W)."""
    counted = (labels >= 0) & (labels < classes)
    return counted if ignore_label is None else counted & (labels != ignore_label)


def _present(labels: Array, classes: int, ignore_label: int | None) -> Array:
    return _counts(labels, classes, ignore_label) > 0


def _image_weights(labels: Array, classes: int, ignore_label: int | None) -> Array:
    counts = _counts(labels, classes, ignore_label)
    known = counts.sum(axis=1, keepdims=True)
    of_classes = 2 - counts / np.maximum(known, 1)
    total = (counts * of_classes).sum(axis=1, keepdims=True)
    of_classes /= np.maximum(total, 1) * len(labels)
    counted = _is_counted(labels, classes, ignore_label)
    images = np.arange(len(labels))[:, None, None]
    return np.where(counted, of_classes[images, np.where(counted, labels, 0)], 0)


def _labels_above(scores: Array, threshold: float, labels: Array, other: int) -> Array:
    return np.where(scores > threshold, labels.astype(np.int64), other)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _counts_cuda(labels: Array, classes: int, ignored: tuple[bool, int]) -> Array:
    N, pixels = labels.shape[0], labels[0].size
    width, tiles, chunks = sums.split(N, pixels, classes)
    partial = cuda.empty((N, chunks, classes), np.dtype(np.float64))
    numbers = (pixels, classes, width, *ignored)
    _cuda.launch("count_labels", labels, *numbers, partial, blocks=(chunks, tiles, N))
    return sums.over_middle(partial, N, chunks, classes)


def _present_cuda(labels: Array, classes: int, ignore_label: int | None) -> Array:
    counts = _counts_cuda(cuda.contiguous(labels, np.int64), classes, _ignored(ignore_label))
    present = cuda.empty(counts.shape, np.dtype(np.bool_))
    _cuda.launch("are_present", counts, counts.size, present, threads=counts.size)
    return present


def _image_weights_cuda(labels: Array, classes: int, ignore_label: int | None) -> Array:
    labels, ignored = cuda.contiguous(labels, np.int64), _ignored(ignore_label)
    counts = _counts_cuda(labels, classes, ignored)
    of_classes, weights = (cuda.empty(shape, counts.dtype) for shape in (counts.shape, labels.shape))
    N = len(labels)
    _cuda.launch("weigh_classes", counts, N, classes, of_classes, threads=counts.size)
    numbers = (labels.size, labels.size // N, classes, *ignored)
    _cuda.launch("weigh_pixels", labels, of_classes, *numbers, weights, threads=labels.size)
    return weights


def _labels_above_cuda(scores: Array, threshold: float, labels: Array, other: int) -> Array:
    scores, labels = cuda.contiguous(scores), cuda.contiguous(labels, np.int64)
    above = cuda.empty(labels.shape, labels.dtype)
    _cuda.launch("labels_above", scores, threshold, labels, other, labels.size, above, threads=labels.size)
    return above


def _ignored(ignore_label: int | None) -> tuple[bool, int]:
    return ignore_label is not None, ignore_label or 0
