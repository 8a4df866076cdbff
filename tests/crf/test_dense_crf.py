"""The one call for most people: against brute force and pydensecrf, layouts and types, presets, and errors."""

import numpy as np
import pytest

import tinyseg
from tinyseg import crf
from tinyseg.crf import memory

MILD = {"smoothness_position": 3, "appearance_position": 10, "appearance_colour": 20}
MILD |= {"smoothness_weight": 1, "appearance_weight": 1}


def agreement(a, b):
    return np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))


def brute_force(image, probabilities, p):
    """The whole model from its formulas, with all pairs of pixels in one matrix."""
    height, width, labels = probabilities.shape
    y, x = (axis.ravel() for axis in np.mgrid[:height, :width].astype(float))
    colour = image.reshape(-1, 3).astype(float)

    def kernel(position, colour_bandwidth):
        distance = ((x - x[:, None]) ** 2 + (y - y[:, None]) ** 2) / position**2
        if colour_bandwidth is not None:
            distance += sum((c - c[:, None]) ** 2 for c in colour.T) / colour_bandwidth**2
        k = np.exp(-0.5 * distance)
        n = k.sum(axis=1)
        if p.normalisation == "after":
            return k / n[:, None]
        return k / np.sqrt(n[:, None] * n)

    pairwise = p.smoothness_weight * kernel(p.smoothness_position, None)
    pairwise += p.appearance_weight * kernel(p.appearance_position, p.appearance_colour)
    unary = np.log(np.clip(probabilities.reshape(-1, labels).astype(float), 1e-5, 1))
    q = np.exp(unary)
    q /= q.sum(axis=1, keepdims=True)
    for _ in range(p.iterations):
        q = np.exp(unary + pairwise @ q)
        q /= q.sum(axis=1, keepdims=True)
    return q.reshape(height, width, labels)


@pytest.mark.parametrize("normalisation", ["symmetric", "after"])
@pytest.mark.parametrize("iterations", [1, 5, 10])
def test_exact_method_against_brute_force(toy, iterations, normalisation):
    p = crf.parameters(**MILD, iterations=iterations, normalisation=normalisation)
    expected = brute_force(*toy, p)
    np.testing.assert_allclose(crf.dense_crf(*toy, p, method="exact"), expected, atol=2e-5)


@pytest.mark.parametrize("normalisation", ["symmetric", "after"])
@pytest.mark.parametrize("iterations", [1, 5, 10])
def test_mild_lattice_against_brute_force(toy, iterations, normalisation):
    p = crf.parameters(**MILD, iterations=iterations, normalisation=normalisation)
    expected = brute_force(*toy, p)
    got = crf.dense_crf(*toy, p)
    assert abs(got - expected).max() < 0.03
    assert abs(got - expected).mean() < 0.004
    assert agreement(got, expected) >= 0.99


@pytest.mark.parametrize("preset", ["pydensecrf", "deeplab_v1", "deeplab_v2_resnet101"])
@pytest.mark.parametrize("iterations", [1, 10])
def test_strong_lattice_against_brute_force(toy, preset, iterations):
    p = crf.parameters(preset, iterations=iterations)
    expected = brute_force(*toy, p)
    got = crf.dense_crf(*toy, p)
    assert abs(got - expected).mean() < 0.03
    assert agreement(got, expected) >= 0.96


@pytest.mark.oracle
@pytest.mark.parametrize("normalisation", crf.filters.NORMALISATIONS)
@pytest.mark.parametrize("preset", ["pydensecrf", "deeplab_v1", "deeplab_v2_resnet101"])
def test_ten_iterations_against_pydensecrf(pydensecrf, toy, preset, normalisation):
    options = {"iterations": 10, "normalisation": normalisation}
    theirs = crf.dense_crf(*toy, preset, backend="pydensecrf", **options)
    ours = crf.dense_crf(*toy, preset, **options)
    assert abs(ours - theirs).max() < 1e-3
    assert abs(ours - theirs).mean() < 1e-5
    assert agreement(ours, theirs) >= 0.999
    with tinyseg.use("numpy"):
        reference = crf.dense_crf(*toy, preset, **options)
    assert abs(reference - theirs).max() < 1e-3


@pytest.mark.oracle
@pytest.mark.usefixtures("pydensecrf")
@pytest.mark.parametrize("preset", list(crf.PRESETS))
def test_photographs_against_pydensecrf(real_data, preset, rng):
    from PIL import Image

    image = np.array(Image.open(real_data / "others" / "crf_examples" / "im2.png").convert("RGB"))
    probabilities = rng.dirichlet([1, 1, 1, 1], image.shape[:2]) * [1, 1, 2, 1]
    probabilities[:90, :, 0] *= 2
    probabilities[90:, :, 1] *= 2
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    theirs = crf.dense_crf(image, probabilities, preset, backend="pydensecrf")
    ours = crf.dense_crf(image, probabilities, preset)
    assert abs(ours - theirs).mean() < 1e-5
    assert agreement(ours, theirs) >= 0.999
    assert agreement(ours, probabilities) < 0.9, "there is something to agree about"


