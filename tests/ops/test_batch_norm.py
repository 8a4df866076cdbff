"""batch_norm: by hand, against torch, gradients, frozen statistics, the fused ReLU, precision, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp

BACKENDS = ["numpy", "numba"]


@st.composite
def cases(draw):
    """x, gamma, beta, the options, and dy; at least two pixels per channel, as torch asks for in training."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 9)).filter(lambda s: s[0] * s[1] * s[2] > 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1, 30])) + draw(st.sampled_from([0, -5, 100]))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    gamma, beta, mean = rng.standard_normal((3, shape[-1]))
    options = {"relu": draw(st.booleans()), "eps": draw(st.sampled_from([1e-5, 1e-3, 0.1]))}
    if draw(st.booleans()):
        options |= {"mean": mean, "var": rng.uniform(0.1, 3, shape[-1])}
    return (x, gamma, beta), options, rng.standard_normal(shape)


def test_by_hand(backend):
    # Channel 0 holds 1 and 3: mean 2, biased variance 1. Channel 1 holds 0 and 8: mean 4, variance 16.
    x = np.array([[1.0, 0], [3, 8]]).reshape(2, 1, 1, 2)
    y, cache = ops.batch_norm(x, np.array([2.0, 3]), np.array([10.0, -1]), eps=0)
    assert cache.mean.tolist() == [2, 4]
    assert cache.var.tolist() == [1, 16]
    assert y.reshape(2, 2).tolist() == [[10 - 2, -1 - 3], [10 + 2, -1 + 3]]
    # Two values that are normalised are always -1 and 1: nothing of dy can pass.
    dx, dgamma, dbeta = ops.batch_norm_backward(np.array([[5.0, 1], [7, 2]]).reshape(x.shape), cache)
    assert dx.ravel().tolist() == [0, 0, 0, 0]
    assert dgamma.tolist() == [7 - 5, 2 - 1]
    assert dbeta.tolist() == [12, 3]


def test_three_values_by_hand(backend):
    # 0, 0, 3 have variance 2 and normalise to n = (-1, -1, 2) / sqrt(2).
    y, cache = ops.batch_norm(np.array([[0.0], [0], [3]]), np.array([4.0]), np.zeros(1), eps=0)
    np.testing.assert_allclose(y.ravel(), 4 * np.array([-1, -1, 2]) / np.sqrt(2), rtol=1e-14)
    dx, dgamma, dbeta = ops.batch_norm_backward(np.array([[6.0], [0], [0]]), cache)
    # dy sums to 6, dy n to -6 / sqrt(2):  dx = 4 / sqrt(2) (dy - 2 + n sqrt(2)),  n sqrt(2) = (-1, -1, 2)
    np.testing.assert_allclose(dx.ravel(), 4 / np.sqrt(2) * np.array([3, -3, 0]), atol=1e-14)
    np.testing.assert_allclose([dgamma[0], dbeta[0]], [-6 / np.sqrt(2), 6], rtol=1e-14)


def test_frozen_with_relu_by_hand(backend):
    x = np.array([1.0, 2, 3, 4]).reshape(1, 2, 2, 1)
    one, mean, var = np.array([-4.0]), np.array([2.5]), np.array([3.0])
    y, cache = ops.batch_norm(x, one, np.array([1.0]), mean=mean, var=var, eps=1, relu=True)
    # -4 (x - 2.5) / 2 + 1 = 4, 2, 0, -2: the mask of the ReLU is 1, 1, 0, 0.
    assert y.ravel().tolist() == [4, 2, 0, 0]
    dx, dgamma, dbeta = ops.batch_norm_backward(np.array([1.0, 10, 100, 1000]).reshape(x.shape), cache)
    assert dx.ravel().tolist() == [-2, -20, 0, 0]
    assert dgamma.tolist() == [1 * -0.75 + 10 * -0.25]
    assert dbeta.tolist() == [11]


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(case=cases())
def test_against_torch(torch, name, case):
    arrays, options, dy = case
    with tinyseg.use(name):
        y, cache = ops.batch_norm(*arrays, **options)
        gradients = ops.batch_norm_backward(dy, cache)
    x, gamma, beta = (torch.tensor(array, requires_grad=True) for array in arrays)
    mean, var = (torch.tensor(options[key]) if key in options else None for key in ("mean", "var"))
    expected = torch.nn.functional.batch_norm(
        x.permute(0, 3, 1, 2), mean, var, gamma, beta, training=mean is None, eps=options["eps"]
    ).permute(0, 2, 3, 1)
    expected = expected.relu() if options["relu"] else expected
    expected_gradients = torch.autograd.grad(expected, (x, gamma, beta), torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-8, atol=1e-9)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = np.abs(other.numpy()).max() + np.abs(dy).max()
        np.testing.assert_allclose(gradient, other.numpy(), atol=1e-9 * scale)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 3, 1), (7, 2)])
def test_gradient(backend, rng, shape, relu, frozen):
    gamma, beta, mean = rng.standard_normal((3, shape[-1]))
    options = {"mean": mean, "var": rng.uniform(0.5, 2, shape[-1])} if frozen else {}
    check_vjp(
        ops.batch_norm,
        ops.batch_norm_backward,
        (rng.standard_normal(shape), gamma, beta),
        relu=relu,
        skip_kinks=relu,
        **options,
    )


