"""Average pooling, against numbers by hand, plain loops over every cell, and PyTorch."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ("numpy", "numba")
TOLERANCE = {np.float32: 5e-7, np.float64: 1e-14}  # a mean summed in float64 is rounded once

IMAGE = np.array(
    [
        [1.0, 5.0, 2.0, 0.0],
        [3.0, 3.0, 2.0, 4.0],
        [6.0, 0.0, 7.0, 9.0],
    ]
).reshape(1, 3, 4, 1)


def plane(array):
    """The first image's first channel."""
    return array[0, :, :, 0]


@st.composite
def poolings(draw, symmetric=False):
    """An image size, and options that pool it. `symmetric`: only paddings that PyTorch knows."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    if symmetric:
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
        sides = (padding[0], padding[0], padding[1], padding[1])
    else:
        padding = sides = tuple(draw(st.integers(0, kernel[side // 2] - 1)) for side in range(4))
    H, W = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    assume(H + sides[0] + sides[1] >= kernel[0] and W + sides[2] + sides[3] >= kernel[1])
    shape = (draw(st.integers(1, 3)), H, W, draw(st.sampled_from([1, 2, 3, 17])))
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    return shape, options | {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}


def test_by_hand(backend):
    y, cache = ops.avg_pool2d(IMAGE, 2, stride=(1, 2))
    assert plane(y).tolist() == [[3, 2], [3, 5.5]]
    dy = np.array([[4.0, 8.0], [12.0, 16.0]]).reshape(1, 2, 2, 1)
    dx = ops.avg_pool2d_backward(dy, cache)
    assert plane(dx).tolist() == [[1, 1, 2, 2], [4, 4, 6, 6], [3, 3, 4, 4]]


def test_padding_counts_or_does_not(backend):
    including, _ = ops.avg_pool2d(IMAGE, 3, stride=(2, 3), padding=1)
    excluding, cache = ops.avg_pool2d(IMAGE, 3, stride=(2, 3), padding=1, count_include_pad=False)
    np.testing.assert_allclose(plane(including), np.array([[12, 8], [12, 22]]) / 9, rtol=1e-15)
    np.testing.assert_allclose(plane(excluding), np.array([[12 / 4, 8 / 4], [12 / 4, 22 / 4]]), rtol=1e-15)

    dy = np.array([[4.0, 8.0], [12.0, 16.0]]).reshape(1, 2, 2, 1)
    dx = ops.avg_pool2d_backward(dy, cache)
    assert plane(dx).tolist() == [[1, 1, 2, 2], [1 + 3, 1 + 3, 2 + 4, 2 + 4], [3, 3, 4, 4]]


def test_a_window_that_hangs_over_the_padded_image_counts_only_what_is_there(backend):
    y, _ = ops.avg_pool2d(IMAGE, 2, ceil_mode=True)  # the second row of windows sees one row
    assert plane(y).tolist() == [[3, 2], [3, 8]]
    y, _ = ops.avg_pool2d(IMAGE, (4, 1), stride=3, padding=(2, 1, 0, 0), ceil_mode=True)
    # Rows -2..1 and 1..4. The padded image ends with row 3, so the second window counts 3 rows, not 4.
    np.testing.assert_allclose(plane(y), [[4 / 4, 4 / 4], [9 / 3, 13 / 3]], rtol=1e-15)


@settings(max_examples=60)
@given(poolings(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_agrees_with_plain_loops(pooling, dtype, seed):
    shape, options = pooling
    (_, H, W, _), (R, S) = shape, options["kernel"]
    down, right = options["stride"] or (R, S)
    top, bottom, left, right_side = options["padding"]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.avg_pool2d(x, **options)
            dy = rng.standard_normal(y.shape).astype(dtype)
            dx = ops.avg_pool2d_backward(dy, cache)
        expected, dx_expected = np.zeros(y.shape), np.zeros(shape)
        for p, q in np.ndindex(y.shape[1:3]):
            # Every row and column of this window that the padded image has, and those that the image has.
            rows = [h for h in range(p * down - top, p * down - top + R) if h < H + bottom]
            columns = [w for w in range(q * right - left, q * right - left + S) if w < W + right_side]
            seen = [(h, w) for h in rows for w in columns if 0 <= h < H and 0 <= w < W]
            count = len(rows) * len(columns) if options["count_include_pad"] else len(seen)
            for h, w in seen:
                expected[:, p, q] += x[:, h, w].astype(float) / count
                dx_expected[:, h, w] += dy[:, p, q].astype(float) / count
        assert y.dtype == dx.dtype == dtype
        np.testing.assert_allclose(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        np.testing.assert_allclose(dx, dx_expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.oracle
@settings(max_examples=60)
@given(pooling=poolings(symmetric=True), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_torch(torch, pooling, seed):
    shape, options = pooling
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    rest = {name: value for name, value in options.items() if name != "kernel"}
    y_torch = torch.nn.functional.avg_pool2d(x_torch, options["kernel"], **rest)
    y = y_torch.detach().numpy().transpose(0, 2, 3, 1)
    dy = rng.standard_normal(y.shape)
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, torch.tensor(dy.transpose(0, 3, 1, 2)))
    for name in BACKENDS:
        with tinyseg.use(name):
            y_ours, cache = ops.avg_pool2d(x, **options)
            dx_ours = ops.avg_pool2d_backward(dy, cache)
        np.testing.assert_allclose(y_ours, y, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(dx_ours, dx_torch.numpy().transpose(0, 2, 3, 1), rtol=1e-13, atol=1e-14)


@settings(max_examples=40)
@given(poolings(), st.integers(0, 2**32 - 1))
def test_backward_is_the_adjoint(pooling, seed):
    shape, options = pooling
    rng = np.random.default_rng(seed)
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.avg_pool2d(np.zeros(shape), **options)
            check_adjoint(
                lambda x, options=options: ops.avg_pool2d(x, **options)[0],
                lambda dy, cache=cache: ops.avg_pool2d_backward(dy, cache),
                rng.standard_normal(shape),
                rng.standard_normal(y.shape),
            )


def test_gradient(backend, rng):
    x = rng.standard_normal((2, 5, 8, 3))
    options = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2, 0, 1)}
    check_vjp(ops.avg_pool2d, ops.avg_pool2d_backward, (x,), **options)


def test_a_constant_image_stays_constant_where_padding_does_not_count(backend):
    x = np.full((1, 6, 7, 2), np.float32(0.3))
    y, _ = ops.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
    np.testing.assert_allclose(y, 0.3, rtol=2e-7)


def test_float32_means_of_large_windows_are_exact_to_the_last_digits(backend, rng):
    x = (1000 + rng.standard_normal((1, 64, 65, 2))).astype(np.float32)
    y, _ = ops.avg_pool2d(x, (64, 65))
    np.testing.assert_allclose(y[0, 0, 0], x.astype(float).mean(axis=(0, 1, 2)), rtol=6e-8)


def test_nan_and_infinity_stay_visible(backend):
    x = IMAGE.copy()
    x[0, 0, 0], x[0, 2, 3] = np.nan, np.inf
    y, _ = ops.avg_pool2d(x, 2, stride=1)
    np.testing.assert_array_equal(plane(y), [[np.nan, 3, 2], [3, 3, np.inf]])


def test_a_batch_is_its_images_one_by_one_and_non_contiguous_input_is_left_alone(backend, rng):
    x = rng.standard_normal((5, 2, 7, 3)).transpose(3, 2, 0, 1)[:, ::-1]  # 3 7 5 2
    before = x.copy()
    y, cache = ops.avg_pool2d(x, (3, 2), stride=2)
    for n in range(3):
        np.testing.assert_array_equal(y[n], ops.avg_pool2d(before[n : n + 1], (3, 2), stride=2)[0][0])
    dy = np.asfortranarray(rng.standard_normal(y.shape))
    dx = ops.avg_pool2d_backward(dy, cache)
    np.testing.assert_array_equal(dx, ops.avg_pool2d_backward(np.ascontiguousarray(dy), cache))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (
            np.zeros((3, 4)),
            {"kernel": 2},
            ValueError,
            r"avg_pool2d: x must have the axes \(N, H, W, C\), got shape",
        ),
        (np.zeros((1, 3, 4, 1), np.uint8), {"kernel": 2}, TypeError, "avg_pool2d: x must be float32 or float64"),
        (IMAGE, {"kernel": (2, 5)}, ValueError, "avg_pool2d: the kernel spans 5 elements along the width"),
        (IMAGE, {"kernel": 2, "stride": 0}, ValueError, "avg_pool2d: stride must be at least 1, got 0"),
        (IMAGE, {"kernel": 2, "padding": 2}, ValueError, "avg_pool2d: padding .* must be smaller than the kernel"),
        (IMAGE, {"kernel": 2, "padding": -1}, ValueError, "avg_pool2d: padding must be at least 0"),
    ],
)
def test_errors(x, options, error, message):
    with pytest.raises(error, match=message):
        ops.avg_pool2d(x, **options)


def test_errors_of_the_backward_pass():
    _, cache = ops.avg_pool2d(IMAGE, 2)
    with pytest.raises(ValueError, match=r"avg_pool2d_backward: dy must have shape \(1, 1, 2, 1\)"):
        ops.avg_pool2d_backward(IMAGE, cache)
