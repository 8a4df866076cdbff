"""What a launch checks and converts, and how signatures are read."""

import numpy as np
import pytest

import tinyseg
from tinyseg import cuda, ops
from tinyseg.cuda.signature import Parameter, signatures

SOURCE = """
// KERNEL(1, 1) void not_this_one(int a) {
KERNEL(64, 2) void fill(const scalar *x,
                        int64 n, scalar value, scalar *y) {
    int64 i = thread_number();
    if (i < n)
        y[i] = x ? x[i] + value : value;
}

KERNEL(32, 1) void types(uint8 *a, int b, bool c, double *sum) {
    if (thread_number() == 0)
        sum[0] = a[0] + b + (c ? 0.5 : 0);
}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "trial.cu").write_text(SOURCE)
    return cuda.KernelFile(str(tmp_path / "trial.py"))


@pytest.fixture
def on_host(host):
    with cuda.on(host()):
        yield


def test_signatures_are_read_from_the_source(file):
    assert list(file.kernels) == ["fill", "types"]
    fill = file.kernels["fill"]
    assert (fill.threads, fill.blocks, fill.register_budget) == (64, 2, 255)
    assert fill.parameters == (
        Parameter("x", "scalar", True, True),
        Parameter("n", "int64", False, False),
        Parameter("value", "scalar", False, False),
        Parameter("y", "scalar", True, False),
    )
    assert signatures("KERNEL(256, 4) void f(const int *__restrict__ a) {")["f"].register_budget == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KERNEL(THREADS, 1) void f(int n) {", "with plain numbers"),
        ("KERNEL(100, 1) void f(int n) {", "f has 100 threads; take a multiple of 32"),
        ("KERNEL(32, 1) void f(const int n[3]) {", r"cannot read the parameter 'const int n\[3\]'"),
    ],
)
def test_signatures_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        signatures(text)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_become_what_the_kernel_takes(on_host, file, dtype):
    y = cuda.empty((100,), dtype)
    file.launch("fill", None, 100, 0.1, y, threads=100)
    assert (cuda.to_host(y) == dtype(0.1)).all()
    total = cuda.empty((1,), np.float64)
    file.launch("types", cuda.to_device(np.array([250], np.uint8)), np.int64(-3), True, total, blocks=1)
    assert cuda.to_host(total) == 247.5


def test_nothing_is_done_for_nothing(on_host, file):
    y = cuda.empty((3,), np.float32)
    file.launch("fill", y, 0, 1, y, threads=0)
    file.launch("fill", y, 0, 1, y, blocks=(3, 0))
    assert np.isnan(cuda.to_host(y)).all()


def test_what_does_not_fit_is_refused(on_host, file):
    y, x = cuda.to_device(np.zeros((4, 6))), cuda.to_device(np.ones((4, 6)))

    def fill(x=x, n=24, value=1.0, y=y, **options):
        file.launch("fill", x, n, value, y, **({"threads": 24} | options))

    fill()
    with pytest.raises(TypeError, match="fill: x must be an array on the GPU, got a NumPy array; use"):
        fill(x=np.zeros(24))
    with pytest.raises(TypeError, match="fill: y must be float64, got float32"):
        fill(y=cuda.astype(y, np.float32))
    with pytest.raises(ValueError, match="fill: x must be C-contiguous; pass it through"):
        fill(x=x.transpose(1, 0))
    with pytest.raises(ValueError, match="fill: y begins between 16-byte boundaries"):
        fill(y=y.reshape(-1)[1:])
    with pytest.raises(OverflowError, match="types: b = 2147483648 does not fit into int32"):
        file.launch("types", None, 2**31, 0, y, blocks=1)
    with pytest.raises(OverflowError, match=r"fill: n = 2.5 does not fit into int64"):
        fill(n=2.5)
    with pytest.raises(TypeError, match=r"fill: value must be a number, got an array of shape \(4, 6\)"):
        fill(value=x)
    with pytest.raises(TypeError, match=r"fill takes 4 arguments \(x, n, value, y\), got 1"):
        file.launch("fill", x, threads=1)
    with pytest.raises(TypeError, match="give threads or blocks"):
        fill(blocks=1)
    with pytest.raises(ValueError, match="65536 x 1 blocks; a GPU takes up to"):
        fill(threads=None, blocks=(1, 65536))
    with pytest.raises(ValueError, match="bytes of shared memory are more than"):
        fill(shared=300_000)
    with pytest.raises(ValueError, match=r"trial\.cu is not compiled with WIDTH = 4"):
        fill(WIDTH=4)


def test_choices_that_never_meet_are_not_compiled(tmp_path):
    file = cuda.KernelFile(str(tmp_path / "trial.py"), WIDTH=(1, 4), unused=[{"SCALAR": "double", "WIDTH": 4}])
    assert [tuple(dict(choice).values()) for choice in file.configurations()] == [
        ("float", 1),
        ("float", 4),
        ("double", 1),
    ]


def test_contiguous_copies_only_what_kernels_cannot_take(on_host):
    x = cuda.to_device(np.arange(24.0).reshape(4, 6))
    assert cuda.contiguous(x) is x
    for view in (x.transpose(1, 0), x.reshape(-1)[1:]):
        copy = cuda.contiguous(view)
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(cuda.to_host(copy), cuda.to_host(view))
    with pytest.raises(TypeError, match="must all be on the GPU, got ndarray; use to_device"):
        cuda.contiguous(np.zeros(3))


def test_the_array_decides_where_an_operator_runs(on_host):
    x = np.array([-1.0, 2.0])
    y, _ = ops.relu(cuda.to_device(x))
    assert cuda.to_host(y).tolist() == [0, 2] and not isinstance(y, np.ndarray)
    with tinyseg.use("cupy"), pytest.raises(TypeError, match="must all be on the GPU"):
        ops.relu(x)
