"""Between files and networks: layouts, names, what may be missing, and what the errors say."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import interop, models, nn
from tinyseg.interop import CAFFE, TORCHVISION, Convention, WeightsError

COMPARED_TO = 1e-5
"""Of logits of about 1, in float32: two orders of summation."""


class Trunk(nn.Module):
    def __init__(self, rng):
        self.conv1 = nn.Conv2d(3, 4, (3, 2), bias=False, rng=rng)
        self.bn1 = nn.BatchNorm2d(4, relu=True)
        self.blocks = [nn.Conv2d(4, 6, 3, stride=2, groups=2, rng=rng), nn.GroupNorm(3, 6)]

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        for block in self.blocks:
            x = block(x)
        return x


class Classifier(nn.Module):
    """Its first linear layer sees a flattened map of 2 x 2 pixels."""

    pooled_side = 2

    def __init__(self, rng):
        self.backbone = Trunk(rng)
        self.up = nn.ConvTranspose2d(6, 4, (3, 2), stride=2, groups=2, rng=rng)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5, rng=rng), nn.Linear(2 * 2 * 4, 7, rng=rng), nn.ReLU(), nn.Linear(7, 5, rng=rng)
        )

    def fully_connected(self):
        return list(self.classifier)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.up(self.backbone(x)), 2)
        return self.classifier(F.reshape(x, (x.shape[0], -1)))


class Segmenter(nn.Module):
    def __init__(self, rng, auxiliary=True, classes=5):
        self.backbone = Trunk(rng)
        self.classifier = nn.Sequential(nn.Conv2d(6, 7, 2, rng=rng), nn.ReLU(), nn.Conv2d(7, classes, 1, rng=rng))
        self.aux_classifier = nn.Conv2d(6, classes, 1, rng=rng) if auxiliary else None


SHAPES = {  # of a Classifier, as PyTorch has them
    "backbone.conv1.weight": (4, 3, 3, 2),
    "backbone.bn1.weight": (4,),
    "backbone.bn1.bias": (4,),
    "backbone.bn1.running_mean": (4,),
    "backbone.bn1.running_var": (4,),
    "backbone.bn1.num_batches_tracked": (),
    "backbone.blocks.0.weight": (6, 2, 3, 3),
    "backbone.blocks.0.bias": (6,),
    "backbone.blocks.1.weight": (6,),
    "backbone.blocks.1.bias": (6,),
    "up.weight": (6, 2, 3, 2),
    "up.bias": (4,),
    "classifier.1.weight": (7, 16),
    "classifier.1.bias": (7,),
    "classifier.3.weight": (5, 7),
    "classifier.3.bias": (5,),
}


def arrays_of(shapes, rng):
    return {
        name: np.array(3, np.int64)
        if name.endswith("tracked")
        else 1 + 0.3 * rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def arrays(rng):
    return arrays_of(SHAPES, rng)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def written(path, arrays, convention=None):
    interop.write_weights(path, arrays, convention)
    return path


# -------------------------------------------------------------------------------------------------- the layouts


def test_layouts_by_hand(path, rng):
    net = nn.Sequential(
        nn.Conv2d(2, 3, (1, 2), bias=False, rng=rng),
        nn.ConvTranspose2d(2, 3, (1, 2), bias=False, rng=rng),
        nn.Linear(2, 3, bias=False, rng=rng),
    )
    arrays = {
        "0.weight": np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2),
        "1.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2),
        "2.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    assert interop.load_weights(net, written(path, arrays)).names == 3
    state = net.state_dict()
    for o in range(3):
        for c in range(2):
            assert state["2.weight"][c, o] == arrays["2.weight"][o, c]
            for s in range(2):
                assert state["0.weight"][0, s, c, o] == arrays["0.weight"][o, c, 0, s]
                assert state["1.weight"][0, s, o, c] == arrays["1.weight"][c, o, 0, s]


def test_rows_of_a_layer_behind_a_flattened_map(path, arrays, rng):
    net = Classifier(rng)
    interop.load_weights(net, written(path, arrays))
    weight = net.classifier[1].weight.data.reshape(2, 2, 4, 7)
    there = arrays["classifier.1.weight"].reshape(7, 4, 2, 2)
    np.testing.assert_array_equal(weight, np.einsum("ocrs->rsco", there))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back(tmp_path, arrays, rng, suffix):
    net = Classifier(rng)
    interop.load_weights(net, written(tmp_path / "in.pth", arrays))
    interop.save_weights(tmp_path / f"out{suffix}", net, convention=TORCHVISION)
    weights = interop.read_weights(tmp_path / f"out{suffix}")
    assert set(weights.arrays) == set(SHAPES)
    assert weights.convention == TORCHVISION
    for name, array in arrays.items():
        expected = np.array(0) if name.endswith("tracked") else array
        np.testing.assert_array_equal(weights.arrays[name], expected, strict=True)


def test_a_network_on_the_trunk_of_such_a_classifier(tmp_path):
    """FCN on VGG-16: its trunk has a pooled side, and no layers behind it."""
    net, other = (models.create("fcn32s", 3, 2, width=1 / 64, rng=np.random.default_rng(seed)) for seed in (0, 1))
    interop.save_weights(tmp_path / "fcn.pth", net)
    interop.load_weights(other, tmp_path / "fcn.pth")
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data, err_msg=name)


def test_written_in_the_order_of_pytorch(path, rng):
    interop.save_weights(path, Classifier(rng))
    assert list(interop.read_weights(path).arrays) == list(SHAPES)


def test_a_fully_connected_layer_becomes_a_convolution(path, rng):
    full = rng.standard_normal((7, 6 * 2 * 2)).astype(np.float32)
    net = nn.Sequential(nn.Conv2d(6, 7, 2, bias=False, rng=rng))
    interop.load_weights(net, written(path, {"0.weight": full}))
    np.testing.assert_array_equal(net[0].weight.data, np.einsum("ocrs->rsco", full.reshape(7, 6, 2, 2)))
    x = rng.standard_normal((1, 2, 2, 6)).astype(np.float32)
    flat = np.einsum("nhwc->nchw", x).reshape(1, -1)
    np.testing.assert_allclose(net(x).data.reshape(1, 7), flat @ full.T, atol=COMPARED_TO)


def test_a_1x1_convolution_becomes_a_linear_layer(path, rng):
    scores = rng.standard_normal((5, 6, 1, 1)).astype(np.float32)
    net = nn.Sequential(nn.Linear(6, 5, bias=False, rng=rng))
    interop.load_weights(net, written(path, {"0.weight": scores}))
    np.testing.assert_array_equal(net[0].weight.data, scores[:, :, 0, 0].T)


def test_half_precision_is_converted(path, arrays, rng):
    halves = {name: array.astype(np.float16) if array.ndim else array for name, array in arrays.items()}
    net = Classifier(rng)
    interop.load_weights(net, written(path, halves))
    assert net.up.bias.data.dtype == np.float32
    np.testing.assert_array_equal(net.up.bias.data, halves["up.bias"].astype(np.float32))


# ---------------------------------------------------------------------------------------------------- the names


def test_counters_may_be_missing(path, arrays, rng):
    del arrays["backbone.bn1.num_batches_tracked"]
    assert interop.load_weights(Classifier(rng), written(path, arrays)).notices == ()


def test_names_of_training_on_several_devices(path, arrays, rng):
    net = Classifier(rng)
    wrapped = {f"module.{name}": array for name, array in arrays.items()}
    assert interop.load_weights(net, written(path, wrapped)).names == len(SHAPES) - 1
    np.testing.assert_array_equal(net.up.bias.data, arrays["up.bias"])
    del wrapped["module.up.bias"]
    with pytest.raises(WeightsError, match=r"missing: module\.up\.bias \(4,\)"):
        interop.load_weights(net, written(path, wrapped))


def test_old_names_of_densenet(path, rng):
    class Layer(nn.Module):
        def __init__(self):
            self.norm1 = nn.BatchNorm2d(2)
            self.conv2 = nn.Conv2d(2, 3, 1, bias=False, rng=rng)

    class Dense(nn.Module):
        def __init__(self):
            self.denseblock1 = nn.Sequential(nn.Identity())
            self.denseblock1.denselayer12 = Layer()

    names = ("norm.1.weight", "norm.1.bias", "norm.1.running_mean", "norm.1.running_var", "conv.2.weight")
    net = nn.Sequential(Dense())
    old = {f"0.denseblock1.denselayer12.{name}": np.full(2, index, np.float32) for index, name in enumerate(names)}
    old["0.denseblock1.denselayer12.conv.2.weight"] = np.full((3, 2, 1, 1), 4, np.float32)
    assert interop.load_weights(net, written(path, old)).names == 5
    assert net[0].denseblock1.denselayer12.norm1.running_var.data.tolist() == [3, 3]
    del old["0.denseblock1.denselayer12.conv.2.weight"]
    old["0.denseblock1.denselayer12.norm.1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(WeightsError) as caught:
        interop.load_weights(net, written(path, old))
    assert "missing: 0.denseblock1.denselayer12.conv2.weight (3, 2, 1, 1)" in str(caught.value)
    assert "shape: 0.denseblock1.denselayer12.norm.1.bias is (7,) in the file and (2,)" in str(caught.value)


def segmenter_arrays(rng, auxiliary=True):
    net = Segmenter(rng, auxiliary)
    return {name: np.asarray(array) for name, array in interop.layout.to_file(net).items()}


def test_auxiliary_heads_are_optional(path, rng):
    with_head, without = segmenter_arrays(rng), segmenter_arrays(rng, auxiliary=False)
    loaded = interop.load_weights(Segmenter(rng, auxiliary=False), written(path, with_head))
    assert loaded.notices == ("aux_classifier.* of the file is not in the network: left aside",)
    net = Segmenter(rng)
    kept = net.aux_classifier.weight.data.copy()
    loaded = interop.load_weights(net, written(path, without))
    assert loaded.notices == ("aux_classifier.* is not in the file: it keeps its weights",)
    np.testing.assert_array_equal(net.aux_classifier.weight.data, kept)
    assert interop.load_weights(Segmenter(rng), written(path, with_head)).notices == ()


def test_half_of_an_auxiliary_head_is_an_error(path, rng):
    half = segmenter_arrays(rng)
    del half["aux_classifier.bias"]
    with pytest.raises(WeightsError, match=r"1 names .*\n  missing: aux_classifier\.bias \(5,\)$"):
        interop.load_weights(Segmenter(rng), written(path, half))


@pytest.mark.parametrize("prefix", ["", "backbone.", "trunk.", "module.backbone."])
def test_only_the_trunk(path, arrays, rng, prefix):
    """From a file of the trunk with other layers, and from one of a whole network with such a trunk."""
    trunk = {name.removeprefix("backbone."): array for name, array in arrays.items() if "backbone" in name}
    rest = {"fc.weight": np.zeros((9, 6), np.float32), "fc.bias": np.zeros(9, np.float32)}
    wrapper = "module." if prefix.startswith("module.") else ""
    file = {f"{prefix}{name}": array for name, array in trunk.items()}
    file |= {f"{wrapper}{name}": array for name, array in rest.items()}
    net = Segmenter(rng)
    before = net.state_dict()
    loaded = interop.load_weights(net, written(path, file), only="backbone")
    assert loaded.names == 9
    assert loaded.notices == ("2 entries of the file do not belong to backbone: left aside",)
    after = net.state_dict()
    np.testing.assert_array_equal(after["backbone.blocks.1.bias"], arrays["backbone.blocks.1.bias"])
    for name, array in before.items():
        assert np.array_equal(after[name], array) != name.startswith("backbone."), name


def test_only_a_part_that_is_there(path, arrays, rng):
    with pytest.raises(WeightsError, match="Classifier has no part 'trunk'; it has backbone, up, classifier"):
        interop.load_weights(Classifier(rng), written(path, arrays), only="trunk")
    del arrays["backbone.conv1.weight"]
    with pytest.raises(
        WeightsError, match=r"the backbone of Segmenter.*\n  missing: conv1\.weight \(4, 3, 3, 2\)$"
    ):
        interop.load_weights(Segmenter(rng), written(path, arrays), only="backbone")


# --------------------------------------------------------------------------------------------------- the errors


def test_all_that_does_not_fit_is_listed_in_the_layout_of_the_file(path, arrays, rng):
    del arrays["up.weight"], arrays["backbone.bn1.running_var"]
    arrays |= {
        "fc.weight": np.zeros((2, 3), np.float32),
        "classifier.3.weight": np.zeros((21, 7), np.float32),
        "classifier.1.weight": np.zeros((7, 4, 2), np.float32),
        "backbone.conv1.weight": np.zeros((4, 3, 2, 3), np.float32),
        "backbone.blocks.0.bias": np.zeros(6, np.int64),
    }
    net = Classifier(rng)
    before = net.state_dict()
    with pytest.raises(WeightsError) as caught:
        interop.load_weights(net, written(path, arrays))
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"{path} does not fit Classifier: it belongs to another network")
    assert 'To take the trunk alone, pass only="backbone". 7 names do not fit' in head
    assert [line.strip() for line in lines] == [
        "missing: up.weight (6, 2, 3, 2)",
        "missing: backbone.bn1.running_var (4,)",
        "unexpected: fc.weight (2, 3)",
        "shape: backbone.conv1.weight is (4, 3, 2, 3) in the file and (4, 3, 3, 2) in the network",
        "type: backbone.blocks.0.bias is int64, the network needs float32",
        "shape: classifier.1.weight is (7, 4, 2) in the file and (7, 16) in the network",
        "shape: classifier.3.weight is (21, 7) in the file and (5, 7) in the network",
    ]
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (
            ["layer3.5.bn1.bias", *(f"layer3.{n}.conv1.weight" for n in range(6)), "layer1.0.conv3.weight"],
            "resnet50",
        ),
        ([f"module.layer3.{n}.conv1.weight" for n in range(2)], "resnet18"),
        (
            [f"backbone.layer3.{n}.conv1.weight" for n in range(23)]
            + ["backbone.layer1.0.conv3.weight", "classifier.4.bias"],
            "fcn_resnet101",
        ),
        (
            [f"backbone.layer3.{n}.conv1.weight" for n in range(6)]
            + ["backbone.layer1.0.conv3.weight", "classifier.0.project.0.weight"],
            "deeplabv3_resnet50",
        ),
        (["features.0.weight", "features.28.weight"], "vgg16"),
        (["features.10.bias"], "alexnet"),
        ([f"features.denseblock3.denselayer{n}.norm.1.weight" for n in range(1, 25)], "densenet121"),
        (["inception3a.branch1.conv.weight"], "googlenet"),
        (["something.else"], None),
        ([], None),
    ],
)
def test_the_error_knows_torchvision_by_its_names(path, rng, names, family):
    net = nn.Sequential(nn.Linear(2, 3, rng=rng))
    with pytest.raises(WeightsError) as caught:
        interop.load_weights(net, written(path, {name: np.zeros(1, np.float32) for name in names}))
    assert (f"The file has the names of torchvision's {family}. " in str(caught.value)) == (family is not None)


# ---------------------------------------------------------------------------------------------------- conventions


def test_bgr_weights_are_turned(path, arrays, rng):
    """The network then answers to an RGB image as it would have to the same in BGR."""
    plain, turned = Classifier(rng), Classifier(rng)
    written(path, arrays)
    assert interop.load_weights(plain, path).convention is None
    loaded = interop.load_weights(turned, path, convention=CAFFE)
    assert loaded.convention == Convention(CAFFE.mean[::-1], CAFFE.std[::-1], "RGB")
    np.testing.assert_allclose(np.multiply(loaded.convention.mean, 255), (123.68, 116.779, 103.939))
    rgb = rng.random((2, 7, 9, 3), np.float32)
    expected = plain.backbone.eval()((rgb[..., ::-1] - np.float32(CAFFE.mean)) / np.float32(CAFFE.std))
    x = (rgb - np.float32(loaded.convention.mean)) / np.float32(loaded.convention.std)
    np.testing.assert_allclose(turned.backbone.eval()(x).data, expected.data, rtol=1e-3, atol=1e-3)


def test_the_file_tells_its_convention(path, arrays, rng):
    own = Convention((0.1, 0.2, 0.3), (1, 2, 3), "RGB", align_corners=True)
    assert interop.load_weights(Classifier(rng), written(path, arrays, own)).convention == own


def test_bgr_needs_a_convolution_on_three_channels(path, rng):
    with pytest.raises(WeightsError, match="has 2 input channels, not 3"):
        net = nn.Sequential(nn.Conv2d(2, 1, 1, rng=rng))
        interop.load_weights(net, written(path, interop.layout.to_file(net)), convention=CAFFE)
    with pytest.raises(WeightsError, match="has no convolution to turn round"):
        net = nn.Sequential(nn.Linear(2, 1, rng=rng))
        interop.load_weights(net, written(path, interop.layout.to_file(net)), convention=CAFFE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1,), (1,), "RGB"), "needs 3 means and 3 positive deviations for RGB"),
        (((1,), (0,), "grey"), "needs 1 means and 1 positive"),
        (((1, 1, 1), (1, 1, 1), "YUV"), "must be RGB, BGR or grey, got 'YUV'"),
    ],
)
def test_impossible_conventions(arguments, message):
    with pytest.raises(WeightsError, match=message):
        Convention(*arguments)


# ---------------------------------------------------------------------------------------------------- with PyTorch


def twin(torch):
    """The Classifier above, in PyTorch."""
    tnn = torch.nn

    class Twin(tnn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = tnn.Module()
            self.backbone.conv1 = tnn.Conv2d(3, 4, (3, 2), bias=False)
            self.backbone.bn1 = tnn.BatchNorm2d(4)
            self.backbone.blocks = tnn.ModuleList([tnn.Conv2d(4, 6, 3, stride=2, groups=2), tnn.GroupNorm(3, 6)])
            self.up = tnn.ConvTranspose2d(6, 4, (3, 2), stride=2, groups=2)
            self.classifier = tnn.Sequential(tnn.Dropout(0.5), tnn.Linear(16, 7), tnn.ReLU(), tnn.Linear(7, 5))

        def forward(self, x):
            trunk = self.backbone
            x = torch.relu(trunk.bn1(trunk.conv1(x)))
            for block in trunk.blocks:
                x = block(x)
            x = tnn.functional.adaptive_avg_pool2d(self.up(x), 2)
            return self.classifier(torch.flatten(x, 1))

    return Twin().eval()


def both(torch, theirs, ours, rng):
    """The answers of both networks to one batch of images."""
    x = rng.standard_normal((2, 11, 8, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    return ours.eval()(x).data, expected


@pytest.mark.oracle
@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_of_pytorch_answers_the_same_here(torch, path, rng, zipped):
    theirs, ours = twin(torch), Classifier(rng)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in arrays_of(SHAPES, rng).items()})
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert interop.load_weights(ours, path).names == len(SHAPES) - 1
    found, expected = both(torch, theirs, ours, rng)
    np.testing.assert_allclose(found, expected, atol=COMPARED_TO, rtol=COMPARED_TO)


@pytest.mark.oracle
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_of_ours_answers_the_same_there(torch, tmp_path, rng, suffix):
    ours, theirs = Classifier(rng), twin(torch)
    path = tmp_path / f"weights{suffix}"
    interop.save_weights(path, ours, convention=TORCHVISION)
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
    else:
        state = pytest.importorskip("safetensors.torch").load_file(path)
    theirs.load_state_dict(state, strict=True)
    found, expected = both(torch, theirs, ours, rng)
    np.testing.assert_allclose(found, expected, atol=COMPARED_TO, rtol=COMPARED_TO)