@pytest.mark.parametrize("shape", [(2, 37, 41, 24), (1, 5, 3, 1), (3, 200, 1, 700)])
@pytest.mark.parametrize("frozen", [False, True])
def test_backends_agree_in_float32(rng, shape, frozen):
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    gamma, beta, mean = rng.standard_normal((3, shape[-1]), dtype=np.float32)
    options = {"mean": mean, "var": np.abs(mean) + 1} if frozen else {}
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.batch_norm(x, gamma, beta, relu=False, **options)
            results.append([y, cache.mean, cache.var, *ops.batch_norm_backward(dy, cache)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_values_far_from_zero(backend, rng):
    """Mean 1000, deviation 1, and a first pixel that lies far from all others: the variance keeps its digits."""
    x = (rng.standard_normal((4, 61, 67, 3)) + 1000).astype(np.float32)
    x[0, 0, 0, 1] = 0
    _, cache = ops.batch_norm(x, np.ones(3, np.float32), np.zeros(3, np.float32))
    np.testing.assert_allclose(cache.mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(cache.var, x.astype(np.float64).var((0, 1, 2)), rtol=1e-6)


def test_normalised_values_do_not_feel_shift_and_scale(backend, rng):
    x = rng.standard_normal((2, 5, 7, 3))
    one, zero = np.ones(3), np.zeros(3)
    y, _ = ops.batch_norm(x, one, zero, eps=0)
    moved, _ = ops.batch_norm(17 * x - 40, one, zero, eps=0)
    np.testing.assert_allclose(moved, y, atol=1e-12)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-14)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-13)


def test_one_pixel_gives_beta_and_no_gradient(backend):
    x, beta = np.array([[[[3.0, -2.0]]]]), np.array([0.5, -0.5])
    y, cache = ops.batch_norm(x, np.array([2.0, 2.0]), beta)
    dx, dgamma, dbeta = ops.batch_norm_backward(np.array([[[[5.0, 7.0]]]]), cache)
    assert y.ravel().tolist() == beta.tolist()
    assert dx.ravel().tolist() == dgamma.tolist() == [0, 0]
    assert dbeta.tolist() == [5, 7]


def test_need_skips_gradients(backend, rng):
    x, dy = rng.standard_normal((2, 2, 3, 4, 5))
    one, zero = np.ones(5), np.zeros(5)
    for constants in ({}, {"mean": zero, "var": one}):
        _, cache = ops.batch_norm(x, one, zero, **constants)
        everything = ops.batch_norm_backward(dy, cache)
        for i in range(3):
            need = tuple(i == j for j in range(3))
            gradients = ops.batch_norm_backward(dy, cache, need=need)
            assert [gradient is not None for gradient in gradients] == list(need)
            np.testing.assert_array_equal(gradients[i], everything[i])


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_visible(backend, relu):
    x = np.ones((1, 2, 2, 2), np.float32)
    x[0, 1, 0, 0] = np.nan
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    y, _ = ops.batch_norm(x, one, zero, relu=relu)
    assert np.isnan(y[..., 0]).all() and not np.isnan(y[..., 1]).any()
    y, _ = ops.batch_norm(x, one, zero, mean=zero, var=one, relu=relu)
    assert np.isnan(y).sum() == 1 and np.isnan(y[0, 1, 0, 0])


def test_same_bits_on_any_number_of_threads(rng):
    numba = pytest.importorskip("numba", reason="needs Numba")
    x, dy = rng.standard_normal((2, 2, 61, 67, 24), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, 24), dtype=np.float32)
    results = []
    threads = numba.get_num_threads()
    try:
        for count in (1, threads):
            numba.set_num_threads(count)
            with tinyseg.use("numba"):
                y, cache = ops.batch_norm(x, gamma, beta, relu=True)
                results.append((y, *ops.batch_norm_backward(dy, cache)))
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_inputs_are_not_changed(backend, rng):
    arrays = [rng.standard_normal(shape) for shape in ((2, 3, 4, 5), 5, 5, (2, 3, 4, 5))]
    copies = [array.copy() for array in arrays]
    _, cache = ops.batch_norm(*arrays[:3], relu=True)
    ops.batch_norm_backward(arrays[3], cache)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_errors():
    x, one = np.ones((2, 3, 4, 5)), np.ones(5)
    with pytest.raises(ValueError, match=r"gamma must have shape \(5,\) .*\(2, 3, 4, 5\).* got \(4,\)"):
        ops.batch_norm(x, np.ones(4), one)
    with pytest.raises(ValueError, match=r"var must have shape \(5,\)"):
        ops.batch_norm(x, one, one, mean=one, var=np.ones((1, 5)))
    with pytest.raises(ValueError, match="give both mean and var"):
        ops.batch_norm(x, one, one, mean=one)
    with pytest.raises(ValueError, match="2 or more, got shape"):
        ops.batch_norm(one, one, one)
    with pytest.raises(ValueError, match="eps must be 0 or more, got -1"):
        ops.batch_norm(x, one, one, eps=-1)
    with pytest.raises(TypeError, match="gamma is float32"):
        ops.batch_norm(x, one.astype(np.float32), one)
    with pytest.raises(ValueError, match="x is empty"):
        ops.batch_norm(x[:0], one, one)
    _, cache = ops.batch_norm(x, one, one)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3, 4, 5\)"):
        ops.batch_norm_backward(x[:1], cache)
