"""Steps of training on a GPU: all that the loss weighs, batches of several sizes, predictions in between."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import tinyseg
from tinyseg import cuda, models, nn
from tinyseg.data import Batch
from tinyseg.models.inference import predict_logits
from tinyseg.optim import SGD, schedules
from tinyseg.train import config
from tinyseg.train.loss import PixelLoss
from tinyseg.train.step import Steps

SIZES = [  # images, height and width of the batches of each step
    [(2, 8, 8)],
    [(1, 8, 8)],
    [(2, 8, 8)],
    [(2, 8, 8), (1, 8, 8)],
    [(2, 8, 8), (2, 8, 8)],
    [(2, 6, 8)],
    [(2, 8, 8)],
]


class Data(NamedTuple):
    """What the loss asks of a data set."""

    classes: tuple[str, ...] = ("a", "b", "c")
    ignore_label: int = 3


@pytest.fixture
def device(machine):
    with cuda.on(machine.devices[0]):
        yield machine.devices[0]


def groups(*, weighted):
    rng = np.random.default_rng(5)

    def batch(shape):
        images, labels = rng.standard_normal((*shape, 3)).astype(np.float32), rng.integers(0, 4, shape)
        weights = rng.uniform(0.1, 2, shape).astype(np.float32) if weighted else None
        return Batch(images, labels, weights, ("",) * shape[0])

    return [[batch(shape) for shape in group] for group in SIZES]


def trained(device, *, weighted=True, frozen=False, record=False):
    """What the steps found, and the state of the network and of the optimiser after them."""
    network: Any = models.create("unet_padded", 3, 3, rng=np.random.default_rng(1), base=2, depth=1)
    network.unused = nn.Conv2d(2, 2, 1, rng=np.random.default_rng(2))  # a head that gets no gradient
    if frozen:
        network.freeze_norms(scale_and_shift=True)
    network.to(device).train()
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = SGD(learning, lr=0.1, momentum=0.9, weight_decay=1e-3, schedule=schedules.poly(len(SIZES)))
    loss = PixelLoss(config.Loss(class_weights=(1.0, 2.0, 0.5), dice=0.7), Data())  # type: ignore[arg-type]
    steps, found = Steps(network, optimiser, loss, clip=0.3, record=record), []
    for number, group in enumerate(groups(weighted=weighted)):
        if device == "cuda":
            group = [batch.map(cuda.to_device) for batch in group]
        found.append(steps.take(group, number))
        predict_logits(network, np.ones((8, 6, 3), np.float32), flip=True)  # with the weights of now
    return found, network.state_dict() | optimiser.state_dict()


@pytest.mark.parametrize("options", [{"weighted": True}, {"weighted": False, "frozen": True}])
def test_steps_are_those_of_the_cpu(device, options):
    with tinyseg.use("numpy"):
        expected, expected_state = trained("cpu", **options)
    found, state = trained("cuda", **options)
    for outcome, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(outcome.losses, right.losses, rtol=1e-5)
        np.testing.assert_allclose(outcome.norm, right.norm, rtol=1e-4)
    for name, array in expected_state.items():
        np.testing.assert_allclose(state[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("options", [{"weighted": True}, {"weighted": False, "frozen": True}])
def test_other_steps_between_recorded_ones(device, options):
    found, state = trained("cuda", **options)
    recorded, recorded_state = trained("cuda", **options, record=True)
    assert found == recorded
    assert {name: array.tobytes() for name, array in state.items()} == {
        name: array.tobytes() for name, array in recorded_state.items()
    }
