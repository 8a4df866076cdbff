"""The README's tables, made from the JSON files in `results/`.

python -m benchmarks.table           writes them into README.md, between the marks <!-- name --> and <!-- end -->
python -m benchmarks.table --check   fails if the README says something else than the files
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, rival_of

README = Path(__file__).parents[1] / "README.md"


def operators(result: dict[str, Any]) -> list[str]:
    lines = [
        "| operator | input N H W C | forward: tinyseg, torch | ratio | backward: tinyseg, torch | ratio |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for row in result["rows"]:
        cells = [row["name"], " ".join(map(str, row["x"]))]
        for direction in ("forward", "backward"):
            timing = row[direction]
            cells += [f"{_pair(timing)} ms", f"{timing['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", _caption(result["machine"], "operators")]


def training(result: dict[str, Any]) -> list[str]:
    lines = [
        "| training step | tinyseg, torch | ratio | peak memory: tinyseg, torch |",
        "| --- | --- | ---: | --- |",
    ]
    for row in result["rows"]:
        memory = ", ".join(str(row[who]["peak memory MB"]) for who in ("tinyseg", "torch"))
        lines.append(f"| {row['name']} | {_pair(row)} ms | {row['ratio']:.2f} | {memory} MB |")
    return [*lines, "", _caption(result["machine"], "training")]


def crf_gain(result: dict[str, Any], preset: str = "deeplab_v1") -> list[str]:
    lines = [
        f"| masks made worse by | mean IoU | `{preset}` | searched | in the band | `{preset}` | searched |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = [row["name"]]
        for score in ("mean IoU", "band mean IoU"):
            before = row["before"][score]
            after = row["presets"][preset][score], row.get("searched", row["presets"][preset])[score]
            better = [round(one, 3) > round(before, 3) for one in after]
            cells += [
                f"{before:.1%}",
                *(f"**{a:.1%}**" if b else f"{a:.1%}" for a, b in zip(after, better, strict=True)),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    tests, others = len(result["test images"]), len(result["search images"])
    caption = (
        f"{tests} images of Pascal VOC, mean IoU without the CRF and with it, over all pixels and in the band of "
        f"{result['band']} pixels along true borders; bold is better than without. Searched: parameters chosen "
        f"for each row on {others} other images. What the rows mean: [crf_gain.py](benchmarks/crf_gain.py). "
        "[Data](benchmarks/results/crf-gain.json)"
    )
    return [*lines, "", caption]


def crf_rnn(result: dict[str, Any]) -> list[str]:
    lines = ["| network | mean IoU | within 3 pixels of boundaries |", "| --- | ---: | ---: |"]
    scored = [row for row in result["rows"] if "band_mean_iou" in row]
    for name in dict.fromkeys(row["name"] for row in scored):
        rows = [row for row in scored if row["name"] == name]
        means = " and ".join(f"{row['mean_iou']:.1%}" for row in rows)
        bands = " and ".join(f"{row['band_mean_iou']['3']:.1%}" for row in rows)
        lines.append(f"| {name} | {means} | {bands} |")
    caption = (
        "A small dilated network on halved CamVid, the 233 test frames; below the first row after 100 further "
        "steps, in two orders of the images. The steps alone make scores worse: not all of the difference is the "
        "CRF's. How it is done: [crf_rnn.py](benchmarks/crf_rnn.py). "
        "[Data](benchmarks/results/crf-rnn.json)"
    )
    return [*lines, "", caption]


def camvid(result: dict[str, Any]) -> list[str]:
    lines = [
        "| network | paper | parameters | multiply-adds | small preset | parameters | minutes | mean IoU |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        full = row["as_published"]
        cells = [
            f"`{row['published']}`",
            full["paper"],
            f"{full['parameters'] / 1e6:.1f} M",
            f"{full['multiply_adds'] / 1e9:.0f} G",
            f"`camvid_{row['name']}`",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['cpu_minutes']:.0f}",
            f"{row['mean_iou']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    caption = (
        "Parameters for 11 classes, and multiply-adds for one frame of CamVid, 360 x 480, as published. The small "
        "presets train from nothing on halved frames for about ten minutes of one core (minutes are those of the "
        "processor); mean IoU on the 233 test frames in full size. What the networks reach in days on a GPU, from "
        "trained weights, is another matter and another order. "
        "[Data](benchmarks/results/camvid.json)"
    )
    return [*lines, "", caption]


def crf(result: dict[str, Any]) -> list[str]:
    lines = [
        "| image | bandwidths | tinyseg, pydensecrf | ratio | lattices alone | ratio | "
        "memory after imports: tinyseg, pydensecrf |",
        "| --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    for row in result["rows"]:
        cells = [row["image"], row["setting"]]
        for what in ("whole", "build"):
            pair = ", ".join(f"{row[what][who]['median']:.0f}" for who in ("tinyseg", "pydensecrf"))
            cells += [f"{pair} ms", f"{row[what]['ratio']:.1f}"]
        memory = row["peak memory MB"]
        cells.append(", ".join(str(memory[who]["after imports"]) for who in ("tinyseg", "pydensecrf")) + " MB")
        lines.append(f"| {' | '.join(cells)} |")
    machine = result["machine"]
    caption = (
        "500 x 375 pixels, 21 labels, 10 iterations, both kernels; bandwidths: smoothness/position/colour. "
        f"Medians, alternately in one process, on {machine['cores']} cores of {machine['processor']}, of which "
        "pydensecrf uses one. A ratio above 1 means that tinyseg is faster. [Data](benchmarks/results/crf.json)"
    )
    return [*lines, "", caption]


def gpu(result: dict[str, Any]) -> list[str]:
    """A line for each operator, its passes side by side; below, whole training steps and the dense CRF."""
    rows = [row for row in result["rows"] if "failure" not in row]
    operators = [row for row in rows if "pass" in row]
    precisions = {"float32": "float32", "TF32": "TF32 allowed"}
    head = ["operator", "passes"]
    for precision in precisions.values():
        head += [f"{precision}: tinyseg ms", "ratio", "of floor"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " --- |" * (len(head) - 2)]
    for name, x in dict.fromkeys((row["name"], tuple(row["x"])) for row in operators):
        of_case = [row for row in operators if (row["name"], tuple(row["x"])) == (name, x)]
        cells = [f"{name}, {x[0]} x {x[1]} x {x[2]} pixels"]
        cells.append(", ".join(dict.fromkeys(row["pass"] for row in of_case)))
        for precision in precisions:
            group = [row for row in of_case if row["precision"] == precision]
            cells.append(", ".join(_figures(row["tinyseg"]["median"]) for row in group))
            cells.append(", ".join(f"{row['ratio']:.2f}" for row in group))
            cells.append(", ".join(f"{row['tinyseg']['share of floor']:.0%}" for row in group))
        lines.append(f"| {' | '.join(cells)} |")
    others = [row for row in rows if "pass" not in row]
    if others:
        lines += ["", "| as a whole | precision | tinyseg | rival | ratio |", "| --- | --- | --- | --- | ---: |"]
    for row in others:
        rival = rival_of(row)
        where = f", {row['pydensecrf measured']}" if rival == "pydensecrf" else ""
        cells = [row["name"], row["precision"], f"{_figures(row['tinyseg']['median'])} ms"]
        cells += [f"{rival} {_figures(row[rival]['median'])} ms{where}", f"{row['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    goals = [row["met"] for row in rows if row["met"] is not None]
    machine, card = result["machine"], result["card"]
    caption = (
        f"Medians of the GPU's own time on {machine['gpu']}, buffers in turns, against PyTorch {machine['torch']} "
        f"with cuDNN {machine['cuDNN']}, its search for the fastest algorithm, and the better of its memory "
        "formats; both without TF32, and both with it. A ratio above 1 means that tinyseg is faster. The floor is "
        f"the time of a pass's bytes at {card['copy'] / 1e12:.2f} TB/s, or of its operations at "
        f"{card['tf32'] / 1e12:.0f} (TF32) or {max(card['float32'], card['tf32'] / 3) / 1e12:.0f} TFLOP/s, as "
        f"measured on this card. {sum(goals)} of the {len(goals)} goals in the file are met. "
        "[Data](benchmarks/results/gpu.json)"
    )
    return [*lines, "", caption]


def _pair(row: dict[str, Any]) -> str:
    return ", ".join(_figures(row[who]["median"]) for who in ("tinyseg", "torch"))


def _figures(number: float) -> str:
    """Three of them."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _caption(machine: dict[str, Any], name: str) -> str:
    return (
        f"Medians, in one process, alternately, on {machine['cores']} cores of {machine['processor']}; "
        f"PyTorch {machine['torch']} with the better of its memory formats. A ratio above 1 means that "
        f"tinyseg is faster. [Data](benchmarks/results/{name}.json)"
    )


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "operators": operators,
    "training": training,
    "camvid": camvid,
    "crf": crf,
    "crf-gain": crf_gain,
    "crf-rnn": crf_rnn,
    "gpu": gpu,
}
"""By the name of the mark and of the JSON file: the lines of the table and what is said below it."""


def filled(text: str) -> str:
    """The README with every table that has a result renewed."""
    for name, make in TABLES.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        block = "\n".join([*make(json.loads(path.read_text())), ""])
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place <!-- {name} --> ... <!-- end -->")
        text = pattern.sub(lambda match, block=block: match[1] + block + match[2], text)
    return text


if __name__ == "__main__":
    text = README.read_text()
    new = filled(text)
    if "--check" in sys.argv and new != text:
        raise SystemExit("README.md differs from benchmarks/results: run `python -m benchmarks.table`")
    README.write_text(new)
