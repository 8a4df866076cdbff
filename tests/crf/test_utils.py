"""pydensecrf's helpers: by hand, against the originals, and errors."""

import numpy as np
import pytest

from tinyseg.crf import utils


def test_unary_from_labels_by_hand():
    sure, other, unknown = -np.log(0.8), -np.log(0.1), np.log(3)
    got = utils.unary_from_labels(np.array([[1, 0], [3, 2]]), 3, 0.8)
    expected = [[sure, unknown, other, other], [other, unknown, other, sure], [other, unknown, sure, other]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got = utils.unary_from_labels(np.array([0, 2]), 3, 0.8, zero_unsure=False)
    np.testing.assert_allclose(got, [[sure, other], [other, other], [other, sure]], rtol=1e-6)


def test_unary_from_softmax_by_hand():
    p = np.array([[0.25, 0.0], [0.75, 1.0]])
    np.testing.assert_allclose(
        utils.unary_from_softmax(p, clip=0.01), -np.log([[0.25, 0.01], [0.75, 1]]), rtol=1e-6
    )
    mixed = 0.5 * p + 0.25
    np.testing.assert_allclose(utils.unary_from_softmax(p, scale=0.5), -np.log(mixed), rtol=1e-6)
    assert utils.unary_from_softmax(p, clip=None)[0, 1] == np.inf


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("pydensecrf.utils", reason="pydensecrf is the oracle", exc_type=ImportError)


@pytest.mark.oracle
@pytest.mark.parametrize("zero_unsure", [True, False])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_unary_from_labels_is_the_original(theirs, rng, zero_unsure, dtype):
    labels = rng.integers(0, 5 if zero_unsure else 4, (6, 7)).astype(dtype)
    np.testing.assert_array_equal(
        utils.unary_from_labels(labels, 4, 0.7, zero_unsure), theirs.unary_from_labels(labels, 4, 0.7, zero_unsure)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_labels_without_a_sign(dtype):
    """The original subtracts one, and fails where an unsigned 0 becomes the largest number."""
    labels = np.array([0, 3, 1])
    np.testing.assert_array_equal(
        utils.unary_from_labels(labels.astype(dtype), 3, 0.6), utils.unary_from_labels(labels, 3, 0.6)
    )


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"clip": 0.01}, {"scale": 0.5, "clip": None}])
def test_unary_from_softmax_is_the_original(theirs, rng, options, dtype):
    probabilities = rng.dirichlet([0.1] * 4, (6, 7)).transpose(2, 0, 1).astype(dtype)
    ours = utils.unary_from_softmax(probabilities, **options)
    np.testing.assert_array_equal(ours, theirs.unary_from_softmax(probabilities, **options))
    assert ours.flags.c_contiguous


@pytest.mark.oracle
def test_features_in_any_number_of_dimensions(theirs, rng):
    for shape, sdims in (((5,), (2,)), ((4, 6), (2, 3)), ((3, 4, 5), (1, 2, 3))):
        np.testing.assert_array_equal(
            utils.create_pairwise_gaussian(sdims, shape), theirs.create_pairwise_gaussian(sdims, shape)
        )
        volume = rng.uniform(0, 255, shape)
        for schan, image, chdim in ((7.0, volume, -1), ((3, 5), np.stack([volume, volume / 2]), 0)):
            np.testing.assert_array_equal(
                utils.create_pairwise_bilateral(sdims, schan, image, chdim),
                theirs.create_pairwise_bilateral(sdims, schan, image, chdim),
            )


def test_old_names():
    with pytest.warns(DeprecationWarning, match="unary_from_labels"):
        old = utils.compute_unary(np.array([1, 2]), 2, 0.7)
    np.testing.assert_array_equal(old, utils.unary_from_labels(np.array([1, 2]), 2, 0.7))
    with pytest.warns(DeprecationWarning, match="unary_from_softmax"):
        old = utils.softmax_to_unary(np.array([[0.3], [0.7]]), 0.9)
    np.testing.assert_array_equal(old, utils.unary_from_softmax(np.array([[0.3], [0.7]]), 0.9))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: utils.unary_from_labels(np.zeros(3, int), 1, 0.5), "n_labels must be 2 or more, got 1"),
        (lambda: utils.unary_from_labels(np.zeros(3, int), 2, 1.0), "gt_prob must lie between 0 and 1, got 1.0"),
        (lambda: utils.unary_from_labels(np.zeros(3), 2, 0.5), "labels must be integers, got float64"),
        (lambda: utils.unary_from_labels(np.array([0, 5]), 3, 0.5), r"must lie in 0 ... 3 .* got 0 ... 5"),
        (lambda: utils.unary_from_labels(np.array([0, -1]), 3, 0.5), r"got -1 ... 0"),
        (lambda: utils.unary_from_softmax(np.ones((2, 3)), scale=0), "scale must lie in 0 ... 1"),
        (lambda: utils.unary_from_softmax(np.array([[-3.0, 4.0]])), "sm must be probabilities.* softmax first"),
        (lambda: utils.unary_from_softmax(np.float64(0.5)), "the labels as its first axis"),
        (lambda: utils.create_pairwise_gaussian((1, 0), (3, 4)), "sdims must be positive"),
        (lambda: utils.create_pairwise_gaussian((1, 2, 3), (3, 4)), "sdims must be 2 numbers"),
        (lambda: utils.create_pairwise_bilateral((1, 2), (1, 1), np.zeros((3, 4))), "schan must be 1 numbers"),
        (lambda: utils.create_pairwise_bilateral((1, 2), 1, np.full((3, 4), np.nan)), "not finite"),
    ],
)
def test_errors_of_utils(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
