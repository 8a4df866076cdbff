"""Time the dense CRF on a GPU against pydensecrf on one core:  python -m benchmarks.crf_gpu [IMAGE]

The model and the settings are those of `benchmarks.crf`: 500 x 375 pixels, 21 labels, 10 iterations. IMAGE is a
photograph; without one, a picture of textured areas is made up. Image and unary energies are on the GPU already,
as they are behind a network, and the marginals stay there. What is measured, each until the GPU has done it all:

    whole       from image and unary energies to marginals: lattices, normalisation, 10 iterations
    build       the lattices and their normalisation alone

Before anything is timed, labels must be those of the same program on the CPU in 0.999 of the pixels, and two runs
must give the same bits. pydensecrf runs here if it is installed. Otherwise its time is the one that
`results/crf.json` has for this setting, measured on another machine and photograph, and the row says so.

The goal is 100 times pydensecrf's speed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import crf as on_cpu
from benchmarks.crf import AGREEMENT, APPEARANCE_WEIGHT, ITERATIONS, SETTINGS, SMOOTHNESS_WEIGHT, Setting
from benchmarks.harness import RESULTS, timing
from tinyseg import crf, cuda
from tinyseg.backend import Array
from tinyseg.crf.features import features_on_device
from tinyseg.cuda import machine

GOAL = 100.0
ROUNDS = 30  # of the GPU, after some to warm up
ROUNDS_OF_PYDENSECRF = 3


class OnGpu:
    """The model on the GPU. It has the methods of the contenders in `benchmarks.crf`."""

    def __init__(self, image: np.ndarray, unary: np.ndarray, setting: Setting):
        self.image, self.unary, self.setting = cuda.to_device(image), cuda.to_device(unary), setting

    def build(self) -> list[crf.Normalised]:
        position = np.full(2, self.setting.smoothness, np.float32)
        smooth = features_on_device(self.image.shape[:2], position)
        similar = crf.bilateral_features(self.image, self.setting.position, self.setting.colour)
        return [crf.Normalised(crf.LatticeFilter(features)) for features in (smooth, similar)]

    def whole(self) -> Array:
        weights = [crf.potts(SMOOTHNESS_WEIGHT), crf.potts(APPEARANCE_WEIGHT)]
        return crf.infer(self.unary, weights, self.build(), ITERATIONS)


def picture(height: int = on_cpu.HEIGHT, width: int = on_cpu.WIDTH) -> np.ndarray:
    """Areas of few colours with waves and noise, (H, W, 3) uint8; it takes as many vertices as a photograph."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:height, :width]
    areas = (np.sin(x / 61) + np.cos(y / 47) + np.sin((x + y) / 83)) // 0.7
    colours = rng.uniform(40, 215, (16, 3))[areas.astype(int) % 16]
    waves = 45 * np.sin(x / 5)[:, :, None] * np.cos(y / 7)[:, :, None] * rng.uniform(0.5, 1, 3)
    noise = rng.normal(0, 6, colours.shape)
    return np.clip(colours + waves + noise, 0, 255).astype(np.uint8)


def rows(image: np.ndarray, unary: np.ndarray) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What each row is about, and what makes it."""
    for setting in SETTINGS:
        yield identity(setting), partial(measure, image, unary, setting)


def identity(setting: Setting) -> dict[str, Any]:
    return {"group": "crf", "name": f"dense CRF, {setting}", "precision": "float32"}


def measure(image: np.ndarray, unary: np.ndarray, setting: Setting, rounds: int = ROUNDS) -> dict[str, Any]:
    """The row of one setting."""
    ours = OnGpu(image, unary, setting)
    q = cuda.to_host(ours.whole())
    if q.tobytes() != cuda.to_host(ours.whole()).tobytes():
        raise AssertionError(f"{setting}: two runs differ")
    expected = on_cpu.Ours(image, unary, setting).whole()
    agreement = float(np.mean(q.argmax(axis=1) == expected.argmax(axis=1)))
    if agreement < AGREEMENT:
        raise AssertionError(f"{setting}: only {agreement:.5f} of the labels are those of the CPU")
    row: dict[str, Any] = identity(setting) | {
        "vertices": [kernel.kernel.vertices for kernel in ours.build()],  # type: ignore[attr-defined]
        "agreement": agreement,
        "mean difference": float(np.mean(abs(q - expected))),
    }
    row["build"] = asdict(timing(_milliseconds(lambda: ours.build()[-1].norm, rounds)))
    row["tinyseg"] = asdict(timing(_milliseconds(ours.whole, rounds)))
    row["pydensecrf"], row["pydensecrf measured"] = _pydensecrf(image, unary, setting)
    row["ratio"] = row["pydensecrf"]["median"] / row["tinyseg"]["median"]
    return row | {"goal": GOAL, "met": row["ratio"] >= GOAL}


def _milliseconds(function: Callable[[], Array], rounds: int) -> list[float]:
    """Of each call, until a part of its result has come to the host: the GPU is done with all of it then."""
    samples = []
    for _ in range(3 + rounds):
        start = time.perf_counter()
        cuda.to_host(function()[:1])
        samples.append(1e3 * (time.perf_counter() - start))
    return samples[3:]


def _pydensecrf(image: np.ndarray, unary: np.ndarray, setting: Setting) -> tuple[dict[str, Any], str]:
    """Its time for the whole, and where it was measured."""
    from tinyseg.crf import original

    try:
        original.load()
    except ImportError:
        for row in json.loads((RESULTS / "crf.json").read_text())["rows"]:
            if row["setting"] == str(setting) and row["image"] == "natural":
                return row["whole"]["pydensecrf"], "on another machine and photograph, see crf.json"
        raise
    theirs = on_cpu.Theirs(image, unary, setting)
    timings = on_cpu.alternate({"pydensecrf": theirs.whole}, ROUNDS_OF_PYDENSECRF)
    return timings["pydensecrf"], "here"


def line(row: dict[str, Any]) -> str:
    """What the screen says about a row."""
    ours, theirs = row["tinyseg"]["median"], row["pydensecrf"]["median"]
    missed = "" if row["met"] else f", MISSES {row['goal']:g}"
    return (
        f"{row['name']}: {ours:.2f} ms (lattices {row['build']['median']:.2f}), pydensecrf {theirs:.0f} ms "
        f"({row['pydensecrf measured']}), ratio {row['ratio']:.0f}{missed}"
    )


def main(arguments: list[str]) -> None:
    reason = machine.problem()
    if reason is not None:
        raise SystemExit(f"the benchmark needs a GPU: {reason}")
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_file()):
        raise SystemExit("the benchmark takes one photograph, or none: python -m benchmarks.crf_gpu [IMAGE]")
    image = on_cpu.photograph(Path(arguments[0]), noisy=False) if arguments else picture()
    for _, make in rows(image, on_cpu.energies()):
        print(line(make()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
