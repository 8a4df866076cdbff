"""Which parameters of a dense CRF suit a network? All combinations of a grid, on a validation set.

    grid = Grid(appearance_weight=(3, 5, 10), appearance_colour=(5, 10))
    found = search(network_cases(network, dataset, labels), grid, len(labels.classes), labels.ignore_label)
    found.best.parameters

The lattices of an image depend on the bandwidths alone: each is built once for each image and bandwidths, all
weights are tried on it, and one run of mean field gives the scores after every number of iterations that is asked
for. Predictions are counted in one confusion matrix for each setting, and in a second one for the band along true
boundaries, where a CRF gains or loses most. No prediction is kept: the memory is that of one image.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np

from tinyseg import crf, ops
from tinyseg.crf import LatticeFilter, Normalised, Parameters
from tinyseg.crf.filters import Normalisation
from tinyseg.data import Dataset
from tinyseg.data.sample import DataError
from tinyseg.metrics import ConfusionMatrix, boundary_pixels, distance_to
from tinyseg.models import SegmentationNetwork
from tinyseg.models.inference import Options, predict_logits
from tinyseg.train.checkpoint import Labels
from tinyseg.train.errors import UserError
from tinyseg.train.evaluation import normalised
from tinyseg.train.refinement import colours

# ------------------------------------------------------------------------------------------------ what is tried


@dataclass(frozen=True)
class Grid:
    """The values to try, of the parameters of `tinyseg.crf.Parameters`."""

    appearance_weight: Sequence[float] = (3.0, 5.0, 10.0)
    appearance_position: Sequence[float] = (20.0, 40.0, 80.0)
    appearance_colour: Sequence[float] = (4.0, 8.0, 13.0, 20.0)
    smoothness_weight: Sequence[float] = (3.0,)
    smoothness_position: Sequence[float] = (3.0,)
    iterations: Sequence[int] = (5,)
    normalisation: Normalisation = "symmetric"

    def __post_init__(self) -> None:
        for name in AXES:
            values = tuple(dict.fromkeys(getattr(self, name)))  # each once
            if not values:
                raise ValueError(f"Grid: {name} needs one value or more")
            object.__setattr__(self, name, values)
        for point in self.points():
            crf.parameters(point)

    def points(self) -> Iterator[Parameters]:
        """Every combination."""
        for values in itertools.product(*(getattr(self, name) for name in AXES)):
            yield Parameters(**dict(zip(AXES, values, strict=True)), normalisation=self.normalisation)

    def __len__(self) -> int:
        return int(np.prod([len(getattr(self, name)) for name in AXES]))


AXES = tuple(member.name for member in fields(Grid) if member.name != "normalisation")


class Case(NamedTuple):
    """One image with its truth and what a network says about it."""

    name: str
    image: np.ndarray  # uint8, H W C
    mask: np.ndarray  # H W
    probabilities: np.ndarray  # H W L


def network_cases(
    network: SegmentationNetwork,
    dataset: Dataset,
    labels: Labels,
    *,
    indices: Iterable[int] | None = None,
    **options: Unpack[Options],
) -> Iterator[Case]:
    """Images of a data set, predicted by a network one by one, with options of `predict_logits`."""
    for index in range(len(dataset)) if indices is None else indices:
        sample = dataset[index]
        if sample.mask is None:
            raise DataError(f"{sample.name}: has no mask, so there is nothing to compare with")
        logits = predict_logits(network, normalised(sample.image, labels), **options)
        yield Case(sample.name, colours(sample.image), sample.mask, ops.softmax(logits[None])[0][0])


def saved_cases(folder: Path, dataset: Dataset, *, indices: Iterable[int] | None = None) -> Iterator[Case]:
    """Images of a data set with the probabilities that another program saved: folder/NAME.npy.

    Each file holds floats (H, W, L): probabilities, or their logarithms, which float16 keeps better.
    """
    classes = len(dataset.classes)
    for index in range(len(dataset)) if indices is None else indices:
        sample = dataset[index]
        path = folder / f"{Path(sample.name).stem}.npy"
        if sample.mask is None:
            raise DataError(f"{sample.name}: has no mask, so there is nothing to compare with")
        try:
            scores = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"there is no file {path} for the image {sample.name}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as an array of NumPy: {error}") from error
        expected = (*sample.mask.shape, classes)
        if scores.shape != expected or scores.dtype.kind != "f" or not np.isfinite(scores).all():
            raise UserError(
                f"{path} must hold finite floats (height, width, classes) = {expected}, got {scores.dtype} "
                f"{scores.shape}"
            )
        scores = scores.astype(np.float32)
        if scores.max() > 1.001 or (scores.min() < 0 < scores.max()):
            raise UserError(
                f"{path} must hold probabilities, 0 to 1, or their logarithms, 0 or less; its values lie between "
                f"{scores.min():.4g} and {scores.max():.4g}"
            )
        probabilities = np.exp(scores) if scores.min() < 0 else scores
        yield Case(sample.name, colours(sample.image), sample.mask, probabilities)


# ------------------------------------------------------------------------------------------------- what is found


@dataclass
class Setting:
    """What one combination of parameters achieves, or none (parameters None): the network alone."""

    parameters: Parameters | None
    confusion: ConfusionMatrix  # all pixels
    band: ConfusionMatrix  # those near true boundaries

    @property
    def mean_iou(self) -> float:
        return self.confusion.mean_iou

    @property
    def band_iou(self) -> float:
        return self.band.mean_iou


@dataclass
class Found:
    """The result of a search."""

    without: Setting
    settings: list[Setting]
    band_width: float
    images: list[str] = field(default_factory=list)

    @property
    def best(self) -> Setting:
        """By mean IoU over all pixels."""
        return max(self.settings, key=lambda setting: _or_lowest(setting.mean_iou))

    @property
    def best_in_band(self) -> Setting:
        """By mean IoU over the pixels near boundaries."""
        return max(self.settings, key=lambda setting: _or_lowest(setting.band_iou))

    def at_edge(self, name: str) -> bool:
        """Is the best value of a parameter the smallest or the largest of those tried, of two or more?"""
        values = [getattr(setting.parameters, name) for setting in self.settings]
        best = getattr(self.best.parameters, name)
        return min(values) < max(values) and best in (min(values), max(values))

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, the settings from best to worst."""
        ranked = sorted(self.settings, key=lambda setting: -_or_lowest(setting.mean_iou))
        return {
            "images": len(self.images),
            "band_width": self.band_width,
            "without": _row(self.without),
            "best": _row(self.best),
            "best_in_band": _row(self.best_in_band),
            "settings": [_row(setting) for setting in ranked],
        }


