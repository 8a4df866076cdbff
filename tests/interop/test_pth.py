"""Files of PyTorch: both containers, views, types, and what is refused."""

import argparse
import collections
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from tinyseg import interop
from tinyseg.interop import WeightsError

CONTAINERS = {"zip": "zip", "stacked": "stacked pickles"}


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def content(make, container, obj, storages, sizes):
    """A file with these storages: arrays' bytes by key, and their counts of numbers."""
    return make.zipped(obj, storages) if container == "zip" else make.stacked(obj, storages, sizes)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_state_dict(make, write, example, container):
    weights = interop.read_weights(write(make.pth(example, container)))
    same(weights.arrays, example)
    assert weights.container == CONTAINERS[container]
    assert weights.convention is None
    assert weights.ignored == ()


@pytest.mark.parametrize("container", CONTAINERS)
def test_views_of_one_storage(make, write, container):
    numbers = np.arange(24, dtype=np.float32)
    place = make.storage("0", 24, "FloatStorage", *(() if container == "zip" else (None,)))
    state = {
        "matrix": make.tensor(place, (4, 6), (6, 1)),
        "transposed": make.tensor(place, (6, 4), (1, 6)),
        "middle": make.tensor(place, (2, 3), (6, 2), offset=7),
        "number": make.tensor(place, (), (), offset=23),
        "nothing": make.tensor(place, (3, 0), (1, 1), offset=24),
    }
    found = interop.read_weights(
        write(content(make, container, state, {"0": numbers.tobytes()}, {"0": 24}))
    ).arrays
    matrix = numbers.reshape(4, 6)
    np.testing.assert_array_equal(found["matrix"], matrix)
    np.testing.assert_array_equal(found["transposed"], matrix.T)
    np.testing.assert_array_equal(found["middle"], [[7, 9, 11], [13, 15, 17]])
    assert found["number"] == 23
    assert found["nothing"].shape == (3, 0)
    assert np.shares_memory(found["matrix"], found["transposed"])
    assert not found["matrix"].flags.writeable


def test_a_view_of_a_storage_in_stacked_pickles(make, write):
    numbers = np.arange(10, dtype=np.float32)
    state = {
        "all": make.tensor(make.storage("7", 10, "FloatStorage", None), (10,), (1,)),
        "part": make.tensor(make.storage("7", 10, "FloatStorage", ("7.1", 4, 5)), (2, 2), (2, 1), offset=1),
    }
    found = interop.read_weights(write(make.stacked(state, {"7": numbers.tobytes()}, {"7": 10}))).arrays
    np.testing.assert_array_equal(found["part"], [[5, 6], [7, 8]])


@pytest.mark.parametrize("container", CONTAINERS)
def test_bfloat16(make, write, container):
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x4049], np.uint16)
    view = () if container == "zip" else (None,)
    state = {"x": make.tensor(make.storage("0", 5, "BFloat16Storage", *view), (5,), (1,))}
    found = interop.read_weights(write(content(make, container, state, {"0": bits.tobytes()}, {"0": 5}))).arrays[
        "x"
    ]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1, -2, np.inf, 2.0**-133, 3.140625], np.float32))


def test_types_without_a_storage_of_their_own(make, write):
    numbers = np.array([1, 2**16 - 1, 7], np.uint16)
    place = make.Persistent("storage", make.Global("torch.storage", "UntypedStorage"), "0", "cpu", 6)
    function, kind = make.Global("torch._utils", "_rebuild_tensor_v3"), make.Global("torch", "uint16")
    state = {"x": make.Call(function, place, 1, (2,), (1,), False, collections.OrderedDict(), kind)}
    found = interop.read_weights(write(make.zipped(state, {"0": numbers.tobytes()}))).arrays["x"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, [2**16 - 1, 7])


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_state_dict_among_other_things(make, write, example, wrapper):
    state, storages = make.described(example, False)
    found = interop.read_weights(write(make.zipped({"epoch": 3, wrapper: state, "best": 0.5}, storages)))
    same(found.arrays, example)


