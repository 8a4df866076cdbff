"""Time the dense CRF against pydensecrf:  python -m benchmarks.crf IMAGE

500 x 375 pixels, 21 labels, 10 iterations, smoothness and appearance kernel with symmetric normalisation, at three
settings of the bandwidths, on the photograph IMAGE (scaled to that size) and on the same with strong noise. What
is measured, always for both packages, alternately, in one process:

    whole    from image and unary energies to marginals: lattices, normalisation, 10 iterations
    build    the lattices and their normalisation alone
    memory   the peak of a process of its own that does it once, and the part of it that came after the imports

pydensecrf runs on one thread, it has no other way; tinyseg on all it finds. Before anything is timed, both must
give the same label to 0.999 of the pixels. Takes three minutes. `python -m benchmarks.table` puts the result into
the README.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT, LABELS, ITERATIONS = 500, 375, 21, 10
SMOOTHNESS_WEIGHT, APPEARANCE_WEIGHT = 3.0, 4.0
NOISE = 20.0  # grey levels, standard deviation
ROUNDS = 5
AGREEMENT = 0.999  # of all labels


class Setting(NamedTuple):
    """Bandwidths: pixels, pixels, grey levels."""

    smoothness: float
    position: float
    colour: float

    def __str__(self) -> str:
        return "/".join(f"{value:g}" for value in self)


SETTINGS = (Setting(3, 80, 13), Setting(3, 49, 5), Setting(1, 67, 3))


def photograph(path: Path, noisy: bool) -> np.ndarray:
    """(375, 500, 3) uint8."""
    from PIL import Image

    image = np.array(Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    if noisy:
        noise = np.random.default_rng(0).normal(0, NOISE, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def energies() -> np.ndarray:
    """(N, 21) float32: blocks of 25 x 25 pixels that favour some labels, and noise in every pixel."""
    rng = np.random.default_rng(1)
    blocks = rng.normal(0, 2, (HEIGHT // 25, WIDTH // 25, LABELS)).repeat(25, axis=0).repeat(25, axis=1)
    logits = blocks + rng.normal(0, 1, blocks.shape)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return -np.log(probabilities.clip(1e-5)).astype(np.float32).reshape(-1, LABELS)


# ---------------------------------------------------------------------------------------------------- contenders


class Ours:
    def __init__(self, image: np.ndarray, unary: np.ndarray, setting: Setting):
        self.image, self.unary, self.setting = image, unary, setting

    def build(self) -> list:
        from tinyseg import crf

        height, width, _ = self.image.shape
        smooth = crf.position_features(height, width, self.setting.smoothness)
        similar = crf.bilateral_features(self.image, self.setting.position, self.setting.colour)
        return [crf.Normalised(crf.LatticeFilter(features)) for features in (smooth, similar)]

    def whole(self) -> np.ndarray:
        from tinyseg import crf

        weights = [crf.potts(SMOOTHNESS_WEIGHT), crf.potts(APPEARANCE_WEIGHT)]
        return crf.infer(self.unary, weights, self.build(), ITERATIONS)


class Theirs:
    def __init__(self, image: np.ndarray, unary: np.ndarray, setting: Setting):
        self.image, self.setting = image, setting
        self.unary = np.ascontiguousarray(unary.T)  # as pydensecrf wants it; not timed

    def build(self) -> Any:
        from tinyseg.crf import original

        height, width, _ = self.image.shape
        model = original.load().DenseCRF2D(width, height, LABELS)
        model.addPairwiseGaussian(sxy=self.setting.smoothness, compat=SMOOTHNESS_WEIGHT)
        model.addPairwiseBilateral(
            sxy=self.setting.position, srgb=self.setting.colour, rgbim=self.image, compat=APPEARANCE_WEIGHT
        )
        return model

    def whole(self) -> np.ndarray:
        model = self.build()
        model.setUnaryEnergy(self.unary)
        return np.array(model.inference(ITERATIONS)).T


CONTENDERS = {"tinyseg": Ours, "pydensecrf": Theirs}


# ---------------------------------------------------------------------------------------------------- measuring


def measure(path: Path, noisy: bool, setting: Setting, rounds: int = ROUNDS) -> dict[str, Any]:
    """The row of one image and setting."""
    image, unary = photograph(path, noisy), energies()
    contenders = {name: make(image, unary, setting) for name, make in CONTENDERS.items()}
    q = {name: contender.whole() for name, contender in contenders.items()}  # compiles, too
    agreement = float(np.mean(q["tinyseg"].argmax(axis=1) == q["pydensecrf"].argmax(axis=1)))
    if agreement < AGREEMENT:
        raise AssertionError(f"{setting}: only {agreement:.5f} of the labels agree")
    row: dict[str, Any] = {
        "image": "noisy" if noisy else "natural",
        "setting": str(setting),
        "vertices": [f.kernel.vertices for f in contenders["tinyseg"].build()],
        "agreement": agreement,
        "mean difference": float(np.mean(abs(q["tinyseg"] - q["pydensecrf"]))),
    }
    for what in ("build", "whole"):
        timings = alternate({name: getattr(contender, what) for name, contender in contenders.items()}, rounds)
        ratio = timings["pydensecrf"]["median"] / timings["tinyseg"]["median"]
        row[what] = timings | {"ratio": round(ratio, 2)}
    row["peak memory MB"] = {name: peak_memory(name, path, noisy, setting) for name in CONTENDERS}
    return row


def alternate(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds. One call at a time: these take long enough, unlike those of `harness.alternate`."""
    from benchmarks import harness

    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            time.sleep(0.05)
            start = time.perf_counter()
            function()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: asdict(harness.timing(sample)) for name, sample in samples.items()}


def peak_memory(who: str, path: Path, noisy: bool, setting: Setting) -> dict[str, int]:
    """Of a process of its own, in MB (Linux): the whole of it, and what came after the imports."""
    arguments = [who, str(path), str(int(noisy)), *map(str, setting)]
    command = [sys.executable, "-m", "benchmarks.crf", "--memory", *arguments]
    ordinary = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=ordinary).stdout.split()
    return {"all": int(output[0]), "after imports": int(output[1])}


def _print_peak_memory(who: str, path: str, noisy: str, *bandwidths: str) -> None:
    image, unary = photograph(Path(path), noisy == "1"), energies()
    setting = Setting(*map(float, bandwidths))
    contender = CONTENDERS[who](image, unary, setting)
    small = CONTENDERS[who](image, unary, Setting(50, 500, 500))
    small.build()  # imports everything, and loads the compiled kernels
    before = _status("VmRSS")
    contender.whole()
    peak = _status("VmHWM")
    print(peak, peak - before)


def _status(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) // 1024


def summary(rows: list[dict[str, Any]]) -> str:
    ratios = [row["whole"]["ratio"] for row in rows]
    return f"{min(ratios):.2f} times as fast at least, {statistics.median(ratios):.2f} times in the median"


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--memory"]:
        _print_peak_memory(*arguments[1:])
        return
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        raise SystemExit("the benchmark needs a photograph: python -m benchmarks.crf IMAGE")
    from benchmarks import harness
    from tinyseg.crf import original

    harness.keep_memory()
    original.load()
    rows = []
    for noisy in (False, True):
        for setting in SETTINGS:
            row = measure(Path(arguments[0]), noisy, setting)
            rows.append(row)
            ours, theirs = (row["whole"][who]["median"] for who in CONTENDERS)
            print(f"{row['image']:8} {row['setting']:8} {ours:6.0f} ms, pydensecrf {theirs:6.0f} ms", flush=True)
    print(summary(rows))
    print(harness.write("crf", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
