"""Looking a data set over before training on it: what it holds, and what is wrong, file by file.

Many trainings fail here, and in silence: with masks of 0 and 255 of which the 255 is ignored, with masks that were
scaled with smoothing, with a class that occurs nowhere, a network learns nothing and no program stops.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair, size_mismatch, value_counts
from tinyseg.data.sample import DataError, Dataset


class Problem(NamedTuple):
    """Something that is wrong, and the files that have it; no files where it concerns the whole set."""

    what: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return self.what
        shown = ", ".join(self.files[:3])
        more = f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        return f"{shown}{more}: {self.what}"


@dataclass(frozen=True)
class Report:
    """What a look at all samples of a data set has found. Pixels are those of readable masks."""

    title: str
    samples: int
    classes: tuple[str, ...]
    ignore_label: int | None
    pixels: np.ndarray  # of each class, int64 (classes,)
    images: np.ndarray  # in which each class occurs, int64 (classes,)
    pixels_beside: np.ndarray  # of all images in which a class occurs, ignored ones left out, int64 (classes,)
    ignored: int  # pixels with the ignore label
    sizes: Mapping[tuple[int, int], int]  # (height, width): number of images
    mean: np.ndarray  # of the images in 0..1, (channels,)
    std: np.ndarray
    problems: tuple[Problem, ...]

    @property
    def share(self) -> np.ndarray:
        """The part of all labelled and ignored pixels that each class has, (classes,)."""
        return self.pixels / max(self.pixels.sum() + self.ignored, 1)

    @property
    def median_frequency_weights(self) -> np.ndarray:
        """Class weights that balance the loss: median frequency / frequency, and 0 for absent classes.

        The frequency of a class is its pixels divided by the pixels of all images in which it occurs (Eigen &
        Fergus, "Predicting depth, surface normals and semantic labels", ICCV 2015).
        """
        present = self.pixels > 0
        frequency = self.pixels[present] / self.pixels_beside[present]
        weights = np.zeros(len(self.pixels))
        if present.any():
            weights[present] = np.median(frequency) / frequency
        return weights

    def __str__(self) -> str:
        width = max(map(len, (*self.classes, "ignored")))
        sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in Counter(self.sizes).most_common(5))
        if len(self.sizes) > 5:
            sizes += f" and {len(self.sizes) - 5} more"
        lines = [
            f"{self.title}: {self.samples} {'image' if self.samples == 1 else 'images'}",
            f"height x width: {sizes or 'none'}",
            f"mean {_numbers(self.mean)}   standard deviation {_numbers(self.std)}",
            "",
            f"{'label':>5}  {'class':<{width}}  {'pixels':>13}  {'share':>7}  {'images':>6}",
        ]
        for label, name in enumerate(self.classes):
            lines.append(
                f"{label:>5}  {name:<{width}}  {self.pixels[label]:>13,}  {self.share[label]:>7.2%}  "
                f"{self.images[label]:>6}"
            )
        if self.ignore_label is not None:
            share = self.ignored / max(self.pixels.sum() + self.ignored, 1)
            lines.append(f"{self.ignore_label:>5}  {'ignored':<{width}}  {self.ignored:>13,}  {share:>7.2%}")
        lines.append("")
        if self.problems:
            lines.append(f"{len(self.problems)} {'problem' if len(self.problems) == 1 else 'problems'}:")
            lines += [f"  - {problem}" for problem in self.problems]
        else:
            lines.append("no problems found")
        return "\n".join(lines)


def examine(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every sample of a data set, count, and collect what is wrong.

    A data set of files may be opened with `strict=False` first; missing files are then problems in the report.
    `progress` is called with (samples done, samples in all).
    """
    look = _Look(dataset)
    for index in range(len(dataset)):
        if isinstance(dataset, FilePairs):
            look.at_files(dataset, dataset.pairs[index])
        else:
            look.at_sample(index)
        if progress is not None:
            progress(index + 1, len(dataset))
    return look.report()


