"""Resizing, against numbers by hand, PyTorch and Pillow."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ("numpy", "numba")

LINE = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
FOUR = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 17]))
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
modes = st.sampled_from(["bilinear", "nearest", "nearest-exact"])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def resizings(draw):
    """Options of resize, and those of PyTorch's interpolate, for an image shape."""
    shape, mode = draw(shapes), draw(modes)
    ours, theirs = {"mode": mode}, {"mode": mode}
    if mode == "bilinear":
        ours["align_corners"] = theirs["align_corners"] = draw(st.booleans())
    if draw(st.booleans()):
        ours["size"] = theirs["size"] = draw(sizes)
    else:
        scale = draw(st.tuples(*[st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.3, 2.0, 2.4, 3.0, 4.0])] * 2))
        assume(math.floor(shape[1] * scale[0]) >= 1 and math.floor(shape[2] * scale[1]) >= 1)
        ours["scale"] = theirs["scale_factor"] = scale
    return shape, ours, theirs


def test_bilinear_by_hand(backend):
    y, cache = ops.resize(LINE, (1, 4))
    assert y.ravel().tolist() == [1, 0.75 * 1 + 0.25 * 3, 0.25 * 1 + 0.75 * 3, 3]
    dx = ops.resize_backward(FOUR, cache)
    assert dx.ravel().tolist() == [1 + 0.75 * 2 + 0.25 * 4, 0.25 * 2 + 0.75 * 4 + 8]


