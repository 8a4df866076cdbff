"""Is a gradient right? Three checks for any pair of functions on arrays: the operators of this package, or yours.

    y, cache = op(*inputs, **options)                       a forward pass
    gradients = op_backward(dy, cache)                      its backward pass, one gradient for each input

    check_vjp(op, op_backward, inputs)                      a few forward passes: for tests
    check_vjp_full(op, op_backward, inputs)                 every element, with a map of the wrong ones
    check_adjoint(linear, adjoint, x, y)                    for linear functions, exact to rounding

The mathematics. Let J be the matrix of all derivatives dy[j] / dx[i]. A backward pass must return g = Jᵀ dy for
whatever upstream gradient `dy` it is given (a "vector-Jacobian product", hence the names). For any direction v

    <dy, J v>  =  <g, v>        with        J v  =  (op(x + eps v) - op(x - eps v)) / (2 eps)  +  error

where the left side needs forward passes alone, and the right side the backward pass alone. Both dy and v are
random. It would be simpler to take dy = 1, that is, to differentiate the sum of y, and it would be blind: the sum
of a softmax is always one and the sum of normalised activations is always zero, so their right gradient vanishes,
and so does many a wrong one; and an upstream gradient that is the same everywhere cannot tell where it was used.

Tolerance. The difference quotient has two errors, eps² |y'''| / 6 from the curvature and u |y| / eps from rounding
(u = 1.1e-16). They balance near eps = cbrt(u), about 5e-6. With random signs <dy, J v> can be small by chance, so
the difference of both sides is not compared with the number itself but with its usual size over many draws:

    |<dy, J v> - <g, v>|  <=  rtol (|J v| + |g| / sqrt(size of x))  +  32 u |dy * y| / eps        (Euclidean norms)

Sources: Griewank & Walther, "Evaluating Derivatives", 2nd ed., SIAM 2008, chapter 3 (adjoint identity);
Nocedal & Wright, "Numerical Optimization", 2nd ed., Springer 2006, section 8.1 (the choice of eps).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyseg import gradcheck_report as report

Array = np.ndarray

EPS = 6e-6
RTOL = 1e-6
UNIT_ROUNDOFF = np.finfo(np.float64).eps / 2
EXPLAINED_SIZE = 300
"""A failed `check_vjp` goes through every element to explain itself when the input has at most so many."""


class GradientError(AssertionError):
    """A backward pass does not belong to its forward pass. The message says what is wrong, and where."""


# ------------------------------------------------------------------------------------------------------- public


def check_vjp(
    op: Callable,
    op_backward: Callable,
    inputs: Array | Sequence[Array | None],
    *,
    seed: int = 0,
    eps: float = EPS,
    rtol: float = RTOL,
    skip_kinks: bool = False,
    nondet_tol: float = 0.0,
    **options: Any,
) -> None:
    """Check a backward pass along one random direction per input. Silent when it is right.

    op           op(*inputs, **options) -> (y, cache); y is an array or a number (a loss)
    op_backward  op_backward(dy, cache) -> one gradient, or a tuple with one for each input
    inputs       float64 arrays. None (an absent argument) and integer arrays (labels, indices) are handed to `op`
                 as they are and not differentiated; the backward pass may return None for those, or skip them.
    seed         of the random upstream gradient and directions
    eps          length of the step along the direction
    rtol         largest relative difference, see the top of this file
    skip_kinks   leave out outputs with a kink (as relu has at 0) closer than eps: their dy is set to zero. Without
                 it a kink makes the check fail, and the message says so. Better: inputs from `spaced`.
    nondet_tol   largest difference between two runs on the same input; 0 asks for the same bits
    options      keyword arguments of `op`. One that is called seed, eps, rtol, skip_kinks or nondet_tol has to be
                 bound beforehand: `functools.partial(op, eps=1e-3)`.

    Raises GradientError if a gradient is wrong in value, shape or type, missing or NaN, if a pass changes its
    arguments, or if it is not deterministic; TypeError or ValueError if the inputs cannot be checked.

    >>> def square(x): return x * x, x
    >>> def square_backward(dy, x): return 2 * x * dy
    >>> check_vjp(square, square_backward, np.array([1.0, -2.0, 3.0]))
    """
    rng = np.random.default_rng(seed)
    run = _both_passes(
        _Pair(op, op_backward, inputs, options), rng, _Settings(seed, eps, rtol, skip_kinks, nondet_tol)
    )
    findings = []
    for i in run.gradients:
        v = _away_from_zero(rng, run.pair.inputs[i].shape)
        v /= np.linalg.norm(v)
        step = run.pair.step(i, run.y, v, eps)
        dy, g = _without_kinks(run, i, step) if skip_kinks else (run.dy, run.gradients[i])
        numerical, analytical = _dot(dy, step.derivative), _dot(g, step.direction)
        scale = np.linalg.norm(step.derivative) + np.linalg.norm(g) / np.sqrt(g.size)
        allowed = float(rtol * scale) + _rounding(dy, run.y, eps)
        if not abs(numerical - analytical) <= allowed:
            elements = _compare_elements(run, i) if g.size <= EXPLAINED_SIZE else None
            findings.append(_Finding(i, (numerical, analytical, allowed), elements, int(step.kinks.sum())))
    if findings:
        raise GradientError(_report(run, findings))


def check_vjp_full(
    op: Callable,
    op_backward: Callable,
    inputs: Array | Sequence[Array | None],
    *,
    seed: int = 0,
    eps: float = EPS,
    rtol: float = RTOL,
    skip_kinks: bool = False,
    nondet_tol: float = 0.0,
    **options: Any,
) -> None:
    """Check every element of every gradient: two forward passes for each. Arguments and errors as `check_vjp`.

    The message counts the wrong elements, shows the worst one and a map of where they lie, sets right and wrong
    numbers side by side, and says what the mistake looks like where it has a well-known form.
    `skip_kinks` leaves out the input elements that have a kink closer than eps.
    """
    rng = np.random.default_rng(seed)
    run = _both_passes(
        _Pair(op, op_backward, inputs, options), rng, _Settings(seed, eps, rtol, skip_kinks, nondet_tol)
    )
    compared = {i: _compare_elements(run, i) for i in run.gradients}
    findings = [_Finding(i, None, elements, 0) for i, elements in compared.items() if elements.wrong.any()]
    if findings:
        raise GradientError(_report(run, findings))


def check_adjoint(
    linear: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    x: Array,
    y: Array,
    *,
    rtol: float = 1e-12,
) -> None:
    """Check that two linear functions of one array are adjoint:  <A x, y> = <x, Aᵀ y>.

    No finite difference is involved, so the tolerance is that of rounding. It is the sharpest check of the
    backward pass of a linear operator, and the definition of transposed convolution.

    x, y    random float64 arrays, y of the shape of linear(x); not ones, see the top of this file
    rtol    largest difference relative to |A x| |y| + |x| |Aᵀ y|

    Raises GradientError if they are not adjoint, if a shape does not fit, or if `linear` is not linear (a bias?).

    >>> check_adjoint(np.cumsum, lambda y: np.cumsum(y[::-1])[::-1], np.array([1.0, 5.0]), np.array([2.0, -3.0]))
    """
    for name, array in (("x", x), ("y", y)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            raise TypeError(f"check_adjoint: {name} must be a float64 array, got {_kind(array)}")
        if array.size > 1 and (array == array.flat[0]).all():
            raise ValueError(
                f"check_adjoint: all elements of {name} are equal, which hides errors; use random ones"
            )
    ax, aty = linear(x), adjoint(y)
    for name, result, expected in (("linear(x)", ax, y), ("adjoint(y)", aty, x)):
        if not isinstance(result, np.ndarray | np.floating):
            raise TypeError(
                f"check_adjoint: {name} must return one array, got {_kind(result)}; "
                "for an operator that returns (y, cache) write `lambda x: op(x)[0]`"
            )
        if result.shape != expected.shape:
            raise GradientError(
                f"check_adjoint: {name} has shape {result.shape}, expected {expected.shape}: the adjoint of a map "
                f"from shape {x.shape} to shape {y.shape} goes the other way"
            )
        if not np.isfinite(result).all():
            raise GradientError(f"check_adjoint: {name} is not finite{_first_index(~np.isfinite(result))}")
    left, right = _dot(ax, y), _dot(x, aty)
    scale = np.linalg.norm(ax) * np.linalg.norm(y) + np.linalg.norm(x) * np.linalg.norm(aty)
    if not np.linalg.norm(linear(-x) + ax) <= rtol * np.linalg.norm(ax):
        raise GradientError(
            "check_adjoint: `linear` is not linear, linear(-x) differs from -linear(x); has it a bias?"
        )
    if not abs(left - right) <= rtol * scale:
        raise GradientError(
            "check_adjoint: the two functions are not adjoint\n"
            f"  <linear(x), y>  = {left: .15g}\n"
            f"  <x, adjoint(y)> = {right: .15g}\n"
            f"  they differ by {abs(left - right):.2g}, where {rtol * scale:.2g} is allowed (rtol={rtol:g})"
        )


def spaced(shape: int | Sequence[int], *, seed: int = 0) -> Array:
    """Evenly spaced float64 values between -1 and 1 in random order: an input without kinks nearby.

    No two values are closer than 2 / size and none is closer to zero than 1 / (2 size), so that a small step
    neither changes the maximum of a pooling window nor the sign in a relu.

    >>> spaced(4)
    array([ 0.125, -0.875, -0.375,  0.625])
    """
    size = int(np.prod(shape))
    values = (np.arange(size) + 0.25) * 2 / size - 1
    return np.random.default_rng(seed).permutation(values).reshape(shape)


# -------------------------------------------------------------------------- calling the two passes with care


class _Step(NamedTuple):
    """What a step along one direction of one input did to the result."""

    direction: Array  # the direction really taken, which is not quite v once x + eps v is rounded
    derivative: Array  # J v, the shape of y
    kinks: Array  # bool, the shape of y: the slopes before and behind x differ


class _Pair:
    """An operator and its backward pass at one input. Whatever they must not do is noticed here."""

    def __init__(self, op: Callable, op_backward: Callable, inputs: Any, options: dict[str, Any]):
        self.op, self.op_backward, self.options = op, op_backward, options
        self.inputs = (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)
        self.name = _function_name(op_backward, "the backward pass")
        self.op_name = _function_name(op, "the forward pass")
        self.input_names = _argument_names(op, len(self.inputs))
        self.gradient_names = ["d" + name if len(name) < 3 else "d_" + name for name in self.input_names]
        self.checked = [i for i, x in enumerate(self.inputs) if self._is_differentiable(i, x)]
        if not self.checked:
            raise ValueError(f"{self.name}: nothing to check, none of the inputs is a float64 array")

    def _is_differentiable(self, i: int, x: Any) -> bool:
        what = f"{self.name}: input {i} ({self.input_names[i]})"
        if x is None or isinstance(x, int | np.integer) or (isinstance(x, np.ndarray) and x.dtype.kind in "iub"):
            return False
        if not isinstance(x, np.ndarray):
            raise TypeError(
                f"{what} must be a NumPy array, got {_kind(x)}; pass other arguments as keyword options"
            )
        if x.dtype != np.float64:
            raise TypeError(
                f"{what} is {x.dtype}, whose rounding would drown the finite differences; "
                "check the operator with float64 inputs: x.astype('float64')"
            )
        if x.size == 0 or not np.isfinite(x).all():
            raise ValueError(f"{what}, shape {x.shape}, must be finite and not empty")
        return True

    def forward(self, inputs: Sequence) -> tuple[Array, Any]:
        """y and the cache. y becomes an array if it is a number."""
        result = self.op(*inputs, **self.options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{self.op_name} must return a pair (y, cache), got {_kind(result)}")
        y = np.asarray(result[0])
        if y.dtype != np.float64:
            raise GradientError(
                f"{self.op_name}: y is {y.dtype} though the inputs are float64; a step inside changes the type"
            )
        if y.size == 0 or not np.isfinite(y).all():
            raise GradientError(
                f"{self.op_name}: y, shape {y.shape}, must be finite and not empty{_first_index(~np.isfinite(y))}"
            )
        return y, result[1]

    def forward_twice(self, nondet_tol: float) -> tuple[Array, Any]:
        """The forward pass, which must leave its inputs alone and give the same result twice."""
        before = [np.copy(x) for x in self.inputs if isinstance(x, np.ndarray)]
        first = np.copy(self.forward(self.inputs)[0])
        self._inputs_unchanged(before, self.op_name)
        y, cache = self.forward(self.inputs)
        if not _repeats(first, y, nondet_tol):
            raise GradientError(
                f"{self.op_name}: two forward passes on the same inputs differ; "
                "an operator that draws random numbers must be checked with a fixed seed"
            )
        return y, cache

    def gradients(self, dy: Array, cache: Any) -> dict[int, Array]:
        """The gradient of each input that has one, by the input's index; each of the right shape and type."""
        before = [np.copy(x) for x in self.inputs if isinstance(x, np.ndarray)]
        given = dy.copy()
        result = self.op_backward(given, cache)
        if not np.array_equal(given, dy):
            raise GradientError(
                f"{self.name} changes dy in place; whoever passed it still needs it: write dy * 2, not dy *= 2"
            )
        self._inputs_unchanged(before, self.name)
        returned = list(result) if isinstance(result, tuple | list) else [result]
        if len(returned) == len(self.inputs):
            returned = [returned[i] for i in self.checked]
        if len(returned) != len(self.checked):
            raise GradientError(
                f"{self.name} returns {len(returned)} gradients, but the operator has {len(self.inputs)} inputs, "
                f"and these can be differentiated: {', '.join(self.input_names[i] for i in self.checked)}"
            )
        return {i: self._sound(i, gradient) for i, gradient in zip(self.checked, returned, strict=True)}

    def gradients_twice(self, dy: Array, cache: Any, nondet_tol: float) -> dict[int, Array]:
        """The gradients, which must come out the same when the backward pass is run again on the same cache."""
        first = self.gradients(dy, cache)
        second = self.gradients(dy, cache)
        for i in self.checked:
            if not _repeats(first[i], second[i], nondet_tol):
                fresh = self.gradients(dy, self.forward(self.inputs)[1])
                cause = (
                    "the first pass changed the cache in place"
                    if _repeats(first[i], fresh[i], nondet_tol)
                    else "it is not deterministic (random numbers, or sums in a varying order)"
                )
                raise GradientError(
                    f"{self.name}: two passes with the same dy and cache give different "
                    f"{self.gradient_names[i]}: {cause}"
                )
        return first

    def step(self, i: int, y: Array, v: Array, eps: float) -> _Step:
        """Step from input i by eps along v and back, and see how the result changes."""
        x = self.inputs[i]
        ahead, behind = x + eps * v, x - eps * v
        y_ahead = self.forward(self.inputs[:i] + (ahead,) + self.inputs[i + 1 :])[0]
        y_behind = self.forward(self.inputs[:i] + (behind,) + self.inputs[i + 1 :])[0]
        if y_ahead.shape != y.shape or y_behind.shape != y.shape:
            raise GradientError(f"{self.op_name}: the shape of y depends on the values of {self.input_names[i]}")
        return _Step(
            (ahead - behind) / (2 * eps), (y_ahead - y_behind) / (2 * eps), _kinks(y_behind, y, y_ahead, eps)
        )

    def _inputs_unchanged(self, before: list[Array], culprit: str) -> None:
        after = [(i, x) for i, x in enumerate(self.inputs) if isinstance(x, np.ndarray)]
        for (i, x), copy in zip(after, before, strict=True):
            if not np.array_equal(x, copy):
                raise GradientError(f"{culprit} changes its input {self.input_names[i]} in place; work on a copy")

    def _sound(self, i: int, gradient: Any) -> Array:
        """The gradient of input i as an array of its own, if shape, type and values are possible at all."""
        what, x = f"{self.name}: {self.gradient_names[i]}", self.inputs[i]
        if gradient is None:
            raise GradientError(
                f"{what} is None, but input {self.input_names[i]} needs a gradient of shape {x.shape}"
            )
        if not isinstance(gradient, np.ndarray | np.floating):
            raise GradientError(f"{what} must be an array of shape {x.shape}, got {_kind(gradient)}")
        if gradient.shape != x.shape:
            raise GradientError(
                f"{what} has shape {gradient.shape}, but its input {self.input_names[i]} has shape {x.shape}"
                + _shape_hint(gradient.shape, x.shape)
            )
        if gradient.dtype != np.float64:
            raise GradientError(f"{what} is {gradient.dtype} although all inputs and dy are float64")
        bad = ~np.isfinite(gradient)
        if bad.any():
            raise GradientError(f"{what} is not finite in {bad.sum()} of {bad.size} elements{_first_index(bad)}")
        return np.array(gradient)


