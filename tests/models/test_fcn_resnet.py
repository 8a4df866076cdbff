"""torchvision's fcn_resnet and deeplabv3_resnet: its names of weights, and its answers to them."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, ops
from tinyseg.models.network import CrossEntropy, total
from tinyseg.models.summary import sketch, summarise
from tinyseg.nn import BatchNorm2d

UNITS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FAMILIES = ("fcn", "deeplabv3")


def small(family, **settings):
    settings = {"depth": 50, "width": 1 / 16, "in_channels": 3, "classes": 4} | settings
    net = models.create(f"{family}_resnet50", rng=np.random.default_rng(1), **settings)
    rng = np.random.default_rng(2)
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.data = 0.1 * rng.standard_normal(module.running_mean.data.shape)
            module.running_var.data = 0.5 + rng.random(module.running_var.data.shape)
    return net.astype(np.float64).eval()


def torchvision_names(family, depth):
    """All names of its state dict, without the counters of batches."""

    def conv(name, bias=False):
        return {f"{name}.weight"} | ({f"{name}.bias"} if bias else set())

    def norm(name):
        return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}

    names = conv("backbone.conv1") | norm("backbone.bn1")
    for stage, units in enumerate(UNITS[depth], start=1):
        for unit in range(units):
            for part in (1, 2, 3):
                block = f"backbone.layer{stage}.{unit}"
                names |= conv(f"{block}.conv{part}") | norm(f"{block}.bn{part}")
        names |= conv(f"backbone.layer{stage}.0.downsample.0") | norm(f"backbone.layer{stage}.0.downsample.1")
    names |= conv("aux_classifier.0") | norm("aux_classifier.1") | conv("aux_classifier.4", bias=True)
    names |= conv("classifier.4", bias=True)
    if family == "fcn":
        return names | conv("classifier.0") | norm("classifier.1")
    for branch in range(4):
        names |= conv(f"classifier.0.convs.{branch}.0") | norm(f"classifier.0.convs.{branch}.1")
    names |= conv("classifier.0.convs.4.1") | norm("classifier.0.convs.4.2")
    names |= conv("classifier.0.project.0") | norm("classifier.0.project.1")
    return names | conv("classifier.1") | norm("classifier.2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("depth", "entries"), [(50, {"fcn": 334, "deeplabv3": 370}), (101, {"fcn": 640, "deeplabv3": 676})]
)
def test_names_of_weights(family, depth, entries):
    net = sketch(models.create, f"{family}_resnet{depth}")
    ours = {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    ours = {
        name for name in ours if not name.endswith((".seed", ".calls"))
    }  # of dropout, which has no state there
    assert ours == torchvision_names(family, depth)
    # Its files have a counter of batches for each normalisation as well.
    assert len(ours) + sum(name.endswith("running_mean") for name in ours) == entries[family]


class TorchForward:
    """The networks written out with PyTorch's functions, from names and weights alone."""

    def __init__(self, torch, state):
        self.F, self.cat = torch.nn.functional, torch.cat
        self.state = {
            name: torch.from_numpy(np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value))
            for name, value in state.items()
        }

    def conv(self, name, x, **options):
        return self.F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def norm(self, name, x):
        parts = [self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return self.F.batch_norm(x, *parts, eps=1e-5)

    def both(self, conv, norm, x, **options):
        return self.norm(norm, self.conv(conv, x, **options)).relu()

    def unit(self, name, x, stride, rate):
        y = self.both(f"{name}.conv1", f"{name}.bn1", x)
        y = self.both(f"{name}.conv2", f"{name}.bn2", y, stride=stride, padding=rate, dilation=rate)
        y = self.norm(f"{name}.bn3", self.conv(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride=stride))
        return (x + y).relu()

    def trunk(self, x):
        x = self.both("backbone.conv1", "backbone.bn1", x, stride=2, padding=3)
        x = self.F.max_pool2d(x, 3, stride=2, padding=1)
        first_and_others = [(1, 1), (1, 1), (1, 2), (2, 4)]  # rates: the first unit keeps the previous one
        maps = []
        for stage, units in enumerate(UNITS[50]):
            first, others = first_and_others[stage]
            for index in range(units):
                stride = 2 if stage == 1 and index == 0 else 1
                x = self.unit(f"backbone.layer{stage + 1}.{index}", x, stride, first if index == 0 else others)
            maps.append(x)
        return maps[2], maps[3]

    def fcn_head(self, name, x):
        return self.conv(f"{name}.4", self.both(f"{name}.0", f"{name}.1", x, padding=1))

    def deeplabv3_head(self, name, x):
        aspp = f"{name}.0"
        branches = [self.both(f"{aspp}.convs.0.0", f"{aspp}.convs.0.1", x)]
        for branch, rate in enumerate((12, 24, 36), start=1):
            options = {"padding": rate, "dilation": rate}
            branches.append(self.both(f"{aspp}.convs.{branch}.0", f"{aspp}.convs.{branch}.1", x, **options))
        mean = self.both(f"{aspp}.convs.4.1", f"{aspp}.convs.4.2", x.mean(dim=(2, 3), keepdim=True))
        branches.append(mean.expand(-1, -1, *x.shape[2:]))
        x = self.both(f"{aspp}.project.0", f"{aspp}.project.1", self.cat(branches, dim=1))
        return self.conv(f"{name}.4", self.both(f"{name}.1", f"{name}.2", x, padding=1))

    def __call__(self, family, x):
        layer3, layer4 = self.trunk(x)
        heads = {"fcn": self.fcn_head, "deeplabv3": self.deeplabv3_head}
        answers = heads[family]("classifier", layer4), self.fcn_head("aux_classifier", layer3)
        options = {"size": x.shape[2:], "mode": "bilinear", "align_corners": False}
        return [self.F.interpolate(answer, **options).numpy().transpose(0, 2, 3, 1) for answer in answers]


@pytest.mark.oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_same_answers_as_pytorch(family, torch):
    net = small(family)
    image = np.random.default_rng(0).standard_normal((2, 65, 50, 3))
    forward = TorchForward(torch, net.state_dict())
    expected = forward(family, torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))))
    logits, auxiliary = net.outputs(image)
    np.testing.assert_allclose(logits.data, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(auxiliary.data, expected[1], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(net(image).data, logits.data)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet101"])
def test_sizes_of_the_figure(name):
    rows = summarise(sketch(models.create, name), 520, 520)
    ends = {row.layer.split(".")[1]: row.size[0] for row in rows if row.layer.startswith("backbone.")}
    assert [ends[part] for part in ("bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")] == [
        260, 130, 130, 65, 65, 65,
    ]  # fmt: skip
    assert rows[-1].size == (520, 520, 21)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_through_both_heads(family, check_network_gradient):
    net = small(family, depth=18).train()
    net.forward = lambda image: F.concat(list(net.outputs(image)))
    check_network_gradient(net, (35, 42))


def test_no_auxiliary_head():
    net = small("fcn", depth=18, auxiliary=False)
    assert not any(name.startswith("aux_classifier") for name in net.state_dict())
    image = np.random.default_rng(0).standard_normal((1, 9, 9, 3))
    outputs = net.outputs(image)
    assert outputs.auxiliary is None
    assert list(net.losses(outputs, np.zeros((1, 9, 9), np.int64), CrossEntropy())) == ["pixels"]


@pytest.mark.parametrize(("settings", "weight"), [({}, 0.5), ({"auxiliary_weight": 0.4}, 0.4)])
def test_losses_of_both_heads(rng, settings, weight):
    net = small("fcn", depth=18, **settings)
    outputs = net.outputs(rng.standard_normal((2, 16, 17, 3)))
    labels = rng.integers(0, outputs.logits.shape[-1], (2, 16, 17))
    labels[:, 3:5] = 255
    losses = net.losses(outputs, labels, CrossEntropy(255))
    main, beside = (ops.cross_entropy(logits.data, labels, ignore_label=255)[0] for logits in outputs)
    assert losses["pixels"].data == main
    np.testing.assert_allclose(losses["auxiliary"].data, weight * beside, rtol=1e-12)
    total(losses).backward()
    assert all(parameter.grad is not None and np.any(parameter.grad) for parameter in net.parameters())


def test_errors():
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101; got 152"):
        small("fcn", depth=152)
    with pytest.raises(ValueError, match="FCNResNet: classes must be at least 1, got 0"):
        small("fcn", classes=0)
