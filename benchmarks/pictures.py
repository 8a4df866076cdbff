"""The README's pictures, from finished runs of `tinyseg train` and `tinyseg train isbi --data FOLDER`.

python -m benchmarks.pictures runs/shapes runs/isbi
"""

import sys
from pathlib import Path

import numpy as np

from tinyseg import viz
from tinyseg.models.inference import predict_probabilities
from tinyseg.train import build
from tinyseg.train.prediction import load

FIGURES = Path(__file__).parents[1] / "lessons" / "figures"


def shapes(run: str, count: int = 8) -> None:
    """Three rows of small pictures: what the network sees, what is true, and what it answers."""
    network, checkpoint = load(run, "best")
    dataset = build.open_dataset(checkpoint.config, "val")
    columns = []
    for index in range(count):
        sample = dataset[index]
        answer = _answer(network, dataset, sample.image)
        rows = [sample.image, viz.colourise(sample.mask, dataset.palette), viz.colourise(answer, dataset.palette)]
        columns.append(np.concatenate([_framed(row) for row in rows]))
    picture = np.concatenate(columns, axis=1)
    viz.save(picture.repeat(2, axis=0).repeat(2, axis=1), FIGURES / "shapes.png")


def isbi(run: str, index: int = 0) -> None:
    """One held-out slice with truth, prediction and error."""
    network, checkpoint = load(run, "best")
    dataset = build.open_dataset(checkpoint.config, "val")
    sample = dataset[index]
    answer = _answer(network, dataset, sample.image)
    figure = viz.strip(
        [
            viz.rgb(sample.image),
            viz.colourise(sample.mask, dataset.palette),
            viz.colourise(answer, dataset.palette),
            viz.error_map(sample.mask, answer, sample.image),
        ],
        ["input", "truth", "prediction", f"error, {(answer != sample.mask).mean():.1%} of the pixels"],
    )
    viz.save(figure, FIGURES / "isbi.png")


def _answer(network, dataset, image: np.ndarray) -> np.ndarray:
    """The class of each pixel, (H, W)."""
    image = image.reshape(*image.shape[:2], dataset.channels).astype(np.float32) / 255
    normalised = ((image - dataset.mean) / dataset.std).astype(np.float32)
    return predict_probabilities(network, normalised).argmax(-1)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255)


if __name__ == "__main__":
    shapes(sys.argv[1])
    isbi(sys.argv[2])