class _Settings(NamedTuple):
    """How a gradient is judged: the options of `check_vjp`."""

    seed: int
    eps: float
    rtol: float
    skip_kinks: bool
    nondet_tol: float


class _Run(NamedTuple):
    """What both passes gave for one random upstream gradient."""

    pair: _Pair
    settings: _Settings
    y: Array
    cache: Any
    dy: Array
    gradients: dict[int, Array]  # by the input's index


def _both_passes(pair: _Pair, rng: np.random.Generator, settings: _Settings) -> _Run:
    y, cache = pair.forward_twice(settings.nondet_tol)
    dy = _away_from_zero(rng, y.shape)
    return _Run(pair, settings, y, cache, dy, pair.gradients_twice(dy, cache, settings.nondet_tol))


def _without_kinks(run: _Run, i: int, step: _Step) -> tuple[Array, Array]:
    """The upstream gradient with zeros for the outputs that have a kink, and the gradient of input i for it."""
    if not step.kinks.any():
        return run.dy, run.gradients[i]
    if step.kinks.all():
        raise ValueError(
            f"{run.pair.name}: every output has a kink within eps={run.settings.eps:g} of these inputs; use others"
        )
    dy = np.where(step.kinks, 0.0, run.dy)
    return dy, run.pair.gradients(dy, run.cache)[i]


