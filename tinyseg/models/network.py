"""What all segmentation networks have in common: images to logits, and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinyseg import cuda, nn
from tinyseg import functional as F
from tinyseg.backend import Array
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
            weights = cuda.astype(weights, logits.data.dtype)
        return F.cross_entropy(logits, labels, pixel_weights=weights, ignore_label=self.ignore_label)


class LearningRates(NamedTuple):
    """Factors for the learning rate of some parameters. A bias of the head has the product of both."""

    head: float = 1.0  # what starts from nothing where the trunk starts from trained weights
    bias: float = 1.0  # of convolutions and fully connected layers


class ParameterGroup(NamedTuple):
    """Parameters that are treated alike by an optimiser."""

    parameters: list[nn.Parameter]
    lr_multiplier: float
    decays: bool  # whether weight decay acts on them


TRUNKS = ("trunk", "backbone")
"""The attributes that hold a classifier without its last layers, where a network is built on one."""


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
    align_corners: bool | None = None  # of the bilinear enlargement of the scores; None where there is none
    paper_rates: LearningRates = LearningRates()  # as the network was trained for its paper, from a trained trunk
    classifier_names: tuple[
        tuple[str, str], ...
    ] = ()  # layers of a classifier, and what they are behind our trunk

    def forward(self, x: Input) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Input) -> Tensor:
        self.check_image(x)
        return self.forward(x)

    def check_image(self, x: Input) -> None:
        """Raises ValueError where images have the wrong axes or channels."""
        shape = tuple(x.shape)
        if len(shape) == 4 and shape[3] == self.in_channels:
            return
        remedy = "the number of channels is set with in_channels"
        if len(shape) == 3 and shape[2] == self.in_channels:
            remedy = "pass image[None] for a batch of one"
        elif len(shape) == 4 and shape[1] == self.in_channels:
            remedy = "channels come last here, pass x.transpose(0, 2, 3, 1)"
        raise ValueError(
            f"{type(self).__name__}: images must have the shape (N, H, W, {self.in_channels}), got {shape}; "
            f"{remedy}"
        )

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
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each with its weight in it: their sum is what training minimises.

        outputs     of `outputs`
        labels      (N, H, W)
        pixel_loss  what the run's settings ask of logits; term "pixels" is that of the network's own logits
        weights     (N, H, W), of the pixels, or None
        step        the number of the batch in the run, for losses with noise; also as an integer on the GPU
        """
        return {"pixels": pixel_loss(outputs, labels, weights)}

    def trunk_name(self) -> str | None:
        """The attribute with the trunk, or None for a network without one."""
        return next((name for name, _ in self.named_children() if name in TRUNKS), None)

    def head_parts(self) -> list[nn.Module]:
        """What has a learning rate of its own: by default all but the trunk, and nothing where there is none."""
        trunk = self.trunk_name()
        return [] if trunk is None else [child for name, child in self.named_children() if name != trunk]

    def parameter_groups(self, rates: LearningRates | None = None) -> list[ParameterGroup]:
        """All that learns. Weight decay is for weights: biases and normalisation are left free.

        rates  factors for the learning rate; without, all are 1
        """
        rates = rates or LearningRates()
        of_head = {id(parameter) for part in self.head_parts() for parameter in part.parameters()}
        biases = {
            id(layer.bias)
            for layer in self.modules()
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None
        }
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                factor = rates.head if id(parameter) in of_head else 1.0
                factor *= rates.bias if id(parameter) in biases else 1.0
                groups.setdefault((parameter.data.ndim > 1, factor), []).append(parameter)
        found = [ParameterGroup(members, factor, decays) for (decays, factor), members in groups.items()]
        return sorted(found, key=lambda group: not group.decays)

    def freeze_norms(self, frozen: bool = True, *, scale_and_shift: bool = False) -> None:
        """Normalise with the running statistics in training too, and no longer move them.

        For a second stage of training, or for batches too small to have statistics of their own. With
        `scale_and_shift`, the normalisations do not learn either.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.frozen = frozen
                module.weight.requires_grad = module.bias.requires_grad = not (frozen and scale_and_shift)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    first, *others = losses.values()
    for other in others:
        first = F.add(first, other)
    return first
