"""The options of `tinyseg eval` and `tinyseg predict` that say how a network looks at an image."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tinyseg.models.inference import Options

Tile = Annotated[
    int | None,
    typer.Option("--tile", metavar="PIXELS", help="Answer for squares of this side at a time, to save memory."),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="S,S,...",
        help="Sizes of the image to average over: 0.5,0.75,1,1.25,1.5. By default as the run was validated.",
    ),
]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Average over the image and its mirror image, too.")
]
Window = Annotated[
    str | None,
    typer.Option("--window", metavar="SIDE", help="Slide a window of this side over the image, or HEIGHT,WIDTH."),
]
Stride = Annotated[
    int | None, typer.Option("--stride", metavar="PIXELS", help="From window to window. By default 2/3 of it.")
]
Average = Annotated[
    str, typer.Option("--average", help="What to average: probabilities, logits, or take the maximum.")
]
Device = Annotated[
    Literal["cpu", "cuda"], typer.Option("--device", help="Where the network runs: cuda is an NVIDIA GPU.")
]
OutputStride = Annotated[
    int | None,
    typer.Option("--output-stride", metavar="STRIDE", help="Of DeepLab v3 and v3+: another one than in training."),
]


def inference_options(
    tile: int | None, scales: str | None, flip: bool | None, window: str | None, stride: int | None, average: str
) -> "Options":
    """The options for `predict_logits` that were given. Raises `SettingError` for what is no number."""
    from tinyseg.train.errors import SettingError

    if tile is not None and tile < 1:
        raise SettingError(f"--tile must be 1 or more, got {tile}")
    try:
        sides = tuple(int(side) for side in window.split(",")) if window is not None else None
        pair = (sides[0], sides[-1]) if sides is not None else None
    except ValueError:
        sides = ()
    if sides is not None and len(sides) not in (1, 2):
        raise SettingError(f"--window must be one whole number, or HEIGHT,WIDTH; got {window!r}")
    options: Options = {
        "tile": tile,
        "window": pair,
        "stride": stride,
        "average": average,  # type: ignore[typeddict-item]  checked with the others
    }
    if scales is not None:
        options["scales"] = _numbers(scales)
    if flip is not None:
        options["flip"] = flip
    return options


def _numbers(scales: str) -> tuple[float, ...]:
    from tinyseg.train.errors import SettingError

    try:
        return tuple(float(scale) for scale in scales.split(","))
    except ValueError:
        raise SettingError(f"--scales must be numbers with commas, such as 0.5,0.75,1; got {scales!r}") from None
