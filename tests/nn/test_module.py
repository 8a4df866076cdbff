"""Modules: how their parts are found and named, state, mode, and how they print."""

import copy

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.tape import Tensor


class Block(nn.Module):
    def __init__(self, channels, *, rng):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, rng=rng)
        self.norm = nn.BatchNorm2d(channels, relu=True)

    def forward(self, x):
        return F.add(x, self.norm(self.conv(x)))


class Network(nn.Module):
    """One of every way to hold a part."""

    def __init__(self, *, rng):
        self.stem = nn.Conv2d(3, 4, 1, rng=rng)
        self.blocks = [Block(4, rng=rng) for _ in range(2)]
        self.heads = {"edges": nn.Conv2d(4, 1, 1, rng=rng), "classes": nn.Conv2d(4, 5, 1, rng=rng)}
        self.tail = nn.Sequential(nn.Dropout(0.5, rng=rng), nn.ReLU())
        self.weights = (nn.Parameter(np.ones(2, np.float32)), nn.Parameter(np.zeros(3, np.float32)))
        self.note = "no part"
        self.nothing = None

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(self.heads["classes"](x))


@pytest.fixture
def network(rng):
    return Network(rng=rng)


PARAMETERS = [
    "stem.weight",
    "stem.bias",
    "blocks.0.conv.weight",
    "blocks.0.norm.weight",
    "blocks.0.norm.bias",
    "blocks.1.conv.weight",
    "blocks.1.norm.weight",
    "blocks.1.norm.bias",
    "heads.edges.weight",
    "heads.edges.bias",
    "heads.classes.weight",
    "heads.classes.bias",
]
OWN = ["weights.0", "weights.1"]
BUFFERS = [
    "blocks.0.norm.running_mean",
    "blocks.0.norm.running_var",
    "blocks.1.norm.running_mean",
    "blocks.1.norm.running_var",
    "tail.0.seed",
    "tail.0.calls",
]


# ---------------------------------------------------------------------------------------------------- the parts


def test_names(network):
    assert [name for name, _ in network.named_parameters()] == OWN + PARAMETERS
    assert [name for name, _ in network.named_buffers()] == BUFFERS
    assert list(network.state_dict()) == OWN + PARAMETERS + BUFFERS
    modules = [name for name, _ in network.named_modules()]
    assert modules[:5] == ["", "stem", "blocks.0", "blocks.0.conv", "blocks.0.norm"]
    assert modules[-5:] == ["heads.edges", "heads.classes", "tail", "tail.0", "tail.1"]
    assert dict(network.named_modules())["blocks.1.norm"] is network.blocks[1].norm


def test_parts_are_found_as_they_are_now(rng):
    """Nothing is registered: what was replaced or deleted is gone."""
    network = Network(rng=rng)
    network.stem = nn.Identity()
    del network.heads["edges"]
    network.blocks.append(Block(4, rng=rng))
    names = [name for name, _ in network.named_parameters()]
    assert "stem.weight" not in names
    assert "heads.edges.weight" not in names
    assert "blocks.2.conv.weight" in names


def test_a_shared_part_comes_once(rng):
    class Twins(nn.Module):
        def __init__(self):
            self.first = nn.Linear(2, 2, rng=rng)
            self.second = self.first
            self.third = nn.Linear(2, 2, rng=rng)
            self.third.weight = self.first.weight

    twins = Twins()
    assert [name for name, _ in twins.named_parameters()] == ["first.weight", "first.bias", "third.bias"]
    assert len(list(twins.modules())) == 3


def test_number_of_parameters(network):
    expected = (3 * 4 + 4) + 2 * (9 * 4 * 4 + 4 + 4) + (4 + 1) + (4 * 5 + 5) + 2 + 3
    assert network.num_parameters() == expected
    network.stem.weight.requires_grad = False
    assert network.num_parameters() == expected - 12


def test_sequential(rng):
    net = nn.Sequential(nn.Linear(2, 3, rng=rng), nn.ReLU(), nn.Linear(3, 1, rng=rng))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(net) == 3
    assert isinstance(net[1], nn.ReLU)
    assert list(net) == [net[0], net[1], net[-1]]
    x = rng.standard_normal((4, 2)).astype(np.float32)
    hidden = np.maximum(x @ net[0].weight.data, 0)
    np.testing.assert_allclose(net(x).data, hidden @ net[2].weight.data, rtol=1e-5)
    with pytest.raises(TypeError, match=r"argument 1 must be a Module, got function; write nn\.ReLU\(\)"):
        nn.Sequential(nn.ReLU(), F.relu)


def test_without_forward():
    with pytest.raises(NotImplementedError, match="Module has no forward method"):
        nn.Module()(1)


# ---------------------------------------------------------------------------------------------------- the state


