"""Mean field: by hand, laws, gradients, the fast implementation against the plain one, and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import crf
from tinyseg.crf import fused
from tinyseg.crf.filters import NORMALISATIONS
from tinyseg.crf.mean_field import MeanFieldCache, backward_pass
from tinyseg.gradcheck import check_vjp

POINTS, LABELS = 30, 3


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def filters(mode="symmetric", kind=crf.ExactFilter, dtype=np.float64):
    rng = np.random.default_rng(3)
    features = [rng.uniform(0, 4, (POINTS, d)).astype(dtype) for d in (2, 3)]
    return [crf.Normalised(kind(f), mode, dtype) for f in features]


def model(rng, forms=(1, 2), dtype=np.float64):
    """Unary energies, and a coupling for each filter: 0 a number, 1 a vector, 2 a matrix."""
    unary = rng.uniform(0, 3, (POINTS, LABELS)).astype(dtype)
    couplings = [np.asarray(rng.standard_normal((LABELS,) * axes), dtype) for axes in forms]
    return unary, couplings


def test_two_pixels_by_hand():
    # Two pixels with the same features, K = all ones: each sees itself and the other. One update, weight 1/2.
    unary = np.array([[0.0, 1.0], [2.0, 0.5]])
    kernel = crf.Normalised(crf.ExactFilter(np.zeros((2, 1))), "none", np.float64)
    q0 = softmax(-unary)
    message = q0[0] + q0[1]
    q, cache = crf.mean_field(unary, np.array(-0.5), filters=[kernel], iterations=1)
    np.testing.assert_allclose(q, softmax(-unary + 0.5 * message), rtol=1e-14)
    np.testing.assert_allclose(cache.marginals[0], q0, rtol=1e-14)


def test_potts_is_a_reward_for_agreement(rng):
    # C(a, b) = w [a != b] and -w [a == b] differ by a constant that softmax removes, if each row of F sums to one.
    unary, _ = model(rng)
    f = filters("after")[:1]
    w = 1.7
    reward = crf.mean_field(unary, np.array(-w), filters=f, iterations=4)[0]
    for coupling in (np.full(LABELS, -w), -w * np.eye(LABELS), w * (1 - np.eye(LABELS))):
        np.testing.assert_allclose(crf.mean_field(unary, coupling, filters=f, iterations=4)[0], reward, rtol=1e-12)


def test_no_iterations_no_filters_and_no_opinion(rng):
    unary, couplings = model(rng, (0, 0))
    np.testing.assert_allclose(
        crf.mean_field(unary, *couplings, filters=filters(), iterations=0)[0], softmax(-unary)
    )
    np.testing.assert_allclose(crf.mean_field(unary, filters=[], iterations=3)[0], softmax(-unary))
    uniform = crf.mean_field(np.full((POINTS, LABELS), 0.7), *couplings, filters=filters(), iterations=3)[0]
    np.testing.assert_allclose(uniform, 1 / LABELS, rtol=1e-12)


def test_labels_can_be_renamed(rng):
    unary, couplings = model(rng, (1, 2))
    order = np.array([2, 0, 1])
    renamed = [couplings[0][order], couplings[1][np.ix_(order, order)]]
    q = crf.mean_field(unary, *couplings, filters=filters(), iterations=3)[0]
    r = crf.mean_field(unary[:, order], *renamed, filters=filters(), iterations=3)[0]
    np.testing.assert_allclose(r, q[:, order], rtol=1e-12)


def test_logits_are_what_the_last_softmax_sees(rng):
    unary, couplings = model(rng)
    q = crf.mean_field(unary, *couplings, filters=filters(), iterations=2)[0]
    x = crf.mean_field(unary, *couplings, filters=filters(), iterations=2, logits=True)[0]
    np.testing.assert_allclose(softmax(x), q, rtol=1e-12)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("forms", [(0, 1), (2, 0), (1, 2)])
@pytest.mark.parametrize("kind", [crf.ExactFilter, crf.LatticeFilter])
def test_gradients(rng, kind, forms, mode, logits):
    unary, couplings = model(rng, forms)
    f = filters(mode, kind)
    check_vjp(crf.mean_field, crf.mean_field_backward, (unary, *couplings), filters=f, iterations=3, logits=logits)


def test_gradients_not_needed_are_none(rng):
    unary, couplings = model(rng, (0, 2))
    q, cache = crf.mean_field(unary, *couplings, filters=filters(), iterations=2)
    all_of_them = crf.mean_field_backward(q, cache)
    assert [g.shape for g in all_of_them] == [(POINTS, LABELS), (), (LABELS, LABELS)]
    some = crf.mean_field_backward(q, cache, need=(False, False, True))
    assert some[:2] == (None, None)
    np.testing.assert_array_equal(some[2], all_of_them[2])


@pytest.mark.parametrize("mode", NORMALISATIONS)
def test_bandwidth_gradients_through_all_iterations(rng, mode):
    unary, couplings = model(rng, (0, 2))
    points = [f.kernel.features for f in filters()]
    dq = rng.standard_normal(unary.shape)

    def result(log_bandwidths):
        scaled = [p / np.exp(s) for p, s in zip(points, log_bandwidths, strict=True)]
        f = [crf.Normalised(crf.ExactFilter(s), mode, np.float64) for s in scaled]
        return crf.mean_field(unary, *couplings, filters=f, iterations=3)

    zero = [np.zeros(2), np.zeros(3)]
    _, cache = result(zero)
    assert isinstance(cache, MeanFieldCache)
    _, _, gradients = backward_pass(dq, cache, need_couplings=(False, False), need_bandwidths=True)
    for kernel, gradient in enumerate(gradients):
        for k in range(len(gradient)):
            step = [z.copy() for z in zero]
            step[kernel][k] = 1e-5
            numerical = np.sum(dq * (result(step)[0] - result([-s for s in step])[0])) / 2e-5
            np.testing.assert_allclose(gradient[k], numerical, rtol=1e-6, atol=1e-8)


# ----------------------------------------------------------------------------------------- the fast implementation


@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
    st.sampled_from(NORMALISATIONS),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_fast_is_plain(labels, forms, mode, iterations, seed):
    rng = np.random.default_rng(seed)
    points = int(rng.integers(1, 300))
    unary = rng.uniform(0, 4, (points, labels)).astype(np.float32)
    couplings = [np.asarray(rng.standard_normal((labels,) * axes), np.float32) for axes in forms]
    features = [rng.uniform(0, 5, (points, rng.integers(1, 5))).astype(np.float32) for _ in forms]
    f = [crf.Normalised(crf.LatticeFilter(x), mode) for x in features]
    assert fused.applies_to(unary, f)
    plain = crf.mean_field(unary, *couplings, filters=f, iterations=iterations)[0]
    fast = [q.copy() for q in crf.iterate(unary, couplings, f, iterations)]
    assert len(fast) == iterations + 1
    assert fast[-1].shape == plain.shape
    np.testing.assert_allclose(fast[-1], plain, atol=2e-4)
    np.testing.assert_allclose(fast[0], softmax(-unary), atol=1e-6)


def large_model(rng, mode):
    """An image of 15400 pixels, whose corners are splatted in several pieces, and three labels."""
    colours = rng.integers(30, 220, (11, 14, 3)).repeat(10, axis=0).repeat(10, axis=1)
    image = (colours + rng.normal(0, 8, colours.shape)).clip(0, 255).astype(np.uint8)
    unary = rng.uniform(0, 3, (15400, 3)).astype(np.float32)
    features = [crf.position_features(110, 140, 3), crf.bilateral_features(image, 30, 8)]
    return unary, [crf.Normalised(crf.LatticeFilter(f), mode) for f in features]


@pytest.mark.parametrize("weight", [2.0, -0.3])
@pytest.mark.parametrize("mode", NORMALISATIONS)
def test_fast_is_plain_in_several_pieces(rng, mode, weight):
    unary, f = large_model(rng, mode)
    couplings = [crf.potts(weight), np.array([0.2, -0.1, 0.3], np.float32)]
    if mode == "none":  # without normalisation messages are of the size of the image
        couplings = [1e-3 * coupling for coupling in couplings]
    couplings = [np.asarray(coupling, np.float32) for coupling in couplings]
    plain = crf.mean_field(unary, *couplings, filters=f, iterations=3)[0]
    for fast in (crf.infer(unary, couplings, f, 3), list(crf.iterate(unary, couplings, f, 3))[-1]):
        np.testing.assert_allclose(fast, plain, atol=2e-4)


def test_the_same_bits_on_any_number_of_threads(rng):
    numba = pytest.importorskip("numba")
    unary, f = large_model(rng, "symmetric")
    threads, results = numba.get_num_threads(), []
    for count in (1, threads, 1):
        numba.set_num_threads(count)
        results.append(crf.infer(unary, [crf.potts(3), crf.potts(4)], f, 3).tobytes())
    numba.set_num_threads(threads)
    assert len(set(results)) == 1


def test_impossible_labels_and_large_energies(rng):
    # Energies differ by thousands: what is impossible stays so, and nothing becomes NaN.
    unary = rng.uniform(0, 3, (50, 4)).astype(np.float32)
    unary[::3, 1] = 1e4
    unary[7] += 3e4
    f = [crf.Normalised(crf.LatticeFilter(rng.uniform(0, 5, (50, 2))))]
    q = crf.infer(unary, [crf.potts(2.0)], f, 5)
    assert np.isfinite(q).all()
    assert (q[::3, 1] == 0).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-6)


def test_float64_and_other_filters_take_the_plain_way(rng):
    unary = rng.uniform(0, 3, (POINTS, LABELS))
    mixed = [filters()[0], crf.Normalised(crf.LatticeFilter(rng.uniform(0, 4, (POINTS, 2))), dtype=np.float64)]
    couplings = [np.array(-1.0), np.array(-0.5)]
    plain = crf.mean_field(unary, *couplings, filters=mixed, iterations=3)[0]
    assert not fused.applies_to(unary, mixed)
    np.testing.assert_array_equal(crf.infer(unary, couplings, mixed, 3), plain)
    with tinyseg.use("numpy"):
        assert not fused.applies_to(unary.astype(np.float32), filters("none", crf.LatticeFilter, np.float32))


def test_inputs_stay_as_they_are(rng):
    unary = rng.uniform(0, 3, (POINTS, 9)).astype(np.float32)
    before = unary.copy()
    f = filters("symmetric", crf.LatticeFilter, np.float32)
    crf.infer(unary, [crf.potts(1), np.eye(9)], f, 2)
    np.testing.assert_array_equal(unary, before)


@pytest.mark.oracle
@pytest.mark.parametrize("mode", NORMALISATIONS)
def test_ten_iterations_against_pydensecrf(pydensecrf, rng, mode):
    from tinyseg.crf import original

    unary, f = large_model(rng, mode)
    weights = [2.0, 3.0] if mode != "none" else [2e-3, 3e-3]
    features = [g.kernel.features for g in f]
    theirs = original.infer(unary, weights, features, (mode, mode), 10)
    ours = crf.infer(unary, [crf.potts(w) for w in weights], f, 10)
    assert abs(ours - theirs).max() < 1e-3
    assert abs(ours - theirs).mean() < 1e-5
    assert np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)) >= 0.999


# -------------------------------------------------------------------------------------------------------- energy


def test_free_energy_by_hand():
    # Two pixels, K = all ones, Q uniform over two labels: sum Q log Q = -2 log 2, sum U Q = 1.75,
    # <Q, -w F Q> = -w sum_ij Q_i . Q_j = -w 4 / 2.
    unary = np.array([[0.0, 1.0], [2.0, 0.5]])
    kernel = crf.Normalised(crf.ExactFilter(np.zeros((2, 1))), "none", np.float64)
    q, w = np.full((2, 2), 0.5), 0.3
    half, whole = (g(q, unary, [np.array(-w)], [kernel]) for g in (crf.free_energy, crf.pydensecrf_kl))
    assert half == pytest.approx(-2 * np.log(2) + 1.75 - w)
    assert whole == pytest.approx(-2 * np.log(2) + 1.75 - 2 * w)


def test_the_update_is_where_the_free_energy_is_flat(rng):
    # At a fixed point of mean field, moving probability between labels does not change the energy to first order.
    unary, _ = model(rng)
    f = filters("symmetric")
    couplings = [np.array(-0.4), np.array(-0.3)]
    q = crf.mean_field(unary, *couplings, filters=f, iterations=200)[0]
    direction = rng.standard_normal(q.shape)
    direction = q * (direction - np.sum(q * direction, axis=1, keepdims=True))  # keeps rows summing to one

    def energy(t):
        return crf.free_energy(q + t * direction, unary, couplings, f)

    assert abs(energy(1e-4) - energy(-1e-4)) / 2e-4 < 1e-6
    assert energy(0.02) > energy(0) < energy(-0.02)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unary": np.zeros(5)}, r"unary must have the axes \(N, L\), got shape \(5,\)"),
        ({"unary": np.zeros((POINTS, LABELS), int)}, "unary must be float32 or float64"),
        ({"unary": np.zeros((POINTS + 1, LABELS))}, "unary has 31 points, but a filter was made for 30"),
        ({"couplings": [np.zeros(LABELS)]}, "1 couplings for 2 filters"),
        ({"couplings": [np.zeros(()), np.zeros(LABELS + 1)]}, r"coupling 1 .* \(3,\) or \(3, 3\) .* got \(4,\)"),
        ({"couplings": [np.zeros(()), np.array(np.nan)]}, "coupling 1, shape .* is not finite"),
        ({"couplings": [np.zeros((), np.float32), np.zeros(())]}, "all arrays must have one type"),
        ({"iterations": -1}, "iterations must be 0 or more, got -1"),
        ({"iterations": 0, "logits": True}, "logits=True needs at least one iteration"),
    ],
)
def test_errors(rng, change, message):
    unary, couplings = model(rng, (0, 0))
    call = {"unary": unary, "couplings": couplings, "iterations": 2, "logits": False} | change
    with pytest.raises((ValueError, TypeError), match=message):
        crf.mean_field(
            call["unary"],
            *call["couplings"],
            filters=filters(),
            iterations=call["iterations"],
            logits=call["logits"],
        )


def test_nan_in_one_pixel_is_reported(rng):
    unary, couplings = model(rng, (0, 0))
    unary[17, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"unary, shape \(30, 3\), is not finite in 1 of 90 values.* index \[17, 2\]"
    ):
        crf.mean_field(unary, *couplings, filters=filters(), iterations=2)
    unary[17, 2] = -np.inf
    with pytest.raises(ValueError, match=r"index \[17, 2\]"):
        crf.infer(unary, couplings, filters(), 2)


def test_backward_checks_its_upstream_gradient(rng):
    unary, couplings = model(rng, (0, 0))
    _, cache = crf.mean_field(unary, *couplings, filters=filters(), iterations=1)
    with pytest.raises(ValueError, match=r"dy must have shape \(30, 3\)"):
        crf.mean_field_backward(np.zeros((3, 30)), cache)