def _kinks(y_behind: Array, y: Array, y_ahead: Array, eps: float) -> Array:
    """Where the slope before x differs from the slope behind it by much more than a curvature could explain."""
    slope_ahead, slope_behind = (y_ahead - y) / eps, (y - y_behind) / eps
    steepness = np.maximum(abs(slope_ahead), abs(slope_behind))
    typical = np.sqrt(np.mean(steepness**2))
    return abs(slope_ahead - slope_behind) > 1e-3 * (steepness + typical) + 64 * UNIT_ROUNDOFF * abs(y) / eps


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of size 1/2 to 3/2 and random sign: no element is so small that an error could hide there."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape))


def _rounding(dy: Array, y: Array, eps: float) -> float:
    """How far rounding of y alone can move <dy, J v>: some units in the last place, magnified by 1 / eps."""
    return float(32 * UNIT_ROUNDOFF * np.linalg.norm(dy * y) / eps)


def _repeats(a: Array, b: Array, tolerance: float) -> bool:
    return a.shape == b.shape and (np.array_equal(a, b) or bool(np.max(abs(a - b)) <= tolerance))


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))


# ------------------------------------------------------------------------------------------ explaining a failure


class _Finding(NamedTuple):
    """A gradient that is wrong."""

    input: int
    numbers: tuple[float, float, float] | None  # <dy, J v>, <g, v> and their allowed difference
    elements: report.Elements | None  # None where the input is too large to look at every element
    kinks: int  # number of outputs with a kink along the direction


