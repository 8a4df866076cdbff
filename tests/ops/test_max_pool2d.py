"""Max pooling and unpooling, against numbers by hand, plain loops over every cell, and PyTorch."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ("numpy", "numba")

IMAGE = np.array(
    [
        [1.0, 5.0, 2.0, 0.0],
        [3.0, 4.0, 2.0, 1.0],
        [0.0, 0.0, 7.0, 7.0],
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
    return shape, {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}


def pool_by_loops(x, kernel, stride, padding, ceil_mode):
    """The definition, cell by cell: y, the index, and for each output the row and column of its maximum."""
    (N, H, W, C), (R, S), (down, right) = x.shape, kernel, stride or kernel
    top, bottom, left, right_side = padding

    def starts(size, before, after, extent, step):
        found = [-before]
        while True:
            start = found[-1] + step
            if start + extent > size + after and not (ceil_mode and found[-1] + extent < size + after):
                return found
            if ceil_mode and start >= size:
                return found
            found.append(start)

    rows, columns = starts(H, top, bottom, R, down), starts(W, left, right_side, S, right)
    shape = (N, len(rows), len(columns), C)
    y, index, row, column = np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, int)
    for n, p, q, c in np.ndindex(shape):
        best = None
        for r in range(R):
            for s in range(S):
                h, w = rows[p] + r, columns[q] + s
                if 0 <= h < H and 0 <= w < W and (best is None or x[n, h, w, c] > best):
                    best = y[n, p, q, c] = x[n, h, w, c]
                    index[n, p, q, c], row[n, p, q, c], column[n, p, q, c] = r * S + s, h, w
    return y, index, row, column


# ------------------------------------------------------------------------------------------------------- pooling


def test_by_hand(backend):
    y, cache = ops.max_pool2d(IMAGE, 2, stride=1)
    assert plane(y).tolist() == [[5, 5, 2], [4, 7, 7]]
    assert plane(cache.index).tolist() == [[1, 0, 0], [1, 3, 2]]

    dy = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).reshape(1, 2, 3, 1)
    dx = ops.max_pool2d_backward(dy, cache)
    assert plane(dx).tolist() == [[0, 1 + 2, 4, 0], [0, 8, 0, 0], [0, 0, 16 + 32, 0]]


def test_ceil_mode_by_hand(backend):
    down, _ = ops.max_pool2d(IMAGE, 2)
    up, cache = ops.max_pool2d(IMAGE, 2, ceil_mode=True)
    assert plane(down).tolist() == [[5, 2]]
    assert plane(up).tolist() == [[5, 2], [0, 7]]
    assert plane(cache.index).tolist() == [[1, 0], [0, 0]]


def test_ceil_mode_drops_a_window_that_starts_in_the_trailing_padding(backend):
    y, _ = ops.max_pool2d(IMAGE[:, :2, :2], 1, stride=3, padding=0, ceil_mode=True)
    assert y.shape == (1, 1, 1, 1)
    y, _ = ops.max_pool2d(IMAGE, 2, stride=2, padding=(1, 1, 0, 0), ceil_mode=True)
    assert plane(y).tolist() == [[5, 2], [4, 7]]  # rows -1..0 and 1..2; a window at row 3 would see nothing


def test_padding_never_wins(backend):
    y, _ = ops.max_pool2d(np.full((1, 2, 3, 2), -5.0), 3, stride=1, padding=1)
    assert y.shape == (1, 2, 3, 2) and (y == -5).all()

    y, cache = ops.max_pool2d(np.full((1, 2, 3, 2), -np.inf), 3, stride=1, padding=1)
    assert (y == -np.inf).all()
    assert plane(cache.index).tolist() == [[4, 3, 3], [1, 0, 0]]  # the first cell inside the image


def test_same_padding(backend):
    y, _ = ops.max_pool2d(IMAGE, 2, stride=1, padding="same")
    assert plane(y).tolist() == [[5, 5, 2, 1], [4, 7, 7, 7], [0, 7, 7, 7]]


def test_nan_wins_and_the_first_one_is_the_maximum(backend):
    x = IMAGE.copy()
    x[0, 1, 1] = x[0, 1, 2] = np.nan
    y, cache = ops.max_pool2d(x, (2, 4))
    assert np.isnan(y).all() and cache.index.item() == 5
    y, cache = ops.max_pool2d(x[:, :, ::-1], 3, stride=1)
    assert np.isnan(y).all() and plane(cache.index).tolist() == [[4, 3]]


@pytest.mark.parametrize(("kernel", "dtype"), [((16, 16), np.uint8), ((1, 257), np.int32), ((17, 17), np.int32)])
def test_index_is_one_byte_where_that_is_enough(backend, kernel, dtype):
    x = np.zeros((1, *kernel, 2))
    x[0, -1, -1] = 1
    _, cache = ops.max_pool2d(x, kernel)
    assert cache.index.dtype == dtype
    assert (cache.index == kernel[0] * kernel[1] - 1).all()
    assert (ops.max_pool2d_backward(np.full((1, 1, 1, 2), 3.0), cache) == 3 * x).all()


@settings(max_examples=60)
@given(poolings(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_agrees_with_plain_loops_ties_included(pooling, dtype, seed):
    shape, options = pooling
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 4, shape).astype(dtype)  # few values, so that many windows hold equal ones
    y, index, row, column = pool_by_loops(x, **options)
    dy = rng.integers(-9, 9, y.shape).astype(dtype)  # small integers: every sum of them is exact
    dx = np.zeros(shape, dtype)
    for n, p, q, c in np.ndindex(y.shape):
        dx[n, row[n, p, q, c], column[n, p, q, c], c] += dy[n, p, q, c]
    for name in BACKENDS:
        with tinyseg.use(name):
            y_ours, cache = ops.max_pool2d(x, **options)
            dx_ours = ops.max_pool2d_backward(dy, cache)
        assert y_ours.dtype == dx_ours.dtype == dtype
        np.testing.assert_array_equal(y_ours, y)
        np.testing.assert_array_equal(cache.index, index)
        np.testing.assert_array_equal(dx_ours, dx)


@pytest.mark.oracle
@settings(max_examples=60)
@given(pooling=poolings(symmetric=True), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_torch(torch, pooling, seed):
    shape, options = pooling
    rng = np.random.default_rng(seed)
    x = rng.permutation(np.arange(float(np.prod(shape)))).reshape(shape)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    rest = {name: value for name, value in options.items() if name != "kernel"}
    y_torch = torch.nn.functional.max_pool2d(x_torch, options["kernel"], **rest)
    y = y_torch.detach().numpy().transpose(0, 2, 3, 1)
    dy = rng.standard_normal(y.shape)
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, torch.tensor(dy.transpose(0, 3, 1, 2)))
    for name in BACKENDS:
        with tinyseg.use(name):
            y_ours, cache = ops.max_pool2d(x, **options)
            dx_ours = ops.max_pool2d_backward(dy, cache)
        np.testing.assert_array_equal(y_ours, y)
        np.testing.assert_allclose(dx_ours, dx_torch.numpy().transpose(0, 2, 3, 1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 2},
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2, 0, 1)},
        {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel": (2, 3), "stride": (3, 4)},
    ],
)
def test_gradient(backend, rng, options):
    x = rng.permutation(np.linspace(-1, 1, 2 * 7 * 9 * 3)).reshape(2, 7, 9, 3)
    check_vjp(ops.max_pool2d, ops.max_pool2d_backward, (x,), **options)


def test_commutes_with_a_constant_shift(backend, rng):
    x = rng.integers(-50, 50, (2, 6, 5, 3)).astype(float)
    y, cache = ops.max_pool2d(x, 3, stride=2, padding=1)
    shifted, shifted_cache = ops.max_pool2d(x + 1000, 3, stride=2, padding=1)
    np.testing.assert_array_equal(shifted, y + 1000)
    np.testing.assert_array_equal(shifted_cache.index, cache.index)


def test_a_batch_is_its_images_one_by_one(backend, rng):
    x = rng.standard_normal((3, 6, 5, 2)).astype(np.float32)
    y, _ = ops.max_pool2d(x, 2, stride=1)
    np.testing.assert_array_equal(
        y, np.concatenate([ops.max_pool2d(x[n : n + 1], 2, stride=1)[0] for n in range(3)])
    )


def test_non_contiguous_input_which_is_left_alone(backend, rng):
    x = rng.standard_normal((5, 3, 7, 2)).transpose(3, 2, 0, 1)[:, ::-1]  # 2 7 5 3
    before = x.copy()
    y, cache = ops.max_pool2d(x, (3, 2), stride=2)
    y_dense, _ = ops.max_pool2d(before, (3, 2), stride=2)
    dy = np.asfortranarray(rng.standard_normal(y.shape))
    dx = ops.max_pool2d_backward(dy, cache)
    np.testing.assert_array_equal(y, y_dense)
    np.testing.assert_array_equal(dx, ops.max_pool2d_backward(np.ascontiguousarray(dy), cache))
    np.testing.assert_array_equal(x, before)


# ----------------------------------------------------------------------------------------------------- unpooling


def test_unpooling_by_hand(backend):
    index = np.array([[1, 0, 0], [1, 3, 2]], np.uint8).reshape(1, 2, 3, 1)
    x = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).reshape(index.shape)
    y, cache = ops.max_unpool2d(x, index, 2, stride=1)
    # Two maxima that lie in one cell are summed.
    assert plane(y).tolist() == [[0, 3, 4, 0], [0, 8, 0, 0], [0, 0, 48, 0]]

    dx = ops.max_unpool2d_backward(IMAGE, cache)
    assert plane(dx).tolist() == [[5, 5, 2], [4, 7, 7]]


def test_unpooling_to_a_size(backend):
    x = np.array([5.0, 2.0]).reshape(1, 1, 2, 1)
    index = np.array([1, 0]).reshape(x.shape)
    y, _ = ops.max_unpool2d(x, index, 2, size=(3, 4))
    assert plane(y).tolist() == [[0, 5, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_unpooling_drops_what_points_out_of_the_image(backend):
    x = np.array([[5.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    index = np.array([[1, 0], [2, 1]]).reshape(x.shape)
    y, cache = ops.max_unpool2d(x, index, 2, size=(3, 4), ceil_mode=True)
    assert plane(y).tolist() == [[0, 5, 2, 0], [0, 0, 0, 0], [0, 0, 0, 4]]
    assert plane(ops.max_unpool2d_backward(IMAGE, cache)).tolist() == [[5, 2], [0, 7]]


@pytest.mark.parametrize(
    ("padding", "size"), [(0, (3 * 2 + 3, 2 * 4 + 2)), ((1, 2, 1, 0), (6, 9)), ("same", (8, 12))]
)
def test_unpooling_without_a_size(backend, padding, size):
    x = np.ones((1, 4, 3, 1))
    y, _ = ops.max_unpool2d(x, np.zeros(x.shape, int), (3, 2), stride=(2, 4), padding=padding)
    assert y.shape == (1, *size, 1)


@settings(max_examples=50)
@given(poolings(), st.integers(0, 2**32 - 1))
def test_unpooling_is_the_adjoint_of_picking_the_maxima(pooling, seed):
    shape, options = pooling
    rng = np.random.default_rng(seed)
    image, other = rng.standard_normal(shape), rng.standard_normal(shape)
    for name in BACKENDS:
        with tinyseg.use(name):
            y, pool_cache = ops.max_pool2d(image, **options)
            unpool = dict(options, size=shape[1:3])
            _, cache = ops.max_unpool2d(y, pool_cache.index, **unpool)
            check_adjoint(
                lambda x, index=pool_cache.index, options=unpool: ops.max_unpool2d(x, index, **options)[0],
                lambda dy, cache=cache: ops.max_unpool2d_backward(dy, cache),
                rng.standard_normal(y.shape),
                other,
            )
            # Picking the maxima of the very image that was pooled is pooling.
            np.testing.assert_array_equal(ops.max_unpool2d_backward(image, cache), y)
            dy = rng.standard_normal(y.shape)
            np.testing.assert_array_equal(
                ops.max_pool2d_backward(dy, pool_cache), ops.max_unpool2d(dy, pool_cache.index, **unpool)[0]
            )


@pytest.mark.oracle
@pytest.mark.parametrize(("kernel", "stride", "size"), [((2, 2), None, (7, 9)), ((2, 3), (3, 3), (8, 9))])
def test_unpooling_agrees_with_torch_where_windows_do_not_overlap(torch, backend, rng, kernel, stride, size):
    image = rng.standard_normal((2, *size, 3))
    y, cache = ops.max_pool2d(image, kernel, stride=stride)
    x = rng.standard_normal(y.shape)
    ours, _ = ops.max_unpool2d(x, cache.index, kernel, stride=stride, size=size)

    _, positions = torch.nn.functional.max_pool2d(
        torch.tensor(image.transpose(0, 3, 1, 2)), kernel, stride, return_indices=True
    )
    theirs = torch.nn.functional.max_unpool2d(
        torch.tensor(x.transpose(0, 3, 1, 2)), positions, kernel, stride, output_size=size
    )
    np.testing.assert_array_equal(ours, theirs.numpy().transpose(0, 2, 3, 1))


def test_unpooling_float32_and_a_foreign_index_type(backend, rng):
    x = rng.standard_normal((2, 3, 2, 17)).astype(np.float32)
    index = rng.integers(0, 6, x.shape)
    y, _ = ops.max_unpool2d(x, index, (2, 3))
    assert y.dtype == np.float32 and y.shape == (2, 6, 6, 17)
    np.testing.assert_array_equal(y.reshape(2, 3, 2, 2, 3, 17).sum(axis=(2, 4)), x)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (np.zeros((2, 3, 4)), 2),
            ValueError,
            r"max_pool2d: x must have the axes \(N, H, W, C\), got shape \(2, 3, 4\)",
        ),
        ((np.zeros((1, 3, 4, 1), int), 2), TypeError, "max_pool2d: x must be float32 or float64, got int64"),
        ((np.zeros((0, 3, 4, 1)), 2), ValueError, r"max_pool2d: x is empty, its shape is \(0, 3, 4, 1\)"),
        ((IMAGE, 4), ValueError, "max_pool2d: the kernel spans 4 elements along the height"),
        ((IMAGE, 0), ValueError, "max_pool2d: kernel must be at least 1"),
        ((IMAGE, 2.5), TypeError, "max_pool2d: kernel must be an integer or a pair"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.max_pool2d(*arguments)


def test_padding_as_wide_as_the_kernel_is_an_error():
    with pytest.raises(ValueError, match=r"max_pool2d: padding \(0, 0, 2, 2\).* must be smaller than the kernel"):
        ops.max_pool2d(IMAGE, (3, 2), padding=(0, 2))


def test_errors_of_the_backward_pass():
    _, cache = ops.max_pool2d(IMAGE, 2)
    with pytest.raises(
        ValueError, match=r"max_pool2d_backward: dy must have shape \(1, 1, 2, 1\).* got \(1, 3, 4, 1\)"
    ):
        ops.max_pool2d_backward(IMAGE, cache)
    with pytest.raises(TypeError, match="max_pool2d_backward: dy must be float64"):
        ops.max_pool2d_backward(np.zeros((1, 1, 2, 1), np.float32), cache)


@pytest.mark.parametrize(
    ("index", "options", "error", "message"),
    [
        (np.full((1, 1, 2, 1), 4), {}, ValueError, "index must hold numbers from 0 to R . S - 1 = 3, got 4 to 4"),
        (np.full((1, 1, 2, 1), -1), {}, ValueError, "index must hold numbers from 0"),
        (np.zeros((1, 1, 2, 1)), {}, TypeError, "index must be an array of integers, got float64"),
        ([0, 1], {}, TypeError, "index must be an array of integers, got list"),
        (np.zeros((1, 2, 1, 1), int), {}, ValueError, r"index must have shape \(1, 1, 2, 1\) \(that of x\)"),
        (np.zeros((1, 1, 2, 1), int), {"size": (6, 4)}, ValueError, r"x must have shape \(1, 3, 2, 1\)"),
        (np.zeros((1, 1, 2, 1), int), {"size": (0, 4)}, ValueError, "size must be at least 1"),
        (np.zeros((1, 1, 2, 1), int), {"size": 4.0}, TypeError, "size must be an integer or a pair"),
    ],
)
def test_errors_of_unpooling(index, options, error, message):
    with pytest.raises(error, match=message):
        ops.max_unpool2d(np.zeros((1, 1, 2, 1)), index, 2, **options)
