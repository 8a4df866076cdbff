"""What a dense CRF gains on real photographs whose masks were made worse in stated ways.

    python -m benchmarks.crf_gain --data FOLDER            measures and writes results/crf-gain.json
    python -m benchmarks.crf_gain --data FOLDER --pictures draws lessons/figures/crf.png and crf_iterations.png
    python -m benchmarks.table                             puts the table into the README

FOLDER is in Pascal VOC's layout. A network's answer is replaced by a true mask that a known process made worse, so
that one sees what the CRF repairs and what it does not. Every process yields probabilities (H, W, L) of the labels
that occur in the image. Where the mask is void, the nearest label stands in for the truth while the probabilities
are made; void pixels are never scored. A certainty c mixes probabilities with uniform ones: c p + (1 - c) / L.

    unharmed            the mask itself, c = 0.9: a CRF can only lose
    blur S              each label's map blurred with a Gaussian of S pixels, c = 0.9. The borders of large, smooth
                        shapes stay where they are; thin parts and corners go
    grid S              each label's share of cells of S x S pixels, c = 0.9, and between the cells' centres the
                        logarithms interpolated linearly: what a network of stride S could answer at best
    grid S, noise N     the same; before the interpolation, normal noise of standard deviation N on the logarithms
    pixel noise N       c = 0.6, and such noise on the logarithms of each pixel by itself
    displaced A         the mask pulled about by a smooth random field of standard deviation A pixels in each
                        direction (white noise blurred by 8 pixels), then blur 2: sure of itself and wrong
    flips P             in blocks of 4 x 4 pixels, at most 10 pixels from a border, the share P has another label
                        of the image, drawn evenly; c = 0.7
    all at once         displaced 4, then grid 8, noise 1 of the maps blurred by 8 pixels

Scored is the mean IoU over the classes of all test images together, over all pixels and over the band of 5 pixels
along true borders, as in `tinyseg.metrics.TrimapAccuracy`.

Images whose masks have void pixels are the test images: these masks have the band of doubt around objects that
VOC's annotators draw. The others (masks from elsewhere) serve to choose parameters: for each process by itself, of
a small grid the ones with the best mean IoU, as one would for a network. The test images take no part in that
choice.
"""

import argparse
import functools
import itertools
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinyseg
from benchmarks.harness import RESULTS
from tinyseg import crf, viz
from tinyseg.crf import pictures
from tinyseg.crf.dense import kernels
from tinyseg.data.sample import DataError, Sample
from tinyseg.data.voc import CLASSES, VOID, Voc
from tinyseg.metrics import ConfusionMatrix, boundary_pixels, distance_to

FIGURES = Path(__file__).parents[1] / "lessons" / "figures"

Array = np.ndarray
Degradation = Callable[[Array, int, np.random.Generator], Array]  # y (H, W), L, rng -> probabilities (H, W, L)

BAND = 5  # pixels
PRESETS = ("pydensecrf", "deeplab_v1", "deeplab_v2_resnet101")


# --------------------------------------------------------------------------------------------- how masks get worse


def maps(labels: Array, count: int) -> Array:
    """1 for the label that a pixel has, 0 for the others: (H, W, count)."""
    return np.eye(count)[labels]


def with_certainty(p: Array, certainty: float) -> Array:
    return certainty * p + (1 - certainty) / p.shape[2]


def blurred(p: Array, pixels: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(p, (pixels, pixels, 0), mode="nearest"))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True)


def coarse(p: Array, stride: int, noise: float, rng: np.random.Generator) -> Array:
    """Probabilities (H, W, L) as a network of this stride would give them, with noise on its logarithms."""
    from scipy.ndimage import zoom

    height, width, labels = p.shape
    below, right = -height % stride, -width % stride
    padded = np.pad(p, ((0, below), (0, right), (0, 0)), mode="edge")
    cells = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride, labels).mean(
        (1, 3)
    )
    logarithms = np.log(with_certainty(cells, 0.9)) + noise * rng.standard_normal(cells.shape)
    fine = np.asarray(zoom(logarithms, (stride, stride, 1), order=1, mode="nearest", grid_mode=True))
    return softmax(fine[:height, :width])