class _Look:
    """The counts while the samples are gone through."""

    def __init__(self, dataset: Dataset):
        count = len(dataset.classes)
        self.dataset = dataset
        self.pixels = np.zeros(count, np.int64)
        self.images = np.zeros(count, np.int64)
        self.pixels_beside = np.zeros(count, np.int64)
        self.ignored = 0
        self.masks = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.values: Counter[tuple[int, ...]] = Counter()  # which values masks hold, as stored
        self.moments = np.zeros((3, dataset.channels))  # number, sum and sum of squares
        self.found: defaultdict[str, list[str]] = defaultdict(list)  # problem: files

    def at_files(self, dataset: FilePairs, pair: Pair) -> None:
        page = f" (page {pair.page})" if pair.page else ""
        image = stored = None
        try:
            image = files.read_image(pair.image, dataset.channels, pair.page)
            self.count_image(image)
        except DataError as error:
            self.note(str(pair.image) + page, error)
        if pair.mask is None:
            return
        name = str(pair.mask) + page
        try:
            stored = files.read_mask(pair.mask, colours=dataset.colours, page=pair.page)
        except DataError as error:
            self.note(name, error)
            return
        if image is not None and image.shape[:2] != stored.shape:
            self.found[size_mismatch(pair, image.shape[:2], stored.shape)] = []
        unknown = dataset.unknown_values(stored)
        self.values[tuple(value_counts(stored))] += 1
        if unknown:
            self.found[_explain_unknown(dataset, unknown)].append(name)
            stored = stored[np.isin(stored, list(dataset.labels))]
        self.count_labels(name, dataset.to_labels(stored))

    def at_sample(self, index: int) -> None:
        try:
            sample = self.dataset[index]
        except Exception as error:
            self.note(f"sample {index}", error)
            return
        name = sample.name or f"sample {index}"
        self.count_image(sample.image)
        if sample.mask is None:
            return
        if sample.mask.shape != sample.image.shape[:2]:
            self.found["image and mask differ in size"].append(name)
        known = list(range(len(self.dataset.classes)))
        if self.dataset.ignore_label is not None:
            known.append(self.dataset.ignore_label)
        counted = np.isin(sample.mask, known)
        if not counted.all():
            strange = ", ".join(map(str, np.unique(sample.mask[~counted])[:8]))
            self.found[f"the labels {strange} are none of the {len(self.dataset.classes)} classes"].append(name)
        self.count_labels(name, sample.mask[counted])

    def count_image(self, image: np.ndarray) -> None:
        self.sizes[image.shape[:2]] += 1
        for channel, plane in enumerate(np.moveaxis(image, 2, 0)):
            if image.dtype == np.uint8:  # by way of a histogram, which is faster
                values, counts = np.arange(256) / 255, np.bincount(plane.reshape(-1), minlength=256)
            else:
                values, counts = plane.astype(np.float64), np.ones(plane.shape)
            self.moments[:, channel] += counts.sum(), (counts * values).sum(), (counts * values**2).sum()

    def count_labels(self, name: str, labels: np.ndarray) -> None:
        counts = np.zeros(len(self.pixels), np.int64)
        ignored = 0
        for label, count in value_counts(labels).items():
            if label == self.dataset.ignore_label:
                ignored = count
            else:
                counts[label] = count
        self.masks += 1
        self.pixels += counts
        self.images += counts > 0
        self.pixels_beside += np.where(counts > 0, counts.sum(), 0)
        self.ignored += ignored
        if ignored and not counts.any():
            self.found["every pixel of the mask is ignored, so nothing can be learned from it"].append(name)

    def note(self, name: str, error: Exception) -> None:
        """Keep an error under its words without the file's name, so that equal errors come together."""
        path = name.partition(" (page")[0]
        self.found[str(error).removeprefix(f"{path}: ")].append(name)

    def report(self) -> Report:
        dataset = self.dataset
        number, total, squares = self.moments
        mean = total / np.maximum(number, 1)
        return Report(
            title=getattr(dataset, "title", None)
            or f"{type(dataset).__name__} {getattr(dataset, 'split', '')}".strip(),
            samples=len(dataset),
            classes=tuple(dataset.classes),
            ignore_label=dataset.ignore_label,
            pixels=self.pixels,
            images=self.images,
            pixels_beside=self.pixels_beside,
            ignored=self.ignored,
            sizes=dict(self.sizes),
            mean=mean,
            std=np.sqrt(np.maximum(squares / np.maximum(number, 1) - mean**2, 0)),
            problems=self.problems(),
        )

    def problems(self) -> tuple[Problem, ...]:
        dataset = self.dataset
        problems = [Problem(what) for what in getattr(dataset, "problems", ())]
        if len(dataset) == 0:
            problems.append(Problem("there are no samples"))
        problems += [Problem(what, tuple(names)) for what, names in self.found.items()]
        values = set().union(*self.values)
        binary = values == {0, 255} and dataset.ignore_label == 255
        if binary:
            problems.append(
                Problem(
                    "the masks hold 0 and 255 alone, and 255 is ignored here; if these are two classes, give "
                    "values = [0, 255], which makes them the classes 0 and 1"
                )
            )
        absent = [name for name, count in zip(dataset.classes, self.pixels, strict=True) if count == 0]
        if absent and self.masks:
            listing = ", ".join(absent)
            problems.append(
                Problem(f"{len(absent)} of {len(dataset.classes)} classes occur in no mask: {listing}")
            )
        return tuple(problems)


def _explain_unknown(dataset: FilePairs, unknown: Mapping[int, int]) -> str:
    """As the data set itself puts it, without the counts, so that masks with the same values come together."""
    if len(unknown) > 16:
        return (
            f"more than 16 values are none of the {len(dataset.classes)} classes: this is a photograph, a map of "
            "depths or instances, or a mask that was scaled with smoothing or saved with losses"
        )
    return dataset.explain_unknown(dict.fromkeys(unknown))


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values)
