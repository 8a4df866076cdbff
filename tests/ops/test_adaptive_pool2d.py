"""Adaptive and global pooling, against numbers by hand and PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ("numpy", "numba")

IMAGE = np.array(
    [
        [1.0, 5.0, 2.0, 0.0, 7.0],
        [3.0, 3.0, 2.0, 4.0, 7.0],
        [6.0, 0.0, 8.0, 9.0, 1.0],
    ]
).reshape(1, 3, 5, 1)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 17]))
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))  # also more bins than cells
seeds = st.integers(0, 2**32 - 1)


def plane(array):
    """The first image's first channel."""
    return array[0, :, :, 0]


def to_torch(torch, array, **options):
    return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)), **options)


def from_torch(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_averages_by_hand(backend):
    # Bins of rows: 0..1, 1..2; of columns: 0..1, 1..3, 3..4.
    y, cache = ops.adaptive_avg_pool2d(IMAGE, (2, 3))
    np.testing.assert_allclose(plane(y), [[12 / 4, 16 / 6, 18 / 4], [12 / 4, 26 / 6, 21 / 4]], rtol=1e-15)

    dy = np.array([[4.0, 6.0, 8.0], [12.0, 18.0, 16.0]]).reshape(y.shape)
    dx = ops.adaptive_avg_pool2d_backward(dy, cache)
    first, last = np.array([1, 1 + 1, 1, 1 + 2, 2]), np.array([3, 3 + 3, 3, 3 + 4, 4])
    np.testing.assert_allclose(plane(dx), [first, first + last, last], rtol=1e-15)


def test_maxima_by_hand(backend):
    y, cache = ops.adaptive_max_pool2d(IMAGE, (2, 3))
    assert plane(y).tolist() == [[5, 5, 7], [6, 9, 9]]
    assert plane(cache.position).tolist() == [[1, 1, 4], [10, 13, 13]]  # 7 lies in rows 0 and 1: the first

    dy = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).reshape(y.shape)
    dx = ops.adaptive_max_pool2d_backward(dy, cache)
    assert plane(dx).tolist() == [[0, 1 + 2, 0, 0, 4], [0, 0, 0, 0, 0], [8, 0, 0, 16 + 32, 0]]


def test_global_pooling_by_hand(backend):
    y, cache = ops.global_avg_pool2d(IMAGE)
    np.testing.assert_allclose(y, np.full((1, 1, 1, 1), 58 / 15), rtol=1e-15)
    dx = ops.global_avg_pool2d_backward(np.full((1, 1, 1, 1), 30.0), cache)
    np.testing.assert_allclose(dx, np.full(IMAGE.shape, 2.0), rtol=1e-15)

    y, cache = ops.global_max_pool2d(IMAGE)
    assert y.item() == 9 and cache.position.item() == 13
    dx = ops.global_max_pool2d_backward(np.full((1, 1, 1, 1), 3.0), cache)
    np.testing.assert_array_equal(dx, np.where(IMAGE == 9, 3.0, 0.0))


@pytest.mark.oracle
@settings(max_examples=60)
@given(shape=shapes, size=sizes, seed=seeds)
def test_averages_agree_with_torch(torch, shape, size, seed):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal((shape[0], *size, shape[3]))
    x_torch = to_torch(torch, x, requires_grad=True)
    y_torch = torch.nn.functional.adaptive_avg_pool2d(x_torch, size)
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, to_torch(torch, dy))
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.adaptive_avg_pool2d(x, size)
            dx = ops.adaptive_avg_pool2d_backward(dy, cache)
            y32, cache32 = ops.adaptive_avg_pool2d(x.astype(np.float32), size)
            dx32 = ops.adaptive_avg_pool2d_backward(dy.astype(np.float32), cache32)
        np.testing.assert_allclose(y, from_torch(y_torch), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(dx, from_torch(dx_torch), rtol=1e-13, atol=1e-13)
        assert y32.dtype == dx32.dtype == np.float32
        np.testing.assert_allclose(y32, y, rtol=1e-6, atol=3e-7)
        np.testing.assert_allclose(dx32, dx, rtol=1e-6, atol=1e-5)  # as the input is rounded: up to 200 terms


@pytest.mark.oracle
@settings(max_examples=60)
@given(shape=shapes, size=sizes, seed=seeds)
def test_maxima_agree_with_torch_ties_included(torch, shape, size, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 4, shape).astype(float)  # few values, so that many bins hold equal ones
    dy = rng.integers(-9, 9, (shape[0], *size, shape[3])).astype(float)
    x_torch = to_torch(torch, x, requires_grad=True)
    y_torch, position_torch = torch.nn.functional.adaptive_max_pool2d(x_torch, size, return_indices=True)
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, to_torch(torch, dy))
    for name in BACKENDS:
        for dtype in (np.float32, np.float64):
            with tinyseg.use(name):
                y, cache = ops.adaptive_max_pool2d(x.astype(dtype), size)
                dx = ops.adaptive_max_pool2d_backward(dy.astype(dtype), cache)
            assert y.dtype == dx.dtype == dtype
            np.testing.assert_array_equal(y, from_torch(y_torch))
            np.testing.assert_array_equal(cache.position, from_torch(position_torch))
            np.testing.assert_array_equal(dx, from_torch(dx_torch))


