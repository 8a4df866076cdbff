"""From an image to probabilities: whole, in tiles or in windows, and averaged over sizes and mirror images.

Tiles. The overlap-tile strategy (Ronneberger, Fischer & Brox 2015, figure 2): a network with unpadded convolutions
answers for the middle of its input. To answer for a whole image, the image is extended by mirroring, cut into
input tiles that overlap, and the answers are laid side by side. They fit without a seam: each pixel is computed
from the context that it would have in one huge tile.

A network that pads can be run the same way to bound the memory; its `margin` is then context that is computed and
thrown away, and the result differs from that of the whole image where the network sees farther than the margin.

Windows. A network that was trained on crops may answer best for images of their size. A window of that size is
moved over the image by `stride`, and moved back at the end so that the last one ends with the image; where windows
overlap, a pixel's logits are the mean of those that it has in each. An image smaller than the window is extended
by zeros, the mean pixel, at the bottom and on the right.

Sizes and mirror images. The image is brought to several `scales` of its size, and with `flip` mirrored left to
right too. Each view's logits are brought back to the image's size, and mirrored back. Then

    average="probabilities"   the mean of the softmax of each view
    average="logits"          the mean of the logits, that is, the geometric mean of the probabilities
    average="maximum"         the largest of the logits, class by class

    network                     as published
    DeepLab v2, ResNet-101      scales 0.5, 0.75, 1, "maximum", in training too (its setting multi_scale)
    DeepLab v3, v3+             scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, flip, "probabilities"; output stride 8
    FastFCN                     the same scales, flip; windows as large as the crops, moved by 2/3 of that; the sum
                                of exp(logits of both mirror images, added up), for which "logits" comes nearest
    U-Net                       tiles; for the challenge the mean of 7 rotations, which is not here

How sizes correspond depends on how a network enlarges its scores (`align_corners`): if the corner pixels of the
coarse map are those of the image, then they are those of the scaled image too, whose side is
(side - 1) * scale + 1.

Sources: Chen et al., "DeepLab", PAMI 2018, section 4.1.2; Chen et al., "Rethinking atrous convolution", 2017,
section 4.1; Wu et al., "FastFCN", 2019, and its code.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypedDict, Unpack

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.models.network import SegmentationNetwork
from tinyseg.tape import no_grad

Average = Literal["probabilities", "logits", "maximum"]

AVERAGES = ("probabilities", "logits", "maximum")


class Options(TypedDict, total=False):
    """The options of `predict_logits`, for functions that hand them on."""

    tile: int | None
    margin: int
    window: int | tuple[int, int] | None
    stride: int | None
    scales: Sequence[float]
    flip: bool
    average: Average


def predict_probabilities(network: SegmentationNetwork, image: Array, **options: Unpack[Options]) -> Array:
    """The probability of each class at each pixel, (H, W, classes): the softmax of `predict_logits`."""
    return ops.softmax(predict_logits(network, image, **options))[0]


def predict_logits(
    network: SegmentationNetwork,
    image: Array,
    *,
    tile: int | None = None,
    margin: int = 0,
    window: int | tuple[int, int] | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    average: Average = "probabilities",
) -> Array:
    """The logits of each class at each pixel, (H, W, classes), of one image (H, W, in_channels).

    tile     side of the square of pixels answered for at a time; None for the whole image
    margin   pixels of context around a tile, for networks with padding; the others know their own
    window   height and width, or the side, of what the network sees at a time; the answers are averaged
    stride   pixels from one window to the next; by default 2/3 of its shorter side
    scales   sizes of the image, as multiples of its own
    flip     also its mirror image
    average  of the views' answers: "probabilities", "logits" or "maximum"

    The image is normalised as in training. The network is used in evaluation mode, and left in its mode. Averaged
    probabilities come as their logarithms.
    """
    if image.ndim != 3 or image.shape[2] != network.in_channels:
        raise ValueError(
            f"predict_logits: the image must have shape (H, W, {network.in_channels}) for this network, "
            f"got {image.shape}"
        )
    check_options(network, tile=tile, margin=margin, window=window, stride=stride, scales=scales, average=average)

    def answer(view: Array) -> Array:
        if window is None:
            return _tiled(network, view, tile, margin)
        height, width = (window, window) if isinstance(window, int) else window
        return _windowed(network, view, (height, width), stride or math.ceil(2 * min(height, width) / 3))

    was_training = network.training
    network.eval()
    try:
        with no_grad():
            return _combined(list(scales), flip, average, image, answer, bool(network.align_corners))
    finally:
        network.train(was_training)


def check_options(
    network: SegmentationNetwork,
    *,
    tile: int | None = None,
    margin: int = 0,
    window: int | tuple[int, int] | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    average: str = "probabilities",
) -> None:
    """Raises ValueError for options that make no sense, or not with this network."""
    if tile is not None and tile < 1:
        raise ValueError(f"predict_logits: tile must be at least 1 pixel or None, got {tile}")
    if margin < 0:
        raise ValueError(f"predict_logits: margin must not be negative, got {margin}")
    sides = (window, window) if isinstance(window, int) else window
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"predict_logits: window must be a height and a width of at least 1 pixel, got {window}")
    if stride is not None and (sides is None or not 1 <= stride <= min(sides)):
        raise ValueError(
            "predict_logits: stride is that of a window, and between 1 pixel and the window's shorter side, "
            f"got stride {stride} and window {window}"
        )
    if sides is not None and tile is not None:
        raise ValueError("predict_logits: an image is cut into tiles or into windows, not both; leave one out")
    if sides is not None and network.context:
        raise ValueError(
            f"predict_logits: windows are for networks that answer for all of their input; "
            f"{type(network).__name__} needs {network.context} pixels on each side, use tile"
        )
    if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
        raise ValueError(f"predict_logits: scales must be one or more positive numbers, got {scales}")
    if average not in AVERAGES:
        raise ValueError(f"predict_logits: average must be one of {', '.join(AVERAGES)}; got {average!r}")


def scaled_side(side: int, scale: float, align_corners: bool) -> int:
    """The height or width of an image brought to `scale` times its size.

    >>> scaled_side(513, 0.5, align_corners=True), scaled_side(513, 0.5, align_corners=False)
    (257, 256)
    """
    if align_corners:
        return int((side - 1) * scale + 0.5) + 1
    return max(1, int(side * scale + 0.5))


# ---------------------------------------------------------------------------------------------- sizes and mirrors


def _combined(
    scales: list[float],
    flip: bool,
    average: str,
    image: Array,
    answer: Callable[[Array], Array],
    align_corners: bool,
) -> Array:
    """One answer from those for all views."""
    count = len(scales) * (1 + flip)
    views = _views(scales, flip, image, answer, align_corners)
    if count == 1:
        return next(views)
    values = (ops.softmax(logits)[0] for logits in views) if average == "probabilities" else views
    total = next(values).copy()
    if average == "maximum":
        for value in values:
            np.maximum(total, value, out=total)
        return total
    for value in values:
        total += value
    total /= total.dtype.type(count)
    if average == "logits":
        return total
    return np.log(np.maximum(total, np.finfo(total.dtype).tiny))


def _views(
    scales: list[float], flip: bool, image: Array, answer: Callable[[Array], Array], align_corners: bool
) -> Iterator[Array]:
    """The logits of each view, at the place and in the size of the image."""
    size = (image.shape[0], image.shape[1])
    for scale in scales:
        sides = (scaled_side(size[0], scale, align_corners), scaled_side(size[1], scale, align_corners))
        view = image if sides == size else _resized(image, sides, align_corners)
        for mirrored in (False, True)[: 1 + flip]:
            logits = answer(np.ascontiguousarray(view[:, ::-1]))[:, ::-1] if mirrored else answer(view)
            yield logits if sides == size else _resized(logits, size, align_corners)


def _resized(image: Array, size: tuple[int, int], align_corners: bool) -> Array:
    return ops.resize(np.ascontiguousarray(image)[None], size, align_corners=align_corners)[0][0]


# ---------------------------------------------------------------------------------------------- tiles and windows


def _tiled(network: SegmentationNetwork, image: Array, tile: int | None, margin: int) -> Array:
    height, width, _ = image.shape
    rows, columns = min(tile or height, height), min(tile or width, width)
    input_rows, input_columns = (network.input_side(side + 2 * margin) for side in (rows, columns))
    before = network.context + margin  # pixels of input above and left of the first pixel that is answered for
    # Mirrored so far that the last tile of each row and column is a full one.
    below = -height % rows + input_rows - rows - before
    beside = -width % columns + input_columns - columns - before
    sides = (before, below, before, beside)
    extended = ops.pad(image[None], sides, mode="reflect")[0] if any(sides) else image[None]

    logits = np.empty((height, width, network.classes), image.dtype)
    for h in range(0, height, rows):
        for v in range(0, width, columns):
            answer = _answer(network, extended[:, h : h + input_rows, v : v + input_columns])
            part = logits[h : h + rows, v : v + columns]
            part[...] = answer[margin : margin + part.shape[0], margin : margin + part.shape[1]]
    return logits


def _windowed(network: SegmentationNetwork, image: Array, window: tuple[int, int], stride: int) -> Array:
    height, width, _ = image.shape
    rows, columns = window
    below, beside = max(rows - height, 0), max(columns - width, 0)
    extended = np.pad(image, ((0, below), (0, beside), (0, 0)))
    logits = np.zeros((*extended.shape[:2], network.classes), image.dtype)
    seen = np.zeros((*extended.shape[:2], 1), image.dtype)
    for h in _starts(extended.shape[0], rows, stride):
        for v in _starts(extended.shape[1], columns, stride):
            place = (slice(h, h + rows), slice(v, v + columns))
            logits[place] += _answer(network, np.ascontiguousarray(extended[place])[None])
            seen[place] += 1
    return (logits / seen)[:height, :width]


def _answer(network: SegmentationNetwork, images: np.ndarray) -> np.ndarray:
    """The logits of a batch of one image. Images are put together on the CPU, wherever the network is."""
    return cuda.to_host(network(cuda.to_device(images) if network.on_gpu else images).data)[0]


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: at every multiple of the stride, and at the last place that there is."""
    last = side - window
    return [*range(0, last, stride), last]
