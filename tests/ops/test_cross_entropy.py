"""cross_entropy: by hand, against torch, ignored and weighted pixels, large scores, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp
from tinyseg.ops.cross_entropy import _exp

BACKENDS = ["numpy", "numba"]


@st.composite
def cases(draw):
    """logits, labels, the options and dy. Some pixel always counts."""
    leading = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    classes = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.standard_normal((*leading, classes)) * draw(st.sampled_from([0.1, 1, 50]))
    if draw(st.booleans()):
        logits = np.asfortranarray(logits)
    labels = np.asarray(rng.integers(0, classes, leading), draw(st.sampled_from(["int64", "uint8", "int32"])))
    options = {"reduction": draw(st.sampled_from(["mean", "sum"]))}
    if draw(st.booleans()):
        options["class_weights"] = rng.uniform(0.1, 3, classes)
    if draw(st.booleans()) and labels.size > 1:
        options["ignore_label"] = draw(st.sampled_from([255, 0 if classes > 1 else 255]))
        ignored = rng.random(leading) < 0.3
        ignored.flat[0] = False
        labels = np.where(ignored, options["ignore_label"], labels).astype(labels.dtype)
        labels.flat[0] = classes - 1
    return logits, labels, options, rng.standard_normal(())


def run(name, logits, labels, dy=1.0, **options):
    with tinyseg.use(name):
        loss, cache = ops.cross_entropy(logits, labels, **options)
        return loss, ops.cross_entropy_backward(np.array(dy, logits.dtype), cache)


def test_by_hand(backend):
    # Probabilities 1/4, 3/4 and 4/5, 1/5 and 1/2, 1/2; the last pixel is ignored.
    logits = np.log(np.array([[1.0, 3], [4, 1], [1, 1]]))
    labels = np.array([0, 1, 255])
    loss, dlogits = run(backend, logits, labels, dy=10, ignore_label=255)
    assert loss.shape == () and loss.dtype == np.float64
    np.testing.assert_allclose(loss, (np.log(4) + np.log(5)) / 2, rtol=1e-14)
    np.testing.assert_allclose(dlogits, 10 / 2 * np.array([[-3 / 4, 3 / 4], [4 / 5, -4 / 5], [0, 0]]), rtol=1e-14)
    loss, dlogits = run(backend, logits, labels, dy=10, ignore_label=255, reduction="sum")
    np.testing.assert_allclose(loss, np.log(4) + np.log(5), rtol=1e-14)
    np.testing.assert_allclose(dlogits, 10 * np.array([[-3 / 4, 3 / 4], [4 / 5, -4 / 5], [0, 0]]), rtol=1e-14)


def test_weights_by_hand(backend):
    # Weights 2 * 1, 3 * 10 and 2 * 0: the mean is divided by 32.
    logits = np.log(np.array([[1.0, 3], [4, 1], [1, 1]]))
    weights = {"class_weights": [2, 3], "pixel_weights": np.array([1.0, 10, 0])}
    loss, dlogits = run(backend, logits, np.array([0, 1, 0]), dy=32, **weights)
    np.testing.assert_allclose(loss, (2 * np.log(4) + 30 * np.log(5)) / 32, rtol=1e-14)
    np.testing.assert_allclose(dlogits, [[-2 * 3 / 4, 2 * 3 / 4], [30 * 4 / 5, -30 * 4 / 5], [0, 0]], rtol=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=80)
@given(case=cases())
def test_against_torch(torch, name, case):
    logits, labels, options, dy = case
    loss, dlogits = run(name, logits, labels, dy, **options)
    z = torch.tensor(logits.reshape(-1, logits.shape[-1]), requires_grad=True)
    weights = torch.tensor(options["class_weights"]) if "class_weights" in options else None
    expected = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(labels.reshape(-1).astype(np.int64)),
        weight=weights,
        ignore_index=options.get("ignore_label", -100),
        reduction=options["reduction"],
    )
    (expected_dlogits,) = torch.autograd.grad(expected, z, torch.tensor(float(dy), dtype=torch.float64))
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(dlogits.reshape(z.shape), expected_dlogits.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (7, 2), (1, 1, 1, 3), (6,)])
def test_gradient(backend, rng, shape, reduction):
    labels = rng.integers(0, shape[-1], shape[:-1])
    options = {"class_weights": rng.uniform(0.5, 2, shape[-1]), "pixel_weights": rng.uniform(0.5, 2, shape[:-1])}
    check_vjp(
        lambda logits: ops.cross_entropy(logits, labels, reduction=reduction, **options),
        ops.cross_entropy_backward,
        2 * rng.standard_normal(shape),
    )


def test_pixel_weights_repeat_pixels(backend, rng):
    """A pixel of weight 3 counts as three pixels."""
    logits, labels = rng.standard_normal((4, 5)), rng.integers(0, 5, 4)
    repeats = np.array([1, 3, 0, 2])
    loss, dlogits = run(backend, logits, labels, pixel_weights=repeats)
    expected, parts = run(backend, np.repeat(logits, repeats, axis=0), np.repeat(labels, repeats))
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(dlogits[1], parts[1:4].sum(0), rtol=1e-12)
    assert not dlogits[2].any()


@pytest.mark.parametrize("shape", [(2, 37, 41, 21), (3, 65, 2), (1, 70, 1, 150)])
def test_backends_agree_in_float32(rng, shape):
    logits = 5 * rng.standard_normal(shape, dtype=np.float32) + 100
    labels = rng.integers(0, shape[-1] + 1, shape[:-1])
    options = {"ignore_label": shape[-1], "pixel_weights": rng.random(shape[:-1])}
    (loss_a, da), (loss_b, db) = (run(name, logits, labels, dy=1e3, **options) for name in BACKENDS)
    assert loss_a.dtype == loss_b.dtype == da.dtype == db.dtype == np.float32
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-6)
    np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-6 * np.abs(da).max())


def test_the_exponential_of_the_kernel():
    t = np.linspace(-87, 0, 3001, dtype=np.float32)
    exact = np.exp(t.astype(np.float64))
    np.testing.assert_allclose([_exp(value) for value in t], exact, rtol=1.2e-7)
    assert _exp(np.float32(0)) == 1
    assert _exp(np.float32(-88)) == _exp(np.float32(-np.inf)) == 0
    assert np.isnan(_exp(np.float32(np.nan)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(backend, dtype):
    logits = np.array([[1e6, 1e6 - 1, -1e30], [0, 1000, -np.inf]], dtype)
    loss, dlogits = run(backend, logits, np.array([1, 0]), dy=2)
    np.testing.assert_allclose(loss, (1.31326169 + 1000) / 2, rtol=1e-6)
    p = np.e / (np.e + 1)
    np.testing.assert_allclose(dlogits, [[p, -p, 0], [-1, 1, 0]], atol=1e-6)


def test_small_losses_keep_their_digits(backend):
    """With score 700.25 for the right class and 30 less for the other the loss is exp(-30)."""
    logits = np.array([[700.25, 670.25]])
    np.testing.assert_allclose(
        run(backend, logits + [[0, 15.0]], np.array([0]))[0], np.log1p(np.exp(-15)), rtol=1e-9
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_counts(backend, reduction):
    logits = np.full((2, 3, 4), np.nan, np.float32)
    for options in (
        {"labels": np.full((2, 3), 255), "ignore_label": 255},
        {"labels": np.zeros((2, 3), int), "pixel_weights": np.zeros((2, 3))},
        {"labels": np.ones((2, 3), int), "class_weights": [1, 0, 1, 1]},
    ):
        loss, dlogits = run(backend, logits, reduction=reduction, **options)
        assert loss == 0 and dlogits.shape == logits.shape and not dlogits.any()


def test_nan_stays_visible(backend):
    logits = np.zeros((2, 3), np.float32)
    for position in (0, 1, 2):
        logits[:] = 0
        logits[1, position] = np.nan
        loss, dlogits = run(backend, logits, np.array([0, 1]))
        assert np.isnan(loss) and np.isnan(dlogits[1]).all() and not np.isnan(dlogits[0]).any()
        loss, dlogits = run(backend, logits, np.array([0, 9]), ignore_label=9)
        np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
        assert np.isfinite(dlogits).all()
    assert np.isnan(run(backend, np.zeros((1, 3)), np.array([0]), pixel_weights=np.array([np.nan]))[0])


def test_same_bits_on_any_number_of_threads(rng):
    numba = pytest.importorskip("numba", reason="needs Numba")
    logits = rng.standard_normal((2, 61, 67, 21), dtype=np.float32)
    labels = rng.integers(0, 21, (2, 61, 67))
    results = []
    threads = numba.get_num_threads()
    try:
        for count in (1, threads):
            numba.set_num_threads(count)
            with tinyseg.use("numba"):
                results.append(run("numba", logits, labels))
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradient_of_a_pixel_sums_to_zero(backend, rng):
    _, dlogits = run(backend, rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4)), dy=100)
    np.testing.assert_allclose(dlogits.sum(-1), 0, atol=1e-13)


def test_inputs_are_not_changed(backend, rng):
    logits, labels = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4))
    weights = rng.random((3, 4))
    copies = [array.copy() for array in (logits, labels, weights)]
    run(backend, logits, labels, pixel_weights=weights, ignore_label=2)
    for array, copy in zip((logits, labels, weights), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_errors():
    logits, labels = np.ones((2, 3, 4)), np.array([[0, 1, 2], [3, 7, 255]])
    with pytest.raises(ValueError, match=r"lie in 0 \.\. 3, but 2 of 6 pixels have 7, 255; pass ignore_label="):
        ops.cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="but 1 of 6 pixels have 7; only 255 is ignored"):
        ops.cross_entropy(logits, labels, ignore_label=255)
    with pytest.raises(ValueError, match="but 1 of 3 pixels have -1"):
        ops.cross_entropy(logits[0], np.array([0, -1, 2]))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 3\) .*\(2, 3, 4\).*, got \(3, 2\)"):
        ops.cross_entropy(logits, labels.T)
    with pytest.raises(TypeError, match=r"labels must be an array of integers, .* got float64"):
        ops.cross_entropy(logits, np.zeros((2, 3)))
    labels = labels % 4
    with pytest.raises(ValueError, match=r"class_weights must have shape \(4,\) .* got \(3,\)"):
        ops.cross_entropy(logits, labels, class_weights=np.ones(3))
    with pytest.raises(ValueError, match=r"pixel_weights must have shape \(2, 3\)"):
        ops.cross_entropy(logits, labels, pixel_weights=np.ones(3))
    with pytest.raises(ValueError, match="pixel_weights must not be negative, the smallest is -1"):
        ops.cross_entropy(logits, labels, pixel_weights=-np.ones((2, 3)))
    with pytest.raises(ValueError, match="class_weights must not be negative, the smallest is -2"):
        ops.cross_entropy(logits, labels, class_weights=[1, -2, 1, 1])
    with pytest.raises(ValueError, match="reduction must be"):
        ops.cross_entropy(logits, labels, reduction="none")
    with pytest.raises(TypeError, match="ignore_label must be an integer"):
        ops.cross_entropy(logits, labels, ignore_label="void")
    with pytest.raises(TypeError, match="logits must be float32 or float64, got int64"):
        ops.cross_entropy(labels, labels[:, 0])
    _, cache = ops.cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=r"dy must have shape \(\)"):
        ops.cross_entropy_backward(np.ones(2), cache)
