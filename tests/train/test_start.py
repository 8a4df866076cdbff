"""Weights to start from: runs, coarser networks, classifiers of PyTorch; what is taken, kept, said, refused."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from tinyseg import interop, models
from tinyseg.interop.layout import to_file
from tinyseg.models import backbones
from tinyseg.train import checkpoint, config, start, train
from tinyseg.train.checkpoint import Labels
from tinyseg.train.errors import CheckpointError, RunFolderError
from tinyseg.train.run import Run
from tinyseg.train.trainer import Trainer

FEW = ("train.epochs=1", "data.train.length=2", "data.val.length=1")
FCN = ("model.width=0.03125", "model.padding=same")
RESNET = ("model.name=fcn_resnet50", "model.depth=18", "model.width=0.0625")


@pytest.fixture
def settings(tiny):
    """A configuration with another network."""

    def of(*changes):
        return config.override(tiny, [*FEW, *changes])

    return of


@pytest.fixture
def classifier(tmp_path):
    """Writes a file with torchvision's names of a narrow classifier with random weights; returns both."""

    def make(name, suffix=".pth", *, width=1 / 16, in_channels=3, seed=5, convention=None, **options):
        net = backbones.create(name, in_channels, 7, width=width, rng=np.random.default_rng(seed), **options)
        path = tmp_path / f"{name}{suffix}"
        interop.save_weights(path, net, convention=convention)
        return net, path

    return make


def started(settings, init, run):
    trainer = Trainer(config.override(settings, [f"train.init={init}"]), Run(run))
    assert trainer.started is not None
    return trainer, trainer.started


def same(network, name, value):
    np.testing.assert_array_equal(network.state_dict()[name], value)


# --------------------------------------------------------------------------------------------------- from a run


def test_a_run_starts_from_another_ones_weights(tmp_path, tiny):
    train(config.override(tiny, FEW), tmp_path / "first", reporters=[])
    trainer, report = started(tiny, tmp_path / "first", tmp_path / "second")
    first = checkpoint.load(tmp_path / "first" / "best.safetensors").model
    for name, value in first.items():
        same(trainer.network, name, value)
    assert (report.taken, report.kept, report.left) == (report.count, (), ())
    assert trainer.progress.step == 0
    assert trainer.run.config.train.init == str(tmp_path / "first")


def test_other_classes_keep_their_scorer(tmp_path, settings, tiny):
    train(config.override(tiny, FEW), tmp_path / "first", reporters=[])
    trainer, report = started(settings("data.kinds=3"), tmp_path / "first", tmp_path / "second")
    assert report.kept == ("classifier.weight", "classifier.bias")
    assert "not in it, and as they were: classifier" in report.describe()[1]
    fresh = models.create("unet_padded", 3, 4, base=2, depth=1, rng=np.random.default_rng(0)).state_dict()
    same(trainer.network, "classifier.weight", fresh["classifier.weight"])


@pytest.mark.parametrize("name", ["unet", "fcn8s"])
def test_a_crf_starts_behind_a_trained_network(tmp_path, settings, name):
    small = FCN if name == "fcn8s" else ("model.base=2", "model.depth=1")
    plain = f"model.name={'unet_padded' if name == 'unet' else name}"
    train(settings(plain, *small), tmp_path / "first", reporters=[])
    trained = checkpoint.load(tmp_path / "first" / "best.safetensors").model
    behind = settings(f"model.name=crf_rnn_{name}", *small, "optim.head_lr=10")
    trainer, report = started(behind, tmp_path / "first", tmp_path / "second")
    for key, value in trained.items():
        if "dropout" not in key:
            same(trainer.network, f"trunk.{key}", value)
    assert set(report.kept) == {"crf.smoothness_weight", "crf.appearance_weight", "crf.compatibility"}
    np.testing.assert_allclose(trainer.network.mean, trainer.labels.mean)
    trainer.fit()
    assert not np.array_equal(trainer.network.crf.compatibility.data, -np.eye(6))
    again, report = started(behind, tmp_path / "second", tmp_path / "third")  # from a CRF-RNN
    assert report.kept == ()
    np.testing.assert_array_equal(again.network.crf.compatibility.data, trainer.network.crf.compatibility.data)


