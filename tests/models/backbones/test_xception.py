"""Xception against PyTorch's functions, and its rates."""

import numpy as np
import pytest

from tinyseg.models.backbones.xception import Xception
from tinyseg.tape import no_grad

RATES = {  # of the entry blocks, the middle blocks, and the two exit blocks
    32: ([1, 1, 1], 1, [1, 1]),
    16: ([1, 1, 1], 1, [1, 2]),
    8: ([1, 1, 1], 2, [2, 4]),
}


def small(**settings):
    return Xception(3, 4, **({"depth": 41, "width": 0.03, "rng": np.random.default_rng(3)} | settings))


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


@pytest.mark.parametrize("output_stride", RATES)
def test_rates_of_the_table(output_stride):
    net = small(output_stride=output_stride)
    entry, middle, end = RATES[output_stride]

    def rate(block):
        (value,) = {conv.depthwise.options["dilation"] for conv in block.separable}
        return value

    assert [rate(block) for block in net.entry] == entry
    assert {rate(block) for block in net.middle} == {middle}
    assert [rate(block) for block in net.exit] == end
    assert net.stage_strides["exit"] == output_stride


def test_multi_grid():
    net = small(output_stride=16, multi_grid=(1, 2, 4))
    assert [conv.depthwise.options["dilation"] for conv in net.exit[1].separable] == [2, 4, 8]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("depth", "output_stride", "depthwise_relu"),
    [(41, 32, False), (41, 16, True), (65, 8, False), (71, 16, False)],
)
def test_against_pytorch(depth, output_stride, depthwise_relu, torch, channels_first):
    """The published table, read once more, in PyTorch's functions."""
    functional = torch.nn.functional
    net = small(depth=depth, output_stride=output_stride, depthwise_relu=depthwise_relu)
    with no_grad():
        for _ in range(3):
            net(image(97, 97, batch=4))  # moves the running statistics
    net.eval()
    state = {name: torch.from_numpy(array) for name, array in net.state_dict().items() if array.ndim}

    def conv(x, name, **options):
        return functional.conv2d(x, state[f"{name}.weight"].permute(3, 2, 0, 1), **options)

    def norm(x, name):
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return functional.batch_norm(x, *moments, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    def separable(x, name, stride, rate, last):
        x = x if last else x.relu()
        options = {"stride": stride, "padding": rate, "dilation": rate, "groups": x.shape[1]}
        x = norm(conv(x, f"{name}.depthwise", **options), f"{name}.depthwise_bn")
        x = x.relu() if last or depthwise_relu else x
        x = norm(conv(x, f"{name}.pointwise"), f"{name}.pointwise_bn")
        return x.relu() if last else x

    entry = [2, 1, 2, 1, 2] if depth == 71 else [2, 2, 2]
    middle = {41: 8, 65: 16, 71: 16}[depth]
    blocks = [(f"entry.{index}", "conv", stride) for index, stride in enumerate(entry)]
    blocks += [(f"middle.{index}", "identity", 1) for index in range(middle)]
    blocks += [("exit.0", "conv", 2), ("exit.1", "none", 1)]

    x = image(65, 91)
    y = norm(conv(channels_first(x), "conv1_1", stride=2, padding=1), "bn1_1").relu()
    y = norm(conv(y, "conv1_2", padding=1), "bn1_2").relu()
    stride, rate = 2, 1
    for name, shortcut, step in blocks:
        given, wanted = y, step
        if stride * step > output_stride:
            step = 1
        for index in range(3):
            place = step if index == 2 else 1
            y = separable(y, f"{name}.separable.{index}", place, rate, shortcut == "none")
            if index == 1 and stride == 4 and wanted == 2:
                low_level = y
        if shortcut == "conv":
            y = y + norm(conv(given, f"{name}.projection", stride=step), f"{name}.projection_bn")
        elif shortcut == "identity":
            y = y + given
        stride *= step
        rate *= wanted // step
    with no_grad():
        maps = net.stages(x)
    for stage, reference in (("low_level", low_level), ("exit", y)):
        expected = reference.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(maps[stage].data, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_a_dilated_network_computes_the_strided_one_at_more_places(size):
    net = small()
    with no_grad():
        net(image(96, 96, batch=2))
        net.eval()
        maps = {}
        for output_stride in (32, 16, 8):
            net.set_dilation(output_stride)
            maps[output_stride] = net.stages(image(*size))["exit"].data
    scale = np.abs(maps[32]).max()
    for output_stride, step in ((16, 2), (8, 4)):
        subsampled = maps[output_stride][:, ::step, ::step]
        np.testing.assert_allclose(subsampled / scale, maps[32] / scale, atol=1e-4)


def test_gradient_of_dilated_forms(check_network_gradient):
    check_network_gradient(small(output_stride=8, depthwise_relu=True), (21, 29))
