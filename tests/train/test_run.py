"""The run folder: its history, and which folder a run gets."""

import json
import math
import os

import pytest

from tinyseg.train import config
from tinyseg.train.errors import RunFolderError
from tinyseg.train.run import Run, free_folder, latest_run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "runs" / "one", config.preset("shapes"))


def test_the_configuration_comes_back(run):
    assert Run.open(run.folder).config == config.preset("shapes")


def test_the_history_is_json_even_with_nan(run):
    run.add_to_history({"epoch": 1, "loss": 0.1 + 0.2, "mean_iou": math.nan, "iou": {"sky": math.inf, "sea": 1.0}})
    (line,) = run.metrics_file.read_text().splitlines()
    assert json.loads(line) == {"epoch": 1, "loss": 0.1 + 0.2, "mean_iou": None, "iou": {"sky": None, "sea": 1.0}}


def test_a_line_cut_short_by_a_crash_is_left_out(run):
    run.add_to_history({"epoch": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert run.history() == [{"epoch": 1}]


def test_rewinding_drops_the_epochs_after_a_checkpoint(run):
    for epoch in (1, 2, 3):
        run.add_to_history({"epoch": epoch})
    assert run.rewind_history(2) == [{"epoch": 1}, {"epoch": 2}]
    assert run.history() == [{"epoch": 1}, {"epoch": 2}]


def test_a_run_does_not_overwrite_another(run):
    with pytest.raises(RunFolderError, match="holds a run already; continue it with --resume, or choose another"):
        Run.create(run.folder, config.preset("shapes"))


def test_a_folder_with_other_files_is_not_used(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="holds other files"):
        Run.create(tmp_path, config.preset("shapes"))


def test_a_missing_run_is_answered_with_those_there_are(run):
    with pytest.raises(RunFolderError, match=r"there is no run folder .*two; there are: .*one"):
        Run.open(run.folder.parent / "two")
    (run.folder.parent / "two").mkdir()
    with pytest.raises(RunFolderError, match=r"two is no run folder, it has no config.toml; there are: .*one"):
        Run.open(run.folder.parent / "two")


def test_new_runs_are_numbered_and_the_latest_is_found(tmp_path):
    assert free_folder(tmp_path, "shapes") == tmp_path / "shapes"
    for age, name in enumerate(("shapes-2", "shapes", "shapes-10", "shapes-of-mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.safetensors").touch()
        os.utime(tmp_path / name / "last.safetensors", (1000 + age, 1000 + age))
    assert free_folder(tmp_path, "shapes") == tmp_path / "shapes-3"
    assert latest_run(tmp_path, "shapes") == tmp_path / "shapes-10"
    with pytest.raises(RunFolderError, match="no run of isbi to resume"):
        latest_run(tmp_path, "isbi")
