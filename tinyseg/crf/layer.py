r"""A dense CRF as a layer of a network (CRF-RNN): the mean field of a batch of images, with all of its gradients.

    U = -logits        y = X^{T-1} of `mean_field`, with the two kernels of `parameters`; softmax(y) = Q^T

    logits          (N, H, W, L)   what the network says without the CRF
    smoothness      coupling of the position kernel, a number, (L,) or (L, L) as in `mean_field`
    appearance      coupling of the kernel of positions and colours, likewise
    log_bandwidths  (3,)           log s_g, log s_a and log s_b: in pixels, pixels and grey levels
    images          (N, H, W, C)   colours 0 to 255, not differentiated
    y               (N, H, W, L)

The filters of an image are made once, and serve all iterations forward and backward; that of the positions serves
all images. Of a fixed coupling or of fixed bandwidths (`need`) the gradient is not computed.

Bandwidths are learned by their logarithms, so that they stay positive and a step changes 3 and 160 in proportion.
Their gradient is that of the Gaussian kernels (see `filters`). With method="exact" it is the derivative of what
was computed; the lattice's own result is piecewise smooth in the bandwidths, with jumps where pixels change
cells, and the gradient is that of the kernel which it approximates, filtered by the lattice too.

Cost: T filterings per kernel forward, 2 T backward for the logits, 3 T with couplings; bandwidths 2 T (d + 1) more
in float64, which makes the backward pass some ten times slower.

Sources: Zheng et al., "Conditional random fields as recurrent neural networks", ICCV 2015, section 4;
Krähenbühl & Koltun, ICML 2013, section 4.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.crf import arrays
from tinyseg.crf.exact import ExactFilter
from tinyseg.crf.features import check_image, features_on_device, position_features
from tinyseg.crf.filters import Filter, Normalisation, Normalised
from tinyseg.crf.inference import infer
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.local import LocalFilter
from tinyseg.crf.mean_field import MeanFieldCache, backward_pass, check_finite, mean_field, plus
from tinyseg.ops import checks

Method = Literal["lattice", "local", "exact"]


class RefineCache(NamedTuple):
    fields: list[MeanFieldCache]  # of each image
    shape: tuple[int, ...]  # of the logits
    dtype: np.dtype


def refine(
    logits: Array,
    smoothness: Array,
    appearance: Array,
    log_bandwidths: Array,
    *,
    images: Array,
    iterations: int = 5,
    normalisation: Normalisation = "after",
    method: Method = "lattice",
) -> tuple[Array, RefineCache]:
    """Logits (N, H, W, L) after so many iterations of mean field with an image's own kernels."""
    images = _check("refine", logits, smoothness, appearance, log_bandwidths, images, iterations)
    y, fields = [], []
    for n, filters in enumerate(_filters(images, log_bandwidths, normalisation, method)):
        unary = arrays.negative(cuda.reshape(logits[n], (-1, logits.shape[3])))
        x, field = mean_field(unary, smoothness, appearance, filters=filters, iterations=iterations, logits=True)
        y.append(x)
        fields.append(field)
    return _batch(y, logits.shape), RefineCache(fields, logits.shape, logits.dtype)


