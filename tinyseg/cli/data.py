"""`tinyseg data check` and `tinyseg data show`."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Look at a data set before training on it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="camvid, cityscapes, isbi, shapes, voc; or folder, for your own.")
]
Root = Annotated[Path | None, typer.Option("--root", "--data", metavar="FOLDER", help="Where the data set lies.")]
Split = Annotated[str, typer.Option("--split", help="train, val, ...")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="OPTION=VALUE", help="An option of the data set, such as values=0,255."),
]


@app.command("check")
def check_command(name: Name = "folder", root: Root = None, split: Split = "train", sets: Sets = None) -> None:
    """Read every image and mask; count the labels, and say what is wrong, with
    the files' names.

    Ends with exit code 1 if something is wrong.

    [bold]tinyseg data check camvid --root ~/data/CamVid --split val[/]
    [bold]tinyseg data check --root my/images --set values=0,255[/]
    """
    from tinyseg import data
    from tinyseg.cli.progress import progress_bar

    name, root, options = chosen_dataset(name, root, sets)
    with progress_bar("reading") as progress:
        report = data.check_dataset(name, root, split, progress=progress, **options)
    typer.echo(str(report))
    if report.problems:
        raise typer.Exit(1)


@app.command("show")
def show_command(
    name: Name = "folder",
    root: Root = None,
    split: Split = "train",
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture.")] = Path("data.png"),
    count: Annotated[int, typer.Option("--count", min=1, max=64, help="How many images.")] = 12,
) -> None:
    """Draw some images of a data set with their masks laid over them.

    [bold]tinyseg data show shapes[/]
    [bold]tinyseg data show isbi --root ~/data/isbi2012 --count 4[/]
    """
    import numpy as np

    from tinyseg import data, viz
    from tinyseg.train.files import explained

    name, root, options = chosen_dataset(name, root, sets)
    dataset = data.open_dataset(name, root, split, **options)
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    samples = [dataset[int(index)] for index in chosen]
    pictures = []
    for sample in samples:
        pictures.append(viz.rgb(sample.image))
        if sample.mask is not None:
            pictures.append(
                viz.overlay(sample.image, sample.mask, dataset.palette, ignore_label=dataset.ignore_label)
            )
    try:
        viz.save(_grid(pictures), out)
    except OSError as error:
        raise explained(error, out) from error
    typer.echo(f"{len(samples)} images of {repr(dataset).strip('<>')}: {out}")


def chosen_dataset(
    name: str, root: Path | None, sets: list[str] | None
) -> tuple[str, Path | None, dict[str, Any]]:
    """Name, folder and options of a data set, checked as a configuration's are; a folder may stand for one."""
    from tinyseg import data
    from tinyseg.train import config as configuration
    from tinyseg.train.errors import SettingError

    if name not in data.DATASETS and root is None and Path(name).is_dir():
        name, root = "folder", Path(name)
    if name not in data.DATASETS:
        raise SettingError(f"there is no data set {name!r}; {data.nearest(name, data.DATASETS)}")
    changes = [f"data.name={name}", *(f"data.{assignment}" for assignment in sets or [])]
    section = configuration.override(configuration.Config(), changes).data
    return name, root, dict(section.options)


def _grid(pictures: list) -> Any:
    """Pictures in rows of about four, on white; small ones enlarged."""
    import numpy as np

    factor = max(1, 200 // max(max(picture.shape) for picture in pictures))
    pictures = [picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in pictures]
    gap, across = 4, min(len(pictures), 4)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // across)
    page = np.full((rows * (height + gap) + gap, across * (width + gap) + gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = gap + (index // across) * (height + gap), gap + (index % across) * (width + gap)
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page
