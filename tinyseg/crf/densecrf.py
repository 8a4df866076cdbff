"""pydensecrf's classes, method by method and argument by argument: a script runs after changing its import.

    import tinyseg.crf.densecrf as dcrf                     # was: import pydensecrf.densecrf as dcrf
    from tinyseg.crf.utils import unary_from_softmax        # was: from pydensecrf.utils import unary_from_softmax

    d = dcrf.DenseCRF2D(width, height, labels)              # the width comes first
    d.setUnaryEnergy(unary_from_softmax(probabilities))     # (L, H, W) -> (L, H W)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    q = d.inference(5)                                      # (L, H W)

What differs: arrays may have any float type and any strides, and energies (L, H, W) keep their three axes if you
like, so that height and width are checked. Sizes, bandwidths and values are checked too, and the errors are
ValueErrors. `inference` returns an array, and the logistic unary works. `kernel` is accepted and has no effect, as
in Python it never had one. `backend="pydensecrf"` hands everything to that package, where it is installed.

New code reads better with `tinyseg.crf.dense_crf`.
"""

from enum import IntEnum
from typing import Any, Literal

import numpy as np

from tinyseg.backend import Array
from tinyseg.crf import memory, original
from tinyseg.crf.dense import check_memory, check_vertices, finite_energies
from tinyseg.crf.energy import pydensecrf_kl
from tinyseg.crf.features import bilateral_features, position_features
from tinyseg.crf.filters import NORMALISATIONS, Normalised
from tinyseg.crf.inference import infer
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.mean_field import check_finite, couple, softmax, update


class KernelType(IntEnum):
    """Which transform of the features could be learned. It changes nothing in inference."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """See `tinyseg.crf.filters`."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType


class Unary:
    """An energy for each label and point, (L, N)."""

    def __init__(self, energy: Array):
        self.energy = energy


class ConstUnary(Unary):
    """The energies themselves."""

    def __init__(self, u: Array):
        super().__init__(np.asarray(u))


class LogisticUnary(Unary):
    """The energies L f, from weights (labels, features) and features (features, N)."""

    def __init__(self, L: Array, f: Array):
        L, f = np.asarray(L), np.asarray(f)
        if L.ndim != 2 or f.ndim != 2 or L.shape[1] != f.shape[0]:
            raise ValueError(
                "LogisticUnary: L must be (labels, features) and f (features, points), "
                f"got {L.shape} and {f.shape}"
            )
        super().__init__(L @ f)


