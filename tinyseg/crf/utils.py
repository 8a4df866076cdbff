"""pydensecrf's `utils`: unary energies from labels and probabilities, features for any number of dimensions.

Names, arguments and results are those of pydensecrf.utils; errors are ValueErrors that say what is wrong.
The features of `create_pairwise_*` are in the order of the array's axes, (y, x, channels): the lattice, which cuts
space into cells, gives slightly different results than with the order (x, y, channels) of `DenseCRF2D`.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from tinyseg.backend import Array
from tinyseg.crf.dense import check_probabilities


def unary_from_labels(labels: Array, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> Array:
    """Energies (n_labels, N), float32, from a map of labels that are right with probability gt_prob.

    With `zero_unsure`, label 0 means "unknown" and is not counted in n_labels: labels are 1 ... n_labels.
    Otherwise they are 0 ... n_labels - 1.
    """
    labels = np.asarray(labels).reshape(-1)
    if not 0 < gt_prob < 1:
        raise ValueError(f"unary_from_labels: gt_prob must lie between 0 and 1, got {gt_prob}")
    if n_labels < 2:
        raise ValueError(f"unary_from_labels: n_labels must be 2 or more, got {n_labels}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"unary_from_labels: labels must be integers, got {labels.dtype}")
    lowest, highest = (0, n_labels) if zero_unsure else (0, n_labels - 1)
    if labels.size and not lowest <= labels.min() <= labels.max() <= highest:
        raise ValueError(
            f"unary_from_labels: labels must lie in {lowest} ... {highest} for n_labels={n_labels} and "
            f"zero_unsure={zero_unsure}, got {labels.min()} ... {labels.max()}"
        )
    labels = labels.astype(np.int64)
    energies = np.full((n_labels, labels.size), -np.log((1 - gt_prob) / (n_labels - 1)), np.float32)
    known = np.flatnonzero(labels) if zero_unsure else np.arange(labels.size)
    energies[labels[known] - (1 if zero_unsure else 0), known] = -np.log(gt_prob)
    if zero_unsure:
        energies[:, labels == 0] = -np.log(1 / n_labels)
    return energies


def unary_from_softmax(sm: Array, scale: float | None = None, clip: float | None = 1e-5) -> Array:
    """Energies (L, N), float32, from probabilities (L, ...): mixed with uniform ones by `scale`, then clipped."""
    sm = np.asarray(sm)
    if sm.ndim < 1 or sm.size == 0:
        raise ValueError(f"unary_from_softmax: sm must have the labels as its first axis, got shape {sm.shape}")
    check_probabilities("unary_from_softmax", "sm", sm, "for logits take the softmax first")
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"unary_from_softmax: scale must lie in 0 ... 1 and not be 0, got {scale}")
        sm = scale * sm + np.full(sm.shape, (1 - scale) * (1 / sm.shape[0]))  # in float64, as the original does
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    with np.errstate(divide="ignore"):  # without clip, a probability of zero is an infinite energy
        return np.ascontiguousarray(-np.log(sm).reshape(sm.shape[0], -1), np.float32)


def compute_unary(labels: Array, M: int, GT_PROB: float = 0.5) -> Array:
    """The old name of `unary_from_labels`."""
    warnings.warn("compute_unary is the old name of unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: Array, GT_PROB: float = 1) -> Array:
    """The old name of `unary_from_softmax`, without its clipping."""
    warnings.warn("softmax_to_unary is the old name of unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> Array:
    """Features (d, N), float32: the position along each axis of an array of this shape, over sdims."""
    bandwidths = _positive("create_pairwise_gaussian", "sdims", sdims, len(shape))
    axes = np.meshgrid(*[np.arange(size, dtype=np.float32) for size in shape], indexing="ij")
    return np.stack([axis.reshape(-1) / s for axis, s in zip(axes, bandwidths, strict=True)])


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: Array, chdim: int = -1
) -> Array:
    """Features (d + channels, N), float32: positions over sdims, then the channels of the image over schan.

    `chdim` is the axis of the channels; -1 stands for an image without such an axis.
    """
    img = np.asarray(img)
    channels = img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)
    values = channels.reshape(len(channels), -1).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("create_pairwise_bilateral: img has values that are not finite")
    scale = _positive("create_pairwise_bilateral", "schan", schan, len(channels))
    return np.concatenate([create_pairwise_gaussian(sdims, channels.shape[1:]), values / scale[:, None]])


def _positive(function: str, name: str, value: float | Sequence[float], count: int) -> Array:
    """`count` positive float32 numbers, or one for all of them."""
    numbers = np.asarray(value, np.float32)
    if numbers.shape not in ((), (count,)):
        raise ValueError(f"{function}: {name} must be {count} numbers, got {value!r}")
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise ValueError(f"{function}: {name} must be positive and finite, got {value!r}")
    return np.broadcast_to(numbers, (count,))
