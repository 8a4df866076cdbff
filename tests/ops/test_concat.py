"""Joining and cutting, by hand, against PyTorch, and as adjoints of each other's kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp


def as_pair(arrays, axis):
    """concat as an operator on separate arguments, which the gradient checks want."""
    return (lambda *xs: ops.concat(xs, axis=axis)), ops.concat_backward, arrays


@st.composite
def joins(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shapes = []
    for _ in range(draw(st.integers(1, 4))):
        shape[axis] = draw(st.integers(1, 4))
        shapes.append(tuple(shape))
    return shapes, axis


@st.composite
def cuts(draw):
    """A shape, ranges for some of its axes, in any of Python's ways to write them, and the plain slices."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    ranges, plain = {}, [np.s_[:]] * len(shape)
    for axis, length in enumerate(shape):
        first = draw(st.integers(0, length - 1))
        last = draw(st.integers(first + 1, length))
        plain[axis] = np.s_[first:last]
        start = draw(st.sampled_from([first, first - length] + ([None] if first == 0 else [])))
        stop = draw(st.sampled_from([last] + ([None] if last == length else [last - length])))
        ranges[draw(st.sampled_from([axis, axis - len(shape)]))] = (start, stop)
    return shape, ranges, tuple(plain)


def test_concat_by_hand(backend):
    a, b = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    y, cache = ops.concat([a, b, a])
    np.testing.assert_array_equal(y, [[1, 3, 4, 1], [2, 5, 6, 2]])
    first, second, third = ops.concat_backward(np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), cache)
    np.testing.assert_array_equal(first, [[1], [5]])
    np.testing.assert_array_equal(second, [[2, 3], [6, 7]])
    np.testing.assert_array_equal(third, [[4], [8]])
    np.testing.assert_array_equal(ops.concat([a, b.T[:, :1]], axis=0)[0], [[1], [2], [3], [4]])


def test_slice_by_hand(backend):
    x = np.arange(12.0).reshape(3, 4)
    y, cache = ops.slice(x, {0: (1, None), 1: (-3, 3)})
    np.testing.assert_array_equal(y, [[5, 6], [9, 10]])
    dx = ops.slice_backward(np.array([[1.0, 2.0], [3.0, 4.0]]), cache)
    np.testing.assert_array_equal(dx, [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0]])


@pytest.mark.oracle
@settings(max_examples=50)
@given(join=joins(), seed=st.integers(0, 1000))
def test_concat_agrees_with_torch(join, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    (shapes, axis), rng = join, np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = torch.cat(theirs, axis)
    dy = rng.standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(dy))
    y, cache = ops.concat(arrays, axis=axis)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    for gradient, other in zip(ops.concat_backward(dy, cache), theirs, strict=True):
        np.testing.assert_array_equal(gradient, other.grad.numpy())
        assert gradient.flags.c_contiguous


@settings(max_examples=50)
@given(cut=cuts(), seed=st.integers(0, 1000))
def test_slice_agrees_with_plain_indexing(cut, seed):
    (shape, ranges, plain), rng = cut, np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    y, cache = ops.slice(x, ranges)
    np.testing.assert_array_equal(y, x[plain])
    dx = ops.slice_backward(y, cache)
    np.testing.assert_array_equal(dx[plain], y)
    assert np.count_nonzero(dx) == y.size


def test_gradients(backend, rng):
    arrays = [rng.standard_normal((2, 3, 5, channels)) for channels in (4, 1, 6)]
    check_vjp(*as_pair(arrays, axis=-1))
    check_vjp(*as_pair([rng.standard_normal((2, rows, 3)) for rows in (4, 1)], axis=1))
    check_vjp(lambda x: ops.slice(x, {1: (1, -1), 3: (2, 4)}), ops.slice_backward, arrays[0])


def test_adjoints(backend, rng):
    x, dy = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 3, 4))
    cache = ops.slice(x, {1: (1, 4)})[1]
    check_adjoint(lambda x: ops.slice(x, {1: (1, 4)})[0], lambda dy: ops.slice_backward(dy, cache), x, dy)

    one, other = rng.standard_normal((2, 4)), np.zeros((2, 3))
    cache = ops.concat([one, other])[1]
    check_adjoint(
        lambda x: ops.concat([x, other])[0],
        lambda dy: ops.concat_backward(dy, cache)[0],
        one,
        rng.standard_normal((2, 7)),
    )


def test_slicing_undoes_joining(backend, rng):
    a, b = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((2, 3, 1)).astype(np.float32)
    y, _ = ops.concat([a.transpose(0, 1, 2), b])
    np.testing.assert_array_equal(ops.slice(y, {-1: (0, 4)})[0], a)
    np.testing.assert_array_equal(ops.slice(y, {-1: (4, 5)})[0], b)
    assert ops.slice(y, {-1: (4, 5)})[0].dtype == np.float32


def test_only_what_is_needed(rng):
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 1))
    y, cache = ops.concat([a, b])
    first, second = ops.concat_backward(y, cache, need=(False, True))
    assert first is None
    np.testing.assert_array_equal(second, b)


def test_errors():
    a = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="concat: there are no arrays to join"):
        ops.concat([])
    with pytest.raises(
        ValueError, match=r"arrays\[1\] must have shape \(2, 3, 5\).*but for axis 2.*crop or pad.*got \(2, 2, 5\)"
    ):
        ops.concat([a, np.zeros((2, 2, 5))])
    with pytest.raises(ValueError, match=r"arrays\[1\] must have shape"):
        ops.concat([a, np.zeros((2, 3))])
    with pytest.raises(ValueError, match=r"concat: there is no axis 3, the arrays have 3 axes"):
        ops.concat([a], axis=3)
    with pytest.raises(TypeError, match=r"arrays\[0\] is float64, arrays\[1\] is float32"):
        ops.concat([a, a.astype(np.float32)])
    with pytest.raises(ValueError, match=r"concat_backward: dy must have shape \(2, 3, 8\)"):
        ops.concat_backward(a, ops.concat([a, a])[1])
    with pytest.raises(ValueError, match=r"slice: the range \(1, 4\) of axis 1 must keep .* its 3 elements"):
        ops.slice(a, {1: (1, 4)})
    with pytest.raises(ValueError, match=r"range \(2, 2\) of axis 0"):
        ops.slice(a, {0: (2, 2)})
    with pytest.raises(ValueError, match=r"range \(-4, None\) of axis 1"):
        ops.slice(a, {1: (-4, None)})
    with pytest.raises(ValueError, match="slice: there is no axis -4"):
        ops.slice(a, {-4: (0, 1)})
    with pytest.raises(ValueError, match=r"slice_backward: dy must have shape \(1, 3, 4\)"):
        ops.slice_backward(a, ops.slice(a, {0: (0, 1)})[1])
