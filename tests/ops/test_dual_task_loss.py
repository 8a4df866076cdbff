"""dual_task_loss: by hand, against torch, that it has a gradient which moves borders, ignored pixels, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp
from tinyseg.ops.gumbel_softmax import gumbel_noise

BACKENDS = ["numpy", "numba"]


def test_by_hand(backend):
    """Without blur (sigma so small that the neighbours weigh nothing), in one row of pixels."""
    labels = np.array([[[0, 0, 1, 1]]])
    logits = np.zeros((1, 1, 4, 2))  # p is 1/2 everywhere: no border
    loss, _ = ops.dual_task_loss(logits, labels, sigma=1e-2)
    # Truth: differences 0, 1/2, 1/2, 0, the same for both classes; magnitudes, with s = 1e-3 at the tip.
    expected = (np.sqrt(0.25 + 1e-6) - 1e-3) / np.sqrt(2)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    right = np.where(labels[..., None] == np.arange(2), 40.0, -40.0)
    loss, cache = ops.dual_task_loss(right, labels, sigma=1e-2)
    assert loss < 1e-15
    assert np.isfinite(ops.dual_task_loss_backward(np.array(1.0), cache)).all()


def in_torch(torch, z, labels, *, temperature, sigma, threshold, seed, ignored):
    """The definition with explicit kernels; borders continued by replication."""
    noise = torch.tensor(gumbel_noise(z.shape, seed=seed))
    p = torch.softmax((z + noise) / temperature, -1)
    t = torch.nn.functional.one_hot(torch.tensor(np.where(ignored, 0, labels)), z.shape[-1]).double()
    seen = torch.tensor(~ignored)[..., None]

    def zeta(m):
        planes = (m * seen).permute(0, 3, 1, 2).reshape(-1, 1, *m.shape[1:3])
        radius = int(np.ceil(3 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
        kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        pad, conv = torch.nn.functional.pad, torch.nn.functional.conv2d
        blurred = pad(conv(pad(planes, (radius,) * 4, mode="replicate"), kernel), (1,) * 4, mode="replicate")
        v = (blurred[:, :, 2:, 1:-1] - blurred[:, :, :-2, 1:-1]) / 2
        u = (blurred[:, :, 1:-1, 2:] - blurred[:, :, 1:-1, :-2]) / 2
        size = (torch.sqrt(v * v + u * u + 1e-6) - 1e-3) / np.sqrt(2)
        return size.reshape(m.shape[0], m.shape[3], *m.shape[1:3]).permute(0, 2, 3, 1)

    a, b = zeta(p), zeta(t)
    borders = ((a > threshold) | (b > threshold)) & seen
    return torch.where(borders, (a - b).abs(), 0.0).sum() / borders.sum().clamp(min=1)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 8), st.integers(1, 9), st.integers(1, 4)),
    seed=st.integers(0, 2**32 - 1),
    sigma=st.sampled_from([0.5, 1.0, 1.7]),
    temperature=st.sampled_from([0.5, 1.0]),
)
def test_against_torch(torch, name, shape, seed, sigma, temperature):
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:3])
    ignored = rng.random(shape[:3]) < 0.2
    labels[ignored] = 255
    options = {"temperature": temperature, "sigma": sigma, "threshold": 0.02, "seed": seed}
    with tinyseg.use(name):
        loss, cache = ops.dual_task_loss(logits, labels, ignore_label=255, **options)
        dlogits = ops.dual_task_loss_backward(np.array(-1.3), cache)
    z = torch.tensor(logits, requires_grad=True)
    expected = in_torch(torch, z, labels, ignored=ignored, **options)
    expected.backward(torch.tensor(-1.3, dtype=torch.float64))
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(dlogits, z.grad.numpy(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 1, 7, 2)])
def test_gradient(backend, rng, shape, seed):
    labels = rng.integers(0, shape[-1], shape[:3])
    labels[0, 0, 2] = 255
    check_vjp(
        lambda logits: ops.dual_task_loss(logits, labels, temperature=0.8, seed=seed, ignore_label=255),
        ops.dual_task_loss_backward,
        rng.standard_normal(shape),
        eps=1e-6,
    )


def test_a_misplaced_border_is_pulled_to_its_place():
    """Descent on this loss alone moves the predicted border by the two pixels that it is off."""
    labels = np.tile(np.arange(12) >= 6, (1, 5, 1)).astype(np.int64)
    slope = np.tile(np.arange(12.0) - 7.5, (1, 5, 1))  # predicted at column 8
    logits = np.stack([-slope, slope], axis=-1) / 2
    before = (logits.argmax(-1) != labels).mean()
    losses = []
    for _ in range(400):
        loss, cache = ops.dual_task_loss(logits, labels, sigma=1.5)
        logits = logits - 3.0 * ops.dual_task_loss_backward(np.array(1.0), cache)
        losses.append(float(loss))
    assert before > 0.15
    assert losses[-1] < 0.5 * losses[0]
    assert (logits.argmax(-1) != labels).mean() < before / 2


def test_borders_matter_and_areas_do_not():
    """Two predictions with as many wrong pixels: a border that is off costs, a uniform map far from it does too,
    but a swap of the two classes costs nothing, since every border is where it should be."""
    labels = np.tile(np.arange(8) >= 4, (1, 6, 1)).astype(np.int64)
    right = np.where(labels[..., None] == np.arange(2), 30.0, -30.0)
    assert ops.dual_task_loss(right, labels)[0] < 1e-12
    assert ops.dual_task_loss(right[..., ::-1], labels)[0] < 1e-12
    assert ops.dual_task_loss(np.roll(right, 2, axis=2)[:, :, 1:], labels[:, :, 1:])[0] > 0.05
    assert ops.dual_task_loss(np.zeros_like(right), labels)[0] > 0.05


def test_ignored_pixels_take_no_part(backend, rng):
    logits, labels = rng.standard_normal((1, 6, 7, 3)), rng.integers(0, 3, (1, 6, 7))
    labels[0, 2:4, 3:] = 255
    other = logits.copy()
    other[labels == 255] = np.nan
    results = []
    for z in (logits, other):
        loss, cache = ops.dual_task_loss(z, labels, ignore_label=255, seed=1)
        results.append((loss, ops.dual_task_loss_backward(np.array(1.0), cache)))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert not results[0][1][labels == 255].any()
    loss, _ = ops.dual_task_loss(logits, np.full((1, 6, 7), 255), ignore_label=255)
    assert loss == 0


def test_nan_stays_visible(backend, rng):
    logits, labels = rng.standard_normal((1, 6, 7, 3)), rng.integers(0, 3, (1, 6, 7))
    logits[0, 3, 4, 1] = np.nan
    loss, cache = ops.dual_task_loss(logits, labels)
    assert np.isnan(loss)
    assert np.isnan(ops.dual_task_loss_backward(np.array(1.0), cache)[0, 3, 4]).all()


def test_backends_agree_in_float32(rng):
    logits = rng.standard_normal((2, 17, 13, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 17, 13))
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            loss, cache = ops.dual_task_loss(logits, labels, seed=2)
            results.append((loss, ops.dual_task_loss_backward(np.float32(1), cache)))
    (loss_a, da), (loss_b, db) = results
    assert loss_a.dtype == loss_b.dtype == da.dtype == db.dtype == np.float32
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-5)
    np.testing.assert_allclose(da, db, atol=1e-4 * np.abs(da).max())


def test_errors():
    logits, labels = np.ones((1, 3, 4, 2)), np.zeros((1, 3, 4), int)
    with pytest.raises(ValueError, match="threshold must be 0 or more, got -1"):
        ops.dual_task_loss(logits, labels, threshold=-1)
    with pytest.raises(ValueError, match=r"dual_task_loss: labels must lie in 0 .. 1"):
        ops.dual_task_loss(logits, labels + 255)
    with pytest.raises(ValueError, match=r"labels must have shape \(1, 3, 4\)"):
        ops.dual_task_loss(logits, labels[..., None])
    with pytest.raises(ValueError, match=r"logits must have the axes \(N, H, W, C\)"):
        ops.dual_task_loss(logits[0], labels[0])
    with pytest.raises(ValueError, match="temperature must be more than 0"):
        ops.dual_task_loss(logits, labels, temperature=0)
