"""Gated-SCNN: counts and sizes of the facts, the gate by hand, any size, gradients, the four losses, errors."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, nn, ops
from tinyseg.data.edges import mask_edges
from tinyseg.gradcheck import check_vjp
from tinyseg.models.gscnn import GSCNN, GatedConv, Outputs, image_weighted_cross_entropy
from tinyseg.models.network import CrossEntropy, total
from tinyseg.models.summary import sketch
from tinyseg.ops.label_maps import image_weights
from tinyseg.tape import Tensor

BACKBONES = {"wide_resnet38": 1 / 32, "resnet18": 1 / 16}  # and a small width


def small(backbone="wide_resnet38", **settings):
    settings = {"in_channels": 2, "classes": 3, "width": BACKBONES[backbone]} | settings
    return GSCNN(backbone=backbone, rng=np.random.default_rng(1), **settings)


class BothOutputs(nn.Module):
    def __init__(self, network):
        self.network, self.in_channels = network, network.in_channels

    def forward(self, x):
        return F.concat(list(self.network.outputs(x)))


def test_parameter_counts():
    net = sketch(models.create, "gscnn_wideresnet38", 3, 19)
    assert net.num_parameters() == 137_278_190 - 65  # without the side output that the release never uses
    assert net.trunk.num_parameters() == 105_062_720
    assert net.aspp.num_parameters() == 30_412_032
    assert net.join.num_parameters() == 393_216
    assert net.fine.num_parameters() == 6_144
    assert net.last.num_parameters() == 1_296_128
    assert net.shape_stream.num_parameters() + net.with_canny.num_parameters() == 107_885
    assert [gate.num_parameters() for gate in net.shape_stream.gates] == [2_248, 616, 184]


@pytest.mark.parametrize(("name", "trunk"), [("gscnn_resnet50", 23_508_032), ("gscnn_resnet101", 42_500_160)])
def test_parameter_counts_on_resnets(name, trunk):
    """From those on WideResNet-38, by the channels of the maps: 2048 of layer4, of the gates 256, 512, 2048."""
    aspp = 2048 * 256 * (3 * 9 + 2) + 256 + 6 * 512
    sides = (256 + 512 + 2048) - (256 + 512 + 4096)
    expected = trunk + aspp + 393_216 + 256 * 48 + 1_296_128 + 107_885 + sides
    assert sketch(models.create, name, 3, 19).num_parameters() == expected


def test_sizes_of_the_figure(rng):
    net = small().eval()
    x = rng.random((1, 88, 72, 2), np.float32)
    maps = net.trunk.stages(x)
    sizes = [maps[f"mod{number}"].shape[1:3] for number in range(1, 8)]
    assert sizes == [(88, 72), (44, 36), (22, 18), *[(11, 9)] * 4]
    outputs = net.outputs(x)
    assert outputs.logits.shape == (1, 88, 72, 3) and outputs.edge_logits.shape == (1, 88, 72, 1)


def test_gate_by_hand():
    gate = GatedConv(1, rng=np.random.default_rng(0)).eval().astype(np.float64)  # norms divide by sqrt(1 + 1e-5)
    gate.gate1.weight.data = np.array([[1.0, 0], [-2, 1]]).reshape(1, 1, 2, 2)
    gate.gate2.weight.data = np.array([3.0, 4]).reshape(1, 1, 2, 1)
    gate.gate2.bias.data = np.array([-8.0])
    gate.conv.weight.data = np.array([10.0]).reshape(1, 1, 1, 1)
    s, r = np.array([5.0]).reshape(1, 1, 1, 1), np.array([2.0]).reshape(1, 1, 1, 1)
    # Hidden (5 - 2 * 2, 2), so 3 * 1 + 4 * 2 - 8 = 3.
    y = gate(s, r).data
    np.testing.assert_allclose(y, 10 * 5 * (1 + 1 / (1 + np.exp(-3))), rtol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (25, 34)])
def test_any_size_and_a_batch_of_one(backbone, size):
    net = small(backbone)
    for training in (True, False):
        x = np.random.default_rng(0).random((1, *size, 2), np.float32)
        outputs = net.train(training).outputs(x)
        assert outputs.logits.shape == (1, *size, 3)
        assert outputs.edge_logits.shape == (1, *size, 1)
        assert np.isfinite(outputs.logits.data).all()
    np.testing.assert_array_equal(net(x).data, outputs.logits.data)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_through_the_whole_network(check_network_gradient, backbone):
    check_network_gradient(BothOutputs(small(backbone)), (19, 26))


def test_canny_sees_the_image_before_its_normalisation(rng):
    image = np.zeros((1, 12, 10, 2), np.float32)
    image[:, :, 5:] = 40 / 255
    net = small(mean=(0.3, 0.4), std=0.25)
    edges = net.canny_edges_of((image - np.float32([0.3, 0.4])) / np.float32(0.25))
    assert edges.shape == (1, 12, 10, 1) and edges.dtype == np.float32
    assert edges[0, :, 4, 0].all() and edges.sum() == 12
    # They take part: other edges, other logits.
    x = rng.random((1, 12, 10, 2), np.float32)
    net.eval()
    assert not np.array_equal(net.outputs(x, 1 - edges).logits.data, net.outputs(x, edges).logits.data)


# -------------------------------------------------------------------------------------------------------- losses


def test_image_weighted_cross_entropy_by_hand():
    """Image 0: three pixels of class 0, one of class 1, one ignored: weights 5/4 and 7/4. Image 1: nothing."""
    labels = np.array([[[0, 0, 0, 1, 9]], [[9, 9, 9, 9, 9]]])
    p = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 5, 1 / 3])  # of the label, the rest for the other class
    logits = np.zeros((2, 1, 5, 2))
    for index, label in enumerate([0, 0, 0, 1, 0]):
        logits[0, 0, index, label] = np.log(p[index])
        logits[0, 0, index, 1 - label] = np.log(1 - p[index])
    expected = (5 / 4 * np.log(2 * 4 * 8) + 7 / 4 * np.log(5)) / (3 * 5 / 4 + 7 / 4) / 2
    loss = image_weighted_cross_entropy(Tensor(logits), labels, ignore_label=9)
    np.testing.assert_allclose(loss.data, expected, rtol=1e-13)


def random_outputs(rng, size=(2, 15, 16), classes=3):
    labels = rng.integers(0, classes, (size[0], 3, 2)).repeat(5, 1).repeat(8, 2)
    labels[0, 0, 0] = 255
    return rng.standard_normal((*size, classes)), 2 * rng.standard_normal((*size, 1)), labels


def test_losses_are_weighted(rng):
    logits, edge_logits, labels = random_outputs(rng)
    outputs, net = Outputs(Tensor(logits), Tensor(edge_logits)), small(loss_weights=(2, 20, 3, 4), temperature=0.5)
    edges = mask_edges(labels, ignore_label=255)[..., None]
    at_edges = np.where(1 / (1 + np.exp(-edge_logits[..., 0])) > 0.8, labels, 255)
    noise = {"temperature": 0.5, "seed": net.noise_seed, "offset": 7}
    expected = {
        "pixels": 2 * image_weighted_cross_entropy(Tensor(logits), labels, ignore_label=255).data,
        "edges": 20 * ops.balanced_edge_loss(edge_logits, edges)[0],
        "at_edges": 3 * image_weighted_cross_entropy(Tensor(logits), at_edges, ignore_label=255).data,
        "dual_task": 4 * ops.dual_task_loss(logits, labels, ignore_label=255, **noise)[0],
    }
    losses = net.losses(outputs, labels, CrossEntropy(255), step=7)
    assert list(losses) == list(expected)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss.data, expected[name], rtol=1e-12, err_msg=name)


def test_noise_differs_from_step_to_step_and_from_seed_to_seed(rng):
    logits, edge_logits, labels = random_outputs(rng)
    outputs = Outputs(Tensor(logits), Tensor(edge_logits))

    def dual_task(seed, step):
        net = GSCNN(2, 3, width=1 / 32, rng=np.random.default_rng(seed))
        return float(net.losses(outputs, labels, CrossEntropy(255), step=step)["dual_task"].data)

    assert dual_task(1, 5) == dual_task(1, 5)
    assert len({dual_task(1, 5), dual_task(1, 6), dual_task(2, 5)}) == 3


def test_weights_of_pixels_act_on_the_first_loss(rng):
    logits, edge_logits, labels = random_outputs(rng)
    outputs, net = Outputs(Tensor(logits), Tensor(edge_logits)), small()
    plain = net.losses(outputs, labels, CrossEntropy(255))
    half = np.ones(labels.shape)
    half[:, :7] = 0
    weighted = net.losses(outputs, labels, CrossEntropy(255), weights=half)
    by_image = image_weights(labels, 3, ignore_label=255) * half
    expected = ops.cross_entropy(logits, labels, pixel_weights=by_image, ignore_label=255)[0]
    np.testing.assert_allclose(weighted["pixels"].data, expected, rtol=1e-12)
    assert weighted["pixels"].data != plain["pixels"].data
    assert all(weighted[name].data == plain[name].data for name in ("edges", "at_edges", "dual_task"))


@pytest.mark.parametrize("name", ["pixels", "edges", "at_edges", "dual_task"])
def test_gradient_of_each_loss(rng, name):
    """A real gradient: right, and not zero, of the edges' loss by the edge logits, of the others by the logits."""
    logits, edge_logits, labels = random_outputs(rng)
    net = small()

    def loss_of(outputs):
        return net.losses(outputs, labels, CrossEntropy(255), step=1)[name]

    def forward(logits, edge_logits):
        return loss_of(Outputs(Tensor(logits), Tensor(edge_logits))).data, None

    def backward(dy, _):
        outputs = Outputs(Tensor(logits, requires_grad=True), Tensor(edge_logits, requires_grad=True))
        loss_of(outputs).backward(dy)
        reached, other = (outputs.edge_logits, outputs.logits)[:: 1 if name == "edges" else -1]
        assert np.abs(reached.grad).max() > 1e-6 and other.grad is None
        return [np.zeros_like(x.data) if x.grad is None else x.grad for x in outputs]

    check_vjp(forward, backward, (logits, edge_logits), eps=1e-6)


def test_all_losses_reach_all_parameters(rng):
    net = small()
    x = rng.random((2, 18, 16, 2), np.float32)
    labels = rng.integers(0, 3, (2, 9, 8)).repeat(2, 1).repeat(2, 2)
    total(net.losses(net.outputs(x), labels, CrossEntropy())).backward()
    assert all(np.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_errors():
    with pytest.raises(ValueError, match=r"backbone must be one of 'wide_resnet38', 'resnet18', .*; got 'vgg16'"):
        GSCNN(backbone="vgg16", rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="mean must be one number, or 2, one for each channel"):
        small(mean=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\), got \(1, 9, 8, 3\)"):
        small()(np.zeros((1, 9, 8, 3), np.float32))
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        small(width=0)


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    """With all four losses."""
    net = GSCNN(3, 11, backbone="resnet18", width=0.25, rng=np.random.default_rng(0))
    assert learn_by_heart(net, size=(97, 129), part=0.3, steps=150) >= 0.95
