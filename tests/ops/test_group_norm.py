"""group_norm: by hand, against torch, its two special cases, gradients, errors."""

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
    """x, gamma, beta, the number of groups, and dy; at least two values in each group, as torch asks for."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    spatial = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda hw: hw[0] * hw[1] * size > 1))
    shape = (draw(st.integers(1, 3)), *spatial, groups * size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1, 30])) + draw(st.sampled_from([0, -5, 100]))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    gamma, beta = rng.standard_normal((2, shape[-1]))
    return (x, gamma, beta), groups, rng.standard_normal(shape)


def test_by_hand(backend):
    # Two images of one pixel, two groups of two channels: the means are 2, 20, 0, 5, the deviations 1, 10, 3, 5.
    x = np.array([[1.0, 3, 10, 30], [3, -3, 0, 10]]).reshape(2, 1, 1, 4)
    gamma, beta = np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 100, 100])
    y, cache = ops.group_norm(x, gamma, beta, groups=2, eps=0)
    assert cache.mean.tolist() == [[2, 20], [0, 5]]
    assert cache.var.tolist() == [[1, 100], [9, 25]]
    assert y.reshape(2, 4).tolist() == [[-1, 2, 97, 104], [1, -2, 97, 104]]
    dx, dgamma, dbeta = ops.group_norm_backward(np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(x.shape), cache)
    # A normalised pair is (-1, 1) or (1, -1) whatever x is, so no gradient reaches x.
    np.testing.assert_allclose(dx, np.zeros(x.shape), atol=1e-14)
    assert dgamma.tolist() == [-1 + 5, 2 - 6, -3 - 7, 4 + 8]
    assert dbeta.tolist() == [6, 8, 10, 12]


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(case=cases())
def test_against_torch(torch, name, case):
    arrays, groups, dy = case
    with tinyseg.use(name):
        y, cache = ops.group_norm(*arrays, groups=groups, eps=1e-3)
        gradients = ops.group_norm_backward(dy, cache)
    x, gamma, beta = (torch.tensor(array, requires_grad=True) for array in arrays)
    expected = torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), groups, gamma, beta, eps=1e-3)
    expected = expected.permute(0, 2, 3, 1)
    expected_gradients = torch.autograd.grad(expected, (x, gamma, beta), torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-8, atol=1e-9)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = np.abs(other.numpy()).max() + np.abs(dy).max()
        np.testing.assert_allclose(gradient, other.numpy(), atol=1e-9 * scale)


@pytest.mark.oracle
def test_instance_norm_is_one_channel_in_each_group(backend, torch, rng):
    x = rng.standard_normal((2, 5, 7, 6))
    y, _ = ops.group_norm(x, np.ones(6), np.zeros(6), groups=6)
    expected = torch.nn.functional.instance_norm(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-12)


@pytest.mark.oracle
def test_layer_norm_is_one_group(backend, torch, rng):
    x = rng.standard_normal((2, 5, 7, 6))
    one, zero = np.ones(6), np.zeros(6)
    y, _ = ops.group_norm(x, one, zero, groups=1)
    np.testing.assert_allclose(y, torch.nn.functional.layer_norm(torch.tensor(x), (5, 7, 6)).numpy(), atol=1e-12)
    y, _ = ops.group_norm(x.reshape(-1, 6), one, zero, groups=1)
    expected = torch.nn.functional.layer_norm(torch.tensor(x), (6,)).reshape(-1, 6)
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 4, 6), (1, 2, 1, 6)])
def test_gradient(backend, rng, shape, groups):
    arrays = (rng.standard_normal(shape), *rng.standard_normal((2, 6)))
    check_vjp(ops.group_norm, ops.group_norm_backward, arrays, groups=groups)


def test_images_are_independent(backend, rng):
    x, dy = rng.standard_normal((2, 3, 4, 5, 6))
    gamma, beta = rng.standard_normal((2, 6))
    y, cache = ops.group_norm(x, gamma, beta, groups=3)
    dx, dgamma, _ = ops.group_norm_backward(dy, cache)
    parts = []
    for n in range(3):
        part, cache = ops.group_norm(x[n : n + 1], gamma, beta, groups=3)
        part_dx, part_dgamma, _ = ops.group_norm_backward(dy[n : n + 1], cache)
        np.testing.assert_allclose(part[0], y[n], rtol=1e-13)
        np.testing.assert_allclose(part_dx[0], dx[n], rtol=1e-11, atol=1e-14)
        parts.append(part_dgamma)
    np.testing.assert_allclose(np.sum(parts, axis=0), dgamma, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 37, 41, 24), (1, 1, 3, 4), (2, 33, 1, 512)])
def test_backends_agree_in_float32(rng, shape):
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, shape[-1]), dtype=np.float32)
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.group_norm(x + 10, gamma, beta, groups=4)
            results.append([y, cache.mean, cache.var, *ops.group_norm_backward(dy, cache)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(a).max())


def test_need_skips_gradients(backend, rng):
    x, dy = rng.standard_normal((2, 2, 3, 4, 6))
    _, cache = ops.group_norm(x, np.ones(6), np.zeros(6), groups=2)
    everything = ops.group_norm_backward(dy, cache)
    for i in range(3):
        need = tuple(i == j for j in range(3))
        gradients = ops.group_norm_backward(dy, cache, need=need)
        assert [gradient is not None for gradient in gradients] == list(need)
        np.testing.assert_array_equal(gradients[i], everything[i])


def test_nan_stays_in_its_image_and_group(backend):
    x = np.arange(32.0).reshape(2, 2, 2, 4)
    x[1, 0, 1, 2] = np.nan
    y, _ = ops.group_norm(x, np.ones(4), np.zeros(4), groups=2)
    assert np.isnan(y[1, ..., 2:]).all() and np.isnan(y).sum() == 8


def test_errors():
    x, one = np.ones((2, 3, 4, 6)), np.ones(6)
    for groups in (4, 0, 7, 1.5):
        with pytest.raises(ValueError, match=rf"divides the 6 channels of x \(2, 3, 4, 6\), got {groups}"):
            ops.group_norm(x, one, one, groups=groups)
    with pytest.raises(ValueError, match=r"beta must have shape \(6,\) .* got \(3,\)"):
        ops.group_norm(x, one, one[:3], groups=2)
    with pytest.raises(ValueError, match="2 or more, got shape"):
        ops.group_norm(one, one, one, groups=2)
    with pytest.raises(ValueError, match="eps must be 0 or more, got -1"):
        ops.group_norm(x, one, one, groups=2, eps=-1)
    _, cache = ops.group_norm(x, one, one, groups=2)
    with pytest.raises(TypeError, match="dy must be float64"):
        ops.group_norm_backward(x.astype(np.float32), cache)
