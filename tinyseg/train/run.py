"""A run folder: everything that a training run leaves behind.

config.toml           the configuration, in full
metrics.jsonl         a line of JSON for every finished epoch
last.safetensors      to continue from
best.safetensors      the weights with the best score
curves.png            loss, scores and learning rate over the epochs
samples.png           input, truth, prediction and error of a few validation images
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyseg.train import files
from tinyseg.train.config import Config, read, to_toml
from tinyseg.train.errors import RunFolderError


class Run:
    """The files of one run, by name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config_file = self.folder / "config.toml"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.last = self.folder / "last.safetensors"
        self.best = self.folder / "best.safetensors"
        self.curves = self.folder / "curves.png"
        self.samples = self.folder / "samples.png"

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """Start a run folder. It must be new or empty, so that no older run is overwritten."""
        run = cls(folder)
        files.make_folder(run.folder)
        if any(run.folder.iterdir()):
            remedy = "continue it with --resume, or" if run.config_file.exists() else "delete it, or"
            held = "a run already" if run.config_file.exists() else "other files"
            raise RunFolderError(f"{run.folder} holds {held}; {remedy} choose another folder with --out")
        run.write_config(config)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run folder."""
        run = cls(folder)
        if not run.folder.is_dir():
            raise RunFolderError(f"there is no run folder {run.folder}{_runs_beside(run.folder)}")
        if not run.config_file.is_file():
            raise RunFolderError(f"{run.folder} is no run folder, it has no config.toml{_runs_beside(run.folder)}")
        return run

    @property
    def config(self) -> Config:
        return read(self.config_file)

    def write_config(self, config: Config) -> None:
        files.write_atomically(self.config_file, to_toml(config).encode())

    # ---------------------------------------------------------------------------------------------- the history

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. A last line that a crash cut short is left out; NaN is None."""
        if not self.metrics_file.is_file():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def add_to_history(self, row: Mapping[str, Any]) -> None:
        files.append_line(self.metrics_file, json_line(row))

    def rewind_history(self, epochs: int) -> list[dict[str, Any]]:
        """Keep the first epochs only: those that a checkpoint has behind it. Returns them."""
        rows = [row for row in self.history() if row.get("epoch", 0) <= epochs]
        files.write_atomically(self.metrics_file, "".join(json_line(row) + "\n" for row in rows).encode())
        return rows


def free_folder(parent: Path, name: str) -> Path:
    """parent/name, or parent/name-2, parent/name-3, ... if that is taken."""
    candidate, number = parent / name, 2
    while candidate.exists():
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate


def latest_run(parent: Path, name: str) -> Path:
    """The run called name, name-2, name-3, ... whose checkpoint is the newest."""
    runs = [
        path.parent for path in parent.glob(f"{name}*/last.safetensors") if _is_numbered(path.parent.name, name)
    ]
    if not runs:
        raise RunFolderError(
            f"there is no run of {name} to resume in {parent}; give its folder with --out, or start one "
            "without --resume"
        )
    return max(runs, key=lambda folder: (folder / "last.safetensors").stat().st_mtime)


def _is_numbered(folder: str, name: str) -> bool:
    rest = folder.removeprefix(name)
    return rest == "" or (rest.startswith("-") and rest[1:].isdigit())


def _runs_beside(folder: Path) -> str:
    found: Sequence[Path] = sorted(path.parent for path in folder.parent.glob("*/config.toml"))
    found = found or sorted(path.parent for path in Path("runs").glob("*/config.toml"))
    return f"; there are: {', '.join(map(str, found))}" if found else "; `tinyseg train` makes one"


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(row), allow_nan=False)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
