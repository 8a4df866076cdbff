"""`tinyseg crf`, and --crf of predict and eval, as a person uses them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyseg
from tinyseg import crf
from tinyseg.cli import main
from tinyseg.data import Shapes

SETS = {
    "data.size": "16,16",
    "data.train.length": "4",
    "data.val.length": "3",
    "model.base": "2",
    "model.depth": "1",
    "train.batch": "2",
    "train.epochs": "1",
}
SMALL = ["--w1", "2,5", "--sa", "6", "--sb", "20,40", "--iterations", "1,2"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*words):
        with tinyseg.use("numpy"), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "shapes"
    sets = [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    with tinyseg.use("numpy"), pytest.raises(SystemExit):
        main(["train", *sets, "--out", str(folder)])
    return folder


def test_presets(run):
    code, out, _ = run("crf", "presets")
    assert code == 0
    for name in crf.PRESETS:
        assert name in out


def test_search_leaves_a_table_and_a_picture(run, trained):
    code, out, error = run("crf", "search", trained, *SMALL, "--out", "found")
    assert code == 0, error
    assert "8 settings on 3 images of Shapes val" in error
    assert "within 3 px" in out
    result = json.loads(Path("found/search.json").read_text())
    assert len(result["settings"]) == 8
    assert {row["iterations"] for row in result["settings"]} == {1, 2}
    assert Path("found/search.png").stat().st_size > 10_000
    if result["best"]["mean_iou"] > result["without"]["mean_iou"]:
        assert f"tinyseg predict {trained} IMAGES --crf " in out
    else:
        assert "No setting is better than the network alone." in out


def test_search_as_json_on_some_images(run, trained):
    code, out, _ = run("crf", "search", trained, *SMALL, "--images", 2, "--band", 1.5, "--out", "found", "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["images"], result["band_width"]) == (2, 1.5)
    assert result == json.loads(Path("found/search.json").read_text())


def test_search_on_saved_probabilities(run, tmp_path):
    """Of a data set in a folder, without any run."""
    shapes, rng = Shapes("val", length=2, size=(18, 16)), np.random.default_rng(0)
    for folder in ("data/images/val", "data/masks/val", "said"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/classes.txt").write_text("\n".join(shapes.classes))
    for sample in (shapes[0], shapes[1]):
        Image.fromarray(sample.image).save(tmp_path / f"data/images/val/{sample.name}.png")
        Image.fromarray(sample.mask.astype(np.uint8)).save(tmp_path / f"data/masks/val/{sample.name}.png")
        scores = np.eye(6)[sample.mask] + rng.random((18, 16, 6))
        np.save(tmp_path / f"said/{sample.name}.npy", scores / scores.sum(axis=-1, keepdims=True))
    code, out, error = run("crf", "search", "said", *SMALL, "--data", "data", "--set", "ignore_label=9", "--json")
    assert code == 0, error
    assert json.loads(out)["images"] == 2
    assert Path("said/crf_search/search.png").exists()
    code, _, error = run("crf", "search", "said")
    assert code == 2
    assert "say with --dataset and --data which images and masks they belong to" in error


def test_predict_and_eval_with_a_crf(run, trained):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)).save("image.png")
    options = ["--crf", "deeplab_v1", "--crf-set", "appearance_colour=50"]
    code, out, error = run("predict", trained, "image.png", "--out", "out", *options)
    assert code == 0, error
    assert "1 of 1 images segmented" in out
    code, out, _ = run("eval", trained, *options)
    assert code == 0
    assert "--crf deeplab_v1 --crf-set appearance_colour=50" in out
    code, out, _ = run("eval", trained, *options, "--json")
    assert json.loads(out)["crf"]["appearance_colour"] == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crf", "search", "RUN", "--w1", "3,x"], "--w1 must be numbers set apart by commas, got '3,x'"),
        (
            ["crf", "search", "RUN", "--iterations", "2.5"],
            "--iterations must be whole numbers set apart by commas",
        ),
        (["crf", "search", "RUN", "--sb", "0"], "appearance_colour must be positive and finite"),
        (["crf", "search", "RUN", "--normalisation", "sum"], "normalisation must be one of"),
        (["crf", "search", "RUN", "--band", "0"], "--band must be more than 0 pixels"),
        (["crf", "search", "nowhere"], "there is no run folder nowhere"),
        (["predict", "RUN", "image.png", "--crf", "deeplab"], "there is no CRF preset 'deeplab'; did you mean"),
        (["eval", "RUN", "--crf-set", "iterations=3"], "--crf-set changes a preset: add --crf"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(run, trained, words, message):
    code, _, error = run(*(trained if word == "RUN" else word for word in words))
    assert code == 2
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error
