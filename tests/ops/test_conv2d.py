"""conv2d: by hand, against torch and a five-fold loop, gradients, adjoints, laws, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

ALGORITHMS = ["reference", "direct", "patches"]


@st.composite
def cases(draw):
    """Arrays x, w, b and options of a convolution whose window fits: odd sizes, H != W, R != S."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_group, out_group = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))  # top, bottom, left, right
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height = draw(st.integers(max(1, extent[0] - padding[0] - padding[1]), 12))
    width = draw(st.integers(max(1, extent[1] - padding[2] - padding[3]), 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((draw(st.integers(1, 2)), height, width, groups * in_group))
    if draw(st.booleans()):  # the same numbers, not contiguous
        x = np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)
    w = rng.standard_normal((*kernel, in_group, groups * out_group))
    b = rng.standard_normal(groups * out_group) if draw(st.booleans()) else None
    return (x, w, b), {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}


def torch_conv2d(torch, x, w, b, *, stride, padding, dilation, groups):
    """torch's convolution on our layout, with dx, dw and db for the upstream gradient returned by a function."""
    xt = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()
    wt = torch.from_numpy(np.ascontiguousarray(w.transpose(3, 2, 0, 1))).requires_grad_()
    bt = None if b is None else torch.from_numpy(b).requires_grad_()
    top, bottom, left, right = padding
    padded = torch.nn.functional.pad(xt, (left, right, top, bottom))
    yt = torch.nn.functional.conv2d(padded, wt, bt, stride=stride, dilation=dilation, groups=groups)

    def backward(dy):
        inputs = [xt, wt] if bt is None else [xt, wt, bt]
        grads = torch.autograd.grad(yt, inputs, torch.from_numpy(np.ascontiguousarray(dy.transpose(0, 3, 1, 2))))
        dx = grads[0].numpy().transpose(0, 2, 3, 1)
        dw = grads[1].numpy().transpose(2, 3, 1, 0)
        return dx, dw, None if bt is None else grads[2].numpy()

    return yt.detach().numpy().transpose(0, 2, 3, 1), backward


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_by_hand(algo):
    x = np.array([[1.0, 2, 3], [4, 5, 6]]).reshape(1, 2, 3, 1)
    w = np.array([[1.0, 2], [3, 4]]).reshape(2, 2, 1, 1)
    b = np.array([100.0])
    y, cache = ops.conv2d(x, w, b, algo=algo)
    # 1*1 + 2*2 + 4*3 + 5*4 = 37;  2*1 + 3*2 + 5*3 + 6*4 = 47
    assert y.ravel().tolist() == [137, 147]
    dx, dw, db = ops.conv2d_backward(np.array([1.0, 10]).reshape(1, 1, 2, 1), cache)
    assert dx[0, :, :, 0].tolist() == [[1, 2 + 10, 20], [3, 4 + 30, 40]]
    assert dw[:, :, 0, 0].tolist() == [[1 + 20, 2 + 30], [4 + 50, 5 + 60]]
    assert db.tolist() == [11]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_stride_dilation_and_four_sides_by_hand(algo):
    x = np.arange(1.0, 8).reshape(1, 1, 7, 1)  # 1 2 3 4 5 6 7
    w = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
    y, _ = ops.conv2d(x, w, stride=(1, 3), dilation=(1, 2), padding=(0, 0, 1, 3), algo=algo)
    # columns -1 1 3 | 2 4 6 | 5 7 9, counted from 0:  0 2 4 | 3 5 7 | 6 0 0
    assert y.ravel().tolist() == [0 + 20 + 400, 3 + 50 + 700, 6]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_depthwise_by_hand(algo):
    x = np.array([[1.0, 10], [2, 20]]).reshape(1, 1, 2, 2)  # two pixels of two channels
    w = np.array([[[3.0, 5]], [[7, 9]]]).reshape(1, 2, 1, 2)
    y, cache = ops.conv2d(x, w, groups=2, algo=algo)
    assert y.ravel().tolist() == [1 * 3 + 2 * 7, 10 * 5 + 20 * 9]
    dx, dw, _ = ops.conv2d_backward(np.array([1.0, 2]).reshape(1, 1, 1, 2), cache)
    assert dx.ravel().tolist() == [3, 10, 7, 18]
    assert dw.ravel().tolist() == [1, 20, 2, 40]


def test_against_plain_loops():
    """The formula of the docstring, written as loops over single numbers, with every option at once."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 5, 7, 4)), rng.standard_normal((2, 3, 2, 6))
    expected = np.zeros((2, 3, 3, 6))
    for n, p, q, o in np.ndindex(expected.shape):
        for r, s, c in np.ndindex(2, 3, 2):
            h, v = p * 2 - 1 + r * 2, q * 3 - 2 + s
            if 0 <= h < 5 and 0 <= v < 7:
                expected[n, p, q, o] += x[n, h, v, (o // 3) * 2 + c] * w[r, s, c, o]
    for algo in ALGORITHMS:
        y, _ = ops.conv2d(x, w, stride=(2, 3), dilation=(2, 1), padding=(1, 1, 2, 1), groups=2, algo=algo)
        np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("algo", ALGORITHMS)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_against_torch(torch, algo, case, seed):
    (x, w, b), options = case
    y, cache = ops.conv2d(x, w, b, algo=algo, **options)
    expected, torch_backward = torch_conv2d(torch, x, w, b, **options)
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    for ours, theirs in zip(ops.conv2d_backward(dy, cache), torch_backward(dy), strict=True):
        if theirs is None:
            assert ours is None
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("algo", ALGORITHMS)
@given(case=cases())
def test_gradients_and_adjoints(algo, case):
    (x, w, b), options = case
    check_vjp(ops.conv2d, ops.conv2d_backward, (x, w, b), algo=algo, **options)

    y, cache = ops.conv2d(x, w, algo=algo, **options)
    rng = np.random.default_rng(0)
    dy = rng.standard_normal(y.shape)

    def dx_of(dy):
        return ops.conv2d_backward(dy, cache, need=(True, False, False))[0]

    def dw_of(dy):
        return ops.conv2d_backward(dy, cache, need=(False, True, False))[1]

    check_adjoint(lambda x: ops.conv2d(x, w, algo=algo, **options)[0], dx_of, x, dy)
    check_adjoint(lambda w: ops.conv2d(x, w, algo=algo, **options)[0], dw_of, w, dy)


@given(case=cases())
def test_float32_agrees_with_float64(case):
    (x, w, b), options = case
    exact, exact_cache = ops.conv2d(x, w, b, algo="reference", **options)
    dy = np.random.default_rng(0).standard_normal(exact.shape)
    exact_gradients = ops.conv2d_backward(dy, exact_cache)
    single = [None if a is None else a.astype(np.float32) for a in (x, w, b)]
    for algo in ALGORITHMS:
        y, cache = ops.conv2d(*single, algo=algo, **options)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(ops.conv2d_backward(dy.astype(np.float32), cache), exact_gradients, strict=True):
            if theirs is not None:
                assert ours.dtype == np.float32
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [(5, 7, 1), (8, 8, 8), (16, 16, 2), (6, 18, 6)])
def test_a_layer_of_ordinary_size(backend, channels):
    """More pixels than one block of patches, more rows than partial sums."""
    inputs, outputs, groups = channels
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 21, 33, inputs)).astype(np.float32)
    w = rng.standard_normal((3, 3, inputs // groups, outputs)).astype(np.float32)
    y, cache = ops.conv2d(x, w, padding=1, groups=groups)
    wide, wide_cache = ops.conv2d(
        x.astype(np.float64), w.astype(np.float64), padding=1, groups=groups, algo="reference"
    )
    dy = rng.standard_normal(y.shape).astype(np.float32)
    np.testing.assert_allclose(y, wide, atol=1e-4)
    for ours, theirs in zip(
        ops.conv2d_backward(dy, cache)[:2],
        ops.conv2d_backward(dy.astype(np.float64), wide_cache)[:2],
        strict=True,
    ):
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_same_padding(backend, rng):
    for size, kernel, stride, dilation in [(7, 3, 1, 1), (7, 3, 2, 1), (8, 4, 3, 1), (9, 2, 1, 4), (5, 1, 3, 1)]:
        x, w = rng.standard_normal((1, size, size + 1, 2)), rng.standard_normal((kernel, kernel, 2, 3))
        y, _ = ops.conv2d(x, w, padding="same", stride=stride, dilation=dilation)
        assert y.shape == (1, -(-size // stride), -(-(size + 1) // stride), 3)
    # An odd amount of padding goes after the last column, as in TensorFlow.
    y, _ = ops.conv2d(
        np.array([1.0, 2, 3]).reshape(1, 1, 3, 1), np.array([1.0, 10]).reshape(1, 2, 1, 1), padding="same"
    )
    assert y.ravel().tolist() == [21, 32, 3]


def test_dilation_is_a_kernel_with_zeros_inserted(backend, rng):
    x, w = rng.standard_normal((2, 11, 9, 3)), rng.standard_normal((3, 2, 3, 4))
    spread = np.zeros((5, 4, 3, 4))
    spread[::2, ::3] = w
    np.testing.assert_allclose(
        ops.conv2d(x, w, dilation=(2, 3), padding=2)[0], ops.conv2d(x, spread, padding=2)[0], atol=1e-12
    )


def test_stride_is_stride_one_subsampled(backend, rng):
    x, w = rng.standard_normal((2, 11, 9, 3)), rng.standard_normal((3, 2, 3, 4))
    np.testing.assert_allclose(
        ops.conv2d(x, w, stride=(3, 2), padding=1)[0], ops.conv2d(x, w, padding=1)[0][:, ::3, ::2], atol=1e-12
    )


def test_one_by_one_is_a_matrix_product(backend, rng):
    x, w = rng.standard_normal((2, 5, 3, 4)), rng.standard_normal((1, 1, 4, 6))
    np.testing.assert_allclose(ops.conv2d(x, w)[0], x @ w[0, 0], atol=1e-12)


def test_groups_are_separate_convolutions(backend, rng):
    x, w = rng.standard_normal((2, 5, 7, 6)), rng.standard_normal((3, 2, 3, 8))
    halves = [ops.conv2d(x[..., 3 * g : 3 * g + 3], w[..., 4 * g : 4 * g + 4])[0] for g in (0, 1)]
    np.testing.assert_allclose(ops.conv2d(x, w, groups=2)[0], np.concatenate(halves, axis=-1), atol=1e-12)


def test_batch_of_two_is_two_batches(backend, rng):
    x, w = rng.standard_normal((2, 5, 7, 3)), rng.standard_normal((3, 2, 3, 4))
    both = ops.conv2d(x, w, stride=2)[0]
    for n in (0, 1):
        np.testing.assert_allclose(both[n : n + 1], ops.conv2d(x[n : n + 1], w, stride=2)[0], atol=1e-12)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_same_bits_every_time(algo, rng):
    x, w = (rng.standard_normal(s).astype(np.float32) for s in [(2, 33, 17, 8), (3, 3, 8, 8)])
    y, cache = ops.conv2d(x, w, padding=1, algo=algo)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    first = (y, *ops.conv2d_backward(dy, cache)[:2])
    for _ in range(3):
        y, cache = ops.conv2d(x, w, padding=1, algo=algo)
        for a, b in zip((y, *ops.conv2d_backward(dy, cache)[:2]), first, strict=True):
            assert a.tobytes() == b.tobytes()


def test_stride_larger_than_kernel_leaves_pixels_without_gradient(backend, rng):
    x, w = rng.standard_normal((1, 5, 5, 2)), rng.standard_normal((1, 1, 2, 3))
    y, cache = ops.conv2d(x, w, stride=2)
    dx, _, _ = ops.conv2d_backward(rng.standard_normal(y.shape), cache)
    assert np.all(dx[:, 1::2] == 0)
    assert np.all(dx[:, :, 1::2] == 0)
    assert np.all(dx[:, ::2, ::2] != 0)


def test_need_skips_gradients(rng):
    x, w, b = rng.standard_normal((1, 4, 5, 2)), rng.standard_normal((2, 2, 2, 3)), np.ones(3)
    y, cache = ops.conv2d(x, w, b)
    dx, dw, db = ops.conv2d_backward(y, cache, need=(False, True, False))
    assert dx is None
    assert dw is not None
    assert db is None


def test_nan_stays_where_the_kernel_saw_it(backend):
    x = np.zeros((1, 6, 6, 1))
    x[0, 2, 3, 0] = np.nan
    y, _ = ops.conv2d(x, np.ones((2, 2, 1, 1)))
    assert np.argwhere(np.isnan(y[0, :, :, 0])).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


IMAGE, WEIGHTS = np.zeros((1, 5, 6, 4)), np.zeros((3, 3, 4, 2))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGE[0], WEIGHTS), {}, ValueError, r"x must have the axes \(N, H, W, C\), got shape \(5, 6, 4\)"),
        ((IMAGE, WEIGHTS[0]), {}, ValueError, r"w must have the axes \(R, S, C/groups, O\)"),
        ((IMAGE, np.zeros((3, 3, 3, 2))), {}, ValueError, r"x has 4 channels, but the weights"),
        ((IMAGE, WEIGHTS), {"groups": 2}, ValueError, r"take 4 x 2 = 8"),
        ((IMAGE, np.zeros((3, 3, 2, 3))), {"groups": 2}, ValueError, r"3, cannot be split into groups=2"),
        ((IMAGE, WEIGHTS), {"groups": 0}, ValueError, r"groups must be a whole number"),
        ((IMAGE, WEIGHTS, np.zeros(3)), {}, ValueError, r"b must have shape \(2,\)"),
        ((IMAGE, WEIGHTS), {"dilation": 3}, ValueError, r"the kernel spans 7 elements along the height"),
        ((IMAGE, np.zeros((7, 1, 4, 2))), {}, ValueError, r"larger input, more padding or a smaller kernel"),
        ((IMAGE, WEIGHTS), {"stride": 0}, ValueError, r"stride must be at least 1"),
        ((IMAGE, WEIGHTS), {"stride": 1.5}, TypeError, r"stride must be an integer or a pair"),
        ((IMAGE, WEIGHTS), {"padding": -1}, ValueError, r"padding must"),
        ((IMAGE, WEIGHTS), {"padding": "valid"}, ValueError, r'"same", got \'valid\''),
        ((IMAGE, WEIGHTS), {"padding": (1, 2, 3)}, TypeError, r"padding must be"),
        ((IMAGE.astype(np.float32), WEIGHTS), {}, TypeError, r"x is float32, w is float64"),
        ((IMAGE.astype(int), WEIGHTS), {}, TypeError, r"x must be float32 or float64, got int64"),
        ((IMAGE[:0], WEIGHTS), {}, ValueError, r"x is empty"),
        (([[1.0]], WEIGHTS), {}, TypeError, r"x must be an array, got list"),
        ((IMAGE, WEIGHTS), {"algo": "fast"}, ValueError, r"unknown algo 'fast'"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.conv2d(*arguments, **options)


def test_wrong_upstream_gradient():
    y, cache = ops.conv2d(IMAGE, WEIGHTS)
    with pytest.raises(ValueError, match=r"conv2d_backward: dy must have shape \(1, 3, 4, 2\)"):
        ops.conv2d_backward(y[:, :2], cache)
    with pytest.raises(TypeError, match=r"dy must be float64"):
        ops.conv2d_backward(y.astype(np.float32), cache)


def test_the_array_and_the_user_choose_the_implementation():
    from tinyseg.ops.conv2d import algorithms, direct, patches, reference

    assert algorithms.choose("auto", IMAGE, WEIGHTS, 1) is patches
    assert algorithms.choose("auto", IMAGE, np.zeros((3, 3, 1, 4)), 4) is direct
    assert algorithms.choose("direct", IMAGE, WEIGHTS, 1) is direct
    with tinyseg.use("numpy"):
        assert algorithms.choose("auto", IMAGE, WEIGHTS, 1) is reference
