"""What is gained by training a dense CRF together with the network in front of it? CamVid at half its size.

    python -m benchmarks.crf_rnn --data path/to/camvid --work FOLDER

The network is a small one of DeepLab's kind: dilated convolutions at a quarter of the resolution, whose answer is
enlarged. It is trained first, alone. From there on the same further steps are taken twice, on the same batches
and with the same rates: without a CRF, and through five iterations of one (CRF-RNN). The one without gets the CRF
afterwards, with the best parameters of a search on validation images, over a coarse grid and a fine one; the
other's starts with the best of the coarse grid. The further steps are taken with two orders of the images (the
search is for the first), to show how much of a difference is chance. All are scored on the 233 test frames;
nothing was chosen by them.

Takes about ten minutes of one core. What FOLDER holds already is not computed again. Writes
`results/crf-rnn.json` and the picture `lessons/figures/crf-rnn.png`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from tinyseg import crf, models, nn, ops, optim, viz
from tinyseg import functional as F
from tinyseg.crf import Parameters
from tinyseg.data import CamVid, Loader, Sample
from tinyseg.data.transforms import Compose, Flip, Normalise, Resize
from tinyseg.metrics import ConfusionMatrix, TrimapAccuracy
from tinyseg.models.crf_rnn import CRFRNN
from tinyseg.models.network import LearningRates
from tinyseg.optim import schedules
from tinyseg.tape import Tensor, no_grad
from tinyseg.train.crf_pictures import heat_maps
from tinyseg.train.crf_search import Case, Grid, search
from tinyseg.train.refinement import colours, refined

FIGURES = Path(__file__).parents[1] / "lessons" / "figures"
SIZE = (180, 240)
CHANNELS, DILATIONS = 32, (1, 2, 4, 8, 4, 1)
BATCH = 4
FIRST, FURTHER = 800, 100  # steps
SEEDS = (1, 2)  # of the order of the images in the further steps
LR, FURTHER_LR, HEAD = 2e-3, 5e-4, 10.0  # AdamW's; the CRF's is HEAD times as large
WIDTHS = (1, 3, 5)  # of the bands along boundaries, in pixels of the half size
SEARCHED = 16  # validation images
GRID = Grid(
    appearance_weight=(2, 4, 8),
    appearance_position=(10, 20, 40),
    appearance_colour=(5, 10, 20),
    smoothness_weight=(1, 3),
    smoothness_position=(1.5,),
    iterations=(5,),
    normalisation="after",
)
FINE = Grid(
    appearance_weight=(0.5, 1, 2, 3),
    appearance_position=(10, 20),
    appearance_colour=(5, 10),
    smoothness_weight=(0, 0.5, 1),
    smoothness_position=(1.5,),
    iterations=(5,),
    normalisation="after",
)
PUBLISHED = crf.parameters("deeplab_v1")
NAMES = (
    "first network",
    "without a CRF",
    "DeepLab v1's CRF afterwards",
    "the search's CRF afterwards",
    "trained with the CRF",
    "the same, its CRF left out",
)
SHOWN = (12, 150)  # numbers of the test frames in the picture


class HalfSize:
    """CamVid, its frames half as high and wide; masks by their nearest pixels."""

    def __init__(self, root: str, split: str):
        self.full = CamVid(root, split)
        self.resize = Resize(SIZE)

    def __len__(self) -> int:
        return len(self.full)

    def __getitem__(self, index: int) -> Sample:
        sample = self.resize(self.full[index], np.random.default_rng(0))
        return sample._replace(image=colours(sample.image))

    def __getattr__(self, name: str) -> Any:  # classes, mean, std, ...
        return getattr(self.full, name)


class Small(models.SegmentationNetwork):
    """Two convolutions with stride 2, dilated ones, a score for each class, and the enlargement."""

    def __init__(self, classes: int, rng: np.random.Generator):
        self.in_channels, self.classes = 3, classes
        half = CHANNELS // 2
        layers: list[nn.Module] = []
        for inputs, outputs, stride, dilation in (
            (3, half, 2, 1),
            (half, CHANNELS, 2, 1),
            *((CHANNELS, CHANNELS, 1, dilation) for dilation in DILATIONS),
        ):
            options = {"stride": stride, "dilation": dilation, "padding": dilation, "bias": False}
            layers += [nn.Conv2d(inputs, outputs, 3, **options, rng=rng), nn.BatchNorm2d(outputs, relu=True)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(CHANNELS, classes, 1, rng=rng)

    def forward(self, x: F.Input) -> Tensor:
        return F.resize(self.classifier(self.layers(x)), x.shape[1:3])


def small(dataset: Any) -> Small:
    return Small(len(dataset.classes), np.random.default_rng(0))


def with_crf(trunk: models.SegmentationNetwork, parameters: Parameters, dataset: Any) -> CRFRNN:
    """In training and in evaluation so many iterations as the search had."""
    return CRFRNN(trunk, start=parameters, iterations=parameters.iterations, mean=dataset.mean, std=dataset.std)


def fit(network: models.SegmentationNetwork, dataset: Any, steps: int, lr: float, seed: int) -> None:
    """AdamW with a rate that falls to zero. The batches follow from the seed."""
    transform = Compose((Flip(horizontal=0.5), Normalise(dataset.mean, dataset.std)))
    loader = Loader(dataset, BATCH, transform=transform, shuffle=True, seed=seed, drop_last=True)
    groups = [
        {
            "params": group.parameters,
            "lr_multiplier": group.lr_multiplier,
            "weight_decay": 1e-4 if group.decays else 0.0,
        }
        for group in network.parameter_groups(LearningRates(head=HEAD))
    ]
    optimiser = optim.AdamW(groups, lr=lr, schedule=schedules.poly(steps, 0.9))
    network.train()
    done, epoch, began = 0, 0, time.perf_counter()
    while done < steps:
        for batch in loader.epoch(epoch):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(Tensor(batch.images)), batch.labels, ignore_label=dataset.ignore_label)
            loss.backward()
            optimiser.step()
            done += 1
            if done % 50 == 0 or done == steps:
                seconds = (time.perf_counter() - began) / done
                print(f"    step {done}, loss {float(loss.data):.3f}, {seconds:.2f} s a step", flush=True)
            if done == steps:
                break
        epoch += 1
    network.eval()


def kept(folder: Path, name: str, network: models.SegmentationNetwork, train: Callable[[], None]) -> None:
    """Train a network, unless its weights are in the folder."""
    path = folder / f"{name}.npz"
    print(name, flush=True)
    if path.exists():
        with np.load(path) as state:
            network.load_state_dict(dict(state))
        network.eval()
        return
    train()
    np.savez(path, **network.state_dict())


def further(
    folder: Path, name: str, first: Small, parameters: Parameters | None, dataset: Any, seed: int
) -> models.SegmentationNetwork:
    """The first network after the further steps: alone, or with a CRF that starts with these parameters."""
    trunk = small(dataset)
    trunk.load_state_dict(first.state_dict())
    network = trunk if parameters is None else with_crf(trunk, parameters, dataset)
    kept(folder, f"{name}-{seed}", network, lambda: fit(network, dataset, FURTHER, FURTHER_LR, seed))
    return network


def logits_of(network: Any, sample: Sample, dataset: Any) -> np.ndarray:
    image = (sample.image.astype(np.float32) / 255 - dataset.mean) / dataset.std
    with no_grad():
        return network(image[None].astype(np.float32)).data[0]


def best_parameters(
    folder: Path, name: str, grid: Grid, network: models.SegmentationNetwork, dataset: Any
) -> tuple[Parameters, dict]:
    """By mean IoU on some validation images."""
    path = folder / f"{name}.json"
    print(name, flush=True)
    if not path.exists():
        cases = []
        for index in np.linspace(0, len(dataset) - 1, SEARCHED).round().astype(int):
            sample = dataset[int(index)]
            probabilities = ops.softmax(logits_of(network, sample, dataset)[None])[0][0]
            cases.append(Case(sample.name, sample.image, sample.mask, probabilities))
        found = search(cases, grid, len(dataset.classes), dataset.ignore_label, band_width=3)
        viz.save(heat_maps(found), folder / f"{name}.png")
        path.write_text(json.dumps(found.to_json()))
    found = json.loads(path.read_text())
    return Parameters(**{name: found["best"][name] for name in Parameters._fields}), found


def measure(
    contenders: dict[tuple[str, int], Callable[[Sample], np.ndarray]], dataset: Any
) -> list[dict[str, Any]]:
    """Scores of functions from samples to labels (H, W), by name and seed."""
    classes, ignore = len(dataset.classes), dataset.ignore_label
    confusion = {name: ConfusionMatrix(classes, ignore) for name in contenders}
    bands = {name: TrimapAccuracy(classes, ignore, WIDTHS) for name in contenders}
    for index in range(len(dataset)):
        sample = dataset[index]
        for name, answer in contenders.items():
            labels = answer(sample)
            confusion[name].update(sample.mask, labels)
            bands[name].update(sample.mask, labels)
    return [
        {
            "name": name,
            "seed": seed,
            **confusion[name, seed].scores(),
            "band_mean_iou": dict(zip(map(str, WIDTHS), bands[name, seed].mean_iou.tolist(), strict=True)),
            "iou": dict(zip(dataset.classes, confusion[name, seed].iou.tolist(), strict=True)),
        }
        for name, seed in contenders
    ]


def picture(contenders: dict[str, Callable[[Sample], np.ndarray]], dataset: Any) -> np.ndarray:
    """Some test frames: image, truth, and what the contenders answer."""
    strips = []
    for index in SHOWN:
        sample = dataset[index]
        panels = [viz.rgb(sample.image), viz.colourise(sample.mask, dataset.palette, dataset.ignore_label)]
        panels += [viz.colourise(answer(sample), dataset.palette) for answer in contenders.values()]
        figure = viz.strip(panels, ["test frame", "truth", *contenders], height=1.8)
        figure.canvas.draw()
        strips.append(np.asarray(figure.canvas.buffer_rgba())[:, :, :3])  # type: ignore[attr-defined]
    return np.concatenate(strips)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crf_rnn", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="the folder of CamVid")
    parser.add_argument("--work", type=Path, default=Path("runs/crf_rnn"), help="where weights are kept")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    training, validation, test = (HalfSize(given.data, split) for split in ("train", "val", "test"))

    first = small(training)
    kept(given.work, "first", first, lambda: fit(first, training, FIRST, LR, seed=0))
    contenders: dict[tuple[str, int], Callable[[Sample], np.ndarray]] = {}
    latest: dict[int, tuple[str, np.ndarray]] = {}  # by network: several contenders want the same logits

    def said(net: Any, sample: Sample) -> np.ndarray:
        if latest.get(id(net), ("",))[0] != sample.name:
            latest[id(net)] = sample.name, logits_of(net, sample, test)
        return latest[id(net)][1]

    def network(net: Any) -> Callable[[Sample], np.ndarray]:
        return lambda sample: said(net, sample).argmax(axis=-1)

    def refined_by(net: Any, chosen: Parameters) -> Callable[[Sample], np.ndarray]:
        return lambda sample: refined(sample.image, said(net, sample), chosen).argmax(axis=-1)

    settings: dict[tuple[str, int], dict[str, Any]] = {}
    coarse, fine, found = Parameters(), Parameters(), {}
    for seed in SEEDS:
        alone = further(given.work, "alone", first, None, training, seed)
        if seed == SEEDS[0]:
            coarse, _ = best_parameters(given.work, "search", GRID, alone, validation)
            fine, found = best_parameters(given.work, "search-fine", FINE, alone, validation)
        joint = further(given.work, "joint", first, coarse, training, seed)
        assert isinstance(joint, CRFRNN)
        contenders |= {
            (NAMES[1], seed): network(alone),
            (NAMES[2], seed): refined_by(alone, PUBLISHED),
            (NAMES[3], seed): refined_by(alone, fine),
            (NAMES[4], seed): network(joint),
            (NAMES[5], seed): network(joint.trunk),
        }
        learned = {name: np.round(value, 4).tolist() for name, value in joint.crf.state_dict().items()}
        settings |= {(NAMES[2], seed): PUBLISHED._asdict(), (NAMES[3], seed): fine._asdict()}
        settings[NAMES[4], seed] = learned
    print("test", flush=True)
    rows = measure({(NAMES[0], 0): network(first), **contenders}, test)
    for row in rows:
        near = ", ".join(f"{100 * value:.2f}" for value in row["band_mean_iou"].values())
        print(
            f"    {row['name']:28} {row['seed']} mean IoU {100 * row['mean_iou']:.2f}, near boundaries {near}",
            flush=True,
        )
        row |= {"crf": settings.get((row["name"], row["seed"]))}
    searched = {key: found[key] for key in ("images", "band_width", "without", "best")}
    print(harness.write("crf-rnn", [*rows, {"name": "search", **searched}]))
    shown = {name: contenders[name, SEEDS[0]] for name in (NAMES[1], NAMES[3], NAMES[4])}
    viz.save(picture(shown, test), FIGURES / "crf-rnn.png")
    print(FIGURES / "crf-rnn.png")


if __name__ == "__main__":
    main(sys.argv[1:])
