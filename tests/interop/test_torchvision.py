"""torchvision's networks: their names and sizes, and the same answers on both sides of a file."""

import re

import numpy as np
import pytest

from tinyseg import interop, models
from tinyseg.interop import layout, names
from tinyseg.models import backbones
from tinyseg.models.summary import sketch

SHARE = 1e-4
"""Of the largest logit: what two orders of float32 sums may differ by, through up to a hundred layers."""


@pytest.mark.parametrize(
    ("create", "name", "classes", "settings", "entries", "family"),
    [  # the counts of entries in torchvision's state dicts
        (backbones.create, "alexnet_torchvision", 1000, {}, 16, "alexnet"),
        (backbones.create, "vgg16", 1000, {}, 32, "vgg16"),
        (backbones.create, "vgg16_bn", 1000, {}, 97, "vgg16_bn"),
        (backbones.create, "googlenet_torchvision", 1000, {"auxiliary": True}, 364, "googlenet"),
        (backbones.create, "googlenet_torchvision", 1000, {}, 344, "googlenet"),
        (backbones.create, "resnet18", 1000, {}, 122, "resnet18"),
        (backbones.create, "resnet50", 1000, {}, 320, "resnet50"),
        (backbones.create, "resnet101", 1000, {}, 626, "resnet101"),
        (backbones.create, "densenet121", 1000, {}, 727, "densenet121"),
        (models.create, "fcn_resnet50", 21, {}, 334, "fcn_resnet50"),
        (models.create, "fcn_resnet50", 21, {"auxiliary": False}, 326, "fcn_resnet50"),
        (models.create, "fcn_resnet101", 21, {}, 640, "fcn_resnet101"),
        (models.create, "deeplabv3_resnet50", 21, {}, 370, "deeplabv3_resnet50"),
        (models.create, "deeplabv3_resnet50", 21, {"auxiliary": False}, 362, "deeplabv3_resnet50"),
        (models.create, "deeplabv3_resnet101", 21, {}, 676, "deeplabv3_resnet101"),
    ],
)
def test_entries_and_family(create, name, classes, settings, entries, family):
    net = sketch(create, name, 3, classes, **settings)
    found = list(layout.entries(net))
    counters = [n.replace("running_mean", "num_batches_tracked") for n in found if n.endswith("running_mean")]
    assert len(found) + len(counters) == entries
    assert names.family(found) == family


