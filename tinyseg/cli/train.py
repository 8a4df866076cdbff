"""`tinyseg train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tinyseg.train.config import Config

RUNS = Path("runs")


def command(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="A preset (shapes, isbi, camvid), a TOML file of your own, or with --resume a run folder.",
            show_default=False,
        ),
    ] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="SECTION.KEY=VALUE", help="Change a setting; may be given many times."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="The folder of the data set (data.root).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="The run folder. By default runs/PRESET, or runs/PRESET-2, ..."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="WEIGHTS",
            help="Start from these weights (train.init): a run folder, a checkpoint, or a .pth or .safetensors "
            "file with torchvision's names. What does not fit keeps its first weights, and is named.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run: the latest of the preset, or --out.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, or cuda for a GPU (train.device).")
    ] = None,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph",
            help="On a GPU, record a step and start its kernels together (train.cuda_graph).",
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random (train.seed).")] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the configuration, a TOML file to start from, and stop.")
    ] = False,
) -> None:
    """Train a network.

    Without a preset, a small U-Net learns synthetic shapes: no download,
    about a minute and a half on two CPU cores.

    The run folder holds the configuration, metrics.jsonl, the checkpoints
    best.safetensors and last.safetensors, and two pictures that are renewed
    after every epoch: curves.png and samples.png. Ctrl-C ends a run after
    the current step; the same command with --resume goes on, and ends with
    the same bits as an uninterrupted run.

    [bold]tinyseg train[/]
    [bold]tinyseg train isbi --data ~/data/isbi2012 --set train.epochs=20 --set optim.lr=0.001[/]
    [bold]tinyseg train isbi --resume[/]
    [bold]tinyseg train fc_densenet --data ~/data/camvid --device cuda[/]
    [bold]tinyseg train mine.toml --set model.name=fcn16s --init runs/fcn32s[/]
    """
    from rich.console import Console

    from tinyseg.train import config as configuration
    from tinyseg.train.errors import SettingError
    from tinyseg.train.reporters import file_reporters
    from tinyseg.train.reporters.terminal import Terminal
    from tinyseg.train.run import Run, free_folder, latest_run
    from tinyseg.train.trainer import train

    changes = list(sets or [])
    if data is not None:
        changes.append(f"data.root={data.expanduser().absolute()}")
    if init is not None:
        if resume:
            raise SettingError("--init starts a run, and --resume goes on with one: give one of them")
        changes.append(f"train.init={init.expanduser().absolute()}")
    if device is not None:
        changes.append(f"train.device={device}")
    if cuda_graph:
        changes.append("train.cuda_graph=true")
    if seed is not None:
        changes.append(f"train.seed={seed}")

    if resume:
        folder = out or (
            Path(preset) if Path(preset, "config.toml").is_file() else latest_run(RUNS, _name(preset))
        )
        config = configuration.override(Run.open(folder).config, changes)
    else:
        config, name = _configuration(preset)
        config = configuration.override(config, changes)
        folder = out or free_folder(RUNS, name)
    console = Console()
    if show:
        show_settings(console, config)
        return
    if config.data.root is None and config.data.name != "shapes":
        raise SettingError(
            f"the data set {config.data.name} lies in a folder, and none is given: add --data FOLDER"
        )
    result = train(config, folder, resume=resume, reporters=[Terminal(console), *file_reporters(config)])
    if result.stopped_by:
        raise typer.Exit({"SIGINT": 130, "SIGTERM": 143}[result.stopped_by])


def _name(preset: str) -> str:
    """What a run of this preset, or of a TOML file, is called."""
    return Path(preset).stem if preset else "shapes"


def _configuration(preset: str) -> "tuple[Config, str]":
    """The configuration of a preset or a file, and its name."""
    from tinyseg.train import config as configuration

    if preset.endswith(".toml"):
        return configuration.read(Path(preset)), _name(preset)
    return configuration.preset(_name(preset)), _name(preset)


def show_settings(console: "Console", config: "Config") -> None:
    """A configuration as a TOML file, coloured in a terminal."""
    from rich.syntax import Syntax

    from tinyseg.train import config as configuration

    text = configuration.to_toml(config)
    if console.is_terminal:
        console.print(Syntax(text, "toml", theme="ansi_dark", background_color="default"))
    else:
        typer.echo(text, nl=False)
