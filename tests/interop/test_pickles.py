"""The reader of pickles: what a state dict needs works, and nothing else does anything."""

import collections
import io
import pickle

import pytest

from tinyseg.interop import pickles
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.pickles import Stub

TABLE = {("collections", "OrderedDict"): Stub(call=pickles.ordered_dict), ("torch", "FloatStorage"): Stub("f4")}


def read(content, persistent=None):
    return pickles.read(io.BytesIO(content), TABLE, persistent)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        255,
        65535,
        -(2**31),
        2**70,
        1.5,
        float("inf"),
        True,
        None,
        "",
        "größer 漢字",
        "x" * 300,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        [[1], [2, 3]],
        {},
        {"a": 1},
        {"a": {1: 2}, "b": [(3,), "c"]},
    ],
)
def test_plain_values(value, protocol):
    # The standard pickler writes what is expected here.
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


def test_shared_objects_stay_shared():
    shared = ["x"]
    first, second = read(pickle.dumps([shared, shared], 2))
    assert first is second


@pytest.mark.parametrize("protocol", [2, 4])
def test_ordered_dict_with_attributes(protocol):
    state = collections.OrderedDict(b=1, a=2)
    state._metadata = collections.OrderedDict({"": {"version": 2}})  # type: ignore[attr-defined]
    found = read(pickle.dumps(state, protocol))
    assert list(found.items()) == [("b", 1), ("a", 2)]
    assert found.metadata == {"": {"version": 2}}


def test_ordered_dict_of_python_2():
    assert read(b"ccollections\nOrderedDict\n(]](U\x01aK\x01eat R.".replace(b" ", b"")) == {"a": 1}


def test_several_pickles_in_one_stream():
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 2) + b"rest")
    assert pickles.read(stream, {}) == 1
    assert pickles.read(stream, {}) == "two"
    assert stream.read() == b"rest"


def test_persistent_ids(make):
    content = make.pickled([make.Persistent("storage", 3)])
    assert read(content, lambda identity: identity[::-1]) == [(3, "storage")]
    with pytest.raises(WeightsError, match="refers to a storage where there can be none"):
        read(content)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def harm(tmp_path):
    """A file that every attack below tries to make."""
    return tmp_path / "harm"


def call(make, module, name, *arguments):
    return make.pickled({"weight": [1, make.Call(make.Global(module, name), *arguments)]})


class Reduced:
    """Pickled as a call of eval."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("subprocess", "call"),
        ("torch._utils", "os.system"),
        ("torch", "load"),
        ("torch", "FloatStorage.__class__"),
        ("collections", "OrderedDict.__init__"),
        ("argparse", "Namespace"),
    ],
)
def test_names_outside_the_table_are_refused_and_listed(make, harm, module, name):
    code = f"touch {harm}" if name.endswith(("system", "call")) else f"open({str(harm)!r}, 'w')"
    with pytest.raises(
        WeightsError, match=rf"holds the object {module}\.{name}, and making these could run any code"
    ):
        read(call(make, module, name, code))
    assert not harm.exists()


def test_the_attack_works_on_the_standard_reader(make, harm):
    """Otherwise the test above would prove nothing."""
    pickle.loads(call(make, "builtins", "eval", f"open({str(harm)!r}, 'w').close()"))
    assert harm.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_reduced_object_is_refused_in_every_protocol(harm, protocol):
    content = pickle.dumps([Reduced(f"open({str(harm)!r}, 'w')")], protocol)
    with pytest.raises(WeightsError, match=r"_?builtin(s|__)\.eval"):
        read(content)
    assert not harm.exists()


def test_all_refused_names_are_listed(make):
    inner = make.Call(make.Global("importlib", "import_module"), "os")
    content = make.pickled(
        [make.Call(make.Global("builtins", "getattr"), inner, "system"), collections.OrderedDict()]
    )
    with pytest.raises(WeightsError, match=r"the objects builtins\.getattr, importlib\.import_module, and"):
        read(content)


def test_a_refused_name_cannot_spoil_the_terminal(make):
    with pytest.raises(WeightsError, match=r"\?\[31m") as caught:
        read(make.pickled(make.Global("evil", "\x1b[31m" + 500 * "x")))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(ios\nsystem\n.", "the instruction INST"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"P0\n.", "the instruction PERSID"),
        (b"]\x8f(K\x01\x90.", "the instruction EMPTY_SET"),
        (b"\x96\x01\0\0\0\0\0\0\0x.", "the instruction BYTEARRAY8"),
    ],
)
def test_other_instructions_are_refused(content, message):
    with pytest.raises(WeightsError, match=message):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"K",
        b"K\x01",
        b"\xff.",
        b"(.",  # a mark is left over
        b"K\x01\x85\x85\x86.",  # too few objects
        b"e.",
        b"K\x01K\x02s.",  # SETITEM without a dict
        b"}(K\x01u.",  # a key without value
        b"}]K\x01s.",  # a list as a key
        b"h\x05.",  # nothing has that place in the memo
        b"K\x01)R.",  # a number is called
        b"ctorch\nFloatStorage\n)R.",  # a type is called
        b"ccollections\nOrderedDict\nK\x05\x85R.",
        b"}}b.",  # BUILD of something else than a state dict
        b"ccollections\nOrderedDict\n)RK\x01b.",
        b"X\xff\xff\xff\x7fabc.",  # a string of 2 GB
        b"\x8b\xff\xff\xff\x7fabc.",  # a number of 2 GB
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"Iabc\n.",
    ],
)
def test_damaged_pickles(content, make):
    with make.little_memory(), pytest.raises(WeightsError, match=r"pickle"):
        read(content)


def test_a_far_place_in_the_memo_takes_no_memory(make):
    with make.little_memory():
        assert read(b"K\x07r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") == 7


def test_keys_whose_hash_takes_for_ever_are_refused():
    bomb = b")" + 60 * b"2\x86"  # a pair of twice the same, 60 levels deep
    with pytest.raises(WeightsError, match="damaged"):
        read(b"}" + bomb + b"Ns.")


@pytest.mark.parametrize(
    "content",
    [
        b"N0" * 600_000 + b"N.",
        # A list of 1000 pairs is made once, and 2000 dicts from it.
        b"](" + 1000 * b"U\x01aK\x01\x86" + b"eq\x000" + 2000 * b"ccollections\nOrderedDict\nh\x00\x85R0" + b"N.",
    ],
)
def test_endless_pickles_end(content):
    with pytest.raises(WeightsError, match="more than 1,000,000 instructions"):
        read(content)


@pytest.mark.parametrize("key", ["x" * 1001, 2**63, -(2**70)])
def test_long_keys_are_refused(key):
    """One of 10 MB, taken from the memo 100,000 times, would be hashed or compared as often."""
    with pytest.raises(WeightsError, match="damaged"):
        read(pickle.dumps({key: 1}, 2))
