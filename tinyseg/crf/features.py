"""What a Gaussian kernel compares: a vector of features for every pixel, divided by its bandwidths.

    position    f_i = (x_i / s, y_i / s)
    bilateral   f_i = (x_i / s, y_i / s, colour_i / c)          k(f_i, f_j) = exp(-|f_i - f_j|² / 2)

Positions are in pixels and colours in grey levels 0 to 255, as in the papers. Two pixels one bandwidth apart have
k = 0.61, three apart 0.01. Pixel (y, x) is point i = y W + x. Features are float32 arrays (N, d).
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array

_cuda = cuda.KernelFile(__file__)


def position_features(height: int, width: int, bandwidth: float | Sequence[float]) -> Array:
    """(H W, 2): x and y of each pixel over the bandwidth in pixels, one number or a pair (x, y).

    >>> position_features(1, 3, 2.0)[:, 0]
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if height < 1 or width < 1:
        raise ValueError(f"position_features: height and width must be 1 or more, got {height} and {width}")
    bandwidth_x, bandwidth_y = bandwidths("position_features", "bandwidth", bandwidth, 2)
    features = np.empty((height, width, 2), np.float32)
    features[:, :, 0] = np.arange(width, dtype=np.float32) / bandwidth_x
    features[:, :, 1] = (np.arange(height, dtype=np.float32) / bandwidth_y)[:, None]
    return features.reshape(-1, 2)


def bilateral_features(
    image: Array, position_bandwidth: float | Sequence[float], colour_bandwidth: float | Sequence[float]
) -> Array:
    """(H W, 2 + C): position and colour of each pixel of an image (H, W, C) or (H, W), with values 0 to 255.

    The position bandwidth is a number or a pair (x, y), the colour bandwidth a number or one for each channel. The
    features of an image on a GPU are there, too.
    """
    image = check_image("bilateral_features", image)
    height, width, channels = image.shape
    colour = bandwidths("bilateral_features", "colour_bandwidth", colour_bandwidth, channels)
    if cuda.on_gpu(image):
        position = bandwidths("bilateral_features", "position_bandwidth", position_bandwidth, 2)
        return features_on_device((height, width), np.concatenate([position, colour]), image)
    features = np.empty((height * width, 2 + channels), np.float32)
    features[:, :2] = position_features(height, width, position_bandwidth)
    features[:, 2:] = image.reshape(-1, channels).astype(np.float32) / colour
    return features


def features_on_device(size: tuple[int, int], bandwidths: Array, image: Array | None = None) -> Array:
    """x, y and the colours of an image on a GPU, over their bandwidths: (H W, d) in the type of these (d,)."""
    height, width = size
    d = len(bandwidths)
    colours = None if image is None else cuda.contiguous(image, bandwidths.dtype)
    features = cuda.empty((height * width, d), bandwidths.dtype)
    numbers = (height * width, width, d)
    arguments = (colours, cuda.constant(bandwidths), *numbers, features)
    _cuda.launch("make_features", *arguments, threads=height * width)
    return features


def visible_colours(images: Array, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
    """Normalised images (..., C) as bytes, the colours that the eye sees: 255 (x std + mean), on the same side.

    mean and std are those of the normalisation, a number or one for each channel.
    """
    if not cuda.on_gpu(images):
        visible = 255 * (images * np.asarray(std) + np.asarray(mean))
        return np.clip(np.rint(visible), 0, 255).astype(np.uint8)
    colours = cuda.empty(images.shape, np.dtype(np.uint8))
    channels = images.shape[-1]
    tables = (cuda.constant(np.full(channels, numbers, images.dtype)) for numbers in (mean, std))
    arguments = (cuda.contiguous(images), *tables, channels, colours, images.size)
    _cuda.launch("visible_colours", *arguments, threads=cuda.quads(images.size))
    return colours


def check_image(operator: str, image: Array) -> Array:
    """The image as an array (H, W, C) with finite values. On a GPU they are not looked at."""
    image = image if cuda.on_gpu(image) else np.asarray(image)
    if image.ndim == 2:
        image = image.reshape(*image.shape, 1)
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"{operator}: image must have shape (H, W, channels) or (H, W), got {image.shape}")
    if image.dtype.kind not in "uif":
        raise TypeError(f"{operator}: image must hold numbers, got {image.dtype}")
    if image.dtype.kind == "f" and not cuda.on_gpu(image):
        bad = ~np.isfinite(image)
        if bad.any():
            y, x, channel = np.argwhere(bad)[0]
            raise ValueError(
                f"{operator}: image is not finite in {int(bad.sum())} of {bad.size} values, "
                f"the first at row {y}, column {x}, channel {channel}"
            )
        if 0 < image.max() <= 1 and image.min() >= 0:
            raise ValueError(
                f"{operator}: image has colours between 0 and 1, but colour bandwidths are in grey levels 0 to "
                "255; pass 255 * image"
            )
    return image


def bandwidths(operator: str, name: str, value: float | Sequence[float] | Array, count: int) -> Array:
    """`count` positive float32 numbers from one number or from `count` of them."""
    try:
        values = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"{operator}: {name} must be a number or {count} numbers, got {value!r}") from None
    if values.shape not in ((), (count,)):
        raise ValueError(f"{operator}: {name} must be one number or {count}, got {values.size} of them: {value!r}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{operator}: {name} must be positive and finite, got {value!r}")
    return np.broadcast_to(values, (count,))
