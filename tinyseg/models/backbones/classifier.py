r"""What all classifiers have in common, and how one becomes a network of convolutions.

A classifier is a trunk of stages, each with a coarser map than the one before, and fully connected layers:

    image (N, H, W, 3) --> stages --> last map --> mean to s x s --> flattened --> fully connected --> (N, classes)

Segmentation networks build on the trunk: `stages(x)` returns its maps by name, shallow to deep, and
`stage_channels` and `stage_strides` say beforehand what they will be. A classifier made with `classes=None` is the
trunk alone.

From a classifier to a map of scores. A fully connected layer on a map of s x s pixels and C channels is a product
with a matrix (s s C, O), one row for each pixel and channel; a convolution with an s x s kernel multiplies the
same pixels by the same weights, (s, s, C, O), at each place where the window fits:

    fully connected   y[o]       = sum over r, s, c of  x[r, s, c] * w[(r, s, c), o]
    convolution       y[p, q, o] = sum over r, s, c of  x[p + r, q + s, c] * w[r, s, c, o]

As activations are stored N H W C, and kernels R S C O, the conversion only changes the matrix's shape. Where the
map was averaged to one pixel first (s = 1), the kernel is 1 x 1, and the mean of its scores over the map is what
the classifier says: the mean commutes with the one linear layer that follows it.

Source: Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section
3.1.
"""

import copy
import math
from collections.abc import Iterable, Sequence

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.tape import Tensor

LINEAR_UNIFORM = nn.init.he_uniform(gain=1 / math.sqrt(3))
"""U(-a, a) with a = 1 / sqrt(inputs): how the last layer starts, which no ReLU follows."""


class Classifier(nn.Module):
    """A network from images to one number per class, before the softmax.

    forward:  (N, H, W, in_channels) -> logits (N, classes)
    stages:   (N, H, W, in_channels) -> {name: map (N, h, w, channels)}, shallow to deep

    in_channels     of the image
    classes         that it tells apart, or None for a trunk without fully connected layers
    stage_channels  channels of each map that `stages` returns
    stage_strides   pixels of the image from one pixel of the map to the next
    pooled_side     s: the last map is averaged to s x s pixels, which the first fully connected layer sees
    smallest_side   the least height and width of an image
    """

    in_channels: int
    classes: int | None
    stage_channels: dict[str, int]
    stage_strides: dict[str, int]
    pooled_side: int = 1
    smallest_side: int = 1
    last_stage: str
    heads: tuple[str, ...] = ("classifier",)  # the attributes that are None without classes

    def stages(self, x: Input) -> dict[str, Tensor]:
        raise NotImplementedError

    def fully_connected(self) -> list[nn.Module]:
        """The layers behind the last map, in their order."""
        return list(getattr(self, self.heads[0]))

    def forward(self, x: Input) -> Tensor:
        if self.classes is None:
            raise ValueError(
                f"{type(self).__name__} was made with classes=None: it has stages, but no fully connected layers "
                "to call; use .stages(x), or give it a number of classes"
            )
        return self.classify(self.stages(x)[self.last_stage])

    def classify(self, x: Tensor) -> Tensor:
        """From the last map to logits."""
        # With as many pixels as asked for, the mean is of one pixel each, and is left out.
        if x.shape[1:3] != (self.pooled_side, self.pooled_side):
            x = F.global_avg_pool2d(x) if self.pooled_side == 1 else F.adaptive_avg_pool2d(x, self.pooled_side)
        x = F.reshape(x, (x.shape[0], -1))
        for layer in self.fully_connected():
            x = layer(x)
        return x

    def trunk(self) -> "Classifier":
        """A copy without fully connected layers."""
        trunk = copy.copy(self)
        trunk.classes = None
        for head in self.heads:
            setattr(trunk, head, None)
        return copy.deepcopy(trunk)

    def check_image(self, x: Input) -> None:
        """Raises ValueError where an image has the wrong axes or channels, or is too small."""
        name = type(self).__name__
        if len(x.shape) != 4 or x.shape[3] != self.in_channels:
            raise ValueError(
                f"{name}: images must have the shape (N, H, W, {self.in_channels}), got {tuple(x.shape)}; "
                "the number of channels is set with in_channels"
            )
        if min(x.shape[1:3]) < self.smallest_side:
            raise ValueError(
                f"{name}: an image of {x.shape[1]} x {x.shape[2]} pixels is too small, nothing would be left of "
                f"its last map; it needs at least {self.smallest_side} x {self.smallest_side}"
            )


