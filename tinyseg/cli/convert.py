"""`tinyseg convert`: weights to and from PyTorch."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tinyseg.interop import Convention, Weights
    from tinyseg.train.checkpoint import Labels


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A .pth or .safetensors file, a run folder, or a checkpoint.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[TARGET]", help="The new file, .pth or .safetensors. None: list SOURCE."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Make a checkpoint of this network from PyTorch's weights."),
    ] = None,
    classes: Annotated[
        str, typer.Option("--classes", metavar="N|NAMES", help="Of the network: how many, or sky,road,...")
    ] = "21",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="SETTING=VALUE", help="As for train: model.base=16, data.name=voc."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="PART", help="Take this part alone, such as backbone.")
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--convention",
            metavar="NAME",
            help="What input the weights expect, if the file does not say it: torchvision, googlenet, caffe or "
            "vgg_features.",
        ),
    ] = None,
    weights: Annotated[str, typer.Option("--weights", help="Of a run: best or last.")] = "best",
) -> None:
    """Convert weights from PyTorch, to PyTorch, or between its file formats.

    Nothing in a .pth file is run; files that hold more than weights are refused.

    [bold]tinyseg convert runs/camvid camvid.pth[/]   a trained network for torch.load
    [bold]tinyseg convert fcn_resnet50_coco.pth fcn.safetensors --model fcn_resnet50[/]   for tinyseg predict
    [bold]tinyseg convert old.pth new.safetensors[/]   the same weights in another container
    [bold]tinyseg convert some.pth[/]   what is in it
    """
    from tinyseg import interop
    from tinyseg.train.errors import SettingError

    if weights not in ("best", "last"):
        raise SettingError(f"--weights must be best or last, got {weights!r}")
    if convention is not None and convention not in interop.CONVENTIONS:
        raise SettingError(f"--convention must be one of {', '.join(interop.CONVENTIONS)}, got {convention!r}")
    if model is None and (only or sets):
        raise SettingError("--only and --set need --model: without it the file is copied as it is")
    if _is_ours(source):
        if target is None or model is not None:
            raise SettingError(f"{source} is of tinyseg and knows its network: give a TARGET, and no --model")
        _export(source, target, weights)
        return
    found, expected = interop.read_weights(source), interop.CONVENTIONS.get(convention or "")
    if target is None:
        _list(found)
    elif model is None:
        with _writing(target):
            interop.write_weights(target, found.arrays, expected or found.convention)
        typer.echo(f"{len(found.arrays)} tensors: {target}")
    else:
        _import(found, target, [f"model.name={model}", *(sets or [])], classes, only, expected)


def _is_ours(source: str) -> bool:
    """Whether the source is a run folder or a checkpoint."""
    import safetensors

    from tinyseg.train.checkpoint import FORMAT

    path = Path(source)
    if path.suffix != ".safetensors" or not path.is_file():
        return path.is_dir()
    try:
        with safetensors.safe_open(path, "np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (safetensors.SafetensorError, OSError):
        return False  # whoever reads it next says what is wrong


def _export(source: str, target: Path, weights: str) -> None:
    from tinyseg import interop
    from tinyseg.train.prediction import load

    network, found = load(source, weights)
    labels = dataclasses.replace(found.labels, align_corners=network.align_corners)
    with _writing(target):
        interop.save_weights(target, network, convention=labels.convention)
    typer.echo(f"{found.config.model.name} from {found.path}: {target}")


def _import(
    found: "Weights",
    target: Path,
    changes: list[str],
    classes: str,
    only: str | None,
    expected: "Convention | None",
) -> None:
    """Write a checkpoint with the network that the changes name, and with these weights."""
    from tinyseg import interop
    from tinyseg.train import build, checkpoint, config
    from tinyseg.train.errors import SettingError

    if target.suffix != ".safetensors":
        raise SettingError(f"a checkpoint's name must end in .safetensors, got {target}")
    settings = config.override(config.Config(), changes)
    known = expected or found.convention
    labels = _labels(classes, known or interop.TORCHVISION)
    network = build.network(settings, labels.channels, len(labels.classes))
    labels = dataclasses.replace(labels, align_corners=network.align_corners)
    loaded = interop.load_weights(network, found, only=only, convention=known)
    checkpoint.save(target, checkpoint.Checkpoint(settings, labels, network.state_dict()))
    stored = known.align_corners if known else None
    if only is None and None not in (stored, network.align_corners) and stored != network.align_corners:
        typer.echo(
            f"Note: the weights are of a network that enlarges its scores with align_corners={stored}, and "
            f"{settings.model.name} does it with align_corners={network.align_corners}"
        )
    for notice in loaded.notices:
        typer.echo(f"Note: {notice}")
    if known is None:
        typer.echo("Note: the file does not say what input it expects; taken to be torchvision's")
    typer.echo(
        f"{loaded.names} of {len(network.state_dict())} parameters and buffers of {changes[0][11:]}: {target}"
    )


def _labels(classes: str, convention: "Convention") -> "Labels":
    """What the network's outputs mean, and what its input must be."""
    from tinyseg.data.sample import voc_palette
    from tinyseg.data.voc import CLASSES
    from tinyseg.train.checkpoint import Labels
    from tinyseg.train.errors import SettingError

    names = tuple(part.strip() for part in classes.split(","))
    if len(names) == 1:
        if not (names[0].isascii() and names[0].isdigit() and 0 < int(names[0]) <= 10_000):
            raise SettingError(
                f"--classes must be a number of classes, or their names with commas, got {classes!r}"
            )
        names = tuple(f"class {index}" for index in range(int(names[0])))
        names = CLASSES if len(names) == len(CLASSES) else names
    rgb = convention.in_rgb()
    return Labels(
        classes=names,
        palette=tuple(tuple(int(value) for value in colour) for colour in voc_palette(len(names))),
        ignore_label=255 if len(names) <= 255 else None,
        channels=len(rgb.mean),
        mean=rgb.mean,
        std=rgb.std,
    )


def _list(found: "Weights") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "shape", "type"):
        table.add_column(heading)
    for name, array in found.arrays.items():
        table.add_row(Text(name), " ".join(map(str, array.shape)), str(array.dtype))
    console.print(table)
    total = sum(array.size for array in found.arrays.values())
    typer.echo(f"\n{found.path}: {found.container}, {len(found.arrays)} tensors, {total:,} numbers")
    if found.ignored:
        typer.echo(f"{len(found.ignored)} entries are no tensors")
    typer.echo(f"Input: {found.convention or 'the file does not say what it expects'}")


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Inside, an error of the disk becomes a message with what to do."""
    from tinyseg.train.files import explained

    try:
        yield
    except OSError as error:
        raise explained(error, target) from error
