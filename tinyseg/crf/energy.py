r"""The functional that mean field minimises, and the number that pydensecrf gives for it.

The distance between the product distribution Q and the model P ~ exp(-E) is KL(Q || P) = free energy + log Z, with

    free energy(Q)  =  sum_il Q_il log Q_il  +  sum_il U_il Q_il  +  1/2 sum_m <Q, C_m F_m Q>

The factor 1/2 counts each pair of pixels once; with it, and a symmetric C_m F_m, the mean-field update is exactly
the condition that the derivative vanishes. log Z is the same for all Q, but unknown: the free energy tells which
of two Q is better, and may be negative. Because all pixels are updated at once, it need not fall at every step.

`DenseCRF.klDivergence` of pydensecrf leaves the factor 1/2 out: `pydensecrf_kl` is that number.

Source: Krähenbühl & Koltun, NIPS 2011, section 3 and supplementary material.
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.crf import arrays
from tinyseg.crf.filters import Normalised
from tinyseg.crf.mean_field import couple


def free_energy(q: Array, unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised]) -> float:
    """The free energy of marginals q (N, L), up to nothing but the constant log Z."""
    return _entropy_and_unary(q, unary) + _pairwise(q, couplings, filters) / 2


def pydensecrf_kl(q: Array, unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised]) -> float:
    """What pydensecrf's `klDivergence` returns: every pair counted twice."""
    return _entropy_and_unary(q, unary) + _pairwise(q, couplings, filters)


def _entropy_and_unary(q: Array, unary: Array) -> float:
    q, unary = cuda.astype(q, np.float64), cuda.astype(unary, np.float64)
    entropy = ops.mul(q, arrays.logarithm(q, 1e-20))[0]
    return arrays.total(entropy) + arrays.total(ops.mul(q, unary)[0])


def _pairwise(q: Array, couplings: Sequence[Array], filters: Sequence[Normalised]) -> float:
    """sum_m <Q, C_m F_m Q>."""
    return sum(
        arrays.total(ops.mul(q, couple(arrays.here(coupling, q), kernel.apply(q)))[0])
        for coupling, kernel in zip(couplings, filters, strict=True)
    )
