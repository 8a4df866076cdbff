"""balanced_edge_loss: by hand, against torch, balance, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp

BACKENDS = ["numpy", "numba"]


def test_by_hand(backend):
    # Probabilities 1/2, 1/4, 1/5, 3/5 and one ignored; the first is an edge. B / M = 3/4, P / M = 1/4, M = 4.
    logits = np.array([0, np.log(1 / 3), np.log(1 / 4), np.log(3 / 2), np.nan]).reshape(1, 1, 5, 1)
    edges = np.array([1, 0, 0, 0, 255], np.uint8).reshape(1, 1, 5, 1)
    loss, cache = ops.balanced_edge_loss(logits, edges, ignore_label=255)
    expected = (3 / 4 * np.log(2) + 1 / 4 * (np.log(4 / 3) + np.log(5 / 4) + np.log(5 / 2))) / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    dlogits = ops.balanced_edge_loss_backward(np.array(16.0), cache)
    np.testing.assert_allclose(dlogits.ravel(), [3 * -1 / 2, 1 / 4, 1 / 5, 3 / 5, 0], rtol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.integers(1, 2)),
    seed=st.integers(0, 2**32 - 1),
    rare=st.sampled_from([0.05, 0.3, 0.9]),
)
def test_against_torch(torch, name, shape, seed, rare):
    rng = np.random.default_rng(seed)
    logits, edges = 4 * rng.standard_normal(shape), (rng.random(shape) < rare).astype(np.int64)
    edges[rng.random(shape) < 0.2] = 255
    with tinyseg.use(name):
        loss, cache = ops.balanced_edge_loss(logits, edges, ignore_label=255)
        dlogits = ops.balanced_edge_loss_backward(np.array(1.7), cache)
    z, t = torch.tensor(logits, requires_grad=True), torch.tensor(edges)
    positive, negative = (t == 1).sum(), (t == 0).sum()
    total = (positive + negative).clamp(min=1)
    weights = torch.where(t == 1, negative / total, torch.where(t == 0, positive / total, 0.0)).double()
    terms = torch.nn.functional.binary_cross_entropy_with_logits(z, (t == 1).double(), reduction="none")
    expected = (weights * terms).sum() / total
    expected.backward(torch.tensor(1.7, dtype=torch.float64))
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-5)  # torch divides integers in float32
    np.testing.assert_allclose(dlogits, z.grad.numpy(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 1), (1, 7)])
def test_gradient(backend, rng, shape):
    edges = rng.random(shape) < 0.4
    check_vjp(
        lambda logits: ops.balanced_edge_loss(logits, edges),
        ops.balanced_edge_loss_backward,
        rng.standard_normal(shape),
    )


def test_both_kinds_weigh_the_same(backend):
    """At logits of 0 the pull of all edges is that of all other pixels, however few they are."""
    edges = np.zeros((1, 10, 10, 1), bool)
    edges[0, 3, :4] = True
    loss, cache = ops.balanced_edge_loss(np.zeros((1, 10, 10, 1)), edges)
    dlogits = ops.balanced_edge_loss_backward(np.array(1.0), cache)
    np.testing.assert_allclose(dlogits[edges].sum(), -dlogits[~edges].sum(), rtol=1e-13)
    np.testing.assert_allclose(loss, 2 * 0.04 * 0.96 * np.log(2), rtol=1e-13)


def test_no_edge_or_nothing_to_see_is_no_loss(backend):
    logits = np.ones((1, 2, 3, 1), np.float32)
    for edges in (np.zeros(logits.shape, bool), np.ones(logits.shape, int), np.full(logits.shape, 255)):
        loss, cache = ops.balanced_edge_loss(logits, edges, ignore_label=255)
        assert loss == 0 and loss.dtype == np.float32
        assert not ops.balanced_edge_loss_backward(np.float32(1), cache).any()


def test_errors():
    logits = np.ones((1, 2, 3, 1))
    with pytest.raises(ValueError, match="edges must be 0 or 1, got also 255; pass ignore_label="):
        ops.balanced_edge_loss(logits, np.full(logits.shape, 255))
    with pytest.raises(ValueError, match=r"edges must have shape \(1, 2, 3, 1\).*got \(1, 2, 3\)"):
        ops.balanced_edge_loss(logits, np.ones((1, 2, 3), bool))
    with pytest.raises(TypeError, match="edges must be bools or integers, 0 and 1, got float64"):
        ops.balanced_edge_loss(logits, logits)