def _compare_elements(run: _Run, i: int) -> report.Elements:
    """Finite differences for every single element of input i, for dy and for what mistakes make of dy."""
    dy, y, eps, got = run.dy, run.y, run.settings.eps, run.gradients[i]
    mistakes = list(report.mistakes(dy, got.ndim))
    upstreams = np.stack([dy, *(mistake.dy for mistake in mistakes)]).reshape(1 + len(mistakes), -1)
    products = np.empty((len(upstreams), got.size))  # <upstream, column of J>, for each upstream and each element
    allowed, kinks = np.empty(got.size), np.empty(got.size, bool)
    unit = np.zeros(got.shape)
    for k in range(got.size):
        unit.flat[k] = 1
        step = run.pair.step(i, y, unit, eps)
        unit.flat[k] = 0
        column = step.derivative.reshape(-1) / step.direction.flat[k]
        products[:, k] = upstreams @ column
        allowed[k] = run.settings.rtol * (np.linalg.norm(column) + abs(got.flat[k])) + _rounding(dy, y, eps)
        kinks[k] = step.kinks.any()
    expected, kinks = products[0].reshape(got.shape), kinks.reshape(got.shape)
    wrong = ~(abs(expected - got) <= allowed.reshape(got.shape))
    if run.settings.skip_kinks:
        if kinks.all():
            raise ValueError(
                f"{run.pair.name}: every element of input {i} has a kink within eps={eps:g}; use others"
            )
        wrong &= ~kinks
    suspects = {
        mistake.description: np.flip(row.reshape(got.shape), mistake.then_flip)
        for mistake, row in zip(mistakes, products[1:], strict=True)
    }
    other = run.pair.gradients(-dy[::-1] if dy.ndim else 3 * dy, run.cache)[i]
    ignores_dy = bool(np.any(got)) and np.array_equal(other, got)
    return report.Elements(expected, got, wrong, kinks, suspects, ignores_dy, y.shape)


