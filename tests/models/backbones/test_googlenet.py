"""GoogLeNet against torchvision, auxiliary heads included, and its Caffe form against PyTorch's functions."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg.models import backbones
from tinyseg.models.backbones.googlenet import MODULES, GoogLeNet
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


@pytest.fixture
def theirs(torchvision, random_statistics):
    net = torchvision.models.googlenet(
        num_classes=10,
        aux_logits=True,
        transform_input=False,
        init_weights=False,
        dropout=0.0,
        dropout_aux=0.0,
    )
    return random_statistics(net)


@pytest.mark.oracle
def test_same_logits_as_torchvision(theirs, torch, carry_weights, channels_first):
    flattened = {"aux1.fc1": (4, 4, 128), "aux2.fc1": (4, 4, 128)}
    ours = sketch(backbones.create, "googlenet_torchvision", classes=10, auxiliary=True, dropout=0.0)
    for head in (ours.aux1, ours.aux2):
        head.dropout.rate = 0.0
    carry_weights(theirs, ours, flattened)
    with torch.no_grad(), no_grad():
        x = image(64, 91, batch=2)
        expected, logits = theirs.eval()(channels_first(x)).numpy(), ours.eval()(x).data
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
        main, aux2, aux1 = theirs.train()(channels_first(x))
        for theirs_logits, our_logits in zip((main, aux1, aux2), ours.train().forward_all(x), strict=True):
            expected = theirs_logits.numpy()
            np.testing.assert_allclose(our_logits.data, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(224, 224), (75, 101)])
def test_caffe_form_against_pytorch(size, torch, channels_first):
    functional = torch.nn.functional
    net = GoogLeNet(3, 7, auxiliary=True, width=0.1, rng=np.random.default_rng(1)).eval()
    state = {
        name: torch.from_numpy(array + np.float32(0.01)) for name, array in net.state_dict().items() if array.ndim
    }
    net.load_state_dict(net.state_dict() | {name: tensor.numpy() for name, tensor in state.items()})

    def conv(x, name, **options):
        weight = state[f"{name}.conv.weight"].permute(3, 2, 0, 1)
        return functional.conv2d(x, weight, state[f"{name}.conv.bias"], **options).relu()

    def pool(x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def linear(x, name):
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def auxiliary(x, name):
        x = functional.avg_pool2d(x, 5, 3) if min(x.shape[2:]) >= 5 else x
        x = conv(functional.adaptive_avg_pool2d(x, 4), f"{name}.conv")
        return linear(linear(x.permute(0, 2, 3, 1).reshape(1, -1), f"{name}.fc1").relu(), f"{name}.fc2")

    x = 30 * image(*size)
    y = norm(pool(conv(channels_first(x), "conv1", stride=2, padding=3)))
    y = pool(norm(conv(conv(y, "conv2"), "conv3", padding=1)))
    expected = []
    for name in MODULES:
        y = pool(y) if name in ("inception4a", "inception5a") else y
        y = torch.cat(
            [
                conv(y, f"{name}.branch1"),
                conv(conv(y, f"{name}.branch2.0"), f"{name}.branch2.1", padding=1),
                conv(conv(y, f"{name}.branch3.0"), f"{name}.branch3.1", padding=2),
                conv(functional.max_pool2d(y, 3, 1, 1), f"{name}.branch4.1"),
            ],
            dim=1,
        )
        if name in ("inception4a", "inception4d"):
            expected.append(auxiliary(y, "aux1" if name == "inception4a" else "aux2"))
    expected.insert(0, linear(y.mean(dim=(2, 3)), "fc"))
    with no_grad():
        for logits, reference in zip(net.forward_all(x), expected, strict=True):
            scale = np.abs(reference.numpy()).max()
            np.testing.assert_allclose(logits.data, reference.numpy(), atol=1e-4 * scale)


def test_auxiliary_heads_are_left_out_of_trunk_and_forward():
    net = GoogLeNet(3, 5, auxiliary=True, width=0.05, rng=np.random.default_rng(0)).eval()
    with no_grad():
        x = image(65, 65)
        assert np.array_equal(net(x).data, net.forward_all(x)[0].data)
    assert not any("aux" in name for name, _ in net.trunk().named_parameters())
    with pytest.raises(ValueError, match="make it with auxiliary=True"):
        GoogLeNet(3, 5, width=0.05, rng=np.random.default_rng(0)).forward_all(x)


def test_gradient_of_the_auxiliary_heads(check_network_gradient):
    net = GoogLeNet(3, 3, auxiliary=True, width=0.05, rng=np.random.default_rng(0))
    net.forward = lambda x: F.concat(list(net.forward_all(x)))
    check_network_gradient(net, (43, 59))
