"""`tinyseg models` and `tinyseg summary`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tinyseg.models.summary import Row


def list_command() -> None:
    """List the networks, with the numbers that they learn and their papers.

    [bold]tinyseg models[/]
    """
    from rich.console import Console
    from rich.table import Table

    from tinyseg import models
    from tinyseg.models import backbones
    from tinyseg.models.papers import paper_of
    from tinyseg.models.summary import sketch

    console = Console()
    kinds: list[tuple[str, Any, Any, int]] = [
        ("segmentation, 21 classes", models.create, models.MODELS, 21),
        ("classifiers and trunks, 1000 classes", backbones.create, backbones.BACKBONES, 1000),
    ]
    for title, create, known, classes in kinds:
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title_style="")
        table.add_column(title)
        table.add_column("parameters", justify="right")
        table.add_column("paper")
        for name in known:
            table.add_row(name, f"{sketch(create, name, 3, classes).num_parameters():,}", paper_of(name))
        console.print(table)
        console.print()


def summary_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One of those that `tinyseg models` lists.")],
    size: Annotated[
        tuple[int, int], typer.Option("--size", metavar="HEIGHT WIDTH", help="Of the image, in pixels.")
    ] = (360, 480),
    channels: Annotated[int, typer.Option("--channels", min=1, help="Of the image.")] = 3,
    classes: Annotated[int | None, typer.Option("--classes", min=1, help="By default 21, or 1000.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="OPTION=VALUE", help="A setting of the network, such as base=16."),
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Only the layers that have parameters.")] = False,
) -> None:
    """Show the layers of a network with their sizes and costs for one image. Nothing is computed.

    Multiply-adds are those of convolutions and matrix products. The memory is that of the layer's result, in
    float32: training keeps them all. Every pixel of the result "sees" so many rows and columns of the image.

    [bold]tinyseg summary unet_padded --size 360 480 --set base=32[/]
    """
    from rich.console import Console

    from tinyseg.models.summary import summarise
    from tinyseg.train.errors import SettingError

    try:
        network = _sketch(model, channels, classes, sets or [])
        rows = summarise(network, *size)
    except ValueError as error:
        raise SettingError(str(error)) from error
    console = Console()
    console.print(_table(rows, brief))
    console.print()
    fixed = sum(row.fixed for row in rows)
    unused = network.num_parameters() - sum(row.parameters for row in rows)
    notes = {
        "parameters": f"{network.num_parameters():,}"
        + (f", {unused:,} of them only in training" if unused else ""),
        "fixed weights": f"{fixed:,}" if fixed else "",
        "multiply-adds": f"{sum(row.multiply_adds for row in rows):,}",
        "memory": f"{sum(row.memory for row in rows) / 2**20:,.1f} MiB of results for an image",
    }
    for name, text in notes.items():
        if text:
            console.print(f"{name:<14} {text}", highlight=False, soft_wrap=True)


def _sketch(model: str, channels: int, classes: int | None, sets: list[str]) -> Any:
    """The network without its weights; its settings are checked as those of a configuration are."""
    from tinyseg import models
    from tinyseg.data import nearest
    from tinyseg.models import backbones
    from tinyseg.models.summary import sketch
    from tinyseg.train import settings
    from tinyseg.train.errors import SettingError

    known: dict[str, Any] = {**backbones.BACKBONES, **models.MODELS}
    if model not in known:
        raise SettingError(f"there is no network {model!r}; {nearest(model, known)}")
    create = models.create if model in models.MODELS else backbones.create
    entries = settings.of_callable(known[model], without=("in_channels", "classes", "rng"))
    options = {}
    for assignment in sets:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingError(f"--set {assignment} is not of the form OPTION=VALUE")
        if name not in entries:
            raise SettingError(f"{model} has no setting {name!r}; {nearest(name, entries)}")
        options[name] = settings.parse(name, text, entries[name])
    classes = classes or (21 if model in models.MODELS else 1000)
    return sketch(create, model, channels, classes, **options)


def _table(rows: "list[Row]", brief: bool) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("operator", overflow="fold")
    for heading in ("size", "parameters", "multiply-adds", "KiB", "sees", "stride"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if brief and not row.parameters + row.fixed:
            continue
        table.add_row(
            row.layer,
            row.operator,
            " x ".join(map(str, row.size)),
            f"{row.parameters + row.fixed:,}" if row.parameters + row.fixed else "",
            f"{row.multiply_adds:,}" if row.multiply_adds else "",
            f"{row.memory / 1024:,.0f}",
            _pair(row.receptive_field),
            _pair(row.stride),
        )
    return table


def _pair(values: "tuple[float, float] | None") -> str:
    """One number if both are the same."""
    if values is None:
        return "-"
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return texts[0] if texts[0] == texts[1] else "x".join(texts)