def _report(run: _Run, findings: list[_Finding]) -> str:
    names = run.pair.gradient_names
    wrong = [names[finding.input] for finding in findings]
    right = [names[i] for i in run.gradients if names[i] not in wrong]
    lines = [f"{run.pair.name}: {_are(wrong)} wrong" + (f", {_are(right)} right" if right else "")]
    for finding in findings:
        i = finding.input
        argument = f"input {i} ({run.pair.input_names[i]}), shape {run.pair.inputs[i].shape}"
        lines.append(f"{names[i]}, the gradient of {argument}:")
        if finding.numbers:
            left, right_side = "<dy, J v>", f"<{names[i]}, v>"
            numerical, analytical, allowed = finding.numbers
            lines += [
                f"  {left:<12} = {numerical: .10g}   by finite differences of the forward pass",
                f"  {right_side:<12} = {analytical: .10g}   by the backward pass",
                f"  they differ by {abs(numerical - analytical):.2g}, where {allowed:.2g} is allowed",
            ]
        lines += _details(finding)
    settings = run.settings
    lines.append(f"To reproduce: seed={settings.seed}, eps={settings.eps:g}, rtol={settings.rtol:g}")
    return "\n".join(lines)


def _details(finding: _Finding) -> list[str]:
    """Which elements are wrong, and a hint."""
    elements = finding.elements
    if elements is None:
        lines = ["  which elements are wrong, check_vjp_full shows, best with a smaller input"]
        kinks, of_what = finding.kinks, "outputs"
    else:
        lines = report.explain(elements)
        kinks, of_what = int((elements.kinks & elements.wrong).sum()), "of the wrong elements"
    if kinks:
        lines += [
            f"  Hint: {kinks} {of_what} have a kink, as relu has at 0, within eps of these inputs. There finite",
            "  differences mean nothing: draw the inputs with `spaced`, or pass skip_kinks=True.",
        ]
    elif elements is not None and elements.wrong.any() and (hint := report.hint(elements)):
        lines.append(f"  Hint: {hint}.")
    return lines