def displaced(labels: Array, pixels: float, rng: np.random.Generator) -> Array:
    """The mask with its borders pulled about."""
    from scipy.ndimage import gaussian_filter

    shift = gaussian_filter(rng.standard_normal((2, *labels.shape)), (0, 8, 8), mode="wrap")
    shift *= pixels / shift.std()
    y, x = np.rint(np.indices(labels.shape) + shift).astype(int)
    return labels[y.clip(0, labels.shape[0] - 1), x.clip(0, labels.shape[1] - 1)]


def flipped(labels: Array, count: int, share: float, rng: np.random.Generator) -> Array:
    """The mask with wrong blocks of 4 x 4 pixels along its borders."""
    block, reach = 4, 10
    height, width = labels.shape
    size = -(-height // block), -(-width // block)
    further = np.where(rng.random(size) < share, rng.integers(1, max(count, 2), size), 0)  # how many labels on
    further = further.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    near = distance_to(boundary_pixels(labels)) <= reach
    return np.where(near, (labels + further) % count, labels)


def noisy(p: Array, noise: float, rng: np.random.Generator) -> Array:
    """Noise on the logarithms of probabilities."""
    return softmax(np.log(p) + noise * rng.standard_normal(p.shape))


DEGRADATIONS: dict[str, Degradation] = {
    "unharmed": lambda y, n, rng: with_certainty(maps(y, n), 0.9),
    "blur 4": lambda y, n, rng: with_certainty(blurred(maps(y, n), 4), 0.9),
    "blur 16": lambda y, n, rng: with_certainty(blurred(maps(y, n), 16), 0.9),
    "grid 8": lambda y, n, rng: coarse(maps(y, n), 8, 0, rng),
    "grid 16": lambda y, n, rng: coarse(maps(y, n), 16, 0, rng),
    "grid 8, noise 2": lambda y, n, rng: coarse(maps(y, n), 8, 2, rng),
    "grid 16, noise 2": lambda y, n, rng: coarse(maps(y, n), 16, 2, rng),
    "pixel noise 2": lambda y, n, rng: noisy(with_certainty(maps(y, n), 0.6), 2, rng),
    "pixel noise 3": lambda y, n, rng: noisy(with_certainty(maps(y, n), 0.6), 3, rng),
    "displaced 3": lambda y, n, rng: with_certainty(blurred(maps(displaced(y, 3, rng), n), 2), 0.9),
    "displaced 6": lambda y, n, rng: with_certainty(blurred(maps(displaced(y, 6, rng), n), 2), 0.9),
    "flips 0.2": lambda y, n, rng: with_certainty(maps(flipped(y, n, 0.2, rng), n), 0.7),
    "flips 0.4": lambda y, n, rng: with_certainty(maps(flipped(y, n, 0.4, rng), n), 0.7),
    "all at once": lambda y, n, rng: coarse(blurred(maps(displaced(y, 4, rng), n), 8), 8, 1, rng),
}
"""From labels 0 ... n - 1, n and random numbers to probabilities."""


# -------------------------------------------------------------------------------------------------------- the runs


class Case(NamedTuple):
    """One photograph, and what was made of its mask."""

    name: str
    image: Array
    mask: Array  # VOC's labels
    band: Array  # bool (H, W): near a true border
    present: Array  # the labels that occur
    worse: dict[str, Array]  # for each degradation: probabilities (H, W, len(present))


def completed(mask: Array) -> Array:
    """The mask with the nearest label where it is void."""
    from scipy.ndimage import distance_transform_edt

    y, x = np.asarray(distance_transform_edt(mask == VOID, return_distances=False, return_indices=True))
    return mask[y, x]


def make_case(sample: Sample, seed: int, number: int) -> Case:
    """The degradations of the photograph with this number, all with random numbers of their own."""
    if sample.mask is None:
        raise SystemExit(f"{sample.name} has no mask")
    present, labels = np.unique(completed(sample.mask), return_inverse=True)
    labels = labels.reshape(sample.mask.shape)
    band = distance_to(boundary_pixels(sample.mask)) <= BAND
    worse = {
        name: degrade(labels, len(present), np.random.default_rng([seed, number, k])).astype(np.float32)
        for k, (name, degrade) in enumerate(DEGRADATIONS.items())
    }
    return Case(sample.name, sample.image, sample.mask, band, present, worse)


class Score:
    """Mean IoU over all pixels and over the band, of all images together and of each."""

    def __init__(self):
        self.whole, self.band = (ConfusionMatrix(len(CLASSES), VOID) for _ in range(2))
        self.each: list[float] = []

    def update(self, case: Case, prediction: Array) -> None:
        alone = ConfusionMatrix(len(CLASSES), VOID).update(case.mask, prediction)
        self.whole.merge(alone)
        self.band.update(case.mask[case.band], prediction[case.band])
        self.each.append(alone.mean_iou)

    def numbers(self) -> dict[str, Any]:
        return {
            "mean IoU": round(self.whole.mean_iou, 5),
            "band mean IoU": round(self.band.mean_iou, 5),
            "mean IoU of each image": [round(value, 5) for value in self.each],
        }


Scores = dict[tuple[str, Any], Score]  # for each degradation, and each Parameters or None: without CRF


def run(case: Case, wanted: Mapping[crf.Parameters, Sequence[str]], scores: Scores) -> None:
    """Refine the degraded masks of one photograph, with parameters for each, and add to the scores.

    Parameters that share their kernels follow each other, so that lattices are made once.
    """
    size = case.mask.shape

    def add(name: str, chosen: crf.Parameters | None, q: Array) -> None:
        prediction = case.present[q.argmax(axis=-1)].reshape(size)
        scores.setdefault((name, chosen), Score()).update(case, prediction)

    @functools.lru_cache(maxsize=1)
    def filters(chosen: crf.Parameters) -> list[crf.Normalised]:
        return [crf.Normalised(kernel, chosen.normalisation) for kernel in kernels(case.image, chosen)]

    for name, p in case.worse.items():
        add(name, None, p)
    for chosen, names in wanted.items():
        same_kernels = chosen._replace(appearance_weight=1.0, smoothness_weight=1.0, iterations=1)
        couplings = [crf.potts(chosen.smoothness_weight), crf.potts(chosen.appearance_weight)]
        for name in names:
            energies = crf.unary_energies(size, case.worse[name])
            add(name, chosen, crf.infer(energies, couplings, filters(same_kernels), chosen.iterations))


def grid() -> Iterator[crf.Parameters]:
    """What the search tries."""
    for position, colour, weight in itertools.product((30, 60), (4, 8), (4, 10)):
        yield crf.Parameters(weight, position, colour, 3, 3, 5, "symmetric")


def search(cases: Sequence[Case]) -> dict[str, crf.Parameters]:
    """For each degradation the parameters with the best mean IoU."""
    scores: Scores = {}
    tried = list(grid())
    for case in cases:
        run(case, {chosen: list(DEGRADATIONS) for chosen in tried}, scores)
        print(f"searched on {case.name}", flush=True)
    return {name: max(tried, key=lambda chosen: scores[name, chosen].whole.mean_iou) for name in DEGRADATIONS}


def measure(samples: Sequence[Sample], seed: int) -> dict[str, Any]:
    """The contents of results/crf-gain.json."""
    cases = [make_case(sample, seed, number) for number, sample in enumerate(samples)]
    tests = [case for case in cases if np.any(case.mask == VOID)]
    others = [case for case in cases if np.all(case.mask != VOID)]
    if not tests:
        raise SystemExit("no mask has void pixels, so there is no test image: see the head of this file")
    found = search(others) if others else {}
    wanted = {crf.PRESETS[preset]: list(DEGRADATIONS) for preset in PRESETS}
    for name, chosen in found.items():
        names = wanted.setdefault(chosen, [])
        if name not in names:
            names.append(name)
    scores: Scores = {}
    for case in tests:
        run(case, wanted, scores)
        print(f"tested on {case.name}", flush=True)
    rows = []
    for name in DEGRADATIONS:
        row: dict[str, Any] = {"name": name, "before": scores[name, None].numbers()}
        row["presets"] = {preset: scores[name, crf.PRESETS[preset]].numbers() for preset in PRESETS}
        if name in found:
            row["searched"] = {"parameters": found[name]._asdict(), **scores[name, found[name]].numbers()}
        rows.append(row)
    return {
        "made with": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tinyseg": tinyseg.__version__,
        },
        "seed": seed,
        "band": BAND,
        "test images": [case.name for case in tests],
        "search images": [case.name for case in others],
        "searched": [chosen._asdict() for chosen in grid()],
        "rows": rows,
    }


