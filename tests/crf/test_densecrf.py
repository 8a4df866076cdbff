"""pydensecrf's interface: the same scripts, the same results, and errors where it crashes or stays silent."""

import numpy as np
import pytest

import tinyseg
import tinyseg.crf.densecrf as ours
from tinyseg.crf import utils

HEIGHT, WIDTH, LABELS = 24, 20, 3
POINTS = HEIGHT * WIDTH


def example(dcrf, image, unary, use_2d=True, labels=None, iterations=5, helpers=utils):
    """The script of pydensecrf's README, for either module."""
    height, width, _ = image.shape
    labels = len(unary) if labels is None else labels
    if use_2d:
        d = dcrf.DenseCRF2D(width, height, labels)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(
            sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
        )
        d.addPairwiseBilateral(
            sxy=(80, 80),
            srgb=(13, 13, 13),
            rgbim=image,
            compat=10,
            kernel=dcrf.DIAG_KERNEL,
            normalization=dcrf.NORMALIZE_SYMMETRIC,
        )
    else:
        d = dcrf.DenseCRF(width * height, labels)
        d.setUnaryEnergy(unary)
        feats = helpers.create_pairwise_gaussian(sdims=(3, 3), shape=image.shape[:2])
        d.addPairwiseEnergy(feats, compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
        feats = helpers.create_pairwise_bilateral(sdims=(80, 80), schan=(13, 13, 13), img=image, chdim=2)
        d.addPairwiseEnergy(feats, compat=10, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
    return np.array(d.inference(iterations))


@pytest.mark.oracle
@pytest.mark.parametrize("use_2d", [True, False])
@pytest.mark.parametrize(("name", "picture"), [("anno1", "im1"), ("anno1-b", "im1"), ("anno2", "im2")])
def test_the_examples_of_pydensecrf(pydensecrf, real_data, name, picture, use_2d):
    from PIL import Image

    folder = real_data / "others" / "crf_examples"
    image = np.array(Image.open(folder / f"{picture}.png").convert("RGB"))
    colours = np.array(Image.open(folder / f"{name}.png").convert("RGB")).astype(np.uint32)
    codes = colours[:, :, 0] + (colours[:, :, 1] << 8) + (colours[:, :, 2] << 16)
    known, labels = np.unique(codes, return_inverse=True)
    unsure = 0 in known
    unary = utils.unary_from_labels(labels, len(known) - unsure, gt_prob=0.7, zero_unsure=unsure)
    original_helpers = pytest.importorskip("pydensecrf.utils", reason="a part of pydensecrf")
    np.testing.assert_array_equal(
        unary, original_helpers.unary_from_labels(labels, len(known) - unsure, 0.7, zero_unsure=unsure)
    )
    theirs = example(pydensecrf, image, unary, use_2d, helpers=original_helpers)
    mine = example(ours, image, unary, use_2d)
    assert mine.dtype == theirs.dtype
    assert mine.shape == theirs.shape
    assert abs(mine - theirs).max() < 1e-3
    assert abs(mine - theirs).mean() < 1e-5
    assert np.mean(mine.argmax(axis=0) == theirs.argmax(axis=0)) >= 0.999

    published = np.array(Image.open(folder / f"{name.replace('anno', 'out')}.png").convert("RGB")).astype(
        np.uint32
    )
    published = published[:, :, 0] + (published[:, :, 1] << 8) + (published[:, :, 2] << 16)
    result = known[unsure:][mine.argmax(axis=0)].reshape(published.shape)
    assert np.mean(result == published) >= 0.99


SCRIPT = """
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.densecrf import DenseCRF, ConstUnary
from pydensecrf.utils import create_pairwise_bilateral, create_pairwise_gaussian, unary_from_softmax

U = unary_from_softmax(softmax, scale=0.9, clip=1e-4)
d = DenseCRF(volume.size, softmax.shape[0])
d.setUnary(ConstUnary(U))
feats = create_pairwise_gaussian(sdims=(2.0, 2.0, 1.0), shape=volume.shape)
d.addPairwiseEnergy(feats, compat=2, kernel=dcrf.FULL_KERNEL, normalization=dcrf.NORMALIZE_BEFORE)
feats = create_pairwise_bilateral(sdims=(9.0, 9.0, 5.0), schan=(20.0,), img=volume, chdim=-1)
d.addPairwiseEnergy(feats, compat=np.array([[0, 1], [2, 0]], np.float32), kernel=dcrf.CONST_KERNEL)
Q, tmp1, tmp2 = d.startInference()
divergences = []
for i in range(4):
    d.stepInference(Q, tmp1, tmp2)
    divergences.append(d.klDivergence(Q))
result = np.array(Q).reshape(softmax.shape)
MAP = np.argmax(d.inference(4), axis=0).reshape(volume.shape)
"""


@pytest.mark.oracle
@pytest.mark.usefixtures("pydensecrf")
def test_a_script_on_a_volume_runs_with_another_import(rng):
    volume = rng.normal(100, 5, (9, 8, 5)).astype(np.float32)
    volume[3:, 2:6] += 60
    softmax = rng.dirichlet([1, 1], (9, 8, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    runs = []
    for package in ("pydensecrf", "tinyseg.crf"):
        variables = {"volume": volume, "softmax": softmax}
        exec(SCRIPT.replace("pydensecrf", package), variables)
        runs.append(variables)
    theirs, mine = runs
    np.testing.assert_array_equal(mine["U"], theirs["U"])
    np.testing.assert_array_equal(mine["feats"], theirs["feats"])
    np.testing.assert_allclose(mine["result"], theirs["result"], atol=1e-4)
    np.testing.assert_allclose(mine["divergences"], theirs["divergences"], rtol=1e-5)
    np.testing.assert_array_equal(mine["MAP"], theirs["MAP"])
    assert 0 < mine["MAP"].mean() < 1


@pytest.mark.oracle
def test_the_message_of_the_last_kernel(pydensecrf, toy):
    eigen = pytest.importorskip("pydensecrf.eigen", reason="a part of pydensecrf")
    image, probabilities = toy
    unary = utils.unary_from_softmax(probabilities.transpose(2, 0, 1))
    messages = []
    for dcrf, matrix in ((pydensecrf, eigen.matrixXf), (ours, np.asarray)):
        d = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(3, 1.0)
        d.addPairwiseBilateral(20, 20, image, np.array([-2, -1, -3], np.float32))
        q, message = d.startInference()[0], matrix(np.zeros((LABELS, POINTS), np.float32))
        d.stepInference(q, matrix(np.zeros((LABELS, POINTS), np.float32)), message)
        messages.append(np.array(message))
    np.testing.assert_allclose(messages[1], messages[0], rtol=1e-4, atol=1e-5)
    assert messages[0].min() < -1


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["number", "vector", "matrix"])
@pytest.mark.parametrize("normalization", range(4))
def test_compatibilities_and_normalisations(pydensecrf, toy, kind, normalization, rng):
    image, probabilities = toy
    unary = utils.unary_from_softmax(probabilities.transpose(2, 0, 1))
    matrix = rng.standard_normal((LABELS, LABELS)).astype(np.float32)
    compat = {"number": 1.5, "vector": -abs(matrix[0]), "matrix": matrix}[kind]
    results = []
    for dcrf in (pydensecrf, ours):
        d = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian((2, 4), compat, dcrf.FULL_KERNEL, dcrf.NormalizationType(normalization))
        d.addPairwiseBilateral(30, (20, 25, 30), image, 0.5, normalization=dcrf.NORMALIZE_AFTER)
        results.append(np.array(d.inference(3)))
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)


@pytest.mark.oracle
def test_step_by_step_and_divergence(pydensecrf, toy):
    image, probabilities = toy
    unary = utils.unary_from_softmax(probabilities.transpose(2, 0, 1))
    models, marginals, divergences = [], [], []
    for dcrf in (pydensecrf, ours):
        d = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(3, 1.0)
        d.addPairwiseBilateral(20, 20, image, 2.0)
        q, tmp1, tmp2 = d.startInference()
        divergences.append([d.klDivergence(q)])
        for _ in range(3):
            d.stepInference(q, tmp1, tmp2)
            divergences[-1].append(d.klDivergence(q))
        models.append(d)
        marginals.append(np.array(q))
    np.testing.assert_allclose(divergences[1], divergences[0], rtol=1e-5)
    np.testing.assert_allclose(marginals[1], marginals[0], atol=1e-5)
    np.testing.assert_allclose(models[1].inference(3), marginals[1], atol=1e-5)


def test_steps_are_the_iterations(toy):
    image, probabilities = toy
    d = ours.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities.transpose(2, 0, 1)))
    d.addPairwiseBilateral(20, 20, image, 2.0)
    q, tmp1, _ = d.startInference()
    np.testing.assert_allclose(q, d.inference(0), atol=1e-6)
    message = np.zeros((LABELS, HEIGHT * WIDTH), np.float32)
    for _ in range(2):
        d.stepInference(q, tmp1, message)
    np.testing.assert_allclose(q, d.inference(2), atol=1e-5)
    assert message.min() < 0, "the Potts message rewards"


