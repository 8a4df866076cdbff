"""Single operators, forward and backward, against PyTorch on the CPU.

Each case names an operator, the shapes of its float32 inputs, and how the same is written in both libraries. The
layout is each one's own: (N, H, W, C) here, and in PyTorch the better of its two memory formats.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as tf

from benchmarks import harness
from tinyseg import ops

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One operator with one set of shapes. `x` is N H W C; `weights` are R S C O or (C,)."""

    name: str
    x: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    ours: Callable  # (x, *weights) -> y, cache
    ours_backward: Callable  # (dy, cache) -> gradients
    theirs: Callable  # (x, *weights) -> y, on torch tensors N C H W and O C R S


def cases() -> Iterator[Case]:
    yield conv("3x3, 3 to 32", (4, 256, 256, 3), (3, 3, 3, 32), padding=1)
    yield conv("3x3, 32 to 32", (2, 256, 256, 32), (3, 3, 32, 32), padding=1)
    yield conv("3x3, 64 to 64", (2, 128, 128, 64), (3, 3, 64, 64), padding=1)
    yield conv("3x3, 256 to 256", (4, 32, 32, 256), (3, 3, 256, 256), padding=1)
    yield conv("3x3 stride 2, 64 to 128", (2, 128, 128, 64), (3, 3, 64, 128), padding=1, stride=2)
    yield conv("3x3 dilation 6, 256 to 256", (2, 33, 33, 256), (3, 3, 256, 256), padding=6, dilation=6)
    yield conv("1x1, 256 to 64", (2, 64, 64, 256), (1, 1, 256, 64))
    yield conv("depthwise 3x3, 256", (2, 64, 64, 256), (3, 3, 1, 256), padding=1, groups=256)
    yield Case(
        "transposed convolution 2x2 stride 2, 64 to 32",
        (4, 128, 128, 64),
        ((2, 2, 32, 64),),
        lambda x, w: ops.conv_transpose2d(x, w, stride=2),
        ops.conv_transpose2d_backward,
        lambda x, w: tf.conv_transpose2d(x, w, stride=2),
    )
    yield Case(
        "batch norm and ReLU, 32",
        (4, 256, 256, 32),
        ((32,), (32,)),
        lambda x, gamma, beta: ops.batch_norm(x, gamma, beta, relu=True),
        ops.batch_norm_backward,
        lambda x, gamma, beta: tf.relu(tf.batch_norm(x, None, None, gamma, beta, training=True)),
    )
    yield Case(
        "max pooling 2x2, 32",
        (4, 256, 256, 32),
        (),
        lambda x: ops.max_pool2d(x, 2),
        ops.max_pool2d_backward,
        lambda x: tf.max_pool2d(x, 2),
    )
    yield Case(
        "bilinear resize x2, 32",
        (4, 128, 128, 32),
        (),
        lambda x: ops.resize(x, scale=2, mode="bilinear"),
        ops.resize_backward,
        lambda x: tf.interpolate(x, scale_factor=2, mode="bilinear"),
    )
    yield cross_entropy("softmax cross-entropy, 21 classes", (4, 256, 256, 21))


def conv(name: str, x: tuple[int, ...], w: tuple[int, ...], **options: int) -> Case:
    return Case(
        f"convolution {name}",
        x,
        (w,),
        lambda x, w: ops.conv2d(x, w, **options),
        ops.conv2d_backward,
        lambda x, w: tf.conv2d(x, w, **options),
    )


def cross_entropy(name: str, x: tuple[int, ...]) -> Case:
    labels = np.random.default_rng(1).integers(0, x[3], x[:3])
    tensor = torch.from_numpy(labels)
    return Case(
        name,
        x,
        (),
        lambda x: ops.cross_entropy(x, labels),
        ops.cross_entropy_backward,
        lambda x: tf.cross_entropy(x, tensor),
    )


# ------------------------------------------------------------------------------------------------------ measuring


def measure(case: Case) -> dict[str, Any]:
    """The row of one case: milliseconds of both, forward and backward, and how far each is from float64."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (case.x, *case.weights)]
    y, cache = case.ours(*arrays)
    dy = rng.standard_normal(y.shape).astype(np.float32) if y.ndim else np.float32(1)[...]

    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    errors = _check(case, arrays, dy)
    forward, backward = {"tinyseg": lambda: case.ours(*arrays)}, {"tinyseg": lambda: case.ours_backward(dy, cache)}
    for name, memory_format in formats.items():
        tensors = [to_torch(array, memory_format).requires_grad_() for array in arrays]
        result = case.theirs(*tensors)
        upstream = to_torch(np.asarray(dy), memory_format)

        def run_forward(tensors=tensors):
            return case.theirs(*tensors)

        def run_backward(result=result, tensors=tensors, upstream=upstream):
            return torch.autograd.grad(result, tensors, upstream, retain_graph=True)

        forward[name], backward[name] = run_forward, run_backward

    row: dict[str, Any] = {"name": case.name, "x": case.x, "weights": case.weights, "errors": errors}
    for direction, contenders in (("forward", forward), ("backward", backward)):
        timings = harness.alternate(contenders)
        ours = timings.pop("tinyseg")
        fastest = min(timings, key=lambda name: timings[name].median)
        row[direction] = {
            "tinyseg": asdict(ours),
            "torch": asdict(timings[fastest]) | {"memory format": fastest},
            "ratio": round(timings[fastest].median / ours.median, 3),
        }
    return row


def _check(case: Case, arrays: list[np.ndarray], dy: np.ndarray) -> dict[str, float]:
    """Compare y and all gradients of both libraries with PyTorch in float64."""

    def torch_results(dtype: torch.dtype) -> list[np.ndarray]:
        tensors = [to_torch(array).to(dtype).requires_grad_() for array in arrays]
        y = case.theirs(*tensors)
        gradients = torch.autograd.grad(y, tensors, to_torch(np.asarray(dy)).to(dtype))
        return [from_torch(tensor) for tensor in (y, *gradients)]

    exact = torch_results(torch.float64)
    y, cache = case.ours(*arrays)
    gradients = case.ours_backward(dy, cache)
    ours = [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]
    errors = {}
    for who, results in (("tinyseg", [r for r in ours if r is not None]), ("torch", torch_results(torch.float32))):
        errors[who] = max(
            harness.require_close(case.name, who, result, truth, TOLERANCE)
            for result, truth in zip(results, exact, strict=True)
        )
    return errors


def to_torch(array: np.ndarray, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """N H W C or R S C O to what PyTorch calls N C H W and O C R S. Other numbers of axes stay as they are."""
    if array.ndim != 4:
        return torch.from_numpy(np.array(array))
    order = (3, 2, 0, 1) if is_kernel(array) else (0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order))).to(memory_format=memory_format)


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    if array.ndim != 4:
        return array
    return array.transpose(2, 3, 1, 0) if max(array.shape[2:]) <= 3 else array.transpose(0, 2, 3, 1)


def is_kernel(array: np.ndarray) -> bool:
    """Images here are larger than 3 x 3 pixels, and kernels are not."""
    return max(array.shape[:2]) <= 3