def test_it_repairs_a_noisy_segmentation(toy):
    image, probabilities = toy
    truth = brute_force(image, probabilities, crf.parameters(iterations=10)).argmax(axis=-1)
    before = np.mean(probabilities.argmax(axis=-1) == truth)
    after = np.mean(crf.dense_crf(image, probabilities).argmax(axis=-1) == truth)
    assert after > 0.98 > 0.9 > before


def test_layouts_types_and_strides(toy):
    image, probabilities = toy
    expected = crf.dense_crf(image, probabilities)
    first = crf.dense_crf(image, probabilities.transpose(2, 0, 1), layout="LHW")
    np.testing.assert_array_equal(first, expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(crf.dense_crf(image, np.asfortranarray(probabilities)), expected)
    np.testing.assert_array_equal(
        crf.dense_crf(image[:, ::-1], probabilities[:, ::-1])[:, ::-1].shape, expected.shape
    )
    np.testing.assert_allclose(crf.dense_crf(image, probabilities.astype(np.float64)), expected, atol=1e-3)
    np.testing.assert_allclose(crf.dense_crf(image.astype(np.float32), probabilities), expected, atol=1e-6)
    half = crf.dense_crf(image, probabilities.astype(np.float16))
    assert half.dtype == np.float32
    assert agreement(half, expected) > 0.99


def test_probabilities_logits_and_energies(toy):
    image, probabilities = toy
    expected = crf.dense_crf(image, probabilities)
    logits = crf.dense_crf(image, np.log(probabilities) + 2.5, given="logits")
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_allclose(crf.dense_crf(image, -np.log(probabilities), given="energies"), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [None, 1, 2, 4])
def test_any_number_of_channels(toy, channels, rng):
    _, probabilities = toy
    shape = probabilities.shape[:2] if channels is None else (*probabilities.shape[:2], channels)
    q = crf.dense_crf(rng.integers(0, 256, shape), probabilities, appearance_colour=20)
    np.testing.assert_allclose(q.sum(axis=2), 1, atol=1e-5)


def test_a_probability_of_zero_is_not_certainty(toy):
    image, probabilities = toy
    hard = np.eye(3, dtype=np.float32)[probabilities.argmax(axis=2)]
    q = crf.dense_crf(image, hard, appearance_weight=30)
    assert np.isfinite(q).all()
    assert 0.5 < agreement(q, hard) < 1


def test_infinite_energies_are_impossible_labels(toy):
    image, probabilities = toy
    energies = -np.log(probabilities)
    energies[:, :5, 1] = np.inf
    q = crf.dense_crf(image, energies, given="energies")
    assert np.isfinite(q).all()
    assert q[:, :5, 1].max() == 0


def test_presets_by_name():
    assert crf.parameters("deeplab_v1") == crf.Parameters(4, 49, 5, 3, 3, 10, "after")
    assert crf.parameters("crf_rnn", iterations=5).iterations == 5
    assert crf.parameters(crf.Parameters(1, 2, 3)).appearance_colour == 3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"preset": "deeplab"}, "no CRF preset 'deeplab'; did you mean 'deeplab_v"),
        ((), {"iteration": 3}, "no parameter 'iteration'; did you mean 'iterations'"),
        ((), {"iterations": -1}, "iterations must be a whole number, 0 or more; got -1"),
        ((), {"appearance_position": 0}, "appearance_position must be positive and finite, got 0"),
        ((), {"appearance_colour": -3}, "appearance_colour must be positive and finite, got -3"),
        ((), {"appearance_colour": 1e-6}, "bandwidth is far too small"),
        ((), {"appearance_colour": (1, 2)}, "one number or 3, got 2"),
        ((), {"smoothness_weight": np.nan}, "smoothness_weight must be a finite number, got nan"),
        ((), {"normalisation": "l2"}, "normalisation must be one of none, before, after, symmetric; got 'l2'"),
        ((), {"method": "fast"}, "method must be lattice, separable, local or exact; got 'fast'"),
        ((), {"backend": "torch"}, "backend must be 'tinyseg' or 'pydensecrf', got 'torch'"),
        ((), {"given": "softmax"}, "given must be 'probabilities', 'logits' or 'energies', got 'softmax'"),
        ((), {"iterations": 2.5}, "iterations must be a whole number, 0 or more; got 2.5"),
        ((), {"iterations": "5"}, "iterations must be a whole number, 0 or more; got '5'"),
        ((), {"appearance_weight": "10"}, "appearance_weight must be a finite number, got '10'"),
        ((), {"appearance_weight": np.ones(3)}, "appearance_weight must be a finite number"),
        ((), {"layout": "NHWC"}, "layout must be 'HWL' or 'LHW', got 'NHWC'"),
        ((), {"layout": "LHW"}, "pass layout='HWL' for scores with the labels last"),
        ((None, np.zeros((3, 24, 20))), {}, "pass layout='LHW' for scores with the labels first"),
        ((None, np.zeros((20, 24, 3))), {}, "height and width are swapped"),
        ((None, np.zeros((12, 10, 3))), {}, "resize the scores to the image"),
        ((None, np.zeros((24, 20))), {}, r"scores must have three axes, H, W, L; got shape \(24, 20\)"),
        ((None, np.zeros((24, 20, 3), int)), {}, "scores must be floats, got int64"),
        ((None, np.full((24, 20, 3), 3.5)), {}, "pass given='logits'"),
        ((np.zeros((24, 20, 3)) + 0.5, None), {}, "colours between 0 and 1"),
        ((np.zeros((24, 20, 3), bool), None), {}, "image must hold numbers, got bool"),
    ],
)
def test_errors(toy, arguments, options, message):
    image, probabilities = toy
    given = [
        a if a is not None else b for a, b in zip(arguments or (None, None), (image, probabilities), strict=True)
    ]
    with pytest.raises((ValueError, TypeError), match=message):
        crf.dense_crf(*given, **options)