# -------------------------------------------------------------------------------------------------------- pictures

BRIGHT = ((204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66))
COLOURS = np.array([(0, 0, 0), *BRIGHT * 4], np.uint8)  # several of VOC's own vanish on a dark photograph


def draw(samples: Sequence[Sample], names: Sequence[str], degradation: str, preset: str, seed: int) -> None:
    """lessons/figures/crf.png: a row for each photograph. crf_iterations.png: the first of them step by step."""
    cases = {s.name: make_case(s, seed, number) for number, s in enumerate(samples) if s.name in names}
    if missing := [name for name in names if name not in cases]:
        raise SystemExit(f"there is no image {', '.join(missing)}")
    columns: list[list[Array]] = [[], [], [], []]
    wrong = np.zeros((2, 2))  # before and after: wrong and counted pixels
    for name in names:
        case = cases[name]
        p = case.worse[degradation]
        truth = _among(case.present, case.mask)
        results = [p.argmax(axis=2), crf.dense_crf(case.image, p, preset).argmax(axis=2)]
        for k, result in enumerate(results):
            wrong[k] += np.sum((result != truth) & (truth != VOID)), np.sum(truth != VOID)
        columns[0].append(viz.rgb(case.image))
        for column, mask in zip(columns[1:], (*results, truth), strict=True):
            column.append(viz.overlay(case.image, mask, COLOURS, alpha=0.7, ignore_label=VOID, hide=(0,)))
    before, after = wrong[:, 0] / wrong[:, 1]
    captions = ["photograph", f"made worse: {before:.1%} wrong", f"after the CRF: {after:.1%} wrong", "truth"]
    page = [_stacked(column) for column in columns]
    height = 2.0 * page[0].shape[0] / page[0].shape[1]
    viz.save(viz.strip(page, captions, height=height), FIGURES / "crf.png")

    case = cases[names[0]]
    figure = pictures.iterations(
        case.image,
        case.worse[degradation],
        preset,
        truth=_among(case.present, case.mask),
        ignore_label=VOID,
        classes=[CLASSES[label] for label in case.present],
        colours=COLOURS,
    )
    viz.save(figure, FIGURES / "crf_iterations.png")