def test_entries_that_are_no_tensors_are_told(make, write):
    state, storages = make.described({"x": np.zeros(2, np.float32)}, False)
    state["epoch"] = 3
    weights = interop.read_weights(write(make.zipped(state, storages)))
    assert list(weights.arrays) == ["x"]
    assert weights.ignored == ("epoch",)


def test_parameters_and_sizes(make, write):
    place = make.storage("0", 2)
    wrapped = make.Call(
        make.Global("torch._utils", "_rebuild_parameter"),
        make.tensor(place, make.Call(make.Global("torch", "Size"), [1, 2]), (2, 1)),
        True,
        collections.OrderedDict(),
    )
    found = interop.read_weights(write(make.zipped({"x": wrapped}, {"0": struct.pack("<2f", 3, 4)}))).arrays
    np.testing.assert_array_equal(found["x"], [[3, 4]])


# ------------------------------------------------------------------------------------------------ what is refused


def refused(make, path, message):
    with make.little_memory(), pytest.raises(WeightsError, match=message) as caught:
        interop.read_weights(path)
    assert str(caught.value).startswith(str(path))


def test_other_files(make, write, tmp_path):
    refused(make, write(b""), "is empty")
    refused(make, write(b"GIF89a" + bytes(600)), "is no weight file: neither a .pth")
    refused(make, tmp_path / "absent.pth", "cannot be read: No such file")
    refused(make, tmp_path, "cannot be read")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_is_refused(make, write, format):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    refused(make, write(stream.getvalue()), "refused: it is a tar archive, as PyTorch wrote before 2017")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_training_checkpoint_is_refused_by_the_names_in_it(make, write, example, container):
    state, storages = make.described(example, container == "stacked")
    sizes = {str(number): array.size for number, array in enumerate(example.values())}
    obj = {"state_dict": state, "options": make.Call(make.Global("argparse", "Namespace"))}
    message = (
        r"refused: besides tensors its pickle holds the object argparse\.Namespace, .*"
        r"torch\.save\(net\.state_dict\(\), path\)"
    )
    refused(make, write(content(make, container, obj, storages, sizes)), message)


def test_an_attack_in_a_file(make, write, tmp_path):
    harm = tmp_path / "harm"
    attack = make.Call(make.Global("os", "system"), f"touch {harm}")
    refused(make, write(make.zipped({"x": attack}, {})), r"os\.system")
    refused(make, write(make.stacked({"x": attack}, {}, {})), r"os\.system")
    for place in range(5):  # in each of the five pickles
        heads = [make.pickled(head) for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
        heads[place] = heads[place][:2] + make.pickled(attack)[2:-1] + b"0" + heads[place][2:]
        with pytest.raises(WeightsError):
            interop.read_weights(write(b"".join(heads)))
    assert not harm.exists()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("numel", "shape", "strides", "offset", "message"),
    [
        (2**38, (2**38,), (1,), 0, "the storage '0' should have 1099511627776 bytes, the file has 24"),
        (2**62, (3,), (1,), 0, "pickle is damaged"),
        (5, (5,), (1,), 0, "the storage '0' should have 20 bytes, the file has 24"),
        (6, (7,), (1,), 0, "does not fit into its storage"),
        (6, (6,), (1,), 1, "does not fit into its storage"),
        (6, (3,), (3,), 0, "does not fit into its storage"),
        (6, (2**20, 2**20), (0, 0), 0, "does not fit into its storage"),
        (6, (2**30, 2**30), (0, 0), 0, "impossible shape"),
        (6, (0, 2**39, 2**39), (0, 0, 0), 0, "impossible shape"),
        (6, (2,), (1,), -1, "pickle is damaged"),
        (6, (2,), (-1,), 5, "pickle is damaged"),
        (6, (2, 3), (1,), 0, "pickle is damaged"),
        (6, (2.0,), (1,), 0, "pickle is damaged"),
        (-6, (2,), (1,), 0, "pickle is damaged"),
    ],
)
def test_tensors_that_claim_what_is_not_there(make, write, container, numel, shape, strides, offset, message):
    view = () if container == "zip" else (None,)
    state = {"x": make.tensor(make.storage("0", numel, "FloatStorage", *view), shape, strides, offset)}
    refused(make, write(content(make, container, state, {"0": bytes(24)}, {"0": 6})), message)