# ---------------------------------------------------------------------------------------------------------- words


def _are(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def _first_index(bad: Array) -> str:
    if not bad.any():
        return ""
    return f"; the first such element is {list(map(int, np.argwhere(bad)[0])) if bad.ndim else 'y itself'}"


def _shape_hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    extra = len(got) - len(expected)
    if extra > 0 and got[extra:] == expected:
        return f"; is a sum over the first {extra} axes (the batch) missing?"
    if sorted(got) == sorted(expected):
        return "; are two axes swapped?"
    if np.prod(got) == np.prod(expected):
        return "; a reshape is missing"
    if len(got) == len(expected) and all(g in (e, 1) or e == 1 for g, e in zip(got, expected, strict=True)):
        axes = [axis for axis, (g, e) in enumerate(zip(got, expected, strict=True)) if g != e]
        where = report.axes_in_words(axes)
        return f"; where a forward pass broadcasts along {where}, its backward pass sums, and the reverse"
    return ""


def _function_name(function: Callable, otherwise: str) -> str:
    function = getattr(function, "func", function)  # functools.partial
    name = getattr(function, "__name__", "<lambda>")
    return otherwise if name == "<lambda>" else name


def _argument_names(op: Callable, count: int) -> list[str]:
    """The names of the operator's first arguments, or x0, x1, ... where they cannot be found out."""
    try:
        parameters = inspect.signature(op).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[:count] if len(names) >= count else [f"x{i}" for i in range(count)]