@settings(max_examples=40)
@given(shapes, sizes, seeds)
def test_average_backward_is_the_adjoint(shape, size, seed):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal((shape[0], *size, shape[3]))
    for name in BACKENDS:
        with tinyseg.use(name):
            _, cache = ops.adaptive_avg_pool2d(x, size)
            check_adjoint(
                lambda x: ops.adaptive_avg_pool2d(x, size)[0],
                lambda dy, cache=cache: ops.adaptive_avg_pool2d_backward(dy, cache),
                x,
                dy,
            )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (7, 11)])
def test_gradients(backend, rng, size):
    x = rng.permutation(np.linspace(-1, 1, 2 * 5 * 7 * 3)).reshape(2, 5, 7, 3)
    check_vjp(ops.adaptive_avg_pool2d, ops.adaptive_avg_pool2d_backward, (x,), size=size)
    check_vjp(ops.adaptive_max_pool2d, ops.adaptive_max_pool2d_backward, (x,), size=size)


def test_gradients_of_global_pooling(backend, rng):
    x = rng.permutation(np.linspace(-1, 1, 2 * 5 * 7 * 3)).reshape(2, 5, 7, 3)
    check_vjp(ops.global_avg_pool2d, ops.global_avg_pool2d_backward, (x,))
    check_vjp(ops.global_max_pool2d, ops.global_max_pool2d_backward, (x,))


def test_bins_that_divide_the_image_are_plain_pooling(backend, rng):
    x = rng.standard_normal((2, 6, 8, 3))
    y, _ = ops.adaptive_avg_pool2d(x, (2, 4))
    np.testing.assert_allclose(y, ops.avg_pool2d(x, (3, 2))[0], rtol=1e-14, atol=1e-15)
    y, _ = ops.adaptive_max_pool2d(x, (2, 4))
    np.testing.assert_array_equal(y, ops.max_pool2d(x, (3, 2))[0])


def test_a_million_float32_numbers_far_from_zero(backend, rng):
    x = (1000 + rng.standard_normal((1, 1024, 1024, 1))).astype(np.float32)
    y, _ = ops.global_avg_pool2d(x)
    np.testing.assert_allclose(y.item(), x.mean(dtype=np.float64), rtol=6e-8)


def test_nan_wins_and_the_first_one_is_the_maximum(backend):
    x = IMAGE.copy()
    x[0, 1, 2:4] = x[0, 2, 0] = np.nan
    y, cache = ops.global_max_pool2d(x)
    assert np.isnan(y.item()) and cache.position.item() == 7
    assert np.isnan(ops.global_avg_pool2d(x)[0].item())


def test_minus_infinity_everywhere(backend):
    y, cache = ops.adaptive_max_pool2d(np.full((1, 4, 3, 2), -np.inf), (2, 1))
    assert (y == -np.inf).all() and plane(cache.position).tolist() == [[0], [6]]


def test_non_contiguous_input_is_left_alone(backend, rng):
    x = rng.standard_normal((5, 2, 7, 3)).transpose(3, 2, 0, 1)[:, ::-1]  # 3 7 5 2
    before = x.copy()
    dy = np.asfortranarray(rng.standard_normal((3, 2, 3, 2)))
    for pool, pool_backward in (
        (ops.adaptive_avg_pool2d, ops.adaptive_avg_pool2d_backward),
        (ops.adaptive_max_pool2d, ops.adaptive_max_pool2d_backward),
    ):
        y, cache = pool(x, (2, 3))
        for n in range(3):  # a batch is its images one by one
            np.testing.assert_allclose(y[n], pool(before[n : n + 1], (2, 3))[0][0], rtol=1e-14)
        np.testing.assert_array_equal(pool_backward(dy, cache), pool_backward(np.ascontiguousarray(dy), cache))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
@pytest.mark.parametrize(
    ("x", "size", "error", "message"),
    [
        (np.zeros((3, 4)), 2, ValueError, r": x must have the axes \(N, H, W, C\), got shape \(3, 4\)"),
        (np.zeros((1, 3, 0, 2)), 2, ValueError, r": x is empty, its shape is \(1, 3, 0, 2\)"),
        (np.zeros((1, 3, 4, 2), int), 2, TypeError, ": x must be float32 or float64, got int64"),
        (IMAGE, (2, 0), ValueError, r": size must be at least 1, got \(2, 0\)"),
        (IMAGE, (1, 2, 3), TypeError, r": size must be an integer or a pair \(height, width\)"),
    ],
)
def test_errors(name, x, size, error, message):
    with pytest.raises(error, match=name + message):
        getattr(ops, name)(x, size)


@pytest.mark.parametrize("name", ["global_avg_pool2d", "global_max_pool2d"])
def test_errors_of_global_pooling(name):
    with pytest.raises(ValueError, match=f"{name}: x must have the axes"):
        getattr(ops, name)(np.zeros((3, 4)))
    _, cache = getattr(ops, name)(IMAGE)
    with pytest.raises(ValueError, match=rf"{name}_backward: dy must have shape \(1, 1, 1, 1\)"):
        getattr(ops, f"{name}_backward")(IMAGE, cache)
