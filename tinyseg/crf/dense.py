"""`dense_crf`: an image and a network's probabilities in, better probabilities out."""

from typing import Any, Literal

import numpy as np

from tinyseg.backend import Array
from tinyseg.crf import memory, original
from tinyseg.crf.exact import ExactFilter
from tinyseg.crf.features import bilateral_features, check_image, position_features
from tinyseg.crf.filters import Filter, Normalised
from tinyseg.crf.inference import infer, potts
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.local import LocalFilter
from tinyseg.crf.parameters import Parameters, parameters
from tinyseg.crf.separable import SeparableFilter

Layout = Literal["HWL", "LHW"]
Given = Literal["probabilities", "logits", "energies"]
Method = Literal["lattice", "separable", "local", "exact"]

SMALLEST_PROBABILITY = 1e-5
"""Probabilities are not taken to be smaller: a network that is wrong with certainty could never be corrected."""


def dense_crf(
    image: Array,
    scores: Array,
    preset: str | Parameters = "pydensecrf",
    *,
    layout: Layout = "HWL",
    given: Given = "probabilities",
    method: Method = "lattice",
    backend: Literal["tinyseg", "pydensecrf"] = "tinyseg",
    memory_limit: int | None = None,
    **changes: Any,
) -> Array:
    """Refine label probabilities with a fully connected CRF: marginals, float32, in the layout of `scores`.

    image     (H, W, channels) or (H, W), colours 0 to 255, any number type
    scores    (H, W, L), or (L, H, W) with layout="LHW"; any float type, any strides. They are `given` as
              "probabilities", as "logits" or as "energies" (minus logarithms of probabilities)
    preset    a name in `PRESETS`, or `Parameters`; single parameters can be changed by keyword: iterations=10
    method    how the kernels are filtered:
              "lattice"     both on the permutohedral lattice, as in the published program
              "separable"   smoothness by two convolutions, which is more exact; appearance on the lattice
              "local"       both cut off at a window around each pixel (ConvCRF)
              "exact"       all pairs of pixels; for images of some thousand pixels
    backend   "pydensecrf" runs that package instead, if it is installed, to compare with
    memory_limit    in bytes; by default what the system has free. MemoryError says what would be needed

    >>> image, scores = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 2), 0.5)
    >>> dense_crf(image, scores, "deeplab_v1", iterations=1).shape
    (4, 6, 2)
    """
    chosen = parameters(preset, **changes)
    image = check_image("dense_crf", image)
    unary = unary_energies(image.shape[:2], scores, layout, given)
    height, width, channels = image.shape
    labels = unary.shape[1]
    if method == "lattice":
        _check_memory(height, width, labels, channels, memory_limit)
    if backend == "pydensecrf":
        if method != "lattice":
            raise ValueError(f"dense_crf: backend 'pydensecrf' has the method 'lattice' alone, not {method!r}")
        q = original.dense_crf(image, unary, chosen)
    elif backend == "tinyseg":
        smoothness, appearance = kernels(image, chosen, method)
        q = infer(
            unary,
            [potts(chosen.smoothness_weight), potts(chosen.appearance_weight)],
            [Normalised(smoothness, chosen.normalisation), Normalised(appearance, chosen.normalisation)],
            chosen.iterations,
        )
    else:
        raise ValueError(f"dense_crf: backend must be 'tinyseg' or 'pydensecrf', got {backend!r}")
    q = q.reshape(height, width, labels)
    return q if layout == "HWL" else np.moveaxis(q, 2, 0)


def kernels(image: Array, chosen: Parameters, method: Method = "lattice") -> tuple[Filter, Filter]:
    """The smoothness and the appearance kernel of an image (H, W, channels)."""
    height, width, _ = image.shape
    position = position_features(height, width, chosen.smoothness_position)
    colour = bilateral_features(image, chosen.appearance_position, chosen.appearance_colour)
    if method == "lattice":
        return LatticeFilter(position), LatticeFilter(colour)
    if method == "separable":
        return SeparableFilter((height, width), chosen.smoothness_position), LatticeFilter(colour)
    if method == "local":
        return LocalFilter(position, (height, width)), LocalFilter(colour, (height, width))
    if method == "exact":
        return ExactFilter(position), ExactFilter(colour)
    raise ValueError(f"dense_crf: method must be lattice, separable, local or exact; got {method!r}")


