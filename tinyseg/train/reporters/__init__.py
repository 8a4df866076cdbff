"""Those who watch a run: progress in a terminal (`terminal.Terminal`), pictures in the run folder, TensorBoard."""

from tinyseg.train.config import Config
from tinyseg.train.reporters.base import Reporter, Step
from tinyseg.train.reporters.pictures import Pictures


def file_reporters(config: Config) -> list[Reporter]:
    """The reporters that write files: pictures, and TensorBoard events if they are asked for."""
    reporters: list[Reporter] = [Pictures()]
    if config.train.tensorboard:
        from tinyseg.train.reporters.tensorboard import TensorBoard

        reporters.append(TensorBoard())
    return reporters


__all__ = ["Pictures", "Reporter", "Step", "file_reporters"]
