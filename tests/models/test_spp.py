"""Spatial pyramid pooling: the paper's windows and lengths, any size, and a classifier on it."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import optim
from tinyseg.gradcheck import check_vjp, spaced
from tinyseg.models.spp import SpatialPyramidPooling, SPPNet
from tinyseg.models.summary import sketch, summarise
from tinyseg.ops import pooling
from tinyseg.tape import Tensor


def small(classes=3, **settings):
    return SPPNet(2, classes, **({"width": 1 / 32} | settings), rng=np.random.default_rng(1))


def test_by_hand():
    x = np.arange(12.0).reshape(1, 3, 4, 1) * np.array([1.0, -1.0])
    vector = SpatialPyramidPooling((2, 1))(x)
    # Bins of rows 0-1 and 1-2, of columns 0-1 and 2-3; two channels beside each other in every bin.
    assert vector.data.tolist() == [[5, 0, 7, -2, 9, -4, 11, -6, 11, 0]]


def test_lengths_of_the_paper():
    """256 channels: 50 bins for classification, or 30; 12,800 numbers of the levels 1, 2, 3, 6 for detection."""
    assert SpatialPyramidPooling((6, 3, 2, 1)).length(1) == 50
    assert SpatialPyramidPooling((4, 3, 2, 1)).length(1) == 30
    assert SpatialPyramidPooling((1, 2, 3, 6)).length(256) == 12_800


def test_windows_of_figure_3(monkeypatch):
    """On 13 x 13 maps: (window, stride) = (5, 4), (7, 6), (13, 13) for 3 x 3, 2 x 2 and 1 x 1 bins."""
    used, window = [], pooling.window

    def record(operator, size, kernel, stride, *rest):
        used.append((kernel, stride))
        return window(operator, size, kernel, stride, *rest)

    monkeypatch.setattr(pooling, "window", record)
    x = np.random.default_rng(0).standard_normal((1, 13, 13, 2))
    vector = SpatialPyramidPooling((3, 2, 1), bins="windows")(x)
    assert used == [((5, 5), (4, 4)), ((7, 7), (6, 6)), ((13, 13), (13, 13))]
    assert vector.shape == (1, 2 * 14)
    np.testing.assert_array_equal(vector.data, SpatialPyramidPooling((3, 2, 1))(x).data)


def test_windows_that_do_not_make_the_bins():
    """a = 10, n = 6: windows of 2 moved by 1 make 9."""
    x = np.zeros((1, 10, 12, 1))
    with pytest.raises(
        ValueError, match=r"10 x 12 windows of 2 x 2 moved by 1 and 2 give 9 x 6 bins instead of 6"
    ):
        SpatialPyramidPooling((6,), bins="windows")(x)
    with pytest.raises(ValueError, match=r"moved by 0 and 1 give 0 x 2 bins.*adaptive"):
        SpatialPyramidPooling((2,), bins="windows")(np.zeros((1, 1, 3, 1)))
    assert SpatialPyramidPooling((6,))(x).shape == (1, 36)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (13, 13), (10, 10), (31, 17)])
def test_one_length_for_all_sizes(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3))
    vector = SpatialPyramidPooling()(x)
    assert vector.shape == (2, 150)
    np.testing.assert_array_equal(vector.data[:, -3:], x.max(axis=(1, 2)))  # the last level is the whole map


def test_pyramid_gradient():
    pyramid = SpatialPyramidPooling((3, 2, 1))

    def forward(values):
        x = Tensor(values, requires_grad=True)
        return pyramid(x).data, x

    def backward(dy, x):
        x.grad = None
        pyramid(x).backward(dy)
        return x.grad

    check_vjp(forward, backward, spaced((2, 5, 7, 2)))


def test_maps_and_parameters_of_the_classifier():
    net = sketch(SPPNet, 3, 1000, rng=np.random.default_rng(0))
    convolutions = 49 * 3 * 96 + 25 * 96 * 256 + 9 * (256 * 384 + 384 * 384 + 384 * 256) + 96 + 2 * 256 + 2 * 384
    connected = 12_800 * 4096 + 4096 * 4096 + 4096 * 1000 + 2 * 4096 + 1000
    assert net.num_parameters() == convolutions + connected
    for side, last in ((224, 13), (180, 10)):  # the paper's two training sizes
        rows = {(row.layer, row.operator.split()[0]): row for row in summarise(net, side, side)}
        assert rows["conv5", "conv2d"].size == (last, last, 256)
        assert rows["conv5", "conv2d"].stride == (16, 16)
        assert rows["pyramid", "concat"].size == (12_800,)
        assert rows["classifier.6", "linear"].size == (1000,)


@pytest.mark.parametrize("size", [(23, 23), (24, 61), (50, 37)])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_classifier_takes_every_size(size, batch):
    net = small()
    x = np.random.default_rng(0).random((batch, *size, 2), np.float32)
    for training in (True, False):
        assert net.train(training)(x).shape == (batch, 3)
    maps = net.stages(x)
    assert {name: y.shape[3] for name, y in maps.items()} == net.stage_channels


def test_gradient_through_the_whole_network(check_network_gradient):
    check_network_gradient(small(levels=(3, 1)), (37, 41))


def test_errors():
    with pytest.raises(ValueError, match=r"levels must hold .*got \(3, 0\)"):
        SpatialPyramidPooling((3, 0))
    with pytest.raises(ValueError, match="levels must hold"):
        SpatialPyramidPooling(())
    with pytest.raises(ValueError, match="bins must be one of adaptive, windows, got 'sliding'"):
        SpatialPyramidPooling(bins="sliding")
    with pytest.raises(ValueError, match=r"image of 22 x 40 pixels is too small.*at least 23 x 23"):
        small()(np.zeros((1, 22, 40, 2), np.float32))
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\)"):
        small()(np.zeros((1, 40, 40, 3), np.float32))
    with pytest.raises(ValueError, match="classes=None"):
        small(classes=None)(np.zeros((1, 40, 40, 2), np.float32))


@pytest.mark.slow
def test_learns_images_of_several_sizes_by_heart(real_data):
    """Two sizes in turns, as in the paper: four scenes, told apart in both, and in a size never trained on."""
    from tinyseg.data import CamVid
    from tinyseg.data.transforms import Normalise, Resize

    dataset = CamVid(real_data / "camvid", "train")
    normalise, rng = Normalise(dataset.mean, dataset.std), np.random.default_rng(0)

    def images(size):
        samples = [dataset[index] for index in range(0, len(dataset), len(dataset) // 4 + 1)]
        return np.stack([normalise(Resize(size)(sample, rng), rng).image for sample in samples])

    net = SPPNet(3, 4, width=0.125, dropout=0.0, rng=rng)
    optimiser = optim.Adam(net.parameters(), lr=1e-3)
    sizes, labels = [images((96, 128)), images((75, 100))], np.arange(4)
    for step in range(60):
        optimiser.zero_grad()
        logits = net.train()(sizes[step % 2])
        F.cross_entropy(F.reshape(logits, (4, 1, 1, 4)), labels.reshape(4, 1, 1)).backward()
        optimiser.step()
    for batch in (*sizes, images((83, 121))):
        assert net.eval()(batch).data.argmax(axis=1).tolist() == [0, 1, 2, 3]
