"""Scores of a network over a whole data set: every image is predicted in full size, as it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np

from tinyseg import metrics
from tinyseg.crf import Parameters
from tinyseg.data import Dataset, Sample, as_float
from tinyseg.data.sample import DataError
from tinyseg.models import SegmentationNetwork, inference
from tinyseg.models.inference import Options, predict_logits
from tinyseg.tape import Tensor, no_grad
from tinyseg.train.checkpoint import Labels
from tinyseg.train.errors import SettingError
from tinyseg.train.loss import PixelLoss
from tinyseg.train.refinement import refined


@dataclass
class Scores:
    """What an evaluation found."""

    confusion: metrics.ConfusionMatrix
    loss: float = float("nan")  # mean over the images
    boundary: metrics.BoundaryFScore | None = None
    trimap: metrics.TrimapAccuracy | None = None
    examples: list[tuple[Sample, np.ndarray]] = field(default_factory=list)  # some samples with their predictions


def evaluate(
    network: SegmentationNetwork,
    dataset: Dataset,
    labels: Labels,
    *,
    loss: PixelLoss | None = None,
    boundary: bool = False,
    trimap: bool = False,
    crf: Parameters | None = None,
    keep: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    **options: Unpack[Options],
) -> Scores | None:
    """Predict every image of a data set and compare with its mask.

    labels    the classes and the input convention that the network was trained with
    boundary  also measure the boundary F-score; `trimap` the accuracy near boundaries
    crf       of a dense CRF that has the last word; the loss is that of the network alone
    keep      return so many examples, spread evenly over the data set
    stop      asked before each image; when it answers true the result is None
    progress  told (images done, images in all) after each image
    options   of `models.inference.predict_logits`: tiles, windows, scales, mirror images

    Raises `SettingError` for options that do not go with the network.
    """
    check_options(network, options)
    count, ignore = len(labels.classes), labels.ignore_label
    scores = Scores(metrics.ConfusionMatrix(count, ignore))
    scores.boundary = metrics.BoundaryFScore(count, ignore) if boundary else None
    scores.trimap = metrics.TrimapAccuracy(count, ignore) if trimap else None
    kept = set(np.linspace(0, len(dataset) - 1, min(keep, len(dataset))).round().astype(int).tolist())
    losses = []
    for index in range(len(dataset)):
        if stop():
            return None
        sample = dataset[index]
        if sample.mask is None:
            raise DataError(f"{sample.name}: has no mask, so there is nothing to compare with")
        logits = predict_logits(network, normalised(sample.image, labels), **options)
        scored = logits if crf is None else refined(sample.image, logits, crf, on_gpu=network.on_gpu)
        prediction = scored.argmax(axis=-1).astype(np.uint8 if count <= 256 else np.int32)  # H W
        for measure in (scores.confusion, scores.boundary, scores.trimap):
            if measure is not None:
                measure.update(sample.mask, prediction)
        if loss is not None:
            with no_grad():
                losses.append(float(loss(Tensor(logits[None]), sample.mask[None].astype(np.int64)).data))
        if index in kept:
            scores.examples.append((sample, prediction))
        progress(index + 1, len(dataset))
    if losses:
        scores.loss = float(np.mean(losses))
    return scores


def check_options(network: SegmentationNetwork, options: Options) -> None:
    """Raises `SettingError` for options of inference that make no sense, or not with this network."""
    try:
        inference.check_options(network, **options)
    except ValueError as error:
        raise SettingError(str(error).removeprefix("predict_logits: ")) from error


def normalised(image: np.ndarray, labels: Labels) -> np.ndarray:
    """An image, uint8 or float32 (H, W, C), as the network wants it."""
    mean, std = np.array(labels.mean, np.float32), np.array(labels.std, np.float32)
    return (as_float(image) - mean) / std
