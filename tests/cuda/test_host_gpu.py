"""The GPU that the host plays must notice the faults that a real one would not show."""

import numpy as np
import pytest

from tinyseg import cuda


@pytest.fixture
def launch(host, tmp_path):
    """launch(source, kernel, arrays and numbers, order=, blocks= ...), with arrays copied there and back."""

    def launch(source, kernel, *arguments, order="forward", **options):
        (tmp_path / "trial.cu").write_text(source)
        file = cuda.KernelFile(str(tmp_path / "trial.cu"))
        with cuda.on(host(order)):
            placed = [cuda.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
            file.launch(kernel, *placed, **options)
            return [cuda.to_host(a) for a in placed if not isinstance(a, int | float)]

    return launch


REVERSE = """
KERNEL(64, 1) void reverse(const scalar *x, scalar *y) {
    SHARED scalar tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    SYNC();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
"""


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_threads_exchange_numbers_through_shared_memory(launch, order):
    x = np.arange(64.0)
    _, y = launch(REVERSE, "reverse", x, np.zeros(64), order=order, blocks=1)
    np.testing.assert_array_equal(y, x[::-1])


def test_a_missing_barrier_shows_as_numbers_that_were_never_written(launch):
    _, y = launch(REVERSE.replace("SYNC();", ""), "reverse", np.arange(64.0), np.zeros(64), blocks=1)
    assert np.isnan(y).any()


def test_a_barrier_for_some_threads_only(launch):
    source = REVERSE.replace("SYNC();", "if (threadIdx.x < 40) SYNC();")
    with pytest.raises(
        cuda.CudaError, match=r"threads 0 to 39 at the barrier in line 5; threads 40 to 63 finished"
    ):
        launch(source, "reverse", np.arange(64.0), np.zeros(64), blocks=1)
    # The failed launch leaves nothing behind.
    _, y = launch(REVERSE, "reverse", np.arange(64.0), np.zeros(64), blocks=1)
    assert y[0] == 63


def test_two_barriers_are_not_one(launch):
    source = REVERSE.replace("SYNC();", "if (threadIdx.x < 32)\n SYNC();\n else\n SYNC();")
    with pytest.raises(cuda.CudaError, match=r"0 to 31 at the barrier in line 6; threads 32 to 63 .* line 8"):
        launch(source, "reverse", np.arange(64.0), np.zeros(64), blocks=1)


def test_a_shuffle_needs_its_whole_warp(launch):
    source = """
KERNEL(64, 1) void sums(const scalar *x, scalar *y) {
    scalar v = x[threadIdx.x];
    if (threadIdx.x != 40)
        v = lanes_sum(v, 32);
    y[threadIdx.x] = v;
}
"""
    with pytest.raises(
        cuda.CudaError, match=r"threads 32 to 39 at the warp's exchange .* thread.* 40 to 40 finished"
    ):
        launch(source, "sums", np.arange(64.0), np.zeros(64), blocks=1)
    _, y = launch(source.replace("if (threadIdx.x != 40)", ""), "sums", np.arange(64.0), np.zeros(64), blocks=1)
    assert (y[:32] == sum(range(32))).all() and (y[32:] == sum(range(32, 64))).all()


@pytest.mark.parametrize("index", [-1, 64, 500])
def test_writing_outside_of_an_array(launch, index):
    source = f"KERNEL(32, 1) void spill(scalar *y) {{\n y[{index}] = 1;\n}}"
    with pytest.raises(cuda.CudaError, match=r"spill wrote outside of y \(64,\)"):
        launch(source, "spill", np.zeros(64), blocks=1)


def test_reading_outside_of_an_array_gives_nan(launch):
    (y,) = launch(
        "KERNEL(32, 1) void read(scalar *y) {\n y[0] = y[64] + y[-1];\n}", "read", np.zeros(64), blocks=1
    )
    assert np.isnan(y[0])


def test_writing_outside_of_dynamic_shared_memory(launch):
    source = "KERNEL(32, 1) void spill(scalar *y) {\n DYNAMIC_SHARED(scalar, tile);\n tile[32] = 1;\n}"
    with pytest.raises(cuda.CudaError, match="wrote outside its 256 bytes of shared memory"):
        launch(source, "spill", np.zeros(64), blocks=1, shared=32 * 8)


def test_loads_of_several_numbers_check_their_address(launch):
    source = "KERNEL(32, 1) void read(scalar *y) {\n y[0] = load<4>(y + 3).v[0];\n}"
    with pytest.raises(cuda.CudaError, match="an address is not a multiple of 16"):
        launch(source, "read", np.zeros(64, np.float32), blocks=1)


COPY = """
KERNEL(32, 1) void copy(const scalar *x, scalar *y, int count) {
    SHARED scalar tile[64];
    copy_async<8>(tile + threadIdx.x * 2, x + threadIdx.x * 2, threadIdx.x * 2 < count);
    close_copies();
    wait_copies<0>();
    SYNC();
    y[threadIdx.x] = tile[threadIdx.x];
    y[threadIdx.x + 32] = tile[threadIdx.x + 32];
}
"""


def test_asynchronous_copies(launch):
    x = np.arange(1, 65, dtype=np.float32)
    _, y = launch(COPY, "copy", x, np.zeros(64, np.float32), 50, blocks=1)
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 50, x, 0))