class ConvolutionalClassifier(nn.Module):
    """A classifier whose fully connected layers are convolutions. See `as_convolutions`.

    forward:  (N, H, W, in_channels) -> logits (N, h, w, classes)

    trunk   the classifier's stages
    scores  the convolutions that its fully connected layers became, with ReLUs and dropout between them
    """

    def __init__(self, trunk: Classifier, scores: nn.Sequential):
        self.trunk = trunk
        self.scores = scores

    def forward(self, x: Input) -> Tensor:
        last = self.trunk.stages(x)[self.trunk.last_stage]
        kernel = next(layer for layer in self.scores if isinstance(layer, nn.Conv2d))
        room = [length + 2 * kernel.options["padding"] for length in last.shape[1:3]]
        if min(room) < kernel.kernel[0]:
            raise ValueError(
                f"{type(self).__name__}: for an image of {x.shape[1]} x {x.shape[2]} pixels the last map has "
                f"{last.shape[1]} x {last.shape[2]}, less than the {kernel.kernel[0]} x {kernel.kernel[1]} kernel "
                "of the layer behind it; use a larger image, or as_convolutions(classifier, padding=...)"
            )
        return self.scores(last)


def as_convolutions(classifier: Classifier, *, padding: int = 0) -> ConvolutionalClassifier:
    """A network with the classifier's weights, copied, that answers at each place of an image of any size.

    On an image of the size that the classifier was made for, the map of scores is one pixel, the classifier's own
    answer (for one with global averaging, the mean of the map is). `padding` is that of the first convolution,
    whose kernel covers the classifier's whole last map: (kernel - 1) / 2 keeps the map's size.
    """
    if not isinstance(classifier, Classifier) or classifier.classes is None:
        raise TypeError(
            "as_convolutions: there are no fully connected layers to convert; pass a classifier made with a "
            "number of classes"
        )
    side, layers = classifier.pooled_side, []
    pixels = side**2 * classifier.stage_channels[classifier.last_stage]
    first = next((layer for layer in classifier.fully_connected() if isinstance(layer, nn.Linear)), None)
    if first is not None and first.weight.shape[0] != pixels:
        raise TypeError(
            f"as_convolutions: the first fully connected layer of {type(classifier).__name__} reads "
            f"{first.weight.shape[0]} numbers, and not the {pixels} of its last map's {side} x {side} pixels; "
            "what stands in between is no convolution"
        )
    for layer in classifier.fully_connected():
        if isinstance(layer, nn.Linear):
            first = not any(isinstance(earlier, nn.Conv2d) for earlier in layers)
            layers.append(_as_convolution(layer, side, padding if first else 0))
            side = 1
        else:
            layers.append(copy.deepcopy(layer))
    converted = ConvolutionalClassifier(classifier.trunk(), nn.Sequential(*layers))
    converted.train(classifier.training)
    return converted


def _as_convolution(layer: nn.Linear, side: int, padding: int) -> nn.Conv2d:
    inputs, outputs = layer.weight.shape
    has_bias = layer.bias is not None
    conv = nn.Conv2d(
        inputs // side**2,
        outputs,
        side,
        padding=padding,
        bias=has_bias,
        init=lambda shape, fans, rng: np.zeros(shape),
    )
    conv.weight = nn.Parameter(layer.weight.data.reshape(side, side, inputs // side**2, outputs).copy())
    conv.bias = nn.Parameter(layer.bias.data.copy()) if layer.bias is not None else None
    return conv


def up_to_each_pool(layers: nn.Sequential, x: Input, names: Iterable[str]) -> dict[str, Tensor]:
    """The map behind each max pooling, by the names given for them."""
    maps, remaining = {}, iter(names)
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            maps[next(remaining)] = x
    return maps


def scaled(channels: int, width: float, *, multiple: int = 1) -> int:
    """`channels` times `width`, rounded to a multiple of `multiple` that is not 0."""
    return max(1, round(channels * width / multiple)) * multiple


def check_settings(model: str, *, in_channels: int, classes: int | None, width: float) -> None:
    """The settings that all backbones share."""
    if in_channels < 1:
        raise ValueError(f"{model}: in_channels must be at least 1, got {in_channels}")
    if classes is not None and classes < 1:
        raise ValueError(f"{model}: classes must be at least 1, or None for a trunk alone, got {classes}")
    if not width > 0:
        raise ValueError(f"{model}: width must be positive, got {width}; 1 is the paper's, 0.25 a quarter of it")


def check_choice(model: str, setting: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        listing = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{model}: {setting} must be one of {listing}; got {value!r}")
