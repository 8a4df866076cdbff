"""What all segmentation networks have in common: images to logits, and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.tape import Tensor


class PixelLoss(Protocol):
    """The loss of logits (N, h, w, classes) for labels (N, H, W): one number.

    weights  (N, H, W), how much each pixel counts, or None
    """

    @property
    def ignore_label(self) -> int | None:
        """The label of pixels that do not count."""
        ...

    def __call__(self, logits: Tensor, labels: np.ndarray, weights: np.ndarray | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """The plainest `PixelLoss`. That of a training run, with its settings, is tinyseg.train.loss.PixelLoss."""

    ignore_label: int | None = None

    def __call__(self, logits: Tensor, labels: np.ndarray, weights: np.ndarray | None = None, /) -> Tensor:
        if weights is not None:
            weights = np.asarray(weights, logits.data.dtype)
        return F.cross_entropy(logits, labels, pixel_weights=weights, ignore_label=self.ignore_label)


class SegmentationNetwork(nn.Module):
    """A network from images to one number per class and pixel, before the softmax.

    forward:  (N, H, W, in_channels) -> logits (N, h, w, classes)

    Most networks answer for every pixel, h = H. One with unpadded convolutions answers for the middle of its
    input, all but `context` pixels on each side; whoever trains it crops the labels to the middle.

    Training asks for more than the logits where a paper does, for the answers of auxiliary heads for instance.
    Any network is trained by

        outputs = network.outputs(images)
        loss = total(network.losses(outputs, labels, pixel_loss))
        loss.backward()

    and a network with losses of its own overrides the two methods.
    """

    in_channels: int
    classes: int
    context: int = 0

    def forward(self, x: Input) -> Tensor:
        raise NotImplementedError

    def input_side(self, output_side: int) -> int:
        """The height (or width) of an input whose logits cover at least so many pixels."""
        return output_side

    def outputs(self, x: Input) -> Any:
        """All that the network says about images in training; by default its logits."""
        return self(x)

    def losses(
        self,
        outputs: Any,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each with its weight in it: their sum is what training minimises.

        outputs     of `outputs`
        labels      (N, H, W)
        pixel_loss  what the run's settings ask of logits; term "pixels" is that of the network's own logits
        weights     (N, H, W), of the pixels, or None
        step        the number of the batch in the run, for losses with noise
        """
        return {"pixels": pixel_loss(outputs, labels, weights)}


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    first, *others = losses.values()
    for other in others:
        first = F.add(first, other)
    return first
