"""`tinyseg models` and `tinyseg summary`, as they print."""

import re

import pytest

from tinyseg import models
from tinyseg.cli import main
from tinyseg.models import backbones
from tinyseg.models.papers import paper_of


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command; returns its exit code, its output and its error output."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


def test_models_lists_every_network_with_its_count_and_paper(run):
    code, out, _ = run("models")
    assert code == 0
    found = dict(re.findall(r"^(\w+) +([\d,]+) ", out, re.MULTILINE))
    assert set(found) == set(models.MODELS) | set(backbones.BACKBONES)
    assert found["unet"] == "31,033,045"  # 3 channels, 21 classes
    assert found["vgg16"] == "138,357,544"
    assert "Ronneberger, Fischer & Brox, MICCAI 2015" in out


@pytest.mark.parametrize("name", [*models.MODELS, *backbones.BACKBONES])
def test_every_network_has_a_paper(name):
    assert paper_of(name)


def test_summary(run):
    code, out, _ = run("summary", "plain", "--size", "36", "48", "--set", "width=10", "--set", "depth=2")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["layers.0", "conv2d", "3x3", "36", "x", "48", "x", "10", "280", "466,560", "68", "3", "1"] in lines
    assert ["parameters", "1,421"] in lines
    assert ["multiply-adds", f"{36 * 48 * (270 + 900 + 210):,}"] in lines
    assert sum("relu" in line for line in lines) == 2
    _, brief, _ = run("summary", "plain", "--size", "36", "48", "--set", "depth=2", "--brief")
    assert "relu" not in brief and "classifier" in brief


def test_summary_of_a_classifier(run):
    code, out, _ = run("summary", "resnet18", "--size", "224", "224", "--classes", "10")
    assert code == 0
    assert re.search(r"^layer4\.1\.conv2 +conv2d 3x3 +7 x 7 x 512 +2,359,296 +115,605,504 ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["unett"], "there is no network 'unett'; did you mean 'unet'?"),
        (["unet", "--size", "20", "20"], "20 x 20 pixels is too small"),
        (["unet", "--set", "bas=3"], "unet has no setting 'bas'; did you mean 'base'?"),
        (["unet", "--set", "base"], "--set base is not of the form OPTION=VALUE"),
        (["unet", "--set", "base=two"], "base must be"),
        (["unet", "--set", "depth=0"], "depth must be at least 1, got 0"),
    ],
)
def test_summary_refuses_with_one_sentence(run, words, sentence):
    code, out, error = run("summary", *words)
    assert code == 2 and out == ""
    assert sentence in error and "Traceback" not in error