@pytest.mark.parametrize(
    ("create", "name", "entry", "shape"),
    [
        (backbones.create, "alexnet_torchvision", "classifier.1.weight", (4096, 9216)),
        (backbones.create, "alexnet_torchvision", "features.10.weight", (256, 256, 3, 3)),
        (backbones.create, "vgg16", "classifier.0.weight", (4096, 25088)),
        (backbones.create, "vgg16", "features.28.weight", (512, 512, 3, 3)),
        (backbones.create, "resnet50", "layer4.0.downsample.0.weight", (2048, 1024, 1, 1)),
        (backbones.create, "resnet50", "fc.weight", (1000, 2048)),
        (backbones.create, "densenet121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        (backbones.create, "densenet121", "features.transition3.conv.weight", (512, 1024, 1, 1)),
        (backbones.create, "googlenet_torchvision", "inception5b.branch3.1.conv.weight", (128, 48, 3, 3)),
        (models.create, "fcn_resnet50", "aux_classifier.0.weight", (256, 1024, 3, 3)),
        (models.create, "deeplabv3_resnet50", "classifier.0.convs.4.1.weight", (256, 2048, 1, 1)),
        (models.create, "deeplabv3_resnet50", "classifier.0.project.0.weight", (256, 1280, 1, 1)),
    ],
)
def test_shapes_in_the_file(create, name, entry, shape):
    net = sketch(create, name, 3, 1000 if create is backbones.create else 21)
    assert layout.entries(net)[entry].file_shape == shape


# ------------------------------------------------------------------------------------------------ with the library

slow = pytest.mark.slow
CASES = {
    # ours: (theirs, settings there, settings here, side of the image)
    "resnet18": ("models.resnet18", {}, {}, 64),
    "densenet121": ("models.densenet121", {}, {}, 64),
    "googlenet_torchvision": (
        "models.googlenet",
        {"aux_logits": True, "init_weights": False, "transform_input": False},
        {"auxiliary": True},
        64,
    ),
    "alexnet_torchvision": ("models.alexnet", {}, {}, 224),
    "vgg16": ("models.vgg16", {}, {}, 224),
    "vgg16_bn": ("models.vgg16_bn", {}, {}, 224),
    "resnet50": ("models.resnet50", {}, {}, 97),
    "resnet101": ("models.resnet101", {}, {}, 97),
    "fcn_resnet50": ("models.segmentation.fcn_resnet50", {"aux_loss": True, "weights_backbone": None}, {}, 97),
    "deeplabv3_resnet50": (
        "models.segmentation.deeplabv3_resnet50",
        {"aux_loss": True, "weights_backbone": None},
        {},
        97,
    ),
}
QUICK = ("resnet18", "densenet121", "googlenet_torchvision")


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in CASES])
def test_the_same_answers_on_both_sides_of_a_file(torch, torchvision, tmp_path, rng, name):
    path, settings, own_settings, side = CASES[name]
    create = torchvision
    for part in path.split("."):
        create = getattr(create, part)
    theirs = create(weights=None, **settings)
    randomise(torch, theirs)
    zipped = len(name) % 2 == 0  # each container has its turn
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth", _use_new_zipfile_serialization=zipped)

    ours = (models if "segmentation" in path else backbones).create(name, **own_settings)
    loaded = interop.load_weights(ours, tmp_path / "theirs.pth")
    assert loaded.notices == ()
    image = rng.standard_normal((1, side, side + 3, 3)).astype(np.float32)
    found, expected = ours.eval()(image).data, answer(torch, theirs, image)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * np.abs(expected).max())

    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    interop.save_weights(tmp_path / "ours.pth", ours)
    written = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert set(written) == set(state)
    for key, tensor in written.items():
        assert torch.equal(tensor, state[key]) or key.endswith("num_batches_tracked"), key
    theirs.load_state_dict(written, strict=True)


@pytest.mark.oracle
def test_the_auxiliary_heads_of_googlenet(torch, torchvision, tmp_path, rng):
    """They have a layer on a flattened map of 4 x 4 pixels."""
    theirs = torchvision.models.googlenet(
        weights=None, aux_logits=True, init_weights=False, transform_input=False, num_classes=7
    )
    randomise(torch, theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = backbones.create("googlenet_torchvision", 3, 7, auxiliary=True).eval()
    interop.load_weights(ours, tmp_path / "theirs.pth")
    map = rng.standard_normal((2, 5, 6, 512)).astype(np.float32)
    np.testing.assert_allclose(ours.aux1(map).data, answer(torch, theirs.aux1, map), atol=1e-5)


@pytest.mark.oracle
def test_the_published_names_of_densenet(torch, torchvision, tmp_path):
    theirs = torchvision.models.densenet121(weights=None, num_classes=5).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    ours = backbones.create("densenet121", 3, 5)
    assert interop.load_weights(ours, tmp_path / "old.pth").names == len(old)
    last = theirs["features.denseblock4.denselayer16.conv2.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(ours.state_dict()["features.denseblock4.denselayer16.conv2.weight"], last)


@pytest.mark.oracle
def test_a_classifier_starts_a_segmentation_network(torch, torchvision, tmp_path):
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    net = models.create("fcn_resnet50", 3, 4, depth=18)
    loaded = interop.load_weights(net, tmp_path / "resnet18.pth", only="backbone")
    assert loaded.notices == ("2 entries of the file do not belong to backbone: left aside",)
    np.testing.assert_array_equal(
        net.backbone.conv1.weight.data, theirs.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    )
    with pytest.raises(
        interop.WeightsError, match=r"torchvision's resnet18\. To take the trunk alone, pass only="
    ):
        interop.load_weights(net, tmp_path / "resnet18.pth")


def randomise(torch, network):
    """Moments and scales that are not 0 and 1, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1, generator=generator)


def answer(torch, network, image):
    """The logits, channels last."""
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))))
    logits = (logits["out"] if isinstance(logits, dict) else logits).numpy()
    return logits.transpose(0, 2, 3, 1) if logits.ndim == 4 else logits
