"""How good is a segmentation? Scores over a whole data set, from integer label maps.

Every metric here is an accumulator. `update(labels, predictions)` adds the counts of one image or one batch, and
the scores are worked out from the sums over the *whole set*, as Pascal VOC and Cityscapes do. The mean of the
scores of single images is a different number (a class that is in one image weighs as much as one that is in all).

    matrix = ConfusionMatrix(classes=21, ignore_label=255)
    for image, labels in images:
        matrix.update(labels, predict(image))
    matrix.mean_iou

The confusion matrix M[t, p] counts the pixels of true class t that were predicted as class p. With the number of
labelled pixels n_t = sum_p M[t, p], of predicted pixels n_p = sum_t M[t, p], and all counts of one class c:

    pixel accuracy     sum_c M[c, c] / sum M
    class accuracy     M[c, c] / n_t                   also called recall; NaN if c is never labelled
    precision          M[c, c] / n_p                   NaN if c is never predicted
    IoU                M[c, c] / (n_t + n_p - M[c, c]) intersection over union, the Jaccard index
    Dice               2 M[c, c] / (n_t + n_p)         the F1 score, and 2 IoU / (1 + IoU)

A class that is neither labelled nor predicted has no IoU and no Dice: they are NaN and the means leave them out. A
class that is predicted though it is never labelled has IoU 0, and the means count it.

Sources: Everingham et al., "The Pascal visual object classes challenge: a retrospective", IJCV 2015, section 3.3;
Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 5;
Kraehenbuehl & Koltun, "Efficient inference in fully connected CRFs", NIPS 2011, section 5 (trimaps);
Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation", CVPR 2016
(boundary F); Takikawa et al., "Gated-SCNN", ICCV 2019, section 4.1 (boundary F per class).
"""

from collections.abc import Iterator, Sequence

import numpy as np

Array = np.ndarray


