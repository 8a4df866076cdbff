"""Arrays of more than 8 GiB, 2^31 numbers and more: an offset that is calculated in 32 bits comes out wrong.

A batch of copies of one image, with another one at its end, costs one upload and some copies on the GPU. Most
operators treat images apart, so that the ends of such a batch must become what they become in a batch of these two
alone, to the last bit. The same is done with all images one below the other: the long image is as large, and what
happens at its ends knows nothing of its length.

A GPU played by the host does all that with a few small images: it shows that the tests are right, and not that the
kernels are.
"""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import host_gpu
import numpy as np
import pytest

from tinyseg import crf, cuda, ops
from tinyseg.ops import sums
from tinyseg.ops.dropout import _philox, random_words
from tinyseg.optim import SGD, Adam, AdamW, RMSprop, clip_gradients
from tinyseg.tape import Tensor

LARGE = 2**33  # bytes of an array: 2^31 numbers of float32, 2^32 of bfloat16
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the largest number, where sums have another order


class Batches:
    """Batches of images on the device of a test."""

    def __init__(self, rng: np.random.Generator, is_real: bool):
        self.rng, self.is_real = rng, is_real
        self.size = (1000, 1032) if is_real else (12, 14)  # H, W

    def numbers(self, *shape: int, dtype) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32).astype(dtype)

    def pair(self, channels: int, dtype, size: tuple[int, int] | None = None) -> np.ndarray:
        """Two images, on the host."""
        return self.numbers(2, *(size or self.size), channels, dtype=dtype)

    def count(self, image_bytes: int) -> int:
        """How many images of so many bytes are more than LARGE: at least two begin beyond it."""
        return LARGE // image_bytes + 3 if self.is_real else 5

    def stack(self, pair: np.ndarray, count: int):
        """A batch on the device: copies of the first of the pair, and at last the second."""
        batch, done = cuda.empty((count, *pair.shape[1:]), pair.dtype), 1
        cuda.write(batch[:1], pair[:1])
        while done < count - 1:
            more = min(done, count - 1 - done)
            cuda.write(batch[done : done + more], batch[:more])
            done += more
        cuda.write(batch[-1:], pair[1:])
        return batch

    def need(self, arrays: float) -> None:
        """Skip the test if there is no room for so many arrays."""
        memory = cuda.memory()
        room = memory.free + memory.reserved - memory.used
        if self.is_real and room < (arrays + 0.5) * LARGE:
            pytest.skip(f"it takes {(arrays + 0.5) * LARGE / 2**30:.0f} GiB of the GPU's memory: {memory}")


@pytest.fixture
def batches(machine):
    device = machine.devices[0]
    is_real = not isinstance(device, host_gpu.HostGpu)
    with cuda.on(device):
        yield Batches(machine.rng, is_real)
    if is_real:
        gc.collect()
        device.cupy.get_default_memory_pool().free_all_blocks()


