"""conv_transpose2d: by hand, against torch, as the adjoint of conv2d, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

ALGORITHMS = ["reference", "direct", "patches"]


@st.composite
def cases(draw):
    """Arrays x, w, b and options of a transposed convolution with a non-empty result."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_group, out_group = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, stride, kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, min(3, (length - 1) // 2))) for length in full)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((draw(st.integers(1, 2)), *size, groups * out_group))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    w = rng.standard_normal((*kernel, in_group, groups * out_group))
    b = rng.standard_normal(groups * in_group) if draw(st.booleans()) else None
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    return (x, w, b), {**options, "groups": groups}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_by_hand(algo):
    x = np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)
    w = np.array([[1.0, 10], [100, 1000]]).reshape(2, 2, 1, 1)
    b = np.array([0.5])
    y, cache = ops.conv_transpose2d(x, w, b, stride=2, algo=algo)
    # Each input element paints its own 2x2 square.
    assert (y - 0.5)[0, :, :, 0].tolist() == [
        [1, 10, 2, 20],
        [100, 1000, 200, 2000],
        [3, 30, 4, 40],
        [300, 3000, 400, 4000],
    ]
    dy = np.zeros((1, 4, 4, 1))
    dy[0, 0, 1], dy[0, 3, 2] = 2, 3
    dx, dw, db = ops.conv_transpose2d_backward(dy, cache)
    assert dx[0, :, :, 0].tolist() == [[20, 0], [0, 300]]
    assert dw[:, :, 0, 0].tolist() == [[0, 2 * 1], [3 * 4, 0]]
    assert db.tolist() == [5]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_overlap_is_summed_by_hand(algo):
    x = np.array([1.0, 2]).reshape(1, 1, 2, 1)
    w = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1)
    y, _ = ops.conv_transpose2d(x, w, stride=(1, 2), algo=algo)
    assert y.ravel().tolist() == [1, 10, 100 + 2, 20, 200]
    y, _ = ops.conv_transpose2d(x, w, stride=(1, 2), padding=(0, 1), output_padding=(0, 1), algo=algo)
    assert y.ravel().tolist() == [10, 100 + 2, 20, 200]


@pytest.mark.oracle
@pytest.mark.parametrize("algo", ALGORITHMS)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_against_torch(torch, algo, case, seed):
    (x, w, b), options = case
    y, cache = ops.conv_transpose2d(x, w, b, algo=algo, **options)
    groups = options["groups"]
    xt = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()
    wt = torch.from_numpy(np.ascontiguousarray(w.transpose(3, 2, 0, 1))).requires_grad_()
    bt = torch.zeros(w.shape[2] * groups, dtype=torch.float64) if b is None else torch.from_numpy(b)
    yt = torch.nn.functional.conv_transpose2d(xt, wt, bt.requires_grad_(), **options)
    np.testing.assert_allclose(y, yt.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-11, atol=1e-11)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    grads = torch.autograd.grad(yt, [xt, wt, bt], torch.from_numpy(np.ascontiguousarray(dy.transpose(0, 3, 1, 2))))
    dx, dw, db = ops.conv_transpose2d_backward(dy, cache)
    np.testing.assert_allclose(dx, grads[0].numpy().transpose(0, 2, 3, 1), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dw, grads[1].numpy().transpose(2, 3, 1, 0), rtol=1e-11, atol=1e-11)
    if b is None:
        assert db is None
    else:
        np.testing.assert_allclose(db, grads[2].numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("algo", ALGORITHMS)
@given(case=cases())
def test_gradients_and_adjoints(algo, case):
    (x, w, b), options = case
    check_vjp(ops.conv_transpose2d, ops.conv_transpose2d_backward, (x, w, b), algo=algo, **options)
    y, cache = ops.conv_transpose2d(x, w, algo=algo, **options)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    check_adjoint(
        lambda x: ops.conv_transpose2d(x, w, algo=algo, **options)[0],
        lambda dy: ops.conv_transpose2d_backward(dy, cache)[0],
        x,
        dy,
    )
    check_adjoint(
        lambda w: ops.conv_transpose2d(x, w, algo=algo, **options)[0],
        lambda dy: ops.conv_transpose2d_backward(dy, cache)[1],
        w,
        dy,
    )


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_is_the_adjoint_of_conv2d_on_the_same_weights(case, seed):
    (y, w, _), options = case
    extra = options.pop("output_padding")
    x = np.random.default_rng(seed).standard_normal(
        ops.conv_transpose2d(y, w, output_padding=extra, **options)[0].shape
    )
    images = ops.conv2d(x, w, **options)[0]
    if images.shape == y.shape:  # an output_padding beyond the stride asks for rows that conv2d would also use
        check_adjoint(
            lambda x: ops.conv2d(x, w, **options)[0],
            lambda y: ops.conv_transpose2d(y, w, output_padding=extra, **options)[0],
            x,
            y,
        )
    else:
        assert any(e >= s for e, s in zip(extra, options["stride"], strict=True))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_enlarges_by_the_stride(backend, rng, stride):
    for kernel in (1, 2, 3, 4):
        x, w = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((kernel, kernel, 2, 5))
        y, _ = ops.conv_transpose2d(x, w, stride=stride, padding="same")
        assert y.shape == (2, 3 * stride, 4 * stride, 2)
        check_vjp(ops.conv_transpose2d, ops.conv_transpose2d_backward, (x, w, None), stride=stride, padding="same")


def test_float32(backend, rng):
    x, w, b = (rng.standard_normal(s) for s in [(2, 9, 11, 16), (2, 2, 8, 16), (8,)])
    wide, wide_cache = ops.conv_transpose2d(x, w, b, stride=2, algo="reference")
    dy = rng.standard_normal(wide.shape)
    y, cache = ops.conv_transpose2d(*(a.astype(np.float32) for a in (x, w, b)), stride=2)
    np.testing.assert_allclose(y, wide, atol=1e-4)
    for ours, theirs in zip(
        ops.conv_transpose2d_backward(dy.astype(np.float32), cache),
        ops.conv_transpose2d_backward(dy, wide_cache),
        strict=True,
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


IMAGE, WEIGHTS = np.zeros((1, 3, 4, 6)), np.zeros((2, 2, 5, 6))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((IMAGE, np.zeros((2, 2, 6, 5))), {}, ValueError, r"the last axis of w \(2, 2, 6, 5\) must be as long"),
        ((IMAGE, WEIGHTS), {"output_padding": 1}, ValueError, r"output_padding must be less than the stride"),
        ((IMAGE, WEIGHTS), {"padding": 4}, ValueError, r"cuts everything off"),
        ((IMAGE, WEIGHTS), {"groups": 4}, ValueError, r"cannot be split into groups=4"),
        ((IMAGE, WEIGHTS), {"groups": -1}, ValueError, r"groups must be a whole number"),
        ((IMAGE, WEIGHTS, np.zeros(6)), {}, ValueError, r"b must have shape \(5,\)"),
        ((IMAGE[..., 0], WEIGHTS), {}, ValueError, r"x must have the axes \(N, P, Q, O\)"),
        ((IMAGE.astype(np.uint8), WEIGHTS), {}, TypeError, r"x must be float32 or float64, got uint8"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.conv_transpose2d(*arguments, **options)


def test_wrong_upstream_gradient():
    _, cache = ops.conv_transpose2d(IMAGE, WEIGHTS, stride=2)
    with pytest.raises(ValueError, match=r"dy must have shape \(1, 6, 8, 5\)"):
        ops.conv_transpose2d_backward(np.zeros((1, 6, 8, 6)), cache)
