"""`tinyseg convert`: to PyTorch, from PyTorch, from container to container, and a look inside."""

import dataclasses

import numpy as np
import pytest

from tinyseg import interop, models
from tinyseg.cli import main
from tinyseg.train import checkpoint, config
from tinyseg.train.checkpoint import Checkpoint, Labels
from tinyseg.train.prediction import load

SETTINGS = ("model.name=unet_padded", "model.base=2", "model.depth=1")


@pytest.fixture
def network(rng):
    return models.create("unet_padded", 3, 2, base=2, depth=1, rng=rng)


@pytest.fixture
def trained(tmp_path, network):
    """A checkpoint of tinyseg."""
    labels = Labels(("sky", "sea"), ((0, 0, 9), (9, 0, 0)), 255, 3, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    path = tmp_path / "best.safetensors"
    checkpoint.save(
        path, Checkpoint(config.override(config.Config(), SETTINGS), labels, network.eval().state_dict())
    )
    return path


@pytest.fixture
def convert(capsys):
    """Runs the command with these arguments; gives the exit code and what it printed."""

    def function(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, " ".join(printed.err.split())

    return function


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_to_pytorch_and_back(tmp_path, trained, network, convert, suffix):
    exported, again = tmp_path / f"weights{suffix}", tmp_path / "again.safetensors"
    code, out, _ = convert(trained, exported)
    assert (code, out) == (0, f"unet_padded from {trained}: {exported}\n")
    weights = interop.read_weights(exported)
    assert weights.convention == interop.Convention((0.5, 0.4, 0.3), (0.2, 0.1, 0.3), "RGB")
    assert weights.arrays["classifier.weight"].shape == (2, 2, 1, 1)

    settings = [option for change in SETTINGS[1:] for option in ("--set", change)]
    code, out, error = convert(exported, again, "--model", "unet_padded", "--classes", "sky, sea", *settings)
    assert (code, error) == (0, "")
    assert "parameters and buffers of unet_padded" in out
    found, loaded = load(again)
    assert loaded.labels.classes == ("sky", "sea")
    assert (loaded.labels.mean, loaded.labels.std) == ((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    expected = network.state_dict()
    for name, array in found.state_dict().items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_how_scores_are_enlarged_is_written_and_compared(tmp_path, convert):
    net = models.create("fcn_resnet50", 3, 2, depth=18, width=1 / 16)
    told = dataclasses.replace(interop.TORCHVISION, align_corners=True)
    for name, convention in (("same.pth", interop.TORCHVISION), ("other.pth", told)):
        interop.save_weights(tmp_path / name, net, convention=convention)
    settings = [
        "--model",
        "fcn_resnet50",
        "--classes",
        2,
        "--set",
        "model.depth=18",
        "--set",
        "model.width=0.0625",
    ]
    code, out, _ = convert(tmp_path / "same.pth", tmp_path / "same.safetensors", *settings)
    assert code == 0 and "align_corners" not in out
    assert load(tmp_path / "same.safetensors")[1].labels.align_corners is False
    code, out, _ = convert(tmp_path / "other.pth", tmp_path / "other.safetensors", *settings)
    assert code == 0
    assert "enlarges its scores with align_corners=True, and fcn_resnet50 does it with align_corners=False" in out
    assert convert(tmp_path / "same.safetensors", tmp_path / "back.pth")[0] == 0
    assert interop.read_weights(tmp_path / "back.pth").convention == interop.TORCHVISION


def test_between_containers(tmp_path, make, example, convert):
    old, new, newer = tmp_path / "old.pth", tmp_path / "new.safetensors", tmp_path / "newer.pt"
    old.write_bytes(make.pth(example, "stacked"))
    assert convert(old, new, "--convention", "torchvision")[0] == 0
    assert convert(new, newer) == (0, f"{len(example)} tensors: {newer}\n", "")
    weights = interop.read_weights(newer)
    assert weights.convention == interop.TORCHVISION
    for name, array in example.items():
        np.testing.assert_array_equal(weights.arrays[name], array, strict=True)


def test_a_look_inside(tmp_path, make, example, convert):
    path = tmp_path / "a.pth"
    path.write_bytes(make.pth(example))
    code, out, _ = convert(path)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "conv.weight 4 3 3 5 float32" in lines
    assert "norm.num_batches_tracked int64" in lines
    assert any(line.endswith("zip, 9 tensors, 209 numbers") for line in lines)
    assert lines[-1] == "Input: the file does not say what it expects"


def test_caffe_weights_become_rgb(tmp_path, network, convert):
    exported, made = tmp_path / "a.pth", tmp_path / "made.safetensors"
    interop.save_weights(exported, network)
    settings = [option for change in SETTINGS[1:] for option in ("--set", change)]
    options = ("--model", "unet_padded", "--classes", "2", "--convention", "caffe", *settings)
    assert convert(exported, made, *options)[0] == 0
    found, loaded = load(made)
    np.testing.assert_allclose(np.multiply(loaded.labels.mean, 255), (123.68, 116.779, 103.939))
    assert loaded.labels.classes == ("class 0", "class 1")
    first, name = found.state_dict(), "contracting.0.conv1.weight"
    np.testing.assert_array_equal(first[name], network.state_dict()[name][:, :, ::-1])


def test_what_the_file_does_not_say_is_told(tmp_path, network, convert):
    exported = tmp_path / "a.pth"
    interop.save_weights(exported, network)
    settings = [option for change in SETTINGS[1:] for option in ("--set", change)]
    out = convert(exported, tmp_path / "b.safetensors", "--model", "unet_padded", "--classes", "2", *settings)[1]
    assert "Note: the file does not say what input it expects; taken to be torchvision's" in out


def test_errors(tmp_path, trained, make, example, convert):
    path, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    path.write_bytes(make.pth(example))
    hostile = tmp_path / "hostile.pth"
    hostile.write_bytes(make.zipped({"x": make.Call(make.Global("os", "system"), "true")}, {}))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x99" + trained.read_bytes())
    for arguments, message in (
        ((tmp_path / "none.pth",), "none.pth cannot be read: No such file"),
        ((hostile, target), "holds the object os.system, and making these could run any code"),
        ((torn, target), "torn.safetensors is no weight file"),
        ((path, tmp_path / "a.npz"), "the name must end in .pth, .pt, .safetensors"),
        ((path, tmp_path / "no" / "a.pth"), "cannot write"),
        ((path, target, "--model", "unet"), "does not fit UNet"),
        ((path, target, "--model", "unett"), "unett"),
        ((path, tmp_path / "b.pth", "--model", "unet"), "a checkpoint's name must end in .safetensors"),
        ((path, target, "--model", "unet", "--classes", "0"), "--classes must be a number of classes"),
        ((path, target, "--only", "backbone"), "--only and --set need --model"),
        ((path, target, "--convention", "opencv"), "must be one of torchvision, googlenet, caffe"),
        ((trained,), "knows its network: give a TARGET"),
        ((trained, target, "--weights", "first"), "--weights must be best or last"),
        ((tmp_path, target), "run"),
    ):
        code, _, error = convert(*arguments)
        assert code == 2, arguments
        assert message in error, arguments
        assert not target.exists()


def test_a_checkpoint_is_not_taken_for_weights_of_pytorch(trained, network):
    with pytest.raises(interop.WeightsError, match="is a checkpoint of tinyseg, in a layout of its own"):
        interop.load_weights(network, trained)
