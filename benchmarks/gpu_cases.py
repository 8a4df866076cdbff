"""The operators that are timed on a GPU, as data: shapes, both libraries' calls, operations, bytes and goals.

Shapes are N H W C and R S C O, all numbers are float32. A case has several passes, each timed alone. What a pass
costs at least:

* operations: two for each multiplication with an element inside the image, as the formula has them. Zeros of the
  padding are not multiplied with, so a large dilation costs less than its nine taps.
* bytes: every array that goes in is read once, every result is written once; more often where it cannot be done
  with one look at all numbers (statistics of a batch before the first normalised number).

The goals are torch's time divided by ours, at least.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.nn import functional as tf

from tinyseg import ops

FLOAT32, TF32 = "float32", "TF32"

DENSE = {FLOAT32: 1.0, TF32: 0.8}
"""The goals of convolutions that are not depthwise."""

Shape = tuple[int, ...]


class Pass(NamedTuple):
    """A direction of an operator."""

    name: str
    need: tuple[bool, ...] | None  # which gradients it makes, of x and of each of the weights; None: forward
    bytes: int
    flops: int = 0
    goals: Mapping[str, float] = {}  # by precision


class Case(NamedTuple):
    group: str
    name: str
    x: Shape  # N H W C
    weights: tuple[Shape, ...]  # R S C O, or C
    ours: Callable  # (x, *weights) -> y, cache
    ours_backward: Callable  # (dy, cache, need) -> gradients
    theirs: Callable  # (x, *weights) -> y, on torch tensors N C H W and O C R S
    passes: tuple[Pass, ...]
    precisions: tuple[str, ...] = (FLOAT32,)  # with TF32, too, where numbers are multiplied with weights
    classes: int = 0  # if not 0, labels N H W are the last argument
    tolerances: Mapping[str, float] = {}  # by precision, where they differ from the usual ones


def cases() -> Iterator[Case]:
    yield from _dense()
    yield from _dilated()
    yield from _depthwise()
    yield from _transposed()
    yield from _pooling()
    yield from _batch_norm()
    yield from _resize()
    yield from _cross_entropy()


def _dense() -> Iterator[Case]:
    for size, channels, out in ((256, 3, 64), (256, 64, 64), (128, 128, 128), (64, 256, 256), (32, 512, 512)):
        yield conv2d("dense", f"3x3, {channels} to {out}", (8, size, size, channels), (3, 3, channels, out))


def _dilated() -> Iterator[Case]:
    for size, channels in ((65, 256), (33, 2048)):  # the second is the pyramid on top of a ResNet
        for rate in (6, 12, 18):
            name = f"3x3, rate {rate}, {channels} to 256"
            yield conv2d("dilated", name, (8, size, size, channels), (3, 3, channels, 256), dilation=rate)


def _depthwise() -> Iterator[Case]:
    goals = {FLOAT32: 1.3}
    yield conv2d("depthwise", "depthwise 3x3, 64", (8, 256, 256, 64), (3, 3, 1, 64), goals=goals)
    yield conv2d("depthwise", "depthwise 3x3, 256", (8, 64, 64, 256), (3, 3, 1, 256), goals=goals)


def conv2d(
    group: str,
    name: str,
    x: Shape,
    w: Shape,
    *,
    dilation: int = 1,
    goals: Mapping[str, float] = DENSE,
) -> Case:
    """A convolution whose result has the size of its image. The shapes say whether it is depthwise."""
    before = dilation * (w[0] - 1) // 2
    (N, H, W, _), (R, S, in_group, O) = x, w
    flops = 2 * N * in_group * O * _taps(H, R, dilation, before) * _taps(W, S, dilation, before)
    y = (N, H, W, O)

    def ours(x, w):
        return ops.conv2d(x, w, padding=before, dilation=dilation, groups=x.shape[3] // w.shape[2])

    def theirs(x, w):
        return tf.conv2d(x, w, padding=before, dilation=dilation, groups=x.shape[1] // w.shape[1])

    passes = _with_weights(x, w, y, flops, goals)
    backward, precisions = _backward(ops.conv2d_backward), (FLOAT32, TF32)
    return Case(group, f"convolution {name}", x, (w,), ours, backward, theirs, passes, precisions)


def _transposed() -> Iterator[Case]:
    for size, channels, out in ((128, 128, 64), (16, 1024, 512)):
        x, w = (8, size, size, channels), (2, 2, out, channels)
        y = (8, 2 * size, 2 * size, out)
        passes = _with_weights(x, w, y, 2 * math.prod(x) * 4 * out, {FLOAT32: 1.0})
        yield Case(
            "transposed",
            f"transposed convolution 2x2, stride 2, {channels} to {out}",
            x,
            (w,),
            lambda x, w: ops.conv_transpose2d(x, w, stride=2),
            _backward(ops.conv_transpose2d_backward),
            lambda x, w: tf.conv_transpose2d(x, w, stride=2),
            passes,
            (FLOAT32, TF32),
        )


def _pooling() -> Iterator[Case]:
    x = (8, 256, 256, 64)
    for kernel, padding in ((2, 0), (3, 1)):
        y = (8, 128, 128, 64)
        traffic = _bytes(x, y) + math.prod(y)  # where the largest was: one byte each
        yield Case(
            "pooling",
            f"max pooling {kernel}x{kernel}, stride 2, 64",
            x,
            (),
            lambda x, kernel=kernel, padding=padding: ops.max_pool2d(x, kernel, stride=2, padding=padding),
            _backward_of_one(ops.max_pool2d_backward),
            lambda x, kernel=kernel, padding=padding: tf.max_pool2d(x, kernel, 2, padding),
            _both_ways(traffic, traffic, {FLOAT32: 1.0}, {FLOAT32: 1.0}),
        )


def _batch_norm() -> Iterator[Case]:
    for x in ((8, 256, 256, 64), (8, 32, 32, 512)):
        C = x[3]
        # First the sums of each channel, then the result: x twice and y; backward x and dy twice, and dx.
        forward = Pass("forward", None, _bytes(x, x, x), goals={FLOAT32: 1.0})
        backward = Pass("backward", (True, True, True), _bytes(x, x, x, x, x), goals={FLOAT32: 1.0})
        yield Case(
            "normalisation",
            f"batch norm and ReLU, {C}",
            x,
            ((C,), (C,)),
            lambda x, gamma, beta: ops.batch_norm(x, gamma, beta, relu=True),
            _backward(ops.batch_norm_backward),
            lambda x, gamma, beta: tf.relu_(tf.batch_norm(x, None, None, gamma, beta, training=True)),
            (forward, backward),
            # A sum that rounding moves across 0 has another gradient altogether: one in ten million does.
            tolerances={FLOAT32: 2e-3},
        )


def _resize() -> Iterator[Case]:
    for x in ((8, 128, 128, 64), (8, 128, 128, 21)):
        N, H, W, C = x
        traffic = _bytes(x, (N, 2 * H, 2 * W, C))
        yield Case(
            "resize",
            f"bilinear resize x2, {C}",
            x,
            (),
            lambda x: ops.resize(x, scale=2, mode="bilinear"),
            _backward_of_one(ops.resize_backward),
            lambda x: tf.interpolate(x, scale_factor=2, mode="bilinear"),
            _both_ways(traffic, traffic, {FLOAT32: 1.0}, {FLOAT32: 2.0}),
        )


def _cross_entropy() -> Iterator[Case]:
    x = (8, 512, 512, 21)
    labels = 8 * math.prod(x[:3])  # bytes
    yield Case(
        "loss",
        "softmax cross-entropy, 21 classes",
        x,
        (),
        ops.cross_entropy,
        _backward_of_one(ops.cross_entropy_backward),
        tf.cross_entropy,
        _both_ways(_bytes(x) + labels, _bytes(x, x) + labels, {}, {}),
        classes=21,
    )


# -------------------------------------------------------------------------------------------------------- passes


def _with_weights(x: Shape, w: Shape, y: Shape, flops: int, goals: Mapping[str, float]) -> tuple[Pass, ...]:
    """All passes of a product of images and weights: each touches all three arrays once."""
    traffic = _bytes(x, w, y)
    return (
        Pass("forward", None, traffic, flops, goals),
        Pass("data gradient", (True, False), traffic, flops, goals),
        Pass("weight gradient", (False, True), traffic, flops, goals),
    )


def _both_ways(
    forward: int, backward: int, forward_goals: Mapping[str, float], backward_goals: Mapping[str, float]
) -> tuple[Pass, ...]:
    return (
        Pass("forward", None, forward, goals=forward_goals),
        Pass("backward", (True,), backward, goals=backward_goals),
    )


def _backward(function: Callable) -> Callable[[Any, Any, Sequence[bool]], Any]:
    """With several gradients: those that are not needed are not made."""

    def run(dy, cache, need):
        missing = 3 - len(need)  # a bias that is absent
        return function(dy, cache, need=(*need, *(False,) * missing))

    return run


def _backward_of_one(function: Callable) -> Callable[[Any, Any, Sequence[bool]], Any]:
    return lambda dy, cache, need: function(dy, cache)


def _bytes(*shapes: Shape) -> int:
    """Of float32 arrays."""
    return 4 * sum(map(math.prod, shapes))


def _taps(size: int, kernel: int, dilation: int, before: int) -> int:
    """Along one axis: how many pairs of an output and a tap meet an element, and not the padding."""
    source = np.arange(size)[:, None] + np.arange(kernel) * dilation - before
    return int(((source >= 0) & (source < size)).sum())