def test_state_goes_from_one_network_to_another(network):
    other = Network(rng=np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((2, 5, 4, 3)).astype(np.float32)
    network(x)  # moves the running statistics and the dropout's counter
    state = network.state_dict()
    other.load_state_dict(state)
    assert other.tail[0].calls.data == 1
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    np.testing.assert_array_equal(other(x).data, network(x).data)  # the same dropout mask included


def test_states_are_copies_both_ways(network):
    state = network.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    network.stem.weight.data += 1
    np.testing.assert_array_equal(state["stem.weight"], before["stem.weight"])
    network.load_state_dict(state)
    network.stem.weight.data += 1
    np.testing.assert_array_equal(state["stem.weight"], before["stem.weight"])


def test_a_state_is_converted_and_laid_out_in_order(network):
    state = network.state_dict()
    state["stem.weight"] = np.asfortranarray(np.arange(12.0).reshape(1, 1, 3, 4))
    network.load_state_dict(state)
    weight = network.stem.weight.data
    assert weight.dtype == np.float32
    assert weight.flags.c_contiguous
    np.testing.assert_array_equal(weight.reshape(-1), np.arange(12))


def test_a_state_that_does_not_fit_is_refused_as_a_whole(network):
    state = network.state_dict()
    before = network.state_dict()
    state["stem.weight"] = np.zeros((1, 1, 3, 4), np.float32)  # fits, but must not be loaded alone
    del state["stem.bias"], state["tail.0.seed"]
    state["heads.depth.weight"] = np.zeros((1, 1, 4, 1))
    state["heads.classes.bias"] = np.zeros(7)
    with pytest.raises(ValueError, match=r"Network\.load_state_dict: .* 4 of its names do not fit") as caught:
        network.load_state_dict(state)
    for line in (
        "missing: stem.bias (4,)",
        "missing: tail.0.seed ()",
        "unexpected: heads.depth.weight (1, 1, 4, 1)",
        "shape: heads.classes.bias is (5,) here and (7,) in the state",
    ):
        assert line in str(caught.value)
    np.testing.assert_array_equal(network.stem.weight.data, before["stem.weight"])


def test_loading_a_part(network):
    part = {"stem.bias": np.arange(4.0)}
    network.load_state_dict(network.state_dict() | part)
    np.testing.assert_array_equal(network.stem.bias.data, np.arange(4))


def test_astype(network):
    network.stem.weight.grad = np.zeros((1, 1, 3, 4), np.float32)
    assert network.astype(np.float64) is network
    for name, array in network.state_dict().items():
        assert array.dtype == (np.int64 if name.startswith("tail.0") else np.float64), name
    assert network.stem.weight.grad is None
    y = network(np.zeros((1, 2, 3, 3)))
    assert y.data.dtype == np.float64


def test_a_deep_copy_is_another_network(network):
    other = copy.deepcopy(network)
    other.stem.weight.data += 1
    other(np.zeros((1, 2, 3, 3), np.float32))
    assert network.tail[0].calls.data == 0
    assert not np.array_equal(network.stem.weight.data, other.stem.weight.data)


# ----------------------------------------------------------------------------------------------------- the mode


def test_train_and_eval_reach_every_module(network):
    assert all(module.training for module in network.modules())
    assert network.eval() is network
    assert not any(module.training for module in network.modules())
    network.train()
    assert all(module.training for module in network.modules())
    network.blocks[0].eval()
    assert [module.training for module in network.blocks] == [False, True]
    assert network.training


def test_gradients_reach_every_parameter_that_was_used(network, rng):
    x = rng.standard_normal((2, 5, 4, 3)).astype(np.float32)
    y = network(x)
    y.backward(rng.standard_normal(y.shape).astype(np.float32))
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == [*OWN, "heads.edges.weight", "heads.edges.bias"]
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name


# ------------------------------------------------------------------------------------------------------- printing


def test_repr(rng):
    class Tiny(nn.Module):
        def __init__(self):
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, (3, 1), stride=2, padding="same", bias=False, rng=rng),
                nn.BatchNorm2d(8, relu=True),
            )
            self.heads = [nn.Linear(8, 2, rng=rng)]

    assert repr(Tiny()) == (
        "Tiny(\n"
        "  (body): Sequential(\n"
        "    (0): Conv2d(3 -> 8, kernel 3x1, stride=2, padding=same, bias=False)\n"
        "    (1): BatchNorm2d(8, relu)\n"
        "  )\n"
        "  (heads.0): Linear(8 -> 2)\n"
        ")"
    )
    assert repr(nn.ReLU()) == "ReLU()"
    parameter = nn.Parameter(np.zeros((2, 3), np.float32))
    assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float32, requires_grad=True)"
    assert isinstance(parameter, Tensor)
    assert repr(nn.Buffer(np.zeros(3))) == "Buffer(shape=(3,), dtype=float64)"
