"""Networks with losses of their own, through the trainer: every term is there, and reaches what it should."""

import json

import numpy as np
import pytest

from tinyseg.tape import Tensor
from tinyseg.train import checkpoint, config, train
from tinyseg.train.run import Run
from tinyseg.train.trainer import Trainer

NETWORKS = {  # a small one of each kind, its terms, and parameters that only a term besides "pixels" reaches
    "fastfcn_psp_resnet50": (
        ["backbone=resnet18", "width=0.0625"],
        ["pixels", "auxiliary"],
        "auxiliary.",
    ),
    "fastfcn_encnet_resnet50": (
        ["backbone=resnet18", "width=0.0625", "codewords=3"],
        ["pixels", "auxiliary", "presence"],
        "head.module.presence.",
    ),
    "fcn_resnet50": (["depth=18", "width=0.0625"], ["pixels", "auxiliary"], "aux_classifier."),
    "deeplabv3_resnet50": (["depth=18", "width=0.0625"], ["pixels", "auxiliary"], "aux_classifier."),
    "deeplab_v1_largefov": (["width=0.03125", "shrunk_labels=true"], ["pixels"], None),
    "deeplab_v2_resnet101": (
        ["backbone=resnet18", "width=0.0625", "multi_scale=true", "shrunk_labels=true"],
        ["pixels", "scale_1", "scale_0.75", "scale_0.5"],
        None,
    ),
    "gscnn_resnet50": (["backbone=resnet18", "width=0.0625"], ["pixels", "edges", "at_edges", "dual_task"], None),
}


@pytest.fixture
def small(tiny):
    """A configuration with one of these networks."""

    def of(name, *changes):
        options = [f"model.{option}" for option in NETWORKS[name][0]]
        few = ["train.epochs=2", "data.train.length=4", "data.val.length=1"]
        return config.override(tiny, [f"model.name={name}", *options, *few, *changes])

    return of


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_part(tmp_path, small, name):
    trainer = Trainer(small(name), Run(tmp_path / "run"))
    trainer.network.train()
    batch = next(iter(trainer.loader.epoch(0)))
    before = {key: value.data.copy() for key, value in trainer.network.named_parameters()}
    loss = trainer.train_step([batch])
    for key, parameter in trainer.network.named_parameters():
        assert parameter.grad is not None and np.isfinite(parameter.grad).all(), key
    own = NETWORKS[name][2]
    if own is not None:
        ours = [parameter for key, parameter in trainer.network.named_parameters() if key.startswith(own)]
        assert ours and all(np.abs(parameter.grad).max() > 0 for parameter in ours)
        assert any(
            np.any(parameter.data != before[key])
            for key, parameter in trainer.network.named_parameters()
            if key.startswith(own)
        )
    terms = trainer.progress.loss_terms
    assert list(terms) == NETWORKS[name][1]
    assert all(value > 0 for value in terms.values())
    np.testing.assert_allclose(sum(terms.values()), loss * len(batch.names), rtol=1e-5)


@pytest.mark.parametrize("name", ["fcn_resnet50", "fastfcn_encnet_resnet50", "gscnn_resnet50"])
def test_the_settings_of_the_loss_act_on_the_logits(tmp_path, small, name):
    """Class weights, Dice, and the ignored label, on the term "pixels"."""

    def pixels(*changes):
        trainer = Trainer(small(name, *changes), Run(tmp_path / f"run{len(list(tmp_path.iterdir()))}"))
        trainer.network.eval()  # no dropout, no statistics of the batch
        batch = next(iter(trainer.loader.epoch(0)))
        outputs = trainer.network.outputs(Tensor(batch.images))
        losses = trainer.network.losses(outputs, batch.labels, trainer.loss, weights=batch.weights)
        return float(losses["pixels"].data)

    plain = pixels()
    assert pixels("loss.dice=1") > plain + 0.1
    assert abs(pixels("loss.class_weights=5,1,1,1,1,1") - plain) > 1e-3


def test_terms_stand_in_the_history(tmp_path, small):
    train(small("fcn_resnet50"), tmp_path / "run", reporters=[])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert list(row["loss_terms"]) == ["pixels", "auxiliary"]
        np.testing.assert_allclose(sum(row["loss_terms"].values()), row["loss"], rtol=1e-6)


def test_a_network_with_one_term_has_none_in_the_history(tmp_path, tiny):
    train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[])
    assert "loss_terms" not in json.loads((tmp_path / "run" / "metrics.jsonl").read_text())


@pytest.mark.parametrize("name", ["gscnn_resnet50", "fastfcn_encnet_resnet50"])
def test_resumed_with_the_same_noise_and_the_same_sums(tmp_path, small, name, same_bits, signal_at):
    settings = small(name, "train.accumulate=2", "data.train.length=8")
    train(settings, tmp_path / "whole", reporters=[])
    train(settings, tmp_path / "parts", reporters=[signal_at(15, step=3)])
    train(out=tmp_path / "parts", resume=True, reporters=[])
    ends = [checkpoint.load(tmp_path / folder / "last.safetensors") for folder in ("whole", "parts")]
    assert same_bits(ends[0].model, ends[1].model)
    rows = [[row["loss_terms"] for row in Run.open(tmp_path / folder).history()] for folder in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_canny_is_told_the_normalisation_of_the_data(tmp_path, small):
    trainer = Trainer(small("gscnn_resnet50"), Run(tmp_path / "run"))
    np.testing.assert_allclose(trainer.network.mean, trainer.train_set.mean)
    np.testing.assert_allclose(trainer.network.std, trainer.train_set.std)
    told = Trainer(small("gscnn_resnet50", "model.mean=0.5", "model.std=0.25"), Run(tmp_path / "told"))
    assert (told.network.mean, told.network.std) == (0.5, 0.25)
