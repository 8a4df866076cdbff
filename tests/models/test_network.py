"""What networks say about their training: groups of parameters, with rates of the papers, and frozen norms."""

import numpy as np
import pytest

from tinyseg import models, nn
from tinyseg.models.network import CrossEntropy, LearningRates, total
from tinyseg.models.summary import sketch
from tinyseg.tape import Tensor


def factors(network, rates=None):
    """The factor of each parameter, by name."""
    by_identity = {
        id(parameter): group.lr_multiplier
        for group in network.parameter_groups(rates or network.paper_rates)
        for parameter in group.parameters
    }
    return {name: by_identity.get(id(parameter)) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # DeepLab v1 and v2: fc8 x 10, its bias x 20, other biases x 2.
        (
            "deeplab_v1_largefov",
            {
                "trunk.features.0.weight": 1,
                "trunk.features.0.bias": 2,
                "fully_connected.fc6.weight": 1,
                "fully_connected.fc7.bias": 2,
                "fully_connected.fc8.weight": 10,
                "fully_connected.fc8.bias": 20,
            },
        ),
        ("deeplab_v1_msc", {"branches.0.conv1.weight": 10, "fully_connected.fc6.weight": 1}),
        (
            "deeplab_v2_vgg16",
            {
                "branches.3.fc8.weight": 10,
                "branches.3.fc8.bias": 20,
                "branches.3.fc6.weight": 1,
                "branches.0.fc7.bias": 2,
            },
        ),
        (
            "deeplab_v2_resnet101",
            {"branches.0.weight": 10, "branches.3.bias": 20, "trunk.conv1.weight": 1, "trunk.bn1.bias": 1},
        ),
        # DeepLab v3 and v3+: biases x 2.
        ("deeplab_v3_resnet50", {"classifier.weight": 1, "classifier.bias": 2, "aspp.project.0.weight": 1}),
        ("deeplab_v3plus_xception65", {"classifier.weight": 1, "classifier.bias": 2}),
        # FCN: biases x 2.
        (
            "fcn16s",
            {"fc6.weight": 1, "fc7.bias": 2, "score_pool4.bias": 2, "score_fr.weight": 1, "upscore2.weight": None},
        ),
        # FastFCN: joint upsampling, head and auxiliary head x 10.
        (
            "fastfcn_encnet_resnet50",
            {
                "trunk.layer4.0.conv1.weight": 1,
                "joint.conv3.0.weight": 10,
                "head.module.encoding.codewords": 10,
                "head.module.fc.bias": 10,
                "auxiliary.0.weight": 10,
            },
        ),
        ("unet_padded", {"contracting.0.conv1.weight": 1}),
        ("gscnn_resnet50", {"trunk.conv1.weight": 1, "last.0.weight": 1}),
    ],
)
def test_learning_rates_of_the_papers(name, expected):
    found = factors(sketch(models.create, name, 3, 21))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_parameter_that_learns_is_in_one_group(name):
    network = sketch(models.create, name, 3, 21)
    groups = network.parameter_groups(LearningRates(head=7, bias=3))
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    learning = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(listed) == sorted(learning)
    assert all(group.decays == (parameter.data.ndim > 1) for group in groups for parameter in group.parameters)
    plain = network.parameter_groups()
    assert [(group.lr_multiplier, group.decays) for group in plain] == [(1, True), (1, False)]
    assert bool(network.head_parts()) == (network.trunk_name() is not None)


def test_torchvisions_networks_have_two_heads():
    found = factors(sketch(models.create, "deeplabv3_resnet50", 3, 21), LearningRates(head=10))
    assert found["classifier.4.weight"] == found["aux_classifier.0.weight"] == 10
    assert found["backbone.conv1.weight"] == 1


@pytest.mark.parametrize("name", ["fcn_resnet50", "unet_padded"])
def test_frozen_norms(rng, name):
    settings = {"depth": 18, "width": 1 / 16} if name == "fcn_resnet50" else {"base": 2, "depth": 2}
    network = models.create(name, 3, 2, rng=np.random.default_rng(0), **settings).train()
    x = rng.random((2, 32, 32, 3), np.float32)
    labels = rng.integers(0, 2, (2, 32, 32))
    network.freeze_norms(scale_and_shift=True)
    total(network.losses(network.outputs(Tensor(x)), labels, CrossEntropy())).backward()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.weight.grad is None and norm.bias.grad is None
        assert not norm.running_mean.data.any() and (norm.running_var.data == 1).all()
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.weight.grad is not None for layer in convolutions)
