"""Padding and cropping, against numbers by hand, `numpy.pad` and slices."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ("numpy", "numba")

IMAGE = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(1, 2, 3, 1)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 17]))
borders = st.tuples(*[st.integers(0, 25)] * 4)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])


def plane(array):
    """The first image's first channel."""
    return array[0, :, :, 0]


# ------------------------------------------------------------------------------------------------------- padding


def test_constant_by_hand(backend):
    y, cache = ops.pad(IMAGE, (1, 0, 0, 2), value=7)
    assert plane(y).tolist() == [[7, 7, 7, 7, 7], [1, 2, 3, 7, 7], [4, 5, 6, 7, 7]]
    dx = ops.pad_backward(np.arange(15.0).reshape(y.shape), cache)
    assert plane(dx).tolist() == [[5, 6, 7], [10, 11, 12]]


def test_reflect_by_hand(backend):
    y, cache = ops.pad(IMAGE, (1, 0, 0, 3), mode="reflect")
    assert plane(y).tolist() == [[4, 5, 6, 5, 4, 5], [1, 2, 3, 2, 1, 2], [4, 5, 6, 5, 4, 5]]
    dy = np.array([[1.0, 2, 4, 8, 16, 32], [0, 0, 0, 0, 0, 1], [0, 0, 0, 100, 0, 0]]).reshape(y.shape)
    dx = ops.pad_backward(dy, cache)
    assert plane(dx).tolist() == [[0, 1, 0], [1 + 16, 2 + 8 + 32 + 100, 4]]


@settings(max_examples=60)
@given(shapes, borders, dtypes, st.sampled_from([0.0, -2.5, np.inf]), seeds)
def test_constant_agrees_with_numpy(shape, sides, dtype, value, seed):
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    top, bottom, left, right = sides
    expected = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
    for name in BACKENDS:
        with tinyseg.use(name):
            y, _ = ops.pad(x, sides, value=value)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected)


@settings(max_examples=60)
@given(shapes, borders, dtypes, seeds)
def test_reflect_agrees_with_numpy_at_any_width(shape, sides, dtype, seed):
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    top, bottom, left, right = sides
    expected = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="reflect")
    for name in BACKENDS:
        with tinyseg.use(name):
            y, _ = ops.pad(x, sides, mode="reflect")
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected)


