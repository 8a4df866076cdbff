"""A training pass of a network of each family on the GPU: its losses, and the gradients of all parameters."""

from typing import Any

import numpy as np
import pytest

from tinyseg import cuda, models, ops
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


def batch(machine, size):
    coarse = machine.rng.integers(0, 4, (2, -(-size[0] // 6), -(-size[1] // 7)))  # areas, with edges in between
    labels = coarse.repeat(6, axis=1).repeat(7, axis=2)[:, : size[0], : size[1]]
    return machine.numbers(2, *size, 3), labels


def losses_and_gradients(model, images, labels):
    """The terms of the loss, then the gradients of the parameters that learn."""
    for parameter in model.parameters():
        parameter.grad = None
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
    def train(images, labels):
        model = network(name, **settings).to("cuda" if cuda.on_gpu(images) else "cpu")
        return losses_and_gradients(model, images, labels)

    # What a normalisation takes away, a bias for instance, has a gradient that is 0 but for rounding.
    results = machine.agree(train, *batch(machine, size), tolerance={np.dtype("f8"): 1e-9}, floor=1e-4)
    assert all(result.any() for result in results if result.size > 1)


def in_bfloat16_and_exactly(machine, name, settings, size):
    """The losses and gradients of a step with activations in bfloat16, and those in float64."""
    images, labels = batch(machine, size)
    with cuda.on(machine.devices[0]):
        model = network(name, **settings).astype(np.float32).to("cuda")
        rounded, _ = ops.cast(cuda.to_device(images.astype(np.float32)), dtype="bfloat16")
        results = losses_and_gradients(model, rounded, cuda.to_device(labels))
        results = [cuda.to_host(result) for result in results]
    return results, losses_and_gradients(network(name, **settings), images, labels)


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("unet_padded", {"base": 8, "depth": 1}, (10, 14)),
        ("fc_densenet56", {"growth": 8, "layers": (1, 1)}, (8, 12)),
    ],
)
def test_activations_in_bfloat16(machine, bfloat16, name, settings, size):
    """The loss, and the gradients of the parameters, which stay float32, are near those of float64.

    Not very near: some of the few numbers that a ReLU sees are so near to 0 that rounding switches it. In float64,
    rounding the results of all convolutions changes these gradients as much, by up to a fifth.
    """
    results, expected = in_bfloat16_and_exactly(machine, name, settings, size)
    assert abs(results[0] - expected[0]) < 1e-2 * expected[0]
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == np.float32
        assert np.linalg.norm(result - right) < 0.4 * np.linalg.norm(right)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fastfcn_encnet_resnet50", {**RESNET, "codewords": 3}), ("gscnn_resnet50", RESNET)],
)
def test_operators_without_bfloat16_calculate_in_float32(machine, bfloat16, name, settings):
    """The networks that have some of them: so deep and narrow that only their losses can be compared."""
    results, expected = in_bfloat16_and_exactly(machine, name, settings, (17, 18))
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == np.float32 and np.isfinite(result).all()
        if right.shape == ():
            np.testing.assert_allclose(result, right, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("deeplab_v3_resnet50", RESNET),
        ("fastfcn_encnet_resnet50", {**RESNET, "codewords": 3}),
        ("gscnn_resnet50", RESNET),
    ],
)
def test_nothing_is_read_in_a_step(machine, name, settings):
    """So it can be recorded: the graph makes of the next batch what the step itself would."""
    first, second = batch(machine, (17, 18)), batch(machine, (17, 18))
    found = []
    with cuda.on(machine.devices[0]):
        for recorded in (False, True):
            model = network(name, **settings).to("cuda")
            images, labels = map(cuda.to_device, first)
            losses_and_gradients(model, images, labels)
            graph = None
            if recorded:
                with cuda.record() as graph:
                    results = losses_and_gradients(model, images, labels)
            for array, values in zip((images, labels), second, strict=True):
                cuda.write(array, values)
            if graph is None:
                results = losses_and_gradients(model, images, labels)
            else:
                graph.launch()
            found.append([cuda.to_host(result).tobytes() for result in results])
    assert found[0] == found[1]
