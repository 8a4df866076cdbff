"""Windows on a grid: the arithmetic that convolution and pooling share.

Along one axis, output element p of a window operator looks at the input elements

    h = p * stride - pad_before + r * dilation,    r = 0 .. kernel - 1

and the number of outputs is, with the window's extent  e = (kernel - 1) * dilation + 1,

    out = floor((size + pad_before + pad_after - e) / stride) + 1

Source: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016, relationships 6 and 15.
"""

from collections.abc import Sequence
from typing import NamedTuple

Pair = int | tuple[int, int]
PaddingLike = int | tuple[int, int] | tuple[int, int, int, int] | str


class Padding(NamedTuple):
    """How many elements are put before the first and after the last row and column."""

    top: int
    bottom: int
    left: int
    right: int


class Window(NamedTuple):
    """A window operator on one input size: all the integers of the formulas above, for both axes."""

    size: tuple[int, int]  # H, W of the input
    kernel: tuple[int, int]  # R, S
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: Padding
    out: tuple[int, int]  # P, Q


def pair(operator: str, name: str, value: Pair, minimum: int) -> tuple[int, int]:
    """One number for both axes, or one for each (height, width)."""
    values = value if isinstance(value, Sequence) else (value, value)
    if len(values) != 2 or not all(map(_is_integer, values)):
        raise TypeError(
            f"{operator}: {name} must be an integer or a pair (height, width) of integers, got {value!r}"
        )
    if min(values) < minimum:
        raise ValueError(f"{operator}: {name} must be at least {minimum}, got {value!r}")
    return int(values[0]), int(values[1])


def padding(
    operator: str,
    value: PaddingLike,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Padding:
    """A number, a pair (height, width), four sides (top, bottom, left, right), or "same".

    "same" gives ceil(size / stride) outputs; an odd element of padding goes after the last row or column.
    """
    if isinstance(value, str):
        if value != "same":
            raise ValueError(f'{operator}: padding must be a number, 2 or 4 numbers, or "same", got {value!r}')
        sides = []
        for axis in (0, 1):
            extent = (kernel[axis] - 1) * dilation[axis] + 1
            out = -(-size[axis] // stride[axis])
            total = max((out - 1) * stride[axis] + extent - size[axis], 0)
            sides += [total // 2, total - total // 2]
        return Padding(*sides)
    if isinstance(value, Sequence) and len(value) == 4 and all(map(_is_integer, value)):
        sides = Padding(*(int(side) for side in value))
    else:
        height, width = pair(operator, "padding", value, minimum=0)  # type: ignore[arg-type]
        sides = Padding(height, height, width, width)
    if min(sides) < 0:
        raise ValueError(f"{operator}: padding must not be negative, got {value!r}; use ops.crop to cut")
    return sides


def window(
    operator: str,
    size: tuple[int, int],
    kernel: Pair,
    stride: Pair,
    padding_like: PaddingLike,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Window:
    """Check the options of a window operator against its input size, and work out its output size.

    With `ceil_mode` the last window may hang over the padded border. As in Caffe it must still start inside the
    image or its leading padding, otherwise it is dropped.
    """
    kernel = pair(operator, "kernel", kernel, minimum=1)
    stride = pair(operator, "stride", stride, minimum=1)
    dilation = pair(operator, "dilation", dilation, minimum=1)
    pad = padding(operator, padding_like, size, kernel, stride, dilation)
    out = []
    for axis, (before, after) in enumerate(((pad.top, pad.bottom), (pad.left, pad.right))):
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        room = size[axis] + before + after - extent
        count = room // stride[axis] + 1
        if ceil_mode:
            count = -(-room // stride[axis]) + 1
            if (count - 1) * stride[axis] >= size[axis] + before:
                count -= 1
        if count < 1:
            raise ValueError(
                f"{operator}: the kernel spans {extent} elements along the {('height', 'width')[axis]} "
                f"(kernel {kernel[axis]}, dilation {dilation[axis]}), but the input with its padding has only "
                f"{size[axis]} + {before} + {after}; use a larger input, more padding or a smaller kernel"
            )
        out.append(count)
    return Window(size, kernel, stride, dilation, pad, (out[0], out[1]))


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
