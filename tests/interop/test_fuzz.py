"""Damaged and hostile files: only our own error comes out, soon, and without much memory.

Whatever the bytes, there are two outcomes: arrays, or `WeightsError`. A test fails on any other exception, and
where more memory is in use than a small file can justify.
"""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseg import interop
from tinyseg.interop import WeightsError

ARRAYS = {
    "features.0.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "features.0.bias": np.array([1.5, -2], np.float32),
    "steps": np.array(7, np.int64),
}

KINDS = ("zip", "stacked", "safetensors", "written zip", "written safetensors")


@pytest.fixture(scope="module")
def valid(make, tmp_path_factory):
    """A valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    for suffix in (".pth", ".safetensors"):
        interop.write_weights(folder / f"a{suffix}", ARRAYS, interop.TORCHVISION)
    header = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    return {
        "zip": make.pth(ARRAYS),
        "stacked": make.pth(ARRAYS, "stacked"),
        "safetensors": make.safetensors(header, bytes(24)),
        "written zip": (folder / "a.pth").read_bytes(),
        "written safetensors": (folder / "a.safetensors").read_bytes(),
    }


def survives(make, path):
    """Reading ends in arrays or in our own error. Returns whether it was arrays."""
    with make.little_memory():
        try:
            weights = interop.read_weights(path)
        except WeightsError as error:
            assert str(path) in str(error)
            return False
        assert all(isinstance(array, np.ndarray) for array in weights.arrays.values())
        assert sum(array.nbytes for array in weights.arrays.values()) < 1 << 20
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_valid(make, write, valid, kind):
    assert survives(make, write(valid[kind]))


@settings(max_examples=100)
@given(content=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02\x8a\x0a", b"{"]))
def test_random_bytes(make, write, content, start):
    survives(make, write(start + content))


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation(make, write, valid, kind):
    content = valid[kind]
    for length in range(0, len(content), max(1, len(content) // 150)):
        assert not survives(make, write(content[:length]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits(make, write, valid, kind, data):
    content = bytearray(valid[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(make, write(bytes(content)))


@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits_in_the_pickle_itself(make, write, data):
    """Inside a zip archive the checksums would notice first, so the archive is made after the damage."""
    state, storages = make.described(ARRAYS, False)
    content = bytearray(make.pickled(state))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(make, write(make.zipped(bytes(content), storages)))


@settings(max_examples=100)
@given(data=st.data())
def test_spliced_pickles(make, write, data):
    """Pieces of a valid pickle in another order: stack and memo hold what no writer would have put there."""
    state, storages = make.described(ARRAYS, False)
    content = make.pickled(state)
    pieces = []
    for _ in range(data.draw(st.integers(1, 6))):
        begin = data.draw(st.integers(0, len(content) - 1))
        pieces.append(content[begin : begin + data.draw(st.integers(1, 80))])
    survives(make, write(make.zipped(b"\x80\x02" + b"".join(pieces) + b".", storages)))


@settings(max_examples=60)
@given(
    header=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from(["F32", "I8"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner)
        ),
        max_leaves=12,
    ),
    size=st.integers(0, 16),
)
def test_odd_safetensors_headers(make, write, header, size):
    survives(make, write(make.safetensors(header, bytes(size))))


@settings(max_examples=50)
@given(names=st.lists(st.text(min_size=1, max_size=20), max_size=5), content=st.binary(max_size=60))
def test_archives_of_anything(make, write, names, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in dict.fromkeys(["archive/data.pkl", *names]):
            try:
                archive.writestr(name, content)
            except (ValueError, UnicodeError):  # no name for an entry
                continue
    survives(make, write(stream.getvalue()))