class ConfusionMatrix:
    """Counts of (true class, predicted class), and the scores that follow from them.

    classes        number of classes; labels and predictions are 0 .. classes - 1
    ignore_label   pixels with this true label are left out (255 in Pascal VOC, 11 in CamVid); None counts all

    `matrix` is the int64 array (classes, classes) described at the top of this file.

    >>> matrix = ConfusionMatrix(2).update(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    >>> matrix.iou
    array([0.5       , 0.66666667])
    """

    def __init__(self, classes: int, ignore_label: int | None = None):
        self.classes = _number_of_classes("ConfusionMatrix", classes)
        self.ignore_label = ignore_label
        self.matrix = np.zeros((self.classes, self.classes), np.int64)

    def update(self, labels: Array, predictions: Array) -> "ConfusionMatrix":
        """Add integer arrays of one shape, whatever shape it is. Returns the matrix itself.

        Raises TypeError if an array does not hold integers, and ValueError if the shapes differ or if a value is
        not a class; then nothing is added.
        """
        _check_maps("ConfusionMatrix", labels, predictions)
        _check_classes("ConfusionMatrix", labels, predictions, self.classes, self.ignore_label)
        counted = _counted(labels, self.ignore_label)
        true, predicted = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
        counts = np.bincount(true * self.classes + predicted, minlength=self.classes**2)
        self.matrix += counts.reshape(self.classes, self.classes)
        return self

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add the counts of another matrix, for instance of another process. Returns the matrix itself."""
        if other.classes != self.classes:
            raise ValueError(f"ConfusionMatrix: cannot merge {other.classes} classes into {self.classes}")
        self.matrix += other.matrix
        return self

    def reset(self) -> None:
        self.matrix[:] = 0

    @property
    def labelled(self) -> Array:
        """Pixels of each true class: n_t."""
        return self.matrix.sum(axis=1)

    @property
    def predicted(self) -> Array:
        """Pixels of each predicted class: n_p."""
        return self.matrix.sum(axis=0)

    @property
    def correct(self) -> Array:
        """Pixels of each class that were predicted as such: M[c, c]."""
        return np.diagonal(self.matrix)

    @property
    def pixel_accuracy(self) -> float:
        """The share of all pixels that is right. NaN before the first pixel."""
        return float(_ratio(self.correct.sum(), self.matrix.sum()))

    @property
    def pixel_error(self) -> float:
        """The share of all pixels that is wrong: the measure of the ISBI 2012 challenge for two classes."""
        return 1 - self.pixel_accuracy

    @property
    def class_accuracy(self) -> Array:
        """For each class, the share of its pixels that was found. NaN where it is never labelled."""
        return _ratio(self.correct, self.labelled)

    @property
    def mean_accuracy(self) -> float:
        """Class accuracy, averaged over the classes that are labelled somewhere."""
        return _mean_of_known(self.class_accuracy)

    @property
    def recall(self) -> Array:
        """Another name of class accuracy."""
        return self.class_accuracy

    @property
    def precision(self) -> Array:
        """For each class, the share of its predictions that is right. NaN where it is never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def iou(self) -> Array:
        """For each class, intersection over union. NaN where the union is empty."""
        return _ratio(self.correct, self.labelled + self.predicted - self.correct)

    @property
    def mean_iou(self) -> float:
        """IoU, averaged over the classes that are labelled or predicted somewhere."""
        return _mean_of_known(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU, averaged over the labelled classes with their share of the pixels as weights."""
        here = self.labelled > 0
        return float(_ratio((self.labelled[here] * self.iou[here]).sum(), self.labelled.sum()))

    @property
    def dice(self) -> Array:
        """For each class, the Dice coefficient, which is the F1 score. NaN where the union is empty."""
        return _ratio(2 * self.correct, self.labelled + self.predicted)

    @property
    def mean_dice(self) -> float:
        """Dice, averaged over the classes that are labelled or predicted somewhere."""
        return _mean_of_known(self.dice)

    def scores(self) -> dict[str, float]:
        """The scores that are one number, by name."""
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_iou": self.mean_iou,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "mean_dice": self.mean_dice,
        }

    def __repr__(self) -> str:
        return f"ConfusionMatrix({self.classes} classes, {self.matrix.sum()} pixels, mean IoU {self.mean_iou:.4f})"


# ------------------------------------------------------------------------------------------------ trimap accuracy


TRIMAP_WIDTHS = (1, 2, 3, 5, 10, 20, 40)


class TrimapAccuracy:
    """Scores on narrow bands along the true boundaries, where segmentations are hardest: one for each width.

    The convention, which differs between published implementations: a boundary pixel is one that has a pixel of
    another label above, below, to the left or to the right, where the ignored label counts as a label like the
    others. The band of width w holds the pixels whose Euclidean distance to the nearest boundary pixel is at most
    w (a boundary pixel has distance 0), without those that are ignored themselves.

    classes, ignore_label   as for ConfusionMatrix
    widths                  in pixels, positive

    >>> trimap = TrimapAccuracy(2, widths=(1, 2))
    >>> labels = np.array([[0, 0, 0, 0, 1, 1]])
    >>> trimap.update(labels, np.array([[0, 1, 0, 0, 1, 1]])).pixel_accuracy
    array([1. , 0.8])
    """

    def __init__(self, classes: int, ignore_label: int | None = None, widths: Sequence[float] = TRIMAP_WIDTHS):
        if len(widths) == 0 or min(widths) <= 0:
            raise ValueError(f"TrimapAccuracy: widths must be positive numbers of pixels, got {tuple(widths)}")
        self.widths = tuple(widths)
        self.classes = _number_of_classes("TrimapAccuracy", classes)
        self.ignore_label = ignore_label
        self.matrices = [ConfusionMatrix(classes, ignore_label) for _ in widths]

    def update(self, labels: Array, predictions: Array) -> "TrimapAccuracy":
        """Add maps of shape H W, or batches N H W."""
        _check_maps("TrimapAccuracy", labels, predictions)
        _check_classes("TrimapAccuracy", labels, predictions, self.classes, self.ignore_label)
        for true, predicted in _images("TrimapAccuracy", labels, predictions):
            distance = distance_to(boundary_pixels(true))
            for width, matrix in zip(self.widths, self.matrices, strict=True):
                band = distance <= width
                matrix.update(true[band], predicted[band])
        return self

    @property
    def pixel_accuracy(self) -> Array:
        """One number for each width. NaN where no band has any pixel."""
        return np.array([matrix.pixel_accuracy for matrix in self.matrices])

    @property
    def mean_iou(self) -> Array:
        """One number for each width."""
        return np.array([matrix.mean_iou for matrix in self.matrices])


def boundary_pixels(labels: Array) -> Array:
    """Bool, H W: whether a pixel has a 4-neighbour of another label.

    >>> boundary_pixels(np.array([[7, 7, 3], [7, 7, 7]])).astype(int)
    array([[0, 1, 1],
           [0, 0, 1]])
    """
    boundary = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    boundary[:, 1:] |= across
    boundary[:, :-1] |= across
    boundary[1:] |= down
    boundary[:-1] |= down
    return boundary


def distance_to(pixels: Array) -> Array:
    """Euclidean distance of every pixel to the nearest one that is set; infinite everywhere if none is."""
    from scipy.ndimage import distance_transform_edt

    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    return np.asarray(distance_transform_edt(~pixels))


# ---------------------------------------------------------------------------------------------- boundary F-score


class BoundaryFScore:
    """How well predicted outlines follow the true ones: the F-score of boundary pixels, within a tolerance.

    For each image and class, both maps are made binary (ignored pixels are not of the class in either), and a
    boundary pixel is one that differs from its right, lower or lower right neighbour. A predicted boundary pixel
    is right if a true one lies within the radius r, which gives the precision P; the reverse gives the recall R;
    and F = 2 P R / (P + R). If both boundaries are empty P = R = F = 1; if only one is, F = 0. F is averaged over
    the images for each class, and then over the classes.

    classes, ignore_label   as for ConfusionMatrix
    tolerance               r in pixels if it is 1 or more, otherwise a share of the diagonal, rounded up
                            (Gated-SCNN: 0.00088, 0.001875, 0.00375, 0.005 for 3, 5, 9, 12 pixels of Cityscapes)
    skip_absent             leave out a class in the images where it is neither labelled nor predicted. The
                            published measure counts it as F = 1, which flatters rare classes.

    >>> score = BoundaryFScore(2, tolerance=1)
    >>> score.update(np.array([[0, 0, 0, 1, 1, 1]]), np.array([[0, 0, 1, 1, 1, 1]])).mean
    1.0
    """

    def __init__(
        self,
        classes: int,
        ignore_label: int | None = None,
        tolerance: float = 0.00375,
        skip_absent: bool = False,
    ):
        if not tolerance > 0:
            raise ValueError(
                "BoundaryFScore: tolerance must be positive (pixels, or less than 1 for a share of the diagonal), "
                f"got {tolerance}"
            )
        self.classes = _number_of_classes("BoundaryFScore", classes)
        self.ignore_label = ignore_label
        self.tolerance = tolerance
        self.skip_absent = skip_absent
        self.images = np.zeros(self.classes, np.int64)  # how many images count, for each class
        self.sums = np.zeros((3, self.classes))  # of P, R and F over those images

    def update(self, labels: Array, predictions: Array) -> "BoundaryFScore":
        """Add maps of shape H W, or batches N H W. Returns the score itself."""
        _check_maps("BoundaryFScore", labels, predictions)
        _check_classes("BoundaryFScore", labels, predictions, self.classes, self.ignore_label)
        for true, predicted in _images("BoundaryFScore", labels, predictions):
            counted = _counted(true, self.ignore_label)
            radius = self.radius(true.shape)
            for c in range(self.classes):
                true_mask, predicted_mask = (true == c) & counted, (predicted == c) & counted
                if self.skip_absent and not true_mask.any() and not predicted_mask.any():
                    continue
                self.images[c] += 1
                self.sums[:, c] += _boundary_scores(true_mask, predicted_mask, radius)
        return self

    def radius(self, size: tuple[int, ...]) -> float:
        """The tolerance in pixels for an image of this height and width."""
        if self.tolerance >= 1:
            return self.tolerance
        return float(np.ceil(self.tolerance * np.hypot(size[0], size[1])))

    @property
    def precision(self) -> Array:
        """For each class, the mean of P over the images. NaN where no image counts."""
        return _ratio(self.sums[0], self.images)

    @property
    def recall(self) -> Array:
        """For each class, the mean of R over the images."""
        return _ratio(self.sums[1], self.images)

    @property
    def f_score(self) -> Array:
        """For each class, the mean of F over the images."""
        return _ratio(self.sums[2], self.images)

    @property
    def mean(self) -> float:
        """F, averaged over the classes that some image counts."""
        return _mean_of_known(self.f_score)


def outline(mask: Array) -> Array:
    """Bool, H W: where a bool mask differs from its right, lower or lower right neighbour.

    The last row is compared to the right only, the last column downwards only, and the last corner not at all.

    >>> outline(np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1]], bool)).astype(int)
    array([[0, 1, 1],
           [0, 1, 0],
           [0, 1, 0]])
    """
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _boundary_scores(true_mask: Array, predicted_mask: Array, radius: float) -> tuple[float, float, float]:
    """P, R and F of one class in one image."""
    true, predicted = outline(true_mask), outline(predicted_mask)
    if not true.any() or not predicted.any():
        precision = 1.0 if not predicted.any() else 0.0  # nothing predicted: nothing predicted wrongly
        recall = 1.0 if not true.any() else 0.0
    else:
        precision = float((distance_to(true)[predicted] <= radius).mean())
        recall = float((distance_to(predicted)[true] <= radius).mean())
    f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f


# -------------------------------------------------------------------------------------------------------- shared


def _number_of_classes(metric: str, classes: int) -> int:
    if not hasattr(classes, "__index__") or isinstance(classes, bool):
        raise TypeError(
            f"{metric}: classes must be the number of classes, got {classes!r}; for names pass len(names)"
        )
    if classes < 1:
        raise ValueError(f"{metric}: classes must be at least 1, got {classes}")
    return int(classes)


def _check_maps(metric: str, labels: Array, predictions: Array) -> None:
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{metric}: {name} must be a NumPy array of integers, got {type(array).__name__}")
        if array.dtype.kind not in "iub":
            remedy = (
                "argmax over the classes turns scores into labels"
                if name == "predictions"
                else "load it as integers"
            )
            raise TypeError(
                f"{metric}: {name} must hold integers, got {array.dtype}, shape {array.shape}; {remedy}"
            )
    if labels.shape != predictions.shape:
        raise ValueError(
            f"{metric}: labels have shape {labels.shape}, but predictions have shape {predictions.shape}; "
            "crop or resize one of them (labels only with nearest neighbours)"
        )


def _counted(labels: Array, ignore_label: int | None) -> Array:
    """Bool: the pixels that are not ignored."""
    return np.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label


def _check_classes(metric: str, labels: Array, predictions: Array, classes: int, ignore_label: int | None) -> None:
    """All labels are classes or ignored; predictions are classes, except where the label is ignored."""
    counted = _counted(labels, ignore_label)
    for name, values in (("labels", labels[counted]), ("predictions", predictions[counted])):
        if values.size == 0 or (values.min() >= 0 and values.max() < classes):
            continue
        wrong = (values < 0) | (values >= classes)
        examples = ", ".join(map(str, np.unique(values[wrong])[:5]))
        raise ValueError(
            f"{metric}: {wrong.sum()} of {wrong.size} {name} are no class, among them {examples}; "
            f"classes are 0 to {classes - 1}" + (f", ignore_label is {ignore_label}" if name == "labels" else "")
        )


def _images(metric: str, labels: Array, predictions: Array) -> Iterator[tuple[Array, Array]]:
    """The single maps (H W) of a map or a batch."""
    if labels.ndim not in (2, 3):
        raise ValueError(f"{metric}: labels must have the axes (H, W) or (N, H, W), got shape {labels.shape}")
    if labels.ndim == 2:
        yield labels, predictions
    else:
        yield from zip(labels, predictions, strict=True)


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and NaN where whole is 0."""
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean_of_known(values: Array) -> float:
    """The mean of the numbers that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
