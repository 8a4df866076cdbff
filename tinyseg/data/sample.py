"""What a data set gives: images with their masks.

An image is an array (H, W, C): uint8 with values 0..255 as it was read, or float32 with values 0..1. A mask is an
integer array (H, W) that holds the class of every pixel; the value `ignore_label`, where a data set has one,
marks the pixels that neither the loss nor a score counts. A mask is never converted to floating point, at no
place of this package: a class number that was interpolated is a wrong class number.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple, Protocol

import numpy as np


class DataError(ValueError):
    """A data set is not as it should be. The message names the file and says what to do about it."""


class Sample(NamedTuple):
    """One image, with what is known about it."""

    image: np.ndarray  # uint8 0..255 or float32 0..1, H W C
    mask: np.ndarray | None = None  # integers, H W
    weights: np.ndarray | None = None  # float32 H W: how much each pixel counts in the loss
    name: str = ""


class Dataset(Protocol):
    """What the loader, the trainer and the checks ask of a data set. Any class with these members will do."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; a class's place is its label."""
        ...

    @property
    def ignore_label(self) -> int | None:
        """The label of pixels that do not count."""
        ...

    @property
    def palette(self) -> np.ndarray:
        """A colour for each class to draw masks with, uint8 (number of classes, 3)."""
        ...

    @property
    def channels(self) -> int:
        """Of the images: 1 (grey) or 3 (RGB)."""
        ...

    @property
    def mean(self) -> np.ndarray:
        """Of the training images in 0..1, float32 (channels,)."""
        ...

    @property
    def std(self) -> np.ndarray:
        """Of the training images in 0..1, float32 (channels,)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def as_float(image: np.ndarray) -> np.ndarray:
    """The image as float32 with values 0..1: uint8 is divided by 255, floats stay as they are."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    return image.astype(np.float32, copy=False)


def voc_palette(count: int = 256) -> np.ndarray:
    """Pascal VOC's colours, uint8 (count, 3): easy to tell apart, and the same for every number of classes.

    The bits of the index are dealt to red, green and blue in turn, and fill each colour from its highest bit:
    1 = 0b001 is (128, 0, 0), 2 = 0b010 is (0, 128, 0), 8 = 0b001000 is (64, 0, 0).
    """
    index = np.arange(count)
    palette = np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (index >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


def per_channel(name: str, values: Iterable[float] | float, channels: int) -> np.ndarray:
    """A number for each channel of the image, float32 (channels,). One number stands for all of them."""
    array = np.atleast_1d(np.asarray(values, np.float32))
    if array.shape not in ((1,), (channels,)):
        raise DataError(
            f"{name} must be one number or one for each of the {channels} channels of the images, got {values!r}"
        )
    return np.broadcast_to(array, (channels,)).copy()


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the name probably meant, and all that there are."""
    known = sorted(known)
    guess = get_close_matches(word, known, n=1)
    hint = f"did you mean {guess[0]!r}? " if guess else ""
    return f"{hint}there are: {', '.join(known)}"


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images, RGB in 0..1: the usual choice for photographs of unknown statistics."""

IMAGENET_STD = (0.229, 0.224, 0.225)
