"""`tinyseg crf search` and `tinyseg crf presets`, and the options that ask for a CRF elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinyseg.train.crf_search import Case, Found, Grid, Setting

app = typer.Typer(
    help="Dense CRFs: the presets, and a search for parameters that suit a network.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Preset = Annotated[
    str | None,
    typer.Option(
        "--crf", metavar="PRESET", help="Sharpen along the edges of the image, with a dense CRF (`crf presets`)."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--crf-set", metavar="NAME=VALUE", help="Change a parameter of the CRF, such as appearance_weight=5."
    ),
]
"""How other commands ask for a CRF; `tinyseg.train.refinement.crf_parameters` reads the two."""

COLUMNS = {
    "w1": "appearance_weight",
    "s_a": "appearance_position",
    "s_b": "appearance_colour",
    "w2": "smoothness_weight",
    "s_g": "smoothness_position",
    "T": "iterations",
}

LEGEND = (
    "w1, s_a, s_b: weight, and bandwidths of position and colour, of the appearance kernel; w2, s_g: weight and "
    "bandwidth of the smoothness kernel; T: iterations"
)


@app.command("presets")
def presets_command() -> None:
    """List the CRF's presets.

    [bold]tinyseg predict RUN IMAGES --crf deeplab_v1[/]
    """
    from rich.console import Console
    from rich.table import Table

    from tinyseg import crf

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("preset")
    for heading in (*COLUMNS, "normalisation"):
        table.add_column(heading, justify="left" if heading == "normalisation" else "right")
    for name, parameters in crf.PRESETS.items():
        values = (f"{getattr(parameters, field):g}" for field in COLUMNS.values())
        table.add_row(name, *values, parameters.normalisation)
    console = Console()
    console.print(table)
    console.print(f"\n{LEGEND}", highlight=False)


def _numbers(option: str, default: str, what: str) -> Any:
    return typer.Option(option, metavar="NUMBERS", help=f"{what}. By default {default}.")


@app.command("search")
def search_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run folder, a checkpoint, or a folder of probabilities, IMAGE.npy (H W classes).",
        ),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="The split to search on. By default the one validated on.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="The data set's folder, if it has moved; for probabilities."
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="NAME", help="For probabilities: the data set they belong to.")
    ] = "folder",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="OPTION=VALUE", help="For probabilities: an option of the data set."),
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Of a run: best or last.")] = "best",
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Search on so many images, spread over the split.")
    ] = None,
    w1: Annotated[str | None, _numbers("--w1", "3,5,10", "Weights of the appearance kernel")] = None,
    s_a: Annotated[str | None, _numbers("--sa", "20,40,80", "Its bandwidths of position, in pixels")] = None,
    s_b: Annotated[str | None, _numbers("--sb", "4,8,13,20", "Its bandwidths of colour, in grey levels")] = None,
    w2: Annotated[str | None, _numbers("--w2", "3", "Weights of the smoothness kernel")] = None,
    s_g: Annotated[str | None, _numbers("--sg", "3", "Its bandwidths, in pixels")] = None,
    iterations: Annotated[str | None, _numbers("--iterations", "5", "Numbers of iterations; cheap")] = None,
    normalisation: Annotated[
        str, typer.Option("--normalisation", help="none, before, after or symmetric.")
    ] = "symmetric",
    band: Annotated[
        float, typer.Option("--band", metavar="PIXELS", help="Half the width of the band along boundaries.")
    ] = 3.0,
    tile: Annotated[
        int | None, typer.Option("--tile", metavar="PIXELS", help="Predict squares of this side, to save memory.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where the results go. By default RUN/crf_search."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")] = False,
) -> None:
    """Find the parameters of a dense CRF that suit a trained network.

    Tries every combination of the values on images with masks, and scores all
    pixels, and those near true boundaries alone. Values are set apart by
    commas. Writes FOLDER/search.json and FOLDER/search.png, and says how to
    use the best.

    [bold]tinyseg crf search runs/camvid --images 20[/]
    [bold]tinyseg crf search runs/camvid --w1 2,3,4 --sb 6,8,10 --iterations 5,10[/]
    """
    from rich.console import Console

    from tinyseg import viz
    from tinyseg.cli.progress import progress_bar
    from tinyseg.train import files
    from tinyseg.train.crf_pictures import heat_maps
    from tinyseg.train.crf_search import search
    from tinyseg.train.errors import SettingError
    from tinyseg.train.run import json_line

    if weights not in ("best", "last"):
        raise SettingError(f"--weights must be best or last, got {weights!r}")
    if band <= 0:
        raise SettingError(f"--band must be more than 0 pixels, got {band:g}")
    if tile is not None and tile < 1:
        raise SettingError(f"--tile must be 1 or more, got {tile}")
    grid = _grid(
        {"--w1": w1, "--sa": s_a, "--sb": s_b, "--w2": w2, "--sg": s_g, "--iterations": iterations}, normalisation
    )
    saved = _holds_probabilities(Path(source))
    opened = (
        _saved(Path(source), dataset, data, sets, split, images)
        if saved
        else _predicted(source, weights, data, split, images, tile)
    )
    cases, count, classes, ignore_label, title = opened
    if out is None:
        out = (
            Path(source).parent / "crf_search" if source.endswith(".safetensors") else Path(source) / "crf_search"
        )

    note = Console(stderr=True)
    note.print(f"{len(grid)} settings on {_plural(count, 'image')} of {title}", highlight=False, soft_wrap=True)
    with progress_bar("searching") as progress:
        found = search(cases, grid, classes, ignore_label, band_width=band, count=count, progress=progress)

    result = {"source": source, "data": title} | found.to_json()
    files.make_folder(out)
    files.write_atomically(out / "search.json", (json_line(result) + "\n").encode())
    try:
        viz.save(heat_maps(found), out / "search.png")
    except OSError as error:
        raise files.explained(error, out / "search.png") from error
    if as_json:
        typer.echo(json_line(result))
    else:
        _print(Console(), found, title, None if saved else source, out)


def _grid(texts: dict[str, str | None], normalisation: str) -> "Grid":
    from tinyseg.train.crf_search import Grid
    from tinyseg.train.errors import SettingError

    values: dict[str, Any] = {}
    for name, (option, text) in zip(COLUMNS.values(), texts.items(), strict=True):
        if text is not None:
            kind = int if name == "iterations" else float
            try:
                values[name] = tuple(kind(word) for word in text.split(","))
            except ValueError:
                what = "whole numbers" if kind is int else "numbers"
                raise SettingError(f"{option} must be {what} set apart by commas, got {text!r}") from None
    try:
        return Grid(**values, normalisation=normalisation)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


def _holds_probabilities(path: Path) -> bool:
    return path.is_dir() and not (path / "config.toml").exists() and any(path.glob("*.npy"))


Opened = tuple["Iterable[Case]", int, int, int | None, str]
"""The images with what a network says, how many, how many classes, the ignored label, the data set in words."""


def _predicted(
    source: str, weights: str, data: Path | None, split: str | None, images: int | None, tile: int | None
) -> Opened:
    from tinyseg.models.inference import Options
    from tinyseg.train.crf_search import network_cases
    from tinyseg.train.prediction import load, open_dataset

    network, found = load(source, weights)
    dataset = open_dataset(found, split, data)
    labels, chosen = found.labels, _spread(len(dataset), images)
    options: Options = {**found.config.inference.options(), "tile": tile}
    cases = network_cases(network, dataset, labels, indices=chosen, **options)
    return cases, len(chosen), len(labels.classes), labels.ignore_label, repr(dataset).strip("<>")


def _saved(
    folder: Path, name: str, root: Path | None, sets: list[str] | None, split: str | None, images: int | None
) -> Opened:
    from tinyseg import data
    from tinyseg.cli.data import chosen_dataset
    from tinyseg.train.crf_search import saved_cases
    from tinyseg.train.errors import SettingError

    if root is None:
        raise SettingError(
            f"{folder} holds probabilities: say with --dataset and --data which images and masks they belong to"
        )
    name, root, options = chosen_dataset(name, root, sets)
    dataset = data.open_dataset(name, root, split or "val", **options)
    chosen = _spread(len(dataset), images)
    cases = saved_cases(folder, dataset, indices=chosen)
    return cases, len(chosen), len(dataset.classes), dataset.ignore_label, repr(dataset).strip("<>")


def _spread(length: int, count: int | None) -> list[int]:
    """So many numbers of images, spread evenly; all without a count."""
    import numpy as np

    return np.linspace(0, length - 1, min(count or length, length)).round().astype(int).tolist()


def _print(console: Any, found: "Found", title: str, run: str | None, out: Path, rows: int = 10) -> None:
    from rich.table import Table

    images = _plural(len(found.images), "image")
    table = Table(
        title=f"{title}, {images}\nnear: within {found.band_width:g} px of boundaries",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for heading in (*COLUMNS, "mIoU %", "gain", "near %", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(
        *["-"] * len(COLUMNS), _percent(found.without.mean_iou), "", _percent(found.without.band_iou), ""
    )
    ranked = sorted(found.settings, key=lambda setting: -setting.mean_iou)
    shown = ranked[:rows]
    if found.best_in_band not in shown:
        shown.append(found.best_in_band)
    for setting in shown:
        table.add_row(*_cells(setting, found.without))
    console.print(table)
    if len(shown) < len(ranked):
        console.print(f"the best of {len(ranked)} settings; all of them: {out / 'search.json'}", highlight=False)
    console.print(f"\n{LEGEND}\n", highlight=False)
    console.print(f"Picture  {out / 'search.png'}", highlight=False, soft_wrap=True)
    console.print(f"Table    {out / 'search.json'}\n", highlight=False, soft_wrap=True)
    _advise(console, found, run)


def _cells(setting: "Setting", without: "Setting") -> list[str]:
    values = [f"{getattr(setting.parameters, field):g}" for field in COLUMNS.values()]
    scores = []
    for score, alone in ((setting.mean_iou, without.mean_iou), (setting.band_iou, without.band_iou)):
        scores += [_percent(score), f"{100 * (score - alone):+.2f}"]
    return values + scores


def _advise(console: Any, found: "Found", run: str | None) -> None:
    """How to use what was found."""
    from tinyseg.train.refinement import crf_options

    best, near = found.best, found.best_in_band
    if best.mean_iou <= found.without.mean_iou:
        console.print("No setting is better than the network alone.", highlight=False)
        if near.band_iou <= found.without.band_iou:
            return
    command = f"tinyseg predict {run} IMAGES" if run is not None else "tinyseg predict RUN IMAGES"
    console.print("The best setting:", highlight=False)
    assert best.parameters is not None and near.parameters is not None
    console.print(f"  {command} {crf_options(best.parameters)}", highlight=False, soft_wrap=True)
    edges = [short for short, name in COLUMNS.items() if found.at_edge(name)]
    if edges:
        where = ", ".join(edges)
        console.print(f"It lies at the edge of the grid ({where}): look further there.", highlight=False)
    if near.parameters != best.parameters:
        console.print("The best near boundaries:", highlight=False)
        console.print(f"  {command} {crf_options(near.parameters)}", highlight=False, soft_wrap=True)


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.2f}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
