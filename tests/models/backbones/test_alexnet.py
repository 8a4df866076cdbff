"""AlexNet against torchvision, and its Caffe forms against PyTorch's functions."""

import numpy as np
import pytest

from tinyseg.models import backbones
from tinyseg.models.backbones.alexnet import AlexNet
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


@pytest.mark.oracle
def test_same_logits_as_torchvision(torch, torchvision, carry_weights, channels_first):
    theirs = torchvision.models.alexnet(num_classes=10).eval()
    ours = sketch(backbones.create, "alexnet_torchvision", classes=10)
    carry_weights(theirs, ours, flattened={"classifier.1": (6, 6, 256)}).eval()
    with torch.no_grad(), no_grad():
        for size in ((224, 224), (101, 147)):
            x = image(*size)
            expected, logits = theirs(channels_first(x)).numpy(), ours(x).data
            np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["caffenet", "alexnet"])
@pytest.mark.parametrize(("groups", "size"), [(2, (227, 227)), (1, (227, 227)), (2, (91, 120))])
def test_caffe_forms_against_pytorch(variant, groups, size, torch, channels_first):
    functional = torch.nn.functional
    net = AlexNet(3, 7, variant=variant, groups=groups, width=0.1, rng=np.random.default_rng(1)).eval()
    for _, parameter in net.named_parameters():
        parameter.data = parameter.data + np.float32(0.02)  # biases that are not 0
    state = {name: torch.from_numpy(array) for name, array in net.state_dict().items() if array.ndim}

    def conv(x, index, **options):
        weight = state[f"features.{index}.weight"].permute(3, 2, 0, 1)
        return functional.conv2d(x, weight, state[f"features.{index}.bias"], **options).relu()

    def pool(x):
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pool_and_norm(x):
        return norm(pool(x)) if variant == "caffenet" else pool(norm(x))

    x = 30 * image(*size)  # as large as Caffe's, so that the normalisation shows
    y = pool_and_norm(conv(channels_first(x), 0, stride=4))
    y = pool_and_norm(conv(y, 4, padding=2, groups=groups))
    y = conv(y, 8, padding=1)
    y = conv(y, 10, padding=1, groups=groups)
    y = pool(conv(y, 12, padding=1, groups=groups))
    y = functional.adaptive_avg_pool2d(y, 6).permute(0, 2, 3, 1).reshape(1, -1)
    y = (y @ state["classifier.0.weight"] + state["classifier.0.bias"]).relu()
    y = (y @ state["classifier.3.weight"] + state["classifier.3.bias"]).relu()
    y = y @ state["classifier.6.weight"] + state["classifier.6.bias"]
    with no_grad():
        np.testing.assert_allclose(net(x).data, y.numpy(), atol=1e-4 * np.abs(y.numpy()).max())


def test_fcns_padding_takes_any_image():
    net = AlexNet(3, None, first_padding=100, width=0.1, rng=np.random.default_rng(1))
    assert net.smallest_side == 1
    with no_grad():
        assert net.stages(image(1, 300))["pool5"].shape[1:3] == (6, 15)


def test_widths_are_multiples_of_the_groups():
    net = AlexNet(3, None, groups=2, width=0.013, rng=np.random.default_rng(1))
    assert all(channels % 2 == 0 for channels in net.stage_channels.values())
