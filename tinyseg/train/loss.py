"""The loss that a configuration asks for: cross-entropy, with soft Dice if wanted, on logits and labels.

    loss = mean over pixels of  weight(pixel) class_weight(label) * -log p(label)   +   dice * (1 - soft Dice)

A network with unpadded convolutions answers for the middle of its image only; labels and pixel weights are then
cut to the middle too. A network with auxiliary heads or losses of its own asks for the loss of each answer
(`SegmentationNetwork.losses`).
"""

import numpy as np

from tinyseg import cuda
from tinyseg import functional as F
from tinyseg.data import Dataset
from tinyseg.data.check import examine
from tinyseg.tape import Tensor
from tinyseg.train import config
from tinyseg.train.errors import SettingError


class PixelLoss:
    """Called with logits (N, h, w, classes), labels (N, H, W) and weights (N, H, W) or None; gives one number."""

    def __init__(self, settings: config.Loss, dataset: Dataset):
        self.ignore_label = dataset.ignore_label
        self.dice = settings.dice
        self.class_weights = _class_weights(settings, dataset)

    def __call__(self, logits: Tensor, labels: np.ndarray, weights: np.ndarray | None = None, /) -> Tensor:
        logits = F.widened(logits)
        size = (logits.shape[1], logits.shape[2])
        labels = middle(labels, size)
        weights = None if weights is None else cuda.astype(middle(weights, size), logits.data.dtype)
        class_weights = self.class_weights
        if class_weights is not None:
            class_weights = cuda.constant_like(class_weights, logits.data)
        loss = F.cross_entropy(
            logits, labels, class_weights=class_weights, pixel_weights=weights, ignore_label=self.ignore_label
        )
        if self.dice > 0:
            dice = F.dice(F.softmax(logits), labels, ignore_label=self.ignore_label)
            loss = F.add(loss, F.mul(dice, self.dice))
        return loss


def middle(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The central h x w pixels of maps (N, H, W); an odd difference leaves the extra pixel at the bottom right."""
    if size[0] > maps.shape[1] or size[1] > maps.shape[2]:
        raise ValueError(
            f"PixelLoss: the logits have {size[0]} x {size[1]} pixels, more than the {maps.shape[1]} x "
            f"{maps.shape[2]} of the labels; both must be of the same images"
        )
    top, left = (maps.shape[1] - size[0]) // 2, (maps.shape[2] - size[1]) // 2
    return maps[:, top : top + size[0], left : left + size[1]]


def _class_weights(settings: config.Loss, dataset: Dataset) -> np.ndarray | None:
    if settings.class_weights is None:
        return None
    if settings.class_weights == "median":
        return examine(dataset).median_frequency_weights
    if len(settings.class_weights) != len(dataset.classes):
        raise SettingError(
            f"loss.class_weights has {len(settings.class_weights)} numbers, but there are {len(dataset.classes)} "
            f"classes: {', '.join(dataset.classes)}"
        )
    return np.array(settings.class_weights)