def test_training_in_stages(tmp_path, settings):
    """FCN-32s, 16s, 8s: each takes all that the one before has learned; its new scorer starts with zeros."""
    runs = [tmp_path / name for name in ("fcn32s", "fcn16s", "fcn8s")]
    train(settings("model.name=fcn32s", *FCN), runs[0], reporters=[])
    reports = []
    for before, run in itertools.pairwise(runs):
        trainer, report = started(settings(f"model.name={run.name}", *FCN), before, tmp_path / f"look-{run.name}")
        learned = checkpoint.load(before / "best.safetensors").model
        for name, parameter in trainer.network.named_parameters():
            if parameter.requires_grad:
                new = name not in learned
                np.testing.assert_array_equal(
                    parameter.data, np.zeros_like(parameter.data) if new else learned[name]
                )
        reports.append(report)
        train(trainer.config, run, reporters=[])
    assert reports[0].kept == ("score_pool4.weight", "score_pool4.bias")
    assert reports[0].left == ("upscore.weight",)
    assert reports[1].kept == ("score_pool3.weight", "score_pool3.bias")


def test_the_trunk_of_another_network(tmp_path, settings):
    train(settings(*RESNET), tmp_path / "fcn", reporters=[])
    other = settings(
        "model.name=fastfcn_encnet_resnet50", "model.backbone=resnet18", "model.width=0.0625", "model.stem=7x7"
    )
    trainer, report = started(other, tmp_path / "fcn", tmp_path / "fastfcn")
    learned = checkpoint.load(tmp_path / "fcn" / "best.safetensors").model
    same(trainer.network, "trunk.layer4.1.conv2.weight", learned["backbone.layer4.1.conv2.weight"])
    assert "joint.conv3.0.weight" in report.kept
    assert "classifier.0.weight" in report.left


def test_a_resumed_run_does_not_read_them_again(tmp_path, tiny, settings, classifier, same_bits, signal_at):
    _, path = classifier("resnet18")
    settings = config.override(settings(*RESNET, "train.epochs=2", "data.train.length=6"), [f"train.init={path}"])
    train(settings, tmp_path / "whole", reporters=[])
    train(settings, tmp_path / "parts", reporters=[signal_at(15, step=2)])
    path.unlink()
    train(out=tmp_path / "parts", resume=True, reporters=[])
    ends = [checkpoint.load(tmp_path / name / "last.safetensors") for name in ("whole", "parts")]
    assert same_bits(ends[0].model, ends[1].model)
    assert ends[0].labels == ends[1].labels
    assert ends[0].labels.mean == interop.TORCHVISION.mean


# --------------------------------------------------------------------------------------------------- from PyTorch


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("network", "trunk"),
    [
        (RESNET, "backbone"),
        (("model.name=deeplab_v3_resnet50", "model.backbone=resnet18", "model.width=0.0625"), "trunk"),
        (("model.name=gscnn_resnet50", "model.backbone=resnet18", "model.width=0.0625"), "trunk"),
    ],
)
def test_the_trunk_of_a_classifier(tmp_path, settings, classifier, network, trunk, suffix):
    theirs, path = classifier("resnet18", suffix)
    trainer, report = started(settings(*network), path, tmp_path / "run")
    for name, value in theirs.state_dict().items():
        if not name.startswith("fc."):
            same(trainer.network, f"{trunk}.{name}", value)
    assert set(report.left) == {"fc.weight", "fc.bias"}
    assert report.kept and not any(name.startswith(trunk) for name in report.kept)


def test_a_classifiers_fully_connected_layers(tmp_path, settings, classifier):
    """VGG-16 starts FCN-32s as `start_from_classifier` does, and DeepLab's 7x7 network too."""
    vgg, path = classifier("vgg16", width=1 / 32)
    trainer, report = started(settings("model.name=fcn32s", *FCN), path, tmp_path / "fcn")
    expected = models.create("fcn32s", 3, 6, width=1 / 32, padding="same")
    expected.start_from_classifier(vgg)
    for name, value in expected.state_dict().items():
        if not name.endswith(("seed", "calls")):
            same(trainer.network, name, value)
    assert report.kept == ("score_fr.weight", "score_fr.bias")
    assert report.left == ("classifier.6.weight", "classifier.6.bias")

    seven = started(settings("model.name=deeplab_v1_7x7", "model.width=0.03125"), path, tmp_path / "7x7")[0]
    same(seven.network, "fully_connected.fc6.weight", expected.state_dict()["fc6.weight"])
    same(seven.network, "fully_connected.fc7.bias", expected.state_dict()["fc7.bias"])