def test_bilinear_with_aligned_corners_by_hand(backend):
    y, cache = ops.resize(LINE, (1, 5), align_corners=True)
    assert y.ravel().tolist() == [1, 1.5, 2, 2.5, 3]
    dx = ops.resize_backward(np.array([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(1, 1, 5, 1), cache)
    assert dx.ravel().tolist() == [1 + 1.5 + 2 + 2, 0.5 + 2 + 6 + 16]


def test_rows_and_columns_by_hand(backend):
    x = np.array([[0.0, 8.0], [4.0, 16.0], [8.0, 40.0]]).reshape(1, 3, 2, 1)
    y, cache = ops.resize(x, (2, 3), align_corners=True)
    assert y[0, :, :, 0].tolist() == [[0, 4, 8], [8, 24, 40]]
    y, cache = ops.resize(x, (2, 4))  # rows 0.25 and 1.75; columns -0.25 (so 0), 0.25, 0.75, 1.25 (so 1)
    assert y[0, :, :, 0].tolist() == [[1, 3.25, 7.75, 10], [7, 13.75, 27.25, 34]]
    dx = ops.resize_backward(np.array([[16.0, 0, 0, 0], [0, 16.0, 0, 0]]).reshape(1, 2, 4, 1), cache)
    assert dx[0, :, :, 0].tolist() == [[12, 0], [4 + 3, 1], [9, 3]]


@pytest.mark.parametrize(
    ("mode", "align_corners", "size", "expected"),
    [
        ("nearest", False, 2, [1, 4]),
        ("nearest-exact", False, 2, [2, 8]),
        ("bilinear", False, 2, [1.5, 6]),
        ("nearest", True, 2, [1, 8]),
        ("nearest-exact", True, 2, [1, 8]),
        ("bilinear", True, 2, [1, 8]),
        ("nearest", False, 3, [1, 2, 4]),  # floor of 0, 4/3, 8/3
        ("nearest-exact", False, 3, [1, 4, 8]),  # floor of 4/6, 12/6, 20/6
        ("nearest", True, 3, [1, 4, 8]),  # 0, 1.5 (rounded up), 3
        ("nearest", False, 8, [1, 1, 2, 2, 4, 4, 8, 8]),
        ("nearest-exact", False, 8, [1, 1, 2, 2, 4, 4, 8, 8]),
        ("bilinear", True, 1, [1]),
        ("nearest", True, 1, [1]),
        ("bilinear", False, 1, [3]),
    ],
)
def test_modes_by_hand(backend, mode, align_corners, size, expected):
    along_width, _ = ops.resize(FOUR, (1, size), mode=mode, align_corners=align_corners)
    along_height, _ = ops.resize(FOUR.reshape(1, 4, 1, 1), (size, 1), mode=mode, align_corners=align_corners)
    np.testing.assert_allclose(along_width.ravel(), expected, rtol=1e-15)
    np.testing.assert_allclose(along_height.ravel(), expected, rtol=1e-15)


def test_scale_sets_the_step_even_where_the_size_is_rounded_down(backend):
    y, _ = ops.resize(FOUR, scale=(1, 0.7))  # 2.8 columns: 2, at (q + 0.5) / 0.7 - 0.5 = 0.214.. and 1.643..
    t = 0.5 / 0.7 - 0.5, 1.5 / 0.7 - 1.5
    np.testing.assert_allclose(y.ravel(), [1 + t[0], 2 + t[1] * 2], rtol=1e-14)
    assert ops.resize(FOUR, scale=2)[0].shape == (1, 2, 8, 1)


def test_a_scale_that_rounds_to_the_same_size_changes_nothing(backend):
    for mode, expected in (("bilinear", [1, 3]), ("nearest", [1, 3]), ("nearest-exact", [1, 3])):
        y, _ = ops.resize(LINE, scale=(1, 1.3), mode=mode)
        assert y.ravel().tolist() == expected
    y, _ = ops.resize(LINE, scale=(1, 2.4), mode="nearest")
    assert y.ravel().tolist() == [1, 1, 3, 3]


@pytest.mark.oracle
@settings(max_examples=100)
@given(resizing=resizings(), seed=seeds)
def test_agrees_with_torch(torch, resizing, seed):
    shape, ours, theirs = resizing
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    y_torch = torch.nn.functional.interpolate(x_torch, **theirs)
    y = y_torch.detach().numpy().transpose(0, 2, 3, 1)
    dy = rng.standard_normal(y.shape)
    (dx_torch,) = torch.autograd.grad(y_torch, x_torch, torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
    dx = dx_torch.numpy().transpose(0, 2, 3, 1)
    for name in BACKENDS:
        with tinyseg.use(name):
            y_ours, cache = ops.resize(x, **ours)
            dx_ours = ops.resize_backward(dy, cache)
            y_float32, cache = ops.resize(x.astype(np.float32), **ours)
            dx_float32 = ops.resize_backward(dy.astype(np.float32), cache)
        np.testing.assert_allclose(y_ours, y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dx_ours, dx, rtol=1e-12, atol=1e-12)
        assert y_float32.dtype == dx_float32.dtype == np.float32
        np.testing.assert_allclose(y_float32, y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dx_float32, dx, rtol=1e-5, atol=2e-5)  # up to 24 * 24 outputs in one cell


def test_enlarging_agrees_with_pillow(backend, rng):
    from PIL import Image

    x = rng.standard_normal((1, 7, 5, 1)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(x[0, :, :, 0]).resize((13, 16), Image.Resampling.BILINEAR))
    y, _ = ops.resize(x, (16, 13))
    np.testing.assert_allclose(y[0, :, :, 0], theirs, rtol=1e-5, atol=1e-6)
    theirs = np.asarray(Image.fromarray(x[0, :, :, 0]).resize((13, 16), Image.Resampling.NEAREST))
    y, _ = ops.resize(x, (16, 13), mode="nearest-exact")
    np.testing.assert_array_equal(y[0, :, :, 0], theirs)


@settings(max_examples=50)
@given(shapes, sizes, modes, st.booleans(), seeds)
def test_backward_is_the_adjoint(shape, size, mode, align_corners, seed):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal((shape[0], *size, shape[3]))
    for name in BACKENDS:
        with tinyseg.use(name):
            _, cache = ops.resize(x, size, mode=mode, align_corners=align_corners)
            check_adjoint(
                lambda x: ops.resize(x, size, mode=mode, align_corners=align_corners)[0],
                lambda dy, cache=cache: ops.resize_backward(dy, cache),
                x,
                dy,
            )


@pytest.mark.parametrize(
    "options",
    [
        {"size": (9, 4)},
        {"size": (3, 13), "align_corners": True},
        {"scale": (0.7, 1.6)},
        {"size": (9, 4), "mode": "nearest"},
        {"scale": (1.5, 0.4), "mode": "nearest-exact"},
    ],
)
def test_gradient(backend, rng, options):
    check_vjp(ops.resize, ops.resize_backward, (rng.standard_normal((2, 5, 7, 3)),), **options)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_own_size_changes_nothing(backend, rng, mode, align_corners):
    x = rng.standard_normal((2, 6, 5, 3)).astype(np.float32)
    y, cache = ops.resize(x, (6, 5), mode=mode, align_corners=align_corners)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(ops.resize_backward(x, cache), x)
    np.testing.assert_array_equal(ops.resize(x, scale=1, mode=mode, align_corners=align_corners)[0], x)


def test_whole_enlargements_repeat_the_nearest_cell(backend, rng):
    x = rng.standard_normal((2, 5, 3, 2))
    for mode in ("nearest", "nearest-exact"):
        y, _ = ops.resize(x, scale=(2, 3), mode=mode)
        np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(3, axis=2))


def test_aligned_corners_continue_a_plane(backend):
    def plane(H, W):
        return 2 + 3 * np.linspace(0, 1, H)[:, None] - 5 * np.linspace(0, 1, W)

    y, _ = ops.resize(plane(4, 6).reshape(1, 4, 6, 1), (11, 9), align_corners=True)
    np.testing.assert_allclose(y[0, :, :, 0], plane(11, 9), rtol=1e-13, atol=1e-13)


@settings(max_examples=30)
@given(shapes, sizes, modes, st.booleans())
def test_weights_sum_to_one(shape, size, mode, align_corners):
    for name in BACKENDS:
        with tinyseg.use(name):
            y, _ = ops.resize(np.full(shape, 0.3), size, mode=mode, align_corners=align_corners)
        np.testing.assert_allclose(y, 0.3, rtol=1e-14)


def test_a_cell_without_weight_is_not_looked_at(backend):
    x = np.array([1.0, np.nan, np.inf, 4.0]).reshape(1, 1, 4, 1)
    y, _ = ops.resize(x, (1, 7), align_corners=True)
    np.testing.assert_array_equal(y.ravel(), [1, np.nan, np.nan, np.nan, np.inf, np.inf, 4])


def test_a_batch_is_its_images_one_by_one_and_non_contiguous_input_is_left_alone(backend, rng):
    x = rng.standard_normal((5, 2, 7, 3)).transpose(3, 2, 0, 1)[:, ::-1]  # 3 7 5 2
    before = x.copy()
    y, cache = ops.resize(x, (4, 9))
    for n in range(3):
        np.testing.assert_array_equal(y[n], ops.resize(before[n : n + 1], (4, 9))[0][0])
    dy = np.asfortranarray(rng.standard_normal(y.shape))
    np.testing.assert_array_equal(
        ops.resize_backward(dy, cache), ops.resize_backward(np.ascontiguousarray(dy), cache)
    )
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (
            np.zeros((3, 4)),
            {"size": 2},
            ValueError,
            r"resize: x must have the axes \(N, H, W, C\)",
        ),
        (np.zeros((1, 3, 4, 1), int), {"size": 2}, TypeError, "resize: x must be float32 or float64, got int64"),
        (np.zeros((0, 3, 4, 1)), {"size": 2}, ValueError, "resize: x is empty"),
        (LINE, {}, ValueError, r"resize: give a size \(P, Q\) or a scale"),
        (LINE, {"size": 2, "scale": 2}, ValueError, "resize: give a size or a scale, not both"),
        (LINE, {"size": (0, 2)}, ValueError, "resize: size must be at least 1"),
        (LINE, {"size": 2.5}, TypeError, "resize: size must be an integer or a pair"),
        (LINE, {"scale": 0.5}, ValueError, "resize: scale 0.5 leaves nothing of an image of 1 x 2"),
        (LINE, {"scale": -1}, ValueError, "resize: scale must be more than 0 and finite, got -1"),
        (LINE, {"scale": math.inf}, ValueError, "resize: scale must be more than 0 and finite, got inf"),
        (LINE, {"scale": math.nan}, ValueError, "resize: scale must be more than 0 and finite, got nan"),
        (LINE, {"scale": (1, 2, 3)}, TypeError, "resize: scale must be a number or a pair"),
        (LINE, {"scale": "2"}, TypeError, "resize: scale must be a number or a pair"),
        (
            LINE,
            {"size": 2, "mode": "bicubic"},
            ValueError,
            "resize: mode must be one of bilinear, nearest",
        ),
    ],
)
def test_errors(x, options, error, message):
    with pytest.raises(error, match=message):
        ops.resize(x, **options)


def test_errors_of_the_backward_pass():
    _, cache = ops.resize(LINE, (3, 4))
    with pytest.raises(ValueError, match=r"resize_backward: dy must have shape \(1, 3, 4, 1\)"):
        ops.resize_backward(LINE, cache)
