"""VGG-16 and LargeFOV against PyTorch; rounding of the poolings."""

import numpy as np
import pytest

from tinyseg.models.backbones.vgg import VGG, VGGLargeFOV
from tinyseg.tape import no_grad


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


@pytest.mark.oracle
@pytest.mark.parametrize("batch_norm", [False, True])
def test_same_logits_as_torchvision(
    batch_norm, torch, torchvision, random_statistics, carry_weights, channels_first
):
    """With an eighth of the channels: the 138 million weights of the whole would test nothing more."""
    module = torchvision.models.vgg
    widths = [width if width == "M" else width // 8 for width in module.cfgs["D"]]
    theirs = module.VGG(module.make_layers(widths, batch_norm), num_classes=10, init_weights=False)
    for index, sizes in ((0, (64 * 7 * 7, 512)), (3, (512, 512)), (6, (512, 10))):
        theirs.classifier[index] = torch.nn.Linear(*sizes)
    random_statistics(theirs).eval()
    ours = VGG(3, 10, batch_norm=batch_norm, width=1 / 8, rng=np.random.default_rng(0))
    carry_weights(theirs, ours, flattened={"classifier.0": (7, 7, 64)}).eval()
    with torch.no_grad(), no_grad():
        for size in ((64, 75), (39, 42)):  # maps that are averaged, or repeated, to 7 x 7
            x = image(*size)
            expected, logits = theirs(channels_first(x)).numpy(), ours(x).data
            np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("average_pool", "kernel", "rate"), [(True, 3, 12), (False, 3, 12), (True, 7, 4), (True, 4, 4), (True, 4, 8)]
)
def test_largefov_against_pytorch(average_pool, kernel, rate, torch, channels_first):
    """The released network, layer by layer, in PyTorch's functions."""
    functional = torch.nn.functional
    net = VGGLargeFOV(
        3,
        5,
        average_pool=average_pool,
        fc6_kernel=kernel,
        fc6_rate=rate,
        fc_channels=64,
        width=0.1,
        rng=np.random.default_rng(0),
    ).eval()
    state = {name: torch.from_numpy(array) for name, array in net.state_dict().items() if array.ndim}

    def conv(x, name, **options):
        return functional.conv2d(x, state[f"{name}.weight"].permute(3, 2, 0, 1), state[f"{name}.bias"], **options)

    x = image(75, 97)
    y = channels_first(x)
    positions = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))  # those of VGG-16 in torchvision
    for block, convolutions in enumerate((2, 2, 3, 3, 3)):
        d = 2 if block == 4 else 1
        for _ in range(convolutions):
            y = conv(y, f"features.{next(positions)}", padding=d, dilation=d).relu()
        y = functional.max_pool2d(y, 3, 2 if block < 3 else 1, 1)
    if average_pool:
        y = functional.avg_pool2d(y, 3, 1, 1)
    y = conv(y, "fc6", padding=(kernel - 1) * rate // 2, dilation=rate).relu()
    y = conv(conv(y, "fc7").relu(), "fc8")
    with no_grad():
        logits = net(x).data
    assert logits.shape == (1, 10, 13, 5)
    expected = y.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("size", "sizes"),  # 500 and 375: the sizes behind the poolings of FCN, which pads its image by 100
    [((500, 375), [(349, 287), (175, 144), (88, 72), (44, 36), (22, 18)])],
)
def test_sizes_with_fcns_padding(size, sizes):
    net = VGG(3, None, ceil_mode=True, first_padding=100, width=0.02, rng=np.random.default_rng(0))
    with no_grad():
        maps = net.stages(image(*size))
        assert [x.shape[1:3] for x in maps.values()] == sizes
        assert net.stages(image(1, 1))["pool5"].shape[1:3] == (7, 7)


def test_smallest_sides():
    rng = np.random.default_rng(0)
    for settings, side in (
        ({}, 32),
        ({"ceil_mode": True}, 1),
        ({"first_padding": 8}, 18),
        ({"first_padding": 100}, 1),
    ):
        net = VGG(3, None, width=0.02, rng=rng, **settings)
        assert net.smallest_side == side
        assert min(net.stages(image(side, side + 3))["pool5"].shape) > 0
        if side > 1:
            with pytest.raises(ValueError, match=f"at least {side} x {side}"):
                net.stages(image(side - 1, side))


def test_dropout_only_in_training():
    net = VGG(3, 5, width=0.04, rng=np.random.default_rng(0))
    x = image(40, 40)
    assert not np.array_equal(net(x).data, net(x).data)
    net.eval()
    assert np.array_equal(net(x).data, net(x).data)
