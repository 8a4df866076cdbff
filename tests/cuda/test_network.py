"""A whole training pass of a network on the GPU: forward, loss, and the gradients of all parameters."""

import host_gpu
import numpy as np
import pytest

from tinyseg import cuda, functional, models
from tinyseg.tape import Tensor


@pytest.fixture
def arithmetic(monkeypatch):
    """Arrays on the host's GPU can be added and multiplied, as CuPy's can. Operators have kernels for it, but the
    tape adds gradients and running averages move."""

    def as_numpy(operation):
        def of_arrays(a, b):
            return host_gpu.upload(operation(a.values, b.values if isinstance(b, host_gpu.HostArray) else b))

        return of_arrays

    for name, operation in {"__add__": np.add, "__mul__": np.multiply, "__rmul__": np.multiply}.items():
        monkeypatch.setattr(host_gpu.HostArray, name, as_numpy(operation), raising=False)


def network(name, **settings):
    return models.create(name, in_channels=3, classes=3, rng=np.random.default_rng(3), **settings).astype(
        np.float64
    )


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("unet_padded", {"base": 4, "depth": 1}, (5, 9)),
        pytest.param("unet", {"base": 2, "depth": 1}, (18, 20), marks=pytest.mark.slow),
        pytest.param("fc_densenet56", {"growth": 1}, (32, 32), marks=pytest.mark.slow),
        pytest.param(
            "deeplab_v3_resnet50", {"backbone": "resnet18", "width": 1 / 16}, (33, 34), marks=pytest.mark.slow
        ),
    ],
)
def test_gradients_of_a_network(machine, arithmetic, name, settings, size):
    H, W = size
    images, labels = machine.numbers(2, H, W, 3), machine.rng.integers(0, 4, (2, H, W))
    names = [parameter for parameter, _ in network(name, **settings).named_parameters()]

    def loss_and_gradients(images, labels):
        model = network(name, **settings)
        on_gpu = not isinstance(images, np.ndarray)
        if on_gpu:
            to_device(model)
        logits = model(Tensor(images))
        top, left = ((large - small) // 2 for large, small in zip(size, logits.shape[1:3], strict=True))
        labels = labels[:, top : top + logits.shape[1], left : left + logits.shape[2]]
        loss = functional.cross_entropy(logits, labels, ignore_label=3)
        loss.backward(cuda.to_device(np.ones(())) if on_gpu else None)
        return loss.data, *(parameter.grad for parameter in model.parameters())

    loss, *gradients = machine.agree(loss_and_gradients, images, labels, tolerance={np.dtype(np.float64): 1e-9})
    assert 0 < loss < 10 and len(gradients) == len(names)
    assert all(gradient.any() for gradient in gradients)


def to_device(model):
    for _, parameter in model.named_parameters():
        parameter.data = cuda.to_device(parameter.data)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):  # the others are numbers for the host
            buffer.data = cuda.to_device(buffer.data)
