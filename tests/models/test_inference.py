"""Inference against its plain definition, pixel by pixel: windows, sizes, mirror images, and what is averaged."""

import itertools
import math

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, nn
from tinyseg.models import SegmentationNetwork
from tinyseg.models.inference import predict_logits, predict_probabilities, scaled_side
from tinyseg.models.summary import sketch
from tinyseg.tape import Tensor


class Toy(SegmentationNetwork):
    """Its answer depends on the neighbours, on the whole input, and on which side is left."""

    in_channels, classes = 2, 3

    def __init__(self, align_corners=False):
        self.align_corners = align_corners
        self.conv = nn.Conv2d(2, 3, 3, padding=1, rng=np.random.default_rng(0))
        self.dropout = nn.Dropout(0.5, rng=np.random.default_rng(0))
        self.conv.weight.data = self.conv.weight.data.astype(np.float64)
        self.conv.bias.data = np.array([0.1, -0.2, 0.3])
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape)
        return F.mul(self.dropout(self.conv(x)), F.add(F.global_avg_pool2d(self.conv(x)), 1.0))


@pytest.fixture
def image(rng):
    return rng.standard_normal((11, 14, 2))


# ------------------------------------------------------------------------------------------ the plain definition


def bilinear(image, size, align_corners):
    """Each pixel of the result by itself."""
    H, W, C = image.shape
    result = np.zeros((*size, C))
    for p, q in np.ndindex(*size):
        places = []
        for index, (side, length) in zip((p, q), ((H, size[0]), (W, size[1])), strict=True):
            if align_corners:
                place = index * (side - 1) / (length - 1) if length > 1 else 0.0
            else:
                place = max((index + 0.5) * side / length - 0.5, 0.0)
            places.append(place)
        near = [(math.floor(place), math.floor(place) + 1) for place in places]
        for h, w in itertools.product(*near):
            share = (1 - abs(h - places[0])) * (1 - abs(w - places[1]))
            result[p, q] += share * image[min(h, H - 1), min(w, W - 1)]  # beyond the last pixel, that pixel
    return result


def in_windows(network, image, window, stride):
    """For each pixel, the mean over all windows that it is in."""
    rows, columns = window
    H, W, C = image.shape
    large = np.zeros((max(H, rows), max(W, columns), C))
    large[:H, :W] = image
    starts = []
    for side, length in zip(large.shape[:2], window, strict=True):
        places, start = [], 0
        while start + length < side:
            places.append(start)
            start += stride
        starts.append([*places, side - length])
    answers = {
        (top, left): network(np.ascontiguousarray(large[None, top : top + rows, left : left + columns])).data[0]
        for top in starts[0]
        for left in starts[1]
    }
    result = np.zeros((H, W, network.classes))
    for h, w in np.ndindex(H, W):
        values = [
            answer[h - top, w - left]
            for (top, left), answer in answers.items()
            if top <= h < top + rows and left <= w < left + columns
        ]
        result[h, w] = np.mean(values, axis=0)
    return result


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def defined(network, image, scales, flip, window=None, stride=None):
    """The logits of each view, at the image's place and size."""
    corners = network.align_corners
    views = []
    for scale in scales:
        size = tuple(scaled_side(side, scale, corners) for side in image.shape[:2])
        scaled = bilinear(image, size, corners)
        for mirrored in [False, True] if flip else [False]:
            view = np.ascontiguousarray(scaled[:, ::-1] if mirrored else scaled)
            answer = network(view[None]).data[0] if window is None else in_windows(network, view, window, stride)
            answer = answer[:, ::-1] if mirrored else answer
            views.append(bilinear(answer, image.shape[:2], corners))
    return views


CASES = [
    {"scales": (1.0,), "flip": True},
    {"scales": (0.5, 1.0, 1.75), "flip": False},
    {"scales": (0.75, 1.25), "flip": True},
    {"scales": (1.0,), "flip": False, "window": (6, 5), "stride": 3},
    {"scales": (0.5, 1.0), "flip": True, "window": (7, 7), "stride": 7},
    {"scales": (1.5,), "flip": False, "window": (20, 9), "stride": 4},
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plain_definition(image, case, align_corners):
    network = Toy(align_corners).eval()
    views = defined(network, image, **case)
    mean = np.mean([softmax(view) for view in views], axis=0)
    np.testing.assert_allclose(predict_probabilities(network, image, **case), mean, rtol=1e-9, atol=1e-12)
    logits = predict_logits(network, image, average="logits", **case)
    np.testing.assert_allclose(logits, np.mean(views, axis=0), rtol=1e-9, atol=1e-12)
    largest = predict_logits(network, image, average="maximum", **case)
    np.testing.assert_allclose(largest, np.max(views, axis=0), rtol=1e-9, atol=1e-12)


def test_logits_of_averaged_probabilities_are_their_logarithms(image):
    network, case = Toy().eval(), {"scales": (0.5, 1.0), "flip": True}
    probabilities = predict_probabilities(network, image, **case)
    np.testing.assert_allclose(np.exp(predict_logits(network, image, **case)), probabilities, rtol=1e-12)


def test_probabilities_of_nothing_stay_finite():
    class Certain(Toy):
        def forward(self, x):
            return Tensor(np.broadcast_to(np.array([0, -2000.0, -2000]), (*x.shape[:3], 3)).copy())

    logits = predict_logits(Certain(), np.zeros((4, 5, 2)), flip=True)
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=-1) == 0).all()


