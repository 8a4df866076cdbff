"""dice: by hand, against torch, absent classes, weights, gradients, errors."""

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
    """probabilities, labels, the options and dy."""
    leading = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    classes = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p = rng.random((*leading, classes))
    p = p / p.sum(-1, keepdims=True)
    if draw(st.booleans()):
        p = np.asfortranarray(p)
    labels = np.asarray(rng.integers(0, classes, leading), draw(st.sampled_from(["int64", "uint8"])))
    options = {"epsilon": draw(st.sampled_from([1e-3, 1.0])), "reduction": draw(st.sampled_from(["mean", "sum"]))}
    if draw(st.booleans()):
        options["class_weights"] = rng.uniform(0.1, 3, classes)
    if draw(st.booleans()):
        options["pixel_weights"] = rng.random(leading)
    if draw(st.booleans()):
        options["ignore_label"] = 255
        labels = np.where(rng.random(leading) < 0.3, 255, labels).astype(labels.dtype)
    return p, labels, options, rng.standard_normal(())


def run(name, probabilities, labels, dy=1.0, **options):
    with tinyseg.use(name):
        loss, cache = ops.dice(probabilities, labels, **options)
        return loss, ops.dice_backward(np.array(dy, probabilities.dtype), cache)


def test_by_hand(backend):
    p = np.array([[1.0, 0], [0.5, 0.5], [0.25, 0.75], [0, 1]])
    labels = np.array([0, 0, 1, 255])
    loss, dp = run(backend, p, labels, dy=2, ignore_label=255, epsilon=0.25)
    # Class 0: I = 1.5, areas 1.75 and 2: 1 - 3.25 / 4. Class 1: I = 0.75, areas 1.25 and 1: 1 - 1.75 / 2.5.
    assert loss.shape == () and loss.dtype == np.float64
    np.testing.assert_allclose(loss, ((1 - 3.25 / 4) + (1 - 1.75 / 2.5)) / 2, rtol=1e-14)
    zero, one = 3.25 / 16, 1.75 / 6.25
    expected = [[zero - 2 / 4, one], [zero - 2 / 4, one], [zero, one - 2 / 2.5], [0, 0]]
    np.testing.assert_allclose(dp, expected, rtol=1e-14)


def test_weights_by_hand(backend):
    # The second pixel counts four fold: I = (0, 4 * 0.5), areas (1 + 4 * 0.5, 1) and (4 * 0.5, 4).
    p, labels = np.array([[1.0, 0], [0.5, 0.5]]), np.array([0, 1])
    options = {"pixel_weights": np.array([1.0, 4]), "class_weights": [3, 1], "epsilon": 1.0}
    loss, dp = run(backend, p, labels, dy=4, **options)
    losses = [1 - (2 * 1 + 1) / (3 + 1 + 1), 1 - (2 * 2 + 1) / (2 + 4 + 1)]
    np.testing.assert_allclose(loss, (3 * losses[0] + losses[1]) / 4, rtol=1e-14)
    zero, one = 3 * 3 / 25, 5 / 49
    np.testing.assert_allclose(dp, [[zero - 3 * 2 / 5, one], [4 * zero, 4 * (one - 2 / 7)]], rtol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(case=cases())
def test_against_torch(torch, name, case):
    p, labels, options, dy = case
    loss, dp = run(name, p, labels, dy, **options)
    classes = p.shape[-1]
    counts = torch.tensor((labels != options.get("ignore_label", -1)) * options.get("pixel_weights", 1.0)).reshape(
        -1, 1
    )
    g = torch.nn.functional.one_hot(torch.tensor(labels.reshape(-1).astype(np.int64) % 255 % classes), classes)
    x = torch.tensor(p.reshape(-1, classes), requires_grad=True)
    epsilon = options["epsilon"]
    scores = (2 * (counts * x * g).sum(0) + epsilon) / ((counts * (x + g)).sum(0) + epsilon)
    shares = torch.tensor(options.get("class_weights", np.ones(classes)))
    expected = (shares * (1 - scores)).sum() / (shares.sum() if options["reduction"] == "mean" else 1)
    (expected_dp,) = torch.autograd.grad(expected, x, torch.tensor(float(dy), dtype=torch.float64))
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dp.reshape(x.shape), expected_dp.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (7, 2), (3,)])
def test_gradient(backend, rng, shape, reduction):
    labels = rng.integers(0, shape[-1], shape[:-1])
    options = {"class_weights": rng.uniform(0.5, 2, shape[-1]), "pixel_weights": rng.uniform(0.5, 2, shape[:-1])}
    check_vjp(
        lambda p: ops.dice(p, labels, reduction=reduction, **options),
        ops.dice_backward,
        rng.uniform(0.1, 0.9, shape),
    )


