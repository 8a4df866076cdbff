"""Dropout: the generator against published vectors, the mask's statistics, and what it is a function of."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp
from tinyseg.ops.dropout import _philox, random_words

# The lines "philox4x32 10" of kat_vectors, the known answers that come with the authors' library Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


def in_both(function):
    """The function's result on each of the two backends."""
    results = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            results.append(function())
    return results


# -------------------------------------------------------------------------------------------------- the generator


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    for philox in (_philox, _philox.function):
        assert list(philox(*words(counter), *words(key))) == words(answer)


def test_the_ten_thousandth_word_is_that_of_the_cpp_standard():
    """C++26 [rand.predef]: the 10000th value of a default philox4x32, whose key is (20111115, 0)."""
    assert random_words(10_000, seed=20111115)[-1] == 1955073260


def test_counter_and_key_are_filled_as_documented():
    """Words 4 to 7 of seed k and offset o encipher the counter (1, 0, o's low word, o's high word)."""
    offset, seed = 0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210
    expected = _philox.function(*words("1 0 89abcdef 01234567"), *words("76543210 fedcba98"))
    np.testing.assert_array_equal(random_words(9, seed=seed, offset=offset)[4:8], expected)


# ------------------------------------------------------------------------------------------------------ the mask


def test_by_hand(backend):
    """The first known answer decides: 6627e8d5 is 0.399 of 2^32, then 0.881, 0.736, 0.606."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y, cache = ops.dropout(x, rate=0.5, seed=0)
    np.testing.assert_array_equal(y, [0, 4, 6, 8])
    np.testing.assert_array_equal(ops.dropout_backward(np.array([5.0, -6.0, 7.0, 8.0]), cache), [0, -12, 14, 16])
    np.testing.assert_allclose(ops.dropout(x, rate=0.75, seed=0)[0], [0, 8, 0, 0])
    image = np.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    y, cache = ops.dropout(image, rate=0.5, seed=0, channels=True)
    np.testing.assert_array_equal(y[0, :, :, 0], 0)
    np.testing.assert_array_equal(y[0, :, :, 1], 2 * image[0, :, :, 1])


@settings(max_examples=50)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    channels=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_both_backends_draw_the_same_mask(shape, rate, seed, offset, channels, dtype):
    x = np.random.default_rng(0).standard_normal(shape[::-1]).astype(dtype).T  # not contiguous
    options = {"rate": rate, "seed": seed, "offset": offset, "channels": channels}
    one, other = in_both(lambda: ops.dropout(x, **options))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[0].dtype == other[0].dtype == dtype
    for dx in in_both(lambda: ops.dropout_backward(x, one[1])):
        np.testing.assert_array_equal(dx, one[0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_share_and_mean(backend, rate):
    """The number of dropped ones of n has mean n rate and variance n rate (1 - rate); bounds are 5 deviations."""
    n = 400_000
    y, _ = ops.dropout(np.ones(n, np.float32), rate=rate, seed=11, offset=3)
    deviation = np.sqrt(n * rate * (1 - rate))
    assert abs(np.count_nonzero(y == 0) - n * rate) < 5 * deviation
    assert abs(y.mean(dtype=np.float64) - 1) < 5 * deviation / (n * (1 - rate))
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-6)


def test_words_are_uniform_and_neighbours_are_independent():
    u = random_words(400_000, seed=5) / 2.0**32
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / u.size)
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    expected = u.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * np.sqrt(2 * 99)  # chi squared
    for distance in (1, 2, 3, 4, 64):
        assert abs(np.corrcoef(u[:-distance], u[distance:])[0, 1]) < 5 / np.sqrt(u.size)


def test_seeds_and_offsets_give_masks_of_their_own(backend):
    x = np.ones(4096)
    masks = [
        ops.dropout(x, rate=0.5, seed=seed, offset=offset)[0] > 0
        for seed, offset in ((1, 0), (1, 1), (2, 0), (1 << 32, 0), (1, 1 << 32))
    ]
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / 64


def test_an_element_depends_on_its_number_alone(backend):
    whole = ops.dropout(np.ones((7, 13)), rate=0.4, seed=9)[0].reshape(-1)
    for size in (1, 2, 3, 4, 5, 50):
        np.testing.assert_array_equal(ops.dropout(np.ones(size), rate=0.4, seed=9)[0], whole[:size])


def test_channels_fall_as_a_whole_and_apart_from_each_other(backend):
    y, _ = ops.dropout(np.ones((3, 4, 5, 40)), rate=0.5, seed=2, channels=True)
    first_pixel = y[:, :1, :1]
    np.testing.assert_array_equal(y, np.broadcast_to(first_pixel, y.shape))
    kept = first_pixel.reshape(3, 40) > 0
    assert (kept[0] != kept[1]).any()
    assert (kept[1] != kept[2]).any()
    assert 30 < kept.sum() < 90


def test_rate_zero_keeps_everything_and_dropped_values_do_not_matter(backend):
    x = np.array([1.0, np.inf, np.nan, -2.0])
    np.testing.assert_array_equal(ops.dropout(x, rate=0, seed=0)[0], x)
    np.testing.assert_array_equal(ops.dropout(x[::-1], rate=0.75, seed=0)[0], [0, np.nan, 0, 0])


@pytest.mark.parametrize("channels", [False, True])
def test_gradients(backend, rng, channels):
    x = rng.standard_normal((2, 3, 5, 4))
    op = partial(ops.dropout, rate=0.4, seed=21, channels=channels)
    check_vjp(op, ops.dropout_backward, x)
    cache = op(x)[1]
    check_adjoint(lambda x: op(x)[0], lambda dy: ops.dropout_backward(dy, cache), x, rng.standard_normal(x.shape))


def test_errors():
    x = np.zeros((2, 3))
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="dropout: rate must be at least 0 and less than 1"):
            ops.dropout(x, rate=rate, seed=0)
    for seed in (-1, 2**64, 0.5):
        with pytest.raises(ValueError, match="dropout: seed must be an integer from 0"):
            ops.dropout(x, rate=0.5, seed=seed)
    with pytest.raises(ValueError, match="dropout: offset must be"):
        ops.dropout(x, rate=0.5, seed=1, offset=-1)
    with pytest.raises(ValueError, match=r"channels=True x must have the axes \(N, .., C\), got shape \(3,\)"):
        ops.dropout(x[0], rate=0.5, seed=1, channels=True)
    with pytest.raises(ValueError, match=r"dropout_backward: dy must have shape \(2, 3\)"):
        ops.dropout_backward(x.T, ops.dropout(x, rate=0.5, seed=1)[1])