def _or_lowest(score: float) -> float:
    return score if score == score else -1.0


def _row(setting: Setting) -> dict[str, Any]:
    parameters = setting.parameters._asdict() if setting.parameters is not None else {}
    return parameters | {
        "mean_iou": setting.mean_iou,
        "pixel_accuracy": setting.confusion.pixel_accuracy,
        "band_mean_iou": setting.band_iou,
        "band_pixel_accuracy": setting.band.pixel_accuracy,
    }


# ----------------------------------------------------------------------------------------------------- the search


def search(
    cases: Iterable[Case],
    grid: Grid,
    classes: int,
    ignore_label: int | None = None,
    *,
    band_width: float = 3.0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    count: int | None = None,
) -> Found:
    """Score every setting of the grid on all cases.

    band_width  in pixels: the band holds the pixels no further from a true boundary (see `metrics.TrimapAccuracy`)
    progress    told (settings done, settings in all) over all images; `count` is the number of cases
    """

    def setting(parameters: Parameters | None) -> Setting:
        return Setting(parameters, ConfusionMatrix(classes, ignore_label), ConfusionMatrix(classes, ignore_label))

    found = Found(setting(None), [setting(point) for point in grid.points()], band_width)
    by_parameters = {entry.parameters: entry for entry in found.settings}
    total = len(grid) * (len(cases) if isinstance(cases, Sequence) else count or 0)
    done = 0
    for case in cases:
        found.images.append(case.name)
        band = distance_to(boundary_pixels(case.mask)) <= band_width
        _count(found.without, case.mask, band, case.probabilities)
        for parameters, q in _marginals(case, grid):
            _count(by_parameters[parameters], case.mask, band, q)
            done += 1
            progress(done, max(total, done))
    if not found.images:
        raise ValueError("search: there is no image to search on")
    return found


def _marginals(case: Case, grid: Grid) -> Iterator[tuple[Parameters, np.ndarray]]:
    """For every setting the marginals (H, W, L), which the next one overwrites."""
    height, width, labels = case.probabilities.shape
    unary = crf.unary_energies((height, width), case.probabilities)
    smoothness = {
        s_g: Normalised(LatticeFilter(crf.position_features(height, width, s_g)), grid.normalisation)
        for s_g in grid.smoothness_position
    }
    for s_a, s_b in itertools.product(grid.appearance_position, grid.appearance_colour):
        features = crf.bilateral_features(case.image, s_a, s_b)
        appearance = Normalised(LatticeFilter(features), grid.normalisation)
        weights = itertools.product(grid.smoothness_position, grid.appearance_weight, grid.smoothness_weight)
        for s_g, w1, w2 in weights:
            filters = [smoothness[s_g], appearance]
            steps = crf.iterate(unary, [crf.potts(w2), crf.potts(w1)], filters, max(grid.iterations))
            for iterations, q in enumerate(steps):
                if iterations in grid.iterations:
                    point = Parameters(w1, s_a, s_b, w2, s_g, iterations, grid.normalisation)
                    yield point, q.reshape(height, width, labels)


def _count(setting: Setting, mask: np.ndarray, band: np.ndarray, scores: np.ndarray) -> None:
    labels = scores.argmax(axis=-1)
    setting.confusion.update(mask, labels)
    setting.band.update(mask[band], labels[band])
