r"""Mean-field inference in a dense CRF, as an operator pair: T updates forward, the same T updates backward.

The model. N pixels take labels x_i out of L, with the energy

    E(x)  =  sum_i U_i(x_i)  +  sum_{i<j} sum_m C_m(x_i, x_j) K_m(f_i, f_j)

U is the unary energy, -log of what a network believes; K_m are Gaussian kernels (`filters`) and C_m says what it
costs that two similar pixels carry the labels a and b. Mean field replaces P(x) ~ exp(-E(x)) by the product of N
independent distributions Q_i that is closest to it, and iterates towards it:

    Q^0  =  softmax(-U)
    X^t  =  -U - sum_m C_m F_m Q^t                Q^{t+1}  =  softmax(X^t)                 t = 0 ... T-1

with softmax over the labels of each pixel, F_m the normalised filter (see `filters`), and (C F Q)_i = C (F Q)_i.
All terms see the same old Q. The sum includes each pixel's own Q_i, weighted by F_ii, as in every implementation.

    unary     (N, L)                the energy U
    coupling  one per filter:       ()      a number c: C = c I
                                    (L,)    C = diag(c)
                                    (L, L)  C, of any form
    result    (N, L)                Q^T, or X^{T-1} with logits=True, for a loss that contains the softmax

Potts model: two similar pixels pay w unless their labels agree, C(a, b) = w [a != b]. As sum_b Q_j(b) [a != b] =
1 - Q_j(a), and softmax does not see a constant, it is the same as a reward for agreement: the coupling -w.

Backward. With G = dLoss/dQ^T, going backwards through the updates,

    gX  =  Q^{t+1} (G - sum_l Q^{t+1}_l G_l)       softmax, label by label
    dU -=  gX
    dC_m -=  sum_i gX_i (F_m Q^t)_iᵀ               its diagonal for (L,), its trace for ()
    G   =  - sum_m F_mᵀ (gX C_m)                   C_mᵀ applied to each pixel's row

and finally dU -= gX once more, through Q^0 = softmax(-U). The forward pass keeps Q^0 ... Q^T; F_m Q^t is computed
again, so training costs 3 T filterings per kernel instead of T, and (T + 1) N L numbers of memory.

Sources: Krähenbühl & Koltun, NIPS 2011, algorithm 1 and eq. 4; the same, ICML 2013, section 4 (gradients);
Zheng et al., "Conditional random fields as recurrent neural networks", ICCV 2015.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.crf import arrays
from tinyseg.crf.filters import Normalised
from tinyseg.ops import checks
from tinyseg.ops.arithmetic import MulCache
from tinyseg.ops.linear import LinearCache
from tinyseg.ops.softmax import SoftmaxCache


class MeanFieldCache(NamedTuple):
    marginals: list[Array]  # Q^0 ... Q^T, each (N, L)
    couplings: tuple[Array, ...]
    filters: tuple[Normalised, ...]
    logits: bool  # the result was X^{T-1}, not Q^T


def mean_field(
    unary: Array, *couplings: Array, filters: Sequence[Normalised], iterations: int = 5, logits: bool = False
) -> tuple[Array, MeanFieldCache]:
    """Run `iterations` updates from unary energies (N, L); one coupling for each filter. Returns Q^T, (N, L)."""
    check_model("mean_field", unary, couplings, filters, iterations)
    if logits and iterations == 0:
        raise ValueError("mean_field: logits=True needs at least one iteration")
    x = arrays.negative(unary)
    marginals = [softmax(x)]
    for _ in range(iterations):
        x = update(unary, marginals[-1], couplings, filters)
        marginals.append(softmax(x))
    return x if logits else marginals[-1], MeanFieldCache(marginals, couplings, tuple(filters), logits)


def mean_field_backward(
    dq: Array, cache: MeanFieldCache, *, need: Sequence[bool] | None = None
) -> tuple[Array | None, ...]:
    """The gradients (d_unary, d_coupling, d_coupling, ...): of unary (N, L), and of each coupling."""
    need = (True,) * (1 + len(cache.couplings)) if need is None else need
    checks.upstream("mean_field_backward", dq, cache.marginals[0].shape, cache.marginals[0].dtype)
    d_unary, d_couplings, _ = backward_pass(dq, cache, need_couplings=need[1:])
    return (d_unary if need[0] else None, *d_couplings)


# ------------------------------------------------------------------------------------------------- the parts of it


def softmax(x: Array) -> Array:
    """Over the last axis."""
    return ops.softmax(x)[0]


def update(unary: Array, q: Array, couplings: Sequence[Array], filters: Sequence[Normalised]) -> Array:
    """X = -U - sum_m C_m F_m Q, (N, L)."""
    x = arrays.negative(unary)
    for coupling, kernel in zip(couplings, filters, strict=True):
        x = ops.add(x, couple(arrays.negative(coupling), kernel.apply(q)))[0]
    return x


def couple(coupling: Array, message: Array) -> Array:
    """C applied to each row of a message (N, L)."""
    if coupling.ndim == 2:
        return ops.linear(message, coupling.transpose())[0]
    return ops.mul(message, coupling)[0]


def backward_pass(
    dq: Array, cache: MeanFieldCache, *, need_couplings: Sequence[bool], need_bandwidths: bool = False
) -> tuple[Array, list[Array | None], list[Array]]:
    """d_unary, d_couplings, and the gradient with respect to each filter's log bandwidths, float64 (d,)."""
    minus = [arrays.negative(coupling) for coupling in cache.couplings]
    d_unary: Any = None
    d_couplings: list[Array | None] = [None] * len(minus)
    d_bandwidths = [np.zeros(1)] * len(minus)
    g: Any = dq
    for step in range(len(cache.marginals) - 2, -1, -1):
        q, result_of_step = cache.marginals[step], cache.marginals[step + 1]
        dx = _softmax_backward(g, result_of_step) if g is not dq or not cache.logits else dq
        d_unary = plus(d_unary, dx)
        g = None
        for m, kernel in enumerate(cache.filters):
            d_message = couple(minus[m].transpose(), dx)
            g = plus(g, kernel.apply_transpose(d_message))
            if need_couplings[m]:
                d_couplings[m] = plus(d_couplings[m], _coupling_gradient(minus[m], dx, kernel.apply(q)))
            if need_bandwidths:
                d_bandwidths[m] = d_bandwidths[m] + kernel.log_bandwidth_gradient(d_message, q)
        if g is None:  # there are no filters, and each step starts from the unary energies again
            break
    else:
        d_unary = plus(d_unary, _softmax_backward(g, cache.marginals[0]))
    return arrays.negative(d_unary), [d if d is None else arrays.negative(d) for d in d_couplings], d_bandwidths


