"""`tinyseg predict`."""

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
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, and folders of images.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where the results go. By default RUN/predictions."),
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Of a run: best or last.")] = "best",
    overlays: Annotated[bool, typer.Option(help="Also write the masks laid over the images.")] = True,
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
) -> None:
    """Segment images with a trained network.

    Writes FOLDER/masks/NAME.png, whose pixels are class numbers shown in
    the classes' colours, and FOLDER/overlays/NAME.png. Images may have any
    size, and be grey or coloured: they are brought to what the network was
    trained with. Large ones are predicted in tiles. A file that cannot be
    read is reported at the end; the others are done all the same.

    [bold]tinyseg predict runs/camvid holiday/*.jpg --out segmented[/]
    [bold]tinyseg predict runs/camvid holiday --crf deeplab_v1[/]
    [bold]tinyseg predict runs/camvid holiday --scales 0.75,1,1.25 --flip[/]
    """
    from rich.console import Console
    from rich.text import Text

    from tinyseg.cli.progress import progress_bar
    from tinyseg.train.errors import SettingError
    from tinyseg.train.prediction import list_images, predict
    from tinyseg.train.refinement import crf_parameters

    if weights not in ("best", "last"):
        raise SettingError(f"--weights must be best or last, got {weights!r}")
    options = inference_options(tile, scales, flip, window, stride, average)
    if out is None:
        folder = Path(run).parent if run.endswith(".safetensors") else Path(run)
        out = folder / "predictions"
    parameters = crf_parameters(crf, crf_set or ())
    images = list_images(paths)
    with progress_bar("predicting") as progress:
        result = predict(
            run,
            images,
            out,
            weights=weights,
            output_stride=output_stride,
            device=device,
            overlays=overlays,
            crf=parameters,
            progress=progress,
            **options,
        )
    typer.echo(f"{len(result.masks)} of {len(images)} images segmented")
    if result.masks:
        typer.echo(f"Masks    {out / 'masks'}")
    if result.overlays:
        typer.echo(f"Overlays {out / 'overlays'}")
    for path, reason in result.failed:
        sentence = reason if str(path) in reason else f"{path}: {reason}"
        Console(stderr=True).print(Text(f"Not done: {sentence}", style="red"), soft_wrap=True)
    if result.failed:
        raise typer.Exit(1)
