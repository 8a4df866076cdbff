"""Training and using networks: configurations, the loop, checkpoints, evaluation and prediction.

    from tinyseg.train import preset, override, train

    result = train(override(preset("shapes"), ["train.epochs=3"]), out="runs/mine")

The command line (`tinyseg train`, `eval`, `predict`) calls the same functions with the same names.
"""

from tinyseg.train.config import Config, override, preset, presets, read
from tinyseg.train.errors import CheckpointError, DivergedError, RunFolderError, SettingError, UserError
from tinyseg.train.evaluation import Scores, evaluate
from tinyseg.train.prediction import Predictions, load, predict
from tinyseg.train.run import Run
from tinyseg.train.trainer import Result, Trainer, train

__all__ = [
    "CheckpointError",
    "Config",
    "DivergedError",
    "Predictions",
    "Result",
    "Run",
    "RunFolderError",
    "Scores",
    "SettingError",
    "Trainer",
    "UserError",
    "evaluate",
    "load",
    "override",
    "predict",
    "preset",
    "presets",
    "read",
    "train",
]
