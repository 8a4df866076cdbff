"""Sums and products with broadcasting, by hand, against PyTorch, and as adjoints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

PAIRS = {"add": (ops.add, ops.add_backward), "mul": (ops.mul, ops.mul_backward)}


@st.composite
def shapes(draw):
    """Two shapes that broadcast: axes of the common shape are set to 1, or left out at the front."""
    common = draw(st.lists(st.integers(1, 5), max_size=4))
    pair = []
    for _ in range(2):
        stretched = [draw(st.sampled_from([length, length, 1])) for length in common]
        pair.append(tuple(stretched[draw(st.integers(0, len(common))) :]))
    return pair


def test_by_hand(backend):
    a = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    b = np.array([[10.0], [20.0]])
    dy = np.array([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.5]])

    y, cache = ops.add(a, b)
    np.testing.assert_array_equal(y, [[11, 12, 13], [24, 25, 26]])
    da, db = ops.add_backward(dy, cache)
    np.testing.assert_array_equal(da, dy)
    np.testing.assert_array_equal(db, [[3], [2.5]])

    y, cache = ops.mul(a, b)
    np.testing.assert_array_equal(y, [[10, 20, 30], [80, 100, 120]])
    da, db = ops.mul_backward(dy, cache)
    np.testing.assert_array_equal(da, [[10, 0, 20], [-20, 60, 10]])
    np.testing.assert_array_equal(db, [[1 + 6], [-4 + 15 + 3]])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["numpy", "numba"])
@settings(max_examples=50)
@given(pair=shapes(), function=st.sampled_from(sorted(PAIRS)), seed=st.integers(0, 1000))
def test_agrees_with_torch(name, pair, function, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(seed)
    a, b = (np.asarray(rng.standard_normal(shape)) for shape in pair)
    theirs = [torch.tensor(array, requires_grad=True) for array in (a, b)]
    expected = getattr(torch, function)(*theirs)
    dy = np.asarray(rng.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(dy))
    op, op_backward = PAIRS[function]
    with tinyseg.use(name):
        y, cache = op(a, b)
        gradients = op_backward(dy, cache)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    for gradient, array, other in zip(gradients, (a, b), theirs, strict=True):
        assert gradient.shape == array.shape
        np.testing.assert_allclose(gradient, other.grad.numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("function", PAIRS)
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [((2, 3, 5, 4), (2, 3, 5, 4)), ((2, 3, 5, 1), (2, 3, 5, 4)), ((2, 3, 5, 4), (2, 1, 1, 4)), ((4,), (3, 1))],
)
def test_gradients(backend, rng, function, a_shape, b_shape):
    check_vjp(*PAIRS[function], (rng.standard_normal(a_shape), rng.standard_normal(b_shape)))


def test_each_half_is_linear_and_has_its_adjoint(backend, rng):
    a, b, y = rng.standard_normal((2, 1, 5, 1)), rng.standard_normal((3, 5, 4)), rng.standard_normal((2, 3, 5, 4))
    for op, op_backward in PAIRS.values():
        other = b if op is ops.mul else np.zeros_like(b)
        cache = op(a, other)[1]

        def forward(x, op=op, other=other):
            return op(x, other)[0]

        def adjoint(dy, op_backward=op_backward, cache=cache):
            return op_backward(dy, cache)[0]

        check_adjoint(forward, adjoint, a, y)


@pytest.mark.parametrize("function", PAIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_agree_on_arrays_that_are_not_contiguous(rng, function, dtype):
    a = rng.standard_normal((5, 4, 6)).astype(dtype).transpose(2, 0, 1)[:, ::2]  # (6, 3, 4)
    b = rng.standard_normal((4, 3, 6)).astype(dtype).T
    dy = rng.standard_normal(a.shape).astype(dtype)[::-1]
    op, op_backward = PAIRS[function]
    results = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            y, cache = op(a, b)
            results.append((y, *op_backward(dy, cache)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_array_equal(one, other)


def test_only_what_is_needed(backend, rng):
    a, b = rng.standard_normal((2, 3)), rng.standard_normal(3)
    for op, op_backward in PAIRS.values():
        y, cache = op(a, b)
        da, db = op_backward(y, cache)
        assert op_backward(y, cache, need=(False, False)) == (None, None)
        np.testing.assert_array_equal(op_backward(y, cache, need=(True, False))[0], da)
        np.testing.assert_array_equal(op_backward(y, cache, need=(False, True))[1], db)


def test_a_long_sum_in_float32_keeps_its_digits(backend):
    """Summed one after the other in float32, two million times 0.1 would be 200 thousand only to 3 digits."""
    dy = np.full((2_000_000, 1), 0.1, np.float32)
    _, cache = ops.add(dy, np.zeros(1, np.float32))
    np.testing.assert_allclose(ops.add_backward(dy, cache)[1], 2e6 * np.float64(np.float32(0.1)), rtol=1e-7)


@pytest.mark.parametrize("function", PAIRS)
def test_errors(function):
    op, op_backward = PAIRS[function]
    a, b = np.zeros((2, 3)), np.zeros((2, 4))
    with pytest.raises(ValueError, match=rf"{function}: a of shape \(2, 3\) and b of shape \(2, 4\) do not fit"):
        op(a, b)
    with pytest.raises(
        TypeError, match=f"{function}: all arrays must have one type, but a is float64, b is float32"
    ):
        op(a, a.astype(np.float32))
    with pytest.raises(ValueError, match=rf"{function}_backward: dy must have shape \(2, 3\).*got \(2, 4\)"):
        op_backward(b, op(a, np.zeros(3))[1])