class DenseCRF:
    """A fully connected CRF of `nvar` points with `nlabels` labels. Its arrays are (labels, points)."""

    def __init__(self, nvar: int, nlabels: int, *, backend: Literal["tinyseg", "pydensecrf"] = "tinyseg"):
        if backend not in ("tinyseg", "pydensecrf"):
            raise ValueError(f"{self._name}: backend must be 'tinyseg' or 'pydensecrf', got {backend!r}")
        self._points, self._labels = self._whole("nvar", nvar, 1), self._whole("nlabels", nlabels, 1)
        self._backend = backend
        self._check_memory(1)  # the least that a model with a kernel needs
        self._unary = np.zeros((self._points, self._labels), np.float32)
        self._features: list[Array] = []  # (N, d) each
        self._filters: list[Normalised] = []
        self._compatibilities: list[Any] = []  # as given, checked
        self._couplings: list[Array] = []
        self._modes: list[Any] = []

    @property
    def _name(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------------------------------------------- the model

    def setUnaryEnergy(self, u: Array, f: Array | None = None) -> None:
        """Energies (L, N): minus the logarithms of probabilities. With f, u are weights: the energies are u f."""
        energy = np.asarray(u) if f is None else LogisticUnary(u, f).energy
        self.setUnary(Unary(energy))

    def setUnary(self, u: Unary) -> None:
        """The energies of a `ConstUnary` or a `LogisticUnary`."""
        if not isinstance(u, Unary):
            raise TypeError(
                f"{self._name}.setUnary: u must be a ConstUnary or a LogisticUnary; got {type(u).__name__}"
            )
        energy = u.energy
        if energy.dtype.kind not in "fiu":
            raise TypeError(f"{self._name}: unary energies must be numbers, got {energy.dtype}")
        if energy.shape != (self._labels, self._points):
            hint = "; it is transposed" if energy.shape == (self._points, self._labels) else ""
            raise ValueError(
                f"{self._name}: unary energies must have shape (labels, points) = "
                f"({self._labels}, {self._points}), got {energy.shape}{hint}"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
            energy = np.ascontiguousarray(energy.T, np.float32)
        if np.isnan(energy).any():
            point, label = (int(i) for i in np.argwhere(np.isnan(energy))[0])
            raise ValueError(
                f"{self._name}: unary energies are NaN for {int(np.isnan(energy).any(axis=1).sum())} of "
                f"{self._points} points, the first is label {label} of {self._place(point)}"
            )
        self._unary = finite_energies(self._name, energy, self._place)

    def addPairwiseEnergy(
        self,
        features: Array,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """A Gaussian kernel on features (d, N).

        `compat` says what labels cost each other: a number w is the Potts model, w for two labels that differ; a
        vector (L,) or a matrix (L, L) is added to the energy as it is, so that agreement is rewarded by a negative
        diagonal. A matrix is made symmetric.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self._points:
            hint = "; they are transposed" if features.ndim == 2 and features.shape[0] == self._points else ""
            raise ValueError(
                f"{self._name}.addPairwiseEnergy: features must have shape (d, points) = (d, {self._points}), "
                f"got {features.shape}{hint}"
            )
        self._add(np.ascontiguousarray(features.T, np.float32), compat, kernel, normalization)

    def _add(self, features: Array, compat: Any, kernel: int, normalization: int) -> None:
        """A kernel on features (N, d)."""
        KernelType(kernel)  # ValueError for numbers that are none
        mode = NORMALISATIONS[NormalizationType(normalization)]
        coupling = self._coupling(compat)
        self._check_memory(*(f.shape[1] for f in self._features), features.shape[1])
        lattice = LatticeFilter(features) if self._backend == "tinyseg" else None
        if lattice is not None:
            self._filters.append(Normalised(lattice, mode))
        self._features.append(features)
        self._compatibilities.append(compat)
        self._couplings.append(coupling)
        self._modes.append(mode)

    def _coupling(self, compat: Any) -> Array:
        """compat as a coupling of `tinyseg.crf.mean_field`."""
        coupling = np.asarray(compat)
        allowed = ((), (self._labels,), (self._labels, self._labels))
        if coupling.dtype.kind not in "fiu" or coupling.shape not in allowed:
            raise ValueError(
                f"{self._name}: compat must be a number, or an array of shape ({self._labels},) or "
                f"({self._labels}, {self._labels}) for {self._labels} labels; got {compat!r}"
            )
        coupling = coupling.astype(np.float32)
        check_finite(self._name, "compat", coupling)
        if coupling.ndim == 0:
            return np.asarray(-coupling)
        return (coupling + coupling.T) / 2 if coupling.ndim == 2 else coupling

    # ------------------------------------------------------------------------------------------------- inference

    def inference(self, niter: int) -> Array:
        """The marginals after `niter` iterations: float32 (L, N), the transpose of a contiguous array (N, L)."""
        niter = self._whole("niter", niter)
        if self._backend == "pydensecrf":
            return original.infer(self._unary, self._compatibilities, self._features, self._modes, niter).T
        check_vertices(self._name, self._filters, self._labels)
        return infer(self._unary, self._couplings, self._filters, niter).T

    def startInference(self) -> tuple[Array, Array, Array]:
        """The marginals to start from, (L, N), and two arrays for `stepInference`, which here need no room."""
        return softmax(-self._unary).T, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Array, tmp1: Array | None = None, tmp2: Array | None = None) -> None:
        """One iteration, in place. If `tmp2` is an array (L, N), it receives the message of the last kernel."""
        self._needs_filters("stepInference")
        self._check_marginals("stepInference", Q)
        q = np.ascontiguousarray(Q.T, np.float32)
        if tmp2 is not None and tmp2.shape == Q.shape and self._filters:
            tmp2[...] = couple(self._couplings[-1], self._filters[-1].apply(q)).T
        Q[...] = softmax(update(self._unary, q, self._couplings, self._filters)).T

    def klDivergence(self, Q: Array) -> float:
        """The divergence up to a constant, with every pair counted twice: see `tinyseg.crf.energy`."""
        self._needs_filters("klDivergence")
        self._check_marginals("klDivergence", Q)
        q = np.ascontiguousarray(np.asarray(Q).T, np.float32)
        return pydensecrf_kl(q, self._unary, self._couplings, self._filters)

    # ---------------------------------------------------------------------------------------------------- checks

    def _needs_filters(self, method: str) -> None:
        if self._backend == "pydensecrf":
            raise ValueError(f"{self._name}.{method}: only with backend='tinyseg'; pydensecrf has it itself")

    def _check_marginals(self, method: str, q: Array) -> None:
        if np.shape(q) != (self._labels, self._points):
            raise ValueError(
                f"{self._name}.{method}: Q must have shape (labels, points) = ({self._labels}, {self._points}), "
                f"got {np.shape(q)}"
            )

    def _check_memory(self, *dimensions: int) -> None:
        """MemoryError if lattices of these dimensions cannot fit."""
        need = memory.estimate(self._points, self._labels, dimensions)
        check_memory(self._name, f"{self._size} with {self._labels} labels", need)

    def _whole(self, name: str, value: Any, least: int = 0) -> int:
        try:
            whole = int(value)
        except (TypeError, ValueError, OverflowError):
            whole = least - 1
        if whole != value or whole < least:
            raise ValueError(f"{self._name}: {name} must be a whole number, {least} or more; got {value!r}")
        return whole

    @property
    def _size(self) -> str:
        return f"{self._points} points"

    def _place(self, point: int) -> str:
        return f"point {point}"


class DenseCRF2D(DenseCRF):
    """A fully connected CRF on the pixels of an image of width w and height h; pixel (x, y) is point y w + x."""

    def __init__(self, w: int, h: int, nlabels: int, *, backend: Literal["tinyseg", "pydensecrf"] = "tinyseg"):
        self._width, self._height = self._whole("w", w, 1), self._whole("h", h, 1)
        super().__init__(self._width * self._height, nlabels, backend=backend)

    def setUnary(self, u: Unary) -> None:
        """As in `DenseCRF`; the energies may also be (L, h, w), and then height and width are checked."""
        if isinstance(u, Unary) and u.energy.ndim == 3:
            expected = (self._labels, self._height, self._width)
            if u.energy.shape != expected:
                swapped = (self._labels, self._width, self._height)
                hint = (
                    f"; {self._name} takes the width first, then the height" if u.energy.shape == swapped else ""
                )
                raise ValueError(
                    f"{self._name}: unary energies (labels, height, width) must have shape {expected}, "
                    f"got {u.energy.shape}{hint}"
                )
            u = Unary(u.energy.reshape(self._labels, self._points))
        super().setUnary(u)

    def addPairwiseGaussian(
        self,
        sxy: float | tuple[float, float],
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """A kernel on positions with the bandwidth sxy in pixels, a number or (x, y)."""
        self._add(position_features(self._height, self._width, sxy), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: float | tuple[float, float],
        srgb: float | tuple[float, float, float],
        rgbim: Array,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """A kernel on positions and on the colours of rgbim (h, w, 3), 0 to 255; srgb in grey levels."""
        rgbim = np.asarray(rgbim)
        if rgbim.shape != (self._height, self._width, 3):
            swapped = rgbim.shape == (self._width, self._height, 3)
            hint = f"; {self._name} takes the width first, then the height" if swapped else ""
            if rgbim.ndim == 2 or (rgbim.ndim == 3 and rgbim.shape[2] != 3):
                hint = "; for other than RGB images use create_pairwise_bilateral and addPairwiseEnergy"
            raise ValueError(
                f"{self._name}.addPairwiseBilateral: rgbim must have shape (height, width, 3) = "
                f"({self._height}, {self._width}, 3), got {rgbim.shape}{hint}"
            )
        self._add(bilateral_features(rgbim, sxy, srgb), compat, kernel, normalization)

    @property
    def _size(self) -> str:
        return f"an image of width {self._width} and height {self._height}"

    def _place(self, point: int) -> str:
        return f"the pixel at row {point // self._width}, column {point % self._width}"
