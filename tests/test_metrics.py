"""Metrics against numbers worked out by hand, and against loops that count pixel by pixel."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseg import metrics
from tinyseg.metrics import BoundaryFScore, ConfusionMatrix, TrimapAccuracy, boundary_pixels, outline

nan = float("nan")


def random_maps(
    seed: int, classes: int, shape: tuple[int, ...], void: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Blocky labels with some void (255), and predictions that follow them roughly."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, [*shape[:-2], -(-shape[-2] // 3), -(-shape[-1] // 4)])
    labels = coarse.repeat(3, axis=-2).repeat(4, axis=-1)[..., : shape[-2], : shape[-1]]
    predictions = np.where(rng.random(shape) < 0.3, rng.integers(0, classes, shape), labels)
    return np.where(rng.random(shape) < void, 255, labels), predictions


# ---------------------------------------------------------------------------------------------- confusion matrix

# Labels    0 0 0 0 1 1 2 255       Class 0: 4 labelled, 4 predicted, 3 right; class 1: 2, 2, 1; class 2: 1, 0, 0;
# Predicted 0 0 0 1 1 0 3 0         class 3: 0, 1, 0; class 4: nowhere.
LABELS = np.array([[0, 0, 0, 0], [1, 1, 2, 255]], np.uint8)
PREDICTIONS = np.array([[0, 0, 0, 1], [1, 0, 3, 0]], np.int64)


@pytest.fixture
def matrix() -> ConfusionMatrix:
    return ConfusionMatrix(5, ignore_label=255).update(LABELS, PREDICTIONS)


def test_counts_by_hand(matrix):
    expected = np.zeros((5, 5), int)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[1, 0], expected[2, 3] = 3, 1, 1, 1, 1
    np.testing.assert_array_equal(matrix.matrix, expected)
    np.testing.assert_array_equal(matrix.labelled, [4, 2, 1, 0, 0])
    np.testing.assert_array_equal(matrix.predicted, [4, 2, 0, 1, 0])
    np.testing.assert_array_equal(matrix.correct, [3, 1, 0, 0, 0])


def test_scores_by_hand(matrix):
    assert matrix.pixel_accuracy == pytest.approx(4 / 7)
    assert matrix.pixel_error == pytest.approx(3 / 7)
    np.testing.assert_allclose(matrix.class_accuracy, [3 / 4, 1 / 2, 0, nan, nan])
    np.testing.assert_allclose(matrix.recall, [3 / 4, 1 / 2, 0, nan, nan])
    np.testing.assert_allclose(matrix.precision, [3 / 4, 1 / 2, nan, 0, nan])
    np.testing.assert_allclose(matrix.iou, [3 / 5, 1 / 3, 0, 0, nan])
    np.testing.assert_allclose(matrix.dice, [6 / 8, 2 / 4, 0, 0, nan])
    assert matrix.mean_accuracy == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert matrix.mean_iou == pytest.approx((3 / 5 + 1 / 3) / 4)
    assert matrix.mean_dice == pytest.approx((6 / 8 + 2 / 4) / 4)
    assert matrix.frequency_weighted_iou == pytest.approx((4 * 3 / 5 + 2 * 1 / 3) / 7)
    assert matrix.scores() == {
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_accuracy": matrix.mean_accuracy,
        "mean_iou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "mean_dice": matrix.mean_dice,
    }
    assert repr(matrix) == "ConfusionMatrix(5 classes, 7 pixels, mean IoU 0.2333)"


def test_a_class_that_is_nowhere_has_no_score_and_one_that_is_only_predicted_scores_zero():
    matrix = ConfusionMatrix(3).update(np.array([0, 0]), np.array([0, 2]))
    np.testing.assert_array_equal(matrix.iou, [0.5, nan, 0.0])
    assert matrix.mean_iou == 0.25


def test_the_whole_set_is_summed_before_dividing():
    """Image 1: IoU of class 1 is 1/1. Image 2: 0/9. Over the set 1/10, not their mean 1/2."""
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[1, 0]]), np.array([[1, 0]]))
    matrix.update(np.array([[1] * 9]), np.array([[0] * 9]))
    assert matrix.iou[1] == pytest.approx(1 / 10)


def test_nothing_counted_yet():
    matrix = ConfusionMatrix(3, ignore_label=2)
    for _ in range(2):
        assert math.isnan(matrix.pixel_accuracy) and math.isnan(matrix.mean_iou) and math.isnan(matrix.mean_dice)
        assert math.isnan(matrix.mean_accuracy) and math.isnan(matrix.frequency_weighted_iou)
        assert np.isnan(matrix.iou).all() and np.isnan(matrix.precision).all()
        matrix.update(np.array([2, 2]), np.array([0, 7]))  # all ignored, and an ignored prediction may be anything
    matrix.update(np.zeros((0, 4), int), np.zeros((0, 4), int))
    assert matrix.matrix.sum() == 0


def test_binary_pixel_error_of_bool_maps():
    truth = np.array([[True, True, False], [True, False, False]])
    guess = np.array([[True, False, False], [True, True, False]])
    assert ConfusionMatrix(2).update(truth, guess).pixel_error == pytest.approx(2 / 6)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 21),
    shape=st.sampled_from([(7, 5), (2, 4, 6), (1, 1), (3, 1, 9), (2, 2, 3, 5)]),
    types=st.sampled_from([("u1", "i8"), ("i4", "u1"), ("i2", "u2"), ("i8", "i8")]),
)
def test_agrees_with_counting_pixel_by_pixel(seed, classes, shape, types):
    labels, predictions = random_maps(seed, classes, shape)
    matrix = ConfusionMatrix(classes, ignore_label=255)
    matrix.update(labels.astype(types[0]), predictions.astype(types[1])[::1])
    counts = [[0] * classes for _ in range(classes)]
    for t, p in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if t != 255:
            counts[t][p] += 1
    assert matrix.matrix.tolist() == counts

    pairs = [
        (t, p) for t, p in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True) if t != 255
    ]
    for c in range(classes):
        true = {i for i, (t, _) in enumerate(pairs) if t == c}
        predicted = {i for i, (_, p) in enumerate(pairs) if p == c}
        both, union = len(true & predicted), len(true | predicted)
        np.testing.assert_allclose(matrix.iou[c], both / union if union else nan)
        np.testing.assert_allclose(matrix.dice[c], 2 * both / (len(true) + len(predicted)) if union else nan)
        np.testing.assert_allclose(matrix.precision[c], both / len(predicted) if predicted else nan)
        np.testing.assert_allclose(matrix.recall[c], both / len(true) if true else nan)
    np.testing.assert_allclose(matrix.dice, 2 * matrix.iou / (1 + matrix.iou))


def test_updates_add_up_in_any_split_and_layout():
    labels, predictions = random_maps(3, 6, (4, 9, 10))
    whole = ConfusionMatrix(6, ignore_label=255).update(labels, predictions)
    parts = ConfusionMatrix(6, ignore_label=255)
    for n in range(4):
        other = ConfusionMatrix(6, ignore_label=255).update(labels[n].T, predictions[n].T)
        parts.merge(other)
    np.testing.assert_array_equal(parts.matrix, whole.matrix)
    parts.reset()
    assert parts.matrix.sum() == 0
    with pytest.raises(ValueError, match="cannot merge 5 classes into 6"):
        parts.merge(ConfusionMatrix(5))


def test_many_classes_do_not_overflow_small_integers():
    labels = np.full(300, 20, np.uint8)
    matrix = ConfusionMatrix(21).update(labels, labels)
    assert matrix.matrix[20, 20] == 300


@pytest.mark.parametrize(
    "labels, predictions, error, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), ValueError, r"shape \(2, 3\), but predictions .* \(3, 2\)"),
        (
            np.array([0, 7, 3]),
            np.array([0, 1, 2]),
            ValueError,
            "2 of 3 labels are no class, among them 3, 7; classes are 0 to 2, ignore_label is 255",
        ),
        (
            np.array([0, 1, 2]),
            np.array([0, -1, 2]),
            ValueError,
            "1 of 3 predictions are no class, among them -1; ",
        ),
        (
            np.array([0, 255]),
            np.array([0.5, 0.5]),
            TypeError,
            "predictions must hold integers, got float64, .*argmax",
        ),
        (np.array([0.0, 1.0]), np.array([0, 1]), TypeError, "labels must hold integers, got float64, .*load it"),
        ([0, 1], np.array([0, 1]), TypeError, "labels must be a NumPy array of integers, got list"),
    ],
)
def test_errors_add_nothing(labels, predictions, error, message):
    for metric in (ConfusionMatrix(3, 255), TrimapAccuracy(3, 255), BoundaryFScore(3, 255)):
        with pytest.raises(error, match=type(metric).__name__ + ": .*" + message):
            metric.update(labels, predictions)
    matrix = ConfusionMatrix(3, 255)
    with pytest.raises(error):
        matrix.update(labels, predictions)
    assert matrix.matrix.sum() == 0


def test_errors_of_the_constructors():
    with pytest.raises(TypeError, match=r"ConfusionMatrix: classes must be the number .*pass len\(names\)"):
        ConfusionMatrix(("sky", "road"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="BoundaryFScore: classes must be at least 1, got 0"):
        BoundaryFScore(0)
    with pytest.raises(ValueError, match=r"widths must be positive numbers of pixels, got \(1, 0\)"):
        TrimapAccuracy(2, widths=(1, 0))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        BoundaryFScore(2, tolerance=0)
    for metric in (TrimapAccuracy(2), BoundaryFScore(2)):
        with pytest.raises(
            ValueError, match=r"labels must have the axes \(H, W\) or \(N, H, W\), got shape \(3,\)"
        ):
            metric.update(np.zeros(3, int), np.zeros(3, int))


# ------------------------------------------------------------------------------------------------ trimap accuracy


def test_boundary_pixels_by_hand():
    labels = np.array([[4, 4, 4, 4], [4, 4, 9, 4], [4, 4, 4, 4], [1, 4, 4, 4]])
    expected = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(boundary_pixels(labels), expected)


def test_trimap_by_hand():
    """Boundary pixels are columns 3 and 4; the distances of the eight columns are 3 2 1 0 0 1 2 3."""
    labels = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    predictions = np.array([[1, 0, 0, 1, 1, 1, 0, 1]])
    trimap = TrimapAccuracy(2, widths=(0.5, 1, 2, 3, 100)).update(labels, predictions)
    np.testing.assert_allclose(trimap.pixel_accuracy, [1 / 2, 3 / 4, 4 / 6, 5 / 8, 5 / 8])
    np.testing.assert_allclose(trimap.mean_iou[:2], [(0 / 1 + 1 / 2) / 2, (1 / 2 + 2 / 3) / 2])


def test_void_makes_a_boundary_but_is_not_counted():
    labels = np.array([[0, 0, 0, 255, 0, 0, 0]])
    predictions = np.array([[1, 0, 1, 1, 0, 0, 0]])
    trimap = TrimapAccuracy(2, ignore_label=255, widths=(1, 2)).update(labels, predictions)
    np.testing.assert_allclose(trimap.pixel_accuracy, [3 / 4, 4 / 6])
    assert trimap.matrices[1].matrix.sum() == 6


def test_a_map_of_one_label_has_no_band():
    labels = np.zeros((4, 5), int)
    assert np.isnan(TrimapAccuracy(2).update(labels, labels).pixel_accuracy).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(9, 14), (1, 12), (11, 1), (6, 5)]))
def test_trimap_agrees_with_a_search_over_all_pairs(seed, size):
    labels, predictions = random_maps(seed, 3, (2, *size), void=0.02)
    widths = (1, 2.3, 5)
    trimap = TrimapAccuracy(3, 255, widths).update(labels, predictions)
    for width, matrix in zip(widths, trimap.matrices, strict=True):
        right = counted = 0
        for true, predicted in zip(labels, predictions, strict=True):
            height, length = true.shape
            edge = [
                (h, w)
                for h in range(height)
                for w in range(length)
                for i, j in ((h + 1, w), (h - 1, w), (h, w + 1), (h, w - 1))
                if 0 <= i < height and 0 <= j < length and true[i, j] != true[h, w]
            ]
            for h in range(height):
                for w in range(length):
                    if true[h, w] != 255 and any((h - i) ** 2 + (w - j) ** 2 <= width**2 for i, j in edge):
                        counted += 1
                        right += true[h, w] == predicted[h, w]
        assert (matrix.matrix.sum(), matrix.correct.sum()) == (counted, right)


# ----------------------------------------------------------------------------------------------- boundary F-score


def test_boundary_f_by_hand():
    """Class 1 starts at column 6, or 3: with the right neighbour compared, the outlines are columns 5 and 2."""
    labels, predictions = np.zeros((4, 9), int), np.zeros((4, 9), int)
    labels[:, 6:], predictions[:, 3:] = 1, 1
    for tolerance, expected in ((1, 0), (2, 0), (2.9, 0), (3, 1), (4, 1)):
        score = BoundaryFScore(2, tolerance=tolerance).update(labels, predictions)
        np.testing.assert_array_equal(score.f_score, [expected, expected])
        assert score.mean == expected
    # The truth gets two more outline columns, 1 and 2, that the prediction lacks.
    labels[:, 2] = 1
    score = BoundaryFScore(2, tolerance=1).update(labels, np.where(np.arange(9) >= 6, 1, 0)[None].repeat(4, 0))
    np.testing.assert_allclose(score.precision, [1, 1])
    np.testing.assert_allclose(score.recall, [4 / 12, 4 / 12])
    np.testing.assert_allclose(score.f_score, [1 / 2, 1 / 2])


def test_boundary_f_of_empty_outlines():
    half = np.array([[0, 0, 1, 1]] * 3)
    nothing = np.zeros((3, 4), int)
    score = BoundaryFScore(2, tolerance=1).update(half, nothing)
    np.testing.assert_array_equal([score.precision[1], score.recall[1], score.f_score[1]], [1, 0, 0])
    score = BoundaryFScore(2, tolerance=1).update(nothing, half)
    np.testing.assert_array_equal([score.precision[1], score.recall[1], score.f_score[1]], [0, 1, 0])
    score = BoundaryFScore(2, tolerance=1).update(nothing, nothing)
    np.testing.assert_array_equal([score.precision[1], score.recall[1], score.f_score[1]], [1, 1, 1])


def test_absent_classes_flatter_unless_they_are_skipped():
    half, other = np.array([[0, 1, 1, 1, 1, 1]]), np.array([[1, 1, 1, 1, 0, 0]])
    published = BoundaryFScore(4, tolerance=0.9 / 100).update(half, other)
    np.testing.assert_array_equal(published.f_score, [0, 0, 1, 1])
    assert published.mean == 0.5
    strict = BoundaryFScore(4, tolerance=0.9 / 100, skip_absent=True).update(half, other)
    np.testing.assert_array_equal(strict.f_score, [0, 0, nan, nan])
    assert strict.mean == 0
    full = BoundaryFScore(2, tolerance=1, skip_absent=True).update(np.ones((2, 2), int), np.ones((2, 2), int))
    np.testing.assert_array_equal(full.f_score, [nan, 1])  # present, with no outline in either map


@pytest.mark.parametrize("share, pixels", [(0.0005, 2), (0.00088, 3), (0.001875, 5), (0.00375, 9), (0.005, 12)])
def test_tolerance_as_a_share_of_the_diagonal(share, pixels):
    assert BoundaryFScore(2, tolerance=share).radius((1024, 2048)) == pixels


def brute_force_outline(mask):
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for h in range(height):
        for w in range(width):
            neighbours = [(h, w + 1), (h + 1, w), (h + 1, w + 1)]
            edge[h, w] = any(mask[i, j] != mask[h, w] for i, j in neighbours if i < height and j < width)
    return edge


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([(9, 14), (1, 12), (11, 1), (13, 8)]),
    radius=st.sampled_from([1, 2, 3, 5]),
)
def test_boundary_f_agrees_with_dilated_outlines(seed, size, radius):
    """The published procedure: dilate one outline by a disc, and count the other's pixels inside."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy dilates the outlines")
    labels, predictions = random_maps(seed, 3, (3, *size), void=0.03)
    score = BoundaryFScore(3, 255, tolerance=radius).update(labels, predictions)
    reach = np.arange(-radius, radius + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius**2
    f_scores = np.zeros((3, 3))
    for n, (true, predicted) in enumerate(zip(labels, predictions, strict=True)):
        for c in range(3):
            t = brute_force_outline(np.where(true == 255, False, true == c))
            p = brute_force_outline(np.where(true == 255, False, predicted == c))
            np.testing.assert_array_equal(t, outline((true == c) & (true != 255)))
            near_t, near_p = (ndimage.binary_dilation(edge, disc) for edge in (t, p))
            precision = (p & near_t).sum() / p.sum() if p.any() else 1
            recall = (t & near_p).sum() / t.sum() if t.any() else 1
            f_scores[n, c] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    np.testing.assert_allclose(score.f_score, f_scores.mean(axis=0))
    assert score.mean == pytest.approx(f_scores.mean())


def test_perfect_predictions_score_one():
    labels, _ = random_maps(5, 4, (2, 20, 30), void=0.05)
    predictions = np.where(labels == 255, 0, labels)
    assert BoundaryFScore(4, 255).update(labels, predictions).mean == 1
    np.testing.assert_array_equal(TrimapAccuracy(4, 255).update(labels, predictions).mean_iou, 1)
    assert ConfusionMatrix(4, 255).update(labels, predictions).mean_iou == 1


def test_examples_in_the_documentation():
    assert doctest.testmod(metrics).failed == 0
