"""Safetensors: what the format allows is read, and everything else is refused."""

import json
import struct

import numpy as np
import pytest

from tinyseg import interop
from tinyseg.interop import WeightsError


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_by_hand(make, write):
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F32", [2, 1], 8, 16),
        "a": entry("I64", [], 0, 8),
        "empty": entry("F16", [0, 3], 16, 16),
        "flags": entry("BOOL", [3], 16, 19),
    }
    text = json.dumps(header).encode() + b"  "  # padding is allowed
    weights = interop.read_weights(write(make.safetensors(text, struct.pack("<qff3B", -5, 1.5, -2, 0, 1, 7))))
    assert weights.container == "safetensors"
    assert list(weights.arrays) == ["b", "a", "empty", "flags"]
    np.testing.assert_array_equal(weights.arrays["a"], np.array(-5), strict=True)
    np.testing.assert_array_equal(weights.arrays["b"], np.array([[1.5], [-2]], np.float32), strict=True)
    np.testing.assert_array_equal(weights.arrays["flags"], [False, True, True], strict=True)
    assert weights.arrays["empty"].shape == (0, 3)


def test_bfloat16(make, write):
    data = np.array([0x3F80, 0xC000], np.uint16).tobytes()
    found = interop.read_weights(write(make.safetensors({"x": entry("BF16", [2], 0, 4)}, data))).arrays["x"]
    np.testing.assert_array_equal(found, np.array([1, -2], np.float32), strict=True)


F32 = entry("F32", [1], 0, 4)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": F32}, 3, "goes beyond the end of the file"),
        ({"a": F32}, 5, "bytes are left over"),
        ({"a": entry("F32", [1], 4, 8)}, 8, "a gap or an overlap before the tensor 'a'"),
        ({"a": F32, "b": entry("F32", [1], 8, 12)}, 12, "a gap or an overlap before the tensor 'b'"),
        ({"a": F32, "b": entry("F32", [1], 2, 6)}, 6, "a gap or an overlap before the tensor 'b'"),
        ({"a": F32, "b": F32}, 4, "a gap or an overlap before the tensor 'b'"),
        ({"a": entry("F32", [1], -4, 0)}, 4, "entry 'a' of its header is wrong"),
        ({"a": entry("F32", [-1], 0, 4)}, 4, "entry 'a' of its header is wrong"),
        ({"a": entry("F32", [1.0], 0, 4)}, 4, "entry 'a' of its header is wrong"),
        ({"a": entry("F32", [True], 0, 4)}, 4, "entry 'a' of its header is wrong"),
        ({"a": entry("F32", [1], 4, 0)}, 4, "gap or an overlap"),
        ({"a": entry("F32", [2], 0, 4)}, 4, "a shape that needs other bytes than it has"),
        ({"a": entry("F32", [2**39, 2**39], 0, 4)}, 4, "an impossible shape"),
        ({"a": entry("F32", [0, 2**39, 2**39], 0, 0)}, 0, "an impossible shape"),
        ({"a": entry("F32", [2**36], 0, 2**38)}, 4, "goes beyond the end of the file"),
        ({"a": entry("F8_E4M3", [4], 0, 4)}, 4, "'a' is of type F8_E4M3, which NumPy does not have"),
        ({"a": entry(["F32"], [1], 0, 4)}, 4, "entry 'a' of its header is wrong"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "entry 'a' of its header is wrong"),
        ({"a": F32 | {"more": 1}}, 4, "entry 'a' of its header is wrong"),
        ({"a": 3}, 0, "entry 'a' of its header is wrong"),
        ({"__metadata__": {"a": 1}}, 0, "metadata are not strings"),
        ({"__metadata__": ["a"]}, 0, "metadata are not strings"),
        (b'{"a": %b, "a": %b}' % (2 * (json.dumps(F32).encode(),)), 4, "a name occurs twice"),
        (b'{"a": ', 0, "header is no JSON"),
        (b'{"\xff": 1}', 0, "header is no JSON"),
        (b"{" + 100_000 * b'"a":{', 0, "header is no JSON"),
    ],
)
def test_damaged_headers(make, write, header, data, message):
    path = write(make.safetensors(header, bytes(data)))
    with make.little_memory(), pytest.raises(WeightsError, match=message):
        interop.read_weights(path)


@pytest.mark.parametrize("length", [3, 100, 100_000_001, 2**63, 2**64 - 1])
def test_headers_of_another_length(make, write, length):
    path = write(make.safetensors({"a": F32}, bytes(4), length))
    with make.little_memory(), pytest.raises(WeightsError, match="header"):
        interop.read_weights(path)


def test_written_files_come_back(tmp_path, example):
    example["uint16"] = np.array([1, 65535], np.uint16)
    example["turned"] = np.arange(6.0).reshape(2, 3).T
    convention = interop.Convention((0.5,), (0.25,), "grey", True)
    interop.write_weights(tmp_path / "a.safetensors", example, convention)
    weights = interop.read_weights(tmp_path / "a.safetensors")
    assert weights.convention == convention
    assert set(weights.arrays) == set(example)
    for name, array in example.items():
        np.testing.assert_array_equal(weights.arrays[name], array, strict=True)


def test_the_library_reads_the_same(tmp_path, example):
    import safetensors.numpy

    safetensors.numpy.save_file(example, tmp_path / "a.safetensors", {"format": "np"})
    for name, array in interop.read_weights(tmp_path / "a.safetensors").arrays.items():
        np.testing.assert_array_equal(array, example[name], strict=True)
    interop.write_weights(tmp_path / "b.safetensors", example)
    for name, array in safetensors.numpy.load_file(tmp_path / "b.safetensors").items():
        np.testing.assert_array_equal(array, example[name], strict=True)


def test_complex128_has_no_name_there(tmp_path):
    with pytest.raises(WeightsError, match="x is of type complex128, which safetensors do not have"):
        interop.write_weights(tmp_path / "a.safetensors", {"x": np.zeros(1, complex)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"mean": [0.5], "std": [0.2], "channel_order": "RGB", "align_corners": null}',
        '{"mean": [0.5], "std": [0], "channel_order": "grey", "align_corners": null}',
        '{"mean": ["x"], "std": [1], "channel_order": "grey", "align_corners": null}',
        '{"mean": [1], "std": [1], "channel_order": [], "align_corners": null}',
    ],
)
def test_damaged_conventions(make, write, text):
    path = write(make.safetensors({"__metadata__": {"tinyseg.convention": text}}))
    with pytest.raises(WeightsError, match=r"convention|channel_order"):
        interop.read_weights(path)


@pytest.mark.oracle
def test_pytorch_files(torch, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    state = {"w": torch.randn(4, 3, 2, 5), "b": torch.randn(3).bfloat16(), "h": torch.randn(2).half()}
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    for name, array in interop.read_weights(tmp_path / "a.safetensors").arrays.items():
        expected = state[name].float() if state[name].dtype == torch.bfloat16 else state[name]
        np.testing.assert_array_equal(array, expected.numpy(), strict=True)
