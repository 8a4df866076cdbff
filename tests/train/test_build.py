"""From settings to objects: learning rates of parts of a network, and frozen normalisation."""

import numpy as np
import pytest

from tinyseg import nn
from tinyseg.train import build, checkpoint, config, train
from tinyseg.train.errors import SettingError
from tinyseg.train.run import Run
from tinyseg.train.trainer import Trainer

V2 = ("model.name=deeplab_v2_resnet101", "model.backbone=resnet18", "model.width=0.0625")


@pytest.fixture
def deeplab(tiny):
    def of(*changes):
        return config.override(tiny, [*V2, "train.epochs=1", "data.train.length=2", "data.val.length=1", *changes])

    return of


def groups_of(settings, run):
    optimiser = Trainer(settings, Run(run)).optimiser
    return {(group["lr_multiplier"], group["weight_decay"]): len(group["params"]) for group in optimiser.groups}


def test_one_rate_by_default(tmp_path, deeplab):
    assert set(groups_of(deeplab("optim.weight_decay=0.1"), tmp_path / "run")) == {(1, 0.1), (1, 0)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Weights of the trunk, of the 4 branches; norms of the trunk, the branches' biases.
        (("optim.head_lr=paper", "optim.bias_lr=paper"), {(1, 0.1), (10, 0.1), (1, 0), (20, 0)}),
        (("optim.head_lr=5",), {(1, 0.1), (5, 0.1), (1, 0), (5, 0)}),
        (("optim.bias_lr=3",), {(1, 0.1), (1, 0), (3, 0)}),
    ],
)
def test_rates_of_head_and_biases(tmp_path, deeplab, changes, expected):
    found = groups_of(deeplab("optim.weight_decay=0.1", *changes), tmp_path / "run")
    assert set(found) == expected
    for (factor, decay), count in found.items():
        if factor > 1:
            assert count == 4, (factor, decay)


def test_a_rate_of_nearly_zero_keeps_a_part_as_it_is(tmp_path, deeplab):
    """The head learns, with a rate that is a billion times that of the trunk."""
    trainer = Trainer(deeplab("optim.name=sgd", "optim.lr=1e-12", "optim.head_lr=1e10"), Run(tmp_path / "run"))
    before = trainer.network.state_dict()
    trainer.train_epoch()
    after = trainer.network.state_dict()
    changes = {name: np.abs(after[name] - before[name]).max() for name, _ in trainer.network.named_parameters()}
    assert max(value for name, value in changes.items() if name.startswith("trunk")) < 1e-9
    assert min(value for name, value in changes.items() if name.startswith("branches")) > 1e-7


def test_the_papers_rates_of_a_network_without_trunk_are_its_only_ones(tmp_path, tiny):
    paper = config.override(tiny, ["optim.head_lr=paper", "optim.bias_lr=paper"])
    assert {factor for factor, _ in groups_of(paper, tmp_path / "run")} == {1}
    with pytest.raises(SettingError, match=r"optim.head_lr: unet_padded is not built on a trunk"):
        Trainer(config.override(tiny, ["optim.head_lr=10"]), Run(tmp_path / "other"))


@pytest.mark.parametrize("value", ["0", "-1", "papers"])
def test_rates_that_are_none(tiny, value):
    with pytest.raises(SettingError, match=r"optim.head_lr must be (more than 0|paper, or a number)"):
        config.override(tiny, [f"optim.head_lr={value}"])


def test_frozen_norms_stay_as_they_are(tmp_path, deeplab):
    settings = deeplab("train.freeze_norm=true")
    train(settings, tmp_path / "run", reporters=[])
    started = build.network(settings, 3, 6).state_dict()
    ended = checkpoint.load(tmp_path / "run" / "last.safetensors").model
    network = build.network(settings, 3, 6)
    norms = [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        for part in ("weight", "bias", "running_mean", "running_var"):
            np.testing.assert_array_equal(started[f"{norm}.{part}"], ended[f"{norm}.{part}"])
    assert not np.array_equal(started["trunk.conv1.weight"], ended["trunk.conv1.weight"])


def test_groups_cannot_change_in_a_run(tmp_path, deeplab):
    train(deeplab(), tmp_path / "run", reporters=[])
    for change in ("optim.head_lr=10", "optim.bias_lr=2", "train.freeze_norm=true"):
        with pytest.raises(SettingError, match="sort the parameters into groups and cannot change in a run"):
            train(deeplab(change, "train.epochs=2"), tmp_path / "run", resume=True, reporters=[])