@pytest.mark.parametrize("given", ["probabilities", "logits", "energies"])
def test_nan_in_one_pixel_is_reported(toy, given):
    image, probabilities = toy
    scores = probabilities.copy()
    scores[5, 7, 1] = np.nan
    with pytest.raises(
        ValueError, match="in 1 of 480 pixels, the first is label 1 of the pixel at row 5, column 7"
    ):
        crf.dense_crf(image, scores, given=given)


def test_a_pixel_without_any_possible_label(toy):
    image, probabilities = toy
    energies = -np.log(probabilities)
    energies[2, 3] = np.inf
    with pytest.raises(
        ValueError, match="infinite energy at 1 of 480 points, the first is the pixel at row 2, column 3;"
    ):
        crf.dense_crf(image, energies, given="energies")
    energies[2, 3] = -np.inf
    with pytest.raises(
        ValueError, match="minus infinity for 1 of 480 points, the first is the pixel at row 2, column 3;"
    ):
        crf.dense_crf(image, energies, given="energies")


@pytest.mark.parametrize("place", [(0, 0, 0), (5, 7, 1)])
def test_nan_in_the_image_is_reported(toy, place):
    image, probabilities = toy
    image = image.astype(np.float32)
    image[place] = np.nan
    with pytest.raises(ValueError, match=f"in 1 of 1440 values, the first at row {place[0]}, column {place[1]}"):
        crf.dense_crf(image, probabilities)


def test_steps_are_the_marginals_of_fewer_iterations(toy):
    image, probabilities = toy
    scores = probabilities.transpose(2, 0, 1)
    steps = list(crf.dense_crf_steps(image, scores, "deeplab_v1", layout="LHW", iterations=3))
    assert len(steps) == 4
    for iterations, q in enumerate(steps):
        expected = crf.dense_crf(image, scores, "deeplab_v1", layout="LHW", iterations=iterations)
        np.testing.assert_array_equal(q, expected)
    with pytest.raises(ValueError, match="pass layout='LHW'"):
        crf.dense_crf_steps(image, scores)  # at once, not when the first step is asked for


def test_arguments_are_left_as_they_are(toy):
    image, probabilities = toy
    for given in ("probabilities", "logits", "energies"):
        before = image.copy(), probabilities.copy()
        for array in (image, probabilities):
            array.flags.writeable = False
        crf.dense_crf(image, probabilities, given=given)
        np.testing.assert_array_equal(before[0], image)
        np.testing.assert_array_equal(before[1], probabilities)


@pytest.mark.parametrize("method", ["lattice", "separable", "local", "exact"])
def test_memory_is_said_beforehand(toy, method):
    with pytest.raises(MemoryError, match=r"24 x 20 pixels with 3 labels need .* GiB, and 0.0 GiB are free"):
        crf.dense_crf(*toy, method=method, memory_limit=1000)


def test_memory_of_the_vertices_is_said_before_they_get_values(toy, monkeypatch):
    monkeypatch.setattr(memory, "estimate", lambda *_: memory.Memory(0, 0))
    with pytest.raises(
        MemoryError, match=r"3 labels on lattices of \d+ vertices need .* GiB, and 0.0 GiB are free"
    ):
        crf.dense_crf(*toy, memory_limit=1000)


def test_memory_of_a_large_photograph(toy):
    with pytest.raises(MemoryError, match=r"24 x 20 pixels with 3 labels need .* GiB, and 0.0 GiB are free"):
        crf.dense_crf(*toy, memory_limit=1000)
    need = memory.estimate(4000 * 3000, 21)
    assert 4 * 2**30 < need.certain < 16 * 2**30 < need.at_most


def test_pydensecrf_missing_says_how_to_get_it(toy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    with pytest.raises(ModuleNotFoundError, match="CYTHON_FORCE_REGEN=1 pip install --build-constraint"):
        crf.dense_crf(*toy, backend="pydensecrf")
    with pytest.raises(ValueError, match="has the method 'lattice' alone"):
        crf.dense_crf(*toy, backend="pydensecrf", method="exact")
