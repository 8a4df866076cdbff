"""`tinyseg eval`."""

from pathlib import Path
from typing import Annotated

import typer

from tinyseg.cli.crf import Changes, Preset
from tinyseg.cli.inference import (
    Average,
    Device,
    Flip,
    OutputStride,
    Scales,
    Stride,
    Tile,
    Window,
    inference_options,
)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint (.safetensors).")],
    split: Annotated[
        str | None, typer.Option("--split", help="The split to measure on. By default the one validated on.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="The data set's folder, if it has moved.")
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Of a run: best or last.")] = "best",
    boundary: Annotated[bool, typer.Option("--boundary", help="Also the boundary F-score.")] = False,
    trimap: Annotated[bool, typer.Option("--trimap", help="Also the accuracy in bands along boundaries.")] = False,
    tile: Tile = None,
    scales: Scales = None,
    flip: Flip = None,
    window: Window = None,
    stride: Stride = None,
    average: Average = "probabilities",
    output_stride: OutputStride = None,
    device: Device = "cpu",
    crf: Preset = None,
    crf_set: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of tables.")] = False,
) -> None:
    """Measure a trained network on a data set.

    Every image is predicted in full size; the counts are summed over the
    whole split before any score is worked out. Papers often average over
    several sizes, mirror images and windows, and so can this.

    [bold]tinyseg eval runs/shapes[/]
    [bold]tinyseg eval runs/camvid --split test --boundary[/]
    [bold]tinyseg eval runs/deeplab --output-stride 8 --scales 0.5,0.75,1,1.25,1.5,1.75 --flip[/]
    [bold]tinyseg eval runs/camvid --trimap --crf deeplab_v1[/]
    """
    from rich.console import Console

    from tinyseg.cli.progress import progress_bar
    from tinyseg.train.errors import SettingError
    from tinyseg.train.evaluation import evaluate
    from tinyseg.train.prediction import load, open_dataset
    from tinyseg.train.refinement import crf_options, crf_parameters

    if weights not in ("best", "last"):
        raise SettingError(f"--weights must be best or last, got {weights!r}")
    options = inference_options(tile, scales, flip, window, stride, average)
    parameters = crf_parameters(crf, crf_set or ())
    network, found = load(run, weights, output_stride=output_stride, device=device)
    dataset = open_dataset(found, split, data)
    with progress_bar("predicting") as progress:
        scores = evaluate(
            network,
            dataset,
            found.labels,
            boundary=boundary,
            trimap=trimap,
            crf=parameters,
            progress=progress,
            **{**found.config.inference.options(), **options},
        )
    assert scores is not None
    if as_json:
        _print_json(scores, found, parameters)
    else:
        behind = f"\n{crf_options(parameters)}" if parameters is not None else ""
        _print_tables(Console(), scores, found, f"{repr(dataset).strip('<>')}\n{found.path}{behind}")


def _print_json(scores, found, parameters) -> None:
    from tinyseg.train.run import json_line

    result = {
        "checkpoint": str(found.path),
        **scores.confusion.scores(),
        "pixel_error": scores.confusion.pixel_error,
    }
    result["iou"] = dict(zip(found.labels.classes, scores.confusion.iou.tolist(), strict=True))
    if parameters is not None:
        result["crf"] = parameters._asdict()
    if scores.boundary is not None:
        result["boundary_f"] = scores.boundary.mean
    if scores.trimap is not None:
        widths = map(str, scores.trimap.widths)
        result["trimap_accuracy"] = dict(zip(widths, scores.trimap.pixel_accuracy.tolist(), strict=True))
    typer.echo(json_line(result))


def _print_tables(console, scores, found, title: str) -> None:
    from rich.table import Table

    confusion, percent = scores.confusion, _percent
    table = Table(title=title, title_justify="left", title_style="", box=None, header_style="bold")
    table.add_column("class")
    columns = {"IoU": confusion.iou, "accuracy": confusion.class_accuracy, "precision": confusion.precision}
    if scores.boundary is not None:
        columns["boundary F"] = scores.boundary.f_score
    columns["pixels"] = 100 * confusion.labelled / max(confusion.labelled.sum(), 1)
    for heading in columns:
        table.add_column(f"{heading} %", justify="right")
    for index, name in enumerate(found.labels.classes):
        cells = [f"{v[index]:.2f}" if key == "pixels" else percent(v[index]) for key, v in columns.items()]
        table.add_row(name, *cells)
    console.print(table)
    console.print()

    lines = {
        "mean IoU": confusion.mean_iou,
        "frequency-weighted IoU": confusion.frequency_weighted_iou,
        "mean Dice": confusion.mean_dice,
        "mean class accuracy": confusion.mean_accuracy,
        "pixel accuracy": confusion.pixel_accuracy,
        "pixel error": confusion.pixel_error,
    }
    if scores.boundary is not None:
        lines["mean boundary F"] = scores.boundary.mean
    if scores.trimap is not None:
        for width, accuracy in zip(scores.trimap.widths, scores.trimap.pixel_accuracy, strict=True):
            lines[f"accuracy within {width} px"] = accuracy
    for name, value in lines.items():
        console.print(f"{name:<24}{percent(value):>8} %", highlight=False)


def _percent(value: float) -> str:
    """A share as percent; a dash where there was nothing to count."""
    return "-" if value != value else f"{100 * value:.2f}"