def test_the_same_numbers_too_often(make, write):
    state = {f"x{n}": make.tensor(make.storage("0", 1000), (1000,), (1,)) for n in range(17)}
    refused(make, write(make.zipped(state, {"0": bytes(4000)})), "the same numbers more than 16 times over")
    del state["x3"]
    assert len(interop.read_weights(write(make.zipped(state, {"0": bytes(4000)}))).arrays) == 16


def test_odd_archives(make, write, example):
    state, storages = make.described(example, False)

    def archive(**entries):
        return write(make.zipped(state, storages, **entries))

    refused(make, archive(compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")
    refused(make, archive(byteorder="big"), "big-endian")
    refused(make, archive(**{"constants.pkl": "x"}), "TorchScript program")
    refused(make, write(make.zipped(b"\x80\x02" + bytes(33 << 20), {})), "pickle is larger than 32 MB")
    refused(make, write(make.zipped(state, storages | {"0": storages["0"][:-4]})), "should have 720 bytes")
    del storages["0"]
    refused(make, write(make.zipped(state, storages)), "the storage '0' is missing")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as other:
        other.writestr("word/document.xml", "text")
    refused(make, write(stream.getvalue()), "not one of PyTorch: it has no data.pkl")
    refused(make, write(stream.getvalue()[:60]), "cannot be read as one")


def test_a_bomb_of_nested_zeros(make, write):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20 << 20))
    refused(make, write(stream.getvalue()), "compressed or encrypted")


