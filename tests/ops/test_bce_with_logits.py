"""bce_with_logits: by hand, against torch, ignored and weighted elements, large logits, gradients, errors."""

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
    """logits, targets, the options and dy."""
    shape = (*draw(st.lists(st.integers(1, 6), max_size=3)), draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1, 100]))
    if draw(st.booleans()):
        logits = np.asfortranarray(logits)
    targets = rng.random(shape)
    if draw(st.booleans()):
        targets = (targets > 0.6).astype(draw(st.sampled_from(["bool", "uint8", "float32"])))
    positive = draw(st.sampled_from([1.0, 2.5, "each"]))
    options = {"positive_weight": rng.uniform(0.1, 9, shape[-1]) if positive == "each" else positive}
    if draw(st.booleans()):
        options["pixel_weights"] = rng.random(shape if draw(st.booleans()) else shape[:-1])
    return logits, targets, options, rng.standard_normal(())


def run(name, logits, targets, dy=1.0, **options):
    with tinyseg.use(name):
        loss, cache = ops.bce_with_logits(logits, targets, **options)
        return loss, ops.bce_with_logits_backward(np.array(dy, logits.dtype), cache)


def test_by_hand(backend):
    # The logits of probabilities 1/4 and 3/5, for channel 0 and 1; the last pixel is ignored.
    logits = np.array([[np.log(1 / 3), np.log(3 / 2)], [7, 8]])
    targets = np.array([[1, 0], [255, 255]], np.uint8)
    loss, dlogits = run(backend, logits, targets, dy=10, ignore_label=255)
    assert loss.shape == () and loss.dtype == np.float64
    np.testing.assert_allclose(loss, (np.log(4) + np.log(5 / 2)) / 2, rtol=1e-14)
    np.testing.assert_allclose(dlogits, 10 / 2 * np.array([[-3 / 4, 3 / 5], [0, 0]]), rtol=1e-14)
    # The positive element counts 6 fold; the pixel weight 2 enters the denominator, the positive weight does not.
    options = {"positive_weight": [6, 1], "pixel_weights": np.array([2.0, 1]), "ignore_label": 255}
    loss, dlogits = run(backend, logits, targets, dy=1, **options)
    np.testing.assert_allclose(loss, (6 * np.log(4) + np.log(5 / 2)) / 2, rtol=1e-14)
    np.testing.assert_allclose(dlogits, [[-6 / 2 * 3 / 4, 1 / 2 * 3 / 5], [0, 0]], rtol=1e-14)


def test_soft_target_by_hand(backend):
    # At logit 0 both answers cost log 2; the gradient is 1/2 - t.
    loss, dlogits = run(backend, np.zeros((1, 1)), np.array([[0.75]]), reduction="sum")
    np.testing.assert_allclose([loss, dlogits[0, 0]], [np.log(2), -0.25], rtol=1e-15)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(case=cases())
def test_against_torch(torch, name, case):
    logits, targets, options, dy = case
    loss, dlogits = run(name, logits, targets, dy, reduction="sum", **options)
    z = torch.tensor(logits, requires_grad=True)
    weights = np.asarray(options.get("pixel_weights", 1.0))
    weights = weights if weights.ndim in (0, logits.ndim) else weights[..., None]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        z,
        torch.tensor(targets.astype(np.float64)),
        weight=torch.tensor(weights),
        pos_weight=torch.tensor(options["positive_weight"], dtype=torch.float64),
        reduction="sum",
    )
    (expected_dlogits,) = torch.autograd.grad(expected, z, torch.tensor(float(dy), dtype=torch.float64))
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(dlogits, expected_dlogits.numpy(), rtol=1e-9, atol=1e-11)
    mean, mean_dlogits = run(name, logits, targets, dy, **options)
    count = np.broadcast_to(weights, logits.shape).sum()
    np.testing.assert_allclose(mean * count, loss, rtol=1e-12)
    np.testing.assert_allclose(mean_dlogits * count, dlogits, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 2), (7, 1), (3,)])
def test_gradient(backend, rng, shape, reduction):
    targets = rng.random(shape)
    options = {"positive_weight": rng.uniform(0.5, 5, shape[-1]), "pixel_weights": rng.uniform(0.5, 2, shape[:-1])}
    check_vjp(
        lambda logits: ops.bce_with_logits(logits, targets, reduction=reduction, **options),
        ops.bce_with_logits_backward,
        2 * rng.standard_normal(shape),
    )