def test_gradient_through_the_softmax(backend, rng):
    labels = rng.integers(0, 3, (2, 5, 4))

    def forward(logits):
        p, softmax_cache = ops.softmax(logits)
        loss, cache = ops.dice(p, labels)
        return loss, (softmax_cache, cache)

    def backward(dy, caches):
        return ops.softmax_backward(ops.dice_backward(dy, caches[1]), caches[0])

    check_vjp(forward, backward, rng.standard_normal((2, 5, 4, 3)))


def test_perfect_and_absent_classes(backend):
    labels = np.array([[0, 0, 2]])
    perfect = np.eye(4)[labels]
    assert run(backend, perfect, labels)[0] == 0
    # All wrong: classes 0 and 2 overlap nothing. Class 1 is in no label: 3 pixels of it cost 3 / (3 + epsilon).
    loss, _ = run(backend, np.eye(4)[np.array([[1, 1, 1]])], labels, epsilon=0.5, reduction="sum")
    np.testing.assert_allclose(loss, (1 - 0.5 / 2.5) + 3 / 3.5 + (1 - 0.5 / 1.5) + 0, rtol=1e-14)


@pytest.mark.parametrize("shape", [(2, 137, 141, 5), (3, 65, 1), (1, 70, 1, 150)])
def test_backends_agree_in_float32(rng, shape):
    p = rng.random(shape, dtype=np.float32)
    labels = rng.integers(0, shape[-1] + 1, shape[:-1])
    options = {"ignore_label": shape[-1], "pixel_weights": rng.random(shape[:-1])}
    (loss_a, da), (loss_b, db) = (run(name, p, labels, dy=1e3, **options) for name in BACKENDS)
    assert loss_a.dtype == loss_b.dtype == da.dtype == db.dtype == np.float32
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-6)
    np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-6 * np.abs(da).max())


def test_nothing_counts(backend):
    for options in ({"ignore_label": 1}, {"pixel_weights": np.zeros(2)}, {"class_weights": np.zeros(3)}):
        loss, dp = run(backend, np.full((2, 3), 0.5), np.ones(2, int), **options)
        assert loss == 0 and not dp.any()


def test_nan_stays_visible(backend):
    p = np.full((2, 3), 0.5)
    p[1, 2] = np.nan
    assert np.isnan(run(backend, p, np.array([0, 1]))[0])
    assert np.isfinite(run(backend, p, np.array([0, 255]), ignore_label=255)[0])


def test_errors():
    p, labels = np.full((2, 3, 4), 0.25), np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"between 0 and 1, these reach from -3 to 5; put ops\.softmax before it"):
        ops.dice(np.array([[5.0, -3]]), np.array([0]))
    with pytest.raises(ValueError, match=r"dice: labels must lie in 0 \.\. 3, but 6 of 6 pixels have 9"):
        ops.dice(p, labels + 9)
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 3\)"):
        ops.dice(p, labels[0])
    with pytest.raises(ValueError, match="epsilon must be more than 0, got 0"):
        ops.dice(p, labels, epsilon=0)
    with pytest.raises(ValueError, match="reduction must be"):
        ops.dice(p, labels, reduction="none")
    with pytest.raises(ValueError, match=r"class_weights must have shape \(4,\)"):
        ops.dice(p, labels, class_weights=[1, 2])
    _, cache = ops.dice(p, labels)
    with pytest.raises(ValueError, match=r"dy must have shape \(\)"):
        ops.dice_backward(np.ones(1), cache)
