import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseg.data.weight_map import class_balance, connected_components, two_nearest, unet_weight_map


def brute_force(mask, instances, w0, sigma, balance):
    """The equation, pixel by pixel and cell by cell."""
    height, width = mask.shape
    weights = np.zeros(mask.shape)
    labels = sorted(set(mask.reshape(-1).tolist()))
    cells = [np.argwhere(instances == number) for number in sorted(set(instances.reshape(-1).tolist()) - {0})]
    for y in range(height):
        for x in range(width):
            share = sum(1 for label in mask.reshape(-1) if label == mask[y, x])
            weights[y, x] = mask.size / (len(labels) * share) if balance else 1
            distances = sorted(min(np.hypot(*(cell - (y, x)).T)) for cell in cells)
            if instances[y, x] == 0 and len(distances) > 1:
                weights[y, x] += w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights


def test_two_pixels_and_the_gap_between_them_by_hand():
    """Cells at columns 0 and 4 of a row: at column 1 the distances are 1 and 3, at column 2 they are 2 and 2."""
    mask = np.array([[1, 0, 0, 0, 1]])
    weights = unet_weight_map(mask, w0=10, sigma=2, balance=False)
    border = 10 * np.exp(-(4**2) / (2 * 2**2))
    np.testing.assert_allclose(weights, [[1, 1 + border, 1 + border, 1 + border, 1]], rtol=1e-6)
    assert weights.dtype == np.float32


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    instances = np.where(rng.random((height, width)) < 0.25, rng.integers(1, 6, (height, width)), 0)
    mask = (instances > 0).astype(np.uint8)
    w0, sigma, balance = rng.uniform(1, 20), rng.uniform(0.5, 6), bool(rng.integers(2))
    ours = unet_weight_map(mask, instances=instances, w0=w0, sigma=sigma, balance=balance)
    np.testing.assert_allclose(ours, brute_force(mask, instances, w0, sigma, balance), rtol=1e-5)


def test_cells_come_from_the_mask_where_they_are_not_given():
    rng = np.random.default_rng(2)
    mask = (rng.random((13, 11)) < 0.3).astype(np.uint8)
    given_cells = unet_weight_map(mask, instances=connected_components(mask == 1))
    np.testing.assert_array_equal(unet_weight_map(mask), given_cells)
    np.testing.assert_array_equal(unet_weight_map(1 - mask, foreground=0), given_cells)


def test_cells_that_touch_at_a_corner_are_two():
    assert connected_components(np.eye(3, dtype=bool)).max() == 3
    assert connected_components(np.ones((2, 2), bool)).max() == 1


def test_leaving_out_far_cells_changes_nothing_that_counts():
    rng = np.random.default_rng(0)
    instances = np.where(rng.random((90, 120)) < 0.004, rng.integers(1, 40, (90, 120)), 0)
    everywhere = [np.minimum(d, 1e6) for d in two_nearest(instances)]
    nearby = [np.minimum(d, 1e6) for d in two_nearest(instances, reach=14)]
    for all_, some in zip(everywhere, nearby, strict=True):
        np.testing.assert_array_equal(some[all_ <= 14], all_[all_ <= 14])
        assert (some[all_ > 14] == 1e6).all()


def test_the_gap_between_neighbours_weighs_most():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 5:28] = 1
    mask[10:30, 31:55] = 1
    weights = unet_weight_map(mask)
    assert weights[20, 29] == weights.max() > 8
    assert weights[20, 29] > 5 * weights[2, 2]


def test_no_cell_and_one_cell_have_no_border_term():
    for mask in (np.zeros((6, 7), int), np.pad(np.ones((2, 2), int), 3)):
        np.testing.assert_allclose(unet_weight_map(mask, balance=False), 1)


def test_class_balance_by_hand():
    mask = np.array([[0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(class_balance(mask), [[0.6, 0.6, 0.6], [0.6, 0.6, 3]])
    ignoring = class_balance(np.array([[0, 0, 1, 9]]), ignore_label=9)
    np.testing.assert_allclose(ignoring, [[0.75, 0.75, 1.5, 0]])


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_class_balance_gives_each_class_the_same_total_and_the_mean_one(seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, rng.integers(1, 6), rng.integers(1, 12, 2))
    weights = class_balance(mask)
    assert weights.mean() == pytest.approx(1)
    totals = [weights[mask == label].sum() for label in np.unique(mask)]
    np.testing.assert_allclose(totals, totals[0])


def test_ignored_pixels_weigh_nothing():
    mask = np.array([[1, 0, 255, 0, 1]])
    assert unet_weight_map(mask, ignore_label=255)[0, 2] == 0


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"mask must be integers \(H, W\), got float64 of shape \(2, 2\)"):
        unet_weight_map(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"instances have shape \(3, 2\), the mask \(2, 2\)"):
        unet_weight_map(np.zeros((2, 2), int), instances=np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="sigma must be above 0"):
        unet_weight_map(np.zeros((2, 2), int), sigma=0)