def unary_energies(
    size: tuple[int, int], scores: Array, layout: Layout = "HWL", given: Given = "probabilities"
) -> Array:
    """Energies (H W, L), float32, contiguous, from the scores of an image of this size (H, W); all checked."""
    scores = np.asarray(scores)
    if layout not in ("HWL", "LHW"):
        raise ValueError(f"dense_crf: layout must be 'HWL' or 'LHW', got {layout!r}")
    if scores.dtype.kind != "f":
        raise TypeError(f"dense_crf: scores must be floats, got {scores.dtype}")
    if scores.ndim != 3 or scores.size == 0:
        raise ValueError(f"dense_crf: scores must have three axes, {', '.join(layout)}; got shape {scores.shape}")
    scores = scores if layout == "HWL" else np.moveaxis(scores, 0, 2)
    if scores.shape[:2] != tuple(size):
        hint = _layout_hint(size, scores.shape, layout)
        raise ValueError(
            f"dense_crf: the image has height and width {tuple(size)}, the scores have {scores.shape[:2]} "
            f"in layout {layout}{hint}"
        )
    bad = np.isnan(scores) if given != "probabilities" else ~np.isfinite(scores)
    if bad.any():
        row, column, label = (int(i) for i in np.argwhere(bad)[0])
        pixels = int(bad.any(axis=2).sum())
        raise ValueError(
            f"dense_crf: scores are not a number in {pixels} of {bad[:, :, 0].size} pixels, "
            f"the first at row {row}, column {column}, label {label}"
        )
    flat = np.ascontiguousarray(scores, np.float32).reshape(-1, scores.shape[2])
    if given == "probabilities":
        if flat.min() < -1e-3 or flat.max() > 1 + 1e-3:
            raise ValueError(
                f"dense_crf: probabilities lie between 0 and 1, these between {flat.min():.4g} and "
                f"{flat.max():.4g}; pass given='logits' for scores before the softmax, given='energies' for minus "
                "logarithms"
            )
        return -np.log(np.maximum(flat, SMALLEST_PROBABILITY))
    return finite_energies("dense_crf", -flat if given == "logits" else flat)


def finite_energies(operator: str, energies: Array) -> Array:
    """Energies (N, L) with infinite ones ("impossible") made large; each pixel must have a possible label."""
    impossible = energies == np.inf
    if not impossible.any() and np.isfinite(energies).all():
        return energies
    if (energies == -np.inf).any():
        point = int(np.argwhere((energies == -np.inf).any(axis=1))[0, 0])
        raise ValueError(f"{operator}: the energy of a label of pixel {point} is minus infinity; clip it")
    if impossible.all(axis=1).any():
        point = int(np.argwhere(impossible.all(axis=1))[0, 0])
        raise ValueError(f"{operator}: all labels of pixel {point} have an infinite energy; one must be possible")
    return np.where(impossible, np.float32(1e4), energies)


def _layout_hint(size: tuple[int, int], shape: tuple[int, ...], layout: Layout) -> str:
    """Which other reading of the axes would fit."""
    if layout == "HWL" and shape[1:] == tuple(size):
        return "; pass layout='LHW' for scores with the labels first"
    if layout == "LHW" and (shape[2], shape[0]) == tuple(size):
        return "; pass layout='HWL' for scores with the labels last"
    if shape[:2] == tuple(size[::-1]):
        return "; height and width are swapped"
    return "; resize the scores to the image"


def _check_memory(height: int, width: int, labels: int, channels: int, limit: int | None) -> None:
    """Raise MemoryError with the sizes if the call cannot fit."""
    need = memory.estimate(height * width, labels, (2, 2 + channels))
    free = memory.available() if limit is None else limit
    if free is not None and need.certain > free:
        raise MemoryError(
            f"dense_crf: {height} x {width} pixels with {labels} labels need {need}, and {free / 2**30:.1f} GiB "
            "are free; work on a smaller image, on parts of it, or with fewer labels"
        )