def _softmax_backward(g: Array, q: Array) -> Array:
    return ops.softmax_backward(g, SoftmaxCache(q))


def _coupling_gradient(coupling: Array, dx: Array, message: Array) -> Any:
    """sum_i dx_i message_iᵀ, and of it the diagonal for a coupling (L,) or the trace for ()."""
    if coupling.ndim == 2:
        return ops.linear_backward(message, LinearCache(dx, coupling, False), need=(False, True, False))[1]
    return ops.mul_backward(dx, MulCache(message, coupling), need=(False, True))[1]


def plus(total: Array | None, part: Array) -> Array:
    """A sum that begins with nothing."""
    return part if total is None else ops.add(total, part)[0]


# --------------------------------------------------------------------------------------------------------- checks


def check_model(
    operator: str, unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int
) -> None:
    """Shapes, types and values of a model fit together."""
    named: dict[str, Any] = {f"coupling {m}": coupling for m, coupling in enumerate(couplings)}
    checks.floating(operator, unary=unary, **named)
    checks.rank(operator, "unary", unary, "N L")
    check_finite(operator, "unary", unary)
    if len(couplings) != len(filters):
        raise ValueError(
            f"{operator}: {len(couplings)} couplings for {len(filters)} filters; each filter needs one"
        )
    for kernel in filters:
        if kernel.points != len(unary):
            raise ValueError(
                f"{operator}: unary has {len(unary)} points, but a filter was made for {kernel.points}"
            )
    labels = unary.shape[1]
    for name, coupling in named.items():
        if coupling.shape not in ((), (labels,), (labels, labels)):
            raise ValueError(
                f"{operator}: {name} must be a number, or have shape ({labels},) or ({labels}, {labels}) "
                f"for {labels} labels; got {coupling.shape}"
            )
        check_finite(operator, name, coupling)
    if iterations < 0:
        raise ValueError(f"{operator}: iterations must be 0 or more, got {iterations}")


def check_finite(operator: str, name: str, array: Array) -> None:
    """No NaN and no infinity; the message says how many there are, and where the first is.

    Arrays on a GPU are not looked at: the host would have to wait for it.
    """
    if cuda.on_gpu(array):
        return
    if np.isfinite(np.sum(array, dtype=np.float64)):  # one cheap pass; a sum is not finite if any element is not
        return
    bad = ~np.isfinite(array)
    if bad.any():
        where = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{operator}: {name}, shape {array.shape}, is not finite in {int(bad.sum())} of {bad.size} values, "
            f"the first at index [{where}]"
        )