@pytest.mark.oracle
def test_the_package_itself_as_a_backend(pydensecrf, toy):
    image, probabilities = toy
    unary = utils.unary_from_softmax(probabilities.transpose(2, 0, 1))
    results = []
    for dcrf in (pydensecrf, ours):
        options = {} if dcrf is pydensecrf else {"backend": "pydensecrf"}
        d = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS, **options)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(3, 1.0)
        d.addPairwiseBilateral(20, 20, image, -np.eye(LABELS, dtype=np.float32))
        results.append(np.array(d.inference(4)))
    np.testing.assert_array_equal(*results)
    with pytest.raises(ValueError, match="only with backend='tinyseg'"):
        d.klDivergence(results[0])


def test_any_type_and_strides(toy):
    image, probabilities = toy
    unary = utils.unary_from_softmax(probabilities.transpose(2, 0, 1))
    expected = example(ours, image, unary)
    for other in (unary.astype(np.float64), unary[:, ::-1].copy()[:, ::-1], unary.astype(">f4")):
        np.testing.assert_array_equal(example(ours, image, other), expected)
    half = example(ours, image, unary.astype(np.float16))
    assert np.mean(half.argmax(axis=0) == expected.argmax(axis=0)) > 0.99
    assert example(ours, image, np.round(unary).astype(int)).shape == expected.shape
    np.testing.assert_array_equal(example(ours, np.asfortranarray(image), unary), expected)
    np.testing.assert_array_equal(example(ours, image, np.asfortranarray(unary)), expected)
    np.testing.assert_array_equal(example(ours, image, unary.reshape(LABELS, HEIGHT, WIDTH)), expected)
    unary.flags.writeable = False
    np.testing.assert_array_equal(example(ours, image.astype(float), unary), expected)
    assert expected.shape == (LABELS, HEIGHT * WIDTH)
    assert expected.flags.f_contiguous, "as pydensecrf returns it"