# ------------------------------------------------------------------------------------------------------------ laws


def test_one_view_is_the_network_itself(image):
    network = Toy().eval()
    expected = network(image[None]).data[0]
    for average in ("probabilities", "logits", "maximum"):
        np.testing.assert_array_equal(predict_logits(network, image, average=average), expected)
    np.testing.assert_array_equal(predict_logits(network, image, window=(11, 14), stride=3), expected)


def test_the_mirror_image_has_the_mirrored_answer(image):
    network = Toy().eval()
    case = {"flip": True, "scales": (0.5, 1.0)}
    answer = predict_probabilities(network, image, **case)
    mirrored = predict_probabilities(network, np.ascontiguousarray(image[:, ::-1]), **case)
    np.testing.assert_allclose(mirrored[:, ::-1], answer, rtol=1e-10)
    assert not np.allclose(answer, predict_probabilities(network, image, scales=(0.5, 1.0)))


def test_windows_have_the_size_that_was_asked_for(image):
    network = Toy()
    predict_logits(network, image, window=6)
    assert set(network.seen) == {(1, 6, 6, 2)}
    assert len(network.seen) == 3 * 3  # 0, 4, 5 and 0, 4, 8: 2/3 of 6 pixels, and the last place
    network.seen.clear()
    predict_logits(network, image, window=(20, 20))
    assert network.seen == [(1, 20, 20, 2)]


@pytest.mark.parametrize("align_corners", [False, True])
def test_sizes_of_the_views(image, align_corners):
    network = Toy(align_corners)
    predict_logits(network, image, scales=(0.5, 2), flip=True)
    sides = [(6, 8), (21, 27)] if align_corners else [(6, 7), (22, 28)]
    assert network.seen == [(1, *size, 2) for size in sides for _ in range(2)]
    assert scaled_side(1, 0.1, align_corners) == 1


def test_it_evaluates_and_leaves_the_mode(image):
    network = Toy().train()
    first, second = (predict_logits(network, image, flip=True, scales=(0.5, 1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert network.training


def test_tiles_of_several_sizes(rng):
    """Unpadded networks are tiled at each size, and answer as for the whole image."""
    net = models.create("unet", 2, 3, base=2, depth=2, rng=np.random.default_rng(0)).astype(np.float64)
    image = rng.standard_normal((40, 37, 2))
    case = {"scales": (0.75, 1.25), "flip": True}
    whole = predict_probabilities(net, image, **case)
    np.testing.assert_allclose(predict_probabilities(net, image, tile=16, **case), whole, atol=1e-12)


NAMES = {
    "deeplab_v3plus_resnet101": {"backbone": "resnet18", "width": 1 / 16},
    "fastfcn_psp_resnet50": {"backbone": "resnet18", "width": 1 / 16},
    "fcn_resnet50": {"depth": 18, "width": 1 / 16},
    "fcn8s": {"width": 1 / 64},
    "fc_densenet56": {"growth": 2},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_themselves(rng, name):
    net = models.create(name, 3, 4, **NAMES[name])
    image = rng.standard_normal((41, 50, 3)).astype(np.float32)
    probabilities = predict_probabilities(net, image, scales=(0.75, 1), flip=True, window=33, stride=20)
    assert probabilities.shape == (41, 50, 4) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)


def test_how_networks_enlarge_their_scores():
    aligned = {
        True: ("deeplab_v", "fastfcn"),
        False: ("fcn", "deeplabv3", "gscnn"),
        None: ("unet", "fc_", "plain"),
    }
    for corners, beginnings in aligned.items():
        for name in models.MODELS:
            if name.startswith(beginnings):
                assert sketch(models.create, name, 3, 2).align_corners is corners, name


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, r"scales must be one or more positive numbers, got \(\)"),
        ({"scales": (1, 0)}, r"scales must be one or more positive numbers, got \(1, 0\)"),
        ({"scales": (math.nan,)}, "scales must be one or more positive numbers"),
        ({"window": 0}, "window must be a height and a width of at least 1 pixel, got 0"),
        ({"window": 5, "stride": 6}, "between 1 pixel and the window's shorter side, got stride 6 and window 5"),
        ({"stride": 6}, "stride is that of a window, .* got stride 6 and window None"),
        ({"window": 5, "tile": 6}, "an image is cut into tiles or into windows, not both"),
        ({"average": "median"}, "average must be one of probabilities, logits, maximum; got 'median'"),
    ],
)
def test_options_that_make_no_sense(image, options, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(Toy(), image, **options)


def test_windows_are_not_for_unpadded_networks():
    net = models.create("unet", 2, 3, base=2, depth=1)
    with pytest.raises(ValueError, match=r"windows are for networks that answer for all .* use tile"):
        predict_logits(net, np.zeros((20, 20, 2), np.float32), window=16)