@pytest.mark.parametrize(
    ("name", "kept"), [("deeplab_v1_4x4", ("fc6", "fc8")), ("deeplab_v1_largefov", ("fc6", "fc7", "fc8"))]
)
def test_no_layer_is_taken_by_half(tmp_path, settings, classifier, name, kept):
    """4x4 has as many channels as VGG's fc6, so its bias would fit, and its kernel does not."""
    _, path = classifier("vgg16", width=1 / 32)
    _, report = started(settings(f"model.name={name}", "model.width=0.03125"), path, tmp_path / "run")
    assert {name.split(".")[1] for name in report.kept} == set(kept)


def test_a_whole_network_for_other_classes(tmp_path, settings):
    theirs = models.create("fcn_resnet50", 3, 21, depth=18, width=1 / 16, rng=np.random.default_rng(3))
    interop.save_weights(tmp_path / "coco.pth", theirs)
    trainer, report = started(settings(*RESNET), tmp_path / "coco.pth", tmp_path / "run")
    same(trainer.network, "classifier.0.weight", theirs.state_dict()["classifier.0.weight"])
    same(trainer.network, "aux_classifier.1.running_mean", theirs.state_dict()["aux_classifier.1.running_mean"])
    assert {name.rpartition(".")[0] for name in report.kept} == {"classifier.4", "aux_classifier.4"}


# -------------------------------------------------------------------------------------------- the form of images


def test_the_data_is_normalised_as_the_weights_want_it(tmp_path, settings, classifier):
    _, path = classifier("resnet18")
    plain = Trainer(settings(*RESNET, "augment.flip=false"), Run(tmp_path / "plain"))
    trainer, _ = started(settings(*RESNET, "augment.flip=false"), path, tmp_path / "run")
    assert trainer.labels == dataclasses.replace(
        plain.labels, mean=interop.TORCHVISION.mean, std=interop.TORCHVISION.std
    )
    images = [next(iter(some.loader.epoch(0))).images for some in (plain, trainer)]
    raw = images[0] * np.array(plain.labels.std) + np.array(plain.labels.mean)
    expected = (raw - np.array(interop.TORCHVISION.mean)) / np.array(interop.TORCHVISION.std)
    np.testing.assert_allclose(images[1], expected, atol=1e-5)
    trainer.fit()
    assert checkpoint.load(trainer.run.best).labels.mean == interop.TORCHVISION.mean


