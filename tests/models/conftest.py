"""What the tests of all networks share: a gradient check of the whole network, and four images to learn."""

import time

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import optim
from tinyseg.gradcheck import check_vjp
from tinyseg.metrics import ConfusionMatrix
from tinyseg.tape import Tensor, no_grad


@pytest.fixture
def check_network_gradient():
    """check_network_gradient(network, (H, W)): a random upstream, a direction over the input, and one over all
    parameters together, in float64 and in the mode in which the network is."""
    return _check_network_gradient


def _check_network_gradient(network, size, *, batch=2, eps=1e-7, rtol=1e-4, seed=2):
    network.astype(np.float64)
    rng = np.random.default_rng(seed)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:  # a bias of 0 or a scorer of zeros would put ReLUs on their kinks, or hide errors
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape)
    ends = np.cumsum([parameter.data.size for parameter in parameters])
    counters = [module.calls for module in network.modules() if hasattr(module, "calls")]

    def forward(image, values):
        for parameter, part in zip(parameters, np.split(values, ends[:-1]), strict=True):
            parameter.data, parameter.grad = part.reshape(parameter.shape), None
        for calls in counters:
            calls.data = np.zeros_like(calls.data)  # the same dropout masks each time
        image = Tensor(image, requires_grad=True)
        y = network(image)
        return y.data, (image, y)

    def backward(dy, _):
        image, y = forward(*inputs)[1]  # a tape serves once, and the checker asks twice
        y.backward(dy)
        assert all(parameter.grad is not None for parameter in parameters), "no gradient reached some parameters"
        return image.grad, np.concatenate([parameter.grad.reshape(-1) for parameter in parameters])

    image = rng.standard_normal((batch, *size, network.in_channels))
    values = np.concatenate([parameter.data.reshape(-1) for parameter in parameters])
    inputs = (image, values)
    # A step of 1e-7 meets few kinks of the many ReLUs; what it meets is within the tolerance.
    check_vjp(forward, backward, inputs, eps=eps, rtol=rtol)


@pytest.fixture
def learn_by_heart(real_data):
    """learn_by_heart(network): train on four images of CamVid, and return the mean IoU on those four."""

    def learn(network, *, size=(96, 128), part=1.0, **settings):
        return _learn_by_heart(network, four_images(real_data, size, part), **settings)

    return learn


def four_images(real_data, size, part):
    """Training images of four scenes: images (4, H, W, 3), normalised, and labels (4, H, W), where 11 is void.

    Of each image, the middle `part` of its height and width is brought to `size`: where a network answers on a
    coarse grid, objects have to be larger than its cells.
    """
    from tinyseg.data import CamVid
    from tinyseg.data.transforms import Normalise, Resize

    dataset = CamVid(real_data / "camvid", "train")
    resize, normalise, rng = Resize(size), Normalise(dataset.mean, dataset.std), np.random.default_rng(0)
    samples = []
    for index in range(0, len(dataset), len(dataset) // 4 + 1):
        sample = dataset[index]
        rows, columns = (
            slice(round(side * (1 - part) / 2), round(side * (1 + part) / 2)) for side in sample.image.shape[:2]
        )
        middle = sample._replace(image=sample.image[rows, columns], mask=sample.mask[rows, columns])
        samples.append(normalise(resize(middle, rng), rng))
    return np.stack([sample.image for sample in samples]), np.stack([sample.mask for sample in samples])


def _learn_by_heart(network, images_and_labels, *, lr=2e-3, steps=1000, enough=0.95, every=25):
    """Adam on all four at once, until the mean IoU is `enough`. Prints the minutes it takes (pytest -s)."""
    images, labels = images_and_labels
    optimiser = optim.Adam(network.parameters(), lr=lr, schedule=optim.schedules.cosine(steps))
    began = time.perf_counter()
    score = 0.0
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss = F.cross_entropy(network.train()(images), labels, ignore_label=11)
        loss.backward()
        optimiser.step()
        if step % every == 0:
            score = _mean_iou(network, images, labels)
            print(f"step {step}: loss {float(loss.data):.4f}, mean IoU {score:.4f}", flush=True)
            if score >= enough:
                break
    minutes = (time.perf_counter() - began) / 60
    print(f"{type(network).__name__}: mean IoU {score:.4f} after {step} steps, {minutes:.1f} minutes", flush=True)
    return score


def _mean_iou(network, images, labels):
    confusion = ConfusionMatrix(11, ignore_label=11)
    network.eval()
    with no_grad():
        for image, label in zip(images, labels, strict=True):
            logits = network(image[None]).data
            confusion.update(label[None], logits.argmax(axis=-1))
    return confusion.mean_iou
