"""From an image to probabilities: whole images, or overlapping tiles with mirrored borders.

The overlap-tile strategy (Ronneberger, Fischer & Brox 2015, figure 2): a network with unpadded convolutions
answers for the middle of its input. To answer for a whole image, the image is extended by mirroring, cut into
input tiles that overlap, and the answers are laid side by side. They fit without a seam: each pixel is computed
from the context that it would have in one huge tile.

A network that pads can be run the same way to bound the memory; its `margin` is then context that is computed and
thrown away, and the result differs from that of the whole image where the network sees farther than the margin.
"""

import numpy as np

from tinyseg import ops
from tinyseg.backend import Array
from tinyseg.models.network import SegmentationNetwork
from tinyseg.tape import no_grad


def predict_probabilities(
    network: SegmentationNetwork, image: Array, *, tile: int | None = None, margin: int = 0
) -> Array:
    """The probability of each class at each pixel, (H, W, classes), of one image (H, W, in_channels).

    tile    side of the square of pixels answered for at a time; None for the whole image
    margin  pixels of context around a tile, for networks with padding; the others know their own

    The image is normalised as in training. The network is used in evaluation mode, and left in its mode.
    """
    return ops.softmax(predict_logits(network, image, tile=tile, margin=margin))[0]


def predict_logits(
    network: SegmentationNetwork, image: Array, *, tile: int | None = None, margin: int = 0
) -> Array:
    """As `predict_probabilities`, before the softmax."""
    if image.ndim != 3 or image.shape[2] != network.in_channels:
        raise ValueError(
            f"predict_logits: the image must have shape (H, W, {network.in_channels}) for this network, "
            f"got {image.shape}"
        )
    if tile is not None and tile < 1:
        raise ValueError(f"predict_logits: tile must be at least 1 pixel or None, got {tile}")
    if margin < 0:
        raise ValueError(f"predict_logits: margin must not be negative, got {margin}")
    was_training = network.training
    network.eval()
    try:
        with no_grad():
            return _tiled(network, image, tile, margin)
    finally:
        network.train(was_training)


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
            answer = network(extended[:, h : h + input_rows, v : v + input_columns]).data[0]
            part = logits[h : h + rows, v : v + columns]
            part[...] = answer[margin : margin + part.shape[0], margin : margin + part.shape[1]]
    return logits