@pytest.fixture(params=["float32", "bfloat16"])
def stored(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(np.float32)


def one_below_the_other(batch):
    return batch.reshape(1, -1, *batch.shape[2:])


def ends(array, of_two) -> list[np.ndarray]:
    """Of a batch, or of a long image, the parts that must be those of the batch of two, or of their image."""
    if len(array) > 1:
        parts = (array[:1], array[-1:])
    else:
        half = of_two.shape[1] // 4  # of one of the two images
        parts = (array[:, :half], array[:, -half:])
    return [numbers(part) for part in parts]


def numbers(array) -> np.ndarray:
    host = cuda.to_host(array)
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def assert_close(result: Any, right: np.ndarray, dtype: np.dtype | None = None) -> None:
    result, allowed = numbers(result), CLOSE["float32" if dtype is None else dtype.name]
    np.testing.assert_allclose(result, right, rtol=allowed, atol=allowed * np.abs(right).max())


def equal(result, of_two) -> None:
    for end, right in zip(ends(result, of_two), ends(of_two, of_two), strict=True):
        np.testing.assert_array_equal(end, right)


# ------------------------------------------------------------------------------------ operators that look near by


class Case(NamedTuple):
    """run(x, *parameters): y and the gradient in x where the upstream gradient is y. Parameters are positive."""

    run: Callable
    channels: int = 8
    parameters: tuple[tuple[int, ...], ...] = ()  # shapes
    with_bfloat16: bool = True
    long_image: bool = True  # as well as a batch
    part: int = 1  # of LARGE that x is, where y is larger
    arrays: float = 4  # of LARGE that must have room


def there_and_back(name: str, x, *parameters, **options) -> tuple:
    y, cache = getattr(ops, name)(x, *parameters, **options)
    backward = getattr(ops, f"{name}_backward")
    if not parameters:
        return y, backward(y, cache)
    return y, backward(y, cache, need=(True, *(False for _ in parameters)))[0]


def operator(name: str, **options) -> Callable:
    return partial(there_and_back, name, **options)


def multiply(x, by: Callable) -> tuple:
    y, cache = ops.mul(x, by(x))
    return y, ops.mul_backward(y, cache, need=(True, False))[0]


def join(x) -> tuple:
    y, cache = ops.concat([x, x])
    return y, ops.concat_backward(y, cache, need=(False, True))[1]


def normalise_with_constants(x, gamma, beta, mean, var) -> tuple:
    y, cache = ops.batch_norm(x, gamma, beta, mean=mean, var=var, relu=True)
    return y, ops.batch_norm_backward(y, cache, need=(True, False, False))[0]


def pool_and_unpool(x) -> tuple:
    pooled, cache = ops.max_pool2d(x, 3, stride=2, padding=1)
    y, cache = ops.max_unpool2d(pooled, cache.index, 3, stride=2, padding=1, size=x.shape[1:3])
    return y, ops.max_unpool2d_backward(y, cache)


def convolve(algo: str, size: int, channels: int = 8, groups: int = 1, **settings) -> Case:
    run = operator("conv2d", algo=algo, padding=size // 2, groups=groups)
    return Case(run, channels, ((size, size, channels // groups, channels), (channels,)), **settings)


CASES = {
    "relu": Case(operator("relu")),
    "sigmoid": Case(operator("sigmoid")),
    "tanh": Case(operator("tanh")),
    "mul": Case(partial(multiply, by=lambda x: x)),
    "mul with one pixel": Case(partial(multiply, by=lambda x: x[0, 0, 0])),
    "cast": Case(operator("cast", dtype="float32"), arrays=6),
    "channels backwards": Case(lambda x: (cuda.contiguous(x[..., ::-1]),)),
    "softmax": Case(operator("softmax"), 21),
    "log_softmax": Case(operator("log_softmax")),
    "batch_norm with constants": Case(normalise_with_constants, parameters=((8,),) * 4),
    "local_response_norm": Case(operator("local_response_norm"), with_bfloat16=False, arrays=6),
    "max_pool2d": Case(operator("max_pool2d", kernel=3, stride=2, padding=1)),
    "max_pool2d of three channels": Case(operator("max_pool2d", kernel=2), 3),
    "max_unpool2d": Case(pool_and_unpool),
    "avg_pool2d": Case(operator("avg_pool2d", kernel=3, stride=2, padding=1)),
    "adaptive_avg_pool2d": Case(operator("adaptive_avg_pool2d", size=(5, 7)), long_image=False),
    "global_max_pool2d": Case(operator("global_max_pool2d"), long_image=False),
    "upsampling": Case(operator("resize", scale=2), part=4),
    "downsampling": Case(operator("resize", scale=0.5)),
    "gaussian_blur": Case(operator("gaussian_blur", sigma=0.8)),
    "gradient_magnitude": Case(operator("gradient_magnitude"), with_bfloat16=False, arrays=8),
    "pad": Case(operator("pad", padding=(1, 2, 3, 4), value=1.5)),
    "crop": Case(operator("crop", sides=(1, 2, 3, 4))),
    "concat": Case(join, arrays=5),
    "slice": Case(operator("slice", ranges={1: (1, -2), 2: (0, -3), 3: (1, 7)})),
    "conv2d 1 x 1, implicit_gemm": convolve("implicit_gemm", 1),
    "conv2d 3 x 3, implicit_gemm": convolve("implicit_gemm", 3),
    "conv2d of five channels": convolve("implicit_gemm", 3, channels=5),
    "conv2d 1 x 1, tensor_cores": convolve("tensor_cores", 1),
    "conv2d 3 x 3, tensor_cores": convolve("tensor_cores", 3),
    "conv2d 3 x 3, halo_tiles": convolve("halo_tiles", 3),
    "conv2d 3 x 3, winograd": convolve("winograd", 3, with_bfloat16=False),
    "conv2d 3 x 3, depthwise": convolve("depthwise", 3, groups=8),
    "conv_transpose2d": Case(operator("conv_transpose2d", stride=2), 8, ((2, 2, 8, 8), (8,)), part=4),
    "linear": Case(operator("linear"), parameters=((8, 8), (8,))),
}
SELECTED = [
    (name, layout, dtype)
    for name, case in CASES.items()
    for layout in (["a batch", "a long image"] if case.long_image else ["a batch"])
    for dtype in (["float32", "bfloat16"] if case.with_bfloat16 else ["float32"])
]


@pytest.mark.parametrize(("name", "layout", "stored"), SELECTED, indirect=["stored"])
def test_both_ends(batches, name, layout, stored):
    case = CASES[name]
    batches.need(case.arrays)
    pair = batches.pair(case.channels, stored)
    parameters = [
        cuda.to_device(batches.rng.uniform(0.5, 1.5, shape).astype(cuda.real(stored))) for shape in case.parameters
    ]
    batch, two = batches.stack(pair, batches.count(pair[0].nbytes * case.part)), cuda.to_device(pair)
    if layout == "a long image":
        batch, two = one_below_the_other(batch), one_below_the_other(two)
    results = case.run(batch, *parameters)
    if batches.is_real:
        assert max(array.size for array in (batch, *results)) > 2**31
    for result, right in zip(results, case.run(two, *parameters), strict=True):
        equal(result, right)


# ------------------------------------------------------------------------------------- sums over the whole batch


WITH_WEIGHTS = {
    "implicit_gemm": ("conv2d", (3, 3, 8, 8), {"padding": 1, "algo": "implicit_gemm"}),
    "tensor_cores": ("conv2d", (3, 3, 8, 8), {"padding": 1, "algo": "tensor_cores"}),
    "depthwise": ("conv2d", (3, 3, 1, 8), {"padding": 1, "algo": "depthwise", "groups": 8}),
    "conv_transpose2d": ("conv_transpose2d", (3, 3, 8, 8), {"padding": 1}),
    "linear": ("linear", (8, 8), {}),
}


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_gradients_of_weights(batches, stored, name):
    """The upstream gradient is zero but for the last image, to which the sums then belong."""
    batches.need(5)
    operator, shape, options = WITH_WEIGHTS[name]
    forward, backward = getattr(ops, operator), getattr(ops, f"{operator}_backward")
    w, b = (cuda.to_device(batches.numbers(*s, dtype=cuda.real(stored))) for s in (shape, (8,)))
    x, dy = batches.pair(8, stored), batches.pair(8, stored)
    dy[0] = 0
    count = batches.count(x[0].nbytes)

    def gradients(x, dy):
        _, cache = forward(x, w, b, **options)
        return backward(dy, cache, need=(False, True, True))[1:]

    results = gradients(batches.stack(x, count), batches.stack(dy, count))
    for result, right in zip(results, gradients(cuda.to_device(x[1:]), cuda.to_device(dy[1:])), strict=True):
        assert_close(result, numbers(right))


def test_sums(batches, stored):
    batches.need(1)
    x = batches.pair(8, stored)
    x[1] = x[1] + stored.type(3)  # so that one image among hundreds makes a difference
    count = batches.count(x[0].nbytes)
    batch, each = batches.stack(x, count), numbers(x).astype(np.float64).reshape(2, -1, 8).sum(axis=1)
    height, width, real = *x.shape[1:3], np.dtype(np.float32)
    total = sums.over_middle(batch, 1, count * height * width, 8, dtype=real)
    assert_close(total, ((count - 1) * each[0] + each[1])[None])
    of_images = numbers(sums.over_middle(batch, count, height * width, 8, dtype=real))
    assert_close(of_images[[0, -1]], each)
    of_rows = sums.over_middle(batch, count * height, width * 8, 1, dtype=real)
    last_row = numbers(x)[1, -1].astype(np.float64).sum()
    assert_close(of_rows[-1:], np.array([[last_row]]))


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_with_the_statistics_of_the_batch(batches, stored, relu):
    """Against the formula for a batch of two in which the first image counts as often as there are copies."""
    batches.need(4)
    x, dy = batches.pair(8, stored), batches.pair(8, stored)
    x[1] = x[1] + stored.type(3)
    gamma, beta = (batches.rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(2))
    count = batches.count(x[0].nbytes)

    def mean(array):
        first, last = array.mean(axis=(1, 2), dtype=np.float64)
        return ((count - 1) * first + last) / count

    wide = numbers(x).astype(np.float64)
    deviation = np.sqrt(mean((wide - mean(wide)) ** 2) + 1e-5)
    normalised = (wide - mean(wide)) / deviation
    right = normalised * gamma + beta
    passes = (right > 0) if relu else np.ones(right.shape, bool)
    dy[np.abs(right) < 1e-2] = 0  # whether these pass is a question of rounding
    g = numbers(dy).astype(np.float64) * passes
    slope = gamma / deviation * (g - mean(g) - normalised * mean(g * normalised))

    y, cache = ops.batch_norm(batches.stack(x, count), *map(cuda.to_device, (gamma, beta)), relu=relu)
    gradients: Any = ops.batch_norm_backward(batches.stack(dy, count), cache)
    dx, dgamma, dbeta = gradients
    pixels = count * x.shape[1] * x.shape[2]
    assert_close(cache.mean, mean(wide))
    assert_close(cache.var, deviation**2 - 1e-5)
    assert_close(dbeta, pixels * mean(g))
    assert_close(dgamma, pixels * mean(g * normalised))
    for end in (0, -1):
        assert_close(y[end], right[end] * passes[end], stored)
        assert_close(dx[end], slope[end], stored)


def test_group_norm(batches):
    """Groups are those of an image, but how their sums are split depends on the batch."""
    batches.need(4)
    x = batches.pair(8, np.float32)
    gamma, beta = (cuda.to_device(batches.numbers(8, dtype=np.float32)) for _ in range(2))

    def both(x) -> tuple:
        y, cache = ops.group_norm(x, gamma, beta, groups=2)
        return y, ops.group_norm_backward(x, cache, need=(True, False, False))[0]

    results = both(batches.stack(x, batches.count(x[0].nbytes)))
    for result, right in zip(results, both(cuda.to_device(x)), strict=True):
        for end in (0, -1):
            assert_close(result[end], numbers(right[end]))


@pytest.mark.parametrize("name", ["cross_entropy", "bce_with_logits", "dice"])
def test_losses(batches, name):
    """Against a batch of two in which the first image weighs as much as all its copies."""
    batches.need(5)
    logits = batches.pair(8, np.float32)
    logits[1] = 3 * logits[1] + 1  # so that one image among hundreds makes a difference
    targets = batches.rng.integers(0, 8, logits.shape[:3])
    if name == "bce_with_logits":
        targets = (batches.rng.random(logits.shape) < 0.3).astype(np.float32)
    if name == "dice":
        logits = 1 / (1 + np.exp(-logits))
    count = batches.count(logits[0].nbytes)
    weights = np.ones(logits.shape[:3], np.float32)
    weights[0] = count - 1
    forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
    one = cuda.to_device(np.ones((), np.float32))

    loss, cache = forward(batches.stack(logits, count), batches.stack(targets, count))
    result = backward(one, cache)
    placed = [cuda.to_device(array) for array in (logits, targets, weights)]
    right_loss, cache = forward(*placed[:2], pixel_weights=placed[2])
    right = numbers(backward(one, cache))
    np.testing.assert_allclose(cuda.to_host(loss), cuda.to_host(right_loss), rtol=1e-5)
    assert_close(result[0], right[0] / (count - 1))
    assert_close(result[-1], right[1])


# --------------------------------------------------------------------------------------------------- random masks


def test_dropout(batches, stored):
    batches.need(3)
    x = batches.pair(8, stored)
    batch = batches.stack(x, batches.count(x[0].nbytes))
    y, cache = ops.dropout(batch, rate=0.5, seed=7)
    blocks = np.arange(batch.size // 4 - x[1].size // 4, batch.size // 4, dtype=np.uint64)
    zero, low = np.uint64(0), np.uint64(2**32 - 1)
    words = _philox.function(blocks & low, blocks >> np.uint64(32), zero, zero, np.uint64(7), zero)
    kept = (np.stack(words, axis=-1) >= 2**31).reshape(x[1].shape)
    np.testing.assert_array_equal(numbers(y[-1]), numbers(2 * x[1]) * kept)
    del y
    dx = ops.dropout_backward(batch, cache)
    np.testing.assert_array_equal(numbers(dx[-1]), numbers(2 * x[1]) * kept)


def test_dropout_of_channels(batches, stored):
    batches.need(2)
    x = batches.pair(8, stored)
    count = batches.count(x[0].nbytes)
    y, _ = ops.dropout(batches.stack(x, count), rate=0.5, seed=7, channels=True)
    kept = random_words(8 * count, seed=7)[-8:] >= 2**31
    np.testing.assert_array_equal(numbers(y[-1]), numbers(2 * x[1]) * kept)


# ----------------------------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {"weight_decay": 0.1}), (RMSprop, {"momentum": 0.5})],
)
def test_optimisers(batches, kind, options):
    """One parameter, all images of the batch."""
    batches.need(5)
    values, slopes = batches.pair(8, np.float32), batches.pair(8, np.float32)

    def step(values, slopes):
        parameter = Tensor(values, requires_grad=True)
        optimiser = kind([parameter], lr=0.1, **options)
        for _ in range(2):
            parameter.grad = slopes
            optimiser.step()
        return parameter.data

    count = batches.count(values[0].nbytes)
    result = step(batches.stack(values, count), batches.stack(slopes, count))
    equal(result, step(cuda.to_device(values), cuda.to_device(slopes)))


def test_clipping(batches):
    batches.need(3)
    slopes = batches.pair(8, np.float32)
    count = batches.count(slopes[0].nbytes)
    parameter: Any = Tensor(cuda.empty((count, *slopes.shape[1:]), slopes.dtype), requires_grad=True)
    parameter.grad = batches.stack(slopes, count)
    norm = clip_gradients([parameter], 1.0)
    first, last = (slopes.astype(np.float64) ** 2).sum(axis=(1, 2, 3))
    right = np.sqrt((count - 1) * first + last)
    np.testing.assert_allclose(cuda.to_host(norm), right, rtol=1e-9)
    for end in (0, -1):
        assert_close(parameter.grad[end], slopes[end] / right)


# --------------------------------------------------------------------------------------------- filters of the CRF


def test_lattice_filter(batches):
    """Many labels, all of them the same; and more vertices than points."""
    batches.need(6)
    points = 1024 if batches.is_real else 40
    labels = LARGE // 4 // points + 8 if batches.is_real else 40
    kernel = crf.LatticeFilter(cuda.to_device(batches.rng.uniform(0, 32, (points, 2)).astype(np.float32)))
    column = batches.numbers(points, 1, dtype=np.float32)
    x, _ = ops.add(cuda.to_device(column), cuda.to_device(np.zeros((1, labels), np.float32)))
    y = kernel.apply(x)
    right = cuda.to_host(kernel.apply(cuda.to_device(np.repeat(column, 4, axis=1))))
    for point in (0, points // 2, points - 1):
        row = cuda.to_host(y[point])
        np.testing.assert_array_equal(row, np.full_like(row, right[point, 0]))


def test_local_filter(batches):
    """Its weights, one for each pixel and each place in the window, are the large array."""
    batches.need(2)
    window = 21 if batches.is_real else 7
    features, x = batches.pair(3, np.float32), batches.pair(4, np.float32)
    height, width = batches.size

    def filtered(features, x):
        kernel = crf.LocalFilter(features.reshape(-1, 3), size=(len(x) * height, width), window=window)
        return kernel.apply(x.reshape(-1, 4)).reshape(1, -1, width, 4)

    count = batches.count(4 * height * width * window**2)
    result = filtered(batches.stack(features, count), batches.stack(x, count))
    equal(result, filtered(cuda.to_device(features), cuda.to_device(x)))
