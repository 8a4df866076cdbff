"""A training pass of a network of each family on the GPU: its losses, and the gradients of all parameters."""

from typing import Any

import numpy as np
import pytest

from tinyseg import cuda, models
from tinyseg.models.network import CrossEntropy, total
from tinyseg.tape import Tensor

RESNET = {"backbone": "resnet18", "width": 1 / 64}


def network(name, **settings) -> Any:
    """Small, and such that every parameter matters: with zeros in the last layer nothing before it would learn."""
    rng = np.random.default_rng(3)
    model = models.create(name, in_channels=3, classes=3, rng=rng, **settings).astype(np.float64)
    for parameter in model.parameters():
        if not parameter.data.any():
            parameter.data = rng.uniform(0, 0.5, parameter.shape)
    return model


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("fcn8s_at_once", {"width": 1 / 64, "padding": "same"}, (9, 10)),
        ("unet", {"base": 2, "depth": 1}, (18, 20)),
        ("unet_padded", {"base": 4, "depth": 1}, (5, 9)),
        ("fc_densenet56", {"growth": 1, "layers": (1, 1)}, (8, 12)),
        ("deeplab_v1_msc", {"width": 1 / 64}, (17, 18)),
        ("deeplab_v2_resnet101", RESNET, (17, 18)),
        ("deeplab_v3_resnet50", RESNET, (17, 18)),
        ("deeplab_v3plus_resnet101", RESNET, (17, 18)),
        ("deeplab_v3plus_xception65", {"width": 1 / 64}, (17, 18)),
        ("fastfcn_encnet_resnet50", {**RESNET, "lateral": True, "codewords": 3}, (17, 18)),
        ("fastfcn_psp_resnet50", {**RESNET, "joint": "jpu_x"}, (17, 18)),
        ("gscnn_resnet50", RESNET, (17, 18)),
    ],
)
def test_training(machine, name, settings, size):
    def losses_and_gradients(images, labels):
        model = network(name, **settings)
        model.to("cuda" if cuda.on_gpu(images) else "cpu")
        outputs = model.outputs(Tensor(images))
        size = getattr(outputs, "logits", outputs).shape[1:3]
        if model.context:
            top, left = ((large - small) // 2 for large, small in zip(labels.shape[1:], size, strict=True))
            labels = labels[:, top : top + size[0], left : left + size[1]]
        losses = model.losses(outputs, labels, CrossEntropy(ignore_label=3), step=2)
        loss = total(losses)
        loss.backward(cuda.constant_like(np.array(1.0), loss.data))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return *(term.data for term in losses.values()), *(parameter.grad for parameter in learning)

    coarse = machine.rng.integers(0, 4, (2, -(-size[0] // 6), -(-size[1] // 7)))  # areas, with edges in between
    labels = coarse.repeat(6, axis=1).repeat(7, axis=2)[:, : size[0], : size[1]]
    images = machine.numbers(2, *size, 3)
    # What a normalisation takes away, a bias for instance, has a gradient that is 0 but for rounding.
    results = machine.agree(losses_and_gradients, images, labels, tolerance={np.dtype("f8"): 1e-9}, floor=1e-4)
    assert all(result.any() for result in results if result.size > 1)