def test_overlapping_entries(make, write):
    """Many entries of the archive's directory that all point to the same bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", make.pickled({}))
        archive.writestr("archive/data/0", bytes(100_000))
        entry = archive.getinfo("archive/data/0")
        for number in range(1, 100):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.file_size, copy.compress_size = entry.header_offset, 100_000, 100_000
            copy.CRC = entry.CRC
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    refused(make, write(stream.getvalue()), "claim more bytes than the file has")


def test_odd_stacks(make, write, example):
    state, storages = make.described({"x": np.zeros(6, np.float32)}, True)
    whole = make.stacked(state, storages, {"0": 6})
    refused(make, write(make.stacked(state, storages, {"0": 6}, little_endian=False)), "big-endian")
    refused(make, write(whole[:-1]), "goes beyond the end of the file")
    refused(make, write(make.stacked(state, storages, {"0": -6})), "goes beyond the end of the file")
    refused(make, write(make.stacked(state, storages, {"0": 2**62})), "goes beyond the end of the file")
    refused(make, write(make.stacked(state, storages | {"1": b""}, {"0": 6, "1": 0})), "nothing refers to .* '1'")
    refused(make, write(make.stacked(state, {}, {})), "the storage '0' is missing")
    two_sizes = {
        name: make.tensor(make.storage("0", n, "FloatStorage", None), (1,), (1,))
        for n, name in ((6, "a"), (5, "b"))
    }
    refused(make, write(make.stacked(two_sizes, storages, {"0": 6})), "two sizes or types")
    outside = {"x": make.tensor(make.storage("0", 6, "FloatStorage", ("0.1", 4, 3)), (1,), (1,))}
    refused(make, write(make.stacked(outside, storages, {"0": 6})), "lies outside of it")
    module = {"x": make.Persistent("module", None, "file.py", "import os")}
    refused(make, write(make.stacked(module, {}, {})), "a whole module with its source code")


@pytest.mark.parametrize("value", [{}, {"epoch": 3, "name": "x"}, [], 3, None, {"state_dict": {}}])
def test_no_state_dict(make, write, value):
    refused(make, write(make.zipped(value, {})), "holds no state dict")


# -------------------------------------------------------------------------------------------------------- writing


def test_written_files_come_back(tmp_path, example):
    path = tmp_path / "weights.pth"
    interop.write_weights(path, example, interop.TORCHVISION)
    weights = interop.read_weights(path)
    same(weights.arrays, example)
    assert weights.convention == interop.TORCHVISION
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pth"]


def test_the_same_weights_are_the_same_file(tmp_path, example):
    interop.write_weights(tmp_path / "a.pth", example)
    interop.write_weights(tmp_path / "b.pth", example)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_storages_are_aligned_and_whole(tmp_path, example):
    interop.write_weights(tmp_path / "a.pth", example)
    content = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
    for array in example.values():
        if array.nbytes > 16:
            assert content.index(array.tobytes()) % 64 == 0


def test_what_cannot_be_written(tmp_path):
    for array, message in (
        (np.zeros(2, np.uint16), "uint16 are not written as .pth; write .safetensors"),
        (np.array(["x"]), "cannot be written; convert them to float32"),
        (np.array([None]), "type object cannot be written"),
    ):
        with pytest.raises(WeightsError, match=message):
            interop.write_weights(tmp_path / "a.pth", {"x": array})
    with pytest.raises(WeightsError, match=r"must end in \.pth, \.pt, \.safetensors"):
        interop.write_weights(tmp_path / "a.npz", {})
    with pytest.raises(FileNotFoundError):
        interop.write_weights(tmp_path / "nowhere" / "a.pth", {})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- with PyTorch


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch(torch, tmp_path, zipped, protocol):
    base = torch.arange(24.0).reshape(4, 6)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (3, 2)), torch.nn.BatchNorm2d(4), torch.nn.Linear(3, 5))
    state = net.state_dict()
    state |= {"base": base, "transposed": base.t(), "part": base[1:, 2:5:2], "parameter": net[0].bias}
    state |= {"bfloat16": torch.randn(3, 2).bfloat16(), "empty": torch.zeros(0, 3), "flags": base[0] > 2}
    for name in ("float64", "float16", "int32", "int16", "int8", "uint8", "complex64", "complex128"):
        state[name] = torch.tensor([1, 2, 3]).to(getattr(torch, name))
    torch.save(
        {"state_dict": state, "epoch": 3},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
        pickle_protocol=protocol,
    )
    weights = interop.read_weights(tmp_path / "a.pth")
    assert weights.container == ("zip" if zipped else "stacked pickles")
    assert list(weights.arrays) == list(state)
    for name, value in state.items():
        expected = value.float() if value.dtype == torch.bfloat16 else value
        np.testing.assert_array_equal(weights.arrays[name], expected.detach().numpy(), strict=True, err_msg=name)


@pytest.mark.oracle
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_and_modules_of_pytorch_are_refused(torch, tmp_path, zipped):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    for value, name in (
        ({"args": argparse.Namespace(lr=0.1), "state_dict": net.state_dict()}, r"argparse\.Namespace"),
        ({"best": np.float64(0.5), "state_dict": net.state_dict()}, r"multiarray\.scalar, numpy\.dtype"),
        (net, r"torch\.nn\.modules\.container\.Sequential"),
    ):
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=name):
            interop.read_weights(tmp_path / "a.pth")


@pytest.mark.oracle
def test_torchscript_is_refused(torch, tmp_path):
    stream = tmp_path / "a.pth"
    with pytest.warns(DeprecationWarning):
        torch.jit.script(torch.nn.ReLU()).save(str(stream))
    with pytest.raises(WeightsError, match="TorchScript program"):
        interop.read_weights(stream)


@pytest.mark.oracle
@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_reads_what_is_written(torch, tmp_path, example, mapped):
    example["transposed"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    example["a long name, größer than 255 bytes" + 300 * "x"] = np.zeros(2, np.float32)
    interop.write_weights(tmp_path / "a.pth", example, interop.CAFFE)
    found = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
    assert list(found) == list(example)
    for name, array in example.items():
        np.testing.assert_array_equal(found[name].numpy(), array, strict=True)
