"""The search over a CRF's parameters: against single calls, saved probabilities, the best, and the picture."""

import json

import numpy as np
import pytest

from tinyseg import crf, viz
from tinyseg.crf import Parameters
from tinyseg.data import Shapes
from tinyseg.metrics import ConfusionMatrix, TrimapAccuracy
from tinyseg.train.crf_pictures import heat_maps
from tinyseg.train.crf_search import Case, Grid, saved_cases, search
from tinyseg.train.errors import UserError

GRID = Grid(
    appearance_weight=(1, 4),
    appearance_position=(5,),
    appearance_colour=(15, 60),
    smoothness_weight=(1.5,),
    smoothness_position=(1, 2),
    iterations=(1, 3),
)


@pytest.fixture
def cases(rng):
    """Two noisy pictures, odd sizes, with a wrong opinion here and there; 9 is void."""
    made = []
    for number, (height, width) in enumerate([(14, 11), (9, 16)]):
        mask = np.zeros((height, width), np.int64)
        mask[3:, 4:9] = 1
        mask[6:9] = 2
        image = np.array([40, 120, 210])[mask][..., None] + rng.integers(-15, 16, (height, width, 3))
        logits = 1.5 * np.eye(3)[mask] + rng.standard_normal((height, width, 3))
        mask[0] = 9
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        made.append(Case(f"{number}", image.astype(np.uint8), mask, probabilities.astype(np.float32)))
    return made


@pytest.fixture
def found(cases):
    return search(cases, GRID, 3, 9, band_width=2)


def test_every_setting_has_the_scores_of_single_calls(cases, found):
    assert len(found.settings) == len(GRID) == 16
    assert len({setting.parameters for setting in found.settings}) == 16
    for setting in found.settings:
        confusion, trimap = ConfusionMatrix(3, 9), TrimapAccuracy(3, 9, widths=(2,))
        for case in cases:
            labels = crf.dense_crf(case.image, case.probabilities, setting.parameters).argmax(axis=-1)
            confusion.update(case.mask, labels)
            trimap.update(case.mask, labels)
        np.testing.assert_array_equal(setting.confusion.matrix, confusion.matrix)
        np.testing.assert_array_equal(setting.band.matrix, trimap.matrices[0].matrix)
    alone = ConfusionMatrix(3, 9)
    for case in cases:
        alone.update(case.mask, case.probabilities.argmax(axis=-1))
    np.testing.assert_array_equal(found.without.confusion.matrix, alone.matrix)


def test_the_best(found):
    assert found.best.mean_iou == max(setting.mean_iou for setting in found.settings) > found.without.mean_iou
    assert found.best_in_band.band_iou == max(setting.band_iou for setting in found.settings)
    assert found.at_edge("appearance_colour")
    assert not found.at_edge("appearance_position")  # there was only one


def test_json(found):
    result = json.loads(json.dumps(found.to_json()))
    scores = [row["mean_iou"] for row in result["settings"]]
    assert scores == sorted(scores, reverse=True)
    assert result["images"] == 2
    names = Parameters._fields
    assert Parameters(**{name: result["best"][name] for name in names}) == found.best.parameters
    assert set(result["without"]) == {"mean_iou", "pixel_accuracy", "band_mean_iou", "band_pixel_accuracy"}


def test_progress(cases):
    told = []
    search(iter(cases), GRID, 3, 9, count=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(n + 1, 32) for n in range(32)]


def test_picture(tmp_path, found):
    figure = heat_maps(found)
    texts = [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    gain = f"{100 * (found.best.mean_iou - found.without.mean_iou):+.2f}".replace("-", "−")
    assert gain in texts
    assert "appearance weight 4" in texts
    viz.save(figure, tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_picture_of_one_setting(tmp_path, cases):
    grid = Grid(appearance_weight=(3,), appearance_position=(5,), appearance_colour=(30,))
    viz.save(heat_maps(search(cases, grid, 3, 9)), tmp_path / "one.png")


def test_saved_probabilities(tmp_path):
    dataset = Shapes("val", length=2, size=(16, 18))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 16, 18, 6))
    logarithms = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for n, values in enumerate((np.exp(logarithms[0]), logarithms[1].astype(np.float16))):
        np.save(tmp_path / f"{dataset[n].name}.npy", values)
    for n, case in enumerate(saved_cases(tmp_path, dataset)):
        np.testing.assert_allclose(case.probabilities, np.exp(logarithms[n]), rtol=4e-3)
        assert case.image.dtype == np.uint8
        np.testing.assert_array_equal(case.mask, dataset[n].mask)
    assert [case.name for case in saved_cases(tmp_path, dataset, indices=[1])] == [dataset[1].name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*npy for the image"),
        (b"no array", "cannot be read as an array of NumPy"),
        (
            np.zeros((16, 18, 5)),
            r"must hold finite floats \(height, width, classes\) = \(16, 18, 6\), got float64",
        ),
        (np.zeros((16, 18, 6), int), "must hold finite floats .* got int64"),
        (np.full((16, 18, 6), np.nan), "must hold finite floats"),
        (np.linspace(-3, 3, 1728).reshape(16, 18, 6), "must hold probabilities, 0 to 1, or their logarithms"),
    ],
)
def test_saved_probabilities_that_cannot_be_used(tmp_path, content, message):
    dataset = Shapes("val", length=1, size=(16, 18))
    path = tmp_path / f"{dataset[0].name}.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=message):
        list(saved_cases(tmp_path, dataset))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"appearance_weight": ()}, "appearance_weight needs one value or more"),
        ({"appearance_colour": (3, -1)}, "appearance_colour must be positive"),
        ({"iterations": (2.5,)}, "iterations must be a whole number"),
        ({"normalisation": "sum"}, "normalisation must be one of"),
    ],
)
def test_wrong_grids(settings, message):
    with pytest.raises(ValueError, match=message):
        Grid(**settings)


def test_values_that_are_given_twice_are_tried_once():
    assert Grid(appearance_weight=(3, 3.0, 4)).appearance_weight == (3, 4)


def test_no_images():
    with pytest.raises(ValueError, match="there is no image"):
        search([], GRID, 3)