def test_asynchronous_copies_that_nobody_waits_for(launch):
    with pytest.raises(cuda.CudaError, match="asynchronous copies that it never waited for"):
        launch(COPY.replace("wait_copies<0>();", ""), "copy", *np.zeros((2, 64), np.float32), 50, blocks=1)
    late = COPY.replace("wait_copies<0>();", "").replace(
        "tile[threadIdx.x + 32];", "tile[threadIdx.x + 32];\n wait_copies<0>();"
    )
    _, y = launch(late, "copy", *np.zeros((2, 64), np.float32), 50, blocks=1)
    assert np.isnan(y).any()


TENSOR_CORE = """
KERNEL(32, 1) void multiply(const scalar *a, const scalar *b, scalar *c) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32 of_a[4], of_b[2];
    float of_c[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i)
        of_a[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i)
        of_b[i] = to_tf32(b[(t + i * 4) * 8 + g]);
    mma_tf32(of_c, of_a, of_b);
    for (int i = 0; i < 4; ++i)
        c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = of_c[i];
}
"""


def test_tensor_cores_multiply_rounded_matrices(launch, rng):
    def rounded(x):
        """To 10 bits of mantissa: the nearest."""
        mantissa, exponent = np.frexp(x.astype(np.float64))
        return np.ldexp(np.round(mantissa * 2**11), exponent - 11)

    a, b = rng.standard_normal((16, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32)
    _, _, c = launch(TENSOR_CORE, "multiply", a, b, np.zeros((16, 8), np.float32), blocks=1)
    np.testing.assert_allclose(c, rounded(a) @ rounded(b), rtol=1e-5, atol=1e-6)
    assert 1e-5 < np.abs(c - a @ b).max() < 1e-2


def test_the_order_of_threads_and_blocks_can_be_chosen(launch):
    source = "KERNEL(32, 1) void count(int *calls, int *when) {\n when[thread_number()] = calls[0]++;\n}"
    seen = {}
    for order in ("forward", "backward", "shuffled"):
        seen[order] = launch(
            source, "count", np.zeros(1, np.int32), np.zeros(96, np.int32), order=order, blocks=3
        )[1]
        assert sorted(seen[order]) == list(range(96))
    assert (seen["forward"] == np.arange(96)).all() and (seen["backward"] == np.arange(96)[::-1]).all()
    assert not (seen["shuffled"] == seen["forward"]).all()


def test_an_error_of_the_compiler_is_shown(launch):
    with pytest.raises(cuda.CudaError, match=r"trial.cu:2:.*nonsense"):
        launch("KERNEL(32, 1) void wrong(scalar *y) {\n nonsense;\n}", "wrong", np.zeros(3), blocks=1)