def test_two_classes_are_one_logit(backend, rng):
    """The softmax of two scores is the sigmoid of their difference."""
    scores, labels = rng.standard_normal((3, 4, 5, 2)), rng.integers(0, 2, (3, 4, 5))
    loss, _ = run(backend, scores[..., 1:] - scores[..., :1], labels[..., None])
    np.testing.assert_allclose(loss, ops.cross_entropy(scores, labels)[0], rtol=1e-13)


@pytest.mark.parametrize("shape", [(2, 37, 41, 3), (3, 6500, 1)])
def test_backends_agree_in_float32(rng, shape):
    logits = 5 * rng.standard_normal(shape, dtype=np.float32)
    targets = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    options = {"ignore_label": 255, "pixel_weights": rng.random(shape[:-1]), "positive_weight": 3}
    (loss_a, da), (loss_b, db) = (run(name, logits, targets, dy=1e3, **options) for name in BACKENDS)
    assert loss_a.dtype == loss_b.dtype == da.dtype == db.dtype == np.float32
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-6)
    np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits(backend, dtype):
    logits = np.array([1e4, -1e4, 1e4, -1e4, 20.0, -20.0], dtype)[:, None]
    targets = np.array([1, 0, 0, 1, 1, 0])[:, None]
    for i, expected in enumerate([0, 0, 1e4, 1e4, np.log1p(np.exp(-20)), np.log1p(np.exp(-20))]):
        loss, dlogits = run(backend, logits[i : i + 1], targets[i : i + 1])
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        sign = 1 - 2 * targets[i, 0]
        np.testing.assert_allclose(dlogits[0, 0], sign * -np.expm1(-expected), rtol=1e-6)


def test_nothing_counts(backend):
    logits = np.full((2, 3), np.nan, np.float32)
    for options in ({"ignore_label": 1}, {"pixel_weights": np.zeros(2)}):
        loss, dlogits = run(backend, logits, np.ones((2, 3)), **options)
        assert loss == 0 and not dlogits.any()


def test_nan_stays_visible(backend):
    logits = np.array([[0.0], [np.nan]])
    loss, dlogits = run(backend, logits, np.array([[0], [1]]))
    assert np.isnan(loss) and np.isnan(dlogits).tolist() == [[False], [True]]
    loss, dlogits = run(backend, logits, np.array([[0], [255]]), ignore_label=255)
    np.testing.assert_allclose([loss, *dlogits[:, 0]], [np.log(2), 0.5, 0])


def test_errors():
    logits = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match="between 0 and 1, these reach from 0 to 255; divide a mask"):
        ops.bce_with_logits(logits, np.arange(24).reshape(2, 3, 4) % 2 * 255)
    with pytest.raises(ValueError, match=r"targets must have shape \(2, 3, 4\) .* got \(2, 3\)"):
        ops.bce_with_logits(logits, np.ones((2, 3)))
    with pytest.raises(TypeError, match="targets must be an array of numbers or bools, got list"):
        ops.bce_with_logits(logits, [1])
    with pytest.raises(ValueError, match=r"must have shape \(2, 3\), .* or \(2, 3, 4\), .* got \(4,\)"):
        ops.bce_with_logits(logits, logits, pixel_weights=np.ones(4))
    with pytest.raises(ValueError, match="pixel_weights must not be negative"):
        ops.bce_with_logits(logits, logits, pixel_weights=-logits)
    with pytest.raises(ValueError, match=r"positive_weight must have shape \(4,\) .* got \(3,\)"):
        ops.bce_with_logits(logits, logits, positive_weight=np.ones(3))
    with pytest.raises(ValueError, match="reduction must be"):
        ops.bce_with_logits(logits, logits, reduction="none")
    with pytest.raises(ValueError, match="got a single number"):
        ops.bce_with_logits(np.array(1.0), np.array(1.0))
    _, cache = ops.bce_with_logits(logits, logits)
    with pytest.raises(TypeError, match="dy must be float64"):
        ops.bce_with_logits_backward(np.float32(1), cache)