def test_unary_forms():
    d = ours.DenseCRF(4, 2)
    np.testing.assert_allclose(d.inference(0), 0.5, err_msg="no unary is no opinion")
    weights, features = np.array([[1.0, 2, 0], [0, 1, 1]]), np.arange(12.0).reshape(3, 4)
    d.setUnary(ours.LogisticUnary(weights, features))
    logistic = d.inference(0)
    d.setUnaryEnergy(weights, features)
    np.testing.assert_array_equal(d.inference(0), logistic)
    d.setUnary(ours.ConstUnary(weights @ features))
    np.testing.assert_array_equal(d.inference(0), logistic)


IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def energies(value, labels=slice(None)):
    """Zeros (L, H, W), but for some labels of the pixel in row 5, column 7, which is point 107."""
    unary = np.zeros((LABELS, HEIGHT, WIDTH))
    unary[labels, 5, 7] = value
    return unary


@pytest.fixture
def model():
    d = ours.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    d.setUnaryEnergy(np.zeros((LABELS, POINTS)))
    return d


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        pytest.param(
            lambda d: d.setUnary(ours.ConstUnary(np.zeros((LABELS, 7)))),
            r"shape \(labels, points\) = \(3, 480\), got \(3, 7\)",
            id="ConstUnary of the wrong shape",
        ),
        pytest.param(lambda d: d.addPairwiseGaussian(0, 1), "must be positive and finite, got 0", id="sxy=0"),
        pytest.param(
            lambda d: d.addPairwiseGaussian((3, 0), 1), r"must be positive and finite, got \(3, 0\)", id="sy=0"
        ),
        pytest.param(
            lambda d: d.addPairwiseBilateral(0, 10, IMAGE, 1),
            "must be positive and finite, got 0",
            id="sxy=0, colour",
        ),
        pytest.param(
            lambda d: d.addPairwiseBilateral(10, 0, IMAGE, 1), "must be positive and finite, got 0", id="srgb=0"
        ),
        pytest.param(
            lambda d: d.addPairwiseBilateral(10, 1e-6, np.eye(24, 20)[:, :, None] * [255, 0, 0], 1),
            "features reach 2.55e.08 bandwidths, too many .* far too small",
            id="tiny srgb",
        ),
        pytest.param(lambda d: d.addPairwiseGaussian(1e-7, 1), "far too small", id="tiny sxy"),
        pytest.param(
            lambda d: ours.DenseCRF2D(100_000, 100_000, 21),
            "width 100000 and height 100000 with 21 labels need .* GiB, and .* GiB are free",
            id="huge image",
        ),
        pytest.param(
            lambda d: ours.DenseCRF(10**12, 2), "1000000000000 points with 2 labels need", id="many points"
        ),
        pytest.param(
            lambda d: ours.DenseCRF2D(0, 5, 2), "w must be a whole number, 1 or more; got 0", id="no width"
        ),
        pytest.param(
            lambda d: ours.DenseCRF(5, 0), "nlabels must be a whole number, 1 or more; got 0", id="no label"
        ),
    ],
)
def test_crashes_of_pydensecrf(model, attempt, message):
    with pytest.raises((ValueError, MemoryError), match=message):
        attempt(model)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        pytest.param(
            lambda d: d.setUnaryEnergy(np.zeros((LABELS, WIDTH, HEIGHT))),
            r"must have shape \(3, 24, 20\), got \(3, 20, 24\); DenseCRF2D takes the width first",
            id="width and height swapped",
        ),
        pytest.param(
            lambda d: d.addPairwiseGaussian(3, np.ones(LABELS + 1)),
            r"compat must be a number, or an array of shape \(3,\) or \(3, 3\) for 3 labels",
            id="compat vector too long",
        ),
        pytest.param(
            lambda d: d.addPairwiseGaussian(3, np.ones(2)),
            r"compat must be a number",
            id="compat vector too short",
        ),
        pytest.param(
            lambda d: d.addPairwiseGaussian(3, np.ones((LABELS, 2))),
            r"compat must be a number",
            id="compat matrix not square",
        ),
        pytest.param(
            lambda d: d.addPairwiseGaussian(3, np.ones((4, 4))),
            r"compat must be a number",
            id="compat matrix too large",
        ),
        pytest.param(
            lambda d: d.addPairwiseGaussian(3, np.nan), "compat, shape .* is not finite", id="compat NaN"
        ),
        pytest.param(
            lambda d: d.setUnaryEnergy(energies(np.nan).reshape(LABELS, -1)),
            "NaN for 1 of 480 points, the first is label 0 of the pixel at row 5, column 7",
            id="NaN in one pixel",
        ),
        pytest.param(
            lambda d: d.setUnaryEnergy(energies(np.nan, 2)),
            "NaN for 1 of 480 points, the first is label 2 of the pixel at row 5, column 7",
            id="NaN in one pixel, three axes",
        ),
        pytest.param(
            lambda d: d.setUnaryEnergy(energies(np.inf)),
            "infinite energy at 1 of 480 points, the first is the pixel at row 5, column 7; one must be possible",
            id="all labels infinite",
        ),
        pytest.param(
            lambda d: d.setUnaryEnergy(energies(-np.inf, 1)),
            "minus infinity for 1 of 480 points, the first is the pixel at row 5, column 7; clip it",
            id="minus infinity",
        ),
        pytest.param(
            lambda d: d.addPairwiseBilateral(3, 3, energies(np.nan).transpose(1, 2, 0), 1),
            "image is not finite in 3 of 1440 values, the first at row 5, column 7",
            id="NaN in the image",
        ),
        pytest.param(
            lambda d: d.addPairwiseBilateral(3, 3, np.full((HEIGHT, WIDTH, 3), 0.5), 1),
            "colours between 0 and 1, but colour bandwidths are in grey levels",
            id="image in 0..1",
        ),
        pytest.param(
            lambda d: d.addPairwiseEnergy(np.full((2, POINTS), np.inf), 1),
            "features are not finite in 960 of 960",
            id="infinite features",
        ),
        pytest.param(lambda d: d.inference(-1), "niter must be a whole number, 0 or more; got -1", id="niter=-1"),
    ],
)
def test_silent_errors_of_pydensecrf(model, attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt(model)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda d: d.setUnaryEnergy(np.zeros((POINTS, LABELS))), "it is transposed"),
        (lambda d: d.setUnaryEnergy(np.zeros((HEIGHT, WIDTH, LABELS))), r"must have shape \(3, 24, 20\)"),
        (lambda d: d.setUnaryEnergy(np.zeros((LABELS, POINTS), complex)), "must be numbers, got complex128"),
        (lambda d: d.setUnary(np.zeros((LABELS, POINTS))), "must be a ConstUnary or a LogisticUnary; got ndarray"),
        (lambda d: ours.LogisticUnary(np.zeros((2, 3)), np.zeros((4, 5))), r"got \(2, 3\) and \(4, 5\)"),
        (lambda d: d.addPairwiseEnergy(np.zeros((POINTS, 2)), 1), "they are transposed"),
        (lambda d: d.addPairwiseBilateral(3, 3, IMAGE.transpose(1, 0, 2), 1), "takes the width first"),
        (lambda d: d.addPairwiseBilateral(3, 3, IMAGE[:, :, 0], 1), "use create_pairwise_bilateral"),
        (lambda d: d.addPairwiseGaussian((1, 2, 3), 1), "must be one number or 2, got 3"),
        (lambda d: d.addPairwiseGaussian("wide", 1), "must be a number or 2 numbers, got 'wide'"),
        (lambda d: d.addPairwiseGaussian(3, "potts"), "compat must be a number"),
        (lambda d: d.addPairwiseGaussian(3, 1, 7), "7 is not a valid KernelType"),
        (lambda d: d.addPairwiseGaussian(3, 1, 0, 9), "9 is not a valid NormalizationType"),
        (lambda d: d.inference(2.5), "niter must be a whole number, 0 or more; got 2.5"),
        (lambda d: d.inference("many"), "niter must be a whole number, 0 or more; got 'many'"),
        (lambda d: d.stepInference(np.zeros((POINTS, 3))), r"Q must have shape \(labels, points\) = \(3, 480\)"),
        (lambda d: d.klDivergence(np.zeros((POINTS, 3))), r"Q must have shape \(labels, points\) = \(3, 480\)"),
        (lambda d: ours.DenseCRF2D(20.5, 24, 2), "w must be a whole number, 1 or more; got 20.5"),
        (lambda d: ours.DenseCRF(4, 2, backend="cuda"), "backend must be 'tinyseg' or 'pydensecrf', got 'cuda'"),
    ],
)
def test_messages_that_said_little(model, attempt, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attempt(model)


def test_places_in_points_that_are_no_image():
    with pytest.raises(ValueError, match="the first is label 2 of point 107"):
        ours.DenseCRF(POINTS, LABELS).setUnaryEnergy(energies(np.nan, 2).reshape(LABELS, -1))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_infinite_energies_are_impossible_however_strong_the_kernels(model, backend):
    unary = np.zeros((LABELS, POINTS))
    unary[1:, 9] = np.inf
    unary[2, :] += 1e300  # more than float32 can hold
    unary[0, :9] = 5
    with tinyseg.use(backend):
        model.setUnaryEnergy(unary)
        model.addPairwiseGaussian(3, 1e6, normalization=ours.NO_NORMALIZATION)
        q = model.inference(3)
    assert q[1, :9].min() == 1, "the neighbours of pixel 9 choose label 1, and draw the others with them"
    np.testing.assert_array_equal(q[:, 9], [1, 0, 0])
    assert q[2].max() == 0
