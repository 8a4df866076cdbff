"""A CRF behind a network: what the command line asks for, and what it does to predictions and scores."""

import numpy as np
import pytest

from tinyseg import crf
from tinyseg.crf import Parameters
from tinyseg.data import files as image_files
from tinyseg.models.inference import predict_probabilities
from tinyseg.train import build, config, evaluate, prediction, train
from tinyseg.train.errors import SettingError
from tinyseg.train.evaluation import normalised
from tinyseg.train.refinement import colours, crf_options, crf_parameters, refined

MILD = crf.parameters("pydensecrf", appearance_position=6, appearance_colour=40, iterations=3)


@pytest.fixture
def trained(tmp_path, tiny):
    return train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[]).folder


def test_presets_and_changes():
    assert crf_parameters(None) is None
    assert crf_parameters("deeplab_v1") == crf.PRESETS["deeplab_v1"]
    changed = crf_parameters(
        "crf_rnn", ["appearance_weight=2.5", "iterations = 7", "smoothness_position=3,2", "normalisation=none"]
    )
    assert changed == Parameters(2.5, 160, 3, 3, (3, 2), 7, "none")


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("deeplab", [], "there is no CRF preset 'deeplab'; did you mean 'deeplab_v1'"),
        (None, ["iterations=3"], "--crf-set changes a preset: add --crf and its name, one of pydensecrf, "),
        ("crf_rnn", ["iterations"], "--crf-set needs NAME=VALUE, got 'iterations'"),
        ("crf_rnn", ["iteration=3"], "a CRF has no parameter 'iteration'; did you mean 'iterations'"),
        ("crf_rnn", ["iterations=3.5"], "--crf-set iterations must be a whole number, got '3.5'"),
        ("crf_rnn", ["iterations=-1"], "iterations must be a whole number, 0 or more"),
        ("crf_rnn", ["appearance_colour=0"], "appearance_colour must be positive and finite"),
        ("crf_rnn", ["normalisation=twice"], "--crf-set normalisation must be none, before, after or symmetric"),
    ],
)
def test_wrong_presets_and_changes(preset, changes, message):
    with pytest.raises(SettingError, match=message):
        crf_parameters(preset, changes)


@pytest.mark.parametrize(
    "parameters",
    [*crf.PRESETS.values(), Parameters(2.5, 60, 4, 1, (3, 2.5), 10, "after"), Parameters(appearance_colour=20.0)],
)
def test_options_say_the_same_as_parameters(parameters):
    words = crf_options(parameters).split()
    preset, changes = words[1], words[3::2]
    assert crf_parameters(preset, changes) == parameters
    assert changes == [] or parameters not in crf.PRESETS.values()


def test_colours_are_bytes(rng):
    image = rng.integers(0, 256, (3, 4, 3), np.uint8)
    assert colours(image) is image
    np.testing.assert_array_equal(colours(image.astype(np.float32) / 255), image)


def test_refined_is_the_dense_crf_of_the_probabilities(rng):
    image = rng.integers(0, 256, (5, 6, 1), np.uint8)
    logits = rng.standard_normal((5, 6, 4)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = crf.dense_crf(image, probabilities, MILD)
    for given in (image, image.astype(np.float32) / 255):
        np.testing.assert_allclose(refined(given, logits, MILD), expected, atol=1e-5)


def test_predictions(tmp_path, trained, rng):
    from PIL import Image

    Image.fromarray(rng.integers(0, 256, (20, 33, 3), np.uint8)).save(tmp_path / "image.png")
    prediction.predict(trained, [tmp_path / "image.png"], tmp_path / "out", overlays=False, crf=MILD)
    network, found = prediction.load(trained)
    image = image_files.read_image(tmp_path / "image.png")
    probabilities = predict_probabilities(network, normalised(image, found.labels))
    expected = crf.dense_crf(image, probabilities, MILD).argmax(axis=-1)
    assert (expected != probabilities.argmax(axis=-1)).any()
    mask = image_files.read_mask(tmp_path / "out" / "masks" / "image.png")
    np.testing.assert_array_equal(mask, expected)


def test_scores(trained):
    network, found = prediction.load(trained)
    dataset = build.open_dataset(found.config, "val")
    plain, with_crf = (evaluate(network, dataset, found.labels, keep=3, crf=c) for c in (None, MILD))
    changed = False
    for (sample, before), (_, after) in zip(plain.examples, with_crf.examples, strict=True):
        expected = prediction.predict_mask(network, sample.image, found.labels, crf=MILD)
        np.testing.assert_array_equal(after, expected)
        changed |= bool((before != after).any())
    assert changed
    assert plain.confusion.matrix.sum() == with_crf.confusion.matrix.sum()
