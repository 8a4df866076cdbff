"""Data sets that are pairs of files: an image and its mask."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinyseg.data import files
from tinyseg.data.sample import DataError, Sample, per_channel, voc_palette


class Pair(NamedTuple):
    """Where a sample lies on disk."""

    name: str
    image: Path
    mask: Path | None  # None: no mask, only to predict
    page: int = 0  # of a TIFF volume


class FilePairs:
    """A data set of image and mask files, read when they are asked for.

    pairs         the files, in the order of the samples
    classes       the names of the classes; a class's place is its label
    ignore_label  the label of the pixels that do not count, or None
    labels        which label each value in the mask files stands for, where they differ: {0: 0, 255: 1}
    colours       the colour (R, G, B) of each class, for masks that are stored as colours
    strict        whether missing files are an error at once; without, they are left out and `problems` lists
                  them, which is what a check of the data wants
    """

    def __init__(
        self,
        title: str,
        pairs: Iterable[Pair],
        *,
        classes: Sequence[str],
        ignore_label: int | None,
        labels: Mapping[int, int] | None = None,
        colours: Sequence[Sequence[int]] | None = None,
        palette: Sequence[Sequence[int]] | np.ndarray | None = None,
        channels: int = 3,
        mean: Sequence[float] | float = 0.5,
        std: Sequence[float] | float = 0.25,
        strict: bool = True,
        problems: Sequence[str] = (),
    ):
        self.title = title
        self.classes = tuple(classes)
        self.ignore_label = ignore_label
        self.palette = voc_palette(len(self.classes)) if palette is None else np.asarray(palette, np.uint8)
        self.channels = channels
        self.mean = per_channel("mean", mean, channels)
        self.std = per_channel("std", std, channels)
        self.colours = colours
        self.labels = dict(labels) if labels is not None else {label: label for label in range(len(self.classes))}
        if labels is None and ignore_label is not None:
            self.labels[ignore_label] = ignore_label
        self._table = _lookup_table(self.labels)
        if self.palette.shape != (len(self.classes), 3):
            raise DataError(f"{title}: {len(self.classes)} classes need as many colours, got {len(self.palette)}")

        self.pairs, missing = _existing(pairs)
        self.problems = (*problems, *missing)
        if strict and self.problems:
            raise DataError(_listing(f"{title}: {len(self.problems)} problems with the files", self.problems))
        if strict and not self.pairs:
            raise DataError(f"{title}: there are no images")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = files.read_image(pair.image, self.channels, pair.page)
        if pair.mask is None:
            return Sample(image, name=pair.name)
        stored = files.read_mask(pair.mask, colours=self.colours, page=pair.page)
        if stored.shape != image.shape[:2]:
            raise DataError(size_mismatch(pair, image.shape[:2], stored.shape))
        unknown = self.unknown_values(stored)
        if unknown:
            raise DataError(f"{pair.mask}: {self.explain_unknown(unknown)}")
        return Sample(image, self.to_labels(stored), name=pair.name)

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self)} images, {len(self.classes)} classes>"

    def unknown_values(self, stored: np.ndarray) -> dict[int, int]:
        """The values of a mask as stored that stand for no class, each with its number of pixels."""
        return {value: count for value, count in value_counts(stored).items() if value not in self.labels}

    def to_labels(self, stored: np.ndarray) -> np.ndarray:
        """The labels for a mask as stored, of which all values are known."""
        return self._table[stored]

    def explain_unknown(self, unknown: Mapping[int, int | None]) -> str:
        """What is wrong with a mask that holds these values, each with its number of pixels, and what to do."""
        parts = [f"{value}" if count is None else f"{value} ({count} pixels)" for value, count in unknown.items()]
        listing = ", ".join(parts[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        if self.colours is None and set(unknown) == {255} and len(self.classes) == 2:
            remedy = "a mask of 0 and 255 needs `values = [0, 255]`, which makes them the classes 0 and 1"
        else:
            remedy = f"add classes, name the ignore label (now {self.ignore_label}), or correct the mask"
        known = _ranges(self.labels)
        return f"the values {listing}{more} are none of the {len(self.classes)} classes (known: {known}); {remedy}"


def value_counts(mask: np.ndarray) -> dict[int, int]:
    """How many pixels have each of the values that occur in a mask."""
    if mask.dtype.itemsize > 2 or mask.dtype.kind == "i":
        values, counts = np.unique(mask, return_counts=True)
    else:
        counts = np.bincount(mask.reshape(-1))  # ten times as fast
        values = np.flatnonzero(counts)
        counts = counts[values]
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def size_mismatch(pair: Pair, image_size: Sequence[int], mask_size: Sequence[int]) -> str:
    """The message about an image and a mask of different size; sizes are (height, width)."""
    turned = tuple(image_size) == tuple(mask_size)[::-1]
    remedy = (
        "one of the two is turned by 90 degrees (an EXIF orientation that only some programs obey?)"
        if turned
        else "bring them to one size, the mask by nearest neighbour"
    )
    return (
        f"{pair.image} is {image_size[0]}x{image_size[1]} (height x width), but its mask {pair.mask} is "
        f"{mask_size[0]}x{mask_size[1]}; {remedy}"
    )


def _existing(pairs: Iterable[Pair]) -> tuple[tuple[Pair, ...], list[str]]:
    """The pairs whose files exist, and a sentence about each of the others."""
    present, missing = [], []
    for pair in pairs:
        if not pair.image.is_file():
            missing.append(f"{pair.image}: no such image, although {pair.name!r} is listed")
        elif pair.mask is not None and not pair.mask.is_file():
            missing.append(f"{pair.image}: has no mask, expected {pair.mask}")
        else:
            present.append(pair)
    return tuple(present), missing


def _lookup_table(labels: Mapping[int, int]) -> np.ndarray:
    """The label for every stored value, as an array to index with."""
    largest = max(labels.values())
    table = np.zeros(max(labels) + 1, np.uint8 if largest <= 255 else np.int32)
    for value, label in labels.items():
        table[value] = label
    return table


def _listing(heading: str, problems: Sequence[str], shown: int = 5) -> str:
    lines = [heading + ":", *(f"  {problem}" for problem in problems[:shown])]
    if len(problems) > shown:
        lines.append(f"  and {len(problems) - shown} more")
    return "\n".join(lines)


def _ranges(values: Iterable[int]) -> str:
    """Integers in short: 0..11, 255."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)
