"""What a failed gradient check says: which elements are wrong, where they lie, and what the mistake looks like.

`tinyseg.gradcheck` compares; this file draws the comparison and tries a list of well-known mistakes on it. A
mistake is recognised in one of two ways. Either the wrong gradient is the right one transformed: scaled, flipped,
shifted, transposed. Or it is the right gradient for another upstream gradient, as when dy is averaged or read
backwards; for that, the finite differences are also multiplied with the altered upstream gradients of `mistakes`.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Elements(NamedTuple):
    """One gradient, element by element."""

    expected: Array  # by finite differences
    got: Array
    wrong: Array  # bool
    kinks: Array  # bool: some output has a kink near this element
    suspects: dict[str, Array]  # what well-known mistakes would have given
    ignores_dy: bool
    y_shape: tuple[int, ...]


def explain(e: Elements) -> list[str]:
    """How many elements are wrong, the worst one, a map of them, and numbers side by side. One string a line."""
    if not e.wrong.any():
        return [
            "  yet every single element is within its tolerance: the error is spread thinly, or eps does not suit",
            "  this function; try another eps",
        ]
    error = np.where(e.wrong, abs(e.expected - e.got), -1)
    worst = np.unravel_index(int(np.argmax(error)), error.shape)
    lines = [
        f"  {e.wrong.sum()} of {e.wrong.size} elements are wrong; the worst at {list(map(int, worst))}: "
        f"expected {e.expected[worst]:.8g}, got {e.got[worst]:.8g}"
    ]
    if e.wrong.ndim:
        rows, columns = _telling_axes(e.wrong)
        if not e.wrong.all():
            lines += _map(e.wrong, rows, columns)
        lines += _numbers_around(e, worst, rows, columns)
    return [line.rstrip() for line in lines]


def _telling_axes(wrong: Array) -> tuple[int | None, int]:
    """The two axes along which the number of wrong elements varies most; if none does, the longest two."""
    if wrong.ndim == 1:
        return None, 0

    def variation(axes: tuple[int, int]) -> tuple[float, int]:
        share = wrong.mean(axis=tuple(axis for axis in range(wrong.ndim) if axis not in axes))
        return round(float(share.var()), 12), share.size

    return max(itertools.combinations(range(wrong.ndim), 2), key=variation)


def _map(wrong: Array, rows: int | None, columns: int) -> list[str]:
    """One character for each position along two axes."""
    share = wrong.mean(axis=tuple(axis for axis in range(wrong.ndim) if axis not in (rows, columns)))
    directions = f"axis {columns} runs to the right" + ("" if rows is None else f", axis {rows} downwards")
    lines = [f"  where (# wrong, + wrong in part, . right; {directions}):"]
    for row in np.atleast_2d(share)[:24]:
        lines.append("    " + "".join("#" if s == 1 else "+" if s > 0 else "." for s in row[:72]))
    return lines


def _numbers_around(e: Elements, worst: tuple, rows: int | None, columns: int) -> list[str]:
    """Right and wrong numbers side by side, near the worst element."""
    index: list[Any] = list(map(int, worst))
    for axis in (rows, columns):
        if axis is not None:
            index[axis] = slice(max(0, index[axis] - 2), min(e.got.shape[axis], index[axis] + 3))
    place = ", ".join(f"{at.start}:{at.stop}" if isinstance(at, slice) else str(at) for at in index)
    expected, got = np.atleast_2d(e.expected[tuple(index)]), np.atleast_2d(e.got[tuple(index)])
    width = 11 * expected.shape[1]
    lines = [f"  numbers near it, [{place}]:", f"    {'expected':<{width}}  |  got"]
    for left, right in zip(expected + 0.0, got + 0.0, strict=True):  # + 0.0 makes minus zero plain zero
        lines.append(
            "    " + "".join(f"{n:< 11.4g}" for n in left) + "  |  " + "".join(f"{n:< 11.4g}" for n in right)
        )
    return lines


# ------------------------------------------------------------------------------------- what the mistake looks like


class Mistake(NamedTuple):
    """A mistake that amounts to the right backward pass with another upstream gradient."""

    description: str
    dy: Array
    then_flip: tuple[int, ...] = ()  # and with the result reversed along these axes


def mistakes(dy: Array, x_ndim: int) -> Iterator[Mistake]:
    """Upstream gradients that a mistaken backward pass may have used in place of dy."""
    yield Mistake("it is the right gradient for dy = 1: dy is not used, multiply by it", np.ones_like(dy))
    if dy.size > 1:
        yield Mistake("it is the right gradient for the mean of dy in place of dy", np.full_like(dy, dy.mean()))
        yield Mistake("it is the right gradient for the sum of dy in place of dy", np.full_like(dy, dy.sum()))
    long_axes = [axis for axis in range(dy.ndim) if dy.shape[axis] > 1]
    for axes in [*itertools.combinations(long_axes, 1), *itertools.combinations(long_axes, 2)]:
        yield Mistake(f"dy is read backwards along {axes_in_words(axes)}", np.flip(dy, axes))
        if x_ndim == dy.ndim:  # a window slides over x: reversing the window = reversing dy and the result
            yield Mistake(f"a kernel is used reversed along {axes_in_words(axes)}", np.flip(dy, axes), axes)
    for a, b in itertools.combinations(long_axes, 2):
        if dy.shape[a] == dy.shape[b]:
            yield Mistake(f"axes {a} and {b} of dy are swapped", np.swapaxes(dy, a, b))
    if dy.ndim > 1 and dy.shape[0] > 1:
        for n in (0, dy.shape[0] - 1):
            alone = np.zeros_like(dy)
            alone[n] = dy[n]
            yield Mistake(f"it is what example {n} contributes: sum over the batch (axis 0 of y)", alone)


def hint(e: Elements) -> str | None:
    """What the mistake looks like, if it has one of the well-known forms."""
    return next((text for look in _LOOKS if (text := look(e))), None)


def _hint_zero(e: Elements) -> str | None:
    return None if e.got.any() else "the gradient is zero everywhere"


def _hint_upstream(e: Elements) -> str | None:
    for text, gradient in e.suspects.items():
        if gradient.any() and _same(e.got, gradient):
            return text
    return "the gradient does not depend on dy" if e.ignores_dy else None


def _hint_scaled(e: Elements) -> str | None:
    factor = _inner(e.got, e.expected) / max(_inner(e.expected, e.expected), 1e-300)
    if not _same(e.got, factor * e.expected):
        return None
    if abs(factor + 1) < 1e-5:
        return "the sign is wrong everywhere"
    for n, meaning in _counts(e):
        for value, text in ((n, str(n)), (1 / n, f"1/{n}")):
            if n > 1 and abs(factor - value) < 1e-5 * value:
                return (
                    f"the gradient is {text} times the right one, and {n} is {meaning}; "
                    "a mean for a sum, or the reverse"
                )
    return f"the gradient is {factor:.6g} times the right one everywhere"


def _counts(e: Elements) -> Iterator[tuple[int, str]]:
    for name, shape in (("y", e.y_shape), ("the input", e.got.shape)):
        yield int(np.prod(shape)), f"the number of elements of {name}"
        for axis, length in enumerate(shape):
            yield length, f"the length of axis {axis} of {name}"
        yield int(np.prod(shape[:-1])), f"the number of elements of {name} in one channel (last axis)"


def _hint_flipped(e: Elements) -> str | None:
    for count in range(1, e.got.ndim + 1):
        for axes in itertools.combinations(range(e.got.ndim), count):
            if _same(e.got, np.flip(e.expected, axes)):
                return f"the gradient would be right if it were flipped along {axes_in_words(axes)}"
    return None


def _hint_transposed(e: Elements) -> str | None:
    for order in itertools.permutations(range(e.got.ndim)):
        swapped = np.transpose(e.expected, order)
        if order != tuple(range(e.got.ndim)) and swapped.shape == e.got.shape and _same(e.got, swapped):
            moved = [axis for axis, source in enumerate(order) if axis != source]
            change = "swapped" if len(moved) == 2 else "permuted"
            return f"the gradient would be right with {axes_in_words(moved)} {change}"
    return None


def _hint_shifted(e: Elements) -> str | None:
    for axis, length in enumerate(e.got.shape):
        for shift in (1, -1, 2, -2):
            if length - abs(shift) < 2:
                continue
            here = [slice(None)] * e.got.ndim
            there = list(here)
            here[axis] = slice(shift, None) if shift > 0 else slice(None, shift)
            there[axis] = slice(None, -shift) if shift > 0 else slice(-shift, None)
            if e.expected[tuple(there)].any() and _same(e.got[tuple(here)], e.expected[tuple(there)]):
                return f"the gradient lies {abs(shift)} too {'far' if shift > 0 else 'near'} along axis {axis}"
    return None


def _hint_border(e: Elements) -> str | None:
    """The wrong elements are exactly on the border of two or one of the axes, and there is an inside."""
    for count in (2, 1):
        for axes in itertools.combinations(range(e.got.ndim), count):
            border = np.zeros(e.got.shape, bool)
            for axis in axes:
                ends = [slice(None)] * e.got.ndim
                for end in (0, -1):
                    ends[axis] = end  # type: ignore[call-overload]
                    border[tuple(ends)] = True
            if min(e.got.shape[axis] for axis in axes) > 2 and not (e.wrong & ~border).any():
                return (
                    f"only elements at the border of {axes_in_words(axes)} are wrong; look at the padding"
                    + _ratio(e)
                )
    return None


def _hint_mean_missing(e: Elements) -> str | None:
    """The error is constant along some axes, as where a mean over them was left out (softmax, normalisation)."""
    error = e.got - e.expected
    for count in range(e.got.ndim, 0, -1):
        for axes in itertools.combinations(range(e.got.ndim), count):
            if np.prod([e.got.shape[axis] for axis in axes]) <= 2:
                continue
            mean = error.mean(axis=axes, keepdims=True)
            if _same(error, np.broadcast_to(mean, error.shape)):
                where = axes_in_words(axes)
                return f"the error is the same number all along {where}: a sum or mean over them is missing"
    return None


def _hint_ratio(e: Elements) -> str | None:
    return _ratio(e).removeprefix(": ") or None


def _ratio(e: Elements) -> str:
    """If the wrong elements are all the same multiple of the right ones: which."""
    got, expected = e.got[e.wrong], e.expected[e.wrong]
    if not got.any():
        return ": the wrong elements are all zero"
    factor = _inner(got, expected) / max(_inner(expected, expected), 1e-300)
    if got.size > 1 and _same(got, factor * expected):
        return f": the wrong elements are {factor:.6g} times the right ones"
    return ""


_LOOKS = (
    _hint_zero,
    _hint_scaled,
    _hint_upstream,
    _hint_flipped,
    _hint_transposed,
    _hint_border,
    _hint_shifted,
    _hint_mean_missing,
    _hint_ratio,
)


def _same(a: Array, b: Array) -> bool:
    return bool(np.max(abs(a - b)) <= 1e-6 * np.max(abs(b)))


def axes_in_words(axes: Sequence[int]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else "axes " + " and ".join(map(str, axes))


def _inner(a: Array, b: Array) -> float:
    return float(np.sum(a * b))
