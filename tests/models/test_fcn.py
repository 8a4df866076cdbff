"""FCN: published counts, sizes and crops, an oracle, where it starts, any input size, gradients."""

import itertools

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, nn
from tinyseg.models import backbones
from tinyseg.models.fcn import CROPS, FCN, SKIP_CROPS
from tinyseg.models.summary import sketch, summarise
from tinyseg.tape import no_grad


def small(classes=3, seed=1, **settings):
    settings = {"width": 1 / 32} | settings
    return FCN(2, classes, **settings, rng=np.random.default_rng(seed))


VARIANTS = [
    *({"stride": stride, "padding": padding} for stride in (32, 16, 8) for padding in ("100", "same")),
    {"stride": 32, "backbone": "alexnet", "padding": "100"},
    {"stride": 32, "backbone": "alexnet", "padding": "same"},
    {"stride": 32, "backbone": "googlenet", "padding": "same"},
]

# Learned for 21 classes; for each class more; and, fixed, as Caffe stores them: a matrix between the classes.
COUNTS = {
    "fcn32s": (134_346_581, 4_097, 1_806_336),
    "fcn16s": (134_357_354, 4_610, 458_640),
    "fcn8s": (134_362_751, 4_867, 127_008),
    "fcn8s_at_once": (134_362_751, 4_867, 127_008),
    "fcn_alexnet": (56_954_261, 4_097, 1_750_329),
    "fcn_googlenet": (5_995_077, 1_025, 1_806_336),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    learned, each_class, fixed = COUNTS[name]
    net = sketch(models.create, name)
    assert net.num_parameters() == learned
    assert sketch(models.create, name, 3, 22).num_parameters() == learned + each_class
    assert 21 * sum(p.data.size for p in net.parameters() if not p.requires_grad) == fixed


@pytest.mark.parametrize(("name", "count"), [("fcn16s", 134_364_410), ("fcn8s", 134_376_863)])
def test_parameter_counts_with_learned_upsampling(name, count):
    assert sketch(models.create, name, learn_upsampling=True).num_parameters() == count


# The sides of the poolings, of fc6, and of the enlarged scores, at each stride, from the published nets.
SIDES = {500: ([349, 175, 88, 44, 22], 16, 544, [34, 560], [34, 70, 568])}
SIDES[375] = ([287, 144, 72, 36, 18], 12, 416, [26, 432], [26, 54, 440])


@pytest.mark.parametrize("side", SIDES)
def test_sizes_of_the_published_nets(side):
    pools, fc6, upscore, upscores16, upscores8 = SIDES[side]
    for stride, enlarged in ((32, [upscore]), (16, upscores16), (8, upscores8)):
        rows = summarise(sketch(FCN, 3, 2, stride=stride, rng=np.random.default_rng(0)), side, 500)
        found = {
            name: [row.size[0] for row in rows if row.operator.startswith(name)] for name in ("max", "conv_t")
        }
        assert found["max"] == pools
        assert [row.size[0] for row in rows if row.layer in ("fc6", "score_fr")] == [fc6, fc6]
        assert found["conv_t"] == enlarged
        assert rows[-1].size == (side, 500, 2)


@pytest.mark.parametrize(("name", "field"), [("fcn32s", 404), ("fcn_alexnet", 355), ("fcn_googlenet", 715)])
def test_receptive_fields_and_strides_of_the_paper(name, field):
    scores = next(row for row in summarise(sketch(models.create, name), 500, 500) if row.layer == "score_fr")
    assert scores.receptive_field == (field, field)
    assert scores.stride == (32, 32)


def middle(layers):
    """The pixel around which cell 0 looks, of layers (kernel, stride, padding before)."""
    place, step = 0.0, 1
    for kernel, stride, padding in layers:
        place += step * ((kernel - 1) / 2 - padding)
        step *= stride
    return place


CONV, POOL2, POOL3 = (3, 1, 1), (2, 2, 0), (3, 2, 0)


def vgg(first_padding, blocks):
    return [(3, 1, first_padding)] + ([CONV] * 3 + [POOL2]) * blocks


def alexnet(first_padding):
    return [(11, 4, first_padding), POOL3, (5, 1, 2), POOL3, CONV, CONV, CONV, POOL3]


def test_crops_from_the_middles():
    """Cell 0 of an enlarged map sits at (kernel - 1) / 2 - padding, and is brought to where the network looks."""
    place = middle([*vgg(100, 5), (7, 1, 0)])
    assert 31.5 - place == CROPS["vgg16", "100"][32] == 19
    place -= 16 * 1.5  # enlarged twice, with a kernel whose middle is 1.5
    assert (place - middle(vgg(100, 4))) / 16 == SKIP_CROPS["pool4"] == 5
    assert 15.5 - place == CROPS["vgg16", "100"][16] == 27
    place -= 8 * 1.5
    assert (place - middle(vgg(100, 3))) / 8 == SKIP_CROPS["pool3"] == 9
    assert 7.5 - place == CROPS["vgg16", "100"][8] == 31

    # Padding half the stride, the transposed convolutions keep the middles where they are.
    assert 31.5 - 16 - middle([*vgg(1, 5), (7, 1, 3)]) == CROPS["vgg16", "same"][32] == 0
    assert 15.5 - 8 - middle(vgg(1, 4)) == CROPS["vgg16", "same"][16] == 0
    assert 7.5 - 4 - middle(vgg(1, 3)) == CROPS["vgg16", "same"][8] == 0

    assert 31 - middle([*alexnet(100), (6, 1, 0)]) == CROPS["alexnet", "100"][32] == 18
    assert 31 - middle([*alexnet(21), (6, 1, 3)]) == CROPS["alexnet", "same"][32]
    googlenet = [(7, 2, 3), POOL3, CONV, POOL3, POOL3, POOL3]
    assert abs(31.5 - middle(googlenet) - CROPS["googlenet", "same"][32]) == 0.5


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_scores_fit_every_size(variant):
    """With poolings that round down, 459 of the sides up to 1199 would not."""
    net = sketch(small, **variant, width=0.01)
    smallest = 31 if variant.get("backbone") == "googlenet" else 1
    for side in [*range(smallest, smallest + 33), 224, 321, 375, 500, 513]:
        assert summarise(net, side, 601 - side)[-1].size == (side, 601 - side, 3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (33, 46)])