def refine_backward(
    dy: Array, cache: RefineCache, *, need: Sequence[bool] = (True, True, True, True)
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """The gradients with respect to logits, smoothness, appearance and log_bandwidths."""
    checks.upstream("refine_backward", dy, cache.shape, cache.dtype)
    d_unaries = []
    totals: list[Any] = [None, None]
    d_bandwidths = np.zeros(3)
    for n, field in enumerate(cache.fields):
        d_unary, d_couplings, per_feature = backward_pass(
            cuda.reshape(dy[n], (-1, cache.shape[3])),
            field,
            need_couplings=need[1:3],
            need_bandwidths=need[3],
        )
        d_unaries.append(d_unary)
        totals = [total if d is None else plus(total, d) for total, d in zip(totals, d_couplings, strict=True)]
        if need[3]:
            position, bilateral = per_feature
            d_bandwidths += [position.sum(), bilateral[:2].sum(), bilateral[2:].sum()]
    return (
        arrays.negative(_batch(d_unaries, cache.shape)) if need[0] else None,
        *totals,
        cuda.place_like(d_bandwidths.astype(cache.dtype), dy) if need[3] else None,
    )


def refine_without_gradient(
    logits: Array,
    smoothness: Array,
    appearance: Array,
    log_bandwidths: Array,
    *,
    images: Array,
    iterations: int = 5,
    normalisation: Normalisation = "after",
    method: Method = "lattice",
) -> Array:
    """The logarithms of the marginals, log Q^T: what `refine` gives, up to a number for each pixel, but faster."""
    images = _check("refine", logits, smoothness, appearance, log_bandwidths, images, iterations)
    y = []
    for n, filters in enumerate(_filters(images, log_bandwidths, normalisation, method)):
        unary = arrays.negative(cuda.reshape(logits[n], (-1, logits.shape[3])))
        q = infer(unary, [smoothness, appearance], filters, iterations)
        y.append(arrays.logarithm(q, np.finfo(q.dtype).tiny))
    return _batch(y, logits.shape)


# ------------------------------------------------------------------------------------------------- the parts of it


def _batch(images: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Images, each (H W, L), as one array (N, H, W, L)."""
    return ops.concat([image.reshape(1, *shape[1:]) for image in images], axis=0)[0]


def _filters(images: Array, log_bandwidths: Array, normalisation: Normalisation, method: Method):
    """For each image its two filters; the first is the same for all."""
    dtype = log_bandwidths.dtype
    s_g, s_a, s_b = np.exp(cuda.to_host(log_bandwidths))
    size = images.shape[1], images.shape[2]
    of_positions = np.array([s_g, s_g], dtype)
    of_both = np.array([s_a, s_a, *[s_b] * images.shape[3]], dtype)

    def normalised(features: Array) -> Normalised:
        return Normalised(_filter(features, size, method), normalisation, dtype.type)

    if cuda.on_gpu(images):
        smoothness = normalised(features_on_device(size, of_positions))
        for n in range(len(images)):
            yield smoothness, normalised(features_on_device(size, of_both, images[n]))
        return
    position = position_features(*size, 1).astype(dtype)  # x and y as they are
    smoothness = normalised(position / of_positions)
    for image in images:
        points = np.concatenate([position, image.reshape(len(position), -1)], axis=1, dtype=dtype)
        yield smoothness, normalised(points / of_both)


def _filter(features: Array, size: tuple[int, int], method: Method) -> Filter:
    if method == "lattice":
        return LatticeFilter(features)
    if method == "local":
        return LocalFilter(features, size)
    if method == "exact":
        return ExactFilter(features)
    raise ValueError(f"refine: method must be lattice, local or exact; got {method!r}")


def _check(
    operator: str,
    logits: Array,
    smoothness: Array,
    appearance: Array,
    log_bandwidths: Array,
    images: Array,
    iterations: int,
) -> Array:
    """What `mean_field` cannot check: that the shapes of the batch fit. Returns the images."""
    checks.floating(
        operator, logits=logits, smoothness=smoothness, appearance=appearance, log_bandwidths=log_bandwidths
    )
    checks.rank(operator, "logits", logits, "N H W L")
    checks.shape(operator, "log_bandwidths", log_bandwidths, (3,), "of s_g, s_a and s_b")
    check_finite(operator, "log_bandwidths", log_bandwidths)
    if cuda.on_gpu(logits) and not cuda.on_gpu(images):
        images = cuda.to_device(images)
    images = images if cuda.on_gpu(logits) else np.asarray(images)
    checks.rank(operator, "images", images, "N H W C")
    if images.shape[:3] != logits.shape[:3]:
        raise ValueError(
            f"{operator}: images and logits must have the same N, H and W, got {images.shape} and {logits.shape}; "
            "bring the logits to the size of the images first"
        )
    check_image(operator, cuda.reshape(images, (-1, *images.shape[2:])))
    if iterations < 1:
        raise ValueError(f"{operator}: iterations must be 1 or more, got {iterations}")
    return images