@settings(max_examples=60)
@given(shapes, borders, st.sampled_from(["constant", "reflect"]), seeds)
def test_backward_is_the_adjoint(shape, sides, mode, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.pad(x, sides, mode=mode)
            check_adjoint(
                lambda x: ops.pad(x, sides, mode=mode)[0],
                lambda dy, cache=cache: ops.pad_backward(dy, cache),
                x,
                rng.standard_normal(y.shape),
            )


@pytest.mark.parametrize("options", [{"value": 3.0}, {"mode": "reflect"}])
def test_gradient_of_padding(backend, rng, options):
    check_vjp(ops.pad, ops.pad_backward, (rng.standard_normal((2, 4, 3, 2)),), padding=(1, 5, 3, 2), **options)


@pytest.mark.oracle
def test_reflect_agrees_with_torch(torch, backend, rng):
    x, dy = rng.standard_normal((2, 6, 5, 3)), rng.standard_normal((2, 6 + 1 + 5, 5 + 4 + 2, 3))
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    y_torch = torch.nn.functional.pad(x_torch, (4, 2, 1, 5), mode="reflect")
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
    y, cache = ops.pad(x, (1, 5, 4, 2), mode="reflect")
    np.testing.assert_array_equal(y, y_torch.detach().numpy().transpose(0, 2, 3, 1))
    dx = ops.pad_backward(dy, cache)
    np.testing.assert_allclose(dx, dx_torch.numpy().transpose(0, 2, 3, 1), rtol=1e-13, atol=1e-14)


def test_one_number_and_a_pair(backend):
    np.testing.assert_array_equal(ops.pad(IMAGE, 2)[0], ops.pad(IMAGE, (2, 2, 2, 2))[0])
    np.testing.assert_array_equal(ops.pad(IMAGE, (0, 1))[0], ops.pad(IMAGE, (0, 0, 1, 1))[0])
    np.testing.assert_array_equal(ops.pad(IMAGE, 0, value=5)[0], IMAGE)


# ------------------------------------------------------------------------------------------------------ cropping


def test_crop_by_hand(backend):
    y, cache = ops.crop(IMAGE, (0, 1, 1, 0))
    assert plane(y).tolist() == [[2, 3]]
    dx = ops.crop_backward(np.array([7.0, 8.0]).reshape(y.shape), cache)
    assert plane(dx).tolist() == [[0, 7, 8], [0, 0, 0]]


def test_crop_to_a_size_by_hand(backend):
    x = np.arange(30.0).reshape(1, 5, 6, 1)
    centre, _ = ops.crop(x, size=(2, 3))  # 3 rows too many: 1 above, 2 below; 3 columns too many: 1 and 2
    assert plane(centre).tolist() == [[7, 8, 9], [13, 14, 15]]
    part, _ = ops.crop(x, size=(2, 3), offset=(3, 0))
    assert plane(part).tolist() == [[18, 19, 20], [24, 25, 26]]
    assert ops.crop(x, size=4)[0].shape == (1, 4, 4, 1)


@settings(max_examples=60)
@given(shapes, st.tuples(*[st.integers(0, 4)] * 4), dtypes, seeds)
def test_crop_agrees_with_slices(shape, sides, dtype, seed):
    top, bottom, left, right = sides
    assume(top + bottom < shape[1] and left + right < shape[2])
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    expected = x[:, top : shape[1] - bottom, left : shape[2] - right]
    dy = rng.standard_normal(expected.shape).astype(dtype)
    dx_expected = np.pad(dy, ((0, 0), (top, bottom), (left, right), (0, 0)))
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.crop(x, sides)
            dx = ops.crop_backward(dy, cache)
            undone, _ = ops.crop(ops.pad(x, sides, mode="reflect")[0], sides)
        assert y.dtype == dx.dtype == dtype
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(dx, dx_expected)
        np.testing.assert_array_equal(undone, x)


def test_gradient_of_cropping(backend, rng):
    check_vjp(ops.crop, ops.crop_backward, (rng.standard_normal((2, 6, 7, 3)),), size=(3, 4))
    check_vjp(ops.crop, ops.crop_backward, (rng.standard_normal((2, 6, 7, 3)),), sides=(1, 2, 0, 3))


# ---------------------------------------------------------------------------------------------------------- both


def test_non_contiguous_input_is_left_alone_and_the_result_is_a_copy(backend, rng):
    x = rng.standard_normal((5, 2, 7, 3)).transpose(3, 2, 0, 1)[:, ::-1]  # 3 7 5 2
    before = x.copy()
    padded, _ = ops.pad(x, (3, 4), mode="reflect")
    cropped, _ = ops.crop(x, 1)
    np.testing.assert_array_equal(padded, np.pad(before, ((0, 0), (3, 3), (4, 4), (0, 0)), mode="reflect"))
    np.testing.assert_array_equal(cropped, before[:, 1:-1, 1:-1])
    assert not np.shares_memory(padded, x) and not np.shares_memory(cropped, x)
    assert not np.shares_memory(ops.crop(before, 0)[0], before) and not np.shares_memory(
        ops.pad(before, 0)[0], before
    )
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "padding", "options", "error", "message"),
    [
        (np.zeros((3, 4)), 1, {}, ValueError, r"pad: x must have the axes \(N, H, W, C\), got shape \(3, 4\)"),
        (np.zeros((1, 3, 4, 1), np.uint8), 1, {}, TypeError, "pad: x must be float32 or float64, got uint8"),
        (np.zeros((1, 0, 4, 1)), 1, {}, ValueError, "pad: x is empty"),
        (IMAGE, -1, {}, ValueError, "pad: padding must be at least 0, got -1"),
        (IMAGE, (1, 0, 0, -1), {}, ValueError, r"pad: padding \(left, right\) must be at least 0, got \(0, -1\)"),
        (IMAGE, (1, 2, 3), {}, TypeError, "pad: padding must be an integer or a pair"),
        (IMAGE, "same", {}, TypeError, "pad: padding must be an integer or a pair"),
        (IMAGE, 1, {"mode": "mirror"}, ValueError, "pad: mode must be one of constant, reflect, got 'mirror'"),
    ],
)
def test_errors_of_padding(x, padding, options, error, message):
    with pytest.raises(error, match=message):
        ops.pad(x, padding, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "crop: give either the sides to cut off, or the size to keep"),
        ({"sides": 0, "size": 1}, ValueError, "crop: give either the sides to cut off, or the size to keep"),
        ({"sides": 0, "offset": 1}, ValueError, "crop: give either the sides to cut off, or the size to keep"),
        (
            {"sides": (1, 1, 0, 0)},
            ValueError,
            r"crop: cutting 1 \+ 1 rows and 0 \+ 0 columns leaves nothing",
        ),
        ({"sides": -1}, ValueError, "crop: sides must be at least 0"),
        ({"size": (3, 1)}, ValueError, "crop: an image of 2 x 3 has no part of 3 x 1; use ops.pad"),
        ({"size": (1, 2), "offset": (0, 2)}, ValueError, "has no part of 1 x 2 from row 0, column 2 on"),
        ({"size": 0}, ValueError, "crop: size must be at least 1"),
    ],
)
def test_errors_of_cropping(options, error, message):
    with pytest.raises(error, match=message):
        ops.crop(IMAGE, **options)


def test_errors_of_the_backward_passes():
    _, cache = ops.pad(IMAGE, 1)
    with pytest.raises(ValueError, match=r"pad_backward: dy must have shape \(1, 4, 5, 1\)"):
        ops.pad_backward(IMAGE, cache)
    _, cache = ops.crop(IMAGE, size=1)
    with pytest.raises(TypeError, match="crop_backward: dy must be float64"):
        ops.crop_backward(np.zeros((1, 1, 1, 1), np.float32), cache)