def test_every_size_and_batch(variant, size):
    if variant.get("backbone") == "googlenet":
        size = (30 + size[0], 30 + size[1])
    net = small(**variant)
    for batch in (1, 2):
        x = np.random.default_rng(0).random((batch, *size, 2), np.float32)
        for training in (True, False):
            logits = net.train(training)(x)
            assert logits.shape == (batch, *size, 3)
            assert not logits.data.any()  # the scorers start with zeros


@pytest.mark.oracle
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("at_once", [False, True])
def test_against_torch(stride, at_once, torch):
    """The published net, written down once more from its description, with our weights."""
    from torch.nn import functional as T

    if at_once and stride != 8:
        pytest.skip("at once is FCN-8s")
    net = small(stride=stride, at_once=at_once).astype(np.float64).eval()
    rng = np.random.default_rng(3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.2 * rng.standard_normal(parameter.shape) * parameter.data.std()
    for name, parameter in net.named_parameters():
        if name.startswith("score") and parameter.requires_grad:
            parameter.data = rng.standard_normal(parameter.shape)
    weights = {name: torch.tensor(value) for name, value in net.state_dict().items()}

    def conv(x, name, padding=0):
        return T.conv2d(x, weights[f"{name}.weight"].permute(3, 2, 0, 1), weights[f"{name}.bias"], padding=padding)

    def enlarge(x, factor):
        row = 1 - (torch.arange(2 * factor, dtype=torch.float64) - (factor - 0.5)).abs() / factor
        weight = torch.zeros(3, 3, 2 * factor, 2 * factor, dtype=torch.float64)
        weight[range(3), range(3)] = row[:, None] * row
        return T.conv_transpose2d(x, weight, stride=factor)

    def crop(x, like, offset):
        return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    image = torch.tensor(rng.standard_normal((2, 2, 45, 37)))
    x, pools, index = image, [], 0
    for block in (2, 2, 3, 3, 3):
        for _ in range(block):
            x = torch.relu(conv(x, f"trunk.features.{index}", padding=1 if index else 100))
            index += 2
        x = T.max_pool2d(x, 2, 2, ceil_mode=True)
        index += 1
        pools.append(x)
    scores = conv(torch.relu(conv(torch.relu(conv(x, "fc6")), "fc7")), "score_fr")
    if stride == 32:
        expected = crop(enlarge(scores, 32), image, 19)
    else:
        scores = enlarge(scores, 2)
        scores = scores + crop(conv(pools[3] * (0.01 if at_once else 1), "score_pool4"), scores, 5)
        if stride == 16:
            expected = crop(enlarge(scores, 16), image, 27)
        else:
            scores = enlarge(scores, 2)
            scores = scores + crop(conv(pools[2] * (0.0001 if at_once else 1), "score_pool3"), scores, 9)
            expected = crop(enlarge(scores, 8), image, 31)

    ours = net(image.permute(0, 2, 3, 1).numpy()).data
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_upsampling_is_bilinear_and_fixed():
    """A ramp stays a ramp."""
    net = small(stride=8, padding="same", learn_upsampling=True)
    assert net.upscore2.weight.requires_grad and net.upscore_pool4.weight.requires_grad
    assert not net.upscore8.weight.requires_grad
    assert net.upscore2.weight.shape == (4, 4, 3, 3) and net.upscore8.weight.shape == (16, 16, 1, 3)
    ramp = np.broadcast_to(np.arange(5.0)[:, None, None] * [1, 2, 3], (1, 5, 4, 3)).transpose(0, 2, 1, 3)
    for layer, factor in ((net.upscore2, 2), (net.upscore8, 8)):
        enlarged = layer(np.ascontiguousarray(ramp, np.float32)).data
        assert enlarged.shape == (1, 4 * factor, 5 * factor, 3)
        inside = enlarged[0, factor:-factor, factor:-factor]
        expected = ((np.arange(5 * factor) + 0.5) / factor - 0.5)[factor:-factor, None] * [1, 2, 3]
        np.testing.assert_allclose(inside, np.broadcast_to(expected, inside.shape), atol=1e-5)
    fixed = small(stride=8, padding="same")
    assert not fixed.upscore2.weight.requires_grad
    np.testing.assert_allclose(
        fixed.upscore2(ramp.astype(np.float32)).data, net.upscore2(ramp.astype(np.float32)).data
    )


@pytest.mark.parametrize("backbone", ["vgg16", "alexnet", "googlenet"])
def test_starting_from_a_classifier(backbone):
    """fc6 on a map of the classifier's own size gives what the classifier's fully connected layer gives."""
    name = {"alexnet": "caffenet"}.get(backbone, backbone)
    classifier = backbones.create(name, 2, 5, width=1 / 32, rng=np.random.default_rng(5))
    padding = "same" if backbone == "googlenet" else "100"
    net = small(stride=32, backbone=backbone, padding=padding)
    net.start_from_classifier(classifier)
    ours = dict(net.trunk.named_parameters())
    for key, theirs in classifier.named_parameters():
        if key in ours:
            np.testing.assert_array_equal(ours[key].data, theirs.data)
    assert not net.score_fr.weight.data.any()
    if backbone != "googlenet":
        side = classifier.pooled_side
        x = np.random.default_rng(0).random((2, side, side, net.fc6.in_channels), np.float32)
        fc6, fc7 = [layer for layer in classifier.fully_connected() if isinstance(layer, nn.Linear)][:2]
        expected = F.relu(fc7(F.relu(fc6(x.reshape(2, -1))))).data
        actual = F.relu(net.fc7(F.relu(net.fc6(x)))).data
        np.testing.assert_allclose(actual[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_stages_start_from_each_other():
    coarse = small(stride=32, padding="same", seed=3)
    rng = np.random.default_rng(4)
    coarse.score_fr.weight.data = rng.standard_normal(coarse.score_fr.weight.shape).astype(np.float32)
    finer, finest = small(stride=16, padding="same"), small(stride=8, padding="same", learn_upsampling=True)
    finer.start_from(coarse)
    finest.start_from(finer)
    x = rng.standard_normal((1, 288, 256, 2)).astype(np.float32)
    with no_grad():
        answers = [net.eval()(x).data for net in (coarse, finer, finest)]
    # Enlarging by 2 and then by 16 is nearly enlarging by 32: only peaks are cut. New scorers add nothing yet.
    for earlier, later in itertools.pairwise(answers):
        inside = [answer[:, 64:-64, 64:-64].reshape(-1) for answer in (earlier, later)]
        assert np.corrcoef(inside)[0, 1] > 0.99
    finer.start_from(small(stride=16, padding="same", seed=9))  # the same stage will do, too


def test_errors():
    with pytest.raises(ValueError, match="stride must be one of 32, 16, 8, got 4"):
        small(stride=4)
    with pytest.raises(ValueError, match="backbone must be one of vgg16, alexnet, googlenet, got 'vgg19'"):
        small(backbone="vgg19")
    with pytest.raises(ValueError, match="stride 8 needs the maps pool4 and pool3 of vgg16; on alexnet"):
        small(backbone="alexnet")
    with pytest.raises(ValueError, match="on googlenet the padding must be"):
        small(backbone="googlenet", stride=32)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        small(width=0)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        small(classes=0)
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\), got \(1, 40, 40, 3\)"):
        small()(np.zeros((1, 40, 40, 3), np.float32))
    with pytest.raises(ValueError, match=r"image of 30 x 60 pixels is too small.*at least 31 x 31"):
        small(stride=32, backbone="googlenet", padding="same")(np.zeros((1, 30, 60, 2), np.float32))
    with pytest.raises(ValueError, match=r"FCN-16s on vgg16 starts from a coarser one .* got FCN-8s on vgg16"):
        small(stride=16).start_from(small(stride=8))
    with pytest.raises(ValueError, match="belongs to another network"):
        small(stride=16).start_from(small(stride=32, width=1 / 16))
    resnet = backbones.create("resnet18", 2, 5, width=1 / 16)
    with pytest.raises(ValueError, match=r"an FCN on vgg16, and the classifier a ResNet"):
        small().start_from_classifier(resnet)
    with pytest.raises(ValueError, match=r"it must be a vgg16 with the same width and a number of classes"):
        small().start_from_classifier(backbones.create("vgg16", 2, None, width=1 / 32))


@pytest.mark.parametrize(
    "variant",
    [
        {"stride": 8},
        {"stride": 8, "at_once": True},
        {"stride": 8, "padding": "same", "learn_upsampling": True},
        {"stride": 16, "padding": "same"},
        {"stride": 32},
        {"stride": 32, "backbone": "alexnet"},
        {"stride": 32, "backbone": "googlenet", "padding": "same"},
    ],
    ids=str,
)
def test_gradient_through_the_whole_network(variant, check_network_gradient):
    check_network_gradient(small(classes=2, **variant), (35, 32), batch=1)


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    net = FCN(3, 11, padding="same", width=1 / 8, dropout=0.0, rng=np.random.default_rng(0))
    assert learn_by_heart(net, size=(192, 256), part=0.2, steps=150) >= 0.95
