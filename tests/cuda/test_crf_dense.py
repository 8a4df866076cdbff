"""dense_crf on arrays on the GPU."""

import numpy as np
import pytest

from tinyseg import crf, cuda
from tinyseg.train.refinement import refined

IMAGE, LABELS = (11, 14), 3


def picture(machine):
    """An image of random colours, and scores."""
    image = machine.rng.uniform(0, 255, (*IMAGE, 3)).astype(np.float32)
    return image, machine.rng.dirichlet(np.ones(LABELS), IMAGE).astype(np.float32)


def on(device, function, *arrays):
    with cuda.on(device):
        results = function(*map(cuda.to_device, arrays))
        return [cuda.to_host(result) for result in results]


@pytest.mark.parametrize("layout", ["HWL", "LHW"])
@pytest.mark.parametrize("given", ["probabilities", "logits", "energies"])
def test_dense_crf(machine, given, layout):
    image, p = picture(machine)
    scores = {"probabilities": p, "logits": np.log(p), "energies": -np.log(p)}[given]
    if given == "energies":
        scores[2, 3, 1] = np.inf
    scores = scores if layout == "HWL" else np.ascontiguousarray(scores.transpose(2, 0, 1))

    def refine(image, scores):
        return [crf.dense_crf(image, scores, layout=layout, given=given, iterations=2)]

    expected = refine(image, scores)[0]
    for device in machine.devices:
        result = on(device, refine, image, scores)[0]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("channels", [None, 1, 2])
@pytest.mark.parametrize("method", ["lattice", "separable", "local", "exact"])
def test_methods_and_numbers_of_channels(machine, method, channels):
    _, p = picture(machine)
    image = machine.rng.integers(0, 256, IMAGE if channels is None else (*IMAGE, channels), np.uint8)
    options = {"method": method, "iterations": 2, "appearance_position": (30.0, 25.0)}
    expected = crf.dense_crf(image, p, "deeplab_v1", **options)

    def refine(image, p):
        return [crf.dense_crf(image, p, "deeplab_v1", **options)]

    result = on(machine.devices[0], refine, image, p)[0]
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_the_image_may_be_on_the_cpu_and_scores_of_any_type(machine):
    image, p = picture(machine)
    expected = crf.dense_crf(image, p, iterations=1)
    with cuda.on(machine.devices[0]):
        result = cuda.to_host(crf.dense_crf(image, cuda.to_device(p.astype(np.float64)), iterations=1))
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_steps(machine):
    image, p = picture(machine)
    expected = list(crf.dense_crf_steps(image, p, iterations=2))
    results = on(machine.devices[0], lambda *arrays: list(crf.dense_crf_steps(*arrays, iterations=2)), image, p)
    assert len(results) == 3
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right, atol=2e-5)


def test_behind_a_network(machine):
    _, p = picture(machine)
    image, logits = machine.rng.integers(0, 256, (*IMAGE, 3), np.uint8), np.log(p)
    parameters = crf.parameters("deeplab_v1", iterations=2)
    with cuda.on(machine.devices[0]):
        result = refined(image, logits, parameters, on_gpu=True)
    np.testing.assert_allclose(result, refined(image, logits, parameters), atol=2e-4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (np.nan, {}, "scores are not a number in some pixels"),
        (1.5, {}, "scores must be probabilities, between 0 and 1"),
        (np.nan, {"given": "logits"}, "scores are not a number in some pixels"),
        (np.inf, {"given": "logits"}, "an energy is minus infinity for some points"),
        (-np.inf, {"given": "energies"}, "an energy is minus infinity for some points"),
        (0.5, {"layout": "LHW"}, "scores have .* in layout LHW"),
        (0.5, {"method": "all"}, "method must be lattice, separable, local or exact"),
        (0.5, {"backend": "pydensecrf"}, "'pydensecrf' runs on the CPU"),
    ],
)
def test_errors(machine, change, options, message):
    image, p = picture(machine)
    p[1, 2, 0] = change
    with pytest.raises(ValueError, match=message):
        on(machine.devices[0], lambda *arrays: [crf.dense_crf(*arrays, **options)], image, p)


def test_scores_must_be_on_the_gpu_if_the_image_is(machine):
    image, p = picture(machine)
    with (
        cuda.on(machine.devices[0]),
        pytest.raises(TypeError, match="the image is on the GPU, the scores are not"),
    ):
        crf.dense_crf(cuda.to_device(image), p)