def _among(present: Array, mask: Array) -> Array:
    """Which of the labels that occur each pixel has, or VOID."""
    return np.where(mask == VOID, VOID, np.searchsorted(present, mask))


def _stacked(rows: Sequence[Array]) -> Array:
    """Pictures of the same width below each other, with white between them."""
    space = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, space)][:-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crf_gain", description="What a dense CRF gains.")
    parser.add_argument("--data", required=True, help="a folder in Pascal VOC's layout")
    parser.add_argument("--split", default="trainval")
    parser.add_argument("--limit", type=int, default=20, help="take at most so many images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", action="store_true", help="draw, and measure nothing")
    parser.add_argument("--images", nargs="+", default=["2010_004994", "2008_002536"], help="for the pictures")
    parser.add_argument(
        "--degradation", default="all at once", choices=list(DEGRADATIONS), help="for the pictures"
    )
    parser.add_argument("--preset", default="deeplab_v1", choices=list(crf.PRESETS), help="for the pictures")
    options = parser.parse_args()
    try:
        dataset = Voc(options.data, options.split)
        samples = [dataset[index] for index in range(min(len(dataset), options.limit))]
    except DataError as error:
        raise SystemExit(str(error)) from None
    if options.pictures:
        draw(samples, options.images, options.degradation, options.preset, options.seed)
        return
    path = RESULTS / "crf-gain.json"
    path.write_text(json.dumps(measure(samples, options.seed), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
