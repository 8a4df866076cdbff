"""WideResNet-38: the counts of its modules, against PyTorch's functions, its rates and dropout."""

import numpy as np
import pytest

from tinyseg.models import backbones
from tinyseg.models.backbones.wide_resnet38 import WideResNet38
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad

MODULES = {
    "mod1": 1_728,
    "mod2": 820_608,
    "mod3": 3_279_616,
    "mod4": 27_274_752,
    "mod5": 26_484_736,
    "mod6": 9_442_304,
    "mod7": 37_758_976,
}


def small(classes=4, **settings):
    return WideResNet38(3, classes, **({"width": 0.02, "rng": np.random.default_rng(3)} | settings))


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


def test_counts_of_the_modules():
    net = sketch(backbones.create, "wide_resnet38")
    assert {name: getattr(net, name).num_parameters() for name in MODULES} == MODULES


@pytest.mark.oracle
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_against_pytorch(output_stride, torch, channels_first):
    functional = torch.nn.functional
    net = small(output_stride=output_stride)
    with no_grad():
        for _ in range(3):
            net(image(64, 64, batch=4))  # moves the running statistics
    net.eval()
    state = {name: torch.from_numpy(array) for name, array in net.state_dict().items() if array.ndim}

    def conv(x, name, **options):
        return functional.conv2d(x, state[f"{name}.weight"].permute(3, 2, 0, 1), **options)

    def norm(x, name):
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return functional.batch_norm(x, *moments, state[f"{name}.weight"], state[f"{name}.bias"]).relu()

    strides = {4: 2, 5: 2 if output_stride > 8 else 1, 6: 2 if output_stride > 16 else 1}
    rates = {5: 1 if output_stride > 8 else 2}
    rates[6] = rates[7] = 32 // output_stride

    x = image(41, 67)
    y = conv(channels_first(x), "mod1", padding=1)
    for module, units in enumerate((3, 3, 6, 3, 1, 1), start=2):
        y = functional.max_pool2d(y, 3, 2, 1) if module < 4 else y
        rate = rates.get(module, 1)
        for unit in range(units):
            name, stride = f"mod{module}.{unit}", strides.get(module, 1) if unit == 0 else 1
            normalised = norm(y, f"{name}.norms.0")
            shortcut = y
            if f"{name}.projection.weight" in state:
                shortcut = conv(normalised, f"{name}.projection", stride=stride)
            if module < 6:
                z = conv(normalised, f"{name}.convs.0", stride=stride, padding=rate, dilation=rate)
                z = conv(norm(z, f"{name}.norms.1"), f"{name}.convs.1", padding=rate, dilation=rate)
            else:
                z = conv(normalised, f"{name}.convs.0", stride=stride)
                z = conv(norm(z, f"{name}.norms.1"), f"{name}.convs.1", padding=rate, dilation=rate)
                z = conv(norm(z, f"{name}.norms.2"), f"{name}.convs.2")
            y = z + shortcut
    last = norm(y, "norm_last")
    logits = last.mean(dim=(2, 3)) @ state["fc.weight"] + state["fc.bias"]
    with no_grad():
        maps, ours = net.stages(x), net(x).data
    for stage, reference in (("mod7", y), ("last", last)):
        expected = reference.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(maps[stage].data, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4 * np.abs(logits.numpy()).max())


def test_strides_are_announced():
    assert list(small(classes=None).stage_strides.values()) == [1, 2, 4, 8, 8, 8, 8]
    net = small(output_stride=32)
    assert list(net.stage_strides.values()) == [1, 2, 4, 8, 16, 32, 32, 32]
    net.set_dilation(8)
    assert list(net.stage_strides.values()) == [1, 2, 4, 8, 8, 8, 8, 8]


def test_whole_channels_are_dropped_in_training():
    net = small(classes=None)
    x = image(32, 40)
    with no_grad():
        first, second = net.stages(x), net.stages(x)
    assert np.array_equal(first["mod5"].data, second["mod5"].data)
    assert not np.array_equal(first["mod6"].data, second["mod6"].data)
    assert net.mod6[0].dropout.rate == 0.3 and net.mod7[0].dropout.rate == 0.5
    assert net.mod6[0].dropout.channels
