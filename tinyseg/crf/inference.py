"""Inference: the marginals of a model, by whichever of the two implementations of mean field can do it.

    from tinyseg import crf

    refined = crf.dense_crf(image, probabilities)                                # the whole thing, (H, W, L)
    refined = crf.dense_crf(image, probabilities, "deeplab_v2_resnet101", iterations=5)
    labels = refined.argmax(axis=-1)

or in parts, for other kernels, any number of them, and points that are no pixels:

    smooth = crf.Normalised(crf.LatticeFilter(crf.position_features(height, width, 3)))
    similar = crf.Normalised(crf.LatticeFilter(crf.bilateral_features(image, 80, 13)))
    q = crf.infer(unary, [crf.potts(3), crf.potts(10)], [smooth, similar], iterations=5)      # (N, L)
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.crf import arrays, fused, fused_device
from tinyseg.crf.filters import Normalised
from tinyseg.crf.mean_field import check_model, softmax, update


def potts(weight: float, dtype: type = np.float32) -> Array:
    """The coupling of the Potts model: two similar pixels pay `weight` unless their labels agree."""
    return np.asarray(-weight, dtype)


def infer(unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int = 5) -> Array:
    """The marginals after so many mean-field iterations: Q^T (N, L), from unary energies (N, L).

    The model is that of `mean_field`, which see for the couplings; nothing is kept for a backward pass.
    """
    q = unary
    for q in _marginals(unary, couplings, filters, iterations, all_steps=False):  # noqa: B007
        pass
    return q


def iterate(
    unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int = 5
) -> Iterator[Array]:
    """Q^0, Q^1, ... Q^T one by one. An array may be overwritten by the next: copy what is to be kept."""
    return _marginals(unary, couplings, filters, iterations, all_steps=True)


def _marginals(
    unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int, *, all_steps: bool
) -> Iterator[Array]:
    """All Q^t, or only such as come for free, of which the last is Q^T."""
    couplings = [c if cuda.on_gpu(c) else np.asarray(c, unary.dtype) for c in couplings]
    check_model("infer", unary, couplings, filters, iterations)
    if fused.applies_to(unary, filters):
        unary = np.ascontiguousarray(unary)
        yield from fused.marginals(unary, couplings, filters, iterations, all_steps=all_steps)
        return
    if fused_device.applies_to(unary, couplings, filters):
        yield from fused_device.marginals(unary, couplings, filters, iterations, all_steps=all_steps)
        return
    couplings = [arrays.here(coupling, unary) for coupling in couplings]
    q = softmax(arrays.negative(unary))
    yield q
    for _ in range(iterations):
        q = softmax(update(unary, q, couplings, filters))
        yield q
