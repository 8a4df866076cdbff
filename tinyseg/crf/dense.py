"""`dense_crf`: an image and a network's probabilities in, better probabilities out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.crf import arrays, memory, original
from tinyseg.crf.exact import ExactFilter
from tinyseg.crf.features import (
    bandwidths,
    bilateral_features,
    check_image,
    features_on_device,
    position_features,
)
from tinyseg.crf.filters import Filter, Normalised
from tinyseg.crf.inference import infer, iterate, potts
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.local import LocalFilter
from tinyseg.crf.parameters import Parameters, parameters
from tinyseg.crf.separable import SeparableFilter

Layout = Literal["HWL", "LHW"]
Given = Literal["probabilities", "logits", "energies"]
Method = Literal["lattice", "separable", "local", "exact"]

SMALLEST_PROBABILITY = 1e-5
"""Probabilities are not taken to be smaller: a network that is wrong with certainty could never be corrected."""

LOCAL_WINDOW = 11
"""Pixels along a side of the window that method="local" looks at: ConvCRF's."""

IMPOSSIBLE = np.float32(1e30)
"""Stands for an infinite energy: no message can outweigh it, and its product with a probability of 0 is 0."""

_cuda = cuda.KernelFile(__file__, scalars=("float",))


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
              "local"       both cut off at a window of 11 x 11 pixels around each (ConvCRF)
              "exact"       all pairs of pixels; for images of some thousand pixels
    backend   "pydensecrf" runs that package instead, if it is installed, to compare with
    memory_limit    in bytes; by default what the system has free. MemoryError says what would be needed

    With scores on a GPU everything is done there, and the result is there, too; the image may be on either side.
    The host waits for the GPU a few times: for the range of the scores, and for the range of the features and the
    number of vertices of each lattice.

    >>> image, scores = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 2), 0.5)
    >>> dense_crf(image, scores, "deeplab_v1", iterations=1).shape
    (4, 6, 2)
    """
    if backend not in ("tinyseg", "pydensecrf"):
        raise ValueError(f"dense_crf: backend must be 'tinyseg' or 'pydensecrf', got {backend!r}")
    if backend == "pydensecrf" and method != "lattice":
        raise ValueError(f"dense_crf: backend 'pydensecrf' has the method 'lattice' alone, not {method!r}")
    if backend == "pydensecrf" and cuda.on_gpu(scores):
        raise ValueError(
            "dense_crf: backend 'pydensecrf' runs on the CPU; bring the scores there with cuda.to_host"
        )
    chosen = parameters(preset, **changes)
    image, unary = _arguments(image, scores, layout, given, method, memory_limit)
    if backend == "pydensecrf":
        q = original.dense_crf(image, unary, chosen)
    else:
        q = infer(unary, *_model(image, chosen, method, unary.shape[1], memory_limit), chosen.iterations)
    return _as_scores(q, image, layout)


def dense_crf_steps(
    image: Array,
    scores: Array,
    preset: str | Parameters = "pydensecrf",
    *,
    layout: Layout = "HWL",
    given: Given = "probabilities",
    method: Method = "lattice",
    memory_limit: int | None = None,
    **changes: Any,
) -> Iterator[Array]:
    """The marginals before the first iteration and after each: what `dense_crf` passes through, T + 1 arrays.

    Arguments as for `dense_crf`; each array is of its own, in the layout of `scores`.
    """
    chosen = parameters(preset, **changes)
    image, unary = _arguments(image, scores, layout, given, method, memory_limit)
    model = _model(image, chosen, method, unary.shape[1], memory_limit)
    steps = iterate(unary, *model, chosen.iterations)
    return (_as_scores(cuda.copied(q), image, layout) for q in steps)


def _arguments(
    image: Array, scores: Array, layout: Layout, given: Given, method: Method, limit: int | None
) -> tuple[Array, Array]:
    """The image (H, W, channels) and the energies (H W, L), checked before anything large is made of them."""
    image = check_image("dense_crf", image)
    height, width, channels = image.shape
    if cuda.on_gpu(scores):
        image = image if cuda.on_gpu(image) else cuda.to_device(image)
    elif cuda.on_gpu(image):
        raise TypeError("dense_crf: the image is on the GPU, the scores are not; move them with cuda.to_device")
    elif np.ndim(scores) == 3:
        labels = np.shape(scores)[2 if layout == "HWL" else 0]
        need = _needed(height * width, channels, labels, method)
        check_memory("dense_crf", f"{height} x {width} pixels with {labels} labels", need, limit)
    return image, unary_energies((height, width), scores, layout, given)


def _model(
    image: Array, chosen: Parameters, method: Method, labels: int, limit: int | None
) -> tuple[list[Array], list[Normalised]]:
    """Couplings and filters."""
    couplings = [potts(chosen.smoothness_weight), potts(chosen.appearance_weight)]
    filters = [Normalised(kernel, chosen.normalisation) for kernel in kernels(image, chosen, method)]
    if not cuda.on_gpu(image):
        check_vertices("dense_crf", filters, labels, limit)
    return couplings, filters


def _as_scores(q: Array, image: Array, layout: Layout) -> Array:
    q = q.reshape(*image.shape[:2], -1)
    return q if layout == "HWL" else q.transpose(2, 0, 1)


def kernels(image: Array, chosen: Parameters, method: Method = "lattice") -> tuple[Filter, Filter]:
    """The smoothness and the appearance kernel of an image (H, W, channels)."""
    height, width, _ = image.shape
    size = height, width
    if cuda.on_gpu(image):
        smoothness = bandwidths("dense_crf", "smoothness_position", chosen.smoothness_position, 2)
        position = features_on_device(size, smoothness)
    else:
        position = position_features(height, width, chosen.smoothness_position)
    colour = bilateral_features(image, chosen.appearance_position, chosen.appearance_colour)
    if method == "lattice":
        return LatticeFilter(position), LatticeFilter(colour)
    if method == "separable":
        return SeparableFilter(size, chosen.smoothness_position, on_gpu=cuda.on_gpu(image)), LatticeFilter(colour)
    if method == "local":
        return LocalFilter(position, size, window=LOCAL_WINDOW), LocalFilter(colour, size, window=LOCAL_WINDOW)
    if method == "exact":
        return ExactFilter(position), ExactFilter(colour)
    raise ValueError(f"dense_crf: method must be lattice, separable, local or exact; got {method!r}")


def unary_energies(
    size: tuple[int, int], scores: Array, layout: Layout = "HWL", given: Given = "probabilities"
) -> Array:
    """Energies (H W, L), float32, contiguous, from the scores of an image of this size (H, W); all checked."""
    scores = scores if cuda.on_gpu(scores) else np.asarray(scores)
    if layout not in ("HWL", "LHW"):
        raise ValueError(f"dense_crf: layout must be 'HWL' or 'LHW', got {layout!r}")
    if given not in ("probabilities", "logits", "energies"):
        raise ValueError(f"dense_crf: given must be 'probabilities', 'logits' or 'energies', got {given!r}")
    if scores.dtype.kind != "f":
        raise TypeError(f"dense_crf: scores must be floats, got {scores.dtype}")
    if scores.ndim != 3 or scores.size == 0:
        raise ValueError(f"dense_crf: scores must have three axes, {', '.join(layout)}; got shape {scores.shape}")
    scores = scores if layout == "HWL" else scores.transpose(1, 2, 0)
    if scores.shape[:2] != tuple(size):
        hint = _layout_hint(size, scores.shape, layout)
        raise ValueError(
            f"dense_crf: the image has height and width {tuple(size)}, the scores have {scores.shape[:2]} "
            f"in layout {layout}{hint}"
        )
    width = scores.shape[1]
    flat = cuda.reshape(scores, (-1, scores.shape[2]))
    if cuda.on_gpu(flat):
        return _energies_on_device(flat, given)

    def place(point: int) -> str:
        return f"the pixel at row {point // width}, column {point % width}"

    bad = ~np.isfinite(flat) if given == "probabilities" else np.isnan(flat)
    if bad.any():
        point, label = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"dense_crf: scores are not a number in {int(bad.any(axis=1).sum())} of {len(flat)} pixels, "
            f"the first is label {label} of {place(point)}"
        )
    if given == "probabilities":
        check_probabilities("dense_crf", "scores", flat, "pass given='logits' or given='energies' for others")
        energies = np.maximum(flat, SMALLEST_PROBABILITY, dtype=np.float32, order="C", casting="same_kind")
        np.log(energies, out=energies)
        return np.negative(energies, out=energies)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        energies = np.ascontiguousarray(flat, np.float32)
    return finite_energies("dense_crf", -energies if given == "logits" else energies, place)


def _energies_on_device(scores: Array, given: Given) -> Array:
    """The same for scores (N, L) on a GPU. Only their range is known: it does not tell which pixel is wrong."""
    scores = cuda.contiguous(scores, np.float32)
    low, high = (bound[0] for bound in arrays.ranges(scores.reshape(-1, 1)))
    if np.isnan(low) or (given == "probabilities" and not np.isfinite(low + high)):
        raise ValueError("dense_crf: scores are not a number in some pixels")
    if given == "probabilities":
        remedy = "pass given='logits' or given='energies' for others"
        check_probabilities("dense_crf", "scores", np.array([low, high]), remedy)
        return arrays.logarithm(scores, SMALLEST_PROBABILITY, factor=-1)
    sign = -1 if given == "logits" else 1
    if min(sign * low, sign * high) == -np.inf:
        raise ValueError("dense_crf: an energy is minus infinity for some points; clip it")
    energies = cuda.empty(scores.shape, scores.dtype)
    arguments = (scores, sign, IMPOSSIBLE, energies, scores.size)
    _cuda.launch("finite_energies", *arguments, threads=cuda.quads(scores.size))
    return energies


def check_probabilities(operator: str, name: str, values: Array, remedy: str) -> None:
    """All between 0 and 1, but for rounding."""
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise ValueError(
            f"{operator}: {name} must be probabilities, between 0 and 1; they lie between {values.min():.4g} and "
            f"{values.max():.4g}; {remedy}"
        )


def finite_energies(operator: str, energies: Array, place: Callable[[int], str]) -> Array:
    """Energies (N, L) without infinite ones ("impossible"); each point must have a possible label.

    `place` names a point in messages.
    """
    if np.isfinite(energies).all():
        return energies
    certain = (energies == -np.inf).any(axis=1)
    if certain.any():
        point = int(np.argmax(certain))
        raise ValueError(
            f"{operator}: an energy is minus infinity for {int(certain.sum())} of {len(energies)} points, the "
            f"first is {place(point)}; clip it"
        )
    impossible = energies == np.inf
    nothing = impossible.all(axis=1)
    if nothing.any():
        point = int(np.argmax(nothing))
        raise ValueError(
            f"{operator}: all labels have an infinite energy at {int(nothing.sum())} of {len(energies)} points, "
            f"the first is {place(point)}; one must be possible"
        )
    return np.where(impossible, IMPOSSIBLE, energies)


def _layout_hint(size: tuple[int, int], shape: tuple[int, ...], layout: Layout) -> str:
    """Which other reading of the axes would fit."""
    if layout == "HWL" and shape[1:] == tuple(size):
        return "; pass layout='LHW' for scores with the labels first"
    if layout == "LHW" and (shape[2], shape[0]) == tuple(size):
        return "; pass layout='HWL' for scores with the labels last"
    if shape[:2] == tuple(size[::-1]):
        return "; height and width are swapped"
    return "; resize the scores to the image"


def _needed(points: int, channels: int, labels: int, method: Method) -> memory.Memory:
    """Bytes that inference takes."""
    if method == "lattice":
        return memory.estimate(points, labels, (2, 2 + channels))
    if method == "separable":
        return memory.estimate(points, labels, (2 + channels,))
    maps = 5 * points * labels * memory.NUMBER
    windows = 2 * points * LOCAL_WINDOW**2 * memory.NUMBER if method == "local" else 0
    return memory.Memory(maps + windows, maps + windows)


def check_memory(operator: str, what: str, need: memory.Memory, limit: int | None = None) -> None:
    """Raise MemoryError, with what is needed, if it is more than the limit, by default what is free."""
    free = memory.available() if limit is None else limit
    if free is not None and need.certain > free:
        amount = f"{need.certain / 2**30:.1f} GiB" if need.certain == need.at_most else str(need)
        raise MemoryError(
            f"{operator}: {what} need {amount}, and {free / 2**30:.1f} GiB are free; work on a smaller image, on "
            "parts of it, or with fewer labels"
        )


def check_vertices(operator: str, filters: Sequence[Normalised], labels: int, limit: int | None = None) -> None:
    """The same for the values of lattices, once they are made: sizes alone do not tell their vertices."""
    lattices = [f.kernel for f in filters if isinstance(f.kernel, LatticeFilter)]
    if lattices:
        rows = sum(lattice.vertices for lattice in lattices)
        corners = sum(lattice.weight.size for lattice in lattices)
        maps = lattices[0].points * max(labels, 8) * memory.NUMBER  # the marginals
        need = maps + memory.joined_tables(corners) + memory.vertex_values(rows, labels)
        what = f"{labels} labels on lattices of {rows} vertices"
        check_memory(operator, what, memory.Memory(need, need), limit)
