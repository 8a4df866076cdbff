r"""What a network is made of and what it costs: a row for every operator that its forward pass runs.

    rows = summarise(models.create("unet"), 572, 572)
    sum(row.multiply_adds for row in rows)

Nothing is computed. The network's own `forward` runs, in evaluation mode, while each function of
`tinyseg.functional` is replaced by a rule that says how large the result is; tensors hold a single zero that poses
as an array of that size. So a summary of a network of 130 million weights takes as long as one of a small one, and
it is that of the code that trains, not of a description beside it. `sketch` makes a network without its weights,
which take no memory either. (One summary at a time: the replacing is done for the whole process.)

The receptive field. Along one axis, cell i of a map sees the pixels

    i * stride + first  ..  i * stride + last

A window of kernel r, stride s, dilation d and leading padding t looks at the cells from i s - t to
i s - t + (r - 1) d,
so that after it

    first' = first - t stride,    last' = last + ((r - 1) d - t) stride,    stride' = s stride

Where maps meet (a sum, a concatenation) the field is the union. Pixels beyond the border count, as usual. An
enlargement makes the stride smaller again. Its cells differ in which cells of the small map they see (up to
ceil(k / s) of them, for a transposed convolution with kernel k and stride s) and how far off the middle; what is
given behind it is the field of one that sees most and sits in the middle, right to within the small map's stride.

Source of the recursion: Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks",
Distill 2019, equations 3 and 4.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from tinyseg import backend, functional, nn, ops
from tinyseg.backend import Array
from tinyseg.nn import layers
from tinyseg.nn.init import Fans, Initialiser, Random, Shape
from tinyseg.ops import geometry, pooling
from tinyseg.ops.conv2d import check_groups
from tinyseg.ops.geometry import Window
from tinyseg.tape import Tensor, no_grad

Number = int | float


class Row(NamedTuple):
    """One operator of a network, for one image."""

    layer: str  # the module that runs it, as in state_dict(): "contracting.0.conv1"; "" for the network itself
    operator: str  # what it does: "conv2d 3x3 /2"
    size: tuple[int, ...]  # of the result: H, W, C
    parameters: int  # that are learned; counted where they are met first
    fixed: int  # parameters that are not learned (requires_grad is off)
    multiply_adds: int  # of convolutions and matrix products; everything else counts as nothing
    memory: int  # bytes of the result, which training keeps
    receptive_field: tuple[int, int] | None  # pixels of the image, height and width; None where it is unknown
    stride: tuple[Number, Number] | None  # pixels of the image from one cell to the next


# ------------------------------------------------------------------------------------------------------- public


def summarise(network: nn.Module, height: int, width: int, *, channels: int | None = None) -> list[Row]:
    """The operators that `network` runs in evaluation on one image of height x width pixels, in their order.

    channels  of the image, if the network has no attribute `in_channels`

    The network is not changed. Raises the errors that it would raise for such an image.
    """
    channels = getattr(network, "in_channels", None) if channels is None else channels
    if channels is None:
        raise ValueError(f"summarise: {type(network).__name__} has no in_channels; give the image's channels")
    if min(height, width, channels) < 1:
        raise ValueError(f"summarise: an image of {height} x {width} pixels and {channels} channels is empty")
    dtype = next((parameter.data.dtype for parameter in network.parameters()), np.dtype(np.float32))
    recorder = _Recorder()
    image = recorder.tensor((1, height, width, channels), dtype, (PIXEL, PIXEL))
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with no_grad(), backend.use("numpy"), recorder.watching(network):
            network(image)
    finally:
        for module, training in modes:
            module.training = training
    return recorder.rows


def sketch(create: Callable[..., nn.Module], *arguments: Any, **settings: Any) -> nn.Module:
    """A network whose weights take no time to draw and no memory: each is a single zero that poses as an array.

    It can be counted and summarised, and nothing else.

    >>> sketch(models.create, "unet", 1, 2).num_parameters()
    31030658
    """

    def parameter(initialiser: Initialiser, shape: Shape, fans: Fans, rng: Random) -> nn.Parameter:
        return nn.Parameter(_zeros(shape, np.dtype(np.float32)))

    with _replaced(layers, _parameter=parameter):
        return create(*arguments, **settings)


# --------------------------------------------------------------------------------------- what a cell of a map sees


class Field(NamedTuple):
    """Along one axis, cell i of a map sees the pixels  i * stride + first .. i * stride + last."""

    stride: Fraction
    first: Fraction
    last: Fraction

    @property
    def size(self) -> int:
        return math.ceil(self.last - self.first) + 1

    def through(self, *, start: int | Fraction, span: int, stride: int | Fraction) -> "Field":
        """That of a map whose cell i looks at `span` cells of this one from i * stride + start on."""
        first = self.first + self.stride * start
        last = self.last + self.stride * (start + span - 1)
        return Field(self.stride * stride, first, last)


Fields = tuple[Field, Field]  # of height and width
PIXEL = Field(Fraction(1), Fraction(0), Fraction(0))


def _union(fields: Sequence[Fields]) -> Fields | None:
    """What a cell sees where several maps meet."""
    if not fields:
        return None
    axes = list(zip(*fields, strict=True))
    height, width = (
        Field(min(f.stride for f in axis), min(f.first for f in axis), max(f.last for f in axis)) for axis in axes
    )
    return height, width


# ------------------------------------------------------------------------------------------ the rules of operators
# A rule takes the arguments of a function of `tinyseg.functional` and returns what is known about its result.
# `Map` stands for an array argument: its shape, and what its cells see.


class Map(NamedTuple):
    shape: tuple[int, ...]
    fields: Fields | None
    dtype: np.dtype


class Result(NamedTuple):
    shape: tuple[int, ...]
    fields: Fields | None
    note: str = ""  # follows the operator's name in the table
    multiply_adds: int = 0


def _windowed(x: Map, window: Window) -> Fields | None:
    if x.fields is None:
        return None
    starts = (window.padding.top, window.padding.left)
    height, width = (
        field.through(start=-start, span=(kernel - 1) * dilation + 1, stride=stride)
        for field, start, kernel, dilation, stride in zip(
            x.fields, starts, window.kernel, window.dilation, window.stride, strict=True
        )
    )
    return height, width


def _note(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), groups: int = 1) -> str:
    """As in "3x3 /2 dilated 4, 32 groups"."""
    note = "x".join(map(str, kernel))
    if max(stride) > 1:
        note += f" /{_one_or_two(stride)}"
    if max(dilation) > 1:
        note += f" dilated {_one_or_two(dilation)}"
    return note + (f", {groups} groups" if groups > 1 else "")


def _one_or_two(values: Sequence[Any]) -> str:
    return str(values[0]) if values[0] == values[1] else f"{values[0]},{values[1]}"


def _conv2d(
    x: Map, w: Map, b: Map | None = None, *, groups: int = 1, algo: str = "auto", **options: Any
) -> Result:
    window = geometry.window(
        "conv2d",
        x.shape[1:3],  # type: ignore[arg-type]
        w.shape[:2],  # type: ignore[arg-type]
        options.get("stride", 1),
        options.get("padding", 0),
        options.get("dilation", 1),
    )
    check_groups("conv2d", groups, x.shape[3], w.shape[3], w.shape[2])
    shape = (x.shape[0], *window.out, w.shape[3])
    note = _note(window.kernel, window.stride, window.dilation, groups)
    return Result(shape, _windowed(x, window), note, math.prod(window.out) * math.prod(w.shape))


def _conv_transpose2d(
    x: Map, w: Map, b: Map | None = None, *, groups: int = 1, algo: str = "auto", **options: Any
) -> Result:
    name, (rows, columns, in_group, _) = "conv_transpose2d", w.shape
    check_groups(name, groups, in_group * groups, x.shape[3], in_group)
    stride = geometry.pair(name, "stride", options.get("stride", 1), minimum=1)
    dilation = geometry.pair(name, "dilation", options.get("dilation", 1), minimum=1)
    extra = geometry.pair(name, "output_padding", options.get("output_padding", 0), minimum=0)
    enlarged = (x.shape[1] * stride[0], x.shape[2] * stride[1])
    padding = options.get("padding", 0)
    pad = geometry.padding(name, padding, enlarged, (rows, columns), stride, dilation)
    sides, fields = [], []
    for axis, (before, after) in enumerate(((pad.top, pad.bottom), (pad.left, pad.right))):
        extent = (w.shape[axis] - 1) * dilation[axis] + 1
        room = (x.shape[1 + axis] - 1) * stride[axis] + extent - before - after + extra[axis]
        sides.append(enlarged[axis] if padding == "same" else room)
        if x.fields is not None:
            span = -(-w.shape[axis] // stride[axis])
            centre = Fraction(2 * before - extent + 1, 2 * stride[axis])
            start = centre - Fraction(span - 1, 2)
            fields.append(x.fields[axis].through(start=start, span=span, stride=Fraction(1, stride[axis])))
    note = _note((rows, columns), stride, dilation, groups)
    multiply_adds = x.shape[1] * x.shape[2] * math.prod(w.shape)
    return Result((x.shape[0], *sides, in_group * groups), tuple(fields) or None, note, multiply_adds)  # type: ignore


def _linear(x: Map, w: Map, b: Map | None = None) -> Result:
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"linear: x of shape {x.shape} and w of shape {w.shape} do not fit: its rows, x's last axis"
        )
    shape = (*x.shape[:-1], w.shape[1])
    return Result(shape, x.fields, "", math.prod(shape[1:]) * w.shape[0])


def _encoding(x: Map, codewords: Map, scales: Map) -> Result:
    ops.encoding(
        np.zeros((1, 1, 1, x.shape[3]), x.dtype), *(np.zeros(y.shape, y.dtype) for y in (codewords, scales))
    )
    shape = (x.shape[0], x.shape[3], codewords.shape[0])
    fields = _all_of_the_map(x)
    return Result(shape, fields, f"{shape[2]} codewords", 2 * math.prod(x.shape[1:]) * shape[2])


def _pool(operator: str) -> Callable[..., Result]:
    def rule(
        x: Map, kernel: Any, *, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, **_: Any
    ) -> Result:
        window = pooling.window(operator, x.shape[1:3], kernel, stride, padding, ceil_mode)  # type: ignore[arg-type]
        shape = (x.shape[0], *window.out, x.shape[3])
        return Result(shape, _windowed(x, window), _note(window.kernel, window.stride))

    return rule


def _adaptive_pool(operator: str) -> Callable[..., Result]:
    def rule(x: Map, size: Any = 1) -> Result:
        out = geometry.pair(operator, "size", size, minimum=1)
        fields = []
        for axis, count in enumerate(out):
            if x.fields is not None:
                cells = x.shape[1 + axis]
                # Bins of cells / count cells, each with the cells that it covers in part: the longest of them.
                span = max(-(-(i + 1) * cells // count) - i * cells // count for i in range(count))
                start = (Fraction(cells, count) - span) / 2
                fields.append(x.fields[axis].through(start=start, span=span, stride=Fraction(cells, count)))
        return Result((x.shape[0], *out, x.shape[3]), tuple(fields) or None, f"to {out[0]}x{out[1]}")  # type: ignore

    return rule


def _resize(
    x: Map, size: Any = None, *, align_corners: bool = False, mode: str = "bilinear", **options: Any
) -> Result:
    y = ops.resize(_one_channel(x), size=size, align_corners=align_corners, mode=mode, **options)[0]
    fields = []
    for axis in (1, 2):
        if x.fields is not None:
            before, after = x.shape[axis], y.shape[axis]
            # The centre of output i lies at i * ratio + start; linear interpolation looks at both neighbours.
            corners = align_corners and after > 1
            ratio = Fraction(before - 1, after - 1) if corners else Fraction(before, after)
            ratio = ratio or Fraction(1)
            start = Fraction(0) if corners else (ratio - 1) / 2
            span = 1 if before == after or mode == "nearest" or before == 1 else 2
            fields.append(x.fields[axis - 1].through(start=start - Fraction(span - 1, 2), span=span, stride=ratio))
    note = mode + (", corners aligned" if align_corners else "")
    return Result((*y.shape[:3], x.shape[3]), tuple(fields) or None, note)  # type: ignore[arg-type]


def _pad(x: Map, padding: Any, **options: Any) -> Result:
    y, cache = ops.pad(_one_channel(x), padding)
    return _shifted(x, y, cache)


def _crop(x: Map, sides: Any = None, **options: Any) -> Result:
    y, cache = ops.crop(_one_channel(x), sides, **options)
    return _shifted(x, y, cache)


def _one_channel(x: Map) -> Array:
    """An array for the operator itself, which knows best what its options mean; small enough to run it."""
    return np.zeros((x.shape[0], *x.shape[1:3], 1), x.dtype)


def _shifted(x: Map, y: Array, cache: Any) -> Result:
    """Of a border put on or taken off: cell i is the cell i + start of the map before."""
    fields = []
    for axis, table in enumerate((cache.rows, cache.columns)):
        if x.fields is not None:
            start = int(table.source[0] - table.target[0])
            fields.append(x.fields[axis].through(start=start, span=1, stride=1))
    return Result((*y.shape[:3], x.shape[3]), tuple(fields) or None)  # type: ignore[arg-type]


def _slice(x: Map, ranges: Any) -> Result:
    part, fields = [slice(None)] * len(x.shape), list(x.fields or ())
    for axis, (start, stop) in ranges.items():
        axis %= len(x.shape)
        part[axis] = slice(start, stop)
        if fields and len(x.shape) == 4 and axis in (1, 2):
            first = part[axis].indices(x.shape[axis])[0]
            fields[axis - 1] = fields[axis - 1].through(start=first, span=1, stride=1)
    return Result(_zeros(x.shape, x.dtype)[tuple(part)].shape, tuple(fields) or None)  # type: ignore[arg-type]


def _concat(arrays: Sequence[Map], *, axis: int = -1) -> Result:
    shape = list(arrays[0].shape)
    axis %= len(shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    for x in arrays:
        if (*x.shape[:axis], *x.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]):
            raise ValueError(f"concat: shapes {[x.shape for x in arrays]} do not fit along axis {axis}")
    return Result(tuple(shape), _union([x.fields for x in arrays if x.fields]))


def _reshape(x: Map, shape: Any) -> Result:
    shape = _zeros(x.shape, x.dtype).reshape(shape).shape
    if x.fields is None or len(x.shape) != 4 or (len(shape) == 4 and shape[1:3] == x.shape[1:3]):
        return Result(shape, x.fields)
    return Result(shape, _all_of_the_map(x))


def _all_of_the_map(x: Map) -> Fields | None:
    """Those of one cell that sees all of a map N H W C."""
    if x.fields is None:
        return None
    height, width = (
        field.through(start=0, span=cells, stride=cells)
        for field, cells in zip(x.fields, x.shape[1:3], strict=True)
    )
    return height, width


def _meet(a: Map, b: Any = None, **_: Any) -> Result:
    maps = [value for value in (a, b) if isinstance(value, Map)]
    return Result(np.broadcast_shapes(*(x.shape for x in maps)), _union([x.fields for x in maps if x.fields]))


def _refine(x: Map, *_: Any, iterations: int = 5, **options: Any) -> Result:
    return Result(x.shape, None, f"{iterations} iterations")  # each pixel sees all of the image


def _same(x: Map, *_: Any, **options: Any) -> Result:
    return Result(x.shape, x.fields, "relu" if options.get("relu") else "")


RULES: dict[str, Callable[..., Result]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "linear": _linear,
    "encoding": _encoding,
    "max_pool2d": _pool("max_pool2d"),
    "avg_pool2d": _pool("avg_pool2d"),
    **{name: _adaptive_pool(name) for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d")},
    **{name: _adaptive_pool(name) for name in ("global_avg_pool2d", "global_max_pool2d")},
    "resize": _resize,
    "pad": _pad,
    "crop": _crop,
    "slice": _slice,
    "concat": _concat,
    "reshape": _reshape,
    "refine": _refine,
    **dict.fromkeys(("add", "mul"), _meet),
    **dict.fromkeys(("batch_norm", "group_norm", "local_response_norm", "dropout"), _same),
    **dict.fromkeys(("relu", "leaky_relu", "sigmoid", "tanh", "softmax", "log_softmax"), _same),
}
"""Functions of `tinyseg.functional` by name. Any other runs as it is, on zeros, and gets no row."""


# ---------------------------------------------------------------------------------------------------- recording


class _Recorder:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.path: list[str] = []  # of the modules whose forward is running
        self.fields: dict[int, Fields | None] = {}  # by id of a tensor
        self.kept: list[Tensor] = []  # an id is that of one tensor only as long as it lives
        self.counted: set[int] = set()  # ids of parameters

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype, fields: Fields | None) -> Tensor:
        result = Tensor(_zeros(shape, dtype))
        self.fields[id(result)] = fields
        self.kept.append(result)
        return result

    @contextlib.contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Inside this block, functions with a rule follow it, and every module says when it runs."""
        modules = list(network.named_modules())
        with contextlib.ExitStack() as stack:
            recording = {name: self._recording(name, rule) for name, rule in RULES.items()}
            stack.enter_context(_replaced(functional, **recording))
            for name, module in modules:
                module.forward = self._announcing(name, module.forward)
                stack.callback(delattr, module, "forward")
            yield

    def _announcing(self, name: str, forward: Callable) -> Callable:
        def announced(*arguments: Any, **options: Any) -> Any:
            self.path.append(name)
            try:
                return forward(*arguments, **options)
            finally:
                self.path.pop()

        return announced

    def _recording(self, name: str, rule: Callable[..., Result]) -> Callable:
        def recorded(*arguments: Any, **options: Any) -> Any:
            inputs = [value for argument in arguments for value in _flat(argument)]
            result = rule(*map(self._as_map, arguments), **{key: self._as_map(v) for key, v in options.items()})
            dtype = next(array.dtype for array in map(_array, inputs) if array is not None)
            tensor = self.tensor(result.shape, dtype, result.fields)
            self.rows.append(self._row(name, result, inputs, tensor.data.size * dtype.itemsize))
            if name == "batch_norm":
                statistics = _zeros(result.shape[-1:], dtype)
                return tensor, statistics, statistics
            return tensor

        return recorded

    def _row(self, name: str, result: Result, inputs: list, memory: int) -> Row:
        new = [value for value in inputs if isinstance(value, nn.Parameter) and id(value) not in self.counted]
        self.counted.update(map(id, new))
        fields = result.fields
        return Row(
            layer=self.path[-1],
            operator=f"{name} {result.note}".strip(),
            size=result.shape[1:],
            parameters=sum(value.data.size for value in new if value.requires_grad),
            fixed=sum(value.data.size for value in new if not value.requires_grad),
            multiply_adds=result.multiply_adds,
            memory=memory,
            receptive_field=None if fields is None else (fields[0].size, fields[1].size),
            stride=None if fields is None else (_plain(fields[0].stride), _plain(fields[1].stride)),
        )

    def _as_map(self, value: Any) -> Any:
        """A tensor or an array as a Map; a list of them as a list of Maps; anything else as it is."""
        array = _array(value)
        if array is not None:
            return Map(array.shape, self.fields.get(id(value)), array.dtype)
        if isinstance(value, list | tuple) and any(_array(item) is not None for item in value):
            return [self._as_map(item) for item in value]
        return value


@contextlib.contextmanager
def _replaced(module: Any, **functions: Callable) -> Iterator[None]:
    """Inside this block the functions of a module are others. They are called as attributes of the module."""
    before = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _flat(argument: Any) -> list:
    return list(argument) if isinstance(argument, list | tuple) else [argument]


def _array(value: Any) -> Array | None:
    value = value.data if isinstance(value, Tensor) else value
    return value if isinstance(value, np.ndarray) else None


def _plain(number: Fraction) -> Number:
    return int(number) if number.denominator == 1 else float(number)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """A read-only array of zeros that takes the memory of one number."""
    return np.broadcast_to(np.zeros((), dtype), shape)
