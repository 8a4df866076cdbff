"""The command line: `tinyseg train | eval | predict | data | crf | convert | models | summary | doctor | bench`.

Each command is a thin layer over a function of the package. Heavy modules are imported inside the commands, so
that `tinyseg --help` answers at once.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tinyseg.cli import bench, convert, crf, data, doctor, evaluate, models, predict, train
from tinyseg.cli.errors import explain

app = typer.Typer(
    name="tinyseg",
    help="Train, check and use semantic segmentation networks, on NumPy and Numba alone.",
    epilog="A first run, two minutes on a CPU: [bold]tinyseg train[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("eval")(evaluate.command)
app.command("predict")(predict.command)
app.add_typer(data.app, name="data")
app.add_typer(crf.app, name="crf")
app.command("convert")(convert.command)
app.command("models")(models.list_command)
app.command("summary")(models.summary_command)
app.command("doctor")(doctor.command)
app.command("bench")(bench.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        import tinyseg

        typer.echo(f"tinyseg {tinyseg.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `tinyseg` program. Always ends with SystemExit.

    Exit codes: 0 done; 1 a command that found problems in what it was to check; 2 a wrong command line, setting,
    file or folder; 130 and 143 a run ended by Ctrl-C and SIGTERM. A programming error keeps its traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]  # it may stand anywhere
    try:
        app(arguments)
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            raise
        from rich.console import Console
        from rich.text import Text

        # Text, not markup: a path may hold square brackets.
        Console(stderr=True).print(Text(f"Error: {message}", style="red"), soft_wrap=True)
        sys.exit(2)
