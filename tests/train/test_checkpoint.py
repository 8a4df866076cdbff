"""Checkpoints: nothing is lost on the way through a file, and damage is noticed."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tinyseg.interop import Convention
from tinyseg.train import checkpoint, config
from tinyseg.train.checkpoint import Checkpoint, Progress
from tinyseg.train.errors import CheckpointError, RunFolderError


@pytest.fixture
def example(labels, rng) -> Checkpoint:
    return Checkpoint(
        config=config.override(config.preset("shapes"), ["optim.lr=0.1"]),
        labels=labels,
        model={
            "conv.weight": rng.standard_normal((3, 3, 2, 4), np.float32),
            "conv.bias": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
            "calls": np.array(7, np.int64),
            "turned": rng.standard_normal((2, 5)).T,  # not contiguous
        },
        progress=Progress(epoch=3, batch=2, step=17, loss_sum=0.1 + 0.2, best_score=1 / 3, best_epoch=2),
        optimiser={"steps": np.array(17), "mean.0": rng.standard_normal((3, 3, 2, 4), np.float32)},
    )


def test_everything_comes_back(tmp_path, example, same_bits):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example)
    loaded = checkpoint.load(path)
    assert loaded.config == example.config
    assert loaded.labels == example.labels
    assert loaded.progress == example.progress
    assert same_bits(loaded.model, example.model)
    assert loaded.optimiser is not None
    assert same_bits(loaded.optimiser, example.optimiser)


def test_weights_alone_have_no_optimiser(tmp_path, example):
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, dataclasses.replace(example, optimiser=None))
    assert checkpoint.load(path).optimiser is None


def test_any_safetensors_reader_finds_the_weights_under_their_names(tmp_path, example):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example)
    arrays = safetensors.numpy.load_file(path)
    assert arrays["conv.weight"].shape == (3, 3, 2, 4)
    with safetensors.safe_open(path, "np") as file:
        assert json.loads(file.metadata()["labels"])["classes"] == ["sky", "sea"]


def test_the_input_convention_is_stored_and_read_back(tmp_path, example):
    path = tmp_path / "best.safetensors"
    for corners in (True, False, None):
        for channels, order in ((3, "RGB"), (1, "grey")):
            per_channel = (0.25,) * channels
            told = dataclasses.replace(
                example.labels, channels=channels, mean=per_channel, std=per_channel, align_corners=corners
            )
            checkpoint.save(path, dataclasses.replace(example, labels=told))
            with safetensors.safe_open(path, "np") as file:
                stored = json.loads(file.metadata()["labels"])
            assert stored["mean"] == stored["std"] == list(per_channel)
            assert (stored["channel_order"], stored["align_corners"]) == (order, corners)
            read = checkpoint.load(path).labels
            assert read == told
            assert read.convention == Convention(per_channel, per_channel, order, corners)


def rewritten(path, change):
    """A checkpoint with other labels, and the checksum that belongs to them."""
    with safetensors.safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    arrays = safetensors.numpy.load_file(path)
    metadata["labels"] = json.dumps(change(json.loads(metadata["labels"])))
    metadata["checksum"] = checkpoint._checksum(arrays, metadata)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))


def test_an_older_file_without_the_order_of_channels(tmp_path, example):
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, example)

    def older(labels):
        return {key: value for key, value in labels.items() if key not in ("channel_order", "align_corners")}

    rewritten(path, older)
    assert checkpoint.load(path).labels == example.labels


def test_another_order_of_channels_is_refused(tmp_path, example):
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, example)
    rewritten(path, lambda labels: labels | {"channel_order": "BGR"})
    with pytest.raises(CheckpointError, match="wants the channels of its images in the order BGR"):
        checkpoint.load(path)


def test_every_flipped_bit_is_noticed(tmp_path, example, rng):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*rng.integers(0, header, 40), *rng.integers(header, len(content), 40), len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_explained(tmp_path, example, share):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example)
    checkpoint.save(tmp_path / "best.safetensors", example)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        CheckpointError, match=r"last.safetensors is damaged .*; beside it there is best.safetensors"
    ):
        checkpoint.load(path)


def test_a_missing_file_is_explained(tmp_path, example):
    checkpoint.save(tmp_path / "last.safetensors", example)
    with pytest.raises(
        CheckpointError, match=r"there is no checkpoint .*best.safetensors; beside it there is last"
    ):
        checkpoint.load(tmp_path / "best.safetensors")


def test_weights_of_another_program_are_recognised(tmp_path, rng):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"weight": rng.standard_normal((2, 2))}, path)
    with pytest.raises(CheckpointError, match="a safetensors file of another program"):
        checkpoint.load(path)


def test_a_configuration_of_another_version_is_explained(tmp_path, example, monkeypatch):
    path = tmp_path / "last.safetensors"
    tables = config.to_tables(example.config)
    tables["optim"]["forgotten"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "to_tables", lambda _: tables)
        checkpoint.save(path, example)
    with pytest.raises(CheckpointError, match=r"does not fit this version .*unknown setting optim.forgotten"):
        checkpoint.load(path)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, example, full_disk):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, example)
    newer = dataclasses.replace(example, progress=Progress(epoch=4))
    with full_disk(), pytest.raises(RunFolderError, match="the disk is full"):
        checkpoint.save(path, newer)
    assert checkpoint.load(path).progress.epoch == 3