def test_a_file_says_what_it_wants(tmp_path, settings, classifier):
    own = interop.Convention((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "RGB")
    _, path = classifier("resnet18", ".safetensors", convention=own)
    assert started(settings(*RESNET), path, tmp_path / "run")[0].labels.mean == (0.1, 0.2, 0.3)


def test_bgr_becomes_rgb(tmp_path, settings, classifier):
    theirs, path = classifier("resnet18", convention=interop.CAFFE)
    trainer, _ = started(settings(*RESNET), path, tmp_path / "run")
    same(trainer.network, "backbone.conv1.weight", theirs.state_dict()["conv1.weight"][:, :, ::-1])
    assert trainer.labels.mean == interop.CAFFE.mean[::-1]


def test_unknown_wants_are_said(tmp_path):
    net = models.create("unet_padded", 3, 2, base=2, depth=1)
    interop.save_weights(tmp_path / "unet.pth", net)
    source = start.read(tmp_path / "unet.pth")
    assert source.convention is None
    report = source.into(models.create("unet_padded", 3, 2, base=2, depth=1))
    assert "it does not say what images it wants" in report.describe()[-1]


def test_other_classes_of_the_same_number_are_said(tmp_path, tiny, labels):
    net = models.create("unet_padded", 3, 2, base=2, depth=1)
    path = tmp_path / "sea.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(tiny, labels, net.state_dict()))
    report = start.read(path).into(net, ("cat", "dog"))
    assert "its classes are others, sky, sea, and their scorers were taken" in report.describe()[-1]
    assert start.read(path).into(net, ("sky", "sea")).notices == ()


def test_a_resnet_that_strides_elsewhere_is_said(tmp_path, settings, classifier):
    _, path = classifier("resnet18")
    network = ("model.name=deeplab_v3_resnet50", "model.backbone=resnet18", "model.width=0.0625")
    _, slim = started(settings(*network), path, tmp_path / "slim")
    assert "stride in another convolution than one of style slim" in slim.notices[0]
    _, fitting = started(settings(*network, "model.style=torchvision"), path, tmp_path / "torchvision")
    assert fitting.notices == ()


# ------------------------------------------------------------------------------------------------------- refused


def refused(settings, init, tmp_path, *words, error=CheckpointError):
    with pytest.raises(error) as raised:
        train(config.override(settings, [f"train.init={init}"]), tmp_path / "refused", reporters=[])
    for word in words:
        assert word in str(raised.value)
    assert not (tmp_path / "refused").exists()


def test_a_network_of_another_kind(tmp_path, tiny, settings):
    train(config.override(tiny, FEW), tmp_path / "unet", reporters=[])
    refused(
        settings("model.name=fcn32s", *FCN),
        tmp_path / "unet",
        tmp_path,
        "does not fit the trunk of FCN: it belongs to another network, or to one with other settings",
        "missing: trunk.features.0.weight",
    )
    refused(
        settings("model.base=2", "model.depth=2"), tmp_path / "unet", tmp_path, "does not fit UNet", "missing: "
    )


def test_another_width(tmp_path, settings, classifier):
    _, path = classifier("resnet18", width=1 / 8)
    refused(
        settings(*RESNET),
        path,
        tmp_path,
        "It has the names of torchvision's resnet18. ",
        "shape: backbone.conv1.weight is (4, 3, 7, 7) here and (8, 3, 7, 7) in the file",
    )


def test_another_width_of_a_network_without_trunk(tmp_path, tiny, settings):
    train(config.override(tiny, FEW), tmp_path / "unet", reporters=[])
    refused(
        settings("model.base=3"), tmp_path / "unet", tmp_path, "does not fit UNet", "shape: contracting.0.conv1"
    )


def test_other_channels(tmp_path, settings, classifier, labels, tiny):
    _, path = classifier("resnet18", in_channels=1)
    refused(settings(*RESNET), path, tmp_path, "Its images have 1 channels, and those of the data 3. ")
    grey = dataclasses.replace(labels, channels=1, mean=(0.5,), std=(0.25,))
    net = models.create("unet_padded", 1, 2, base=2, depth=1)
    path = tmp_path / "grey.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(tiny, grey, net.state_dict()))
    refused(tiny, path, tmp_path, "want images with 1 channels (grey), and those of the data have 3")


def test_weights_that_are_not_finite(tmp_path, settings, classifier):
    net, path = classifier("resnet18")
    arrays = to_file(net)
    arrays["layer1.0.conv1.weight"][0] = np.nan
    interop.write_weights(path, arrays)
    refused(settings(*RESNET), path, tmp_path, "not finite numbers, for instance backbone.layer1.0.conv1.weight")


def test_what_is_no_weights(tmp_path, settings, tiny):
    (tmp_path / "notes.pth").write_text("no weights")
    refused(tiny, tmp_path / "notes.pth", tmp_path, "is no weight file", error=interop.WeightsError)
    refused(tiny, tmp_path / "absent.pth", tmp_path, "cannot be read: No such file", error=interop.WeightsError)
    refused(tiny, tmp_path / "nowhere", tmp_path, "there is no run folder", error=RunFolderError)
    train(config.override(tiny, FEW), tmp_path / "unet", reporters=[])
    best = tmp_path / "unet" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    refused(tiny, tmp_path / "unet", tmp_path, "damaged", error=(CheckpointError, interop.WeightsError))
    shutil.rmtree(tmp_path / "unet")


def test_labels_of_the_data_stay_where_nothing_is_known(labels, tmp_path):
    source = start.Source(tmp_path / "some.pth", {}, True, None)
    assert source.labels(labels) is labels
    assert isinstance(labels, Labels)
