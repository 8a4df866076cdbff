"""Train the small preset of every network on CamVid, and measure it on the test frames.

    python -m benchmarks.camvid --data path/to/camvid
    python -m benchmarks.camvid --data path/to/camvid --runs runs unet fcn8s     # some of them

For one network it is

    tinyseg train camvid_unet --data path/to/camvid
    tinyseg eval runs/camvid_unet --split test

Takes about ten minutes of one core for each network, that is some hours in all. A finished run in the folder
--runs is measured and not trained again, an interrupted one goes on. Writes `results/camvid.json` (the networks
that were not asked for keep their rows) and `lessons/figures/camvid.png`; `python -m benchmarks.table` puts the
table into the README.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from tinyseg import models, viz
from tinyseg.models.inference import Options, predict_logits
from tinyseg.models.papers import paper_of
from tinyseg.models.summary import sketch, summarise
from tinyseg.train import config, evaluation, prediction, train

NETWORKS = {  # the preset, and the network as it was published
    "plain": "plain",
    "fcn8s": "fcn8s",
    "unet": "unet",
    "fc_densenet": "fc_densenet103",
    "deeplab_v1": "deeplab_v1_largefov",
    "deeplab_v2": "deeplab_v2_resnet101",
    "deeplab_v3": "deeplab_v3_resnet101",
    "deeplab_v3plus": "deeplab_v3plus_xception65",
    "fastfcn": "fastfcn_encnet_resnet50",
    "gscnn": "gscnn_wideresnet38",
}
FRAME = (360, 480)
PICTURE = Path(__file__).parents[1] / "lessons" / "figures" / "camvid.png"
SHOWN = 200  # the number of the test frame in the picture


def measure(name: str, data: str, runs: Path) -> dict[str, Any]:
    """Train the preset camvid_<name> as far as it is not trained, and score its last weights on the test split."""
    folder = runs / f"camvid_{name}"
    minutes = _train(name, data, folder)
    network, checkpoint = prediction.load(folder, "last")
    dataset = prediction.open_dataset(checkpoint, "test", Path(data))
    scores = evaluation.evaluate(network, dataset, checkpoint.labels, **_inference(name))
    assert scores is not None
    return {
        "name": name,
        "published": NETWORKS[name],
        "parameters": network.num_parameters(),
        "epochs": checkpoint.progress.epoch,
        "cpu_minutes": minutes,
        "mean_iou": scores.confusion.mean_iou,
        "pixel_accuracy": scores.confusion.pixel_accuracy,
        "iou": dict(zip(checkpoint.labels.classes, scores.confusion.iou.tolist(), strict=True)),
    }


def _train(name: str, data: str, folder: Path) -> float:
    """Train to the end, and return the minutes of processor time that it took, also in earlier goes."""
    clock = folder / "cpu_minutes.txt"
    before, began = float(clock.read_text()) if clock.exists() else 0.0, time.process_time()
    if folder.exists():
        train(out=folder, resume=True)
    else:
        train(config.override(config.preset(f"camvid_{name}"), [f"data.root={data}"]), out=folder)
    minutes = before + (time.process_time() - began) / 60
    clock.write_text(f"{minutes:.2f}\n")
    return minutes


def _inference(name: str) -> Options:
    return config.preset(f"camvid_{name}").inference.options()


def published_cost(name: str) -> dict[str, Any]:
    """What the network of the paper has and does for one frame of CamVid."""
    network = sketch(models.create, name, 3, 11)
    return {
        "paper": paper_of(name),
        "parameters": network.num_parameters(),
        "multiply_adds": sum(row.multiply_adds for row in summarise(network, *FRAME)),
    }


def picture(rows: list[dict[str, Any]], data: str, runs: Path) -> None:
    """One test frame, its truth, and what each network makes of it."""
    panels, captions = [], []
    for row in rows:
        network, checkpoint = prediction.load(runs / f"camvid_{row['name']}", "last")
        labels, dataset = checkpoint.labels, prediction.open_dataset(checkpoint, "test", Path(data))
        sample, colours = dataset[SHOWN], dataset.palette
        assert sample.mask is not None
        if not panels:
            truth = viz.colourise(sample.mask, colours, labels.ignore_label)
            panels, captions = [viz.rgb(sample.image), truth], ["a frame of the test set", "truth"]
        image = evaluation.normalised(sample.image, labels)
        answer = predict_logits(network, image, **_inference(row["name"])).argmax(-1)
        panels.append(viz.colourise(answer, colours))
        captions.append(f"{row['name']}  {row['mean_iou']:.1%}")
    columns = 4
    strips = [
        _pixels(viz.strip(panels[i : i + columns], captions[i : i + columns], height=1.6))
        for i in range(0, len(panels), columns)
    ]
    width = max(strip.shape[1] for strip in strips)
    viz.save(np.concatenate([_widened(strip, width) for strip in strips]), PICTURE)


def _pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3]


def _widened(strip: np.ndarray, width: int) -> np.ndarray:
    return np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description="See benchmarks/camvid.py.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"by default all of {', '.join(NETWORKS)}")
    parser.add_argument("--data", required=True, help="the folder of CamVid")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of the run folders")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.networks if name not in NETWORKS]
    if unknown:
        parser.error(f"there is no network {unknown[0]}; choose from {', '.join(NETWORKS)}")
    path = harness.RESULTS / "camvid.json"
    known = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for name in given.networks or NETWORKS:
        known[name] = measure(name, given.data, given.runs) | {"as_published": published_cost(NETWORKS[name])}
        row = known[name]
        print(f"{name:16} mean IoU {row['mean_iou']:.3f}, {row['cpu_minutes']:.0f} minutes", flush=True)
        print(harness.write("camvid", [known[name] for name in NETWORKS if name in known]))
    rows = [row for row in known.values() if (given.runs / f"camvid_{row['name']}").exists()]
    picture([row for name in NETWORKS for row in rows if row["name"] == name], given.data, given.runs)
    print(PICTURE)


if __name__ == "__main__":
    main(sys.argv[1:])
